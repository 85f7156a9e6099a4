"""Networks that a user wrote, by "module:function" in the config: `docs/own_backbone.md` and `docs/own_encoder.md`."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jaxdrl import backbones, encoders, plugins
from jaxdrl.config import Config, default
from jaxdrl.errors import UserError

# Of `config.backbone`: how jaxdrl's own networks are computed. One that is not ours would not know of them.
_OURS = ("dtype", "remat", "scan_layers", "attention", "spectral")


def is_own(name: str) -> bool:
    """Whether a name in the config is the path of a user's function.

    Args:
        name: `config.backbone.name`, or an encoder's.

    Returns:
        True for "module:function".
    """
    return ":" in name


def backbone(config: Config, sample_shape: tuple[int, ...]) -> backbones.Backbone:
    """Calls `make(sample_shape=..., num_classes=..., **config.backbone.fields) -> (init, velocity)`.

    Args:
        config: A run's config.
        sample_shape: (h, w, c) of what the generator works on.

    Returns:
        The backbone; the same settings give the same object.

    Raises:
        UserError: If the function cannot be imported or called, what it gives is no backbone, or the config sets what is for our networks.
    """
    settings = config.backbone
    _refuse(settings, default().backbone, "config.backbone", _OURS)
    make = plugins.load(settings.name, "config.backbone.name")
    given = {"sample_shape": tuple(sample_shape), "num_classes": config.data.num_classes}
    return _made(backbones.of_functions, make, settings, "config.backbone", tuple(given.items()))


def encoder(config: Config, which: str) -> encoders.Encoder:
    """Calls `make(image_shape=..., **config.encoders[which].fields) -> (init, apply)`.

    Args:
        config: A run's config.
        which: "reward", "judge" or "preference".

    Returns:
        The encoder; the same settings give the same object.

    Raises:
        UserError: If the function cannot be imported or called, what it gives is no encoder, or the config sets what is for our networks.
    """
    settings, key = config.encoders[which], f"config.encoders.{which}"
    _refuse(settings, default().encoders[which], key, ("dtype",))
    make = plugins.load(settings.name, f"{key}.name")
    return _made(encoders.of_functions, make, settings, key, (("image_shape", tuple(config.data.image_shape)),))


def _refuse(settings: Any, usual: Any, key: str, names: tuple[str, ...]) -> None:
    for name in names:
        if settings[name] != usual[name]:
            raise UserError(f"{key}.{name} is for the networks of jaxdrl; give {settings.name} what it needs in {key}.fields")


def _made(wrap: Callable[..., Any], make: Callable[..., Any], settings: Any, key: str, given: tuple[tuple[str, Any], ...]) -> Any:
    fields = tuple(sorted((name, _hashable(value)) for name, value in settings.fields.items()))
    try:
        inspect.signature(make).bind(**dict(given), **dict(fields))
    except TypeError as error:
        raise UserError(f"{key}.fields: {settings.name} is called with {', '.join(dict(given + fields))}: {error}") from error
    made = _called(make, given, fields)
    if not isinstance(made, tuple) or len(made) != 2 or not all(map(callable, made)):
        raise UserError(f"{key}.name: {settings.name} must return two functions, it returned {type(made).__name__}")
    try:
        return _wrapped(wrap, settings.name, made, given, fields)
    except ValueError as error:
        raise UserError(f"{key}.name: {settings.name}: {error}") from error


# Functions compiled for a network are found again if it is the same object.
@lru_cache(maxsize=16)
def _called(make: Callable[..., Any], given: tuple, fields: tuple) -> Any:
    return make(**dict(given), **dict(fields))


@lru_cache(maxsize=16)
def _wrapped(wrap: Callable[..., Any], name: str, made: tuple, given: tuple, fields: tuple) -> Any:
    return wrap(name, *made, **dict(given), fields=fields)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
