"""Batches in a fixed order, readable from any number on: batch n is a function of the source, the seed and n alone.

The state of an iterator is the number of batches it has given, so a checkpoint needs nothing but the step, whatever the number of
workers or processes. (Grain's own iterator state has another format for every number of workers.) Positions in the stream of
examples are looked up in one vectorised step (`order.py`) and Grain reads ahead; see `Batches.stream`.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from jaxdrl.data.images import to_float
from jaxdrl.data.order import Order, Purpose, random_words
from jaxdrl.data.sources import InMemory, Source
from jaxdrl.errors import UserError

_ENDLESS = 2**40
_DECODING_THREADS = 8


class Batches:
    """Batches of a source by number, made by `batches`; iterating gives them one by one from `start`."""

    def __init__(
        self, source: Source, order: Order, *, batch_size: int, seed: int, start: int, process: tuple[int, int], flip: bool
    ) -> None:
        """Keeps what a batch depends on; see `batches`."""
        self._source, self._order, self._seed = source, order, seed
        self._size, self._start, self._process, self._flip = batch_size, start, process, flip

    def at(self, number: int) -> dict[str, np.ndarray]:
        """Reads a batch.

        Args:
            number: From 0 on, without end.

        Returns:
            "image" float32 [b, h, w, c] in [-1, 1], "label" int32 [b], "index" int64 [b].
        """
        return {name: part[0] for name, part in self.stacked(number, 1).items()}

    def stacked(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Reads consecutive batches at once, for a scan.

        Args:
            start: Number of the first.
            count: How many.

        Returns:
            As `at`, with a leading axis of `count`.
        """
        positions = self._positions(start, count)
        index = self._order.indices(positions)
        if isinstance(self._source, InMemory):
            images, labels = self._source.images[index], self._source.labels[index]
        else:
            examples = [self._source[int(i)] for i in index]
            images = np.stack([example["image"] for example in examples])
            labels = np.array([example["label"] for example in examples], np.int32)
        if self._flip:
            turned = self._turned(positions)
            images[turned] = images[turned, :, ::-1]
        parts = {"image": to_float(images), "label": labels, "index": index}
        return {name: part.reshape(count, self._size, *part.shape[1:]) for name, part in parts.items()}

    def plan(self, start: int, count: int) -> dict[str, np.ndarray]:
        """What `stacked` would read, without an image being read or decoded.

        Args:
            start: Number of the first batch.
            count: How many.

        Returns:
            "index" int64, "label" int32 and "turned" bool (mirrored), each [count, b].
        """
        positions = self._positions(start, count)
        index = self._order.indices(positions)
        turned = self._turned(positions) if self._flip else np.zeros(len(positions), bool)
        parts = {"index": index, "label": self._source.read_labels()[index], "turned": turned}
        return {name: part.reshape(count, self._size) for name, part in parts.items()}

    def stream(self, start: int | None = None, chunk: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Reads on and on through Grain, ahead of the caller.

        Sources in memory are read by one thread; those on disk by several threads, or by `source.workers` processes. What is
        read never depends on it.

        Args:
            start: Number of the first batch; None: the `start` given to `batches`.
            chunk: Batches an element, stacked; 0: single batches without the leading axis.

        Yields:
            What `at` or `stacked` returns.
        """
        import grain

        start = self._start if start is None else start
        if isinstance(self._source, InMemory) and chunk:
            elements = grain.MapDataset.range(_ENDLESS).map(lambda i: self.stacked(start + i * chunk, chunk))
            yield from elements.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
            return
        threads = 1 if isinstance(self._source, InMemory) else _DECODING_THREADS
        elements = grain.MapDataset.range(start, start + _ENDLESS).map(self.at)
        stream = elements.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
        workers = getattr(self._source, "workers", 0)
        if workers:
            _parse_flags()
            stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
        yield from stream.batch(chunk) if chunk else stream

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Single batches from `start` on, without end."""
        return self.stream()

    def _positions(self, start: int, count: int) -> Int[np.ndarray, " n"]:
        """Positions of this process in the stream: its part of each batch of all processes together."""
        process, processes = self._process
        first = np.arange(start, start + count) * processes + process
        return (first[:, None] * self._size + np.arange(self._size)).ravel()

    def _turned(self, positions: np.ndarray) -> np.ndarray:
        first, last = int(positions.min()) // 4, int(positions.max()) // 4
        words = random_words(self._seed, Purpose.FLIP, 4 * (last - first + 1), block=first)
        return words[positions - 4 * first] >= np.uint64(2**63)


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    balanced: bool = True,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    horizontal_flip: bool = False,
) -> Batches:
    """Orders a source into batches.

    The stream of examples does not depend on the processes: batch n of process i is the i-th part of the n-th stretch of
    `batch_size * process_count` positions, so one process and many train on the same global batches.

    Args:
        source: From `open_split`.
        batch_size: Examples a batch and process.
        seed: Decides the order and the flips.
        balanced: Every class equally often, to within one in any stretch; otherwise every example equally often.
        start: Number of the batch with which iterating begins.
        process_index: Of this process.
        process_count: Of all.
        horizontal_flip: Mirror left and right with probability one half.

    Returns:
        Random access to batches, and an iterator over them.

    Raises:
        UserError: If the source is empty.
        ValueError: If `batch_size`, `start` or the process numbers are out of range.
    """
    if not len(source):
        raise UserError("the split is empty; give it more examples (config.data)")
    if batch_size < 1 or start < 0 or not 0 <= process_index < process_count:
        raise ValueError(f"no batch of {batch_size} from {start} on for process {process_index} of {process_count}")
    order = Order(len(source), seed, source.read_labels() if balanced else None)
    process = (process_index, process_count)
    return Batches(source, order, batch_size=batch_size, seed=seed, start=start, process=process, flip=horizontal_flip)


def _parse_flags() -> None:
    """Grain's worker processes read absl flags, which raise unless a program parsed them; ours are all defaults."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
