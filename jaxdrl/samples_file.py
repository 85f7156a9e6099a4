"""Samples of a workdir's models in files: ADM's `.npz`, or a picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdrl.evaluation import sampling
from jaxdrl.training import generation, loading
from jaxdrl.training.workdir import disk_errors
from jaxdrl.weights.files import write_atomically


def write(
    config: Any,
    workdir: Path,
    out: Path,
    *,
    model: str,
    num: int,
    seed: int,
    num_steps: int,
    guidance: tuple[float, tuple[float, float]],
) -> None:
    """Samples a model and writes the images.

    Args:
        config: Of the run.
        workdir: Of the run.
        out: `.npz` (`arr_0` uint8 NHWC and `labels`) or `.png` (a grid, a row a class).
        model: "base", "tuned" or "longer".
        num: How many.
        seed: Of the noise; the same for every model.
        num_steps: Of the Heun sampler.
        guidance: (scale, interval); scale 1 is guidance-free.

    Raises:
        UserError: If the model is not there, or the disk is full.
    """
    images, labels = generation.generate(
        config,
        loading.load_model(config, workdir, model),
        generation.as_bytes(config),
        num=num,
        seed=seed,
        num_steps=num_steps,
        guidance=None if guidance[0] == 1.0 else sampling.Guidance(*guidance),
    )
    with disk_errors(out):
        if out.suffix == ".npz":
            buffer = io.BytesIO()
            np.savez(buffer, arr_0=images, labels=labels)
            write_atomically(out, buffer.getvalue())
        else:
            rows = [images[labels == label] for label in range(config.data.num_classes)]
            write_atomically(out, png(grid(rows), 4 if images.shape[1] < 64 else 1))


def grid(rows: list[UInt8[np.ndarray, "n h w c"]], gap: int = 1) -> UInt8[np.ndarray, "height width c"]:
    """Lays images out in rows, white between them.

    Args:
        rows: Images of each row; a shorter row is filled with white.
        gap: Pixels between images.

    Returns:
        One picture.
    """
    columns = max(len(row) for row in rows)
    height, width, channels = rows[0].shape[1:]
    picture = np.full((len(rows) * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            picture[top : top + height, left : left + width] = image
    return picture


def png(picture: UInt8[np.ndarray, "h w c"], scale: int = 1) -> bytes:
    """Encodes a picture.

    Args:
        picture: Grey (1 channel) or RGB.
        scale: Every pixel becomes a square of this side.

    Returns:
        A PNG file.
    """
    from PIL import Image

    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, format="png")
    return buffer.getvalue()
