"""Stage 4: the discriminator between data and the base model's own samples, on frozen features (DRL, stage 1).

Buffered: a refresh draws `buffer_batches` minibatches of (real, fake) pairs, encodes every image once (the encoder is frozen),
and trains on the features for `buffer_epochs` epochs; R1 alone passes the encoder at every step. Every
`validate_every` steps the logistic loss on held-out data decides whether the head is the best so far; after `patience`
validations without improvement training stops. Before anything is tuned the stage prints how separable the two are: held-out
accuracy, calibration, and the effective sample size of the ideal tilt, for all classes and for each.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl import data
from jaxdrl.config import Config
from jaxdrl.data import feature_cache
from jaxdrl.data.feature_cache import FeatureCache
from jaxdrl.errors import Stopped, UserError
from jaxdrl.evaluation import calibration, hosts, tilt
from jaxdrl.rewards import discriminator
from jaxdrl.training import compute, distributed, generation, loading, mesh, models
from jaxdrl.training.batching import compiled, in_batches
from jaxdrl.training.context import Run
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_key, stage_seed
from jaxdrl.training.workdir import data_directory
from jaxdrl.weights import files

name = "discriminator"


class State(NamedTuple):
    """What a checkpoint of this stage holds."""

    step: Array
    head: PyTree
    opt_state: optax.OptState
    best_head: PyTree
    best_loss: Float[Array, ""]
    waited: Array


class Pairs(NamedTuple):
    """Features of real and fake images with their labels; the real images themselves only where R1 needs them."""

    real: Float[Array, "n dim"]
    real_labels: Int[Array, " n"]
    fake: Float[Array, "m dim"]
    fake_labels: Int[Array, " m"]
    real_images: Float[Array, "n h w c"] | None


def run(run: Run) -> dict:
    """Trains the head; writes `model.safetensors`, the head that was best on held-out data.

    Args:
        run: The run, with data, encoders and pretrain finished.

    Returns:
        steps, held-out loss, accuracy, calibration error, effective sample sizes, rewards and the operations spent.

    Raises:
        UserError: If the buffer's length is not a multiple of `validate_every`, or features are to be cached where R1 needs images.
    """
    config, settings = run.config, run.config.discriminator
    if settings.cache_features and settings.r1 > 0:
        raise UserError(
            "config.discriminator.cache_features: R1 needs the images at every step; set r1 to 0 or cache_features to false"
        )
    if (settings.buffer_batches * settings.buffer_epochs) % settings.validate_every:
        raise UserError(
            "config.discriminator: buffer_batches * buffer_epochs "
            f"({settings.buffer_batches * settings.buffer_epochs}) must be a multiple of validate_every ({settings.validate_every})"
        )
    held_out = _held_out(run)
    final = _train(run, held_out)
    directory = run.workdir / name
    distributed.save_tree(directory / "model.safetensors", final.best_head)
    steps = int(final.step)
    drawn = settings.buffer_batches * settings.batch_size * -(-steps // _refresh_steps(config))
    fakes, reals = drawn + len(held_out.fake), drawn + len(held_out.real)
    result = {
        "steps": steps,
        "validation_loss": float(final.best_loss),
        "flops": compute.discriminator_flops(config, steps, fakes, fakes + reals),
        **_separability(run, final.best_head, held_out),
    }
    ess = result["effective_sample_size"]
    per_class = " ".join(f"{share:.2f}" for share in ess["per_class"])
    print(
        f"discriminator: held-out accuracy {result['accuracy']:.3f}, calibration error {result['calibration_error']:.3f}; "
        f"effective sample size at lambda={config.posttrain.reward_scale:g}: {ess['mean']:.2f} (by class {per_class})",
        flush=True,
    )
    return result


def _train(run: Run, held_out: Pairs) -> State:
    config, settings = run.config, run.config.discriminator
    encoder_params = loading.load_encoder(config, run.workdir, "reward")
    with distributed.alone():
        images = _images(run)
    source = data.open_split(config.data, data_directory(run), "train")
    cache = _cached(run, source, images)
    seed, flip = stage_seed(config.seed, "discriminator/data"), config.data.horizontal_flip
    # Mirrored like the generator's own data: or mirrored fakes would give themselves away.
    index, parts = _share(run)
    reals = data.batches(
        source,
        batch_size=settings.batch_size // parts,
        seed=seed,
        process_index=index,
        process_count=parts,
        horizontal_flip=flip,
    )
    frozen = mesh.place(encoder_params, run.mesh) if settings.r1 > 0 else None
    train_steps, validate = _compiled(config, run.mesh)
    writer = run.writer.for_stage(name)
    key, pairs, held_refresh = stage_key(config.seed, name), None, -1
    with run.checkpoints(name, "checkpoints") as checkpoints:
        current = checkpoints.restored(lambda state: state, run.mesh, _initial(config))
        step, waited = int(current.step), int(current.waited)
        writer.resume(step)
        progress = Progress(name, settings.steps, start=step, seconds=config.runtime.progress_seconds)
        while step < settings.steps and waited < settings.patience:
            refresh = step // _refresh_steps(config)
            if refresh != held_refresh:
                pairs, held_refresh = _fill(run, images, reals, cache, refresh), refresh
            current, trained = train_steps(current, pairs, frozen, key)
            current, validated = validate(current, held_out)
            step, waited = int(current.step), int(current.waited)
            metrics = {k: float(v) for k, v in (trained | validated).items()}
            writer.write_scalars(step, metrics)
            run.at(name, step)
            checkpoints.after(step, current, run.stopping, metrics=metrics, flush=writer.flush)
            progress.update(step, loss=metrics["loss_validation"], accuracy=metrics["accuracy_validation"])
        checkpoints.wait()
    return jax.device_get(mesh.on_this_process(current, run.mesh))


def _share(run: Run) -> tuple[int, int]:
    """The part of a minibatch of real images that this process encodes: (i, n). Features in files need no sharing out."""
    settings, processes = run.config.discriminator, jax.process_count()
    if settings.cache_features or settings.batch_size % processes:
        return 0, 1
    return jax.process_index(), processes


def _compiled(config: Config, devices: Mesh):
    """Compiles `validate_every` training steps and one validation."""
    settings, optimizer = config.discriminator, _optimizer(config)
    encode = models.features(config, "reward")
    per_epoch, size = settings.buffer_batches, settings.batch_size

    def loss(head, part: Pairs, encoder_params):
        value, metrics = discriminator.loss(head, *part[:4])
        if part.real_images is not None:
            features = lambda images: encode(encoder_params, images)  # noqa: E731
            images = models.as_float(part.real_images)
            metrics["r1"] = discriminator.r1_penalty(head, features, images, part.real_labels)
            value = value + 0.5 * settings.r1 * metrics["r1"]
        return value, metrics

    @jax.jit
    def train_steps(current: State, pairs: Pairs, encoder_params, key):
        def step(carry: State, _):
            epoch, batch = jnp.divmod(carry.step, per_epoch)
            order = jax.random.permutation(jax.random.fold_in(key, epoch), per_epoch * size)
            index = jax.lax.dynamic_slice_in_dim(order, batch * size, size)
            part = mesh.constrain_batch(jax.tree.map(lambda values: values[index], pairs), devices)
            (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(carry.head, part, encoder_params)
            updates, opt_state = optimizer.update(grads, carry.opt_state, carry.head)
            head = optax.apply_updates(carry.head, updates)
            return carry._replace(step=carry.step + 1, head=head, opt_state=opt_state), metrics | {"loss_train": value}

        current, metrics = jax.lax.scan(step, current, None, length=settings.validate_every)
        return current, jax.tree.map(jnp.mean, metrics)

    @jax.jit
    def validate(current: State, pairs: Pairs):
        value, metrics = discriminator.loss(current.head, *pairs[:4])
        better = value < current.best_loss
        best_head = jax.tree.map(lambda new, old: jnp.where(better, new, old), current.head, current.best_head)
        waited = jnp.where(better, 0, current.waited + 1)
        current = current._replace(best_head=best_head, best_loss=jnp.minimum(value, current.best_loss), waited=waited)
        return current, {"loss_validation": value, "accuracy_validation": metrics["accuracy"]}

    return train_steps, validate


def _initial(config: Config) -> State:
    settings = config.discriminator
    head = discriminator.init(
        stage_key(config.seed, "discriminator/init"),
        models.encoder(config, "reward").feature_dim,
        config.data.num_classes,
        width=settings.width,
        head=settings.head,
    )
    zero = jnp.zeros((), jnp.int32)
    return State(zero, head, _optimizer(config).init(head), head, jnp.asarray(jnp.inf, jnp.float32), zero)


def _optimizer(config: Config) -> optax.GradientTransformation:
    return optax.adam(config.discriminator.learning_rate)


def _refresh_steps(config: Config) -> int:
    return config.discriminator.buffer_batches * config.discriminator.buffer_epochs


class Images(NamedTuple):
    """Where images and their features come from, with all weights bound.

    Attributes:
        real: Images of the data -> images as the generator could make them, see `generation.reconstruction`.
        encode: Images -> reward features.
        fakes: (number, purpose) -> reward features and labels of the base model's samples.
    """

    real: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[np.ndarray], np.ndarray]
    fakes: Callable[[int, str], tuple[np.ndarray, np.ndarray]]


def _images(run: Run) -> Images:
    config = run.config
    encode = compiled(models.features(config, "reward"), loading.load_encoder(config, run.workdir, "reward"))
    base, decode = loading.load_model(config, run.workdir, "base"), generation.decoder(config)

    def fakes(num: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        seed, steps = stage_seed(config.seed, f"discriminator/{purpose}"), config.discriminator.sampling_steps
        draw = partial(generation.generate, config, base, lambda part: encode(decode(part)), seed=seed, num_steps=steps)
        features, labels = distributed.shared_out(lambda first, count: draw(num=count, first=first), num)
        return features, labels

    return Images(generation.reconstruction(config), encode, fakes)


def _fill(run: Run, images: Images, reals, cache: FeatureCache | None, refresh: int) -> Pairs:
    """Draws and encodes the real and fake images of one refresh; a function of the refresh's number alone."""
    settings = run.config.discriminator
    first, count = refresh * settings.buffer_batches, settings.buffer_batches
    features, labels, kept = [], [], []
    if cache is not None:
        plan = {name: part.reshape(-1) for name, part in reals.plan(first, count).items()}
        features, labels = [cache.read(plan["index"], plan["turned"])], [plan["label"]]
    else:
        whole = hosts.concatenate if _share(run)[1] > 1 else np.asarray
        for batch in itertools.islice(reals.stream(first), count):
            with distributed.alone():
                real = images.real(batch["image"])
                encoded = images.encode(real)
            features.append(whole(encoded))
            labels.append(whole(batch["label"]))
            kept += [whole(real)] if settings.r1 > 0 else []
    fake, fake_labels = images.fakes(settings.buffer_batches * settings.batch_size, f"refresh{refresh}")
    real_images = jnp.asarray(np.concatenate(kept)) if kept else None
    found = map(jnp.asarray, (np.concatenate(features), np.concatenate(labels), fake, fake_labels))
    return Pairs(*found, real_images=real_images)


def _cached(run: Run, source, images: Images) -> FeatureCache | None:
    """The features of all train images, from files that every run on this data with this encoder shares."""
    config = run.config
    if not config.discriminator.cache_features:
        return None
    fingerprint = files.fingerprint(loading.load_encoder(config, run.workdir, "reward"))
    description = {"data": config.data.name, "split": "train", "split_seed": config.data.split_seed}
    description |= {"validation_fraction": config.data.validation_fraction, "image_shape": list(config.data.image_shape)}
    if data.class_names(config.data):  # in any order: features are kept by example, without labels
        description["classes"] = sorted(data.class_names(config.data))
    description |= models.encoder(config, "reward").spec(fingerprint).to_dict()
    if config.discriminator.reconstruct_real and config.tokenizer.name != "pixels":
        description["tokenizer"] = f"{config.tokenizer.name} {files.fingerprint(loading.load_tokenizer(config))}"
    mirrored = config.data.horizontal_flip
    name = hashlib.sha256(json.dumps([description, mirrored, len(source)], sort_keys=True).encode()).hexdigest()[:16]
    progress = Progress("features", len(source), unit="image", seconds=config.runtime.progress_seconds)

    def written(done: int) -> None:
        progress.update(done)
        if run.stopping.signalled:
            raise Stopped(f"features of {done} images are in {data_directory(run) / '.features' / name}")

    write = partial(
        feature_cache.write,
        data_directory(run) / ".features" / name,
        source,
        lambda part: images.encode(images.real(part)),
        description,
        mirrored=mirrored,
        progress=written,
    )
    with distributed.alone():
        return distributed.in_turn(write)


def _held_out(run: Run) -> Pairs:
    """Validation images, and as many fakes, at least 2000."""
    source = data.open_split(run.config.data, data_directory(run), "validation")
    real, labels = data.load_arrays(source, run.config.evaluate.max_real)
    with distributed.alone():
        images = _images(run)
    fake, fake_labels = images.fakes(max(len(real), min(2000, run.config.evaluate.num_samples)), "validation")
    encode = partial(in_batches, lambda part: images.encode(images.real(data.to_float(part))))
    (features,) = distributed.shared_out(lambda first, count: (encode(real[first : first + count]),), len(real))
    return Pairs(*map(jnp.asarray, (features, labels, fake, fake_labels)), real_images=None)


def _separability(run: Run, head: PyTree, held_out: Pairs) -> dict:
    """Accuracy, calibration and effective sample size on held-out data."""
    config = run.config
    real = np.asarray(discriminator.logits(head, held_out.real, held_out.real_labels))
    fake = np.asarray(discriminator.logits(head, held_out.fake, held_out.fake_labels))
    scale = config.posttrain.reward_scale
    mean, per_class = tilt.effective_sample_size(fake, np.asarray(held_out.fake_labels), scale)
    return {
        "accuracy": float(0.5 * (real > 0).mean() + 0.5 * (fake <= 0).mean()),
        "calibration_error": float(calibration.expected_calibration_error(real, fake)),
        "reward_real": float(real.mean()),
        "reward_base": float(fake.mean()),
        "reward_base_std": float(fake.std()),
        "effective_sample_size": {"mean": float(mean), "per_class": [float(share) for share in np.asarray(per_class)]},
    }
