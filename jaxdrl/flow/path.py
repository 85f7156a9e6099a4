r"""The linear path between noise and data, and the conversions between what a network may predict on it.

Sources: Lipman et al., arXiv 2210.02747; Ma et al., "SiT", arXiv 2401.08740, section 2.

With t = 0 noise and t = 1 data, e ~ N(0, I) and data x,

    x_t = t x + (1 - t) e                              (1)
    v(x_t, t) = E[x - e | x_t]                         (2)
    E[x | x_t] = x_t + (1 - t) v                       (3)
    E[e | x_t] = x_t - t v                             (4)
    score = grad log p_t(x_t) = (t v - x_t) / (1 - t) = -E[e | x_t] / (1 - t)      (5)

Each of velocity, data, noise and score determines the others, but not at every time: (4) cannot be solved for v at t = 0, nor
(3) at t = 1, and (5) has no finite value at t = 1 unless the noise estimate is 0 there.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

PREDICTIONS = ("velocity", "data", "noise", "score")


def expand_time(t: Float[Array, " batch"], like: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """Gives times trailing axes of size 1, so that they broadcast against samples.

    Args:
        t: Times.
        like: Samples.

    Returns:
        t with the rank of `like`.
    """
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def interpolate(
    data: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], t: Float[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """The path (1).

    Args:
        data: x.
        noise: e.
        t: Times in [0, 1].

    Returns:
        x_t.
    """
    t = expand_time(t, data)
    return t * data + (1 - t) * noise


def velocity_target(data: Float[Array, "batch ..."], noise: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """What a velocity network regresses on, (2): x - e.

    Args:
        data: x.
        noise: e.

    Returns:
        The target.
    """
    return data - noise


def convert(
    value: Float[Array, "batch ..."],
    x: Float[Array, "batch ..."],
    t: Float[Array, " batch"],
    *,
    source: str,
    target: str,
) -> Float[Array, "batch ..."]:
    """Converts one prediction into another through the velocity, (3) to (5).

    Args:
        value: The prediction at (x, t).
        x: x_t.
        t: Times, strictly inside (0, 1) unless the conversion is defined there.
        source: What `value` is.
        target: What is wanted.

    Returns:
        The wanted prediction.

    Raises:
        ValueError: If a name is unknown.
    """
    if source not in PREDICTIONS or target not in PREDICTIONS:
        raise ValueError(f"source and target must be among {', '.join(PREDICTIONS)}; got {source!r} and {target!r}")
    if source == target:
        return value
    t = expand_time(t, x)
    if source == "velocity":
        velocity = value
    elif source == "data":
        velocity = (value - x) / (1 - t)  # (3)
    elif source == "noise":
        velocity = (x - value) / t  # (4)
    else:
        velocity = (x + (1 - t) * value) / t  # (5)
    results = {
        "velocity": lambda: velocity,
        "data": lambda: x + (1 - t) * velocity,
        "noise": lambda: x - t * velocity,
        "score": lambda: (t * velocity - x) / (1 - t),
    }
    return jnp.asarray(results[target]())
