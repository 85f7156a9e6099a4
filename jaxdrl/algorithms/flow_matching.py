r"""Conditional flow matching with the linear path: how a generator is trained in the first place.

Sources: Lipman et al., arXiv 2210.02747; Ma et al., "SiT", arXiv 2401.08740 (the linear path and velocity prediction);
Ho and Salimans, arXiv 2207.12598 (label dropout).

With data x, noise e ~ N(0, I) and t ~ U(0, 1), t = 0 noise and t = 1 data,

    x_t = t x + (1 - t) e                                                   (1)
    L = E | v_theta(x_t, t, y) - (x - e) |^2,   mean over dimensions.       (2)

Other laws of t than the uniform one (`TimeLaw`): JiT draws t = sigmoid(-0.8 + 0.8 n), arXiv 2511.13720; RAE draws the noise level
1 - t = s from sigmoid(n) and shifts it with the dimension d of a latent, arXiv 2510.11690,

    s <- a s / (1 + (a - 1) s),    a = sqrt(d / 4096).                      (3)

JiT also keeps its target finite near the data, as its velocity: (x - x_t) / max(1 - t, 0.05) in place of x - e.   (4)

With probability `label_dropout` the label is the null class, so that the same network is also the unconditional one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.flow import path


@dataclass(frozen=True, kw_only=True)
class TimeLaw:
    """How times are drawn.

    Attributes:
        kind: "uniform", or "logit_normal": sigmoid(mean + std n).
        mean: Of the logit.
        std: Of the logit, positive.
        shift: a of (3), positive; more than 1 draws more times near the noise.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If the kind is unknown, or std or shift are not positive.
        """
        if self.kind not in ("uniform", "logit_normal"):
            raise ValueError(f"the law of times must be uniform or logit_normal, got {self.kind!r}")
        if self.std <= 0 or self.shift <= 0:
            raise ValueError(f"std ({self.std}) and shift ({self.shift}) of the law of times must be positive")

    def draw(self, key: Key[Array, ""], num: int) -> Float[Array, " num"]:
        """Draws times.

        Args:
            key: A key.
            num: How many.

        Returns:
            Times in [0, 1]; 0 is noise.
        """
        if self.kind == "uniform":
            t = jax.random.uniform(key, (num,))
        else:
            t = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (num,)))
        if self.shift == 1:
            return t
        return 1 - self.shift * (1 - t) / (1 + (self.shift - 1) * (1 - t))  # (3)


def target(
    data: Float[Array, "batch ..."], noise: Float[Array, "batch ..."], t: Float[Array, " batch"], eps: float = 0.0
) -> Float[Array, "batch ..."]:
    """What the velocity is trained towards.

    Args:
        data: x.
        noise: e.
        t: Times.
        eps: 0 gives x - e; JiT's 0.05 gives (4).

    Returns:
        The target.
    """
    difference = path.velocity_target(data, noise)
    if eps == 0:
        return difference
    return difference * path.expand_time((1 - t) / jnp.maximum(1 - t, eps), data)


def loss(
    velocity: Callable[..., Float[Array, "batch ..."]],
    params: PyTree,
    data: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    label_dropout: float,
    null_label: int,
    times: TimeLaw | None = None,
    target_eps: float = 0.0,
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
        times: The law of t; None: uniform.
        target_eps: See `target`.

    Returns:
        A float32 scalar, averaged over batch and dimensions.
    """
    noise_key, time_key, drop_key = jax.random.split(key, 3)
    noise = jax.random.normal(noise_key, data.shape, jnp.float32)
    t = (times or TimeLaw()).draw(time_key, len(data))
    dropped = jax.random.bernoulli(drop_key, label_dropout, labels.shape)
    labels = jnp.where(dropped, null_label, labels)
    predicted = velocity(params, path.interpolate(data, noise, t), t, labels)  # (1)
    return jnp.mean((predicted - target(data, noise, t, target_eps)) ** 2)  # (2)
