"""Five statistics of colour and light, by which over-optimised images drift: those of `rewards.image_statistics`, formulas there.

Source: "Discriminator-Guided RL", arXiv 2606.19162 (evaluation protocol).
"""

from jaxtyping import Array, Float

from jaxdrl.rewards.image_statistics import STATISTICS

NAMES = ("brightness", "saturation", "contrast", "colourfulness", "whiteness")


def statistics(images: Float[Array, "batch h w 3"]) -> dict[str, Float[Array, " batch"]]:
    """The five statistics of each image.

    Args:
        images: In [-1, 1]; what lies outside is clipped.

    Returns:
        Name -> one number an image.
    """
    return {name: STATISTICS[name](images) for name in NAMES}
