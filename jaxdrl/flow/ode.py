r"""Samplers of the probability-flow ODE on any time grid.

Sources: "Discriminator-Guided RL", arXiv 2606.19162, section 5 (Heun, 50 steps, the last one Euler); Li and He, "JiT",
arXiv 2511.13720 (the same); Zheng et al., "RAE", arXiv 2510.11690 (the shifted grid); Lu et al., "DPM-Solver++", arXiv 2211.01095
(2M), as "DiffusionNFT", arXiv 2509.16117, samples with it.

On a grid 0 = t_0 < ... < t_n = 1 with d = t_{i+1} - t_i,

    Euler:  x_{i+1} = x_i + d v(x_i, t_i)                                                    (1)
    Heun:   x_{i+1} = x_i + (d / 2)(v(x_i, t_i) + v(x_i + d v(x_i, t_i), t_{i+1}))           (2)

with Heun's last step replaced by (1): 2 n - 1 evaluations, and none at t = 1. With data predictions D_i = x_i + (1 - t_i) v_i and
h_i the step of log(t / (1 - t)), which is infinite at both ends of [0, 1],

    dpm2:   x_{i+1} = x_i + d (v_i + (h_i / (2 h_{i-1})) (D_i - D_{i-1}) / (1 - t_i))        (3)

with the first two steps and the last one replaced by (1): second order with n evaluations. Two steps are first because h_0, the step
from t = 0, is infinite; on a grid that starts later the first one alone is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

METHODS = ("heun", "euler", "dpm2")
Velocity = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]


def uniform_grid(num_steps: int) -> Float[Array, " points"]:
    """The grid i / n.

    Args:
        num_steps: n, at least 1.

    Returns:
        [n + 1] times from 0 to 1.

    Raises:
        ValueError: If n < 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return jnp.linspace(0.0, 1.0, num_steps + 1)


def shifted_grid(num_steps: int, shift: float, end: float = 1.0) -> Float[Array, " points"]:
    """The dimension-dependent shift of RAE, in this project's time: more of the steps near the noise.

    With s = 1 - t (1 at noise) the shift is s' = shift s / (1 + (shift - 1) s). RAE's sampler (Euler, "50 steps") takes 49 steps on a
    grid that stops short of the data: num_steps = 49, end = 0.999, shift = 6.928 at 256 pixels, last time 1 - 0.00689.

    Args:
        num_steps: n, at least 1.
        shift: sqrt(latent dimension / 4096) in the paper; 1 leaves the grid uniform.
        end: The last time before the shift, in (0, 1].

    Returns:
        [n + 1] times from 0 to 1 (or to the shifted `end`).

    Raises:
        ValueError: If n < 1, shift <= 0 or end is out of range.
    """
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    if not 0 < end <= 1:
        raise ValueError(f"end must be in (0, 1], got {end}")
    s = 1 - end * uniform_grid(num_steps)
    return 1 - shift * s / (1 + (shift - 1) * s)


def evaluations(num_steps: int, method: str) -> int:
    """How often a sampler calls the velocity.

    Args:
        num_steps: Steps.
        method: "heun", "euler" or "dpm2".

    Returns:
        2 n - 1 for Heun, n for the others.
    """
    return 2 * num_steps - 1 if method == "heun" else num_steps


def integrate(
    velocity: Velocity, x: Float[Array, "batch ..."], grid: Float[Array, " points"], *, method: str = "heun"
) -> Float[Array, "points batch ..."]:
    """Integrates dx = v dt along a grid and returns every state; the last is the sample.

    Args:
        velocity: v(x, t), guidance included.
        x: Noise, the state at grid[0].
        grid: Ascending times.
        method: "heun" (2), "euler" (1) or "dpm2" (3).

    Returns:
        States at all grid points, the first being `x`.

    Raises:
        ValueError: If the method is unknown.
    """
    states = _integrate(velocity, x, grid, method, keep=True)[1]
    return jnp.concatenate([x[None], states])


def sample(
    velocity: Velocity, x: Float[Array, "batch ..."], grid: Float[Array, " points"], *, method: str = "heun"
) -> Float[Array, "batch ..."]:
    """The end of `integrate`, with no other state kept in memory.

    Args:
        velocity: v(x, t), guidance included.
        x: Noise, the state at grid[0].
        grid: Ascending times.
        method: "heun" (2), "euler" (1) or "dpm2" (3).

    Returns:
        The state at the last time.

    Raises:
        ValueError: If the method is unknown.
    """
    return _integrate(velocity, x, grid, method, keep=False)[0]


def _integrate(velocity: Velocity, x: Any, grid: Any, method: str, keep: bool) -> tuple[Any, Any]:
    """Returns the last state and, where `keep` is set, the states at grid[1] .. grid[-1]."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")

    def slope(x, t):
        return velocity(x, jnp.full(x.shape[0], t, x.dtype))

    def euler(x, t, after):
        return x + (after - t) * slope(x, t)  # (1)

    def heun(x, t, after):
        first = slope(x, t)
        second = slope(x + (after - t) * first, after)
        return x + 0.5 * (after - t) * (first + second)  # (2)

    def step(x, times):
        new = (heun if method == "heun" else euler)(x, *times)
        # A stacked output that nobody reads is not always removed by the compiler, so it is not made.
        return new, new if keep else None

    def multistep(carry, inputs):
        x, before = carry
        t, after, weight = inputs
        value = slope(x, t)
        data = x + (1 - t) * value
        new = x + (after - t) * (value + weight * (data - before) / (1 - t))  # (3)
        return (new, data), new if keep else None

    if method == "dpm2":
        (last, _), states = jax.lax.scan(multistep, (x, x), (grid[:-1], grid[1:], _multistep_weights(grid)))
        return last, states
    if method == "euler":
        return jax.lax.scan(step, x, (grid[:-1], grid[1:]))
    states: Any
    before_last, states = jax.lax.scan(step, x, (grid[:-2], grid[1:-1]))
    last = euler(before_last, grid[-2], grid[-1])
    return last, jnp.concatenate([states, last[None]]) if keep else None


def _multistep_weights(grid: Float[Array, " points"]) -> Float[Array, " steps"]:
    """h_i / (2 h_{i-1}) of (3), 0 where a step is of first order."""
    h = jnp.diff(jnp.log(grid) - jnp.log1p(-grid))
    weights = jnp.concatenate([jnp.zeros(1, h.dtype), 0.5 * h[1:] / h[:-1]])
    return weights.at[-1].set(0.0)
