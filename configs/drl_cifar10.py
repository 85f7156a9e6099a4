"""Discriminator-Guided RL on CIFAR-10: the method of the paper on colour images, for one Colab GPU.

Command:   jaxdrl run --config=configs/drl_cifar10.py --workdir=runs/cifar10
Before:    pip install -e '.[tfds,cuda]' and `tfds build cifar10 --file_format=array_record` (or config.data.directory).
Hardware:  one GPU with 16 GB; hours and distances have not been measured yet.
Source:    arXiv 2606.19162 for DRL's numbers; SiT-S sizes from arXiv 2401.08740.

Variants:  `:tiny` runs every stage on generated data of CIFAR-10's shape in about a minute, for tests.
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
    config.name = "drl_cifar10"
    config.data.name = "cifar10"
    config.data.image_shape = (32, 32, 3)
    config.data.horizontal_flip = True
    for which in ("reward", "judge"):
        config.encoders[which].update(width=192, depth=6, feature_dim=192, patch_size=4, steps=20000, batch_size=512)
    config.backbone.update(width=384, depth=12, num_heads=6, frequency_dim=256, dtype="bfloat16")
    config.pretrain.update(from_scratch=True, steps=200000, batch_size=256, learning_rate=1e-4, ema_decay=0.9999)
    config.pretrain.update(curve_every=10000, curve_samples=10000)
    config.discriminator.r1 = 1e-5
    config.evaluate.update(num_samples=10000, batch_size=500, tilt_pool=2)
    if variant == "tiny":
        config = recipes.tiny(config)
        config.data.name = "synthetic"
        config.encoders.reward.patch_size = 8
        config.backbone.patch_size = 8
        return config
    recipes.check_variant(variant)
    return config
