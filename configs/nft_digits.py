"""DiffusionNFT on handwritten digits with a reward that has no gradient: the number of inked pixels.

Command:   jaxdrl run --config=configs/nft_digits.py --workdir=runs/nft
Hardware:  2 CPU cores, 4 GB of memory.
Data:      as drl_digits.py, and its shipped base and encoders.
Source:    arXiv 2509.16117 (method, mixing 1); full fine-tuning, learning rate and KL weight scaled to a network of this size.
Results:   docs/policy_gradients.md.

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
    config = recipes.policy_gradient(jaxdrl_config.default(), "nft")
    config.name = "nft_digits"
    config.posttrain.rewards = ml_collections.ConfigDict({"inked_pixels": {}})
    config.posttrain.nft.update(num_steps=10, kl_weight=0.52, weighting="uniform", times="uniform", times_per_sample=8)
    config.posttrain.update(refreshes=40, buffer_size=480, batch_size=480)
    config.posttrain.guard.energy = 20.0
    if variant == "tiny":
        return recipes.tiny(config)
    recipes.check_variant(variant)
    return config
