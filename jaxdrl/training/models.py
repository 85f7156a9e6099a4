"""From a config to the networks of a run. Their weights: `loading.py`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, PyTree

from jaxdrl import backbones, encoders, tokenizers
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.rewards import discriminator, preference
from jaxdrl.rewards.preference import RewardModel, tokens
from jaxdrl.training import own_models
from jaxdrl.training.workdir import read_config
from jaxdrl.weights import model_directory

RANDOM = "random"  # in place of a folder of weights: drawn from the seed, for tests
REWARD_SIZES = ("vision", "text", "head")  # of a published reward model whose weights are drawn


def tokenizer(config: Config) -> tokenizers.Pixels | tokenizers.Rae | tokenizers.SdVae:
    """Builds what maps pixels to the generator's space and back.

    Args:
        config: A run's config.

    Returns:
        A `Tokenizer`; the one that `config.tokenizer.weights` holds, in the config's dtype, where that is a folder.

    Raises:
        UserError: If the name or a field is unknown, or the folder holds another model.
    """
    settings = config.tokenizer
    fields = dict(settings.fields)
    if settings.name != "pixels":
        fields["dtype"] = settings.dtype
    try:
        return tokenizers.create(settings.name, **_stored_fields(settings, "config.tokenizer") | fields)
    except ValueError as error:
        raise UserError(f"config.tokenizer: {error}") from error


def backbone(config: Config) -> backbones.Backbone:
    """Builds the generator that `config.backbone` describes, for the data's shape and classes.

    Args:
        config: A run's config.

    Returns:
        A `Backbone`.

    Raises:
        UserError: If the name is unknown, the sizes do not fit the images, or the folder of weights holds another network.
    """
    settings, name = config.backbone, config.backbone.name
    try:
        shape = tokenizer(config).latent_shape(tuple(config.data.image_shape))
    except ValueError as error:
        raise UserError(f"config.data.image_shape: {error}") from error
    if own_models.is_own(name):
        return own_models.backbone(config, tuple(shape))
    data = {"sample_shape": tuple(shape), "num_classes": config.data.num_classes}
    stored = _stored_fields(settings, "config.backbone")
    for key, wanted in data.items() if stored else ():
        if tuple_of(stored[key]) != tuple_of(wanted):
            raise UserError(f"config.backbone.weights: {settings.weights} has {key} {stored[key]}, this run's data has {wanted}")
    options = {key: settings[key] for key in ("dtype", "remat", "scan_layers", "attention")}
    if stored:
        fields = stored
    elif name in backbones.PUBLISHED:
        fields = data
    else:
        fields = data | {
            key: settings[key] for key in ("patch_size", "width", "depth", "num_heads", "mlp_ratio", "frequency_dim")
        }
    if name.startswith("SiT") and not _origin(settings.weights):
        fields["learn_sigma"] = False
    if settings.spectral != "none":
        options |= {"spectral": settings.spectral, "gate_scale": settings.gate_scale}
    try:
        return backbones.create(name, **fields | options | dict(settings.fields))
    except ValueError as error:
        raise UserError(f"config.backbone: {error}") from error


def encoder(config: Config, which: str) -> encoders.Encoder:
    """Builds the reward's or the judge's encoder.

    Args:
        config: A run's config.
        which: "reward", "judge" or "preference".

    Returns:
        An `Encoder`.

    Raises:
        UserError: If the name is unknown, the sizes do not fit, or the folder of weights holds another network.
    """
    settings = config.encoders[which]
    if own_models.is_own(settings.name):
        return own_models.encoder(config, which)
    if settings.name in encoders.PUBLISHED:
        fields = _stored_fields(settings, f"config.encoders.{which}") | {"dtype": settings.dtype}
    else:
        fields = {key: settings[key] for key in ("width", "depth", "feature_dim")}
        fields["image_shape"] = tuple(config.data.image_shape)
        if settings.name == "small-vit":
            fields["patch_size"] = settings.patch_size
    try:
        return encoders.create(settings.name, **fields | dict(settings.fields))
    except ValueError as error:
        raise UserError(f"config.encoders.{which}: {error}") from error


def alignment(config: Config) -> encoders.Encoder | None:
    """Builds the encoder that REPA's tokens are aligned with while the generator is trained.

    Args:
        config: A run's config.

    Returns:
        An `Encoder`, or None where the generator has no projectors.

    Raises:
        UserError: If the generator has projectors and no encoder is given, or the other way round, or they do not fit.
    """
    settings, network = config.pretrain, backbone(config)
    if (network.aligned is None) != (not settings.alignment):
        raise UserError(
            f"config.pretrain.alignment: {network.name} "
            + (
                "needs an encoder, such as dinov2-base"
                if network.aligned
                else "has no projectors; leave it empty, or choose REPA"
            )
        )
    if network.aligned is None:
        return None
    given: Any = ml_collections.ConfigDict(
        {"name": settings.alignment, "weights": settings.alignment_weights, "fields": settings.alignment_fields}
    )
    if not given.weights:
        raise UserError(f"config.pretrain.alignment_weights: {given.name} needs the folder of its weights (`jaxdrl convert`)")
    try:
        found = encoders.create(given.name, **_stored_fields(given, "config.pretrain.alignment") | dict(given.fields))
    except ValueError as error:
        raise UserError(f"config.pretrain.alignment: {error}") from error
    patch, fields = dict(found.fields).get("patch_size", 1), dict(network.fields)
    tokens = tuple(side // patch for side in encoders.sides(dict(found.fields)["resolution"]))
    wanted = tuple(side // fields["patch_size"] for side in network.sample_shape[:2])
    width = dict(found.fields).get("width")
    if tokens != wanted or fields["projector_dims"] != (width,):
        raise UserError(
            f"config.pretrain.alignment: {found.name} gives {tokens} tokens of {width}, {network.name} has {wanted} and projects to "
            f"{fields['projector_dims']}; change alignment_fields.resolution or backbone.fields.projector_dims"
        )
    return found


def _stored_fields(settings: Any, key: str) -> dict[str, Any]:
    """Fields of the model in a folder of weights, also of that which a run started from; empty where there is none."""
    place = _origin(settings.weights)
    if place in ("", RANDOM) or (place != settings.weights and not Path(place).is_dir()):
        return {}
    name, fields = model_directory.describe(Path(place))
    if name != settings.name:
        raise UserError(f"{key}.weights: {place} holds {name}, but {key}.name is {settings.name}")
    return fields


def _origin(place: str) -> str:
    """What a network's weights were before the runs that started from each other: a folder, `RANDOM`, or empty: trained by a run."""
    seen = set()
    while place not in ("", RANDOM) and is_run(place):
        if place in seen:
            raise UserError(f"config.backbone.weights: {place} started from itself")
        seen.add(place)
        place = read_config(Path(place))["backbone"]["weights"]
    return place


def reward_model(name: str, given: Mapping[str, Any], with_params: bool = False) -> tuple[RewardModel, PyTree]:
    """Builds a published reward model from its folder; or of any size, where its weights are drawn.

    Args:
        name: Published name.
        given: The reward in the config: `weights`, a folder or "random"; where they are drawn also `vision`, `text` and `head`, fields
            of the model that differ.
        with_params: Whether parameters and vocabulary are read too.

    Returns:
        The model and its parameters; None where they are not asked for, or are to be drawn. Drawn models read the bytes of a text.

    Raises:
        UserError: If no folder is given, or it holds another model, or fields do not fit.
    """
    folder, sizes = given.get("weights", ""), {key: given[key] for key in REWARD_SIZES if key in given}
    if folder == RANDOM:
        return _drawn_reward_model(name, sizes), None
    if not folder:
        raise UserError(f"weights: {name} needs the folder that `jaxdrl convert --model={name} --from=FILE --to=DIR` made")
    if sizes:
        raise UserError(f"{', '.join(sizes)}: the sizes of {name} are those of its folder {folder}; leave them out")
    found, fields = model_directory.describe(Path(folder))
    if found != name:
        raise UserError(f"weights: {folder} holds {found}, not {name}")
    if with_params:
        return cast(Any, model_directory.load(Path(folder)))
    return preference.create(name, **fields), None


def _drawn_reward_model(name: str, sizes: Mapping[str, Any]) -> RewardModel:
    try:
        fields = {key: tuple(value) if key == "head" else dict(value) for key, value in sizes.items()}
        model = preference.create(name, **fields)
        if model.text is None:
            return model
        known = jax.eval_shape(model.init, jax.random.key(0))["text"]["tokens"].shape[0]
        return preference.create(name, **fields, tokenizer=tokens.of_bytes(known))
    except (TypeError, ValueError) as error:
        raise UserError(f"weights=random: {error}") from error


def is_run(place: str) -> bool:
    """Whether a place of weights is the workdir of a run.

    Args:
        place: `config.backbone.weights`.

    Returns:
        True if it holds a run's config.
    """
    return (Path(place) / "config.json").is_file()


def tuple_of(value: Any) -> Any:
    """A list as a tuple, anything else as it is: JSON and configs have no tuples.

    Args:
        value: Any value.

    Returns:
        The value.
    """
    return tuple(value) if isinstance(value, list | tuple) else value


def as_float(images: Any) -> Float[Array, "batch h w c"]:
    """Images as networks take them; inside jit.

    Args:
        images: uint8, or float in [-1, 1].

    Returns:
        float32 in [-1, 1].
    """
    images = jnp.asarray(images)
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def features(config: Config, which: str) -> Callable[[PyTree, Any], Float[Array, "batch dim"]]:
    """An encoder's pooled features as a function of its weights and images.

    Args:
        config: A run's config.
        which: "reward" or "judge".

    Returns:
        (params, images, uint8 or float in [-1, 1]) -> [batch, dim], differentiable in float images.
    """
    network = encoder(config, which)
    return lambda params, images: network.features(params, as_float(images))["pooled"]


def reward(config: Config, encoder_params: PyTree, head: PyTree) -> Callable[..., Float[Array, " batch"]]:
    """The discriminator's logit on images: `reward(images, labels) -> [batch]`.

    Args:
        config: A run's config.
        encoder_params: Weights of the reward encoder.
        head: Weights of the discriminator.

    Returns:
        A differentiable function.
    """
    encode = features(config, "reward")
    return discriminator.reward(head, lambda images: encode(encoder_params, images))
