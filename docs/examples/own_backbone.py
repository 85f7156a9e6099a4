"""A generator of one's own, and the recipe that trains it on the digits and post-trains it.

Command:   PYTHONPATH=docs/examples jaxdrl run --config=docs/examples/own_backbone.py --workdir=runs/own_backbone
"""

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes


class Mixer(nn.Module):
    """An MLP-Mixer: every pixel is a token; dense layers over tokens and over channels in turns, modulated by time and class."""

    num_classes: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, x, t, y):
        """Of x [batch, h, w, c], t [batch] in [0, 1], y [batch] int up to num_classes, the null class: the velocity, as x."""
        batch, height, width, channels = x.shape
        angles = jnp.pi * t[:, None] * 2.0 ** jnp.arange(6)
        condition = nn.Dense(self.width)(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))
        condition = nn.silu(condition + nn.Embed(self.num_classes + 1, self.width)(y))
        h = nn.Dense(self.width)(x.reshape(batch, height * width, channels))
        for _ in range(self.depth):
            scale, shift = jnp.split(nn.Dense(2 * self.width)(condition)[:, None], 2, axis=-1)
            mixed = (nn.LayerNorm()(h) * (1 + scale) + shift).swapaxes(1, 2)
            h = h + nn.Dense(height * width)(nn.gelu(nn.Dense(height * width)(mixed))).swapaxes(1, 2)
            h = h + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(h))))
        return nn.Dense(channels, kernel_init=nn.initializers.zeros)(h).reshape(x.shape)


def make(*, sample_shape, num_classes, width=24, depth=2):
    """What `config.backbone.name` names: sizes in, `init(key)` and `velocity(params, x, t, y)` out."""
    network = Mixer(num_classes=num_classes, width=width, depth=depth)

    def init(key):
        return network.init(key, jnp.zeros((1, *sample_shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]

    def velocity(params, x, t, y):
        return network.apply({"params": params}, x, t, y)

    return init, velocity


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe; `:tiny` runs every stage in about a minute."""
    config = recipes.small(jaxdrl_config.default())
    config.name = "own_backbone"
    config.backbone.name = "own_backbone:make"
    config.backbone.fields = ml_collections.ConfigDict({"depth": 3})
    config.pretrain.from_scratch = True  # nothing that ships fits this network
    if variant == "tiny":
        return recipes.tiny(config)
    recipes.check_variant(variant)
    return config
