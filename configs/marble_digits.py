"""Five rewards at once on handwritten digits, balanced by MARBLE's quadratic program with DiffusionNFT.

Command:   jaxdrl run --config=configs/marble_digits.py --workdir=runs/marble
Hardware:  2 CPU cores, 4 GB of memory.
Data:      as drl_digits.py, and its shipped base and encoders.
Source:    arXiv 2605.06507 (program; mixing .1), with the Gram matrix of a sketch at every step (balancing/gradients.py).
Rewards:   the discriminator's logit, sharpness, symmetry, centredness, and small JPEG files, which sharpness opposes.
Results:   docs/policy_gradients.md.

Variants:  `:tiny` runs every stage in under a minute, for tests.
"""

import ml_collections

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes

REWARDS = {"discriminator": {}, "sharpness": {}, "symmetry": {}, "centredness": {}, "jpeg_compressibility": {}}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: "" or "tiny".

    Returns:
        The config tree.
    """
    config = recipes.policy_gradient(jaxdrl_config.default(), "nft")
    config.name = "marble_digits"
    config.posttrain.rewards = ml_collections.ConfigDict(REWARDS)
    config.posttrain.nft.update(num_steps=10, kl_weight=0.2, mixing=0.1)
    config.posttrain.guard.energy = 20.0
    config.posttrain.balance.update(rule="marble", gram="sketch")
    if variant == "tiny":
        return recipes.tiny(config)
    recipes.check_variant(variant)
    return config
