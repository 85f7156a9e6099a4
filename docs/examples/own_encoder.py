"""A feature network of one's own: the discriminator looks through it, and its logit is the reward.

Command:   PYTHONPATH=docs/examples jaxdrl run --config=docs/examples/own_encoder.py --workdir=runs/own_encoder
"""

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes


class Strokes(nn.Module):
    """Two layers over patches of 2 x 2 pixels; mean and spread of each channel over the image are the features."""

    width: int

    @nn.compact
    def __call__(self, images):
        """Images [batch, h, w, c] in [-1, 1] -> features by name."""
        h = nn.Conv(self.width, (2, 2), strides=(2, 2))(images)
        h = nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(h)))
        mean = h.mean(axis=(1, 2))
        spread = jnp.sqrt(((h - mean[:, None, None]) ** 2).mean(axis=(1, 2)) + 1e-6)  # + 1e-6: a gradient where all is equal
        pooled = jnp.concatenate([mean, spread], axis=-1)
        return {"pooled": pooled, "global": pooled}


def make(*, image_shape, width=32):
    """What `config.encoders.reward.name` names: sizes in, `init(key)` and `apply(params, images)` out."""
    network = Strokes(width=width)

    def init(key):
        return network.init(key, jnp.zeros((1, *image_shape)))["params"]

    def apply(params, images):
        return network.apply({"params": params}, images)

    return init, apply


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe: `drl_digits.py`, its base and its judge, with another encoder for the reward."""
    config = recipes.small(jaxdrl_config.default())
    config.name = "own_encoder"
    config.pretrain.update(steps=150000, shipped="drl_digits")
    config.encoders.reward.update(name="own_encoder:make", objective="simclr")  # trained here, as weights="" says
    config.encoders.reward.fields = ml_collections.ConfigDict({"width": 48})
    if variant == "tiny":
        return recipes.tiny(config)
    recipes.check_variant(variant)
    return config
