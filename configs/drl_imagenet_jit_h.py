"""Discriminator-Guided RL on the published JiT-H/16, ImageNet at 256 pixels, with the paper's settings.

Command:   jaxdrl run --config=configs/drl_imagenet_jit_h.py --workdir=runs/jit_h
Before:    jaxdrl convert --model=JiT-H/16 --from=checkpoint-last.pth --to=models/jit-h    (linked in LTH14/JiT, README)
           and encoders and data as in configs/drl_imagenet_sit_xl.py. JiT works on pixels and needs no autoencoder.
Hardware:  8 H200 or 16 TPU v5e with the buffer in bfloat16 in the hosts' memory, by plan (docs/scale.md has the settings); as it is here,
           the buffer of 3072 trajectories takes 483 GB over all devices. The paper used 500 H200 hours a lambda. Not run at full size
           here yet.
Expected:  guidance-free FID 7.16 -> 2.73 at lambda = 5; FD-DINOv2-L 148.0 -> 42.8 at lambda = 20 (the paper's numbers).
Source:    arXiv 2606.19162 App. H and I; the generator arXiv 2511.13720. 3072 trajectories are five batches of 576 an epoch; the rest of an
           epoch's permutation is left out, other trajectories in each epoch.

Variants:  `:tiny` runs every stage with the same networks in small, on drawn weights, for tests.
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
    config = recipes.published(jaxdrl_config.default())
    config.name = "drl_imagenet_jit_h"
    config.backbone.update(name="JiT-H/16", weights="models/jit-h")
    config.posttrain.update(buffer_size=3072, refreshes=120)
    config.evaluate.to_uint8 = "round"
    if variant == "tiny":
        sizes = {
            "width": 16,
            "depth": 3,
            "num_heads": 2,
            "patch_size": 4,
            "bottleneck": 8,
            "context_start": 1,
            "context_length": 3,
        }
        return recipes.tiny_published(config, sizes, 16)
    recipes.check_variant(variant)
    return config
