r"""Conditional flow matching with the linear path: how a generator is trained in the first place.

Sources: Lipman et al., arXiv 2210.02747; Ma et al., "SiT", arXiv 2401.08740 (the linear path and velocity prediction);
Ho and Salimans, arXiv 2207.12598 (label dropout).

With data x, noise e ~ N(0, I) and t ~ U(0, 1), t = 0 noise and t = 1 data,

    x_t = t x + (1 - t) e                                                   (1)
    L = E | v_theta(x_t, t, y) - (x - e) |^2,   mean over dimensions.       (2)

With probability `label_dropout` the label is the null class, so that the same network is also the unconditional one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.flow import path


def loss(
    velocity: Callable[..., Float[Array, "batch ..."]],
    params: PyTree,
    data: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    label_dropout: float,
    null_label: int,
) -> Float[Array, ""]:
    """The flow-matching loss (2).

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: What the loss is differentiated by.
        data: Latents (or pixels), float32.
        labels: Classes, int32.
        key: Draws noise, times and dropped labels.
        label_dropout: Probability of the null label, in [0, 1).
        null_label: The index of the null class.

    Returns:
        A float32 scalar, averaged over batch and dimensions.
    """
    noise_key, time_key, drop_key = jax.random.split(key, 3)
    noise = jax.random.normal(noise_key, data.shape, jnp.float32)
    t = jax.random.uniform(time_key, data.shape[:1])
    dropped = jax.random.bernoulli(drop_key, label_dropout, labels.shape)
    labels = jnp.where(dropped, null_label, labels)
    predicted = velocity(params, path.interpolate(data, noise, t), t, labels)  # (1)
    return jnp.mean((predicted - path.velocity_target(data, noise)) ** 2)  # (2)
