"""Trains the reward `bradley_terry`: how a reward model is made out of choices, on an encoder of its own.

1. An encoder is trained on the train images (`config.encoders.preference`), with another seed than the judge's and the reward's.
2. Samples of the base are compared in pairs of one class. Synthetic people choose by a utility that training never sees as a number
   (`config.preference.utility`); for real people, replace `synthetic_choices`.
3. The head is fitted to the choices (`rewards/bradley_terry.py`); those among images that it has never seen test it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.rewards import bradley_terry
from jaxdrl.rewards.image_statistics import STATISTICS
from jaxdrl.training import distributed, generation, loading, models
from jaxdrl.training.batching import compiled
from jaxdrl.training.context import Run
from jaxdrl.training.randomness import stage_key, stage_seed
from jaxdrl.training.stages import encoders


class Choices(NamedTuple):
    """Pairs of images of one class by their numbers, and which of them was chosen.

    Attributes:
        first: Number of a.
        second: Number of b.
        chosen: 1 if a was chosen, else 0.
        surely: The probability with which people choose the one of greater utility: what no model can beat.
    """

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    chosen: Float[np.ndarray, " pairs"]
    surely: Float[np.ndarray, " pairs"]


def train(run: Run) -> tuple[PyTree, dict[str, float]]:
    """Trains encoder and head.

    Args:
        run: With data and pretrain finished.

    Returns:
        {"encoder", "head"}, and on pairs of unseen images `agreement` with the choices, `best_agreement` (of somebody who knows the utility)
        and `correlation` of scores and utilities within classes.

    Raises:
        UserError: If a statistic is unknown, or there are too few images.
    """
    config = run.config
    check(config)
    encoder = encoders.train(run, "preference")
    with distributed.alone():
        head, measured = _fitted(config, encoder, loading.load_model(config, run.workdir, "base"))
    return {"encoder": encoder, "head": head}, measured


def _fitted(config: Config, encoder: PyTree, base: PyTree) -> tuple[PyTree, dict[str, float]]:
    """The head, fitted to choices among samples of the base, and how it does on images that it has not seen."""
    settings = config.preference
    seed = stage_seed(config.seed, "preference/images")
    source = generation.Samples(config, base, num=settings.images, seed=seed, num_steps=settings.sampling_steps)
    parts = list(source.batches(0, settings.images, config.evaluate.batch_size))
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    features = np.asarray(compiled(models.features(config, "preference"), encoder)(images))
    utility = utilities(images, dict(settings.utility))
    held = np.arange(len(images)) >= len(images) * (1 - settings.held_out)
    key = stage_key(config.seed, "preference")
    seen, unseen = (
        synthetic_choices(jax.random.fold_in(key, part), utility, labels, where, count, settings.temperature)
        for part, where, count in ((0, ~held, settings.pairs), (1, held, max(1000, settings.pairs // 5)))
    )
    head = fit(jax.random.fold_in(key, 2), features, labels, seen, config)
    scores = np.asarray(bradley_terry.scores(head, jnp.asarray(features), jnp.asarray(labels)))
    better = scores[unseen.first] > scores[unseen.second]
    measured = {
        "agreement": float((better == (unseen.chosen > 0.5)).mean()),
        "best_agreement": float(unseen.surely.mean()),
        "correlation": _within_classes(scores[held], utility[held], labels[held]),
    }
    return head, measured


def check(config: Config) -> None:
    """Refuses settings that cannot be.

    Args:
        config: A run's config.

    Raises:
        UserError: Naming the key.
    """
    settings = config.preference
    unknown = sorted(set(dict(settings.utility)) - set(STATISTICS))
    if unknown or not dict(settings.utility):
        raise UserError(f"config.preference.utility: {unknown or 'empty'}; choose from {', '.join(STATISTICS)}")
    if settings.temperature <= 0 or not 0 < settings.held_out < 1:
        raise UserError(
            f"config.preference: temperature ({settings.temperature}) must be positive and held_out ({settings.held_out}) in (0, 1)"
        )
    least = min(settings.held_out, 1 - settings.held_out) * settings.images / config.data.num_classes
    if least < 2:
        raise UserError(f"config.preference.images ({settings.images}): no pair of every class in each part; give more images")


def utilities(images: Any, weights: dict[str, float]) -> Float[np.ndarray, " n"]:
    """What the synthetic people like.

    Args:
        images: uint8 or float in [-1, 1].
        weights: Statistic -> weight.

    Returns:
        The weighted sum of statistics, each in its standard deviations over these images.
    """
    floats, total = models.as_float(images), np.zeros(len(images))
    for name, weight in weights.items():
        values = np.asarray(STATISTICS[name](floats), np.float64)
        total += weight * (values - values.mean()) / max(values.std(), 1e-12)
    return total


def synthetic_choices(
    key: Array,
    utility: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    among: np.ndarray,
    pairs: int,
    temperature: float,
) -> Choices:
    """Draws pairs of different images of one class, and a choice for each.

    Args:
        key: A key.
        utility: Of all images.
        labels: Their classes.
        among: True for the images that may be drawn; at least two of every class that has one.
        pairs: How many.
        temperature: Of the choices.

    Returns:
        The choices.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    own = [np.flatnonzero(among & (labels == label)) for label in np.unique(labels[among])]
    drawn = np.array([rng.choice(own[i % len(own)], 2, replace=False) for i in range(pairs)])
    first, second = drawn[:, 0], drawn[:, 1]
    a, b = (jnp.asarray(utility[index], jnp.float32) for index in (first, second))
    chosen = np.asarray(bradley_terry.choose(key, a, b, temperature))
    surely = 1 / (1 + np.exp(-np.abs(utility[first] - utility[second]) / temperature))
    return Choices(first, second, chosen, surely)


def fit(
    key: Array, features: Float[np.ndarray, "n dim"], labels: Int[np.ndarray, " n"], choices: Choices, config: Config
) -> PyTree:
    """Fits the head by AdamW on minibatches of pairs.

    Args:
        key: A key.
        features: phi of all images.
        labels: Their classes.
        choices: What is learnt from.
        config: A run's config.

    Returns:
        The head.
    """
    settings, seen = config.preference, np.unique(np.concatenate([choices.first, choices.second]))
    centre, spread = (jnp.asarray(f(features[seen], axis=0), jnp.float32) for f in (np.mean, np.std))
    head = bradley_terry.init(key, centre, spread, config.data.num_classes)
    optimizer = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)
    everything = tuple(map(jnp.asarray, (features, labels, choices.first, choices.second, choices.chosen)))

    @jax.jit
    def run(head, key, everything):
        features, labels, *pairs = everything

        def step(carry, key):
            head, state = carry
            a, b, chosen = (part[jax.random.randint(key, (settings.batch_size,), 0, len(pairs[0]))] for part in pairs)

            def loss(head):
                score = lambda index: bradley_terry.scores(head, features[index], labels[index])  # noqa: E731
                return bradley_terry.loss(score(a), score(b), chosen)

            grads, metrics = jax.grad(loss, has_aux=True)(head)
            updates, state = optimizer.update(grads, state, head)
            # Mean and scale are constants: neither gradients nor weight decay may move them.
            moved: Any = optax.apply_updates(head, updates)
            return (head | {name: moved[name] for name in ("shared", "own")}, state), metrics

        (head, _), _ = jax.lax.scan(step, (head, optimizer.init(head)), jax.random.split(key, settings.steps))
        return head

    return jax.device_get(run(head, jax.random.fold_in(key, 1), everything))


def _within_classes(scores: np.ndarray, utility: np.ndarray, labels: np.ndarray) -> float:
    """The mean over classes of the correlation within one."""
    found = [np.corrcoef(scores[labels == label], utility[labels == label])[0, 1] for label in np.unique(labels)]
    return float(np.nanmean(found))
