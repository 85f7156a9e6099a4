"""Policy gradients as a method of the posttrain stage: any rewards, differentiable or not, one or many.

A refresh is two halves: `roll` (samples of the old policy, decoded, and the rewards that can be traced) and `learn` (advantages, the balance
of rewards, `epochs` passes of minibatch updates, the old policy's step). Where every reward is traced both are one compiled program;
otherwise rewards on the host are computed between two, or beside the next rollout (`overlap.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdrl.algorithms import advantages, flow_grpo, nft
from jaxdrl.algorithms.flow_matching import TimeLaw
from jaxdrl.balancing import gradients
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.flow import path
from jaxdrl.flow.memoryless import Schedule
from jaxdrl.training import frozen_weights, lora, mesh, models
from jaxdrl.training.methods import buffers, common, overlap, scoring
from jaxdrl.training.state import norms

RULES = ("sum", "gdpo", "uniform", "marble")
_ENERGY_SAMPLES, _ENERGY_STEPS = 64, 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `config.posttrain` says, checked.

    Attributes:
        algorithm: Of DiffusionNFT or Flow-GRPO.
        advantages: How rewards are compared.
        rule: One of `RULES`.
        weights: One a reward.
        balance: Of "marble".
        lora: None: all weights are trained.
        names: Labels of the rewards.
    """

    algorithm: nft.Settings | flow_grpo.Settings
    advantages: advantages.Settings
    rule: str
    weights: tuple[float, ...]
    balance: gradients.Settings
    lora: lora.Settings | None
    names: tuple[str, ...]


class State(NamedTuple):
    """What a checkpoint of this method holds.

    Attributes:
        refresh: Iterations done.
        model: theta, theta_old, theta_ref, the EMA and the optimizer; of the adapters alone, where there are any.
        balance: MARBLE's averages.
        failing: In how many refreshes in a row, up to now, each reward gave nothing at all.
        behind: Where rollouts overlap with rewards: the policy that samples for this refresh, one update older than `model.old`.
    """

    refresh: Int[Array, ""]
    model: nft.State
    balance: gradients.State
    failing: Int[Array, " k"]
    behind: PyTree | None = None


class Rolled(NamedTuple):
    """The first half's result.

    Attributes:
        buffer: Samples of the old policy.
        groups: The group of each.
        labels: The class of each.
        images: Decoded, in [-1, 1].
        rewards: [batch, K], NaN where a reward does not apply or is still to be computed on the host.
        metrics: Of the rollout.
    """

    buffer: nft.Buffer | flow_grpo.Buffer
    groups: Int[Array, " batch"]
    labels: Int[Array, " batch"]
    images: Float[Array, "batch h w c"]
    rewards: Float[Array, "batch k"]
    metrics: dict[str, Float[Array, ""]]


def settings_from(config: Config) -> Settings:
    """Reads `config.posttrain`.

    Args:
        config: A run's config.

    Returns:
        The settings.

    Raises:
        UserError: If a value is unknown or out of range, or sizes do not fit.
    """
    options, shift = config.posttrain, config.sampler.time_shift
    common.check_sizes(options)
    frozen_weights.check(config)
    buffers.check(config)
    if options.buffer_size % options.group_size:
        raise UserError(
            f"config.posttrain.buffer_size ({options.buffer_size}) must be a multiple of group_size ({options.group_size})"
        )
    weights = common.reward_weights(config, RULES)
    overlap.check(config, common.rewards(config))  # which refuses unknown names before anything is computed
    scoring.settings_from(config)
    try:
        algorithm = _nft(options.nft, shift) if options.algorithm == "nft" else _flow_grpo(options.flow_grpo, shift)
        return Settings(
            algorithm=algorithm,
            advantages=advantages.Settings(**options.advantages),
            rule=options.balance.rule,
            weights=weights,
            balance=common.balance(config, algorithm.advantage_limit),
            lora=common.adapters(options.lora),
            names=tuple(dict(options.rewards)),
        )
    except ValueError as error:
        raise UserError(f"config.posttrain: {error}") from error


def _nft(options: Any, shift: float) -> nft.Settings:
    if options.old_policy not in nft.PRESETS:
        raise UserError(f"config.posttrain.nft.old_policy: {options.old_policy!r} must be one of {', '.join(nft.PRESETS)}")
    if options.times not in ("sampler", "uniform"):
        raise UserError(f"config.posttrain.nft.times: {options.times!r} must be sampler or uniform")
    same = ("mixing", "kl_weight", "advantage_limit", "loss_scale", "weighting", "num_steps", "method")
    return nft.Settings(
        **{key: options[key] for key in same},
        shift=shift,
        times=TimeLaw() if options.times == "uniform" else None,
        times_per_sample=options.times_per_sample or None,
        old_policy=nft.PRESETS[options.old_policy],
    )


def _flow_grpo(options: Any, shift: float) -> flow_grpo.Settings:
    if options.sde not in ("flow", "memoryless"):
        raise UserError(f"config.posttrain.flow_grpo.sde: {options.sde!r} must be flow or memoryless")
    same = (
        "num_steps",
        "noise_level",
        "window",
        "clip_range",
        "advantage_limit",
        "kl_weight",
        "kl_form",
        "reduction",
        "drop_zero",
    )
    schedule = Schedule(num_steps=options.num_steps, integrator=options.integrator) if options.sde == "memoryless" else None
    return flow_grpo.Settings(**{key: options[key] for key in same}, shift=shift, memoryless=schedule)


def initial_state(config: Config, base: PyTree) -> State:
    """The state before the first refresh: every policy is the base.

    Args:
        config: A run's config.
        base: The base's parameters.

    Returns:
        A `State` with buffers of its own, so that it can be donated.

    Raises:
        UserError: If a sketch would look at no parameter.
    """
    settings, (optimizer, _) = settings_from(config), common.optimizer(config)
    trained = common.trained_at_first(config, base)
    num, model = len(settings.names), nft.create(trained, optimizer)
    behind = jax.tree.map(jnp.array, trained) if config.posttrain.host.overlap else None
    return State(jnp.zeros((), jnp.int32), model, gradients.initial(num), jnp.zeros(num, jnp.int32), behind)


def trained(config: Config, current: State) -> PyTree:
    """What becomes the tuned model: the EMA, of the adapters where there are any.

    Args:
        config: A run's config.
        current: The state.

    Returns:
        A tree of the state, not a copy.
    """
    del config
    return current.model.ema


def weights(config: Config, tree: PyTree, frozen: common.Frozen) -> PyTree:
    """The tuned model.

    Args:
        config: A run's config.
        tree: From `trained`; adapters are merged into the base.
        frozen: With the base.

    Returns:
        Parameters of the generator.
    """
    return common.merged(settings_from(config).lora, frozen.base, tree)


def gradient_steps(current: State) -> int:
    """How many gradient steps were taken.

    Args:
        current: The state.

    Returns:
        A number.
    """
    return int(current.model.step)


def compile_step(config: Config, settings: Settings, devices: jax.sharding.Mesh) -> Callable[..., Any]:
    """Builds the step: (state, frozen, key) -> (state, metrics).

    Args:
        config: A run's config.
        settings: From `settings_from`.
        devices: The mesh; the batch is sharded over its data and fsdp axes.

    Returns:
        The function; the state is donated. It is one compiled program where all rewards are traced. Otherwise it raises
        `scoring.RewardsFailed`, with the state as it was, when too much of what the host computes fails.
    """
    halves, rewards = _Halves(config, settings, devices), common.rewards(config)
    if all(reward.traced for reward in rewards):

        def step(current: State, frozen: common.Frozen, key):
            return halves.learn(current, frozen, halves.roll(current.model.old, current.refresh, frozen, key), key)

        return jax.jit(step, donate_argnums=0)
    roll, learn = jax.jit(halves.roll), jax.jit(halves.learn, donate_argnums=0)
    host = scoring.HostRewards(config, rewards, devices)
    if config.posttrain.host.overlap:
        return overlap.Overlapped(roll, learn, host, config.posttrain.refreshes)

    def in_two(current: State, frozen: common.Frozen, key):
        rolled = roll(current.model.old, current.refresh, frozen, key)
        scored, errors = host.score(rolled.images, rolled.labels)
        host.judge(errors, np.asarray(current.failing), int(current.refresh) + 1)
        return learn(current, frozen, rolled, key, scored)

    return in_two


@dataclass(frozen=True)
class _Halves:
    """The two pure halves of a refresh."""

    config: Config
    settings: Settings
    devices: jax.sharding.Mesh

    def _velocity(self, frozen: common.Frozen):
        network = models.backbone(self.config)

        def velocity(trained, x, t, y):
            # Here, so that each gradient is born in its weight's layout, whatever sums or balances gradients afterwards.
            trained = mesh.constrain(trained, self.devices)
            return network.velocity(common.merged(self.settings.lora, frozen.base, trained), x, t, y)

        return velocity

    def roll(self, old: PyTree, refresh: Int[Array, ""], frozen: common.Frozen, key) -> Rolled:
        """Samples groups of one condition each, and scores them."""
        options, network = self.config.posttrain, models.backbone(self.config)
        tokenizer = models.tokenizer(self.config)
        noise_key, label_key, seed_key, _ = jax.random.split(jax.random.fold_in(key, refresh), 4)
        noise = jax.random.normal(noise_key, (options.buffer_size, *network.sample_shape), jnp.float32)
        groups = jnp.arange(options.buffer_size, dtype=jnp.int32) // options.group_size
        conditions = _conditions(label_key, options.buffer_size // options.group_size, network.num_classes)
        labels = conditions[groups]
        noise, labels, groups = mesh.constrain_batch((noise, labels, groups), self.devices)
        chosen = common.rewards(self.config, frozen)
        # Merged once, not at every step of the sampler.
        policy = common.merged(self.settings.lora, frozen.base, old)

        def score(samples, labels):
            with jax.named_scope("decode"):
                images, missing = tokenizer.decode(frozen.tokenizer, samples), jnp.full(len(labels), jnp.nan)
            with jax.named_scope("reward"):
                return images, jnp.stack([reward(images, labels) if reward.traced else missing for reward in chosen], axis=1)

        def collect(part):
            noise, labels, key = part
            noise, labels = mesh.constrain_batch((noise, labels), self.devices)
            buffer, metrics = _collect(network.velocity, policy, noise, labels, key, self.settings.algorithm)
            buffer = mesh.constrain_batch(buffer, self.devices)
            images, scored = common.in_parts(score, buffer.samples, labels, options.reward_batch)
            return (buffer, images, scored), metrics

        (buffer, images, rewards), metrics = common.in_chunks(collect, noise, labels, seed_key, options.rollout_batch)
        labels, images, rewards = scoring.laid_out((labels, images, rewards), self.devices)
        return Rolled(buffer, groups, labels, images, rewards, metrics)

    def learn(self, current: State, frozen: common.Frozen, rolled: Rolled, key, scored: scoring.Scored | None = None):
        """Updates the model on what was rolled out, and scored on the host."""
        options, settings = self.config.posttrain, self.settings
        *_, update_key = jax.random.split(jax.random.fold_in(key, current.refresh), 4)
        batches = options.buffer_size // options.batch_size
        rolled, failed, lost, counted = self._scored(rolled, scored)
        advantage, metrics = self._advantages(rolled, lost)
        # With normalised advantages the sum of raw rewards weighs each by its spread.
        shares = jnp.stack([metrics[f"reward_spread/{name}"] for name in settings.names]) * jnp.asarray(settings.weights)
        buffer = rolled.buffer._replace(advantages=advantage)
        sampled = current.model.old if current.behind is None else current.behind

        def epoch(carry, key):
            order_key, step_key = jax.random.split(key)
            # What does not fill a batch is left out, other samples in each epoch.
            order = jax.random.permutation(order_key, options.buffer_size)[: batches * options.batch_size]

            def minibatch(carry, inputs):
                index, key = inputs
                batch = mesh.constrain_batch(jax.tree.map(lambda values: values[index], buffer), self.devices)
                return self._update(carry, frozen, sampled, batch, key, shares)

            return jax.lax.scan(minibatch, carry, (order.reshape(batches, -1), jax.random.split(step_key, batches)))

        (model, balance), measured = jax.lax.scan(
            epoch, (current.model, current.balance), jax.random.split(update_key, options.epochs)
        )
        measured = jax.tree.map(lambda values: values.mean(axis=(0, 1)), measured)
        if isinstance(settings.algorithm, nft.Settings):
            model = nft.update_old(model, settings.algorithm)
        else:
            model = model._replace(old=model.params)  # the policy that samples is the one that is trained
        metrics |= counted | rolled.metrics | {"control_energy": self._energy(model, frozen, rolled.buffer, update_key)}
        failing = jnp.where(failed, current.failing + 1, 0)
        model = mesh.constrain(model, self.devices)
        behind = None if current.behind is None else current.model.old
        after = State(current.refresh + 1, model, balance, failing, behind)
        return after, metrics | common.by_reward(measured, self.settings.names)

    def _scored(self, rolled: Rolled, scored: scoring.Scored | None) -> tuple[Rolled, Any, Any, dict[str, Any]]:
        """All rewards, NaN where there is none; which rewards failed [K], which samples lack one [batch], and metrics of that."""
        chosen, values = common.rewards(self.config), rolled.rewards
        failed = jnp.zeros(len(chosen), bool)
        if scored is not None:
            columns = np.array([index for index, reward in enumerate(chosen) if not reward.traced])
            values, failed = values.at[:, columns].set(scored.values), failed.at[columns].set(scored.failed)
        values, lost, metrics = scoring.masked(values, rolled.labels, chosen, failed)
        return rolled._replace(rewards=values), failed, lost, metrics

    def _advantages(self, rolled: Rolled, lost: Bool[Array, " batch"]):
        """[batch, K], or [batch, 1] where rewards or advantages are summed up; and metrics by reward."""
        settings, num_groups = self.settings, self.config.posttrain.buffer_size // self.config.posttrain.group_size
        values = rolled.rewards.T
        found, measured = advantages.group_advantages(values, rolled.groups, num_groups, settings.advantages)
        metrics = {f"{metric}/{name}": part[i] for metric, part in measured.items() for i, name in enumerate(settings.names)}
        scale = jnp.asarray(settings.weights)[:, None]
        # A reward that does not apply to a sample adds nothing to its sum; a sample that lost one has no sum to be compared by.
        total = jnp.where(jnp.isnan(values), 0.0, scale * values).sum(axis=0)
        total = jnp.where(lost, jnp.nan, total)
        metrics |= {
            "reward_mean": jnp.nanmean(total),
            "reward_std": jnp.nanstd(total),
            "sample_spread": _spread(rolled, num_groups),
        }
        if settings.rule == "sum":
            found = advantages.group_advantages(total, rolled.groups, num_groups, settings.advantages)[0][None]
        elif settings.rule == "gdpo":
            total = jnp.where(jnp.isnan(found), 0.0, scale * found).sum(axis=0)
            found = (total / (total.std() + settings.advantages.epsilon))[None]
        return found.T, metrics

    @jax.named_scope("update")
    def _update(self, carry, frozen: common.Frozen, sampled: PyTree, batch: Any, key, shares):
        model, balance = carry
        settings, (optimizer, _) = self.settings, common.optimizer(self.config)
        velocity = self._velocity(frozen)

        def losses(trained, part):
            if isinstance(settings.algorithm, nft.Settings):
                return nft.loss(velocity, trained, sampled, model.reference, part, key, settings.algorithm)
            return flow_grpo.loss(velocity, trained, model.reference, part, settings.algorithm)

        if settings.rule == "marble":
            step, how = model.step, settings.balance
            grads, balance, metrics = gradients.balanced(losses, model.params, batch, balance, step, how, shares)
        else:
            num = batch.advantages.shape[1]
            mean = jnp.append(jnp.full(num, 1 / num), 1.0)
            grads, metrics = gradients.combined(losses, model.params, batch, mean, settings.balance.micro_batches)
        schedule = settings.algorithm if isinstance(settings.algorithm, nft.Settings) else nft.Settings()
        updated = mesh.constrain(nft.apply_gradients(model, grads, optimizer, schedule), self.devices)
        return (updated, balance), metrics | norms(model.params, updated.params, grads)

    def _energy(self, model: nft.State, frozen: common.Frozen, buffer: Any, key) -> Float[Array, ""]:
        """KL(p_theta | p_base) in nats as the control energy of the memoryless SDE, on noised samples of the old policy."""
        schedule, velocity = Schedule(num_steps=_ENERGY_STEPS), self._velocity(frozen)
        samples, labels = buffer.samples[:_ENERGY_SAMPLES], buffer.labels[:_ENERGY_SAMPLES]
        noise = jax.random.normal(key, samples.shape)

        def at(inputs):
            t, gain = inputs
            times = jnp.full(len(samples), t)
            x = path.interpolate(samples, noise, times)
            difference = velocity(model.params, x, times, labels) - velocity(model.reference, x, times, labels)
            return 0.5 * schedule.step_size * (4 / gain**2) * jnp.sum(difference**2, axis=tuple(range(1, x.ndim))).mean()

        grid = jnp.asarray(schedule.times[:-1], jnp.float32), jnp.asarray(schedule.gain, jnp.float32)
        return jax.lax.map(at, grid).sum()


@jax.named_scope("rollout")
def _collect(velocity, params, noise, labels, key, settings: nft.Settings | flow_grpo.Settings):
    module: Any = nft if isinstance(settings, nft.Settings) else flow_grpo
    return module.collect(velocity, params, noise, labels, key, settings)


def _conditions(key, num_groups: int, num_classes: int) -> Int[Array, " groups"]:
    """Every class equally often, in an order of this refresh's own."""
    rounds = -(-num_groups // num_classes)
    drawn = jax.vmap(lambda key: jax.random.permutation(key, num_classes))(jax.random.split(key, rounds))
    return drawn.reshape(-1)[:num_groups].astype(jnp.int32)


def _spread(rolled: Rolled, num_groups: int) -> Float[Array, ""]:
    """How samples of one condition differ: the standard deviation of a pixel over its group, root mean square over pixels."""
    flat = rolled.images.reshape(len(rolled.images), -1)
    means = jax.ops.segment_sum(flat, rolled.groups, num_groups) * (num_groups / len(flat))
    return jnp.sqrt(jnp.mean((flat - means[rolled.groups]) ** 2))
