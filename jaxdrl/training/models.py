"""From a config to the networks of a run, and from a workdir to their weights."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxdrl import backbones, encoders, tokenizers
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.rewards import discriminator
from jaxdrl.weights import files

MODELS = {"base": "pretrain", "tuned": "posttrain", "longer": "longer"}


def tokenizer(config: Config) -> tokenizers.Tokenizer:
    """Returns what maps pixels to the generator's space and back (pixels themselves here).

    Args:
        config: A run's config.

    Returns:
        A tokenizer with `encode`, `decode` and `latent_shape`.
    """
    del config
    return tokenizers.Pixels()


def backbone(config: Config) -> backbones.Backbone:
    """Builds the generator that `config.backbone` describes, for the data's shape and classes.

    Args:
        config: A run's config.

    Returns:
        A `Backbone`.

    Raises:
        UserError: If the name is unknown or the sizes do not fit the images.
    """
    sizes, name = config.backbone, config.backbone.name
    shape = tuple(config.data.image_shape)
    overrides = {
        "sample_shape": tokenizer(config).latent_shape(shape),
        "num_classes": config.data.num_classes,
        "dtype": sizes.dtype,
        "remat": sizes.remat,
    }
    if name not in backbones.PUBLISHED:
        keys = ("patch_size", "width", "depth", "num_heads", "mlp_ratio", "frequency_dim")
        overrides |= {key: sizes[key] for key in keys}
    if name.startswith("SiT"):
        overrides["learn_sigma"] = False
    if sizes.spectral != "none":
        overrides |= {"spectral": sizes.spectral, "gate_scale": sizes.gate_scale}
    try:
        return backbones.create(name, **overrides)
    except ValueError as error:
        raise UserError(f"config.backbone: {error}") from error


def encoder(config: Config, which: str) -> encoders.Encoder:
    """Builds the reward's or the judge's encoder.

    Args:
        config: A run's config.
        which: "reward" or "judge".

    Returns:
        An `Encoder`.

    Raises:
        UserError: If the name is unknown or the sizes do not fit.
    """
    sizes = config.encoders[which]
    overrides = {"patch_size": sizes.patch_size} if sizes.name == "small-vit" else {}
    try:
        return encoders.create(
            sizes.name,
            image_shape=tuple(config.data.image_shape),
            width=sizes.width,
            depth=sizes.depth,
            feature_dim=sizes.feature_dim,
            **overrides,
        )
    except ValueError as error:
        raise UserError(f"config.encoders.{which}: {error}") from error


def load_model(workdir: Path, name: str) -> PyTree:
    """Loads a generator's weights.

    Args:
        workdir: Of the run.
        name: "base", "tuned" or "longer" (the continued-pretraining control).

    Returns:
        The parameter tree.

    Raises:
        UserError: If the stage that makes it has not been run.
    """
    if name not in MODELS:
        raise UserError(f"--model: {name!r} is unknown; choose one of {', '.join(MODELS)}")
    return _load(workdir / MODELS[name] / "model.safetensors", MODELS[name])


def load_encoder(workdir: Path, which: str) -> PyTree:
    """Loads the weights of the "reward" or "judge" encoder.

    Args:
        workdir: Of the run.
        which: "reward" or "judge".

    Returns:
        The parameter tree.

    Raises:
        UserError: If the encoders stage has not been run.
    """
    return _load(workdir / "encoders" / f"{which}.safetensors", "encoders")


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


def features(config: Config, which: str, params: PyTree) -> Callable[[Float[Array, "..."]], Float[Array, "batch dim"]]:
    """Binds an encoder's weights: images in [-1, 1] -> pooled features.

    Args:
        config: A run's config.
        which: "reward" or "judge".
        params: The encoder's weights.

    Returns:
        A differentiable function.
    """
    network = encoder(config, which)
    return lambda images: network.features(params, images)["pooled"]


def reward(config: Config, encoder_params: PyTree, head: PyTree) -> Callable[..., Float[Array, " batch"]]:
    """The discriminator's logit on images: `reward(images, labels) -> [batch]`.

    Args:
        config: A run's config.
        encoder_params: Weights of the reward encoder.
        head: Weights of the discriminator.

    Returns:
        A differentiable function.
    """
    return discriminator.reward(head, features(config, "reward", encoder_params))


def _load(path: Path, stage: str) -> PyTree:
    if not path.exists():
        raise UserError(f"{path} is missing; run `jaxdrl {stage if stage != 'longer' else 'run'} --workdir={path.parent.parent}`")
    return jax.tree.map(jnp.asarray, files.load_tree(path))
