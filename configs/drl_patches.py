"""Discriminator-Guided RL on patches of natural images: plentiful data, a real 1/f spectrum.

Command:   jaxdrl run --config=configs/drl_patches.py --workdir=runs/patches
Hardware:  2 CPU cores, 4 GB of memory.
Data:      8x8 grey crops of ten pictures that ship with scikit-image and scikit-learn; class = picture; disjoint strips.
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
    config.name = "drl_patches"
    config.data.name = "patches"
    if variant == "tiny":
        return recipes.tiny(config)
    recipes.check_variant(variant)
    return config
