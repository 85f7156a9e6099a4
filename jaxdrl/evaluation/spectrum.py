r"""The radial power spectrum of images, and how far a generator's lies from the data's.

For an image of side n (square) with mean over channels of the power of its discrete Fourier transform,

    P(r) = mean of |F(u, v)|^2 / (h w) over frequencies with round(|(u, v)|) = r,  r = 1 .. n / 2                 (1)
    gap  = mean_r | log10 mean_images P_fake(r) - log10 mean_images P_real(r) |                                (2)

in decades. SpectralDiT (arXiv 2606.18765) reports a "radial-spectrum gap" without its released code computing one; (2) is the usual
form of it, so compare numbers of this file with each other. P(0), the brightness, is left out; r counts cycles an image.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def radial_power(images: Float[Array, "batch h w c"]) -> Float[Array, "batch radii"]:
    """The spectrum (1) of each image.

    Args:
        images: In [-1, 1].

    Returns:
        P(r) for r = 1 .. min(h, w) // 2.
    """
    height, width = images.shape[1:3]
    power = (jnp.abs(jnp.fft.fft2(images, axes=(1, 2))) ** 2).mean(axis=-1) / (height * width)
    weights = _rings(height, width)
    return jnp.einsum("bhw,rhw->br", power, weights)


def _rings(height: int, width: int) -> Float[np.ndarray, "radii h w"]:
    rows, columns = np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width
    # An oblong image has other cycles a pixel along its sides: both are counted by the shorter side.
    short = min(height, width)
    radius = np.hypot(rows[:, None] * short / height, columns[None] * short / width)
    rings = np.stack([np.round(radius) == r for r in range(1, short // 2 + 1)]).astype(np.float32)
    return rings / rings.sum(axis=(1, 2), keepdims=True)


def gap(real: Float[np.ndarray, " radii"], fake: Float[np.ndarray, " others"]) -> float:
    """The gap (2) between mean spectra.

    Args:
        real: Mean of `radial_power` over data.
        fake: Over samples.

    Returns:
        Decades; 0 for equal spectra.

    Raises:
        ValueError: If the images had other sizes.
    """
    if real.shape != fake.shape:
        raise ValueError(f"spectra of images of different sizes: {len(real)} and {len(fake)} radii")
    floor = 1e-12
    return float(np.abs(np.log10(np.maximum(fake, floor)) - np.log10(np.maximum(real, floor))).mean())
