"""A reward of one's own, by its import path."""

from collections.abc import Callable
from typing import Any

from jaxdrl.plugins import load


def reward(*, path: str) -> Callable[..., Any]:
    """A reward of one's own, for `create("function", path=...)` on the host and `create("traced_function", path=...)`.

    Args:
        path: "module:function" of `reward(images, condition) -> [batch]`: images [batch, h, w, c], float in [-1, 1], condition
            [batch] int. On the host they are NumPy arrays, traced they are JAX's.

    Returns:
        The function.

    Raises:
        UserError: See `plugins.load`.
    """
    return load(path)
