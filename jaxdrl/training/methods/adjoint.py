"""Adjoint Matching as a method of the posttrain stage: one call of the compiled step is one refresh.

Rollouts, reward gradients and adjoints, then `epochs` passes of minibatch updates over the trajectories, all in one program with donated
state. Nothing touches the host in between. Rewards must be traced ones, since their gradients are what is learnt from.

Several rewards (`config.posttrain.balance.rule`), with weights w_i and the equations of `algorithms/adjoint_matching.py`:

    sum        the reward is sum_i w_i r_i, and lambda multiplies it: m rewards pull about m times as hard as one
    uniform    the reward is the mean: as sum, with lambda / m
    marble     one adjoint a reward, whose gradients MARBLE's program balances at each step; about as hard as uniform. Trajectories
               count by (6) at the weights w_i / m
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.algorithms import adjoint_matching
from jaxdrl.balancing import gradients
from jaxdrl.balancing.accumulation import accumulate
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.flow.memoryless import Schedule
from jaxdrl.training import frozen_weights, lora, mesh, models, state
from jaxdrl.training.methods import buffers, common, overlap

RULES = ("sum", "uniform", "marble")


@dataclass(frozen=True, kw_only=True)
class Settings(adjoint_matching.Settings):
    """What `config.posttrain` says, checked: the algorithm's numbers, and how rewards and weights are treated.

    Attributes:
        rule: One of `RULES`.
        balance: Of "marble", and the micro-batches of any rule.
        lora: None: all weights are trained.
        names: Labels of the rewards.
    """

    rule: str
    balance: gradients.Settings
    lora: lora.Settings | None
    names: tuple[str, ...]


class State(NamedTuple):
    """What a checkpoint of this stage holds.

    Attributes:
        refresh: Iterations done.
        model: The train state; of the adapters alone, where there are any.
        threshold: tau, which says what an outlier is.
        balance: MARBLE's averages; None with another rule.
    """

    refresh: Int[Array, ""]
    model: state.TrainState
    threshold: Float[Array, ""]
    balance: gradients.State | None = None


def settings_from(config: Config) -> Settings:
    """Reads `config.posttrain` into the algorithm's settings.

    Args:
        config: A run's config.

    Returns:
        The settings.

    Raises:
        UserError: If a value is out of range, or a reward has no gradient.
    """
    options = config.posttrain
    common.check_sizes(options)
    frozen_weights.check(config)
    buffers.check(config)
    if options.balance.rule == "gdpo":
        raise UserError(
            "config.posttrain.balance.rule: gdpo normalises advantages, which adjoint_matching does not have; choose one of "
            f"{', '.join(RULES)}"
        )
    weights = common.reward_weights(config, RULES)
    hosts = [reward.name for reward in common.rewards(config) if not reward.traced]
    if hosts:
        raise UserError(
            f"config.posttrain.rewards: adjoint_matching needs the gradient of a reward, which {', '.join(hosts)} does not have; leave it "
            "out, or set config.posttrain.algorithm to nft or flow_grpo"
        )
    overlap.check(config, common.rewards(config))
    if options.subset_reduction not in ("sum", "mean"):
        raise UserError(f"config.posttrain.subset_reduction: {options.subset_reduction!r} must be sum or mean")
    try:
        offsets = {name: options[name] if options[name] >= 0 else None for name in ("time_offset", "noise_offset", "gain_eps")}
        schedule = Schedule(num_steps=options.num_timesteps, integrator=options.integrator, **offsets)
    except ValueError as error:
        raise UserError(f"config.posttrain: {error} (in a config, -1 stands for None: the papers' 1 / K)") from error
    try:
        balance = common.balance(config)
    except ValueError as error:
        raise UserError(f"config.posttrain.balance: {error}") from error
    share = 1.0 if options.balance.rule == "sum" else 1 / len(weights)
    return Settings(
        schedule=schedule,
        reward_scale=options.reward_scale,
        timestep_fraction=options.timestep_fraction,
        timestep_split=options.timestep_split,
        subset_reduction=options.subset_reduction,
        outlier_mask=options.outlier_mask,
        outlier_quantile=options.outlier_quantile,
        outlier_decay=options.outlier_decay,
        outlier_cap=options.outlier_cap,
        reward_weights=tuple(share * weight for weight in weights),
        states_dtype=options.buffer_dtype,
        rule=options.balance.rule,
        balance=balance,
        lora=common.adapters(options.lora),
        names=tuple(dict(options.rewards)),
    )


def initial_state(config: Config, base) -> State:
    """The state before the first refresh: the tuned model is the base.

    Args:
        config: A run's config.
        base: The base's parameters.

    Returns:
        A `State` with buffers of its own, so that it can be donated.

    Raises:
        UserError: If adapters do not fit the network, or a sketch would look at no parameter.
    """
    params = jax.tree.map(jnp.array, common.trained_at_first(config, base))
    optimizer, _ = common.optimizer(config)
    balance = gradients.initial(len(dict(config.posttrain.rewards))) if config.posttrain.balance.rule == "marble" else None
    model = state.create(params, optimizer, config.posttrain.ema_decay)
    return State(jnp.zeros((), jnp.int32), model, jnp.zeros((), jnp.float32), balance)


def compile_step(config: Config, settings: Settings, devices: jax.sharding.Mesh) -> Callable[..., Any]:
    """Builds the jitted step: (state, frozen, key) -> (state, metrics).

    Args:
        config: A run's config.
        settings: From `settings_from`.
        devices: The mesh; the batch is sharded over its data and fsdp axes.

    Returns:
        The compiled function; the state is donated, the frozen weights are not.
    """
    buffers.check(config, devices)
    refresh = _Refresh(config, settings, devices)

    def step(current: State, frozen: common.Frozen, key):
        key = jax.random.fold_in(key, current.refresh)
        noise_key, sde_key, update_key = jax.random.split(key, 3)
        buffer, collected = refresh.collect(current, frozen, noise_key, sde_key)
        carry, metrics = jax.lax.scan(
            lambda carry, key: refresh.epoch(carry, key, buffer, frozen),
            current[1:],
            jax.random.split(update_key, config.posttrain.epochs),
        )
        metrics = jax.tree.map(lambda values: values.mean(axis=(0, 1)), metrics)
        return State(current.refresh + 1, *carry), collected | common.by_reward(metrics, settings.names)

    return jax.jit(step, donate_argnums=0)


@dataclass(frozen=True)
class _Refresh:
    """The parts of a refresh, all pure."""

    config: Config
    settings: Settings
    devices: jax.sharding.Mesh

    def collect(self, current: State, frozen: common.Frozen, noise_key, sde_key):
        """The buffer, and metrics."""
        options, network, settings = self.config.posttrain, models.backbone(self.config), self.settings
        tokenizer, chosen = models.tokenizer(self.config), common.rewards(self.config, frozen)
        noise = jax.random.normal(noise_key, (options.buffer_size, *network.sample_shape), jnp.float32)
        labels = jnp.arange(options.buffer_size, dtype=jnp.int32) % network.num_classes
        noise, labels = mesh.constrain_batch((noise, labels), self.devices)
        # Merged once, not at every step of the rollout.
        params = common.merged(settings.lora, frozen.base, current.model.params)
        # One reward that is taken as it is needs no sum, and no care for samples to which it does not apply.
        alone = settings.rule != "marble" and settings.reward_weights == (1.0,) and chosen[0].classes is None

        def reward(x, y):
            with jax.named_scope("decode"):
                images = tokenizer.decode(frozen.tokenizer, x)
            with jax.named_scope("reward"):
                return chosen[0](images, y) if alone else jnp.stack([one(images, y) for one in chosen], axis=1)

        in_rows = options.shuffle_block > 1

        def roll(part):
            noise, labels, key = part
            noise, labels = mesh.constrain_batch((noise, labels), self.devices)
            function = adjoint_matching.collect_per_reward if settings.rule == "marble" else adjoint_matching.collect
            score = lambda x, y: common.in_parts(reward, x, y, options.reward_batch)  # noqa: E731
            buffer, metrics = function(network.velocity, params, frozen.base, score, noise, labels, key, settings)
            buffer = mesh.constrain_batch(buffer, self.devices)
            return buffers.in_rows(self.config, buffer, self.devices) if in_rows else buffer, metrics

        buffer, metrics = common.in_chunks(roll, noise, labels, sde_key, options.rollout_batch, joined=not in_rows)
        if buffer.rewards is None:
            names = {f"{key}/{settings.names[0]}": metrics[key] for key in ("reward_mean", "reward_std")}
        else:
            names = common.by_reward(_statistics(buffer.rewards.reshape(options.buffer_size, -1)), settings.names)
        return buffer, metrics | names

    def epoch(self, carry, key, buffer, frozen: common.Frozen):
        """One pass over the buffer."""
        order_key, step_key = jax.random.split(key)
        order = buffers.orders(self.config, order_key)
        keys = jax.random.split(step_key, len(order))

        def minibatch(carry, inputs):
            index, key = inputs
            batch = mesh.constrain_batch(buffers.take(self.config, buffer, index, self.devices), self.devices)
            return self.update(carry, frozen, batch, key)

        return jax.lax.scan(minibatch, carry, (order, keys))

    @jax.named_scope("update")
    def update(self, carry, frozen: common.Frozen, batch, key):
        """One gradient step."""
        model, threshold, balance = carry
        options, settings, parts = self.config.posttrain, self.settings, self.settings.balance.micro_batches
        network, (optimizer, _) = models.backbone(self.config), common.optimizer(self.config)

        def velocity(trained, *at):
            # Here, so that each gradient is born in its weight's layout, whatever sums or balances gradients afterwards.
            trained = mesh.constrain(trained, self.devices)
            return network.velocity(common.merged(settings.lora, frozen.base, trained), *at)

        masked = {}
        if parts > 1:
            batch, threshold = masked_in_parts(velocity, model.params, batch, key, threshold, settings, parts)
            masked = {"threshold": threshold}
        if settings.rule == "marble":
            grads, balance, metrics = gradients.balanced(
                lambda params, part: adjoint_matching.per_reward_losses(velocity, params, part, key, threshold, settings),
                *(model.params, batch, balance, model.step, settings.balance),
            )
            metrics |= masked
            threshold = metrics["threshold"]
        elif parts > 1:
            losses = lambda params, part: adjoint_matching.loss_sums(velocity, params, part, key, settings)  # noqa: E731
            grads, metrics = accumulate(losses, model.params, batch, parts)
            metrics |= masked
        else:
            (_, (threshold, metrics)), grads = jax.value_and_grad(
                lambda params: adjoint_matching.loss(velocity, params, batch, key, threshold, settings), has_aux=True
            )(model.params)
        updated = mesh.constrain(state.apply_gradients(model, grads, optimizer, options.ema_decay), self.devices)
        return (updated, threshold, balance), metrics | state.norms(model.params, updated.params, grads)


def masked_in_parts(
    velocity: adjoint_matching.Velocity,
    params: PyTree,
    batch: Any,
    key: Key[Array, ""],
    threshold: Float[Array, ""],
    settings: adjoint_matching.Settings,
    micro_batches: int,
) -> tuple[Any, Float[Array, ""]]:
    """Applies the outlier mask to a minibatch whose norms do not fit in memory at once: part by part, without a gradient.

    Args:
        velocity: `velocity(params, x, t, y)`.
        params: theta.
        batch: A minibatch.
        key: Draws S, as in the loss.
        threshold: tau.
        settings: The algorithm's.
        micro_batches: In how many parts.

    Returns:
        The batch with `keep`, and the new threshold.
    """
    losses, finite = jax.lax.map(
        lambda part: adjoint_matching.trajectory_losses(velocity, params, part, key, settings),
        gradients.split(batch, micro_batches),
    )
    whole = lambda values: values.swapaxes(0, 1).reshape(-1)  # noqa: E731
    keep, threshold = adjoint_matching.outlier_mask(whole(losses), whole(finite), threshold, settings)
    return batch._replace(keep=keep), threshold


def _statistics(rewards: Float[Array, "batch m"]) -> dict[str, Float[Array, " m"]]:
    """Of the samples to which a reward applies; 0 where there are none."""
    applies = ~jnp.isnan(rewards)
    known, count = jnp.where(applies, rewards, 0.0), jnp.maximum(applies.sum(axis=0), 1)
    mean = known.sum(axis=0) / count
    square = (jnp.where(applies, known - mean, 0.0) ** 2).sum(axis=0) / count
    return {"reward_mean": mean, "reward_std": jnp.sqrt(square), "missing_share": 1 - applies.mean(axis=0)}


def trained(config: Config, current: State) -> PyTree:
    """What becomes the tuned model: the average of the weights, or of the adapters, if there is one.

    Args:
        config: A run's config.
        current: The state.

    Returns:
        A tree of the state, not a copy.
    """
    return current.model.ema if config.posttrain.ema_decay > 0 else current.model.params


def weights(config: Config, tree: PyTree, frozen: common.Frozen) -> PyTree:
    """The tuned model.

    Args:
        config: A run's config.
        tree: From `trained`; adapters are merged into the base.
        frozen: With the base.

    Returns:
        Parameters of the generator.
    """
    return common.merged(common.adapters(config.posttrain.lora), frozen.base, tree)


def gradient_steps(current: State) -> int:
    """How many gradient steps were taken.

    Args:
        current: The state.

    Returns:
        A number.
    """
    return int(current.model.step)
