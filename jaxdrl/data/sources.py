"""Data sets by name: prepared once, then opened split by split for random access.

"digits", "patches" and "synthetic" are made here (`embedded.py`); any other name is a TFDS data set that was prepared as
ArrayRecord (`external.py`). Both are read by the same code: a TFDS data source over ArrayRecord files inside a Grain dataset.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from jaxdrl.data import embedded, external
from jaxdrl.data.images import centre_crop
from jaxdrl.errors import UserError
from jaxdrl.weights.files import write_atomically

SPLITS = embedded.SPLITS


@runtime_checkable
class Source(Protocol):
    """Random access to labelled images."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": uint8 [h, w, c], "label": int}."""
        ...

    def read_labels(self) -> Int32[np.ndarray, " n"]:
        """All labels, without decoding an image."""
        ...


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What a data set holds.

    Attributes:
        image_shape: (h, w, c) of the images that `open_split` gives.
        num_classes: Classes.
        class_names: A name a class.
        sizes: split -> examples.
    """

    image_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    sizes: dict[str, int]


class InMemory:
    """Images decoded once, with vectorised access through `images` and `labels`; both are read-only."""

    def __init__(self, images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]) -> None:
        """Takes the arrays over.

        Args:
            images: Made read-only.
            labels: Copied where they are not int32.
        """
        self.images = images
        self.labels: Int32[np.ndarray, " n"] = np.asarray(labels, np.int32)
        self.images.flags.writeable = False
        self.labels.flags.writeable = False

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""
        return {"image": self.images[index], "label": int(self.labels[index])}

    def read_labels(self) -> Int32[np.ndarray, " n"]:
        """All labels."""
        return self.labels


class OnDisk:
    """Images decoded, and cropped where they are larger than wanted, whenever they are read.

    Attributes:
        workers: Processes that decode ahead in `Batches.stream`; 0: threads of this one.
    """

    def __init__(self, place: "_Place", *, label_cache: Path, workers: int) -> None:
        """Opens the files.

        Args:
            place: Which examples of which files.
            label_cache: Folder for arrays of labels.
            workers: See the class.
        """
        import grain

        self.workers = workers
        self._place, self._label_cache = place, label_cache
        chosen = place.index()
        self._index = np.arange(len(place.source())) if chosen is None else chosen
        self._examples = grain.MapDataset.source(place.source()).map(_Fit(place.image_shape))

    def __len__(self) -> int:
        """How many."""
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""
        return cast(dict[str, Any], self._examples[int(self._index[index])])

    def read_labels(self) -> Int32[np.ndarray, " n"]:
        """All labels, read once from the records and then from a small file."""
        path = self._label_cache / f"{self._place.key()}.npy"
        if path.exists():
            return np.load(path)[self._index]
        source = self._place.source()
        labels = np.array([source[index]["label"] for index in range(len(source))], np.int32)
        buffer = io.BytesIO()
        np.save(buffer, labels)
        write_atomically(path, buffer.getvalue())
        return labels[self._index]


def prepare(settings: Any, directory: Path) -> DatasetSummary:
    """Writes an embedded data set unless it is there, or checks that a TFDS one is.

    Args:
        settings: `config.data`.
        directory: Where data sets live.

    Returns:
        What it holds.

    Raises:
        UserError: If a setting does not suit the data set, it cannot be written, or a TFDS set is not prepared.
    """
    wanted = embedded.find(settings)
    if wanted:
        embedded.write(wanted, Path(directory))
    places = {split: _place(settings, Path(directory), split) for split in SPLITS}
    return DatasetSummary(
        image_shape=tuple(settings.image_shape),
        num_classes=settings.num_classes,
        class_names=tuple(places["train"].builder().info.features["label"].names),
        sizes={split: place.size() for split, place in places.items()},
    )


def open_split(settings: Any, directory: Path, split: str) -> InMemory | OnDisk:
    """Opens a split.

    Args:
        settings: `config.data`.
        directory: As given to `prepare`.
        split: "train", "validation" or "test".

    Returns:
        Random access to its examples: decoded once and kept if `settings.in_memory`, otherwise decoded when read.

    Raises:
        UserError: If the split is unknown, or the data set is missing or damaged.
    """
    place = _place(settings, Path(directory), split)
    if settings.in_memory:
        return _decoded(place)
    return OnDisk(place, label_cache=Path(directory) / ".labels", workers=settings.workers)


def load_arrays(source: Source, limit: int = 0) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
    """Reads a whole split, or a part of it.

    Args:
        source: From `open_split`.
        limit: At most so many examples, drawn by a fixed seed and left in their order; 0: all.

    Returns:
        (images, labels); read-only where the source is in memory.
    """
    if 0 < limit < len(source):
        source = _Chosen(source, np.sort(np.random.default_rng(0).choice(len(source), limit, replace=False)))
    held = source if isinstance(source, InMemory) else _decode(source)
    return held.images, held.labels


class _Chosen:
    """Some examples of a source."""

    def __init__(self, source: Source, index: np.ndarray) -> None:
        self._source, self._index = source, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._index[index])]

    def read_labels(self) -> Int32[np.ndarray, " n"]:
        return self._source.read_labels()[self._index]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Examples of a TFDS split on disk. Hashable: it stands for their content.

    Attributes:
        folder: Of the ArrayRecord files.
        written: When, in nanoseconds, so that a set written anew is another one.
        tfds_split: Split in TFDS's sense.
        cut: (seed, fraction, "train" | "validation"), or None for all examples.
        image_shape: That images must have in the end.
    """

    folder: Path
    written: int
    tfds_split: str
    cut: tuple[int, float, str] | None
    image_shape: tuple[int, ...]

    def builder(self) -> Any:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(str(self.folder))

    def source(self) -> Any:
        """Images are left encoded: which library TFDS decodes with depends on what is installed."""
        import tensorflow_datasets as tfds

        builder = self.builder()
        source = builder.as_data_source(split=self.tfds_split, decoders={"image": tfds.decode.SkipDecoding()})
        if len(source) != builder.info.splits[self.tfds_split].num_examples:
            raise ValueError(f"{self.tfds_split} has {len(source)} records")
        return source

    def index(self) -> np.ndarray | None:
        if self.cut is None:
            return None
        size = self.builder().info.splits[self.tfds_split].num_examples
        return external.cut(size, *self.cut)

    def size(self) -> int:
        index = self.index()
        return self.builder().info.splits[self.tfds_split].num_examples if index is None else len(index)

    def key(self) -> str:
        content = f"{self.folder.resolve()} {self.written} {self.tfds_split}"
        return hashlib.sha256(content.encode()).hexdigest()[:24]


class _Fit:
    """A Grain map: decodes the image and crops it to the wanted shape; {"image", "label"} alone are kept."""

    def __init__(self, image_shape: tuple[int, ...]) -> None:
        self._shape = image_shape

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        channels = self._shape[2]
        with Image.open(io.BytesIO(example["image"])) as picture:
            image = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
        image = image.reshape(*image.shape[:2], channels)
        if image.shape != self._shape:
            image = centre_crop(image, self._shape[0])
        return {"image": image, "label": int(example["label"])}


def _place(settings: Any, directory: Path, split: str) -> _Place:
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    wanted = embedded.find(settings)
    folder = wanted.folder(directory) if wanted else external.locate(settings, directory)
    if not folder.is_dir():
        raise UserError(f"{folder} holds no prepared {settings.name}; `jaxdrl run` prepares it")
    shape = tuple(settings.image_shape)
    try:
        written = (folder / "dataset_info.json").stat().st_mtime_ns
        place = _Place(folder=folder, written=written, tfds_split=split, cut=None, image_shape=shape)
        info = place.builder().info
    except Exception as error:
        raise _damaged(folder, error) from error
    if wanted:
        return place
    external.check(settings, info)
    tfds_split, cut = external.part(settings, split, {name: _labelled(place, name) for name in info.splits})
    return _Place(folder=folder, written=written, tfds_split=tfds_split, cut=cut, image_shape=shape)


def _labelled(place: _Place, tfds_split: str) -> bool:
    """Whether labels are given: TFDS stores -1 for withheld ones."""
    part = _Place(folder=place.folder, written=place.written, tfds_split=tfds_split, cut=None, image_shape=())
    try:
        source = part.source()
        return len(source) > 0 and int(source[0]["label"]) >= 0
    except Exception as error:
        raise _damaged(place.folder, error) from error


@lru_cache(maxsize=3)
def _decoded(place: _Place) -> InMemory:
    """Decodes once a process: the stages of a run open the same splits again and again."""
    try:
        return _decode(OnDisk(place, label_cache=Path(), workers=0))
    except Exception as error:
        raise _damaged(place.folder, error) from error


def _decode(source: Source) -> InMemory:
    if not len(source):
        raise UserError("the split is empty; give it more examples")
    examples = [source[index] for index in range(len(source))]
    images = np.stack([np.asarray(example["image"]) for example in examples])
    return InMemory(images, np.array([example["label"] for example in examples], np.int32))


def _damaged(folder: Path, error: Exception) -> UserError:
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{folder} is damaged ({detail}); delete the folder and prepare the data set again")
