"""Adjoint Matching as a method of the posttrain stage: one call of the compiled step is one refresh.

Rollouts, reward gradients and adjoints, then `epochs` passes of minibatch updates over the trajectories, all in one program with donated
state. Nothing touches the host in between.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl.algorithms import adjoint_matching
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.flow.memoryless import Schedule
from jaxdrl.training import mesh, models, state
from jaxdrl.training.methods import common


class State(NamedTuple):
    """What a checkpoint of this stage holds: the model's train state and the outlier threshold tau."""

    refresh: Int[Array, ""]
    model: state.TrainState
    threshold: Float[Array, ""]


def settings_from(config: Config) -> adjoint_matching.Settings:
    """Reads `config.posttrain` into the algorithm's settings.

    Args:
        config: A run's config.

    Returns:
        The settings.

    Raises:
        UserError: If a value is out of range.
    """
    options = config.posttrain
    common.check_sizes(options)
    if {key: dict(value) for key, value in dict(options.rewards).items()} != {"discriminator": {}}:
        raise UserError(
            "config.posttrain.rewards: adjoint_matching takes the gradient of the discriminator's logit alone; other rewards are for "
            "nft and flow_grpo"
        )
    if options.lora.rank or options.micro_batches != 1 or options.balance.rule != "sum":
        raise UserError("config.posttrain: lora, micro_batches and balance are for nft and flow_grpo, not for adjoint_matching")
    if options.subset_reduction not in ("sum", "mean"):
        raise UserError(f"config.posttrain.subset_reduction: {options.subset_reduction!r} must be sum or mean")
    try:
        offsets = {name: options[name] if options[name] >= 0 else None for name in ("time_offset", "noise_offset", "gain_eps")}
        schedule = Schedule(num_steps=options.num_timesteps, integrator=options.integrator, **offsets)
    except ValueError as error:
        raise UserError(f"config.posttrain: {error} (in a config, -1 stands for None: the papers' 1 / K)") from error
    return adjoint_matching.Settings(
        schedule=schedule,
        reward_scale=options.reward_scale,
        timestep_fraction=options.timestep_fraction,
        timestep_split=options.timestep_split,
        subset_reduction=options.subset_reduction,
        outlier_mask=options.outlier_mask,
        outlier_quantile=options.outlier_quantile,
        outlier_decay=options.outlier_decay,
        outlier_cap=options.outlier_cap,
    )


def initial_state(config: Config, base) -> State:
    """The state before the first refresh: the tuned model starts at the base.

    Args:
        config: A run's config.
        base: The base's parameters.

    Returns:
        A `State` with buffers of its own, so that it can be donated.
    """
    params = jax.tree.map(jnp.array, base)
    optimizer, _ = common.optimizer(config)
    return State(
        jnp.zeros((), jnp.int32), state.create(params, optimizer, config.posttrain.ema_decay), jnp.zeros((), jnp.float32)
    )


def compile_step(config: Config, settings: adjoint_matching.Settings, devices: jax.sharding.Mesh):
    """Builds the jitted step: (state, frozen, key) -> (state, metrics).

    Args:
        config: A run's config.
        settings: From `settings_from`.
        devices: The mesh; the batch is sharded over its data and fsdp axes.

    Returns:
        The compiled function; the state is donated, the frozen weights are not.
    """
    options, network, tokenizer = config.posttrain, models.backbone(config), models.tokenizer(config)
    optimizer, _ = common.optimizer(config)
    batches = options.buffer_size // options.batch_size

    def update(carry, inputs):
        model, threshold = carry
        batch, key = inputs
        (_, (threshold, metrics)), grads = jax.value_and_grad(
            lambda params: adjoint_matching.loss(network.velocity, params, batch, key, threshold, settings), has_aux=True
        )(model.params)
        updated = state.apply_gradients(model, grads, optimizer, options.ema_decay)
        return (updated, threshold), metrics | state.norms(model.params, updated.params, grads)

    def epoch(carry, key, buffer):
        order_key, step_key = jax.random.split(key)
        order = jax.random.permutation(order_key, options.buffer_size)
        # What does not fill a batch is left out, other trajectories in each epoch.
        order = order[: batches * options.batch_size].reshape(batches, options.batch_size)
        keys = jax.random.split(step_key, batches)

        def minibatch(carry, inputs):
            index, key = inputs
            batch = mesh.constrain_batch(jax.tree.map(lambda values: values[index], buffer), devices)
            return update(carry, (batch, key))

        return jax.lax.scan(minibatch, carry, (order, keys))

    def step(current: State, frozen: common.Frozen, key):
        reward = models.reward(config, frozen.encoder, frozen.head)
        key = jax.random.fold_in(key, current.refresh)
        noise_key, sde_key, update_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, (options.buffer_size, *network.sample_shape), jnp.float32)
        labels = jnp.arange(options.buffer_size, dtype=jnp.int32) % network.num_classes
        noise, labels = mesh.constrain_batch((noise, labels), devices)

        def collect(part):
            noise, labels, key = part
            scored = lambda x, y: reward(tokenizer.decode(frozen.tokenizer, x), y)  # noqa: E731
            return adjoint_matching.collect(
                network.velocity, current.model.params, frozen.base, scored, noise, labels, key, settings
            )

        buffer, collected = common.in_chunks(collect, noise, labels, sde_key, options.rollout_batch)
        carry, metrics = jax.lax.scan(
            lambda carry, key: epoch(carry, key, buffer),
            (current.model, current.threshold),
            jax.random.split(update_key, options.epochs),
        )
        return State(current.refresh + 1, *carry), collected | jax.tree.map(jnp.mean, metrics)

    return jax.jit(step, donate_argnums=0)


def trained(config: Config, current: State) -> PyTree:
    """What becomes the tuned model: the average of the weights if there is one.

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
        tree: From `trained`.
        frozen: Not needed here.

    Returns:
        Parameters of the generator.
    """
    del config, frozen
    return tree


def gradient_steps(current: State) -> int:
    """How many gradient steps were taken.

    Args:
        current: The state.

    Returns:
        A number.
    """
    return int(current.model.step)
