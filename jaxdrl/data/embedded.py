"""The data sets that jaxdrl makes itself: what they are called, where they lie, and how they come to be there whole.

A set is written into a folder of its own beside its target and renamed onto it when it is complete, so that a killed preparation
leaves nothing that could be taken for a data set, and two processes that prepare the same set do not disturb one another.
"""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdrl.data import classes, digits, patches, synthetic
from jaxdrl.errors import UserError

NAMES = ("digits", "patches", "synthetic")
SPLITS = ("train", "validation", "test")
VERSION = "2.0.0"
_PART = re.compile(r"\.preparing-(?P<host>.+)-(?P<process>\d+)-[^-]+")


@dataclass(frozen=True, kw_only=True)
class EmbeddedSet:
    """A data set with the settings that decide its content.

    Attributes:
        name: As in `config.data.name`.
        variant: Spells the settings out; a folder name.
        description: What the images are.
        licence: Of the sources, with attribution.
        class_names: A name a class.
        image_shape: (h, w, c).
        make: Gives split -> (uint8 images, labels).
    """

    name: str
    variant: str
    description: str
    licence: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    make: Callable[[], dict[str, tuple[np.ndarray, np.ndarray]]]

    def folder(self, directory: Path) -> Path:
        """Where the set lies.

        Args:
            directory: Where data sets live.

        Returns:
            The folder that holds its ArrayRecord files.
        """
        return directory / self.name / self.variant / VERSION


def find(settings: Any) -> EmbeddedSet | None:
    """Looks an embedded set up and checks the settings it depends on.

    Args:
        settings: `config.data`.

    Returns:
        The set, or None if the name is not one of `NAMES`.

    Raises:
        UserError: If a setting does not suit the set.
    """
    if settings.name not in NAMES:
        return None
    shape = tuple(settings.image_shape)
    if len(shape) != 3 or min(shape) < 1 or shape[2] not in (1, 3):
        raise UserError(f"config.data.image_shape is {shape}; give (height, width, 1 or 3)")
    if settings.split_seed < 0:
        raise UserError(f"config.data.split_seed is {settings.split_seed}; give 0 or more")
    found = _digits(settings) if settings.name == "digits" else _drawn(settings, shape)
    if shape != found.image_shape:
        raise UserError(f"config.data.image_shape is {shape}, but the images of {found.name} are {found.image_shape}")
    classes.chosen(settings, found.class_names)
    return found


def write(wanted: EmbeddedSet, directory: Path) -> Path:
    """Writes a set unless it is there.

    Args:
        wanted: The set.
        directory: Where data sets live; made.

    Returns:
        Its folder.

    Raises:
        UserError: If the folder cannot be written.
    """
    target = wanted.folder(directory)
    if target.is_dir():
        return target
    from jaxdrl.data import builders

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        part = Path(tempfile.mkdtemp(prefix=f".preparing-{socket.gethostname()}-{os.getpid()}-", dir=target.parent))
        try:
            written = builders.write(wanted, part)
            _sync(written)
            _move(written, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}); make room or choose config.data.directory") from error
    return target


def _digits(settings: Any) -> EmbeddedSet:
    fraction = settings.validation_fraction
    if not 0 < fraction < 1:
        raise UserError(f"config.data.validation_fraction is {fraction}; give a number between 0 and 1")
    return EmbeddedSet(
        name="digits",
        variant=f"seed{settings.split_seed}-validation{fraction:g}",
        description=digits.DESCRIPTION,
        licence=digits.LICENCE,
        class_names=digits.CLASS_NAMES,
        image_shape=digits.IMAGE_SHAPE,
        make=lambda: digits.splits(settings.split_seed, fraction),
    )


def _drawn(settings: Any, shape: tuple[int, int, int]) -> EmbeddedSet:
    seed, count, made = settings.split_seed, settings.examples_per_class, _synthetic_classes(settings)
    if count < 1:
        raise UserError(f"config.data.examples_per_class is {count}; give 1 or more")
    variant = f"{'x'.join(map(str, shape))}-seed{seed}-{count}"
    if settings.name == "patches":
        if shape[0] > patches.SHORT_SIDE or shape[1] > patches.WIDEST:
            limit = f"{patches.SHORT_SIDE} x {patches.WIDEST}"
            raise UserError(f"config.data.image_shape is {shape}; patches are at most {limit} pixels (height x width)")
        return EmbeddedSet(
            name="patches",
            variant=variant,
            description=patches.DESCRIPTION,
            licence=patches.LICENCE,
            class_names=patches.CLASS_NAMES,
            image_shape=shape,
            make=lambda: patches.splits(seed, count, shape),
        )
    if made < 1:
        raise UserError(f"config.data.num_classes is {made}; give 1 or more")
    return EmbeddedSet(
        name="synthetic",
        variant=f"{variant}-classes{made}",
        description=synthetic.DESCRIPTION,
        licence=synthetic.LICENCE,
        class_names=tuple(str(label) for label in range(made)),
        image_shape=shape,
        make=lambda: synthetic.splits(seed, count, shape, made),
    )


def _synthetic_classes(settings: Any) -> int:
    """How many are made: there are as many as one likes, so chosen ones are cut from the smallest set that has them."""
    numbers = [int(name) for name in classes.names(settings) if name.isdecimal()]
    return max(numbers) + 1 if numbers else settings.num_classes


def _sync(folder: Path) -> None:
    """Brings files to the disk before the rename that makes them count."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(written: Path, target: Path) -> None:
    try:
        written.rename(target)
    except OSError:
        # Another process was faster: a folder that is not empty is never replaced, and its content is the same.
        if not target.is_dir():
            raise


def _sweep(parent: Path) -> None:
    """Deletes what killed preparations of this machine left behind."""
    for path in parent.iterdir():
        match = _PART.fullmatch(path.name)
        if match and match["host"] == socket.gethostname() and not _alive(int(match["process"])):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
