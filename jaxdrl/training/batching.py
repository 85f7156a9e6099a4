"""A compiled function applied to any number of images, with one compiled batch size."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree, Shaped

from jaxdrl.evaluation.local_devices import by_rows


def in_batches(function: Callable, *arrays: Shaped[np.ndarray, "n ..."], size: int = 250) -> Shaped[np.ndarray, "n ..."]:
    """Applies a function in equal parts; the last part is padded with zeros and cut again.

    Args:
        function: `function(*parts)`, with one output that has the parts' leading axis.
        *arrays: Arrays of one leading axis n.
        size: Examples a call, at most. A few hundred keep a CPU's caches warm; an accelerator hides the difference.

    Returns:
        The outputs, on the host.

    Raises:
        ValueError: If there is nothing to apply the function to, or the leading axes differ.
    """
    num = len(arrays[0])
    if num == 0 or any(len(array) != num for array in arrays):
        raise ValueError(f"arrays must have one leading axis of at least 1, got {[len(array) for array in arrays]}")
    size, outputs = -(-num // -(-num // size)), []
    for start in range(0, num, size):
        parts = [array[start : start + size] for array in arrays]
        missing = size - len(parts[0])
        if missing:
            parts = [np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) for part in parts]
        outputs.append(np.asarray(function(*parts))[: size - missing])
    return np.concatenate(outputs)


def compiled(function: Callable, params: PyTree, size: int = 250) -> Callable[..., Shaped[np.ndarray, "n ..."]]:
    """A function of weights and arrays as one of arrays alone, on any number of them and on all devices of this process.

    Args:
        function: `function(params, *arrays)`.
        params: Weights.
        size: Examples a call and device.

    Returns:
        `f(*arrays)`, see `in_batches` and `by_rows`.
    """
    call, size = by_rows(function, params), size * jax.local_device_count()
    return lambda *arrays: in_batches(call, *arrays, size=size)
