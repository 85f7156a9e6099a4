r"""DiffusionNFT: policy improvement on the forward process, from clean samples and their advantages alone.

Sources: Zheng et al., "DiffusionNFT", arXiv 2509.16117; its code, NVlabs/DiffusionNFT at 24af555 (scripts/train_nft_sd3.py).
Paper and code have noise at their t = 1 and the velocity noise - data; here t = 0 is noise and v = data - noise (their -v at 1 - t).

The old policy samples x_1 with any sampler. Its advantage A (`advantages.py`) becomes a probability of being good,

    r = clip(1/2 + A / (2 A_max), 0, 1),                                                                    (1)

and with noise x_0, x_t = t x_1 + (1 - t) x_0 and v = x_1 - x_0 two implicit policies are mixed out of the trained one,

    v+ = (1 - beta) v_old + beta v_theta,         v- = (1 + beta) v_old - beta v_theta,                     (2)
    l  = r L+ + (1 - r) L-,                       L+- = | v+- - v |^2.                                      (3)

Where v_old is exact, the optimum is v_old + (1 / beta) E[(2 r - 1)(v - v_old) | x_t]; at theta = theta_old the gradient of l is
(2 r - 1) that of L+. (3) is computed in data space with a weight for each sample and branch that is a constant of the gradient,

    x+- = x_t + (1 - t) v+-,      L+- = mean (x+- - x_1)^2 / max(mean |x+- - x_1|, 1e-5),                   (4)

means over dimensions. The velocity is kept near the reference, and the old policy follows slowly: after iteration i,

    L = (A_max / beta) l + kappa mean (v_theta - v_ref)^2,                                                  (5)
    theta_old <- eta_i theta_old + (1 - eta_i) theta,      eta_i = min(slope max(i - flat, 0), ceiling).    (6)

Where paper and code differ: algorithm 1 prints l; the code has (5), the factor A_max / beta included, and kappa = 1e-4. That
factor is the default (`loss_scale`), because the published kappa is relative to it. The code counts i of (6) in gradient steps,
of which there is one an iteration by default; the paper in iterations. Times are the sampler's own in the code, int(0.99 n) of the
n for each sample, each with fresh noise, and are drawn afresh from [0, 1] in the paper; the code is the default (`times`). The
code's (4) is the default, |v+- - v|^2 averaged over dimensions the other choice (`weighting`).

K rewards: L+ and L- do not depend on A, so K losses come from one forward pass. With advantages [batch, K] the loss is [K + 1]: one
for each reward over the samples that have it, and last the KL term, which MARBLE keeps out of its program.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt32

from jaxdrl.algorithms.flow_matching import TimeLaw
from jaxdrl.flow import ode, path

NEEDS = "samples"

Velocity = Callable[..., Float[Array, "batch ..."]]
Sampler = Callable[[ode.Velocity, Float[Array, "batch ..."]], Float[Array, "batch ..."]]


@dataclass(frozen=True, kw_only=True)
class OldPolicy:
    """The schedule (6) by which the old policy follows; `PRESETS` has the published ones.

    Attributes:
        flat: So many steps with eta = 0, at least 0.
        slope: What eta grows by with each step after them, at least 0.
        ceiling: The largest eta, in [0, 1). 0 is on-policy.
    """

    flat: int = 0
    slope: float = 0.001
    ceiling: float = 0.5

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: If a value is out of range.
        """
        if self.flat < 0 or self.slope < 0 or not 0 <= self.ceiling < 1:
            raise ValueError(f"flat and slope must be at least 0 and ceiling in [0, 1), got {dataclasses.astuple(self)}")

    def decay(self, step: int | Int[Array, ""]) -> Float[Array, ""]:
        """Returns eta after `step` gradient steps."""
        return jnp.clip(self.slope * (step - self.flat), 0.0, self.ceiling)


PRESETS = {
    "on_policy": OldPolicy(ceiling=0.0),  # decay_type 0
    "default": OldPolicy(),  # decay_type 1
    "slow": OldPolicy(flat=75, slope=0.0075, ceiling=0.999),  # decay_type 2, for OCR
    "marble": OldPolicy(ceiling=0.95),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of DiffusionNFT; the defaults are the released code's for one reward.

    Attributes:
        mixing: beta of (2), above 0. 1 is stable, .1 faster (OCR, several rewards, MARBLE).
        advantage_limit: A_max of (1), above 0.
        kl_weight: kappa of (5), at least 0; at 0 the reference is never evaluated.
        loss_scale: "code": A_max / beta as in (5); "paper": 1.
        weighting: "adaptive", (4), or "uniform", (3) averaged over dimensions.
        weight_floor: The least weight of (4), above 0.
        num_steps: n of the sampler, at least 1.
        method: Of the sampler, as in `flow.ode`; the code's is dpm2.
        shift: Of the sampler's grid, as in `flow.ode.shifted_grid`; SD3's is 3.
        times: None: the sampler's own times; or a law to draw fresh ones from.
        times_per_sample: How many times a sample is trained at in one loss, without repetition if they are the sampler's. None:
            int(0.99 n) of the sampler's, at least 1; 1 from a law.
        old_policy: The schedule (6).
        ema_ceiling: d of the average that is evaluated, min((1 + i) / (10 + i), d), in [0, 1).
    """

    mixing: float = 1.0
    advantage_limit: float = 5.0
    kl_weight: float = 1e-4
    loss_scale: str = "code"
    weighting: str = "adaptive"
    weight_floor: float = 1e-5
    num_steps: int = 10
    method: str = "dpm2"
    shift: float = 1.0
    times: TimeLaw | None = None
    times_per_sample: int | None = None
    old_policy: OldPolicy = OldPolicy()
    ema_ceiling: float = 0.9

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: If a value is unknown or out of range.
        """
        most = None if self.times else self.num_steps
        checks = {
            "mixing must be above 0": self.mixing > 0,
            "advantage_limit must be above 0": self.advantage_limit > 0,
            "kl_weight must be at least 0": self.kl_weight >= 0,
            "loss_scale must be code or paper": self.loss_scale in ("code", "paper"),
            "weighting must be adaptive or uniform": self.weighting in ("adaptive", "uniform"),
            "weight_floor must be above 0": self.weight_floor > 0,
            "num_steps must be at least 1": self.num_steps >= 1,
            "shift must be above 0": self.shift > 0,
            f"method must be one of {', '.join(ode.METHODS)}": self.method in ode.METHODS,
            "times_per_sample must be at least 1, and at most num_steps for the sampler's times": self.times_per_sample is None
            or 1 <= self.times_per_sample <= (most or self.times_per_sample),
            "ema_ceiling must be in [0, 1)": 0 <= self.ema_ceiling < 1,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(f"nft.Settings: {message}")

    @property
    def grid(self) -> Float[Array, " points"]:
        """The sampler's times, from 0 to 1."""
        return ode.shifted_grid(self.num_steps, self.shift)

    @property
    def num_times(self) -> int:
        """How many times a sample is trained at."""
        if self.times_per_sample is not None:
            return self.times_per_sample
        return 1 if self.times else max(1, int(0.99 * self.num_steps))


class State(NamedTuple):
    """Everything that training changes or holds on to; all four trees are separate arrays.

    Attributes:
        step: Gradient steps taken, int32.
        params: theta.
        old: theta_old, which samples.
        reference: theta_ref, never changed.
        ema: The average of theta, which is evaluated.
        opt_state: The optimizer's.
    """

    step: Int[Array, ""]
    params: PyTree
    old: PyTree
    reference: PyTree
    ema: PyTree
    opt_state: optax.OptState


class Buffer(NamedTuple):
    """Samples of the old policy; the first axis of everything is the batch.

    Attributes:
        samples: x_1, float32.
        labels: The condition, int32.
        seeds: What a sample's times and noise are drawn from, so that they do not depend on its place in a batch.
        advantages: A, [batch] or [batch, K]; NaN: not defined. None until `buffer._replace(advantages=a.T)`, with `a` from
            `advantages.group_advantages`, [batch] or [K, batch].
    """

    samples: Float[Array, "batch ..."]
    labels: Int[Array, " batch"]
    seeds: UInt32[Array, " batch"]
    advantages: Float[Array, "batch *k"] | None = None


def create(params: PyTree, optimizer: optax.GradientTransformation) -> State:
    """The state before training: all four policies are the base.

    Args:
        params: The base.
        optimizer: An optax transformation.

    Returns:
        A state that shares no array with `params`, so that it can be donated.
    """
    copy = lambda: jax.tree.map(jnp.array, params)  # noqa: E731
    return State(jnp.zeros((), jnp.int32), copy(), copy(), copy(), copy(), optimizer.init(params))


def apply_gradients(state: State, gradient: PyTree, optimizer: optax.GradientTransformation, settings: Settings) -> State:
    """One gradient step of theta, and of the average that is evaluated.

    Args:
        state: Before.
        gradient: Of the loss.
        optimizer: As in `create`.
        settings: See `Settings`.

    Returns:
        The state after; the old policy has not moved.
    """
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params, step = optax.apply_updates(state.params, updates), state.step + 1
    decay = jnp.minimum((1 + step) / (10 + step), settings.ema_ceiling)
    return state._replace(step=step, params=params, ema=_follow(state.ema, params, decay), opt_state=opt_state)


def update_old(state: State, settings: Settings) -> State:
    """The step (6) of the old policy, at the end of an iteration.

    Args:
        state: After the iteration's gradient steps.
        settings: See `Settings`.

    Returns:
        The state with theta_old moved.
    """
    return state._replace(old=_follow(state.old, state.params, settings.old_policy.decay(state.step)))


def collect(
    velocity: Velocity,
    params: PyTree,
    noise: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    settings: Settings,
    sampler: Sampler | None = None,
) -> tuple[Buffer, dict[str, Float[Array, ""]]]:
    """Samples with the old policy: one refresh of the buffer.

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: The old policy, theta_old.
        noise: x_0, standard normal.
        labels: y.
        key: Draws the samples' seeds.
        settings: See `Settings`.
        sampler: (v(x, t), noise) -> samples; None: the ODE on `settings.grid`.

    Returns:
        The buffer, without advantages, and metrics: `sample_norm`, the mean square of x_1, which drifts in runs that go wrong.
    """
    sampler = sampler or (lambda velocity, noise: ode.sample(velocity, noise, settings.grid, method=settings.method))
    samples = sampler(lambda x, t: velocity(params, x, t, labels), noise.astype(jnp.float32)).astype(jnp.float32)
    buffer = Buffer(jax.lax.stop_gradient(samples), labels, jax.random.bits(key, (len(noise),), jnp.uint32))
    return buffer, {"sample_norm": jnp.mean(buffer.samples**2)}


def branch_losses(
    current: Float[Array, "batch ..."],
    old: Float[Array, "batch ..."],
    target: Float[Array, "batch ..."],
    t: Float[Array, " batch"],
    settings: Settings,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """L+ and L-, by (2) and (3) or (4): all of the loss that depends on theta, and nothing of it on the reward.

    Args:
        current: v_theta(x_t, t).
        old: v_old(x_t, t), a constant of the gradient.
        target: v = x_1 - x_0.
        t: Times.
        settings: See `Settings`.

    Returns:
        L+ and L-, one value a sample.
    """
    old = jax.lax.stop_gradient(old)
    left = path.expand_time(1 - t, target)

    def branch(implicit):
        if settings.weighting == "uniform":
            return _mean((implicit - target) ** 2)  # (3)
        residual = left * (implicit - target)  # x+- - x_1, as x_t + (1 - t) v = x_1
        weight = jnp.maximum(_mean(jnp.abs(jax.lax.stop_gradient(residual))), settings.weight_floor)
        return _mean(residual**2) / weight  # (4)

    step = settings.mixing * (current - old)
    return branch(old + step), branch(old - step)  # (2)


def goodness(advantages: Float[Array, "*shape"], settings: Settings) -> Float[Array, "*shape"]:
    """R of (1).

    Args:
        advantages: A; NaN stays NaN.
        settings: See `Settings`.

    Returns:
        In [0, 1]; affine in A between -A_max and A_max.
    """
    return jnp.clip(0.5 + advantages / (2 * settings.advantage_limit), 0.0, 1.0)


def loss(
    velocity: Velocity,
    params: PyTree,
    old_params: PyTree,
    reference_params: PyTree,
    batch: Buffer,
    key: Key[Array, ""],
    settings: Settings,
) -> tuple[Float[Array, "*k"], tuple[Float[Array, "*k"], dict[str, tuple[Float[Array, ""], Float[Array, ""]]]]]:
    """The loss (5) as a sum and its weight, for `balancing.accumulation`.

    A sample that is not finite, or whose advantages are all NaN, counts nowhere.

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: theta, what the loss is differentiated by.
        old_params: theta_old.
        reference_params: theta_ref; not read if kl_weight is 0.
        batch: Part of a buffer, with advantages.
        key: Draws times and noise, together with each sample's seed; the same for all parts of one batch.
        settings: See `Settings`.

    Returns:
        (sum, (weight, metrics)). For advantages [batch]: (5) summed over samples, and their number. For [batch, K]: [K + 1] sums,
        l of each reward with the scale of (5), then kappa times the KL term; and the number of samples that have each. Metrics
        are name -> (sum, weight): `loss` ([batch] only), `policy_loss`, `kl` and `old_kl` (mean squares of v_theta - v_ref and
        v_old - v_ref), `old_deviation` (of v_theta - v_old), `goodness`, `clipped_share` and `sample_norm`.

    Raises:
        ValueError: If the batch has no advantages.
    """
    if batch.advantages is None:
        raise ValueError("the buffer has no advantages yet: buffer._replace(advantages=advantages.T)")
    # A masked NaN still poisons the gradient (0 * NaN), so it is replaced before the network sees it.
    finite = jnp.isfinite(batch.samples).all(axis=tuple(range(1, batch.samples.ndim)))
    samples = jnp.where(finite.reshape((-1,) + (1,) * (batch.samples.ndim - 1)), batch.samples, 0.0)
    advantages = batch.advantages.reshape(len(samples), -1)
    defined = jnp.isfinite(advantages) & finite[:, None]
    data, noise, t, labels = _noised(samples, batch.labels, batch.seeds, key, settings)
    x = path.interpolate(data, noise, t)
    current, target = velocity(params, x, t, labels), path.velocity_target(data, noise)
    old = jax.lax.stop_gradient(velocity(old_params, x, t, labels))
    per_sample = lambda values: values.reshape(len(samples), -1).mean(axis=1)  # noqa: E731
    positive, negative = map(per_sample, branch_losses(current, old, target, t, settings))
    r = jnp.where(defined, goodness(advantages, settings), 0.0)
    scale = settings.advantage_limit / settings.mixing if settings.loss_scale == "code" else 1.0
    policy = jnp.where(defined, scale * (r * positive[:, None] + (1 - r) * negative[:, None]), 0.0)  # (3)
    used = defined.any(axis=1).astype(jnp.float32)
    count, counts = used.sum(), defined.sum(axis=0).astype(jnp.float32)
    metrics = {
        "policy_loss": (policy.sum(), counts.sum()),
        "goodness": (r.sum(), counts.sum()),
        "clipped_share": ((defined & (jnp.abs(advantages) > settings.advantage_limit)).sum().astype(jnp.float32), counts.sum()),
        "old_deviation": ((used * per_sample(_mean((current - old) ** 2))).sum(), count),
        "sample_norm": ((used * _mean(samples**2)).sum(), count),
    }
    divergence = jnp.zeros(())
    if settings.kl_weight > 0:
        reference = jax.lax.stop_gradient(velocity(reference_params, x, t, labels))
        divergence = (used * per_sample(_mean((current - reference) ** 2))).sum()
        metrics["kl"] = (divergence, count)
        metrics["old_kl"] = ((used * per_sample(_mean((old - reference) ** 2))).sum(), count)
    divergence = settings.kl_weight * divergence
    if batch.advantages.ndim == 1:
        total = policy.sum() + divergence  # (5)
        return total, (count, jax.lax.stop_gradient(metrics | {"loss": (total, count)}))
    total = jnp.append(policy.sum(axis=0), divergence)
    return total, (jnp.append(counts, count), jax.lax.stop_gradient(metrics))


def _noised(samples, labels, seeds, key, settings: Settings):
    """Draws `num_times` times and noises for each sample: a flat batch, sample by sample, for the network."""
    count, shape = settings.num_times, samples.shape[1:]

    def draw(seed):
        time_key, noise_key = jax.random.split(jax.random.fold_in(key, seed))
        if settings.times:
            t = settings.times.draw(time_key, count)
        else:
            t = settings.grid[jax.lax.top_k(jax.random.uniform(time_key, (settings.num_steps,)), count)[1]]
        return t, jax.random.normal(noise_key, (count, *shape), jnp.float32)

    t, noise = jax.vmap(draw)(seeds)
    return jnp.repeat(samples, count, axis=0), noise.reshape(-1, *shape), t.reshape(-1), jnp.repeat(labels, count)


def _follow(tree, target, decay):
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, tree, target)


def _mean(values: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    return values.mean(axis=tuple(range(1, values.ndim)))
