"""From images in [-1, 1] to what a published encoder was trained on: resized, in [0, 1], normalised; differentiable.

Resizing is two products with fixed matrices, one an axis, so every kernel is exact and has an exact gradient:

- antialiased (`antialias=True`): torch's `interpolate(..., antialias=True)`, the kernel widened when the image shrinks, a = -0.5;
- not antialiased: torch's plain `interpolate`: a = -0.75 for bicubic, which no setting of `jax.image.resize` gives;
- "tf1-bilinear": TensorFlow 1's bilinear resize, whose pixels have their corners, not their centres, in common (FID).

PIL's bicubic and bilinear resize of float images are the antialiased ones.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

KERNELS = ("bicubic", "bilinear", "tf1-bilinear")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What happens to an image before the network sees it.

    Attributes:
        size: (height, width) that the network takes.
        kernel: One of `KERNELS`, used where the image has another size.
        antialias: See above.
        mean: Subtracted, of images in [0, 1].
        std: Divided by.
        inner: (height, width) that images are resized to where that is smaller than `size`; zeros fill the rest, below and right, behind
            the normalisation (timm's `dynamic_img_pad`). None: `size`.
        clip: Cut what a bicubic kernel throws beyond [0, 1] (clean-fid).
    """

    size: tuple[int, int]
    kernel: str = "bicubic"
    antialias: bool = True
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    inner: tuple[int, int] | None = None
    clip: bool = False

    def __call__(self, images: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
        """Resizes and normalises.

        Args:
            images: In [-1, 1].

        Returns:
            float32 images of `size`.
        """
        inner = self.inner or self.size
        images = resize(0.5 * (images + 1), inner, self.kernel, self.antialias)
        images = jnp.clip(images, 0, 1) if self.clip else images
        images = (images - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return jnp.pad(images, ((0, 0), (0, self.size[0] - inner[0]), (0, self.size[1] - inner[1]), (0, 0)))


def resize(
    images: Float[Array, "batch h w c"], size: tuple[int, int], kernel: str, antialias: bool
) -> Float[Array, "batch h2 w2 c"]:
    """Resizes as torch does (align_corners=False).

    Args:
        images: Any range.
        size: (height, width).
        kernel: One of `KERNELS`.
        antialias: See the module.

    Returns:
        float32 images; the same where the size is right already.
    """
    if tuple(images.shape[1:3]) == tuple(size):
        return images
    rows, columns = (resize_matrix(images.shape[1 + axis], size[axis], kernel, antialias) for axis in (0, 1))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns)


@lru_cache(maxsize=64)
def resize_matrix(
    source: int, target: int, kernel: str = "bicubic", antialias: bool = False, scale: float | None = None
) -> Float[np.ndarray, "target source"]:
    """The matrix that resizes one axis: half-pixel centres; repeated edges, or weights renormalised at them where antialiased.

    Args:
        source: Pixels before.
        target: Pixels after.
        kernel: One of `KERNELS`.
        antialias: Whether the kernel widens when the axis shrinks.
        scale: Source pixels a target pixel; None: source / target.

    Returns:
        float32 rows that sum to 1.

    Raises:
        ValueError: If the kernel is unknown.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    step = source / target if scale is None else scale
    if kernel == "tf1-bilinear":
        return _tf1(source, target, step)
    width, reach = (max(step, 1.0) if antialias else 1.0), (2 if kernel == "bicubic" else 1)
    a = -0.5 if antialias else -0.75
    matrix = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * step - 0.5
        places = np.arange(int(np.floor(centre - reach * width)), int(np.ceil(centre + reach * width)) + 1)
        weights = _kernel(np.abs(places - centre) / width, kernel, a)
        if antialias:
            inside = (places >= 0) & (places < source)
            places, weights = places[inside], weights[inside]
        np.add.at(matrix[row], np.clip(places, 0, source - 1), weights)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


def _tf1(source: int, target: int, step: float) -> np.ndarray:
    place = np.arange(target, dtype=np.float32) * np.float32(step)
    low = np.minimum(np.floor(place).astype(int), source - 1)
    weight, matrix = place - low, np.zeros((target, source), np.float32)
    np.add.at(matrix, (np.arange(target), low), 1 - weight)
    np.add.at(matrix, (np.arange(target), np.minimum(low + 1, source - 1)), weight)
    return matrix


def _kernel(d: np.ndarray, kernel: str, a: float) -> np.ndarray:
    if kernel == "bilinear":
        return np.maximum(1 - d, 0)
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
