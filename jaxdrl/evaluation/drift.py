"""Five statistics of colour and light, by which over-optimised images drift.

Source: "Discriminator-Guided RL", arXiv 2606.19162 (evaluation protocol); Hasler and Suesstrunk (2003) for colourfulness. On RGB in [0, 1]:

    brightness      mean of L,  L = .299 R + .587 G + .114 B
    saturation      mean of (max - min) / max over the channels, 0 where max = 0
    contrast        standard deviation of L
    colourfulness   s + .3 m,  s^2 = var(R - G) + var(YB),  m^2 = mean(R - G)^2 + mean(YB)^2,  YB = (R + G) / 2 - B
    whiteness       mean of min(R, G, B)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

NAMES = ("brightness", "saturation", "contrast", "colourfulness", "whiteness")


def statistics(images: Float[Array, "batch h w 3"]) -> dict[str, Float[Array, " batch"]]:
    """The five statistics of each image.

    Args:
        images: In [-1, 1]; what lies outside is clipped.

    Returns:
        Name -> one number an image.
    """
    rgb = jnp.clip(0.5 * (images + 1), 0, 1)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    largest, smallest = rgb.max(axis=-1), rgb.min(axis=-1)
    opposed, other = red - green, 0.5 * (red + green) - blue
    places = (1, 2)
    spread = jnp.sqrt(opposed.var(axis=places) + other.var(axis=places))
    centre = jnp.sqrt(opposed.mean(axis=places) ** 2 + other.mean(axis=places) ** 2)
    saturation = jnp.where(largest > 0, (largest - smallest) / jnp.where(largest > 0, largest, 1.0), 0.0)
    return {
        "brightness": luminance.mean(axis=places),
        "saturation": saturation.mean(axis=places),
        "contrast": luminance.std(axis=places),
        "colourfulness": spread + 0.3 * centre,
        "whiteness": smallest.mean(axis=places),
    }
