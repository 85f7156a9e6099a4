"""Arrays of all processes on every process, bit for bit.

`process_allgather` goes through device arrays, which would make float32 of float64; so what travels is bytes.
"""

import jax
import numpy as np
from jaxtyping import PyTree, Shaped


def gather(array: Shaped[np.ndarray, "..."]) -> list[Shaped[np.ndarray, "..."]]:
    """One array of every process, all of one shape.

    Args:
        array: This process's.

    Returns:
        Every process's, in the order of their numbers.
    """
    if jax.process_count() == 1:
        return [array]
    from jax.experimental import multihost_utils

    flat = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    parts = np.asarray(multihost_utils.process_allgather(flat))
    return [np.frombuffer(part.tobytes(), array.dtype).reshape(array.shape) for part in parts]


def concatenate(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The rows of every process behind each other; processes may have different numbers of them.

    Args:
        array: This process's rows.

    Returns:
        All rows, in the order of the processes.
    """
    if jax.process_count() == 1:
        return array
    counts = [int(count[0]) for count in gather(np.array([len(array)]))]
    padded = np.zeros((max(counts), *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return np.concatenate([part[:count] for part, count in zip(gather(padded), counts, strict=True)])


def local(tree: PyTree) -> PyTree:
    """Weights that this process can use by itself.

    Args:
        tree: Arrays; those of a mesh of several processes lie whole on every device.

    Returns:
        Those as NumPy arrays, all others as they are.
    """
    far = lambda leaf: isinstance(leaf, jax.Array) and not leaf.is_fully_addressable  # noqa: E731
    return jax.tree.map(lambda leaf: np.asarray(leaf) if far(leaf) else leaf, tree)


def texts(text: str) -> list[str]:
    """A text of every process.

    Args:
        text: This process's.

    Returns:
        Every process's, in the order of their numbers.
    """
    if jax.process_count() == 1:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    sizes = [int(size) for size in gather(np.array(len(content)))]
    padded = np.zeros(max(*sizes, 1), np.uint8)
    padded[: len(content)] = content
    return [part[:size].tobytes().decode() for part, size in zip(gather(padded), sizes, strict=True)]
