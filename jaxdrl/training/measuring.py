"""A run's own feature spaces: its two encoders, thumbnails of the pixels, the discriminator's logit, and the rewards of its config."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import jax
from jaxtyping import PyTree

from jaxdrl.config import Config
from jaxdrl.encoders import Encoder
from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.evaluation import reward_spaces as evaluated
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
    """The rewards that a run trains on or measures, a space each (see `evaluation/reward_spaces.py`).

    Args:
        config: Of the run.
        workdir: With its encoders and discriminator trained.
        weights: From `reward_weights.load`.

    Returns:
        Spaces "reward_LABEL".
    """
    encoder, head = loading.load_encoder(config, workdir, "reward"), loading.load_discriminator(workdir)
    params = common.Frozen(None, None, encoder, head, weights)
    given = {**dict(config.posttrain.rewards), **dict(config.evaluate.rewards)}
    described = {label: str(dict(fields)) for label, fields in given.items()}
    return evaluated.spaces(lambda params: common.rewards(config, params, measured=True), params, described)


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
