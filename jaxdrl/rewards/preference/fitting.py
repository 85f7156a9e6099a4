r"""How published reward models bring an image of any size to the size that their network takes; as floats, or as bytes like PIL.

With an image of h x w pixels and a network for s x s,

    "crop"           (h', w') = (s, floor(s w / h)) where h <= w, else (floor(s h / w), s); the middle s x s, from floor((h' - s) / 2)  (1)
    "crop-rounded"   the same, from round((h' - s) / 2), halves to even                                              (2)
    "pad"            (h', w') = round(s (h, w) / max(h, w)); black around it, floor((s - h') / 2) above                (3)
    "squash"         (h', w') = (s, s)                                                                               (4)

(1) is transformers' CLIPImageProcessor, (2) torchvision's Resize and CenterCrop (openai/CLIP), (3) ResizeMaxSize of tgxs002/HPSv2 (where the
padding is done before the normalisation: it is black, not grey), (4) SiglipImageProcessor. For square images (1) to (4) are one.

PIL resizes bytes p with integers, first along rows, then along columns, and rounds to bytes after each (Pillow's Resample.c): with weights w of
the antialiased kernel (bicubic: a = -0.5) that sum to 1,

    k = round(2^22 w), halves away from zero,     p' = clip((sum k p + 2^21) >> 22, 0, 255)                          (5)

`resize_bytes` is (5), equal to PIL to the bit, and runs inside compiled functions. Pillow 13 takes columns first where the height shrinks by
the larger factor, which changes single bytes; scores were published with earlier ones.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdrl.encoders.preprocess import Preprocess, resize_matrix

Mode = Literal["crop", "crop-rounded", "pad", "squash"]
Images = Float[Array, "batch h w c"]
Fitted = Float[Array, "batch size size2 c"]
_BITS = 22


def fit(images: Images, how: Preprocess, mode: Mode) -> Fitted:
    """Resizes and cuts or pads, differentiable.

    Args:
        images: In [-1, 1]; not clipped.
        how: The network's preprocessing: its size, kernel and antialias are used.
        mode: See the module.

    Returns:
        float32 images of the size, in [-1, 1] but for what a bicubic kernel throws beyond.
    """
    if tuple(images.shape[1:3]) == how.size:
        return images
    matrices = []
    for source, target, first, side in _places(images, how, mode):
        matrix = resize_matrix(source, target, how.kernel, how.antialias)
        rows = np.arange(side) + first
        inside = (rows >= 0) & (rows < target)
        matrices.append(np.where(inside[:, None], matrix[np.clip(rows, 0, target - 1)], 0).astype(np.float32))
    fitted = jnp.einsum("ih,bhwc,jw->bijc", matrices[0], 0.5 * (images + 1), matrices[1], precision=jax.lax.Precision.HIGHEST)
    return 2 * fitted - 1


def published(images: Images, how: Preprocess, mode: Mode, pil: bool) -> Fitted:
    """The same through bytes.

    Args:
        images: In [-1, 1]; what lies outside is clipped.
        how: See `fit`.
        mode: See the module.
        pil: Whether bytes are resized, as PIL does it (5); otherwise they are made floats in [0, 1] first (torchvision on tensors).

    Returns:
        float32 images of the size, in [-1, 1].
    """
    pixels = jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.int32)
    if not pil:
        return fit(pixels.astype(jnp.float32) / 127.5 - 1, how, mode)
    (height, top, rows), (width, left, columns) = (place[1:] for place in _places(images, how, mode))
    if top < 0 or left < 0:
        raise ValueError("PIL's way is there for images that are cut, not for padded ones")
    pixels = resize_bytes(pixels, (height, width), how.kernel)
    return pixels[:, top : top + rows, left : left + columns].astype(jnp.float32) / 127.5 - 1


def resize_bytes(
    pixels: Int[Array, "batch h w c"], size: tuple[int, int], kernel: str = "bicubic"
) -> Int[Array, "batch h2 w2 c"]:
    """Resizes bytes as PIL's `Image.resize` does (5).

    Args:
        pixels: 0 .. 255, as int32.
        size: (height, width).
        kernel: "bicubic" or "bilinear".

    Returns:
        0 .. 255, as int32.

    Raises:
        ValueError: If the kernel is another one.
    """
    for axis, target in ((2, size[1]), (1, size[0])):
        if pixels.shape[axis] != target:
            pixels = _resize_axis(pixels, axis, *_taps(pixels.shape[axis], target, kernel))
    return pixels


def _places(images: Images, how: Preprocess, mode: Mode) -> list[tuple[int, int, int, int]]:
    """An axis: pixels before, pixels after resizing, the first of them that is kept (negative: rows of padding), pixels kept."""
    (height, width), (rows, columns) = images.shape[1:3], how.size
    if mode == "squash":
        return [(height, rows, 0, rows), (width, columns, 0, columns)]
    if rows != columns:
        raise ValueError(f"fitting by {mode!r} is for square networks, got {how.size}")
    short, long = sorted((height, width))
    if mode == "pad":
        resized = tuple(round(side * (rows / float(long))) for side in (height, width))
    else:
        resized = tuple(rows if side == short else int(rows * long / short) for side in (height, width))
    # // 2 rounds down: the smaller half of a padding is above and on the left.
    before: dict[str, Callable[[int], int]] = {
        "crop": lambda extra: extra // 2,
        "crop-rounded": lambda extra: round(extra / 2),
        "pad": lambda extra: -(-extra // 2),
    }
    return [(side, target, before[mode](target - rows), rows) for side, target in zip((height, width), resized, strict=True)]


def _resize_axis(pixels: Array, axis: int, places: np.ndarray, weights: np.ndarray) -> Array:
    """(5) along one axis, tap by tap."""
    shape = [1] * pixels.ndim
    shape[axis] = -1

    def add(total, tap):
        place, weight = tap
        return total + jnp.take(pixels, place, axis=axis) * weight.reshape(shape), None

    size = list(pixels.shape)
    size[axis] = len(places)
    total, _ = jax.lax.scan(add, jnp.full(size, 1 << (_BITS - 1), jnp.int32), (jnp.asarray(places.T), jnp.asarray(weights.T)))
    return jnp.clip(total >> _BITS, 0, 255)


@lru_cache(maxsize=64)
def _taps(source: int, target: int, kernel: str) -> tuple[Int[np.ndarray, "target taps"], Int[np.ndarray, "target taps"]]:
    """Source pixels of each target pixel, and k of (5); 0 where a pixel has fewer."""
    if kernel not in ("bicubic", "bilinear"):
        raise ValueError(f"kernel must be bicubic or bilinear, got {kernel!r}")
    scale = source / target
    width = max(scale, 1.0)
    support = (2.0 if kernel == "bicubic" else 1.0) * width
    count = int(np.ceil(support)) * 2 + 1
    places, weights = np.zeros((target, count), np.int32), np.zeros((target, count), np.int32)
    for row in range(target):
        centre = (row + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), source)
        found = _kernel(np.abs((np.arange(low, high) - centre + 0.5) * (1.0 / width)), kernel)
        found = found / found.sum() * (1 << _BITS)
        places[row, : high - low] = np.arange(low, high)
        weights[row, : high - low] = np.trunc(found + np.where(found < 0, -0.5, 0.5))
    return places, weights


def _kernel(d: np.ndarray, kernel: str) -> np.ndarray:
    if kernel == "bilinear":
        return np.maximum(1.0 - d, 0.0)
    a = -0.5
    near, far = ((a + 2.0) * d - (a + 3.0)) * d * d + 1, (((d - 5) * d + 8) * d - 4) * a
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))
