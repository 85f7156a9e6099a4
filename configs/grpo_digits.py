"""Flow-GRPO on handwritten digits with a reward that has no gradient: the number of inked pixels.

Command:   jaxdrl run --config=configs/grpo_digits.py --workdir=runs/grpo
Hardware:  2 CPU cores, 4 GB of memory.
Data:      as drl_digits.py, and its shipped base and encoders.
Source:    arXiv 2505.05470 (method); full fine-tuning, learning rate, clip range and KL weight scaled to a network of this size.
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
    config = recipes.policy_gradient(jaxdrl_config.default(), "flow_grpo")
    config.name = "grpo_digits"
    config.posttrain.rewards = ml_collections.ConfigDict({"inked_pixels": {}})
    config.posttrain.update(refreshes=40, epochs=2)
    # Log-probabilities are means over 64 dimensions: their ratios move eight times as far from 1 as those of a 512-pixel image.
    config.posttrain.flow_grpo.update(num_steps=10, clip_range=1e-3, kl_weight=0.4)
    config.posttrain.guard.energy = 20.0
    if variant == "tiny":
        return recipes.tiny(config)
    recipes.check_variant(variant)
    return config
