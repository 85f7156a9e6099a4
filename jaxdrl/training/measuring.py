"""A run's own feature spaces: its two encoders, thumbnails of the pixels, the discriminator's logit, and the rewards of its config."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxdrl.config import Config
from jaxdrl.encoders import Encoder
from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.evaluation import spaces
from jaxdrl.evaluation.collect import Network, Space
from jaxdrl.rewards import discriminator
from jaxdrl.training import loading, models
from jaxdrl.training.methods import common
from jaxdrl.weights import files

NAMES = ("reward", "judge", "pixels")


def run_spaces(config: Config, workdir: Path) -> list[Space]:
    """The three spaces in which a run is measured.

    Args:
        config: Of the run.
        workdir: With its encoders trained.

    Returns:
        "reward", "judge" and "pixels".
    """
    return [encoder_space(config, workdir, "reward"), encoder_space(config, workdir, "judge"), spaces.image_statistics("pixels")]


def encoder_space(config: Config, workdir: Path, which: str) -> Space:
    """The space of one of the run's encoders.

    Args:
        config: Of the run.
        workdir: With its encoders trained.
        which: "reward" or "judge".

    Returns:
        The space.

    Raises:
        UserError: If the encoder has not been trained.
    """
    params, network = loading.load_encoder(config, workdir, which), models.encoder(config, which)
    spec = network.spec(files.fingerprint(params))
    return Space(name=which, spec=spec, network=Network(params=params, apply=_pooled(network)), output="pooled")


def logit_space(config: Config, workdir: Path, reward: Space) -> Space:
    """The discriminator's logit as a space of one dimension: it needs the images' labels.

    Args:
        config: Of the run.
        workdir: With its discriminator trained.
        reward: The reward encoder's space.

    Returns:
        The space "logit".
    """
    head = loading.load_discriminator(workdir)
    fingerprint = files.fingerprint((head, reward.network.params))
    params = {"head": head, "encoder": reward.network.params}
    network = Network(params=params, apply=_logit(models.encoder(config, "reward")))
    return Space(
        name="logit",
        spec=FeatureSpec(network="discriminator", fingerprint=fingerprint, pooling="", size=0),
        network=network,
        output="logit",
    )


def reward_spaces(config: Config, workdir: Path, weights: Mapping[str, PyTree]) -> list[Space]:
    """The rewards of `config.posttrain.rewards`, a space each of two dimensions: value, and whether the reward applies.

    Args:
        config: Of the run.
        workdir: With its encoders and discriminator trained.
        weights: From `reward_weights.load`.

    Returns:
        Spaces "reward_LABEL". Rewards on the host are computed there.
    """
    encoder, head = loading.load_encoder(config, workdir, "reward"), loading.load_discriminator(workdir)
    params = common.Frozen(None, None, encoder, head, weights)
    fingerprint = files.fingerprint(params)
    networks = {traced: Network(params=params, apply=_rewards(config, traced), traced=traced) for traced in (True, False)}
    found = []
    given = {**dict(config.posttrain.rewards), **dict(config.evaluate.rewards)}
    for reward in common.rewards(config, measured=True):
        described = str(dict(given[reward.name]))
        spec = FeatureSpec(network=f"reward {reward.name}", fingerprint=fingerprint, pooling="", size=0, options=described)
        network = networks[reward.traced]
        found.append(Space(name=f"reward_{reward.name}", spec=spec, network=network, output=reward.name))
    return found


def _rewards(config: Config, traced: bool):
    """Values with a second column, 1 where the reward applies, since features are finite."""
    xp: Any = jnp if traced else np

    def apply(params, images, labels) -> dict[str, Any]:
        found = {}
        for reward in common.rewards(config, params, measured=True):
            if reward.traced == traced:
                values = reward(images, labels)
                known = ~xp.isnan(values)
                found[reward.name] = xp.stack([xp.where(known, values, 0.0), known.astype(xp.float32)], axis=1)
        return found

    return apply


def reward_table(
    labels: list[str], rows: Mapping[str, Callable[[str], Float[np.ndarray, "n 2"]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and spread of every reward by row, and how far the tuned model is from the base.

    Args:
        labels: Of the rewards.
        rows: Row -> features by space, see `reward_spaces`; "base" and "tuned" among them.

    Returns:
        Label -> row -> {"mean", "std", "count"}; of every row but "base" also "gain", (its mean - base's) / base's spread. Images to which a
        reward does not apply are left out.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    for label in labels:
        found = {}
        for row, features in rows.items():
            values = np.asarray(features(f"reward_{label}"), np.float64)
            kept = values[values[:, 1] > 0, 0]
            mean, std = (float(kept.mean()), float(kept.std())) if len(kept) else (float("nan"), float("nan"))
            found[row] = {"mean": mean, "std": std, "count": len(kept)}
        spread = found["base"]["std"]
        for row in set(found) - {"base"}:
            shift = found[row]["mean"] - found["base"]["mean"]
            found[row]["gain"] = shift / spread if spread > 0 else float("nan")
        table[label] = found
    return table


# Equal networks must give the same function: compiled programs are found by it.
@lru_cache(maxsize=16)
def _pooled(network: Encoder):
    return lambda params, images, labels: {"pooled": network.features(params, images)["pooled"]}


@lru_cache(maxsize=16)
def _logit(network: Encoder):
    def apply(params, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        encode = lambda images: network.features(params["encoder"], images)["pooled"]  # noqa: E731
        return {"logit": discriminator.reward(params["head"], encode)(images, labels)[:, None]}

    return apply
