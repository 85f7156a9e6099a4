"""Stage 5: the generator tuned by KL-regularised RL on the discriminator's logit (DRL, stage 2), with Adjoint Matching.

One call of the compiled step is one refresh: rollouts, reward gradients and adjoints, then `epochs` passes of minibatch updates
over the trajectories, all in one program with donated state. Nothing touches the host in between.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl.algorithms import adjoint_matching
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.flow.memoryless import Schedule
from jaxdrl.training import compute, loading, mesh, models, state
from jaxdrl.training.checkpoints import Checkpoints
from jaxdrl.training.context import Run
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_key
from jaxdrl.weights import files

name = "posttrain"


class Frozen(NamedTuple):
    """What the step reads and never changes: the KL reference and the way from its space to the reward."""

    base: PyTree
    tokenizer: PyTree
    encoder: PyTree
    head: PyTree


class State(NamedTuple):
    """What a checkpoint of this stage holds: the model's train state and the outlier threshold tau."""

    refresh: Int[Array, ""]
    model: state.TrainState
    threshold: Float[Array, ""]


def run(run: Run) -> dict:
    """Tunes the base; writes `model.safetensors` (the EMA if there is one).

    Args:
        run: The run, with pretrain and discriminator finished.

    Returns:
        refreshes, gradient steps, the last refresh's metrics and the operations spent.

    Raises:
        UserError: If the algorithm is unknown, or the buffer is smaller than a batch.
    """
    config, options = run.config, run.config.posttrain
    settings = settings_from(config)
    base = loading.load_model(config, run.workdir, "base")
    reward = (loading.load_encoder(config, run.workdir, "reward"), loading.load_discriminator(run.workdir))
    frozen = mesh.place(Frozen(base, loading.load_tokenizer(config), *reward), run.mesh)
    step_fn = compile_step(config, settings, run.mesh)
    writer, key, metrics = run.writer.for_stage(name), stage_key(config.seed, name), {}
    start = initial_state(config, base)
    with Checkpoints(run.workdir / name / "checkpoints", config.runtime.checkpoint_seconds) as checkpoints:
        restored = checkpoints.restore(start)
        current = restored[1] if restored else mesh.place(start, run.mesh)
        refresh = int(current.refresh)
        writer.resume(refresh)
        progress = Progress(name, options.refreshes, unit="refresh", start=refresh, seconds=config.runtime.progress_seconds)
        while refresh < options.refreshes:
            began = time.monotonic()
            current, measured = step_fn(current, frozen, key)
            metrics = scalars(jax.device_get(measured))
            metrics["images_per_second"] = options.buffer_size / (time.monotonic() - began)
            refresh += 1
            _check_finite(metrics, refresh)
            writer.write_scalars(refresh, metrics)
            checkpoints.save_when_due(refresh, current, flush=writer.flush)
            progress.update(refresh, reward=metrics["reward_mean"], kl=metrics["control_energy"])
        checkpoints.wait()
    final = jax.device_get(current.model)
    files.save_tree(run.workdir / name / "model.safetensors", final.ema if options.ema_decay > 0 else final.params)
    return {
        "refreshes": options.refreshes,
        "gradient_steps": int(final.step),
        "flops": compute.posttrain_flops(config),
        "parameters": models.backbone(config).num_params,
    }


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
    if options.algorithm != "adjoint_matching":
        raise UserError(f"config.posttrain.algorithm: {options.algorithm!r} is unknown; it must be adjoint_matching")
    if options.buffer_size < options.batch_size:
        raise UserError(
            f"config.posttrain.buffer_size ({options.buffer_size}) must be at least batch_size ({options.batch_size})"
        )
    if options.rollout_batch and options.buffer_size % options.rollout_batch:
        raise UserError(
            f"config.posttrain.buffer_size ({options.buffer_size}) must be a multiple of rollout_batch ({options.rollout_batch})"
        )
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
    optimizer, _ = _optimizer(config)
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
    optimizer, _ = _optimizer(config)
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

    def step(current: State, frozen: Frozen, key):
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

        buffer, collected = _in_chunks(collect, noise, labels, sde_key, options.rollout_batch)
        carry, metrics = jax.lax.scan(
            lambda carry, key: epoch(carry, key, buffer),
            (current.model, current.threshold),
            jax.random.split(update_key, options.epochs),
        )
        return State(current.refresh + 1, *carry), collected | jax.tree.map(jnp.mean, metrics)

    return jax.jit(step, donate_argnums=0)


def scalars(metrics: dict) -> dict[str, float]:
    """Flattens vectors over time into four means a name (`adjoint_norm_t0.00` .. `adjoint_norm_t0.75`).

    Args:
        metrics: Scalars and vectors of length K, on the host.

    Returns:
        name -> number.
    """
    flat = {}
    for metric, value in metrics.items():
        if value.ndim == 0:
            flat[metric] = float(value)
            continue
        for quarter in range(4):
            part = value[len(value) * quarter // 4 : len(value) * (quarter + 1) // 4]
            flat[f"{metric}_t{quarter / 4:.2f}"] = float(part.mean()) if len(part) else float("nan")
    return flat


def _in_chunks(collect, noise, labels, key, size: int):
    """Collects `size` trajectories at a time (0: all at once), one after the other: less memory, and better caching on CPU."""
    if size in (0, len(noise)):
        return collect((noise, labels, key))
    chunks = len(noise) // size
    # Interleaved, so that a chunk of a batch that is sharded over devices lies on all of them.
    split = lambda values: values.reshape((size, chunks, *values.shape[1:])).swapaxes(0, 1)  # noqa: E731
    buffer, metrics = jax.lax.map(collect, (split(noise), split(labels), jax.random.split(key, chunks)))
    join = lambda values: values.swapaxes(0, 1).reshape((len(noise), *values.shape[2:]))  # noqa: E731
    return jax.tree.map(join, buffer), jax.tree.map(lambda values: values.mean(axis=0), metrics)


def _optimizer(config: Config):
    options = config.posttrain
    return state.make_optimizer(
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        total_steps=options.refreshes * options.epochs * (options.buffer_size // options.batch_size),
        decay=options.decay,
        grad_clip=options.grad_clip,
    )


def _check_finite(metrics: dict[str, float], refresh: int) -> None:
    bad = [metric for metric in ("loss", "reward_mean") if metrics[metric] - metrics[metric] != 0]
    if bad:
        raise UserError(
            f"posttrain: {', '.join(bad)} is not finite at refresh {refresh}; "
            "lower config.posttrain.learning_rate or config.posttrain.reward_scale (the last checkpoint is kept)"
        )
