"""Discriminator-Guided RL on ImageNet at 64x64 pixels, through TFDS: one host with eight accelerators.

Command:   jaxdrl run --config=configs/drl_imagenet64.py --workdir=runs/imagenet64
Before:    pip install -e '.[tfds,cuda]' (or tpu) and `tfds build imagenet_resized/64x64 --file_format=array_record`.
Hardware:  eight GPUs or TPU cores with 16 GB each; hours and distances have not been measured yet.
Source:    arXiv 2606.19162 for DRL's numbers; SiT-B sizes from arXiv 2401.08740, in pixel space with patches of 4 x 4.

Both encoders are trained here, without labels. Variants: `:tiny` runs every stage on generated data of this shape, for tests.
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
    config.name = "drl_imagenet64"
    config.data.update(name="imagenet_resized/64x64", image_shape=(64, 64, 3), num_classes=1000)
    config.data.update(horizontal_flip=True, in_memory=False, workers=8)
    for which in ("reward", "judge"):
        config.encoders[which].update(width=384, depth=8, feature_dim=384, patch_size=8, steps=100000, batch_size=1024)
    config.backbone.update(width=768, depth=12, num_heads=12, patch_size=4, frequency_dim=256, dtype="bfloat16", remat="full")
    config.pretrain.update(from_scratch=True, steps=400000, batch_size=256, learning_rate=1e-4, ema_decay=0.9999)
    config.pretrain.update(curve_every=20000, curve_samples=10000)
    config.discriminator.r1 = 1e-5
    config.posttrain.rollout_batch = 288
    config.evaluate.update(num_samples=50000, batch_size=1000, tilt_pool=1)
    if variant == "tiny":
        config = recipes.tiny(config)
        config.data.update(name="synthetic", num_classes=10, in_memory=True, workers=0)
        config.encoders.reward.patch_size = 16
        config.backbone.patch_size = 16
        return config
    recipes.check_variant(variant)
    return config
