r"""Guidance: two velocities made into one, for the samplers of `ode.py`.

Sources: Ho and Salimans, arXiv 2207.12598 (classifier-free); Kynkaanniemi et al., arXiv 2404.07724 (intervals); Karras et al.,
arXiv 2406.02507 (autoguidance); "JiT", arXiv 2511.13720, denoiser.py (which ends of an interval belong to it).

    v = v_uncond + w (v_cond - v_uncond)            inside the interval, v_cond outside        (1)
    v = v_weak + w (v_strong - v_weak)                                                         (2)
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdrl.flow.path import expand_time

_EDGE = 1e-6  # float32 times that stand for the edge itself
Velocity = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]


def classifier_free(
    conditional: Velocity,
    unconditional: Velocity,
    scale: float | Float[Array, ""],
    interval: tuple[float, float] | Float[Array, "2"] = (0.0, 1.0),
    channels: int | None = None,
    closed: bool = False,
) -> Velocity:
    """Classifier-free guidance (1).

    Args:
        conditional: v(x, t) with the label.
        unconditional: v(x, t) with the null label.
        scale: w; 1 is no guidance.
        interval: (low, high): guided where t < high and (low = 0 or t > low), JiT's rule; high = 1 includes t = 1.
        closed: Both ends belong to the interval (REPA's and RAE's rule) instead of JiT's. Their times run the other way: their
            [low, high] is (1 - high, 1 - low) here.
        channels: Guide the first so many channels only (SiT and DiT: 3 of 4); None guides all.

    Returns:
        The guided velocity.
    """

    def velocity(x, t):
        cond, uncond = conditional(x, t), unconditional(x, t)
        low, high = interval[0], interval[1]
        if closed:
            inside = (t >= low - _EDGE) & (t <= high + _EDGE)
        else:
            inside = ((t < high) | (jnp.asarray(high) >= 1)) & ((t > low) | (jnp.asarray(low) == 0))
        weight = expand_time(jnp.where(inside, scale, 1.0), x)
        guided = uncond + weight * (cond - uncond)
        if channels is None:
            return guided
        return jnp.concatenate([guided[..., :channels], cond[..., channels:]], axis=-1)

    return velocity


def autoguidance(strong: Velocity, weak: Velocity, scale: float) -> Velocity:
    """Autoguidance (2), with the base model as the weak one of a tuned model.

    Args:
        strong: v(x, t) of the better model.
        weak: v(x, t) of the worse one.
        scale: w; 1 is the strong model alone.

    Returns:
        The guided velocity.
    """

    def velocity(x, t):
        reference = weak(x, t)
        return reference + scale * (strong(x, t) - reference)

    return velocity
