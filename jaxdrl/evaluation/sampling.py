"""Samples for measuring: balanced labels, and noise that depends on the seed and the sample's own number alone.

So two models get the same noise from the same seed, and the images do not depend on batch sizes or on how many hosts share the work.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl.backbones import Backbone
from jaxdrl.evaluation.local_devices import by_rows
from jaxdrl.flow import guidance as guide
from jaxdrl.flow import ode


class Guidance(NamedTuple):
    """Classifier-free guidance: its scale, and the times (low, high) at which it acts."""

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)


class Solver(NamedTuple):
    """How the ODE is solved.

    Attributes:
        num_steps: Steps.
        method: "heun" or "euler".
        time_shift: Of `ode.shifted_grid`; 1 is uniform.
        time_end: Of `ode.shifted_grid`.
        guidance_channels: Guide the first so many channels; None guides all.
    """

    num_steps: int
    method: str = "heun"
    time_shift: float = 1.0
    time_end: float = 1.0
    guidance_channels: int | None = None

    def grid(self) -> Float[Array, " points"]:
        """The times."""
        if (self.time_shift, self.time_end) == (1.0, 1.0):
            return ode.uniform_grid(self.num_steps)
        return ode.shifted_grid(self.num_steps, self.time_shift, self.time_end)


def sample(
    network: Backbone,
    params: PyTree,
    solver: Solver,
    *,
    num: int,
    seed: int,
    batch_size: int,
    guidance: Guidance | None = None,
    finish: Callable[[Float[np.ndarray, "batch ..."]], np.ndarray] = lambda latents: latents,
    first: int = 0,
) -> tuple[np.ndarray, Int[np.ndarray, " num"]]:
    """Draws samples.

    Args:
        network: The generator.
        params: Its weights.
        solver: Steps, method and grid.
        num: How many.
        seed: Of the noise.
        batch_size: Samples a device and compiled call; the last call is padded.
        guidance: None is guidance-free.
        finish: Applied to the samples of each call; what it returns is kept.
        first: Number of the first sample: samples first .. first + num - 1 of the endless row that the seed defines.

    Returns:
        (samples, float32 unless `finish` makes something else of them, and int32 labels); sample i has label i modulo the number of
        classes.
    """
    size, parts = min(batch_size * jax.local_device_count(), num), []
    draw = sampler(network, params, solver, seed=seed, guidance=guidance)
    for start in range(0, num, size):
        parts.append(finish(draw(np.arange(first + start, first + start + size, dtype=np.int32))[: num - start]))
    return np.concatenate(parts), labels(num, network.num_classes, first)


def sampler(
    network: Backbone, params: PyTree, solver: Solver, *, seed: int, guidance: Guidance | None = None
) -> Callable[[Int[np.ndarray, " batch"]], Float[np.ndarray, "batch ..."]]:
    """One compiled program that draws samples by their numbers, on all devices of this process.

    Args:
        network: The generator.
        params: Its weights.
        solver: Steps, method and grid.
        seed: Of the noise.
        guidance: None is guidance-free.

    Returns:
        Numbers of samples -> samples, on the host.
    """
    scale, interval = (guidance.scale, guidance.interval) if guidance else (1.0, (0.0, 1.0))
    constants = (params, jax.random.key_data(jax.random.key(seed)), np.float32(scale), np.array(interval, np.float32))
    return by_rows(_program(network, solver, guidance is not None), constants)


def labels(num: int, num_classes: int, first: int = 0) -> Int[np.ndarray, " num"]:
    """Balanced labels.

    Args:
        num: How many.
        num_classes: Classes.
        first: Number of the first sample.

    Returns:
        0, 1, ..., num_classes - 1, 0, 1, ... from the place where sample `first` stands.
    """
    return ((first + np.arange(num)) % num_classes).astype(np.int32)


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
def _program(network: Backbone, solver: Solver, guided: bool):
    """One function for each network, solver and kind, so that it is compiled once; scale and interval are arguments."""

    def draw(constants, index):
        params, key, scale, interval = constants
        x = noise(jax.random.wrap_key_data(key), index, network.sample_shape)
        y = (index % network.num_classes).astype(jnp.int32)
        velocity = partial(_velocity, network, params, y)
        if guided:
            null = partial(_velocity, network, params, jnp.full_like(y, network.null_label))
            velocity = guide.classifier_free(velocity, null, scale, interval, solver.guidance_channels)
        return ode.sample(velocity, x, solver.grid(), method=solver.method)

    return draw


def _velocity(network: Backbone, params: PyTree, y: Int[Array, " batch"], x, t):
    return network.velocity(params, x, t, y)
