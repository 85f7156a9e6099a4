"""Discriminator-Guided RL on handwritten digits: the whole method in minutes on a laptop.

Command:   jaxdrl run --config=configs/drl_digits.py --workdir=runs/first
Hardware:  2 CPU cores, 4 GB of memory.
Data:      scikit-learn's 1797 digits (8x8, 10 classes), halved by a fixed seed; nothing is downloaded.
Source:    arXiv 2606.19162 (method), with lambda, K and learning rate scaled to a network of this size.
Results:   docs/results.md.

Variants:  `:tiny` runs every stage in under a minute, for tests.
"""

import ml_collections

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: "" or "tiny".

    Returns:
        The config tree.
    """
    config = recipes.small(jaxdrl_config.default())
    config.name = "drl_digits"
    config.data.name = "digits"
    config.pretrain.steps = 150000
    if variant == "tiny":
        return recipes.tiny(config)
    recipes.check_variant(variant)
    return config
