r"""Statistics of light, colour and strokes, each one number an image: rewards that need no weights, and how an image set drifts.

Sources: Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003); ITU-R BT.601 for L; the others are written out here.
Images are mapped to [0, 1] and what lies outside is clipped: no reward is earned out there, and its gradient is 0. R, G, B are channels,
max and min those over the channels, h x w the size in pixels, and a mean without an index is over pixels.

| name | formula | range, unit |
|---|---|---|
| brightness | mean L,  L = .299 R + .587 G + .114 B (the channel itself of grey images) | [0, 1] |
| contrast | standard deviation of L | [0, 1/2] |
| saturation | mean (max - min) / max, 0 where max = 0 | [0, 1] |
| colourfulness | s + .3 m,  s^2 = var(R - G) + var(Y - B),  m^2 = mean(R - G)^2 + mean(Y - B)^2,  Y = (R + G) / 2 | [0, 1.17] |
| whiteness | mean min | [0, 1] |
| sharpness | mean over inner pixels of (4 L - its four neighbours)^2 | [0, 16] |
| high_frequency | share of sum |F L(u, v)|^2, (u, v) != 0, with |(u, v)| > 1/4 cycle a pixel; 0 for a constant image | [0, 1] |
| stroke_weight | mean i,  i the ink: L of bright strokes on a dark ground, 1 - L of dark ones on a bright ground | [0, 1] |
| inked_pixels | share of pixels with i > 1/2: a count, whose gradient is 0 everywhere | [0, 1] |
| stroke_width | 2 sum i / sum (|d_x i| + |d_y i|), with no ink around the image; a bar of a x b gives ab / (a + b) | [0, hw / (h + w)] pixels |
| symmetry | sum i i' / sum i^2,  i' mirrored left to right: the cosine between the two; 0 without ink | [0, 1] |
| centredness | 1 - |c|^2 / 2,  c the centre of mass of the ink, sides of the image at -1 and 1; 0 without ink | [0, 1] |

All are traced, and all but the count have a useful gradient almost everywhere; where a root or a quotient is not (constant images, no ink), the gradient is 0.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array, "batch h w c"]
Scores = Float[Array, " batch"]
_PLACES = (1, 2)


def unit(images: Images) -> Images:
    """Maps [-1, 1] to [0, 1].

    Args:
        images: Of the models' range; what lies outside is clipped.

    Returns:
        Values in [0, 1].
    """
    return jnp.clip(0.5 * (images + 1), 0, 1)


def luminance(images: Images) -> Float[Array, "batch h w"]:
    """L of the table.

    Args:
        images: In [-1, 1], of one or three channels.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If there are other channels.
    """
    values = unit(images)
    if images.shape[-1] == 1:
        return values[..., 0]
    if images.shape[-1] != 3:
        raise ValueError(f"luminance is that of one or three channels, got images of shape {tuple(images.shape)}")
    return 0.299 * values[..., 0] + 0.587 * values[..., 1] + 0.114 * values[..., 2]


def ink(images: Images, dark: bool = False) -> Float[Array, "batch h w"]:
    """How much stroke there is in each pixel: i of the table.

    Args:
        images: In [-1, 1].
        dark: Whether strokes are dark on a bright ground.

    Returns:
        In [0, 1].
    """
    return 1 - luminance(images) if dark else luminance(images)


def brightness(images: Images) -> Scores:
    """Mean luminance.

    Args:
        images: In [-1, 1], of one or three channels.

    Returns:
        In [0, 1].
    """
    return luminance(images).mean(axis=_PLACES)


def contrast(images: Images) -> Scores:
    """Standard deviation of the luminance.

    Args:
        images: In [-1, 1], of one or three channels.

    Returns:
        In [0, 1/2].
    """
    return _root(luminance(images).var(axis=_PLACES))


def saturation(images: Images) -> Scores:
    """Mean saturation of HSV.

    Args:
        images: In [-1, 1]; grey ones have none.

    Returns:
        In [0, 1].
    """
    values = unit(images)
    largest, smallest = values.max(axis=-1), values.min(axis=-1)
    return _quotient(largest - smallest, largest).mean(axis=_PLACES)


def colourfulness(images: Images) -> Scores:
    """Hasler's and Suesstrunk's colourfulness, of values in [0, 1] (theirs are in [0, 255]).

    Args:
        images: In [-1, 1], of three channels, or of one, which has none.

    Returns:
        In [0, 1.17]: 1.12 for an image of which half is red and half is cyan.
    """
    values = unit(jnp.broadcast_to(images, (*images.shape[:3], 3)))
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    opposed, other = red - green, 0.5 * (red + green) - blue
    spread = _root(opposed.var(axis=_PLACES) + other.var(axis=_PLACES))
    return spread + 0.3 * _root(opposed.mean(axis=_PLACES) ** 2 + other.mean(axis=_PLACES) ** 2)


def whiteness(images: Images) -> Scores:
    """Mean of the smallest channel.

    Args:
        images: In [-1, 1].

    Returns:
        In [0, 1].
    """
    return unit(images).min(axis=-1).mean(axis=_PLACES)


def sharpness(images: Images) -> Scores:
    """Mean squared five-point Laplacian of the luminance.

    Args:
        images: In [-1, 1], of one or three channels, at least 3 x 3.

    Returns:
        In [0, 16]; 16 for a chessboard of black and white pixels.
    """
    light = luminance(images)
    sides = light[:, :-2, 1:-1] + light[:, 2:, 1:-1] + light[:, 1:-1, :-2] + light[:, 1:-1, 2:]
    return ((4 * light[:, 1:-1, 1:-1] - sides) ** 2).mean(axis=_PLACES)


def high_frequency(images: Images) -> Scores:
    """Share of the luminance's power, its mean left out, beyond a quarter of a cycle a pixel.

    Args:
        images: In [-1, 1], of one or three channels.

    Returns:
        In [0, 1]; 0 for an image that is constant (standard deviation below 1e-5).
    """
    light = luminance(images)
    transformed = jnp.fft.fft2(light - light.mean(axis=_PLACES, keepdims=True))
    power = transformed.real**2 + transformed.imag**2
    rows, columns = (np.fft.fftfreq(size) for size in light.shape[1:])
    high = (np.hypot(rows[:, None], columns[None]) > 0.25 + 1e-9).astype(np.float32)
    whole = power.sum(axis=_PLACES)
    # What rounding leaves of a constant image is no power.
    floor = 1e-10 * float(light.shape[1] * light.shape[2]) ** 2
    return _quotient((power * high).sum(axis=_PLACES), whole, floor)


def stroke_weight(images: Images, *, dark: bool = False) -> Scores:
    """Mean ink.

    Args:
        images: In [-1, 1], of one or three channels.
        dark: See `ink`.

    Returns:
        In [0, 1].
    """
    return ink(images, dark).mean(axis=_PLACES)


def inked_pixels(images: Images, *, dark: bool = False) -> Scores:
    """Share of pixels with more than half of the ink: a reward for policy gradients, since its own gradient is 0.

    Args:
        images: In [-1, 1], of one or three channels.
        dark: See `ink`.

    Returns:
        In [0, 1].
    """
    return (ink(images, dark) > 0.5).astype(jnp.float32).mean(axis=_PLACES)


def stroke_width(images: Images, *, dark: bool = False) -> Scores:
    """Twice the ink by the length of its outline, which is about the width of long strokes along rows or columns.

    Args:
        images: In [-1, 1], of one or three channels.
        dark: See `ink`.

    Returns:
        Pixels; 0 without ink.
    """
    padded = jnp.pad(ink(images, dark), ((0, 0), (1, 1), (1, 1)))
    outline = sum(jnp.abs(jnp.diff(padded, axis=axis)).sum(axis=_PLACES) for axis in _PLACES)
    return _quotient(2 * padded.sum(axis=_PLACES), jnp.asarray(outline))


def symmetry(images: Images, *, dark: bool = False) -> Scores:
    """Cosine between the ink and its mirror image, left to right.

    Args:
        images: In [-1, 1], of one or three channels.
        dark: See `ink`.

    Returns:
        In [0, 1]; 0 without ink.
    """
    strokes = ink(images, dark)
    return _quotient((strokes * strokes[:, :, ::-1]).sum(axis=_PLACES), (strokes**2).sum(axis=_PLACES))


def centredness(images: Images, *, dark: bool = False) -> Scores:
    """How near the ink's centre of mass is to the centre of the image.

    Args:
        images: In [-1, 1], of one or three channels.
        dark: See `ink`.

    Returns:
        In [0, 1]: 1 in the centre, towards 0 in a corner, 0 without ink.
    """
    strokes = ink(images, dark)
    rows, columns = ((2 * np.arange(size, dtype=np.float32) + 1) / size - 1 for size in strokes.shape[1:])
    whole = strokes.sum(axis=_PLACES)
    down = _quotient((strokes * rows[:, None]).sum(axis=_PLACES), whole)
    across = _quotient((strokes * columns[None]).sum(axis=_PLACES), whole)
    return jnp.where(whole > 0, 1 - 0.5 * (down**2 + across**2), 0.0)


STATISTICS: dict[str, Callable[..., Scores]] = {
    statistic.__name__: statistic
    for statistic in (
        *(brightness, contrast, saturation, colourfulness, whiteness, sharpness, high_frequency),
        *(stroke_weight, inked_pixels, stroke_width, symmetry, centredness),
    )
}


def _root(values: Scores) -> Scores:
    """The square root, whose gradient at 0 is 0."""
    return jnp.where(values > 0, jnp.sqrt(jnp.where(values > 0, values, 1.0)), 0.0)


def _quotient(values: Float[Array, "..."], by: Float[Array, "..."], floor: float = 0.0) -> Float[Array, "..."]:
    """The quotient, 0 with gradient 0 where the divisor is not above the floor."""
    return jnp.where(by > floor, values / jnp.where(by > floor, by, 1.0), 0.0)
