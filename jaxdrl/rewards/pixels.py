"""Images as bytes, for what looks at files or pictures: JPEG, text recognisers, detectors, servers."""

import numpy as np
from jaxtyping import Float, UInt8


def to_bytes(
    images: Float[np.ndarray, "batch h w c"], *, what: str = "this reward", colours: bool = False
) -> UInt8[np.ndarray, "batch h w k"]:
    """Rounds images to bytes.

    Args:
        images: In [-1, 1], of one or three channels; what lies outside is clipped.
        what: Is to look at them, in errors.
        colours: Whether grey images get three channels.

    Returns:
        round((x + 1) * 127.5); x = v / 127.5 - 1 turns it back, and is rounded to the same bytes again.

    Raises:
        ValueError: If the images have other channels, or values that are not finite.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"{what} takes images [batch, h, w, 1 or 3], got {images.shape}")
    if not np.isfinite(images).all():
        broken = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        raise ValueError(f"images {broken[:5].tolist()} have values that are not finite: has the model diverged?")
    found = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.repeat(found, 3, axis=-1) if colours and found.shape[-1] == 1 else found
