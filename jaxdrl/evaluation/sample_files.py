"""Samples in files, read in parts: ADM's `.npz`, and folders of pictures. A file of 10 GB needs no more memory than a batch.

The member `arr_0` of an `.npz` is an array file inside a zip file: its header gives shape and dtype, and its bytes, compressed or not, are
read from front to back. Source of the format: openai/guided-diffusion evaluations (uint8, [n, h, w, 3]).
"""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from numpy.lib import format as array_format

from jaxdrl.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


def read(
    path: Path, batch_size: int = 256, start: int = 0, stop: int | None = None
) -> Iterator[UInt8[np.ndarray, "batch h w c"]]:
    """Reads images batch by batch.

    Args:
        path: An `.npz` with `arr_0`, or a folder of PNG or JPEG files of one size, which are read in the order of their names.
        batch_size: Images a part; the last may be shorter.
        start: First image.
        stop: Image behind the last; None: all.

    Yields:
        uint8 images.

    Raises:
        UserError: If the path is missing, cut short, holds something else, or images differ in size.
    """
    if path.is_dir():
        yield from _folder(path, batch_size, start, stop)
    elif path.suffix == ".npz" and path.is_file():
        yield from _npz(path, batch_size, start, stop)
    else:
        raise UserError(f"{path} is neither an .npz file nor a folder of pictures")


def count(path: Path) -> int:
    """How many images there are, without reading them.

    Args:
        path: As for `read`.

    Returns:
        The number.

    Raises:
        UserError: As for `read`.
    """
    if path.is_dir():
        return len(_pictures(path))
    if path.suffix != ".npz" or not path.is_file():
        raise UserError(f"{path} is neither an .npz file nor a folder of pictures")
    with _member(path) as member:
        return _header(path, member)[0]


def has_images(path: Path) -> bool:
    """Whether there are images, rather than statistics alone.

    Args:
        path: A file or folder.

    Returns:
        True for folders, and for `.npz` files with `arr_0`.

    Raises:
        UserError: If an `.npz` is damaged.
    """
    if path.is_dir():
        return True
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "arr_0.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz ({error}); is it whole?") from error


def labels(path: Path) -> Int32[np.ndarray, " n"] | None:
    """Labels that came with the images: `labels`, or ADM's `arr_1`.

    Args:
        path: As for `read`.

    Returns:
        The labels, or None where the file has none.

    Raises:
        UserError: If there are not as many as images.
    """
    if path.is_dir():
        return None
    with np.load(path, allow_pickle=False) as file:
        name = next((name for name in ("labels", "arr_1") if name in file.files), None)
        found = None if name is None else np.asarray(file[name]).reshape(-1).astype(np.int32)
    if found is not None and len(found) != count(path):
        raise UserError(f"{path}: {len(found)} labels for {count(path)} images")
    return found


def _pictures(path: Path) -> list[Path]:
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{path} holds no {', '.join(SUFFIXES)} files")
    return found


def _folder(path: Path, batch_size: int, first: int, stop: int | None) -> Iterator[np.ndarray]:
    from PIL import Image

    files, shape = _pictures(path)[first:stop], None
    for start in range(0, len(files), batch_size):
        images = []
        for file in files[start : start + batch_size]:
            try:
                with Image.open(file) as picture:
                    images.append(np.asarray(picture.convert("RGB")))
            except OSError as error:
                raise UserError(f"{file} cannot be read ({error})") from error
            shape = shape or images[-1].shape
            if images[-1].shape != shape:
                raise UserError(f"{file} is {images[-1].shape[:2]}, the pictures before it are {shape[:2]}")
        yield np.stack(images)


def _member(path: Path):
    try:
        archive = zipfile.ZipFile(path)
        return archive.open("arr_0.npy")
    except KeyError:
        raise UserError(f"{path} has no array arr_0") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as .npz ({error}); is it whole?") from error


def _header(path: Path, member) -> tuple[int, ...]:
    version = array_format.read_magic(member)
    read_header = array_format.read_array_header_1_0 if version == (1, 0) else array_format.read_array_header_2_0
    shape, fortran, dtype = read_header(member)
    if dtype != np.uint8 or len(shape) != 4 or fortran or shape[-1] not in (1, 3):
        raise UserError(f"{path}: arr_0 is {dtype} {shape}; it must be uint8 [n, height, width, 1 or 3]")
    return shape


def _npz(path: Path, batch_size: int, first: int, stop: int | None) -> Iterator[np.ndarray]:
    start = first
    try:
        with _member(path) as member:
            num, *image = _header(path, member)
            size, last = int(np.prod(image)), num if stop is None else min(stop, num)
            member.seek(first * size, 1)
            for start in range(first, last, batch_size):
                wanted = min(batch_size, last - start)
                content = member.read(wanted * size)
                if len(content) != wanted * size:
                    raise UserError(f"{path} ends behind image {start + len(content) // size} of {num}")
                yield np.frombuffer(content, np.uint8).reshape(wanted, *image)
    except (EOFError, OSError, zipfile.BadZipFile, zlib.error, ValueError) as error:
        raise UserError(f"{path} is damaged behind image {start} ({error})") from error
