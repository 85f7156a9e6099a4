"""Samples for measuring: balanced labels, and noise that depends on the seed and the sample's own number alone.

So two models get the same noise from the same seed, and the images do not depend on batch sizes or on how many hosts share the work.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl.backbones import Backbone
from jaxdrl.flow import guidance as guide
from jaxdrl.flow import ode


class Guidance(NamedTuple):
    """Classifier-free guidance: its scale, and the times (low, high) at which it acts."""

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)


def sample(
    network: Backbone,
    params: PyTree,
    *,
    num: int,
    seed: int,
    num_steps: int,
    batch_size: int,
    method: str = "heun",
    guidance: Guidance | None = None,
) -> tuple[Float[np.ndarray, "num ..."], Int[np.ndarray, " num"]]:
    """Draws samples on a uniform grid.

    Args:
        network: The generator.
        params: Its weights.
        num: How many.
        seed: Of the noise.
        num_steps: Of the sampler.
        batch_size: Samples a compiled call; the last call is padded.
        method: "heun" or "euler".
        guidance: None is guidance-free.

    Returns:
        (float32 samples, int32 labels); label i is i modulo the number of classes.
    """
    function = _compiled(network, num_steps, method, guidance is not None)
    scale, interval = (guidance.scale, guidance.interval) if guidance else (1.0, (0.0, 1.0))
    size, parts = min(batch_size, num), []
    for start in range(0, num, size):
        index = jnp.arange(start, start + size)
        parts.append(np.asarray(function(params, jax.random.key(seed), index, jnp.float32(scale), jnp.array(interval))))
    return np.concatenate(parts)[:num], labels(num, network.num_classes)


def labels(num: int, num_classes: int) -> Int[np.ndarray, " num"]:
    """Balanced labels.

    Args:
        num: How many.
        num_classes: Classes.

    Returns:
        0, 1, ..., num_classes - 1, 0, 1, ...
    """
    return (np.arange(num) % num_classes).astype(np.int32)


def noise(key: Array, index: Int[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch ..."]:
    """The noise of samples by number.

    Args:
        key: Of the seed.
        index: Numbers of samples.
        shape: Of one sample.

    Returns:
        Standard normal.
    """
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(index)


@lru_cache(maxsize=32)
def _compiled(network: Backbone, num_steps: int, method: str, guided: bool):
    """One compiled sampler for each network, number of steps and kind; scale and interval are arguments."""

    def draw(params, key, index, scale, interval):
        x = noise(key, index, network.sample_shape)
        y = (index % network.num_classes).astype(jnp.int32)
        velocity = partial(_velocity, network, params, y)
        if guided:
            velocity = guide.classifier_free(
                velocity, partial(_velocity, network, params, jnp.full_like(y, network.null_label)), scale, interval
            )
        return ode.sample(velocity, x, ode.uniform_grid(num_steps), method=method)

    return jax.jit(draw)


def _velocity(network: Backbone, params: PyTree, y: Int[Array, " batch"], x, t):
    return network.velocity(params, x, t, y)
