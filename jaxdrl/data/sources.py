"""Data sets by name: prepared once, then opened split by split for random access.

"digits", "patches" and "synthetic" are made here (`embedded.py`); any other name is a TFDS data set that was prepared as
ArrayRecord (`external.py`). Both are read by the same code: a TFDS data source over ArrayRecord files inside a Grain dataset.
"""

import hashlib
import io
import uuid
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from jaxdrl.data import classes, embedded, external
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
        num_classes: Classes, of those that `config.data.classes` chooses; so are the others.
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

    def __init__(self, place: "_Place", *, workers: int) -> None:
        """Opens the files.

        Args:
            place: Which examples of which files.
            workers: See the class.
        """
        import grain

        self.workers = workers
        self._place, self._index = place, place.index()
        self._examples = grain.MapDataset.source(place.source()).map(_Fit(place.image_shape, place.numbers()))

    def __len__(self) -> int:
        """How many."""
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example."""
        return cast(dict[str, Any], self._examples[int(self._index[index])])

    def read_labels(self) -> Int32[np.ndarray, " n"]:
        """All labels, read once from the records and then from a small file."""
        labels, numbers = self._place.stored_labels()[self._index], self._place.numbers()
        return labels if numbers is None else numbers[labels]


def prepare(settings: Any, directory: Path) -> DatasetSummary:
    """Writes an embedded data set unless it is there, or checks that a TFDS one is.

    Args:
        settings: `config.data`.
        directory: Where data sets live.

    Returns:
        What it holds.

    Raises:
        UserError: If a setting does not suit the data set, it or the labels cannot be written, or a TFDS set is not prepared.
    """
    wanted = embedded.find(settings)
    if wanted:
        embedded.write(wanted, Path(directory))
    places = {split: _place(settings, Path(directory), split) for split in SPLITS}
    return DatasetSummary(
        image_shape=tuple(settings.image_shape),
        num_classes=settings.num_classes,
        class_names=classes.names(settings) or tuple(places["train"].builder().info.features["label"].names),
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
    return OnDisk(place, workers=settings.workers)


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
        classes: The set's labels that are kept, in the order of the run's; None: all, as they are.
        cut: (seed, fraction, "train" | "validation") of what is kept, or None for all of it.
        image_shape: That images must have in the end.
        label_cache: Folder for arrays of labels.
    """

    folder: Path
    written: int
    tfds_split: str
    classes: tuple[int, ...] | None
    cut: tuple[int, float, str] | None
    image_shape: tuple[int, ...]
    label_cache: Path

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

    def index(self) -> np.ndarray:
        """Ascending, and the same for every order of the classes."""
        if self.classes is None:
            kept = np.arange(self.builder().info.splits[self.tfds_split].num_examples)
        else:
            kept = np.flatnonzero(np.isin(self.stored_labels(), self.classes))
        return kept if self.cut is None else kept[external.cut(len(kept), *self.cut)]

    def size(self) -> int:
        return len(self.index())

    def numbers(self) -> np.ndarray | None:
        """Our label for each of the set's, -1 for those left out; None: they are the same."""
        if self.classes is None:
            return None
        numbers = np.full(max(self.classes) + 1, -1, np.int32)
        numbers[list(self.classes)] = np.arange(len(self.classes))
        return numbers

    def stored_labels(self) -> np.ndarray:
        """The set's labels of the whole TFDS split: its records are read through once, whichever examples are chosen."""
        path = self.label_cache / f"{self.key()}.npy"
        if path.exists():
            return np.load(path)
        try:
            source = self.source()
            labels = np.array([source[index]["label"] for index in range(len(source))], np.int32)
        except Exception as error:
            raise _damaged(self.folder, error) from error
        buffer = io.BytesIO()
        np.save(buffer, labels)
        # Written under a name of its own first: several processes may be at it, on machines that share the folder.
        own = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.npy")
        try:
            write_atomically(own, buffer.getvalue())
            own.replace(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error}); make room or choose config.data.directory") from error
        return labels

    def key(self) -> str:
        content = f"{self.folder.resolve()} {self.written} {self.tfds_split}"
        return hashlib.sha256(content.encode()).hexdigest()[:24]


class _Fit:
    """A Grain map: decodes the image, crops it to the wanted shape and numbers the label; {"image", "label"} alone are kept."""

    def __init__(self, image_shape: tuple[int, ...], numbers: np.ndarray | None) -> None:
        self._shape, self._numbers = image_shape, numbers

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        channels = self._shape[2]
        with Image.open(io.BytesIO(example["image"])) as picture:
            image = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
        image = image.reshape(*image.shape[:2], channels)
        if image.shape != self._shape:
            image = centre_crop(image, self._shape[0])
        label = int(example["label"])
        return {"image": image, "label": label if self._numbers is None else int(self._numbers[label])}


def _place(settings: Any, directory: Path, split: str) -> _Place:
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
    wanted = embedded.find(settings)
    folder = wanted.folder(directory) if wanted else external.locate(settings, directory)
    if not folder.is_dir():
        raise UserError(f"{folder} holds no prepared {settings.name}; `jaxdrl run` prepares it")
    try:
        place = _Place(
            folder=folder,
            written=(folder / "dataset_info.json").stat().st_mtime_ns,
            tfds_split=split,
            classes=None,
            cut=None,
            image_shape=tuple(settings.image_shape),
            label_cache=directory / ".labels",
        )
        info = place.builder().info
    except Exception as error:
        raise _damaged(folder, error) from error
    if not wanted:
        external.check(settings, info)
        tfds_split, cut = external.part(settings, split, {name: _labelled(place, name) for name in info.splits})
        place = replace(place, tfds_split=tfds_split, cut=cut)
    return replace(place, classes=classes.chosen(settings, info.features["label"].names))


def _labelled(place: _Place, tfds_split: str) -> bool:
    """Whether labels are given: TFDS stores -1 for withheld ones."""
    try:
        source = replace(place, tfds_split=tfds_split).source()
        return len(source) > 0 and int(source[0]["label"]) >= 0
    except Exception as error:
        raise _damaged(place.folder, error) from error


@lru_cache(maxsize=3)
def _decoded(place: _Place) -> InMemory:
    """Decodes once a process: the stages of a run open the same splits again and again."""
    try:
        return _decode(OnDisk(place, workers=0))
    except UserError:
        raise
    except Exception as error:
        raise _damaged(place.folder, error) from error


def _decode(source: Source) -> InMemory:
    if not len(source):
        raise UserError("the split is empty; give it more examples (config.data)")
    examples = [source[index] for index in range(len(source))]
    images = np.stack([np.asarray(example["image"]) for example in examples])
    return InMemory(images, np.array([example["label"] for example in examples], np.int32))


def _damaged(folder: Path, error: Exception) -> UserError:
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{folder} is damaged ({detail}); delete the folder and prepare the data set again")
