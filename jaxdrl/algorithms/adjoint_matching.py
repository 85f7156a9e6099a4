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

Several rewards r_1 .. r_m. The lean adjoint is linear in its terminal value, so that the adjoints

    A^i_K = - lambda d r_i(X_K, y) / d X_K                                                                     (7)

share one rollout and one linearisation of the base, and sum_i c_i A^i is the adjoint of sum_i c_i r_i. With it in (3), and
D_k = v_theta(X_k, t_k) - v_base(X_k, t_k), the loss (4) is affine in the weights c, up to what theta does not move:

    L(c) = C + sum_i c_i S_i + const,                                                                          (8)
    C = sum_{k in S} (2 / sigma_k^2) | D_k |^2,     S_i = sum_{k in S} 2 <A^i_k, D_k>.                         (9)

`collect` is for weights that are known: rewards are summed before the one adjoint, which costs what one reward costs, and
p* ~ p_base exp(lambda sum_i c_i r_i). Ones (a sum) pull m times as hard as lambda says, 1 / m (a mean) as hard.
`collect_per_reward` keeps every A^i for a rule that finds c at each step, MARBLE (arXiv 2605.06507), whose Gram matrix is that of
grad S_i. The control cost C is common to all rewards and stays outside the quadratic program, as MARBLE's KL term does: an update is
grad C + n sum_i alpha_i u_i, as hard as a mean.

A reward that does not apply to a sample (NaN) has A^i = 0 there. S_i and C are averages over the same trajectories all the same, so
that c = 1 gives the gradient of the summed reward. (6) looks at n for fixed weights, `Settings.reward_weights`, in both cases: which
trajectories count does not depend on the program.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxdrl.flow.memoryless import Schedule, lean_adjoint, lean_adjoints, rollout

NEEDS = "trajectories"

Velocity = Callable[..., Float[Array, "batch ..."]]
Reward = Callable[[Float[Array, "batch ..."], Int[Array, " batch"]], Float[Array, "batch *m"]]
Sums = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


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
        reward_weights: c of (8), one a reward, where there are several: of their sum, and of the norms in (6).
        states_dtype: Of X_k in the buffer, "float32" or "bfloat16". The trajectory is integrated in float32; v_theta, v_base and its
            linearisation are evaluated at X_k as it is kept, so that (5) holds exactly where it is learnt.
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
    reward_weights: tuple[float, ...] = (1.0,)
    states_dtype: Literal["float32", "bfloat16"] = "float32"


class Buffer(NamedTuple):
    """Trajectories of the current model, ready for regression; every array is a constant of the loss.

    Attributes:
        states: X_0 .. X_{K-1}, [batch, K, ...], of `Settings.states_dtype`.
        targets: T_0 .. T_{K-1} of (5), float32 [batch, K, ...]; bfloat16 would lose half of the last step's correction.
        labels: The condition, int32 [batch].
        rewards: What each reward gave, NaN where it does not apply; None for one reward.
        keep: Which trajectories count, where (6) was applied beforehand; `loss_sums` needs it.
    """

    states: Float[Array, "batch steps ..."]
    targets: Float[Array, "batch steps ..."]
    labels: Int[Array, " batch"]
    rewards: Float[Array, "batch m"] | None = None
    keep: Bool[Array, " batch"] | None = None


class PerRewardBuffer(NamedTuple):
    """As `Buffer`, with what a weighting found later needs.

    Attributes:
        states: X_0 .. X_{K-1}, [batch, K, ...], of `Settings.states_dtype`.
        base: v_base(X_0, t_0) .. v_base(X_{K-1}, t_{K-1}), float32 [batch, K, ...].
        adjoints: A^i_0 .. A^i_{K-1} of (7), float32 [batch, m, K, ...].
        labels: The condition, int32 [batch].
        rewards: What each reward gave, NaN where it does not apply.
        keep: Which trajectories count, where (6) was applied beforehand; None: the loss applies it.
    """

    states: Float[Array, "batch steps ..."]
    base: Float[Array, "batch steps ..."]
    adjoints: Float[Array, "batch m steps ..."]
    labels: Int[Array, " batch"]
    rewards: Float[Array, "batch m"]
    keep: Bool[Array, " batch"] | None = None


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
        reward: `reward(x, y) -> [batch]` on the model's own space (the decoder is part of it), differentiable in x. Or [batch, m],
            whose sum with `reward_weights` is the reward. Where one does not apply it is NaN, and its derivative 0, as
            `rewards.Reward` sees to: one that is not finite would spoil the others' (0 * NaN).
        noise: X_0, standard normal.
        labels: y.
        key: For the SDE's noise.
        settings: See `Settings`.

    Returns:
        The buffer, and metrics: `reward_mean`, `reward_std`, `control_energy` (the estimate of KL(p_theta | p_base), nats),
        `adjoint_norm` [K] (mean norm of A_k), `state_norm` [K] and `reward_gradient_norm`.
    """
    schedule = settings.schedule
    states, velocities = rollout(lambda x, t: velocity(params, _kept(x, settings), t, labels), noise, key, schedule)
    states = jnp.concatenate([_kept(states[:-1], settings), states[-1:]]) if settings.states_dtype != "float32" else states
    rewards, pullback, each = jax.vjp(lambda x: _summed(reward(x, labels), settings), states[-1], has_aux=True)
    gradient = pullback(jnp.ones_like(rewards))[0]
    terminal = -settings.reward_scale * gradient  # (2)
    adjoints, base = lean_adjoint(lambda x, t: velocity(base_params, x, t, labels), states, terminal, schedule)
    gain = _per_step(schedule.gain, states[:-1])
    targets = base - 0.5 * gain**2 * adjoints  # (5)
    buffer = Buffer(
        _batch_first(states[:-1].astype(settings.states_dtype)), _batch_first(targets), labels, jax.lax.stop_gradient(each)
    )
    return buffer, _collected(states, velocities, base, adjoints, rewards, gradient, settings)


def collect_per_reward(
    velocity: Velocity,
    params: PyTree,
    base_params: PyTree,
    rewards: Reward,
    noise: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    settings: Settings,
) -> tuple[PerRewardBuffer, dict[str, Float[Array, "..."]]]:
    """As `collect`, with an adjoint for each of m rewards: one rollout, one linearisation of the base, m pullbacks through it.

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: The current model, theta.
        base_params: The base model.
        rewards: `rewards(x, y) -> [batch, m]`, as in `collect`.
        noise: X_0, standard normal.
        labels: y.
        key: For the SDE's noise.
        settings: See `Settings`.

    Returns:
        The buffer, and the metrics of `collect`, for the sum of the rewards with `reward_weights`.
    """
    schedule = settings.schedule
    states, velocities = rollout(lambda x, t: velocity(params, _kept(x, settings), t, labels), noise, key, schedule)
    states = jnp.concatenate([_kept(states[:-1], settings), states[-1:]]) if settings.states_dtype != "float32" else states
    values, pullback = jax.vjp(lambda x: rewards(x, labels), states[-1])
    count = values.shape[1]
    units = jnp.broadcast_to(jnp.eye(count)[:, None], (count, *values.shape))
    gradients = jax.vmap(lambda unit: pullback(unit)[0])(units)
    terminals = -settings.reward_scale * gradients  # (7)
    adjoints, base = lean_adjoints(lambda x, t: velocity(base_params, x, t, labels), states, terminals, schedule)
    buffer = PerRewardBuffer(
        _batch_first(states[:-1].astype(settings.states_dtype)),
        _batch_first(base),
        jax.lax.stop_gradient(jnp.moveaxis(adjoints, (2, 1), (0, 1))),
        labels,
        jax.lax.stop_gradient(values),
    )
    weights = jnp.asarray(settings.reward_weights, jnp.float32)
    combined, gradient = jnp.einsum("i,ki...->k...", weights, adjoints), jnp.einsum("i,i...->...", weights, gradients)
    return buffer, _collected(states, velocities, base, combined, _summed(values, settings)[0], gradient, settings)


def _kept(states: Float[Array, "..."], settings: Settings) -> Float[Array, "..."]:
    """States as the buffer has them, in float32."""
    # `reduce_precision`, since the compiler may drop a cast to bfloat16 and back.
    half = settings.states_dtype == "bfloat16"
    return jax.lax.reduce_precision(states, exponent_bits=8, mantissa_bits=7) if half else states


def _summed(values: Float[Array, "batch *m"], settings: Settings):
    """The reward that `collect` maximises, and what it is made of."""
    if values.ndim == 1:
        return values, None
    known = jnp.where(jnp.isnan(values), 0.0, values)
    return (known * jnp.asarray(settings.reward_weights, jnp.float32)).sum(axis=1), values


def _collected(states, velocities, base, adjoints, rewards, gradient, settings: Settings) -> dict[str, Float[Array, "..."]]:
    """The metrics of a refresh."""
    control = _norms((2 / _per_step(settings.schedule.gain, states[:-1])) * (velocities - base))
    metrics = {
        "control_energy": 0.5 * settings.schedule.step_size * (control**2).sum(axis=0).mean(),
        "reward_mean": rewards.mean(),
        "reward_std": rewards.std(),
        "reward_gradient_norm": _norms(gradient[None]).mean(),
        "adjoint_norm": _norms(adjoints).mean(axis=1),
        "state_norm": _norms(states[:-1]).mean(axis=1),
    }
    return jax.lax.stop_gradient(metrics)


def subset_size(settings: Settings) -> int:
    """The size of S.

    Args:
        settings: See `Settings`.

    Returns:
        ceil(fraction K), at least 1.
    """
    return max(1, math.ceil(settings.timestep_fraction * settings.schedule.num_steps - 1e-9))


def draw_subset(key: Key[Array, ""], settings: Settings) -> Int[Array, " subset"]:
    """Draws S: ceil(fraction K) distinct step indices, half of them before `timestep_split` and half from it on.

    Args:
        key: A fresh key for each gradient step.
        settings: See `Settings`.

    Returns:
        int32 indices. Where one side of the split has too few steps, the other side gives more.
    """
    times, size = settings.schedule.times[:-1], subset_size(settings)
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
    losses, finite = trajectory_losses(velocity, params, batch, key, settings)
    keep, threshold = outlier_mask(losses, finite, threshold, settings)
    total = 0.5 * jnp.sum(jnp.where(keep, _reduced(losses, settings), 0.0))  # (4)
    value = total / jnp.maximum(keep.sum(), 1)
    return value, (threshold, {"loss": value, "masked_share": 1 - keep.mean(), "threshold": threshold})


def loss_sums(
    velocity: Velocity, params: PyTree, batch: Buffer, key: Key[Array, ""], settings: Settings
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Sums]]:
    """The loss of part of a minibatch, for `balancing.accumulation`.

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: theta, what the loss is differentiated by.
        batch: Part of a minibatch, with `keep`: (6) looks at the whole minibatch, so it is applied beforehand, with `trajectory_losses`
            and `outlier_mask`.
        key: Draws S; the same for all parts of a minibatch.
        settings: See `Settings`.

    Returns:
        (sum, (weight, metrics)) of what `loss` averages; metrics are name -> (sum, weight).

    Raises:
        ValueError: If the batch has no `keep`.
    """
    if batch.keep is None:
        raise ValueError("the batch has no mask yet: batch._replace(keep=outlier_mask(...)[0])")
    losses, _ = trajectory_losses(velocity, params, batch, key, settings)
    total = 0.5 * jnp.sum(jnp.where(batch.keep, _reduced(losses, settings), 0.0))  # (4)
    return total, _counted(jax.lax.stop_gradient(total), batch.keep)


def per_reward_losses(
    velocity: Velocity,
    params: PyTree,
    batch: PerRewardBuffer,
    key: Key[Array, ""],
    threshold: Float[Array, ""],
    settings: Settings,
) -> tuple[Float[Array, " m1"], tuple[Float[Array, " m1"], Sums]]:
    """S_1 .. S_m and last the control cost C of (9), summed over trajectories, for `balancing.gradients`.

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: theta, what the losses are differentiated by.
        batch: A minibatch, or with `keep` a part of one.
        key: Draws S; the same for all parts of a minibatch.
        threshold: tau of (6); not read if the batch has `keep`.
        settings: See `Settings`.

    Returns:
        (sums, (weights, metrics)): weights are the number of trajectories that are kept, for all the same. Metrics are name -> (sum,
        weight): `loss`, (4) at `reward_weights`, `control_cost`, `masked_share`, and the new `threshold` where (6) was applied here.
    """
    subset = draw_subset(key, settings)
    states, base, adjoints = batch.states[:, subset].astype(jnp.float32), batch.base[:, subset], batch.adjoints[:, :, subset]
    finite = _finite(states) & _finite(base) & _finite(adjoints)
    states, base, adjoints = (_replaced(finite, values) for values in (states, base, adjoints))
    drift = _evaluate(velocity, params, states, batch.labels, subset, settings.schedule) - base
    gain = jnp.asarray(settings.schedule.gain, jnp.float32)[subset]
    control = (2 / gain**2 * _squares(drift)).sum(axis=1)  # (9)
    along = 2 * jnp.sum(adjoints * drift[:, None], axis=tuple(range(2, adjoints.ndim)))  # (9)
    away = jax.lax.stop_gradient(drift) + _correction(adjoints, subset, settings)
    losses = (4 / gain**2 * _squares(away)).sum(axis=1)  # (5)
    keep, metrics = batch.keep, {}
    if keep is None:
        keep, threshold = outlier_mask(losses, finite, threshold, settings)
        metrics["threshold"] = (threshold, jnp.ones(()))
    kept = lambda values: jnp.where(keep, _reduced(values, settings), 0.0).sum()  # noqa: E731
    sums = jnp.stack([*(kept(values) for values in along.T), kept(control)])
    weight, counted = _counted(0.5 * kept(losses), keep)
    metrics |= counted | {"control_cost": (jax.lax.stop_gradient(sums[-1]), weight)}
    return sums, (jnp.full(len(sums), weight), metrics)


def trajectory_losses(
    velocity: Velocity, params: PyTree, batch: Buffer | PerRewardBuffer, key: Key[Array, ""], settings: Settings
) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
    """n^2 of (6), the sum of (5) over S, for each trajectory.

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: theta.
        batch: Part of a buffer; with several adjoints at the weights `reward_weights`.
        key: Draws S.
        settings: See `Settings`.

    Returns:
        The sums, and which trajectories are finite; the others' are computed with zeros in place of states and targets.
    """
    subset = draw_subset(key, settings)
    states = batch.states[:, subset].astype(jnp.float32)
    if isinstance(batch, Buffer):
        targets = batch.targets[:, subset]
    else:
        targets = batch.base[:, subset] - _correction(batch.adjoints[:, :, subset], subset, settings)
    finite = _finite(states) & _finite(targets)
    # A masked NaN still poisons the gradient (0 * NaN), so it is replaced before the network sees it.
    states, targets = _replaced(finite, states), _replaced(finite, targets)
    predicted = _evaluate(velocity, params, states, batch.labels, subset, settings.schedule)
    gain = jnp.asarray(settings.schedule.gain, jnp.float32)[subset]
    return (4 / gain**2 * _squares(predicted - targets)).sum(axis=1), finite  # (5)


def outlier_mask(
    losses: Float[Array, " batch"], finite: Bool[Array, " batch"], threshold: Float[Array, ""], settings: Settings
) -> tuple[Bool[Array, " batch"], Float[Array, ""]]:
    """Applies (6) to a minibatch.

    Args:
        losses: From `trajectory_losses`.
        finite: From `trajectory_losses`.
        threshold: tau; 0 before the first step.
        settings: See `Settings`.

    Returns:
        Which trajectories stay, and the new threshold.
    """
    norms = jnp.sqrt(jax.lax.stop_gradient(losses))
    finite = finite & jnp.isfinite(norms)
    if not settings.outlier_mask:
        return finite, threshold
    quantile = jnp.nanquantile(jnp.where(finite, norms, jnp.nan), settings.outlier_quantile)
    rho = settings.outlier_decay
    moved = rho * threshold + (1 - rho) * jnp.minimum(quantile, settings.outlier_cap * threshold)
    moved = jnp.where(threshold > 0, moved, quantile)
    moved = jnp.where(finite.any(), moved, threshold)
    return finite & (norms < moved), moved


def _correction(adjoints: Float[Array, "batch m steps ..."], subset, settings: Settings) -> Float[Array, "batch steps ..."]:
    """v_base - T_k of (5) for the sum of the rewards with `reward_weights`, at the chosen steps."""
    gain = jnp.asarray(settings.schedule.gain, jnp.float32)[subset].reshape((-1,) + (1,) * (adjoints.ndim - 3))
    weights = jnp.asarray(settings.reward_weights, jnp.float32)
    return 0.5 * gain**2 * jnp.einsum("i,bi...->b...", weights, adjoints)


def _reduced(losses: Float[Array, " batch"], settings: Settings) -> Float[Array, " batch"]:
    """The sum over S as it is, or the mean."""
    return losses / subset_size(settings) if settings.subset_reduction == "mean" else losses


def _counted(total: Float[Array, ""], keep: Bool[Array, " batch"]) -> tuple[Float[Array, ""], Sums]:
    weight = keep.sum().astype(jnp.float32)
    masked = (~keep).sum().astype(jnp.float32), jnp.full((), len(keep), jnp.float32)
    return weight, {"loss": (total, weight), "masked_share": masked}


def _evaluate(velocity, params, states, labels, subset, schedule: Schedule):
    """v_theta at the chosen steps of each trajectory: one flat batch for the network."""
    batch, steps = states.shape[:2]
    times = jnp.asarray(schedule.times, jnp.float32)[subset]
    flat = velocity(params, states.reshape((batch * steps, *states.shape[2:])), jnp.tile(times, batch), jnp.repeat(labels, steps))
    return flat.reshape(states.shape)


def _finite(values: Float[Array, "batch ..."]) -> Bool[Array, " batch"]:
    return jnp.isfinite(values).all(axis=tuple(range(1, values.ndim)))


def _replaced(finite: Bool[Array, " batch"], values: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    return jnp.where(finite.reshape(finite.shape + (1,) * (values.ndim - 1)), values, 0.0)


def _squares(values: Float[Array, "batch steps ..."]) -> Float[Array, "batch steps"]:
    return jnp.sum(values**2, axis=tuple(range(2, values.ndim)))


def _batch_first(values: Float[Array, "steps batch ..."]) -> Float[Array, "batch steps ..."]:
    return jax.lax.stop_gradient(jnp.moveaxis(values, 0, 1))


def _norms(values: Float[Array, "steps batch ..."]) -> Float[Array, "steps batch"]:
    return jnp.sqrt(jnp.sum(values**2, axis=tuple(range(2, values.ndim))))


def _per_step(coefficients, values: Float[Array, "steps batch ..."]) -> Float[Array, "steps ..."]:
    return jnp.asarray(coefficients, jnp.float32).reshape((-1,) + (1,) * (values.ndim - 1))
