"""Discriminator-Guided RL on RAE's published DiT^DH-XL, ImageNet at 256 pixels, with the paper's settings.

Command:   jaxdrl run --config=configs/drl_imagenet_rae_xl.py --workdir=runs/rae_xl
Before:    jaxdrl convert --model=DiTDH-XL --from=stage2_model.pt --to=models/ditdh-xl
           jaxdrl convert --model=rae-dinov2-base --from=model.safetensors --from=model.pt --from=stat.pt --to=models/rae
                          (encoder facebook/dinov2-with-registers-base; decoder ViTXL_n08 and statistics wReg_base/imagenet1k)
           All but the encoder are in nyu-visionx/RAE-collections. Encoders and data as in configs/drl_imagenet_sit_xl.py.
Hardware:  8 H200 or 16 TPU v5e with the buffer in bfloat16 in the hosts' memory, by plan (docs/scale.md has the settings); as it is here,
           the buffer of 3072 trajectories takes 483 GB over all devices. The paper used 420 H200 hours a lambda. Not run at full size
           here yet.
Expected:  guidance-free FID 1.31 -> 1.29 at lambda = 1 with R1; FD-DINOv2-L 37.5 -> 20.6 at lambda = 10 (the paper's numbers).
Source:    arXiv 2606.19162 App. H and I: mean over the timestep subset, learning rate 5e-5, clip 1.0, mask quantile 0.75 and decay 0.995.
           The generator and its sampler arXiv 2510.11690: 49 Euler steps on the shifted grid, shift sqrt(196608 / 4096).

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
    config.name = "drl_imagenet_rae_xl"
    config.tokenizer.update(name="rae-dinov2-base", weights="models/rae")
    config.backbone.update(name="DiTDH-XL", weights="models/ditdh-xl")
    config.sampler.update(method="euler", time_shift=48.0**0.5, time_end=0.999)
    config.discriminator.sampling_steps = 49
    config.posttrain.update(buffer_size=3072, refreshes=120, learning_rate=5e-5, grad_clip=1.0, subset_reduction="mean")
    config.posttrain.update(outlier_quantile=0.75, outlier_decay=0.995)
    config.evaluate.sampling_steps = 49
    if variant == "tiny":
        sizes = {"width": 16, "depth": 2, "num_heads": 2, "head_width": 24, "head_num_heads": 2}
        rae = {"image_size": 32, "encoder_size": 28, "encoder": (16, 1, 2), "decoder": (16, 1, 2, 32)}
        return recipes.tiny_published(config, sizes, 32, rae)
    recipes.check_variant(variant)
    return config
