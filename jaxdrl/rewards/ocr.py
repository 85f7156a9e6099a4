r"""How well a text is written in an image: the edit distance between what a recogniser reads and what the prompt asks for.

Source: Liu et al., "Flow-GRPO", arXiv 2505.05470; its code, yifan123/flow_grpo (flow_grpo/ocr.py). The target is what stands between
the first two double quotes of the prompt (to its end, where there is only one); in it and in what is read, spaces are removed and
letters are lower case. With d the Levenshtein distance,

    r = 1                                      if the target is a part of what is read,                     (1)
    r = 1 - min(d(read, target), |target|) / |target|      otherwise.                                       (2)

So what is written beside the target costs nothing where the target is whole. A prompt without quotes or with nothing but spaces in
them has no target: NaN, as in MARBLE's copy (aim-uofa/MARBLE), where Flow-GRPO's code raises. Where the recogniser fails, theirs gives 0; here
the error is raised, and `supervised.py` asks again.

The recogniser is the user's, since the published one (PaddleOCR 2.9.1) is a package of its own. For example, in `readers.py`:

    paddle = PaddleOCR(use_angle_cls=False, lang="en", use_gpu=False, show_log=False)

    def read(images):                                                     # uint8 [n, h, w, 3] -> n strings
        found = [paddle.ocr(image, cls=False)[0] or [] for image in images]
        return ["".join(text for _, (text, confidence) in lines if confidence > 0) for lines in found]

and `recogniser="readers:read"`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxdrl.errors import UserError
from jaxdrl.plugins import load
from jaxdrl.rewards.by_class import of_condition
from jaxdrl.rewards.pixels import to_bytes


def reward(*, recogniser: str, prompts: Sequence[str]) -> Callable[..., Any]:
    """Makes the reward.

    Args:
        recogniser: "module:function" of (uint8 images [n, h, w, 3]) -> n strings.
        prompts: That of each class.

    Returns:
        (images, condition) -> float32 [batch], in [0, 1]; NaN where the prompt has no target.

    Raises:
        UserError: If the recogniser cannot be imported, or no prompt has a target.
    """
    targets = [target(prompt) for prompt in prompts]
    if not any(targets):
        raise UserError('prompts: none has a text in double quotes, like: a sign that says "open"')
    read = load(recogniser, "recogniser")

    def apply(images: Float[np.ndarray, "batch h w c"], condition: Int[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
        pixels = to_bytes(images, what="OCR", colours=True)
        wanted = [of_condition(targets, label, "prompts") for label in condition]
        values, asked = np.full(len(pixels), np.nan, np.float32), np.array([bool(text) for text in wanted], bool)
        if not asked.any():
            return values
        found = list(read(pixels[asked]))
        if len(found) != asked.sum() or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{recogniser} must give one string for each of {asked.sum()} images, got {str(found)[:80]}")
        values[asked] = [score(text, goal) for text, goal in zip(found, filter(None, wanted), strict=True)]
        return values

    return apply


def target(prompt: str) -> str:
    """The text that a prompt asks for.

    Args:
        prompt: A sentence.

    Returns:
        Without spaces, in lower case; empty if there is none.
    """
    parts = prompt.split('"')
    return _plain(parts[1]) if len(parts) > 1 else ""


def score(read: str, target: str) -> float:
    """(1) or (2).

    Args:
        read: What the recogniser gave.
        target: From `target`, not empty.

    Returns:
        In [0, 1].
    """
    read = _plain(read)
    distance = 0 if target in read else min(edit_distance(read, target), len(target))
    return 1 - distance / len(target)


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: how many letters are to be inserted, deleted or replaced.

    Args:
        one: A text.
        other: A text.

    Returns:
        The least number, row by row of Wagner and Fischer's table.
    """
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, wanted in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != wanted))
    return row[-1]


def _plain(text: str) -> str:
    return text.replace(" ", "").lower()
