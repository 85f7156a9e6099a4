"""Two rewards of one's own, one with a gradient and one without, and the recipe that trains on both.

Command:   PYTHONPATH=docs/examples jaxdrl run --config=docs/examples/own_reward.py --workdir=runs/own_reward
"""

import jax.numpy as jnp
import ml_collections
import numpy as np
from scipy import ndimage

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes


def upright(images, condition):
    """Traced: minus the squared correlation of row and column over the ink; 0 for strokes that do not slant."""
    ink = (images.mean(axis=-1) + 1) / 2
    weights = ink / (ink.sum(axis=(1, 2), keepdims=True) + 1e-6)
    rows, columns = jnp.linspace(-1, 1, ink.shape[1])[:, None], jnp.linspace(-1, 1, ink.shape[2])[None]
    mean = lambda values: (weights * values).sum(axis=(1, 2), keepdims=True)  # noqa: E731
    rows, columns = rows - mean(rows), columns - mean(columns)
    slant = mean(rows * columns) ** 2 / (mean(rows**2) * mean(columns**2) + 1e-6)
    return -slant[:, 0, 0]


def loops(images, condition):
    """On the host: 1 where the digit has as many closed loops as it should, 0 elsewhere."""
    wanted = np.array([1, 0, 0, 0, 0, 0, 1, 0, 2, 1])[condition]
    paper = np.pad(images.mean(axis=-1) < 0, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    found = np.array([ndimage.label(one)[1] - 1 for one in paper])  # the outside is one piece of paper
    return (found == wanted).astype(np.float32)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The recipe: DiffusionNFT on the base of `drl_digits.py`, since `loops` has no gradient."""
    config = recipes.policy_gradient(jaxdrl_config.default(), "nft")
    config.name = "own_reward"
    config.posttrain.rewards = ml_collections.ConfigDict(
        {
            "upright": {"name": "traced_function", "path": "own_reward:upright"},
            "loops": {"name": "function", "path": "own_reward:loops", "classes": (0, 6, 8, 9)},
        }
    )
    config.posttrain.balance.rule = "gdpo"  # each reward in its own standard deviations
    config.posttrain.nft.update(kl_weight=0.2, weighting="uniform")
    if variant == "tiny":
        return recipes.tiny(config)
    recipes.check_variant(variant)
    return config
