"""Discriminator-Guided RL on the published SiT-XL/2, ImageNet at 256 pixels, with the paper's settings.

Command:   jaxdrl run --config=configs/drl_imagenet_sit_xl.py --workdir=runs/sit_xl
Before:    weights, once (safetensors, or .pt with `pip install -e '.[torch]'`):
           jaxdrl convert --model=SiT-XL/2 --from=SiT-XL-2-256x256.pt --to=models/sit-xl      (linked in willisma/SiT, download.py)
           jaxdrl convert --model=sd-vae --from=diffusion_pytorch_model.safetensors --to=models/sd-vae-ema
                          (stabilityai/sd-vae-ft-ema)
           jaxdrl convert --model=dinov2-large --from=model.safetensors --to=models/dinov2-large    (facebook/dinov2-large)
           jaxdrl convert --model=dinov2-with-registers-large ... (facebook/dinov2-with-registers-large), for measuring
           and ImageNet: `tfds build imagenet2012 --file_format=array_record`, `pip install -e '.[tfds,cuda]'` (or tpu).
Hardware:  the buffer takes 7.5 GB over all devices; a gradient step evaluates 23 040 noisy latents, so 8 H200 or 64 chips with 16 GB.
           The paper used 190 H200 hours a lambda. Not run at full size here yet.
Expected:  guidance-free FID 9.38 -> 2.62 at lambda = 1 without R1; FD-DINOv2-L 241.9 -> 54.4 at lambda = 10 (the paper's numbers).
Source:    arXiv 2606.19162 App. H and I; the generator arXiv 2401.08740.

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
    config.name = "drl_imagenet_sit_xl"
    config.tokenizer.update(name="sd-vae", weights="models/sd-vae-ema")
    config.backbone.update(name="SiT-XL/2", weights="models/sit-xl")
    config.sampler.guidance_channels = 3
    config.posttrain.refreshes = 150
    if variant == "tiny":
        sizes = {"width": 16, "depth": 2, "num_heads": 2}
        return recipes.tiny_published(config, sizes, 16, {"widths": (8, 8, 8), "depth": 1, "groups": 4})
    recipes.check_variant(variant)
    return config
