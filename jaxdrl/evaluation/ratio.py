r"""FDr-6: Frechet distances in six spaces, each divided by the distance of the validation images, averaged.

Source: "FD-Loss", arXiv 2604.28190, and its code. With FD_X(val) the distance of ImageNet's 50 000 validation images to the train
images in space X,

    FDr_X = FD_X / FD_X(val),    FDr-6 = mean of the six                                             (1)

The spaces are timm's models with timm's preprocessing; three of its peculiarities change the number and are kept: OpenAI's CLIP with the
exact GELU, 256-pixel inputs padded to a multiple of DINOv2's patch, and Inception on 2 x - 1 rather than (byte - 128) / 128. The
published FD_X(val) have two decimals, so MAE's ratio is known to 12 % and SigLIP2's to 1 %.
"""

from collections.abc import Mapping

from jaxdrl.errors import UserError

VALIDATION = {
    "fdr-inception": 1.68,
    "fdr-convnext": 56.87,
    "fdr-dinov2": 14.19,
    "fdr-mae": 0.04,
    "fdr-siglip2": 0.60,
    "fdr-clip": 5.60,
}


def ratios(distances: Mapping[str, float]) -> dict[str, float]:
    """The ratios (1) and their mean.

    Args:
        distances: FD against the whole train set in every space of `VALIDATION`.

    Returns:
        Space -> FDr, and "fdr6".

    Raises:
        UserError: If a space is missing.
    """
    missing = sorted(set(VALIDATION) - set(distances))
    if missing:
        raise UserError(f"fdr6 needs all six distances; {', '.join(missing)} not measured")
    found = {space: distances[space] / VALIDATION[space] for space in VALIDATION}
    return found | {"fdr6": sum(found.values()) / len(found)}
