"""Published reward models by name: what people prefer, differentiable with respect to the image.

    model, params = model_directory.load(folder)                      # from `jaxdrl convert`
    rows = model.text(params, prompts.prompts(names))                 # once; a prompt a class
    reward = rewards.create(model.name, model=model, params=params, text=rows)
    reward(images, labels)                                            # [batch], traced

Two of them read no text: there `model.text` is None, and `text` is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxdrl.errors import UserError
from jaxdrl.rewards.preference import aesthetic, clip_scores, image_reward, tokens, wordpiece
from jaxdrl.rewards.preference.model import RewardModel, reward
from jaxdrl.rewards.preference.tokens import Tokenize


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published model.

    Attributes:
        create: Fields -> model; of models that read text, also `tokenizer`.
        vocabularies: Sets of files, any of which is the vocabulary; none where no text is read.
        tokenizer: Those files, name -> path -> tokenizer.
    """

    create: Callable[..., RewardModel]
    vocabularies: tuple[tuple[str, ...], ...] = ()
    tokenizer: Callable[[Mapping[str, Path]], Tokenize] | None = None


PUBLISHED: dict[str, Published] = {
    name: Published(
        create=partial(clip_scores.create, name),
        vocabularies=tokens.VOCABULARIES,
        tokenizer=partial(tokens.clip, clean=tokens.clean_html) if name.startswith("hpsv2") else tokens.clip,
    )
    for name in clip_scores.MODELS
}
PUBLISHED |= {name: Published(create=partial(aesthetic.create, name)) for name in aesthetic.MODELS}
PUBLISHED[image_reward.NAME] = Published(create=image_reward.create, vocabularies=((wordpiece.FILE,),), tokenizer=wordpiece.blip)


def create(name: str, **fields: Any) -> RewardModel:
    """Builds a published reward model.

    Args:
        name: One of `PUBLISHED`.
        **fields: Of the model: vision and text (fields of the towers), head; tokenizer, where it reads text.

    Returns:
        The model, without parameters.

    Raises:
        ValueError: If the name or a field is unknown, or the fields do not fit each other.
    """
    if name not in PUBLISHED:
        raise ValueError(f"reward model {name!r} is unknown; choose one of {', '.join(PUBLISHED)}")
    try:
        return PUBLISHED[name].create(**fields)
    except TypeError as error:
        raise ValueError(f"reward model {name!r}: {error}") from error


def vocabulary(name: str, paths: list[Path]) -> dict[str, Path]:
    """The files of a model's vocabulary among some.

    Args:
        name: One of `PUBLISHED`.
        paths: Files that hold no weights.

    Returns:
        Name -> path; empty for models that read no text.

    Raises:
        UserError: If they are not one of the sets in which the vocabulary is published, or cannot be read.
    """
    sets, found = PUBLISHED[name].vocabularies, {path.name: path for path in paths}
    if not sets and found:
        raise UserError(f"--from: {name} reads no text; leave {', '.join(found)} out")
    if sets and set(found) not in [set(names) for names in sets]:
        said = f"got {', '.join(found)}" if found else "there is none"
        raise UserError(f"--from: {name} reads text and needs its vocabulary too: {tokens.described(sets)}; {said}")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"--from: {', '.join(missing)} is missing")
    if (tokenizer := PUBLISHED[name].tokenizer) is not None:
        tokenizer(found)(["a photo of a cat"], 77)  # a wrong file is told now
    return found


__all__ = ["PUBLISHED", "Published", "RewardModel", "create", "reward", "vocabulary"]
