"""Batches in a fixed order, readable from any position: the order is a function of the seed and the position alone.

`Batches` is a random-access source of whole batches for Grain: the indices of a batch come from one permutation an epoch (and
class), the images from one NumPy index, so a batch of small images costs tens of microseconds. The state of an iterator is the
number of batches it has given: a checkpoint needs nothing but the step, whatever the number of workers or processes.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxdrl.data.sources import InMemory, Source
from jaxdrl.errors import UserError


class Batches:
    """Batches of a source by number."""

    def __init__(
        self, source: Source, *, batch_size: int, seed: int, balanced: bool, process: tuple[int, int], flip: bool
    ) -> None:
        """Orders the examples; see `batches`."""
        self._source = source if isinstance(source, InMemory) else None
        self._examples, self._size, self._flip, self._seed = source, batch_size, flip, seed
        self._order = _order(source, seed, balanced, process)

    def at(self, number: int) -> dict[str, np.ndarray]:
        """Reads a batch.

        Args:
            number: From 0 on, without end.

        Returns:
            "image" float32 [b, h, w, c] in [-1, 1], "label" int32 [b], "index" int64 [b].
        """
        index = self._order(np.arange(number * self._size, (number + 1) * self._size))
        if self._source is not None:
            images, labels = self._source.images[index], self._source.labels[index]
        else:
            examples = [self._examples[int(i)] for i in index]
            images = np.stack([np.asarray(example["image"]) for example in examples])
            labels = np.array([example["label"] for example in examples], np.int32)
        images = to_float(images)
        if self._flip:
            turned = np.random.default_rng([self._seed, number]).random(self._size) < 0.5
            images[turned] = images[turned, :, ::-1]
        return {"image": images, "label": labels, "index": index}

    def stacked(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Reads consecutive batches for a scan.

        Args:
            start: Number of the first.
            count: How many.

        Returns:
            As `at`, with a leading axis of `count`.
        """
        parts = [self.at(number) for number in range(start, start + count)]
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def stream(self, start: int, chunk: int) -> Iterator[dict[str, np.ndarray]]:
        """Reads on and on, `chunk` batches at a time, through Grain, which reads ahead while the devices work.

        Args:
            start: Number of the first batch, a multiple of `chunk`.
            chunk: Batches an element.

        Yields:
            What `stacked` returns.
        """
        import grain

        first = start // chunk
        order = grain.MapDataset.range(first, first + 2**40).map(lambda element: self.stacked(element * chunk, chunk))
        yield from order.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    balanced: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    horizontal_flip: bool = False,
) -> Batches:
    """Orders a source into batches.

    Args:
        source: From `open_split`.
        batch_size: Examples a batch and process.
        seed: Decides the order.
        balanced: Every class equally often, in turn; otherwise every example equally often.
        process_index: Of this process.
        process_count: Each process sees its own share of every epoch.
        horizontal_flip: Mirror half of the images.

    Returns:
        Random access to batches.

    Raises:
        UserError: If the source is empty, or has fewer examples than processes.
    """
    if len(source) < max(process_count, 1):
        raise UserError(f"the split has {len(source)} examples, too few for {process_count} processes")
    process = (process_index, process_count)
    return Batches(source, batch_size=batch_size, seed=seed, balanced=balanced, process=process, flip=horizontal_flip)


def load_arrays(source: Source) -> tuple[UInt8[np.ndarray, "n h w c"], np.ndarray]:
    """Reads a whole split.

    Args:
        source: From `open_split`.

    Returns:
        (uint8 images, int32 labels).
    """
    held = source if isinstance(source, InMemory) else InMemory(source)
    return held.images, held.labels


def to_float(images: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """uint8 to [-1, 1].

    Args:
        images: 0 .. 255.

    Returns:
        float32, x / 127.5 - 1.
    """
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: Float[np.ndarray, "..."], rule: str = "round") -> UInt8[np.ndarray, "..."]:
    """[-1, 1] to uint8.

    Args:
        images: Clipped first.
        rule: "round" (JiT) or "truncate" (SiT, DiT: 127.5 x + 128 cut off).

    Returns:
        0 .. 255.

    Raises:
        ValueError: If the rule is unknown.
    """
    if rule not in ("round", "truncate"):
        raise ValueError(f"rule must be round or truncate, got {rule!r}")
    images = np.asarray(images, np.float32)
    if rule == "truncate":
        return np.clip(127.5 * images + 128, 0, 255).astype(np.uint8)
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def _order(source: Source, seed: int, balanced: bool, process: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """Positions to indices: shuffled anew in every epoch of a class (or of the whole source), without end."""
    if balanced:
        labels = source.labels if isinstance(source, InMemory) else np.array([source[i]["label"] for i in range(len(source))])
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        groups = [np.arange(len(source))]
    groups = [group[process[0] % len(group) :: process[1]] for group in groups]

    @lru_cache(maxsize=4 * len(groups))
    def permutation(group: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, group, epoch]).permutation(groups[group])

    def order(positions: np.ndarray) -> np.ndarray:
        turns, group_of = np.divmod(positions, len(groups))
        index = np.empty(len(positions), np.int64)
        for group in range(len(groups)):
            mine = np.flatnonzero(group_of == group)
            epochs, places = np.divmod(turns[mine], len(groups[group]))
            for epoch in np.unique(epochs):
                index[mine[epochs == epoch]] = permutation(group, int(epoch))[places[epochs == epoch]]
        return index

    return order
