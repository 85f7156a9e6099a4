"""TFDS data sets that were prepared before: where they lie, and which of their examples make up train, validation and test."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdrl.data.order import Purpose, permutation
from jaxdrl.errors import UserError


def locate(settings: Any, directory: Path) -> Path:
    """Finds the files of a data set.

    Args:
        settings: `config.data`; its name may be "name", "name/config" or "name:version".
        directory: Searched first; then TFDS's own folder (`TFDS_DATA_DIR` or ~/tensorflow_datasets).

    Returns:
        The folder of its newest version.

    Raises:
        UserError: If tensorflow_datasets is missing or no such set is prepared.
    """
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise UserError("config.data.name needs tensorflow_datasets: pip install -e '.[tfds]'") from error
    for data_dir in (str(directory), tfds.core.constants.DATA_DIR):
        try:
            return Path(read_only_builder.builder_from_files(settings.name, data_dir=data_dir).data_path)
        except ValueError:  # TFDS's DatasetNotFoundError is one, and so is what it raises for an impossible name.
            continue
    raise UserError(
        f"config.data.name={settings.name!r} is neither digits, patches nor synthetic, and no prepared TFDS set of that name "
        f"lies in {directory} or {tfds.core.constants.DATA_DIR}: pip install -e '.[tfds]', then "
        f"`tfds build {settings.name} --file_format=array_record --data_dir=DIR` and --config.data.directory=DIR"
    )


def check(settings: Any, info: Any) -> None:
    """Compares what a set holds with what the config expects; its classes are looked up in `classes.chosen`.

    Args:
        settings: `config.data`.
        info: The set's `tfds.core.DatasetInfo`.

    Raises:
        UserError: If the set is not ArrayRecord, has no image, label or train split, or its images do not fit.
    """
    name = settings.name
    if info.file_format is None or info.file_format.value != "array_record":
        raise UserError(
            f"config.data.name={name!r}: the prepared set is not ArrayRecord; `tfds build {name} --file_format=array_record`"
        )
    missing = [key for key in ("image", "label") if key not in info.features]
    if missing:
        raise UserError(f"config.data.name={name!r} has no feature {' and no '.join(missing)}; choose a labelled image set")
    fraction = settings.validation_fraction
    if not 0 < fraction < 1:
        raise UserError(f"config.data.validation_fraction is {fraction}; give a number between 0 and 1")
    held, wanted = tuple(info.features["image"].shape), tuple(settings.image_shape)
    square = len(wanted) == 3 and wanted[0] == wanted[1]
    if held != wanted and not (square and held[-1] == wanted[-1]):
        raise UserError(
            f"config.data.image_shape is {wanted}, but {name} has {held}; only a square crop of the same channels can be cut"
        )


def part(settings: Any, split: str, labelled: dict[str, bool]) -> tuple[str, tuple[int, float, str] | None]:
    """Says which examples of which TFDS split make up one of our splits.

    Train gives train and, cut from it by `split_seed`, validation; the test split, or where its labels are withheld (as
    ImageNet's are) the validation split, gives test.

    Args:
        settings: `config.data`.
        split: "train", "validation" or "test".
        labelled: TFDS split -> whether it carries labels.

    Returns:
        (name of the TFDS split, arguments of `cut` after the size, or None for all examples).

    Raises:
        UserError: If the set has no such part.
    """
    if split == "test":
        for name in ("test", "validation"):
            if labelled.get(name):
                return name, None
        raise UserError(f"config.data.name={settings.name!r} has neither a labelled test nor a labelled validation split")
    if not labelled.get("train"):
        raise UserError(f"config.data.name={settings.name!r} has no labelled train split")
    return "train", (settings.split_seed, settings.validation_fraction, split)


def cut(size: int, seed: int, fraction: float, split: str) -> Int[np.ndarray, " n"]:
    """Chooses the examples of train or validation.

    Args:
        size: Examples of the TFDS split, those of the run's classes alone: so validation has its share of them.
        seed: Decides who goes where.
        fraction: Share of validation.
        split: "train" or "validation".

    Returns:
        Ascending indices; the two parts are disjoint and together everything.
    """
    order = permutation(seed, Purpose.SPLIT, size)
    count = round(size * fraction)
    return np.sort(order[:count] if split == "validation" else order[count:])
