"""One description of all published reward models, and the reward `(images, labels) -> [batch]` that is made of one.

Images are those of a class-conditional generator: the class stands for a prompt, and a model that reads text has one row of text a class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.errors import UserError

Images = Float[Array, "batch h w c"]
Scores = Float[Array, " batch"]


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A published reward model without its module system.

    Attributes:
        name: Published name.
        fields: Sizes and options by name, as (key, value) pairs (for model.json, like Encoder.fields).
        init: key -> params, float32.
        text: (params, prompts: Sequence[str]) -> a pytree of arrays whose leaves have the prompts as first axis (text features, or
            token ids where the text tower sees the image); computed once, on the host; None for models that read no text.
        score: (params, images [batch, h, w, 3] in [-1, 1], text rows or None) -> [batch]. Differentiable in the images.
        as_published: the same through bytes: images are clipped and rounded to uint8 and resized as the published pipeline does it
            (PIL semantics where the original uses PIL), still [-1, 1] float in; not differentiable.
    """

    name: str
    fields: tuple[tuple[str, Any], ...]
    init: Callable[[Key[Array, ""]], PyTree]
    text: Callable[[PyTree, Sequence[str]], PyTree] | None
    score: Callable[[PyTree, Images, PyTree], Scores]
    as_published: Callable[[PyTree, Images, PyTree], Scores]


def reward(
    model: RewardModel, params: PyTree, text: PyTree = None, *, published: bool = False
) -> Callable[[Images, Int[Array, " batch"]], Scores]:
    """A reward model as a reward of classes.

    Args:
        model: The model.
        params: Its parameters.
        text: A row a class, from `model.text(params, prompts of the classes)`; None for models that read no text.
        published: Whether images go through bytes, as in the published pipeline; there is no gradient then.

    Returns:
        (images in [-1, 1], labels) -> scores, traced. A label that is no class, such as the null class, gets NaN where text is read.

    Raises:
        UserError: If text is missing, or given to a model that reads none.
    """
    if model.text is None and text is not None:
        raise UserError(f"reward {model.name} reads no text; leave `text` out")
    if model.text is not None and text is None:
        raise UserError(f"reward {model.name} reads text: give text=model.text(params, prompts), a prompt a class")
    apply = model.as_published if published else model.score
    if text is None:
        return lambda images, labels: apply(params, images, None)
    classes = len(jax.tree.leaves(text)[0])

    def score(images: Images, labels: Int[Array, " batch"]) -> Scores:
        known = (labels >= 0) & (labels < classes)
        rows = jax.tree.map(lambda leaf: leaf[jnp.where(known, labels, 0)], text)
        return jnp.where(known, apply(params, images, rows), jnp.nan)

    return score


def checked(name: str, images: Images, rows: PyTree = None) -> Float[Array, "batch h w 3"]:
    """Refuses what a model cannot score, and repeats the channel of grey images, as PIL's convert("RGB") does.

    Args:
        name: Of the model, for errors.
        images: Of one or three channels.
        rows: Text rows, where text is read.

    Returns:
        Images of three channels.

    Raises:
        ValueError: If the images have another shape, or there is not one row of text for each.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"{name} takes images [batch, h, w, 1 or 3], got {tuple(images.shape)}")
    lengths = {len(leaf) for leaf in jax.tree.leaves(rows)}
    if lengths - {len(images)}:
        raise ValueError(f"{name} takes one row of text an image: {len(images)} images, {sorted(lengths)} rows")
    return jnp.broadcast_to(images, (*images.shape[:3], 3))
