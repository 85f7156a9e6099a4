"""A compiled function applied to any number of images, with one compiled batch size."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped


def in_batches(function: Callable, *arrays: Shaped[np.ndarray, "n ..."], size: int = 250) -> Shaped[np.ndarray, "n ..."]:
    """Applies a function part by part; the last part is padded with zeros and cut again.

    Args:
        function: `function(*parts)`, with one output that has the parts' leading axis.
        *arrays: Arrays of one leading axis n.
        size: Examples a call. A few hundred keep a CPU's caches warm; an accelerator hides the difference.

    Returns:
        The outputs, on the host.

    Raises:
        ValueError: If there is nothing to apply the function to, or the leading axes differ.
    """
    num = len(arrays[0])
    if num == 0 or any(len(array) != num for array in arrays):
        raise ValueError(f"arrays must have one leading axis of at least 1, got {[len(array) for array in arrays]}")
    size, outputs = min(size, num), []
    for start in range(0, num, size):
        parts = [array[start : start + size] for array in arrays]
        missing = size - len(parts[0])
        if missing:
            parts = [np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) for part in parts]
        outputs.append(np.asarray(function(*parts))[: size - missing])
    return np.concatenate(outputs)
