"""Discriminator-Guided RL on 32x32 colour patches of natural images: the larger form of `drl_patches.py`, for one GPU.

Command:   jaxdrl run --config=configs/drl_patches32.py --workdir=runs/patches32
Before:    pip install -e '.[cuda]'. No download: the pictures ship inside scikit-image and scikit-learn.
Hardware:  one GPU with 16 GB; hours and distances have not been measured yet.
Data:      crops of ten pictures, class = picture, disjoint strips 32 pixels wide; 5000 a class to train on and to test.
Source:    arXiv 2606.19162 (method); a SiT of 4.4 million parameters.

Variants:  `:tiny` runs every stage in about a minute on a CPU, for tests.
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
    config = jaxdrl_config.default()
    config.name = "drl_patches32"
    config.data.name = "patches"
    config.data.image_shape = (32, 32, 3)
    config.data.examples_per_class = 5000
    for which in ("reward", "judge"):
        config.encoders[which].update(width=128, depth=6, feature_dim=128, patch_size=4, steps=10000, batch_size=256)
    config.backbone.update(width=192, depth=6, num_heads=3, patch_size=2, frequency_dim=256, dtype="bfloat16")
    config.pretrain.update(from_scratch=True, steps=200000, batch_size=128, learning_rate=3e-4, ema_decay=0.9999)
    config.pretrain.update(curve_every=10000, curve_samples=4000)
    config.discriminator.update(width=256, batch_size=256, steps=5000, sampling_steps=25)
    config.posttrain.update(reward_scale=3.0, num_timesteps=40, timestep_fraction=0.2, buffer_size=1024, batch_size=256)
    config.posttrain.update(time_offset=0.01, noise_offset=0.0)
    config.posttrain.update(refreshes=100, epochs=4, learning_rate=1e-4, decay="cosine", grad_clip=1.0, ema_decay=0.99)
    config.evaluate.update(num_samples=10000, batch_size=1000, tilt_pool=3)
    if variant == "tiny":
        config = recipes.tiny(config)
        config.encoders.reward.patch_size = 8
        config.backbone.patch_size = 8
        return config
    recipes.check_variant(variant)
    return config
