"""Stage 3: a class-conditional generator trained with flow matching; and its control, the same training continued.

The default run starts from the converged base in the package; `config.pretrain.from_scratch` trains it here. The learning rate
is constant and the weights that count are the exponential moving average, so training can be continued at any time without
re-warming: that is what makes "pretraining continued at equal compute" a fair control.
"""

import math

import jax
import numpy as np

from jaxdrl import data
from jaxdrl.algorithms import flow_matching
from jaxdrl.config import Config
from jaxdrl.training import compute, mesh, models, plateau, state
from jaxdrl.training.checkpoints import Checkpoints
from jaxdrl.training.context import Run
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_key
from jaxdrl.training.workdir import data_directory, stage_result
from jaxdrl.weights import assets, files

name = "pretrain"


def run(run: Run) -> dict:
    """Trains the base, or takes it from the package; writes `model.safetensors` (EMA) and `state.safetensors`.

    Args:
        run: The run.

    Returns:
        steps, parameters, fingerprint of the whole state and `from_scratch`.

    Raises:
        UserError: If the package ships no base for this recipe and `from_scratch` is off.
    """
    config = run.config
    template = initial_state(config)
    if config.pretrain.from_scratch:
        final = train(run, name, template, 0, config.pretrain.steps, curve=True)
    else:
        shipped = assets.load(config.name, "state")
        final = files.match(template, shipped, f"the shipped base of {config.name}")
    directory = run.workdir / name
    directory.mkdir(parents=True, exist_ok=True)
    files.save_tree(directory / "model.safetensors", final.ema)
    files.save_tree(directory / "state.safetensors", final)
    return {
        "from_scratch": bool(config.pretrain.from_scratch),
        "steps": int(final.step),
        "parameters": models.backbone(config).num_params,
        "fingerprint": files.fingerprint(files.load_tree(directory / "state.safetensors")),
        "shipped_fingerprint": assets.fingerprints(config.name).get("state", ""),
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
    final = train(run, "longer", start, int(start.step), extra, curve=False)
    directory = run.workdir / "longer"
    directory.mkdir(parents=True, exist_ok=True)
    files.save_tree(directory / "model.safetensors", final.ema)
    return {"steps": extra, "flops": spent, "total_steps": int(final.step)}


def initial_state(config: Config) -> state.TrainState:
    """The train state at step 0.

    Args:
        config: A run's config.

    Returns:
        Freshly initialised parameters, their EMA and the optimizer's state.
    """
    params = models.backbone(config).init(stage_key(config.seed, "pretrain/init"))
    return state.create(params, _optimizer(config), config.pretrain.ema_decay)


def train(run: Run, stage: str, start: state.TrainState, first: int, count: int, *, curve: bool) -> state.TrainState:
    """Trains from step `first` for `count` steps, with checkpoints, metrics and progress.

    Args:
        run: The run.
        stage: "pretrain" or "longer": where checkpoints and metrics go.
        start: The state at step `first`.
        first: Steps already taken; data and randomness continue from there.
        count: Steps to take.
        curve: Whether the distances of the plateau curve are measured every `curve_every` steps.

    Returns:
        The final state.
    """
    config = run.config
    source = data.open_split(config.data, data_directory(run), "train")
    batches = data.batches(
        source, batch_size=config.pretrain.batch_size, seed=config.seed, horizontal_flip=config.data.horizontal_flip
    )
    measure = plateau.measure(run) if curve else None
    key, chunk = stage_key(config.seed, "pretrain"), _chunk(config)
    step_fn = _compiled(run)
    with Checkpoints(run.workdir / stage / "checkpoints", config.runtime.checkpoint_seconds) as checkpoints:
        restored = checkpoints.restore(start)
        current = restored[1] if restored else mesh.place(start, run.mesh)
        step = int(current.step)
        writer = run.writer.for_stage(stage)
        writer.resume(step)
        progress = Progress(stage, count, start=step - first, seconds=config.runtime.progress_seconds)
        stream = batches.stream(step, chunk)
        while step < first + count:
            batch = next(stream)
            current, losses = step_fn(current, batch["image"], batch["label"], key)
            step += chunk
            loss = float(np.mean(losses))
            writer.write_scalars(step, {"loss": loss})
            if measure and step % config.pretrain.curve_every == 0:
                writer.write_scalars(step, measure(current.ema))
            checkpoints.save_when_due(step, current, flush=writer.flush)
            progress.update(step - first, loss=loss)
        checkpoints.wait()
    return jax.device_get(current)


def _chunk(config: Config) -> int:
    """Steps a compiled call: divides every length that matters, so that a resumed run makes the same calls."""
    return math.gcd(math.gcd(config.pretrain.steps, config.pretrain.curve_every), 50)


def _optimizer(config: Config):
    settings = config.pretrain
    optimizer, _ = state.make_optimizer(
        learning_rate=settings.learning_rate, warmup_steps=settings.warmup_steps, grad_clip=settings.grad_clip
    )
    return optimizer


def _compiled(run: Run):
    """Compiles `chunk` training steps: (state, images [n, b, ...], labels [n, b], key) -> (state, losses [n])."""
    config = run.config
    network, pixels, optimizer = models.backbone(config), models.tokenizer(config), _optimizer(config)
    settings = config.pretrain

    def step(current, batch, key):
        images, labels = (mesh.constrain_batch(part, run.mesh) for part in batch)
        loss, grads = jax.value_and_grad(
            lambda params: flow_matching.loss(
                network.velocity,
                params,
                pixels.encode(images),
                labels,
                jax.random.fold_in(key, current.step),
                label_dropout=settings.label_dropout,
                null_label=network.null_label,
            )
        )(current.params)
        return state.apply_gradients(current, grads, optimizer, settings.ema_decay), loss

    @jax.jit
    def steps(current, images, labels, key):
        return jax.lax.scan(lambda carry, batch: step(carry, batch, key), current, (images, labels))

    return steps
