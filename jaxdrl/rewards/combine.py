"""Rewards by name, several at a time: each `reward(images, condition) -> [batch]`, K of them stacked to [batch, K].

A reward is traced (it runs inside the compiled step, and has a gradient where its formula has one) or runs on the host, in NumPy, between
two compiled halves. NaN says that a reward does not apply to an image, as MARBLE's OCR and GenEval (arXiv 2605.06507) apply to their
own prompts only; here a reward is restricted to classes, and a selective one says so itself, image by image. A reward that fails raises;
values that are not finite where it applies are counted as failures of those samples in training (`training/methods/scoring.py`), and
`supervised.py` asks again on the host. `docs/rewards.md` says how to write one's own.

    chosen = [create("brightness"), create("symmetry", classes=(0, 8)), create("jpeg_compressibility", kilobytes=500.0)]
    stack(chosen[:2])(images, labels)        # [batch, 2], traced
    evaluator(chosen)(images, labels)        # float32 [batch, 3], on the host
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from jaxdrl.errors import UserError
from jaxdrl.rewards import bradley_terry, class_confidence, discriminator, geneval, imported, jpeg, ocr, preference, remote
from jaxdrl.rewards.image_statistics import STATISTICS

Apply = Callable[[Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Reward:
    """One reward; call it as `reward(images, condition)`.

    Attributes:
        name: In metrics and errors.
        apply: (images [batch, h, w, c] float in [-1, 1], condition [batch] int) -> [batch], for every image.
        traced: Whether `apply` is traced by JAX; otherwise it takes and gives NumPy arrays.
        classes: The classes to which it applies, None for all; the others get NaN.
        scale: What `apply` gives is multiplied by it; -1 turns a statistic round.
        selective: Whether NaN from `apply` says that the reward does not apply to that image; otherwise it is a failure.
    """

    name: str
    apply: Apply
    traced: bool = True
    classes: tuple[int, ...] | None = None
    scale: float = 1.0
    selective: bool = False

    def __call__(self, images: Shaped[Array | np.ndarray, "..."], condition: Shaped[Array | np.ndarray, "..."]) -> Any:
        """Evaluates the reward.

        Args:
            images: [batch, h, w, c], float in [-1, 1].
            condition: [batch], int.

        Returns:
            [batch], scaled; NaN where the reward does not apply. A NumPy array, float32, of a reward on the host.

        Raises:
            ValueError: If arrays have other shapes or types, or traced ones are given to a reward on the host.
        """
        if not self.traced and any(isinstance(array, jax.core.Tracer) for array in (images, condition)):
            raise ValueError(f"reward {self.name} runs on the host; call it between compiled functions, not inside one")
        xp: Any = jnp if self.traced else np
        images, condition = xp.asarray(images), xp.asarray(condition)
        self._check(images, condition)
        applies = None if self.classes is None else xp.isin(condition, xp.asarray(self.classes, xp.int32))
        if applies is not None and self.traced:
            # An image that does not count has no gradient, not even 0 times one that is not finite.
            images = jnp.where(applies.reshape(-1, 1, 1, 1), images, 0.0)
        values = self.apply(images, condition)
        if values.shape != (len(images),):
            raise ValueError(
                f"reward {self.name} gave {tuple(values.shape)} for {len(images)} images; it must give one number each"
            )
        values = self.scale * xp.asarray(values, xp.float32)
        return values if applies is None else xp.where(applies, values, xp.float32(xp.nan))

    def _check(self, images: Any, condition: Any) -> None:
        if len(images.shape) != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"reward {self.name} takes float images [batch, h, w, c] in [-1, 1], got {images.dtype} {tuple(images.shape)}"
            )
        if condition.shape != images.shape[:1] or not jnp.issubdtype(condition.dtype, jnp.integer):
            raise ValueError(
                f"reward {self.name} takes one integer condition for each of {len(images)} images, "
                f"got {condition.dtype} {tuple(condition.shape)}"
            )


def names() -> list[str]:
    """Lists what `create` knows.

    Returns:
        Names.
    """
    return list(_MAKERS)


def create(name: str, *, classes: Iterable[int] | None = None, scale: float = 1.0, label: str = "", **fields: Any) -> Reward:
    """Makes a reward.

    Those that need weights are given them (`discriminator`: params, features; `class_confidence` and `bradley_terry`: head, features; published reward models,
    see `preference`: model, params and, if they read text, text); inside a compiled function, from the function's arguments, so that weights
    do not become constants of the program.

    Args:
        name: One of `names()`.
        classes: The classes to which it applies; None: all.
        scale: Multiplies it.
        label: What it is called in metrics, if not by its name.
        **fields: Of the reward: dark for strokes, quality and kilobytes for JPEG ...

    Returns:
        The reward.

    Raises:
        UserError: If the name or a field is unknown, a needed field is missing, or no class is left.
    """
    if name not in _MAKERS:
        raise UserError(f"reward {name!r} is unknown; choose one of {', '.join(names())}")
    make, traced = _MAKERS[name]
    known = _fields(make)
    unknown = sorted(set(fields) - set(known))
    missing = sorted(field for field, needed in known.items() if needed and field not in fields)
    if unknown or missing:
        takes = ", ".join(["classes", "scale", "label", *known])
        raise UserError(f"reward {name}: unknown fields {unknown}, missing fields {missing}; it takes {takes}")
    kept = None if classes is None else tuple(int(label) for label in classes)
    if kept == ():
        raise UserError(f"reward {name}: classes is empty, so it would apply to no image; leave it out for all classes")
    made = make(**fields)
    return Reward(name=label or name, apply=made, traced=traced, classes=kept, scale=float(scale), selective=name in _SELECTIVE)


def stack(rewards: Sequence[Reward]) -> Callable[..., Float[Array, "batch K"]]:
    """Evaluates traced rewards side by side.

    Args:
        rewards: K of them.

    Returns:
        (images, condition) -> float32 [batch, K], columns in the order given; NaN where one does not apply.

    Raises:
        ValueError: If there are none, two have the same name, or one runs on the host.
    """
    _check_names(rewards)
    hosts = [reward.name for reward in rewards if not reward.traced]
    if hosts:
        raise ValueError(f"{', '.join(hosts)} cannot be traced; evaluate them on the host, by evaluator()")
    return lambda images, condition: jnp.stack([reward(images, condition) for reward in rewards], axis=1)


def evaluator(rewards: Sequence[Reward]) -> Callable[..., Float[np.ndarray, "batch K"]]:
    """Evaluates any rewards on arrays of the host; make it once, since it compiles the traced ones.

    Args:
        rewards: K of them, traced or not.

    Returns:
        (images, condition, traced=None) -> float32 [batch, K], columns in the order given; NaN where one does not apply. `traced`, what
        `stack` of the traced ones gave within the first compiled half, saves computing them again.

    Raises:
        ValueError: If there are no rewards, or two have the same name.
    """
    _check_names(rewards)
    columns = [index for index, reward in enumerate(rewards) if reward.traced]
    compiled = jax.jit(stack([rewards[index] for index in columns])) if columns else None

    def evaluate(images: Any, condition: Any, traced: Any = None) -> Float[np.ndarray, "batch K"]:
        images, condition = np.asarray(images), np.asarray(condition)
        found = np.empty((len(images), len(rewards)), np.float32)
        if compiled is not None:
            values = np.asarray(compiled(images, condition) if traced is None else traced)
            if values.shape != (len(images), len(columns)):
                raise ValueError(f"traced must be {(len(images), len(columns))}, a column a traced reward; got {values.shape}")
            found[:, columns] = values
        for index, reward in enumerate(rewards):
            if not reward.traced:
                found[:, index] = reward(images, condition)
        return found

    return evaluate


def _check_names(rewards: Sequence[Reward]) -> None:
    found = [reward.name for reward in rewards]
    twice = sorted({name for name in found if found.count(name) > 1})
    if not found or twice:
        raise ValueError(f"rewards must be at least one, each with its own name; twice: {twice} (give them labels)")


def _of_images(function: Callable[..., Any]) -> Callable[..., Apply]:
    """A maker for what does not look at the condition; its fields are the function's keywords."""

    def make(**fields: Any) -> Apply:
        chosen = partial(function, **fields)
        return lambda images, condition: chosen(images)

    make.__wrapped__ = function  # pyright: ignore[reportFunctionMemberAccess]
    return make


def _of_model(name: str) -> Callable[..., Apply]:
    """A maker for a published reward model."""

    def make(model: preference.RewardModel, params: PyTree, text: PyTree = None, published: bool = False) -> Apply:
        if model.name != name:
            raise UserError(f"reward {name}: the model that was given is {model.name}")
        return preference.reward(model, params, text, published=published)

    return make


def _fields(make: Callable[..., Any]) -> dict[str, bool]:
    """Keywords of a maker -> whether they are needed."""
    parameters = inspect.signature(make).parameters
    return {name: value.default is inspect.Parameter.empty for name, value in parameters.items() if name != "images"}


_MAKERS: dict[str, tuple[Callable[..., Apply], bool]] = {
    **{name: (_of_images(statistic), True) for name, statistic in STATISTICS.items()},
    "discriminator": (discriminator.reward, True),
    "class_confidence": (class_confidence.reward, True),
    "bradley_terry": (bradley_terry.reward, True),
    **{name: (_of_model(name), True) for name in preference.PUBLISHED},
    "jpeg_incompressibility": (_of_images(jpeg.incompressibility), False),
    "jpeg_compressibility": (_of_images(jpeg.compressibility), False),
    "ocr": (ocr.reward, False),
    "geneval": (geneval.reward, False),
    "remote": (remote.reward, False),
    "function": (imported.reward, False),
    "traced_function": (imported.reward, True),
}
_SELECTIVE = ("ocr", "remote")
