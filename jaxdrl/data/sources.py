"""Data sets by name: written once, whole or not at all, and opened for random access.

"digits", "patches" and "synthetic" are made here; any other name is a TFDS data set that was prepared as ArrayRecord.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdrl.errors import UserError
from jaxdrl.weights.files import write_atomically

EMBEDDED = ("digits", "patches", "synthetic")
SPLITS = ("train", "validation", "test")


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": uint8 [h, w, c], "label": int}."""
        ...


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What a data set holds.

    Attributes:
        image_shape: (h, w, c).
        num_classes: Classes.
        class_names: A name a class.
        sizes: split -> examples.
    """

    image_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    sizes: dict[str, int]


def prepare(settings: Any, directory: Path) -> DatasetSummary:
    """Writes an embedded data set unless it is there, or checks that a TFDS one is.

    Args:
        settings: `config.data`.
        directory: Where data sets live.

    Returns:
        What it holds.

    Raises:
        UserError: If a TFDS set is not prepared, or shape and classes are not those of the config.
    """
    if settings.name in EMBEDDED:
        _write_embedded(settings, directory / settings.name)
    sources = {split: open_split(settings, directory, split) for split in SPLITS}
    shape = tuple(np.asarray(sources["train"][0]["image"]).shape)
    if shape != tuple(settings.image_shape):
        raise UserError(f"config.data.image_shape is {tuple(settings.image_shape)}, but {settings.name} has {shape}")
    names = _class_names(settings, directory)
    if len(names) != settings.num_classes:
        raise UserError(f"config.data.num_classes is {settings.num_classes}, but {settings.name} has {len(names)}")
    sizes = {split: len(source) for split, source in sources.items()}
    return DatasetSummary(image_shape=shape, num_classes=len(names), class_names=tuple(names), sizes=sizes)


def open_split(settings: Any, directory: Path, split: str) -> Source:
    """Opens a split.

    Args:
        settings: `config.data`.
        directory: As given to `prepare`.
        split: "train", "validation" or "test".

    Returns:
        Random access to its examples; decoded once and kept in memory if `settings.in_memory`.

    Raises:
        UserError: If the split is unknown or the data set is not there.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if settings.name in EMBEDDED:
        from jaxdrl.data import builders

        folder = directory / settings.name
        if not (folder / "complete.json").exists():
            raise UserError(f"{folder} holds no prepared data set; run `jaxdrl run`, which prepares it")
        source: Source = builders.open_source(folder, split)
    else:
        source = _open_tfds(settings, directory, split)
    return InMemory(source) if settings.in_memory else source


class InMemory:
    """A source decoded once: [n, h, w, c] and [n], with vectorised access."""

    def __init__(self, source: Source) -> None:
        """Decodes every example.

        Args:
            source: Any source.
        """
        examples = [source[index] for index in range(len(source))]
        self.images = np.stack([np.asarray(example["image"]) for example in examples])
        self.labels = np.array([int(example["label"]) for example in examples], np.int32)

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""
        return {"image": self.images[index], "label": int(self.labels[index])}


class Selected:
    """Some examples of a source, cropped to a shape where they are larger."""

    def __init__(self, source: Source, index: np.ndarray, image_shape: tuple[int, ...]) -> None:
        """Keeps the choice.

        Args:
            source: Any source.
            index: Which examples.
            image_shape: What an image must have in the end.
        """
        self._source, self._index, self._shape = source, index, tuple(image_shape)

    def __len__(self) -> int:
        """How many."""
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""
        example = self._source[int(self._index[index])]
        image = np.asarray(example["image"])
        if image.shape != self._shape and self._shape[0] == self._shape[1] and image.shape[-1] == self._shape[-1]:
            image = centre_crop(image, self._shape[0])
        return {"image": image, "label": int(example["label"])}


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """ADM's crop: halve with a box filter while the short side is twice too long, bicubic to size, cut the middle.

    Args:
        image: uint8 [h, w, 3].
        size: Side of the result.

    Returns:
        uint8 [size, size, 3]. Source: openai/guided-diffusion image_datasets.py, center_crop_arr.
    """
    from PIL import Image

    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    array = np.asarray(picture)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


def _write_embedded(settings: Any, folder: Path) -> None:
    from jaxdrl.data import builders

    stamp = {key: _plain(settings[key]) for key in ("name", "image_shape", "split_seed", "validation_fraction", "examples_per_class")}
    marker = folder / "complete.json"
    if marker.exists():
        if json.loads(marker.read_text()) != stamp:
            raise UserError(f"{folder} was prepared with other config.data settings; choose another config.data.directory")
        return
    # A killed preparation leaves files without the marker: they are thrown away and written again.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        builders.write(settings, folder)
    except ValueError as error:
        raise UserError(f"config.data: {error}") from error
    write_atomically(marker, json.dumps(stamp).encode())


def _open_tfds(settings: Any, directory: Path, split: str) -> Source:
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(settings.name, data_dir=str(directory) if settings.directory else None)
        available = builder.info.splits
        held_out = next(part for part in ("test", "validation") if part in available)
        source = builder.as_data_source(split="train" if split != "test" else held_out)
    except Exception as error:
        raise UserError(
            f"config.data.name={settings.name!r}: no prepared TFDS set in {directory if settings.directory else 'the TFDS folder'} "
            f"({type(error).__name__}); pip install -e '.[tfds]' and "
            f"`tfds build {settings.name} --file_format=array_record`, or set config.data.directory"
        ) from error
    index = np.arange(len(source))
    if split != "test":
        order = np.random.default_rng(settings.split_seed).permutation(len(source))
        cut = round(len(source) * settings.validation_fraction)
        index = np.sort(order[:cut] if split == "validation" else order[cut:])
    return Selected(source, index, tuple(settings.image_shape))


def _class_names(settings: Any, directory: Path) -> list[str]:
    if settings.name in EMBEDDED:
        from jaxdrl.data import builders

        return builders.class_names(settings)
    import tensorflow_datasets as tfds

    builder = tfds.builder(settings.name, data_dir=str(directory) if settings.directory else None)
    return list(builder.info.features["label"].names)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
