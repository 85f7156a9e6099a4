"""How large an image is as a JPEG file: a reward on the host that no gradient reaches, cheap and without weights.

Sources: Black et al., "Training Diffusion Models with Reinforcement Learning" (DDPO), arXiv 2305.13301: incompressibility is the size in
kB (1000 bytes) at quality 95, compressibility its negative. Flow-GRPO's released code (flow_grpo/rewards.py) divides the latter by 500
(`kilobytes=500.0`). The file is Pillow's: grey images have one channel, colours are subsampled 4:2:0. Of very small images it is
mostly headers: handwritten digits of 8 x 8 pixels take 394 bytes, give or take 4.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
from jaxtyping import Float

from jaxdrl.rewards.pixels import to_bytes


def sizes(images: Float[np.ndarray, "batch h w c"], *, quality: int = 95, workers: int = 0) -> Float[np.ndarray, " batch"]:
    """Sizes of the files.

    Args:
        images: In [-1, 1], of one or three channels; what lies outside is clipped, and values are rounded to bytes.
        quality: Of the JPEG, 1 .. 95 (Pillow advises against more).
        workers: Threads; Pillow compresses outside the interpreter's lock. 0: one a core, 8 at most.

    Returns:
        kB, float32, in the order of the images.

    Raises:
        ValueError: If the images have other channels, or values that are not finite.
    """
    from PIL import Image

    pixels = to_bytes(images, what="JPEG")

    def size(image: np.ndarray) -> float:
        buffer = BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="JPEG", quality=quality)
        return buffer.tell() / 1000

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        return np.fromiter(pool.map(size, pixels), np.float32, len(pixels))


def incompressibility(
    images: Float[np.ndarray, "batch h w c"], *, quality: int = 95, kilobytes: float = 1.0, workers: int = 0
) -> Float[np.ndarray, " batch"]:
    """The size as a reward.

    Args:
        images: See `sizes`.
        quality: See `sizes`.
        kilobytes: How many kB are worth 1.
        workers: See `sizes`.

    Returns:
        kB / kilobytes.
    """
    return sizes(images, quality=quality, workers=workers) / np.float32(kilobytes)


def compressibility(
    images: Float[np.ndarray, "batch h w c"], *, quality: int = 95, kilobytes: float = 1.0, workers: int = 0
) -> Float[np.ndarray, " batch"]:
    """Minus the size as a reward.

    Args:
        images: See `sizes`.
        quality: See `sizes`.
        kilobytes: How many kB cost 1: 1.0 is DDPO's, 500.0 Flow-GRPO's.
        workers: See `sizes`.

    Returns:
        -kB / kilobytes.
    """
    return -incompressibility(images, quality=quality, kilobytes=kilobytes, workers=workers)
