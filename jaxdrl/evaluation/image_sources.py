"""Images to be measured, from files and from splits of a data set. Those of a checkpoint: `training/generation.py`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from jaxdrl.data import Source
from jaxdrl.errors import UserError
from jaxdrl.evaluation import sample_files
from jaxdrl.evaluation.collect import UNKNOWN


class Files:
    """An `.npz` or a folder of pictures, streamed."""

    def __init__(self, path: Path, limit: int = 0) -> None:
        """Counts the images.

        Args:
            path: See `sample_files.read`.
            limit: Only the first so many; 0: all.

        Raises:
            UserError: If there are no images, or fewer than the limit.
        """
        self._path, self._num = path, sample_files.count(path)
        if limit > self._num:
            raise UserError(f"{path} has {self._num} images, {limit} are asked for")
        self._num = limit or self._num
        self._labels = sample_files.labels(path)
        self.labelled = self._labels is not None

    def __len__(self) -> int:
        """How many."""
        return self._num

    def batches(
        self, start: int, stop: int, size: int
    ) -> Iterator[tuple[UInt8[np.ndarray, "batch h w c"], Int32[np.ndarray, " batch"]]]:
        """Images in the order of the file, or of the names."""
        first = start
        for images in sample_files.read(self._path, size, start, stop):
            labels = np.full(len(images), UNKNOWN, np.int32)
            yield images, labels if self._labels is None else self._labels[first : first + len(images)]
            first += len(images)


class Split:
    """A split of a data set, decoded when it is read; or some of it, drawn by a fixed seed and left in order."""

    def __init__(self, source: Source, limit: int = 0) -> None:
        """Chooses the examples.

        Args:
            source: From `data.open_split`.
            limit: At most so many; 0: all.
        """
        self._source, self._index = source, np.arange(len(source))
        if 0 < limit < len(source):
            self._index = np.sort(np.random.default_rng(0).choice(len(source), limit, replace=False))

    def __len__(self) -> int:
        """How many."""
        return len(self._index)

    def batches(
        self, start: int, stop: int, size: int
    ) -> Iterator[tuple[UInt8[np.ndarray, "batch h w c"], Int32[np.ndarray, " batch"]]]:
        """Images in the order of the split."""
        for first in range(start, stop, size):
            examples = [self._source[int(number)] for number in self._index[first : min(first + size, stop)]]
            images = np.stack([np.asarray(example["image"]) for example in examples])
            yield images, np.array([example["label"] for example in examples], np.int32)
