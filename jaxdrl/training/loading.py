"""The weights of a run: made by its stages or another run's, converted from their authors' files, or drawn for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdrl import data
from jaxdrl.backbones import stack
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.training import models
from jaxdrl.training.randomness import stage_seed
from jaxdrl.training.workdir import read_config
from jaxdrl.weights import files, model_directory

MODELS = {"base": "pretrain", "tuned": "posttrain", "longer": "longer"}


def load_model(config: Config, workdir: Path, name: str) -> PyTree:
    """Loads a generator's weights.

    Args:
        config: A run's config.
        workdir: Of the run.
        name: "base", "tuned" or "longer" (the continued-pretraining control).

    Returns:
        The parameter tree.

    Raises:
        UserError: If the stage that makes it has not been run.
    """
    if name not in MODELS:
        raise UserError(f"--model: {name!r} is unknown; choose one of {', '.join(MODELS)}")
    if name == "base" and config.backbone.weights:
        return _given(models.backbone(config), config, "backbone", config.backbone.weights)
    return _load(workdir / MODELS[name] / "model.safetensors", MODELS[name])


def load_encoder(config: Config, workdir: Path, which: str) -> PyTree:
    """Loads the weights of an encoder.

    Args:
        config: A run's config.
        workdir: Of the run.
        which: "reward" or "judge".

    Returns:
        The parameter tree.

    Raises:
        UserError: If the encoders stage has not been run.
    """
    if config.encoders[which].weights:
        return _given(models.encoder(config, which), config, f"encoders/{which}", config.encoders[which].weights)
    return _load(workdir / "encoders" / f"{which}.safetensors", "encoders")


def load_tokenizer(config: Config) -> PyTree:
    """Loads the tokenizer's weights.

    Args:
        config: A run's config.

    Returns:
        The parameter tree; empty for pixels.

    Raises:
        UserError: If the tokenizer needs weights and the config names none.
    """
    network, place = models.tokenizer(config), config.tokenizer.weights
    if config.tokenizer.name == "pixels":
        return {}
    if not place:
        raise UserError(
            f"config.tokenizer.weights: {config.tokenizer.name} needs the folder of its weights; make it with "
            f"`jaxdrl convert --model={config.tokenizer.name} --from=FILE --to=DIR`"
        )
    return _given(network, config, "tokenizer", place)


def load_alignment(config: Config) -> PyTree:
    """Loads the weights of REPA's target encoder.

    Args:
        config: A run's config.

    Returns:
        The parameter tree; empty where there is no such encoder.
    """
    network = models.alignment(config)
    return {} if network is None else _given(network, config, "alignment", config.pretrain.alignment_weights)


def load_discriminator(workdir: Path) -> PyTree:
    """Loads the discriminator's head.

    Args:
        workdir: Of the run.

    Returns:
        The parameter tree.

    Raises:
        UserError: If the discriminator stage has not been run.
    """
    return _load(workdir / "discriminator" / "model.safetensors", "discriminator")


def _given(network: Any, config: Config, purpose: str, place: str) -> PyTree:
    """Weights from a folder, stacked where the run scans its layers; or drawn."""
    template = jax.eval_shape(network.init, jax.random.key(0))
    if purpose == "backbone" and models.is_run(place):
        there = read_config(Path(place)).get("data", {}).get("classes", [])
        if there != list(data.class_names(config.data)):
            raise UserError(
                f"config.data.classes are not those of {place}, whose model config.backbone.weights names; give the same, in its order"
            )
        return files.match(
            template, _load(Path(place) / "posttrain" / "model.safetensors", "posttrain"), f"the tuned model of {place}"
        )
    if place == models.RANDOM:
        return drawn(network.init, stage_seed(config.seed, f"random/{purpose}"))
    if place.endswith(".safetensors"):  # of a network that a user wrote: a tree, as `files.save_tree` writes it
        return files.match(template, files.load_tree(Path(place)), place)
    params = stack.stacked(model_directory.load(Path(place))[1], template)
    return files.match(template, params, place)


def drawn(init: Callable[[Any], PyTree], seed: int) -> PyTree:
    """Draws weights. No leaf is at its initial value: fresh adaLN networks are zero everywhere, and so would be every gradient.

    Args:
        init: Of the network: key -> parameters.
        seed: Any.

    Returns:
        Parameters of the same shapes.
    """
    rng, template = np.random.default_rng(seed), jax.eval_shape(init, jax.random.key(0))

    def draw(path, leaf):
        around = 1.0 if str(path[-1].key) in ("scale", "weight", "var") else 0.0
        return around + np.float32(0.05) * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, template)


def _load(path: Path, stage: str) -> PyTree:
    if not path.exists():
        raise UserError(f"{path} is missing; run `jaxdrl {stage if stage != 'longer' else 'run'} --workdir={path.parent.parent}`")
    return files.load_tree(path)
