"""Discriminator-Guided RL on the published REPA SiT-XL/2, ImageNet at 256 pixels, with the paper's settings.

Command:   jaxdrl run --config=configs/drl_imagenet_repa_xl.py --workdir=runs/repa_xl
Before:    jaxdrl convert --model=REPA-SiT-XL/2 --from=last.pt --to=models/repa-xl    (linked in sihyun-yu/REPA, utils.py)
           and autoencoder, encoders and data as in configs/drl_imagenet_sit_xl.py.
Hardware:  as SiT-XL/2. Not run at full size here yet.
Expected:  guidance-free FID 6.48 -> 2.14 at lambda = 1 without R1; FD-DINOv2-L 159.5 -> 40.3 at lambda = 5 (the paper's numbers).
Source:    arXiv 2606.19162 App. H and I; the generator arXiv 2410.06940. Its time runs the other way; `backbones` turns it round.

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
    config.name = "drl_imagenet_repa_xl"
    config.tokenizer.update(name="sd-vae", weights="models/sd-vae-ema")
    config.backbone.update(name="REPA-SiT-XL/2", weights="models/repa-xl")
    config.posttrain.refreshes = 150
    if variant == "tiny":
        sizes = {"width": 16, "depth": 2, "num_heads": 2, "projector_depth": 1, "projector_dims": (8,), "projector_hidden": 8}
        return recipes.tiny_published(config, sizes, 16, {"widths": (8, 8, 8), "depth": 1, "groups": 4})
    recipes.check_variant(variant)
    return config
