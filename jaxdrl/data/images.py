"""Between stored bytes and the model's range, and the crop of large pictures."""

import numpy as np
from jaxtyping import Float, UInt8


def to_float(images: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Bytes to the model's range.

    Args:
        images: 0 .. 255.

    Returns:
        float32 x / 127.5 - 1, in [-1, 1].
    """
    result = np.asarray(images).astype(np.float32)
    result /= np.float32(127.5)
    result -= np.float32(1)
    return result


def to_uint8(images: Float[np.ndarray, "..."], rule: str = "round") -> UInt8[np.ndarray, "..."]:
    """The model's range to bytes; both rules bring every byte back from `to_float`.

    Args:
        images: Any float array, nominally in [-1, 1]; values outside are clipped.
        rule: "round" to the nearest (JiT), or "truncate" 127.5 x + 128 (ADM, DiT, SiT).

    Returns:
        0 .. 255.

    Raises:
        ValueError: If the rule is unknown.
    """
    if rule not in ("round", "truncate"):
        raise ValueError(f"rule must be round or truncate, got {rule!r}")
    images = np.asarray(images, np.float32)
    if rule == "truncate":
        return np.clip(127.5 * images + 128, 0, 255).astype(np.uint8)
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def centre_crop(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """ADM's crop: halve by a box filter while the short side is at least twice too long, bicubic to size, cut the middle.

    Args:
        image: A picture of 1 or 3 channels.
        size: Side of the result in pixels.

    Returns:
        The crop. Source: `center_crop_arr` in guided-diffusion's image_datasets.py (arXiv 2105.05233).
    """
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = (round(picture.width * scale), round(picture.height * scale))
    array = np.asarray(picture.resize(sides, Image.Resampling.BICUBIC)).reshape(sides[1], sides[0], image.shape[-1])
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]
