r"""SDE samplers of a flow-matching model, as SiT and REPA evaluate with them.

Source: Ma et al., "SiT", arXiv 2401.08740; willisma/SiT transport/{transport,integrators,path}.py; sihyun-yu/REPA samplers.py.

With the score s of the linear path and any w(t) >= 0,

    dX = (v(X, t) + w(t) s(X, t)) dt + sqrt(2 w(t)) dW,      s(x, t) = (t v(x, t) - x) / (1 - t)           (1)

has the marginals of the ODE. The authors' w (the papers' w_t is twice that), with norm c:

    constant  c        sigma  c (1 - t)        SBDM  c (1 - t) / t                                         (2)
    decreasing  (c cos(pi t) + 1)^2 / 4        increasing-decreasing  c sin^2(pi t)

The grid goes from 0 to 1 - h in n - 1 equal steps, and the closing step of size h adds no noise:

    mean  x + h (v + w s)        euler  x + h v        tweedie  x / t + (1 - t)^2 s / t        none  x      (3)

Defaults are those of SiT's command line: sigma, mean, h = 0.04, n = 250. REPA's sampler (w = 1 - t in its reversed time) is the same.
"SBDM" is infinite at t = 0: the authors' sampler starts there and gives no finite sample, so it is refused here. ("constant" stops
with a TypeError in the authors' code; here it works.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Velocity = Callable[[Float[Array, "batch ..."], Float[Array, " batch"]], Float[Array, "batch ..."]]
FORMS = ("constant", "sigma", "decreasing", "increasing-decreasing")
LAST_STEPS = ("mean", "euler", "tweedie", "none")


def diffusion(t: Float[Array, "*shape"], form: str = "sigma", norm: float = 1.0) -> Float[Array, "*shape"]:
    """w(t) of (2).

    Args:
        t: Times.
        form: One of `FORMS`.
        norm: c.

    Returns:
        w, at least 0.

    Raises:
        ValueError: If the form is unknown, or "SBDM".
    """
    if form == "SBDM":
        raise ValueError("form SBDM is infinite at t = 0, where sampling starts; choose one of " + ", ".join(FORMS))
    forms = {
        "constant": lambda: norm * jnp.ones_like(t),
        "sigma": lambda: norm * (1 - t),
        "decreasing": lambda: 0.25 * (norm * jnp.cos(jnp.pi * t) + 1) ** 2,
        "increasing-decreasing": lambda: norm * jnp.sin(jnp.pi * t) ** 2,
    }
    if form not in forms:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    return forms[form]()


def step_noise(key: Key[Array, ""], index: Int[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The noise of step `index`.

    Args:
        key: Of the sampler.
        index: From 0 on.
        shape: Of the state.

    Returns:
        Standard normal, float32.
    """
    return jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)


def sample(
    velocity: Velocity,
    x: Float[Array, "batch ..."],
    key: Key[Array, ""],
    *,
    num_steps: int = 250,
    method: str = "euler",
    form: str = "sigma",
    norm: float = 1.0,
    last_step: str = "mean",
    last_step_size: float = 0.04,
) -> Float[Array, "batch ..."]:
    """Integrates (1) from noise to data.

    Args:
        velocity: v(x, t), guided if wanted.
        x: Noise at t = 0.
        key: Drives dW; step k uses `step_noise(key, k)`.
        num_steps: n: n - 1 noisy steps and the closing one.
        method: "euler" (Euler-Maruyama), or "heun": noise first, then a deterministic Heun step.
        form: w of (2).
        norm: c of (2).
        last_step: Of (3); "none" integrates to t = 1 in n - 1 steps instead.
        last_step_size: h.

    Returns:
        Samples, float32.

    Raises:
        ValueError: If an option is unknown or out of range.
    """
    _check(num_steps, method, last_step, last_step_size)
    size = 0.0 if last_step == "none" else last_step_size
    times = jnp.linspace(0.0, 1.0 - size, num_steps)
    dt = times[1] - times[0]

    def drift(x, t):
        value = velocity(x, jnp.full(len(x), t))
        return value + diffusion(t, form, norm) * _score(value, x, t)

    def step(x, inputs):
        index, t = inputs
        kick = jnp.sqrt(2 * diffusion(t, form, norm) * dt) * step_noise(key, index, x.shape)
        if method == "euler":
            return x + dt * drift(x, t) + kick, None
        start = x + kick
        first = drift(start, t)
        second = drift(start + dt * first, t + dt)
        return start + 0.5 * dt * (first + second), None

    x, _ = jax.lax.scan(step, x.astype(jnp.float32), (jnp.arange(num_steps - 1), times[:-1]))
    return _close(velocity, drift, x, times[-1], last_step, size)


def _score(value, x, t):
    return (t * value - x) / (1 - t)


def _close(velocity: Velocity, drift, x, t, last_step: str, size: float):
    """The closing step (3)."""
    if last_step == "none":
        return x
    if last_step == "mean":
        return x + size * drift(x, t)
    value = velocity(x, jnp.full(len(x), t))
    return x + size * value if last_step == "euler" else x / t + (1 - t) ** 2 / t * _score(value, x, t)


def _check(num_steps: int, method: str, last_step: str, last_step_size: float) -> None:
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, got {num_steps}")
    if method not in ("euler", "heun"):
        raise ValueError(f"method must be euler or heun, got {method!r}")
    if last_step not in LAST_STEPS:
        raise ValueError(f"last_step must be one of {', '.join(LAST_STEPS)}, got {last_step!r}")
    if not 0 < last_step_size < 1:
        raise ValueError(f"last_step_size must be between 0 and 1, got {last_step_size}")
