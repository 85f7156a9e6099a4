"""Stage 2: two frozen feature networks, trained on the train images without labels, or taken from the package.

The reward's encoder is a small transformer trained by self-distillation; the judge's is a small convolutional network trained
contrastively. The judge is used for measuring alone.
"""

from typing import Any

import jax
import numpy as np

from jaxdrl import data, encoders
from jaxdrl.algorithms import contrastive, self_distillation
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.evaluation import classifier
from jaxdrl.training import distributed, feeding, loading, mesh, models, own_models
from jaxdrl.training import state as train_state
from jaxdrl.training.batching import compiled
from jaxdrl.training.context import Run
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_key, stage_seed
from jaxdrl.training.workdir import data_directory
from jaxdrl.weights import assets, files

name = "encoders"
OBJECTIVES = {"dino": self_distillation, "simclr": contrastive}
CHUNK = 20


def run(run: Run) -> dict:
    """Trains both encoders; writes `reward.safetensors` and `judge.safetensors`.

    Args:
        run: The run, with its data prepared.

    Returns:
        For each: fingerprint, nearest-neighbour accuracy on the validation images, and the spread of its features.

    Raises:
        UserError: If an objective is unknown, or the package ships no encoders for this recipe and they are not trained here.
    """
    result: dict[str, Any] = {}
    directory = run.workdir / name
    for which in ("reward", "judge"):
        path = directory / f"{which}.safetensors"
        _check_weights(run.config, which)
        if not distributed.from_first(path.exists()) and not run.config.encoders[which].weights:
            params = (
                train(run, which)
                if run.config.pretrain.from_scratch or own_models.is_own(run.config.encoders[which].name)
                else assets.load(run.config.pretrain.shipped or run.config.name, which)
            )
            template = jax.eval_shape(models.encoder(run.config, which).init, jax.random.key(0))
            distributed.save_tree(path, files.match(template, params, f"the {which} encoder"))
        with distributed.alone():
            result[which] = _quality(run, which)
    return result


def _check_weights(config: Config, which: str) -> None:
    settings = config.encoders[which]
    models.encoder(config, which)
    if settings.name in encoders.PUBLISHED and not settings.weights:
        raise UserError(
            f"config.encoders.{which}.weights: {settings.name} needs the folder of its weights; make it with "
            f"`jaxdrl convert --model={settings.name} --from=model.safetensors --to=DIR`"
        )
    if settings.name not in encoders.PUBLISHED and not own_models.is_own(settings.name) and settings.weights:
        raise UserError(f"config.encoders.{which}.weights: {settings.name} is trained here; leave it empty")


def train(run: Run, which: str) -> Any:
    """Trains an encoder that is not in the package, or goes on from its checkpoint.

    Args:
        run: The run, with its data prepared.
        which: "reward", "judge" or "preference".

    Returns:
        Its weights, on the host.

    Raises:
        UserError: If its objective is unknown.
    """
    config, settings = run.config, run.config.encoders[which]
    if settings.objective not in OBJECTIVES:
        raise UserError(f"config.encoders.{which}.objective: {settings.objective!r} is unknown; use {' or '.join(OBJECTIVES)}")
    objective, network = OBJECTIVES[settings.objective], models.encoder(config, which)
    keys = jax.random.split(stage_key(config.seed, f"encoders/{which}"), 3)
    if "global" not in _outputs(network):
        raise UserError(
            f'config.encoders.{which}: {settings.name} gives no "global" features to train; add them, or give weights'
        )
    optimizer, _ = train_state.make_optimizer(
        learning_rate=settings.learning_rate,
        warmup_steps=settings.steps // 20,
        total_steps=settings.steps,
        decay="cosine",
        grad_clip=1.0,
    )
    state = objective.init(keys[0], network.init(keys[1]), _outputs(network)["global"].shape[-1])
    start = (np.zeros((), np.int32), state, optimizer.init(objective.trainable(state)))

    @jax.jit
    def steps(carry, images, key):
        def one(carry, batch):
            step, state, opt_state = carry
            features = lambda params, images: network.features(params, images)["global"]  # noqa: E731
            batch = mesh.constrain_batch(batch, run.mesh)
            draw = jax.random.fold_in(key, step)
            state, opt_state, loss = objective.update(state, opt_state, optimizer, features, batch, draw, settings.augmentation)
            return (step + 1, state, opt_state), loss

        return jax.lax.scan(one, carry, images)

    source = data.open_split(config.data, data_directory(run), "train")
    seed = stage_seed(config.seed, f"encoders/{which}/data")
    flip = config.data.horizontal_flip
    index, parts = feeding.share(run.mesh, settings.batch_size)
    batches = data.batches(
        source,
        batch_size=settings.batch_size // parts,
        seed=seed,
        balanced=False,
        process_index=index,
        process_count=parts,
        horizontal_flip=flip,
    )
    writer = run.writer.for_stage(f"encoders.{which}")
    with run.checkpoints(name, "checkpoints", which) as checkpoints:
        carry = checkpoints.restored(lambda carry: carry, run.mesh, start)
        step = int(carry[0])
        writer.resume(step)
        progress = Progress(f"encoder {which}", settings.steps, start=step, seconds=config.runtime.progress_seconds)
        while step < settings.steps:
            count = min(CHUNK, settings.steps - step)
            images = feeding.place(batches.stacked(step, count)["image"], run.mesh, settings.batch_size)
            carry, losses = steps(carry, images, keys[2])
            step += count
            metrics = {"loss": float(np.mean(losses))}
            writer.write_scalars(step, metrics)
            run.at(name, step)
            checkpoints.after(step, carry, run.stopping, metrics=metrics, flush=writer.flush)
            progress.update(step, **metrics)
    return jax.device_get(mesh.on_this_process(objective.result(carry[1]), run.mesh))


def _outputs(network: encoders.Encoder) -> dict[str, Any]:
    images = jax.ShapeDtypeStruct((1, *(network.image_shape or ())), np.float32)
    return jax.eval_shape(lambda images: network.features(network.init(jax.random.key(0)), images), images)


def _quality(run: Run, which: str) -> dict:
    config = run.config
    params = loading.load_encoder(config, run.workdir, which)
    features = compiled(models.features(config, which), params)
    (train, train_labels), (held_out, held_out_labels) = (_some_images(run, part) for part in ("train", "validation"))
    found = np.asarray(features(train))
    accuracy = classifier.nearest_neighbours(found, train_labels, np.asarray(features(held_out)), held_out_labels)
    fingerprint = files.fingerprint(params)
    return {
        "fingerprint": fingerprint,
        "shipped_fingerprint": assets.fingerprints(run.config.pretrain.shipped or run.config.name).get(which, ""),
        "nearest_neighbour_accuracy": accuracy,
        "feature_std": float(found.std(axis=0).mean()),
        "effective_rank": _effective_rank(found),
        "spec": models.encoder(config, which).spec(fingerprint).to_dict(),
    }


def _some_images(run: Run, part: str, limit: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    return data.load_arrays(data.open_split(run.config.data, data_directory(run), part), limit)


def _effective_rank(features: np.ndarray) -> float:
    """Exp of the entropy of the covariance's spectrum: 1 for a collapsed encoder."""
    values = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64))).clip(min=1e-12)
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
