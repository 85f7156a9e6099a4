r"""Flow-GRPO: clipped policy gradients on the steps of an SDE sampler.

Sources: Liu et al., "Flow-GRPO", arXiv 2505.05470; its code, yifan123/flow_grpo at ac4c86e (sd3_sde_with_logprob.py, train_sd3.py);
windows: "MixGRPO", arXiv 2507.21802. Both have noise at their t = 1 and the velocity noise - data; here t = 0 is noise and
v = data - noise (their -v at 1 - t).

The SDE with the marginals of the flow, on a grid with step D and noise level a (0.7):

    dX = [v - sigma^2 / (2 (1 - t)) (X - t v)] dt + sigma dW,       sigma = a sqrt((1 - t) / t),                     (1)
    m = X (1 - sigma^2 D / (2 (1 - t))) + v (1 + sigma^2 t / (2 (1 - t))) D,     X' = m + sigma sqrt(D) xi.          (2)

At t = 0, sigma = a / sqrt(t_1) with the first positive time t_1. a = sqrt(2) is the memoryless SDE with Euler-Maruyama; with
`memoryless` the steps m = a_k X + b_k v, deviation c_k, are those of `flow/memoryless.py`, the local linear integrator included.
A step is a Gaussian policy: log p = log N(X'; m, sigma^2 D), averaged over dimensions. With the rollout's own log p,

    rho = exp(log p_theta - log p_old),                                                                              (3)
    l = - min(A rho, A clip(rho, 1 - e, 1 + e)),       A clipped to +-A_max,                                         (4)
    L = mean over samples and steps of l + beta KL,    KL = (m_theta - m_ref)^2 / (2 sigma^2 D)                      (5)
                                                          = (D / 2)(sigma t / (2 (1 - t)) + 1 / sigma)^2 (v_theta - v_ref)^2.

First invariant: rho = 1 before the first update (metric `ratio_deviation`). States are float32 for its sake.

Where paper and code differ: the code's KL lacks the D, that is D times (5). The paper's form is the default (`kl_form`), with
beta = .004: the published .04 belongs to the code's form, and is the same penalty at 10 equal steps. The paper writes log p and KL
as sums over dimensions, the code takes means; means are the default (`reduction`), because the clip range e = 1e-4 belongs to them.
The code drops samples whose advantage is 0 (their group had one reward only), the KL included (`drop_zero`), and trains on the
first int(0.99 T) of the T steps.

A window of w steps (`window`) is noisy and trained on, all other steps are the ODE's: less to train on, and the reward of a sample
is due to few actions. Each call of `collect` draws the window's place.

K rewards: as in `nft`, advantages [batch, K] give [K + 1] losses from one forward pass, the KL term last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.flow.memoryless import Schedule

NEEDS = "trajectories"

Velocity = Callable[..., Float[Array, "batch ..."]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of Flow-GRPO; the defaults are the paper's for GenEval and OCR.

    Attributes:
        num_steps: T, at least 2.
        noise_level: a of (1), above 0: the ODE has no log-probabilities.
        shift: Of the grid, as in `flow.ode.shifted_grid`; SD3's is 3.
        memoryless: Takes the place of the three above.
        window: w, or 0: every step is noisy.
        window_range: (first, end) of the steps in which the window lies, or, without a window, that are trained on; None: all that
            can be.
        timestep_fraction: The share of the steps, from the first on, that can be trained on, in (0, 1].
        clip_range: e of (4), above 0.
        advantage_limit: A_max of (4), above 0.
        kl_weight: beta of (5), at least 0; at 0 the reference is never evaluated.
        kl_form: "paper", (5), or "code": D times that.
        reduction: "mean" or "sum" over dimensions, of log p and KL.
        drop_zero: Whether samples with A = 0 count nowhere.
    """

    num_steps: int = 10
    noise_level: float = 0.7
    shift: float = 1.0
    memoryless: Schedule | None = None
    window: int = 0
    window_range: tuple[int, int] | None = None
    timestep_fraction: float = 0.99
    clip_range: float = 1e-4
    advantage_limit: float = 5.0
    kl_weight: float = 0.004
    kl_form: str = "paper"
    reduction: str = "mean"
    drop_zero: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: If a value is unknown or out of range.
        """
        checks: dict[str, Any] = {
            "num_steps must be at least 2": self.num_steps >= 2,
            "noise_level must be above 0, the ODE has no log-probabilities": self.noise_level > 0,
            "shift must be above 0": self.shift > 0,
            "timestep_fraction must be in (0, 1]": 0 < self.timestep_fraction <= 1,
            "clip_range must be above 0": self.clip_range > 0,
            "advantage_limit must be above 0": self.advantage_limit > 0,
            "kl_weight must be at least 0": self.kl_weight >= 0,
            "kl_form must be paper or code": self.kl_form in ("paper", "code"),
            "reduction must be mean or sum": self.reduction in ("mean", "sum"),
            "window must be at least 0": self.window >= 0,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(f"flow_grpo.Settings: {message}")
        low, high = self.trainable
        if not 0 <= low < high <= self._last or self.window > high - low:
            place = f"window {self.window} and window_range {(low, high)}"
            raise ValueError(f"flow_grpo.Settings: {place} must fit into the steps {(0, self._last)}")

    @property
    def times(self) -> np.ndarray:
        """t_0 .. t_T, float64 [T + 1]."""
        if self.memoryless:
            return self.memoryless.times
        s = 1 - np.arange(self.num_steps + 1) / self.num_steps
        return 1 - self.shift * s / (1 + (self.shift - 1) * s)

    @property
    def coefficients(self) -> np.ndarray:
        """a, b and c of the steps m = a X + b v, X' = m + c xi: float64 [T, 3]."""
        if self.memoryless:
            return self.memoryless.forward_coefficients()
        t, step = self.times[:-1], np.diff(self.times)
        variance = self.noise_level**2 * (1 - t) / np.where(t > 0, t, self.times[1])  # sigma^2 of (1)
        half = variance / (2 * (1 - t))
        return np.stack([1 - half * step, (1 + half * t) * step, np.sqrt(variance * step)], axis=1)  # (2)

    @property
    def _last(self) -> int:
        """One past the last step that can be trained on: a step without noise cannot."""
        noisy = int((self.coefficients[:, 2] > 0).sum())
        return max(1, min(noisy, int(self.timestep_fraction * len(self.coefficients))))

    @property
    def trainable(self) -> tuple[int, int]:
        """(first, end) of the steps that may be trained on."""
        return self.window_range or (0, self._last)

    @property
    def num_trained(self) -> int:
        """How many steps of a trajectory are trained on."""
        low, high = self.trainable
        return self.window or high - low


class Buffer(NamedTuple):
    """Rollouts of the old policy; the first axis of everything is the batch.

    Attributes:
        samples: X_T, for the reward.
        labels: The condition, int32.
        states: The trained steps' states and the one after them, float32 [batch, steps + 1, ...].
        steps: Their indices, int32 [batch, steps].
        log_probs: log p_old, float32 [batch, steps].
        advantages: A, [batch] or [batch, K]; NaN: not defined. None until `buffer._replace(advantages=a.T)`, with `a` from
            `advantages.group_advantages`, [batch] or [K, batch].
    """

    samples: Float[Array, "batch ..."]
    labels: Int[Array, " batch"]
    states: Float[Array, "batch states ..."]
    steps: Int[Array, "batch steps"]
    log_probs: Float[Array, "batch steps"]
    advantages: Float[Array, "batch *k"] | None = None


def log_probability(
    after: Float[Array, "batch ..."], mean: Float[Array, "batch ..."], deviation: Float[Array, " batch"], settings: Settings
) -> Float[Array, " batch"]:
    """Log N(X'; m, c^2) of a step, averaged or summed over dimensions.

    Args:
        after: X'.
        mean: m.
        deviation: c, above 0.
        settings: See `Settings`.

    Returns:
        One value a sample.
    """
    c = _expand(deviation, after)
    return _reduce(-0.5 * ((after - mean) / c) ** 2 - jnp.log(c) - 0.5 * jnp.log(2 * jnp.pi), settings)


def collect(
    velocity: Velocity,
    params: PyTree,
    noise: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    settings: Settings,
) -> tuple[Buffer, dict[str, Float[Array, ""]]]:
    """Rolls the current policy out: one refresh of the buffer.

    Args:
        velocity: `velocity(params, x, t, y)`; with guidance, of the guided model.
        params: The policy that samples.
        noise: X_0, standard normal.
        labels: y.
        key: Draws the noise of the steps and the place of the window.
        settings: See `Settings`.

    Returns:
        The buffer, without advantages, and metrics: `sample_norm` (the mean square of X_T) and `log_prob` (the mean).
    """
    noise_key, window_key = jax.random.split(key)
    count, (low, high) = settings.num_trained, settings.trainable
    start = jax.random.randint(window_key, (), low, high - count + 1)
    x, times, noisy = noise.astype(jnp.float32), settings.times, jnp.asarray(settings.coefficients, jnp.float32)
    indices = jnp.arange(len(noisy))
    if settings.window:
        inside = (indices >= start) & (indices < start + count)
        steps = np.diff(times)
        still = jnp.asarray(np.stack([np.ones_like(steps), steps, np.zeros_like(steps)], axis=1), jnp.float32)
        noisy = jnp.where(inside[:, None], noisy, still)

    def step(x, inputs):
        index, t, (a, b, c) = inputs
        mean = a * x + b * velocity(params, x, jnp.full(len(x), t), labels)
        after = mean + c * jax.random.normal(jax.random.fold_in(noise_key, index), x.shape, jnp.float32)  # (2)
        log_prob = log_probability(after, mean, jnp.full(len(x), jnp.where(c > 0, c, 1.0)), settings)
        return after, (after, log_prob)

    inputs = (indices, jnp.asarray(times[:-1], jnp.float32), tuple(noisy.T))
    last, (states, log_probs) = jax.lax.scan(step, x, inputs)
    states = jax.lax.dynamic_slice_in_dim(jnp.concatenate([x[None], states]), start, count + 1)
    log_probs = jax.lax.dynamic_slice_in_dim(log_probs, start, count)
    buffer = Buffer(
        samples=last,
        labels=labels,
        states=jnp.moveaxis(states, 0, 1),
        steps=jnp.broadcast_to(start + jnp.arange(count), (len(x), count)),
        log_probs=log_probs.T,
    )
    metrics = {"sample_norm": jnp.mean(last**2), "log_prob": log_probs.mean()}
    return jax.lax.stop_gradient((buffer, metrics))


def loss(
    velocity: Velocity, params: PyTree, reference_params: PyTree, batch: Buffer, settings: Settings
) -> tuple[Float[Array, "*k"], tuple[Float[Array, "*k"], dict[str, tuple[Float[Array, ""], Float[Array, ""]]]]]:
    """The loss (5) as a sum and its weight, for `balancing.accumulation`.

    A trajectory that is not finite, or whose advantages are all NaN (or 0, with `drop_zero`), counts nowhere.

    Args:
        velocity: As in `collect`.
        params: theta, what the loss is differentiated by.
        reference_params: theta_ref; not read if kl_weight is 0.
        batch: Part of a buffer, with advantages.
        settings: See `Settings`.

    Returns:
        (sum, (weight, metrics)). For advantages [batch]: (5), averaged over steps and summed over samples, and the number of
        samples. For [batch, K]: [K + 1] sums, (4) of each reward, then beta times the KL term; and the number of samples that have
        each. Metrics are name -> (sum, weight): `loss` ([batch] only), `policy_loss`, `kl`, `ratio_deviation` (of rho from 1),
        `approximate_kl` (half the mean square of log rho), `clipped_share` (of steps) and `sample_norm`.

    Raises:
        ValueError: If the batch has no advantages.
    """
    if batch.advantages is None:
        raise ValueError("the buffer has no advantages yet: buffer._replace(advantages=advantages.T)")
    size, count = batch.steps.shape
    # A masked NaN still poisons the gradient (0 * NaN), so it is replaced before the network sees it.
    finite = jnp.isfinite(batch.states).all(axis=tuple(range(1, batch.states.ndim))) & jnp.isfinite(batch.log_probs).all(axis=1)
    states = jnp.where(_expand(finite, batch.states), batch.states, 0.0)
    advantages = batch.advantages.reshape(size, -1)
    kept = jnp.isfinite(advantages) & finite[:, None]
    if settings.drop_zero:
        kept &= advantages != 0
    flat = lambda values: values.reshape(size * count, *values.shape[2:])  # noqa: E731
    x, after, steps = flat(states[:, :-1]), flat(states[:, 1:]), flat(batch.steps)
    t, labels = jnp.asarray(settings.times[:-1], jnp.float32)[steps], jnp.repeat(batch.labels, count)
    a, b, c = jnp.asarray(settings.coefficients, jnp.float32)[steps].T
    current = velocity(params, x, t, labels)
    log_prob = log_probability(after, _expand(a, x) * x + _expand(b, x) * current, c, settings)
    log_ratio = log_prob.reshape(size, count) - jnp.where(finite[:, None], batch.log_probs, 0.0)
    ratio = jnp.where(finite[:, None], jnp.exp(log_ratio), 1.0)  # (3)
    clipped = jnp.clip(ratio, 1 - settings.clip_range, 1 + settings.clip_range)
    known = jnp.clip(jnp.where(kept, advantages, 0.0), -settings.advantage_limit, settings.advantage_limit)[:, None]
    policy = -jnp.minimum(known * ratio[..., None], known * clipped[..., None]).mean(axis=1)  # (4), [batch, K]
    used = kept.any(axis=1).astype(jnp.float32)
    samples, counts = used.sum(), kept.sum(axis=0).astype(jnp.float32)
    over_steps = lambda values: ((used[:, None] * values).sum(), samples * count)  # noqa: E731
    outside = (jnp.abs(ratio - 1) > settings.clip_range).astype(jnp.float32)
    square = jnp.where(finite, jnp.mean(batch.samples**2, axis=tuple(range(1, batch.samples.ndim))), 0.0)
    metrics = {
        "policy_loss": (policy.sum(), counts.sum()),
        "ratio_deviation": over_steps(jnp.abs(ratio - 1)),
        "approximate_kl": over_steps(0.5 * jnp.where(finite[:, None], log_ratio, 0.0) ** 2),
        "clipped_share": over_steps(outside),
        "sample_norm": ((used * square).sum(), samples),
    }
    divergence = jnp.zeros(())
    if settings.kl_weight > 0:
        reference = jax.lax.stop_gradient(velocity(reference_params, x, t, labels))
        per_step = _divergence(current, reference, b, c, steps, settings)
        divergence = (used * per_step.reshape(size, count).mean(axis=1)).sum()
        metrics["kl"] = (divergence, samples)
    divergence = settings.kl_weight * divergence
    if batch.advantages.ndim == 1:
        total = policy.sum() + divergence  # (5)
        return total, (samples, jax.lax.stop_gradient(metrics | {"loss": (total, samples)}))
    total = jnp.append(policy.sum(axis=0), divergence)
    return total, (jnp.append(counts, samples), jax.lax.stop_gradient(metrics))


def _divergence(current, reference, b, c, steps, settings: Settings):
    """The KL of (5) for each step: m_theta - m_ref = b (v_theta - v_ref), and c^2 = sigma^2 D."""
    divergence = _reduce((_expand(b / c, current) * (current - reference)) ** 2, settings) / 2
    return divergence * jnp.asarray(np.diff(settings.times), jnp.float32)[steps] if settings.kl_form == "code" else divergence


def _reduce(values, settings: Settings):
    axes = tuple(range(1, values.ndim))
    return values.mean(axis=axes) if settings.reduction == "mean" else values.sum(axis=axes)


def _expand(values, like):
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
