"""Random orders that are functions of a seed and a position alone, and stay the same over NumPy versions.

All randomness is the raw output of Philox 4x64 (Salmon et al., SC 2011): a counter-based generator whose words NumPy guarantees
for ever, which it does not for `Generator.permutation`. A shuffle sorts by such words. So the images that a shipped model was
trained on never turn up in the test half of a later installation, and batch number n is known without reading batches 0 .. n-1.
"""

import enum
from functools import lru_cache

import numpy as np
from jaxtyping import Int, UInt64

_WORDS_A_BLOCK = 4


class Purpose(enum.IntEnum):
    """What random words are for: part of the Philox counter, so that no two purposes share a word."""

    SPLIT = 1
    CROPS = 2
    EPOCH = 3
    CLASSES = 4
    FLIP = 5


def random_words(
    seed: int, purpose: Purpose, count: int, *, major: int = 0, minor: int = 0, block: int = 0
) -> UInt64[np.ndarray, " count"]:
    """Reads uniform 64-bit words.

    Args:
        seed: The Philox key, taken modulo 2^64.
        purpose: The highest counter word.
        count: How many words.
        major: The second counter word, for example a class.
        minor: The third counter word, for example an epoch.
        block: Where to start, in blocks of four words.

    Returns:
        The words.
    """
    counter = np.array([block, minor, major, purpose], np.uint64)
    key = np.array([seed % 2**64, 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def permutation(seed: int, purpose: Purpose, count: int, *, major: int = 0, minor: int = 0) -> Int[np.ndarray, " count"]:
    """Shuffles 0 .. count-1.

    Args:
        seed: As for `random_words`.
        purpose: As for `random_words`.
        count: How many.
        major: As for `random_words`.
        minor: As for `random_words`.

    Returns:
        A permutation.
    """
    return np.argsort(random_words(seed, purpose, count, major=major, minor=minor), kind="stable")


class Order:
    """Which example stands at a position of the endless stream of examples.

    With labels the stream is balanced: each round of `num_groups` positions holds every class once, in an order drawn for that
    round, and each class walks through a fresh shuffle of its members in every epoch of its own. Without labels every epoch is
    one shuffle of all examples.
    """

    def __init__(self, size: int, seed: int, labels: Int[np.ndarray, " size"] | None = None) -> None:
        """Groups the examples.

        Args:
            size: Examples of the source.
            seed: Decides the order.
            labels: Their labels, for a balanced stream.
        """
        self._seed = seed
        if labels is None:
            self._groups = [np.arange(size)]
        else:
            self._groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._sizes = np.array([len(group) for group in self._groups])
        self._shuffled = lru_cache(maxsize=4 * len(self._groups))(self._shuffle)

    @property
    def num_groups(self) -> int:
        """Classes of a balanced stream, otherwise 1."""
        return len(self._groups)

    def indices(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Looks up positions.

        Args:
            positions: From 0 on, without end.

        Returns:
            Indices into the source.
        """
        groups, turns = self._turns(positions)
        epochs, places = np.divmod(turns, self._sizes[groups])
        result = np.empty(len(positions), np.int64)
        tags = epochs * self.num_groups + groups
        by_tag = np.argsort(tags, kind="stable")
        cuts = np.flatnonzero(np.diff(tags[by_tag])) + 1
        for members in np.split(by_tag, cuts):
            epoch, group = divmod(int(tags[members[0]]), self.num_groups)
            result[members] = self._shuffled(group, epoch)[places[members]]
        return result

    def _turns(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The group at each position, and how often the group had its turn before."""
        if self.num_groups == 1:
            return np.zeros(len(positions), np.int64), positions
        rounds, slots = np.divmod(positions, self.num_groups)
        first, last = int(rounds.min()), int(rounds.max())
        blocks = -(-self.num_groups // _WORDS_A_BLOCK)
        words = random_words(self._seed, Purpose.CLASSES, (last - first + 1) * blocks * _WORDS_A_BLOCK, block=first * blocks)
        keys = words.reshape(last - first + 1, -1)[:, : self.num_groups]
        return np.argsort(keys, axis=1, kind="stable")[rounds - first, slots], rounds

    def _shuffle(self, group: int, epoch: int) -> np.ndarray:
        members = self._groups[group]
        return members[permutation(self._seed, Purpose.EPOCH, len(members), major=group, minor=epoch)]

    def __getstate__(self) -> dict:
        """Leaves the cache behind, for worker processes."""
        return {name: value for name, value in self.__dict__.items() if name != "_shuffled"}

    def __setstate__(self, state: dict) -> None:
        """Starts with an empty cache."""
        self.__dict__.update(state)
        self._shuffled = lru_cache(maxsize=4 * len(self._groups))(self._shuffle)
