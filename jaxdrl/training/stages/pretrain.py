"""Stage 3: a class-conditional generator trained with flow matching; and its control, the same training continued.

The default run starts from the converged base in the package; `config.pretrain.from_scratch` trains it here.

The trunk is trained with a constant learning rate; the base is the average of the weights at the end of a branch of `decay_steps`
steps in which the rate falls to 0 ("warmup-stable-decay": Hu et al., arXiv 2404.06395; Haegele et al., arXiv 2405.18392). The
control "pretraining continued at equal compute" goes on from the trunk, at the same rate, and then branches off in the same way:
it is what a longer pretraining would have given, and it is not held back by a rate that has decayed already. The steps of its
branch come on top of its budget. Without a branch (`decay_steps` = 0) the base is the trunk's average.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxdrl import data
from jaxdrl.algorithms import flow_matching, representation_alignment
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.training import bad_steps, compute, distributed, feeding, generation, loading, mesh, models, plateau, state, telemetry
from jaxdrl.training.context import Run
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_key
from jaxdrl.training.workdir import data_directory, stage_result
from jaxdrl.weights import assets, files

name = "pretrain"


def run(run: Run) -> dict:
    """Trains the base, or takes it from the package; writes `model.safetensors` (EMA) and `state.safetensors` (the trunk).

    Where `config.backbone.weights` names converted weights, they are the base, and nothing is trained or written.

    Args:
        run: The run.

    Returns:
        steps, parameters, fingerprint of the base and `from_scratch`.

    Raises:
        UserError: If the package ships no base for this recipe and `from_scratch` is off, or REPA is to be trained without its target encoder.
    """
    config, directory = run.config, run.workdir / name
    if config.backbone.weights:
        return _given(run)
    directory.mkdir(parents=True, exist_ok=True)
    template, shipped = initial_state(config), config.pretrain.shipped or config.name
    if config.pretrain.from_scratch:
        base = _trunk_and_branch(run, name, template, 0, config.pretrain.steps, curve=True)
    else:
        if data.class_names(config.data):
            raise UserError(
                f"config.data.classes: the shipped base of {shipped} knows all classes by their own labels; "
                "set --config.pretrain.from_scratch=true"
            )
        what = f"the shipped base of {shipped}"
        trunk = files.match(template, assets.load(shipped, "state"), what)
        base = files.match(template.params, assets.load(shipped, "base"), what)
        distributed.save_tree(directory / "state.safetensors", trunk)
    distributed.save_tree(directory / "model.safetensors", base)
    return {
        "from_scratch": bool(config.pretrain.from_scratch),
        "steps": config.pretrain.steps + config.pretrain.decay_steps,
        "parameters": models.backbone(config).num_params,
        "fingerprint": files.fingerprint(base),
        "shipped_fingerprint": assets.fingerprints(shipped).get("base", ""),
    }


def _given(run: Run) -> dict:
    """Checks that the given weights fit, before later stages need them."""
    config = run.config
    if config.pretrain.from_scratch:
        raise UserError("config.pretrain.from_scratch and config.backbone.weights exclude each other; unset one")
    if config.evaluate.controls:
        raise UserError(
            "config.evaluate.controls continues the base's own training, whose state converted weights do not have; "
            "set --config.evaluate.controls=false"
        )
    base = loading.load_model(config, run.workdir, "base")
    loading.load_tokenizer(config)
    return {
        "from_scratch": False,
        "weights": config.backbone.weights,
        "parameters": models.backbone(config).num_params,
        "fingerprint": files.fingerprint(base),
    }


def run_longer(run: Run) -> dict:
    """The control: pretraining continued for the operations that discriminator and posttrain took together.

    Args:
        run: The run, with pretrain and discriminator finished.

    Returns:
        steps added, and the operations they stand for.
    """
    config = run.config
    if not config.evaluate.controls:
        return {"skipped": "config.evaluate.controls is off"}
    spent = (stage_result(run.workdir, "discriminator") or {}).get("flops", 0.0) + compute.posttrain_flops(config)
    extra = compute.pretrain_steps(config, spent)
    chunk = _chunk(config)
    extra = math.ceil(extra / chunk) * chunk
    start = files.load_tree(run.workdir / name / "state.safetensors", initial_state(config))
    directory = run.workdir / "longer"
    directory.mkdir(parents=True, exist_ok=True)
    average = _trunk_and_branch(run, "longer", start, int(start.step), extra, curve=False)
    distributed.save_tree(directory / "model.safetensors", average)
    return {"steps": extra, "flops": spent, "total_steps": int(start.step) + extra + config.pretrain.decay_steps}


def initial_state(config: Config) -> state.TrainState:
    """The train state at step 0.

    Args:
        config: A run's config.

    Returns:
        Freshly initialised parameters, their EMA and the optimizer's state.
    """
    params = models.backbone(config).init(stage_key(config.seed, "pretrain/init"))
    return state.create(params, _optimizer(config), config.pretrain.ema_decay)


def _trunk_and_branch(run: Run, stage: str, start: state.TrainState, first: int, count: int, *, curve: bool) -> PyTree:
    """Trains the trunk from step `first` for `count` steps and the branch at its end; returns the branch's average."""
    path, decay_steps = run.workdir / stage / "state.safetensors", run.config.pretrain.decay_steps
    if distributed.from_first(path.exists()):
        trunk = files.load_tree(path, start)
    else:
        trunk = train(run, stage, start, first, count, curve=curve)
        distributed.save_tree(path, trunk)
    if decay_steps == 0:
        return trunk.ema
    return train(run, stage, trunk, first + count, decay_steps, curve=curve, decay=True).ema


def train(
    run: Run, stage: str, start: state.TrainState, first: int, count: int, *, curve: bool, decay: bool = False
) -> state.TrainState:
    """Trains from step `first` for `count` steps, with checkpoints, metrics and progress.

    Args:
        run: The run.
        stage: "pretrain" or "longer": where checkpoints and metrics go.
        start: The state at step `first`.
        first: Steps already taken; data and randomness continue from there.
        count: Steps to take.
        curve: Whether the distances of the plateau curve are measured every `curve_every` steps.
        decay: Whether the learning rate falls to 0 over these steps.

    Returns:
        The final state.
    """
    config = run.config
    frozen = mesh.place((loading.load_tokenizer(config), loading.load_alignment(config)), run.mesh)
    step_fn = _compiled(run, _optimizer(config, (first, first + count) if decay else None))
    measure = plateau.measure(run) if curve else None
    parts = _Parts(lambda *arguments: step_fn(arguments[0], frozen, *arguments[1:]), _batches(run), measure)
    folder, shown = ("checkpoints_decay", f"{stage} decay") if decay else ("checkpoints", stage)
    with run.checkpoints(stage, folder) as checkpoints:
        while True:
            current = checkpoints.restored(lambda state: state, run.mesh, start)
            step = int(current.step)
            progress = Progress(shown, count, start=step - first, seconds=config.runtime.progress_seconds)
            try:
                current = _steps(run, stage, current, (first, first + count), parts, checkpoints, progress)
            except bad_steps.GoBack:
                continue
            checkpoints.wait()
            return jax.device_get(mesh.on_this_process(current, run.mesh))


class _Parts(NamedTuple):
    """Of a training loop: the compiled steps, the batches, and what is measured now and then."""

    step_fn: Callable[..., Any]
    batches: data.Batches
    measure: Callable[[PyTree], dict[str, float]] | None


def _steps(run: Run, stage: str, current, span: tuple[int, int], parts: _Parts, checkpoints, progress) -> state.TrainState:
    """Trains to the end of the span, from where the state is."""
    config, (first, last), step = run.config, span, int(current.step)
    key, chunk, size = stage_key(config.seed, "pretrain"), _chunk(config), config.pretrain.batch_size
    writer = run.writer.for_stage(stage)
    writer.resume(step)
    bad, stream = bad_steps.BadSteps(run, stage, step), parts.batches.stream(step, chunk)
    meter = telemetry.Meter(size)
    while step < last:
        batch = meter.input(lambda: next(stream))
        images, labels = (feeding.place(batch[part], run.mesh, size) for part in ("image", "label"))
        current, found = parts.step_fn(current, images, labels, bad.key(key), np.float32(bad.limit))
        metrics = _judged(bad, step, {name: np.asarray(values) for name, values in found.items()}, batch)
        step += chunk
        writer.write_machine(step, meter.step(chunk))
        if metrics:
            bad.seen(metrics["gradient_norm"])
            writer.write_scalars(step, metrics)
        if parts.measure and step % config.pretrain.curve_every == 0:
            distances = parts.measure(mesh.on_this_process(current.ema, run.mesh))
            writer.write_scalars(step, distances)
            metrics |= distances
        run.at(stage, step)
        checkpoints.after(step, current, run.stopping, metrics=metrics, flush=writer.flush)
        progress.update(step - first, **{name: metrics[name] for name in ("loss",) if name in metrics})
    return current


def _judged(bad: bad_steps.BadSteps, step: int, found: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> dict[str, float]:
    """Writes down which of the steps behind `step` were bad; returns the metrics of the others."""
    for offset in np.flatnonzero(found["bad"]):
        numbers = {name: float(found[name][offset]) for name in ("loss", "gradient_norm")}
        wrong = bad.judge(numbers["loss"], numbers["gradient_norm"])
        bad.found(step + int(offset) + 1, wrong, numbers, {name: part[offset] for name, part in batch.items()})
    good = ~found["bad"]
    return {name: float(np.mean(found[name][good])) for name in ("loss", "gradient_norm")} if good.any() else {}


def _batches(run: Run) -> data.Batches:
    """This process's share of the global batches."""
    config = run.config
    index, parts = feeding.share(run.mesh, config.pretrain.batch_size)
    return data.batches(
        data.open_split(config.data, data_directory(run), "train"),
        batch_size=config.pretrain.batch_size // parts,
        seed=config.seed,
        process_index=index,
        process_count=parts,
        horizontal_flip=config.data.horizontal_flip,
    )


def _chunk(config: Config) -> int:
    """Steps a compiled call: divides every length that matters, so that a resumed run makes the same calls."""
    settings = config.pretrain
    return math.gcd(settings.steps, settings.decay_steps, settings.curve_every, 50)


def _optimizer(config: Config, decay: tuple[int, int] | None = None):
    """Adam at a constant rate, or with a rate that falls to 0 from step `decay[0]` to step `decay[1]`."""
    settings = config.pretrain
    start, end = decay or (0, 0)
    optimizer, _ = state.make_optimizer(
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        hold_steps=start,
        total_steps=end,
        decay="linear" if decay else "constant",
        grad_clip=settings.grad_clip,
        b2=settings.adam_b2,
    )
    return optimizer


def _compiled(run: Run, optimizer):
    """Compiles `chunk` training steps: (state, frozen, images [n, b, ...], labels [n, b], key, limit of the gradient's norm) -> (state, numbers [n]).

    A bad step, see `training/bad_steps.py`, changes nothing but the counter.
    """
    objective, decay = _objective(run.config), run.config.pretrain.ema_decay

    def step(current, frozen, batch, key, limit):
        images, labels = (mesh.constrain_batch(part, run.mesh) for part in batch)
        key = jax.random.fold_in(key, current.step)
        # Constrained where it is used, so that the gradient is born in the same layout.
        placed = lambda params: objective(mesh.constrain(params, run.mesh), frozen, images, labels, key)  # noqa: E731
        loss, grads = jax.value_and_grad(placed)(current.params)
        updated, norm = state.apply_gradients(current, grads, optimizer, decay), optax.tree.norm(grads)
        bad = ~jnp.isfinite(loss) | ~jnp.isfinite(norm) | (norm > limit)
        kept = jax.tree.map(lambda new, old: jnp.where(bad, old, new), updated, current)
        kept = mesh.constrain(dataclasses.replace(kept, step=updated.step), run.mesh)
        return kept, {"loss": loss, "gradient_norm": norm, "bad": bad}

    @partial(jax.jit, donate_argnums=0)
    def steps(current, frozen, images, labels, key, limit):
        return jax.lax.scan(lambda carry, batch: step(carry, frozen, batch, key, limit), current, (images, labels))

    return steps


def _objective(config: Config):
    """(params, (tokenizer, target encoder), images, labels, key) -> loss: flow matching, or REPA's where there are projectors."""
    network, encode, settings = models.backbone(config), generation.encode_batch(config), config.pretrain
    target = models.alignment(config)
    dropped = {"label_dropout": settings.label_dropout, "null_label": network.null_label}
    try:
        law = flow_matching.TimeLaw(
            kind=settings.time_law, mean=settings.time_mean, std=settings.time_std, shift=settings.time_shift
        )
    except ValueError as error:
        raise UserError(f"config.pretrain: {error}") from error

    eps, weight, projected = settings.target_eps, settings.alignment_weight, network.aligned

    def plain(params, frozen, images, labels, key):
        latents = encode(frozen[0], images, jax.random.fold_in(key, 1))
        return flow_matching.loss(network.velocity, params, latents, labels, key, **dropped, times=law, target_eps=eps)

    if target is None or projected is None:
        return plain

    def aligned(params, frozen, images, labels, key):
        latents = encode(frozen[0], images, jax.random.fold_in(key, 1))
        targets = [target.features(frozen[1], images)["patches"]]
        options = {"weight": weight, "times": law, **dropped}
        return representation_alignment.loss(projected, params, latents, labels, targets, key, **options)[0]

    return aligned
