r"""Adjoint Matching with the local linear integrator: the second stage of Discriminator-Guided RL.

Sources: "Discriminator-Guided RL", arXiv 2606.19162, section 4 and App. F-H; Domingo-Enrich et al., arXiv 2409.08861.

The KL-regularised problem, over controls u = (2 / sigma)(v_theta - v_base) of the memoryless SDE (`flow/memoryless.py`),

    max_theta  E[ lambda r(X_1, y) ] - E[ 1/2 int |u|^2 dt ],     solved by   p* ~ p_base exp(lambda r),      (1)

is turned into a regression. `collect` rolls the current model out to X_0 .. X_K, sets the terminal adjoint

    A_K = - lambda d r(X_K, y) / d X_K                                                                         (2)

(through decoder, encoder and logit), and runs the lean adjoint A_k of the *base* model backwards. `loss` then matches

    l_k = | (2 / sigma_k)(v_theta(X_k, t_k) - v_base(X_k, t_k)) + sigma_k A_k |^2,                             (3)
    L = 1/2 sum_{k in S} l_k,                                                                                  (4)

with X and A constant. Completing (3) gives the form that is computed here: the buffer needs X and one target only,

    l_k = (4 / sigma_k^2) | v_theta(X_k, t_k) - T_k |^2,     T_k = v_base(X_k, t_k) - (sigma_k^2 / 2) A_k.     (5)

S is drawn afresh for each gradient step: ceil(0.4 K) indices, half with t < 0.6 and half with t >= 0.6.

Outlier mask, on the trajectory norms n = sqrt(sum_{k in S} l_k):

    tau <- rho tau + (1 - rho) min(q_alpha(n), c tau);     trajectories with n >= tau, or not finite, are dropped.   (6)

Where the paper is silent or contradicts itself: App. H prints the *mean* over S and I.1 says *sum*; the learning rate 1e-5
belongs to the sum, which is the default (`subset_reduction`). tau starts as q_alpha of the first step. n is taken for a whole
trajectory, over the steps in S. `Schedule` says what the offsets in sigma_k and u_k do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxdrl.flow.memoryless import Schedule, lean_adjoint, rollout

NEEDS = "trajectories"

Velocity = Callable[..., Float[Array, "batch ..."]]
Reward = Callable[[Float[Array, "batch ..."], Int[Array, " batch"]], Float[Array, " batch"]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of Adjoint Matching; the defaults are the paper's for SiT.

    Attributes:
        schedule: Time grid and integrator.
        reward_scale: lambda of (1), at least 0.
        timestep_fraction: Share of the K steps in S, in (0, 1].
        timestep_split: The time that parts the two halves of S.
        subset_reduction: "sum" as in (4), or "mean" over S (the paper's choice for RAE).
        outlier_mask: Whether (6) is applied; trajectories that are not finite are dropped in any case.
        outlier_quantile: alpha of (6).
        outlier_decay: rho of (6).
        outlier_cap: c of (6).
    """

    schedule: Schedule
    reward_scale: float = 10.0
    timestep_fraction: float = 0.4
    timestep_split: float = 0.6
    subset_reduction: Literal["sum", "mean"] = "sum"
    outlier_mask: bool = True
    outlier_quantile: float = 0.9
    outlier_decay: float = 0.9
    outlier_cap: float = 5.0


class Buffer(NamedTuple):
    """Trajectories of the current model, ready for regression; every array is a constant of the loss.

    Attributes:
        states: X_0 .. X_{K-1}, float32 [batch, K, ...].
        targets: T_0 .. T_{K-1} of (5), float32 [batch, K, ...]; bfloat16 would lose half of the last step's correction.
        labels: The condition, int32 [batch].
    """

    states: Float[Array, "batch steps ..."]
    targets: Float[Array, "batch steps ..."]
    labels: Int[Array, " batch"]


def collect(
    velocity: Velocity,
    params: PyTree,
    base_params: PyTree,
    reward: Reward,
    noise: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    settings: Settings,
) -> tuple[Buffer, dict[str, Float[Array, "..."]]]:
    """Rolls the model out and solves the adjoint: one refresh of the buffer.

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: The current model, theta.
        base_params: The base model.
        reward: `reward(x, y) -> [batch]` on the model's own space (the decoder is part of it), differentiable in x.
        noise: X_0, standard normal.
        labels: y.
        key: For the SDE's noise.
        settings: See `Settings`.

    Returns:
        The buffer, and metrics: `reward_mean`, `reward_std`, `control_energy` (the estimate of KL(p_theta | p_base), nats),
        `adjoint_norm` [K] (mean norm of A_k), `state_norm` [K] and `reward_gradient_norm`.
    """
    schedule = settings.schedule
    states, velocities = rollout(lambda x, t: velocity(params, x, t, labels), noise, key, schedule)
    rewards, pullback = jax.vjp(lambda x: reward(x, labels), states[-1])
    gradient = pullback(jnp.ones_like(rewards))[0]
    terminal = -settings.reward_scale * gradient  # (2)
    adjoints, base = lean_adjoint(lambda x, t: velocity(base_params, x, t, labels), states, terminal, schedule)
    gain = _per_step(schedule.gain, states[:-1])
    targets = base - 0.5 * gain**2 * adjoints  # (5)
    batch_first = lambda values: jax.lax.stop_gradient(jnp.moveaxis(values, 0, 1))  # noqa: E731
    buffer = Buffer(batch_first(states[:-1]), batch_first(targets), labels)
    control = _norms((2 / gain) * (velocities - base))
    metrics = {
        "control_energy": 0.5 * schedule.step_size * (control**2).sum(axis=0).mean(),
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(),
        "reward_gradient_norm": _norms(gradient[None]).mean(),
        "adjoint_norm": _norms(adjoints).mean(axis=1),
        "state_norm": _norms(states[:-1]).mean(axis=1),
    }
    return buffer, jax.lax.stop_gradient(metrics)


def draw_subset(key: Key[Array, ""], settings: Settings) -> Int[Array, " subset"]:
    """Draws S: ceil(fraction K) distinct step indices, half of them before `timestep_split` and half from it on.

    Args:
        key: A fresh key for each gradient step.
        settings: See `Settings`.

    Returns:
        int32 indices. Where one side of the split has too few steps, the other side gives more.
    """
    times = settings.schedule.times[:-1]
    size = max(1, math.ceil(settings.timestep_fraction * len(times) - 1e-9))
    early, late = int((times < settings.timestep_split).sum()), int((times >= settings.timestep_split).sum())
    num_late = min(late, max(size // 2, size - early))
    first, second = jax.random.split(key)
    chosen_early = jax.random.permutation(first, early)[: size - num_late]
    chosen_late = early + jax.random.permutation(second, late)[:num_late]
    return jnp.concatenate([chosen_early, chosen_late])


def loss(
    velocity: Velocity,
    params: PyTree,
    batch: Buffer,
    key: Key[Array, ""],
    threshold: Float[Array, ""],
    settings: Settings,
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]:
    """The Adjoint Matching loss (4) with the outlier mask (6).

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: theta, what the loss is differentiated by.
        batch: Part of a buffer.
        key: Draws S.
        threshold: tau of (6); 0 before the first step.
        settings: See `Settings`.

    Returns:
        The loss, averaged over the trajectories that are kept, and (new threshold, metrics).
    """
    subset = draw_subset(key, settings)
    states, targets = batch.states[:, subset], batch.targets[:, subset]
    finite = _finite(states) & _finite(targets)
    # A masked NaN still poisons the gradient (0 * NaN), so it is replaced before the network sees it.
    clean = finite.reshape(finite.shape + (1,) * (states.ndim - 1))
    states, targets = jnp.where(clean, states, 0.0), jnp.where(clean, targets, 0.0)
    predicted = _evaluate(velocity, params, states, batch.labels, subset, settings.schedule)
    gain = jnp.asarray(settings.schedule.gain, jnp.float32)[subset]
    squares = jnp.sum((predicted - targets) ** 2, axis=tuple(range(2, states.ndim)))
    per_step = 4 / gain**2 * squares  # (5)
    per_trajectory = per_step.sum(axis=1)
    keep, threshold = _outlier_mask(jnp.sqrt(jax.lax.stop_gradient(per_trajectory)), finite, threshold, settings)
    if settings.subset_reduction == "mean":
        per_trajectory = per_trajectory / len(subset)
    total = 0.5 * jnp.sum(jnp.where(keep, per_trajectory, 0.0))  # (4)
    value = total / jnp.maximum(keep.sum(), 1)
    return value, (threshold, {"loss": value, "masked_share": 1 - keep.mean(), "threshold": threshold})


def _evaluate(velocity, params, states, labels, subset, schedule: Schedule):
    """v_theta at the chosen steps of each trajectory: one flat batch for the network."""
    batch, steps = states.shape[:2]
    times = jnp.asarray(schedule.times, jnp.float32)[subset]
    flat = velocity(params, states.reshape((batch * steps, *states.shape[2:])), jnp.tile(times, batch), jnp.repeat(labels, steps))
    return flat.reshape(states.shape)


def _outlier_mask(
    norms: Float[Array, " batch"], finite: Bool[Array, " batch"], threshold: Float[Array, ""], settings: Settings
) -> tuple[Bool[Array, " batch"], Float[Array, ""]]:
    """Applies (6); returns which trajectories stay and the new threshold."""
    finite = finite & jnp.isfinite(norms)
    if not settings.outlier_mask:
        return finite, threshold
    quantile = jnp.nanquantile(jnp.where(finite, norms, jnp.nan), settings.outlier_quantile)
    rho = settings.outlier_decay
    moved = rho * threshold + (1 - rho) * jnp.minimum(quantile, settings.outlier_cap * threshold)
    moved = jnp.where(threshold > 0, moved, quantile)
    moved = jnp.where(finite.any(), moved, threshold)
    return finite & (norms < moved), moved


def _finite(values: Float[Array, "batch ..."]) -> Bool[Array, " batch"]:
    return jnp.isfinite(values).all(axis=tuple(range(1, values.ndim)))


def _norms(values: Float[Array, "steps batch ..."]) -> Float[Array, "steps batch"]:
    return jnp.sqrt(jnp.sum(values**2, axis=tuple(range(2, values.ndim))))


def _per_step(coefficients, values: Float[Array, "steps batch ..."]) -> Float[Array, "steps ..."]:
    return jnp.asarray(coefficients, jnp.float32).reshape((-1,) + (1,) * (values.ndim - 1))
