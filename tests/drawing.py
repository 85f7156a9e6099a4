"""Random weights for tests, drawn by NumPy from shapes alone: nothing is compiled for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def drawn(init: Callable[..., Any], *arguments: Any, seed: int = 0, scale: float = 0.2) -> Any:
    """Normal weights of the structure that `init(key, *arguments)` returns."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype), shapes)
