r"""Whether an image shows the objects that were asked for: GenEval's scoring, on what a detector found.

Sources: Ghosh et al., "GenEval", arXiv 2310.11513, and its code, djghosh13/geneval (evaluation/evaluate_images.py); as a reward in
Liu et al., "Flow-GRPO", arXiv 2505.05470, and its server, yifan123/reward-server (reward_server/gen_eval.py).

A task asks for n_i objects of class i, of a colour or in a position relative to an earlier class. Of a class those detections count
whose confidence is above a threshold (.3, for counting .9), the surest `max_objects` of them: m_i. Flow-GRPO's reward is the mean of terms,

    1 - |n_i - m_i| / n_i                              for every class,                                       (1)
    1 - |n_i - #{objects of the colour}| / n_i         where a colour is asked for,                           (2)
    1 if every pair is placed as asked, else 0         where a position is,                                   (3)

with a single 0 in place of (2) and (3) where m_i is not n_i, and in place of (3) where the earlier class was not found as asked; (3) is left out where (2) is below 1.
`strict` is 1 where all is exactly as asked. `correct` is GenEval's own: the surest n_i objects are looked at, more do not harm, and
what a task excludes must not be there. With centres a, b and sizes (widths and heights) s_a, s_b of two boxes,

    d = max(|a - b| - .1 (s_a + s_b), 0) sign(a - b) / |a - b|                                                (4)

is left of, right of, above or below where a component is beyond -.5 or .5.

Where paper and code differ: the code adds a term 1 behind that of (3) in any case, also behind a 0; as the published rewards were computed
with it, it is the default (`position_terms="code"`); "paper" has (3) alone. (1) falls below 0 where there are more than 2 n_i.

A task is a line of GenEval's `evaluation_metadata.jsonl`:

    {"tag": "position", "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 2, "position": ["left of", 0]}]}

and the detector is the user's: a function of uint8 images [n, h, w, 3] that gives for each a list of `Detection`s. Theirs is
Mask2Former-Swin-S of mmdet 2, and CLIP-L/14 names the colour of each object's crop; asking it for colours that no task needs is its own waste.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxdrl.errors import UserError
from jaxdrl.plugins import load
from jaxdrl.rewards.by_class import of_condition
from jaxdrl.rewards.pixels import to_bytes

KINDS = ("partial", "strict", "correct")
POSITIONS = ("left of", "right of", "above", "below")


class Detection(NamedTuple):
    """An object that a detector found.

    Attributes:
        name: Its class.
        score: Confidence, in [0, 1].
        box: Left, top, right, bottom, in pixels.
        colour: Its name; empty where it was not looked at.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    colour: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of the scoring; the defaults are the published ones.

    Attributes:
        threshold: Least confidence, not included.
        counting_threshold: That of tasks with the tag counting.
        max_objects: Of a class.
        position_threshold: .1 of (4).
        position_terms: "code" or "paper".
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    position_threshold: float = 0.1
    position_terms: str = "code"

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: If a value is out of range.
        """
        if self.max_objects < 1 or self.position_terms not in ("code", "paper"):
            raise UserError(f"max_objects ({self.max_objects}) must be at least 1, position_terms code or paper")


class Wanted(NamedTuple):
    """So many objects of a class.

    Attributes:
        name: The class.
        count: At least 1.
        colour: Empty: any.
        position: (One of `POSITIONS`, relative to which earlier entry), or None.
    """

    name: str
    count: int
    colour: str = ""
    position: tuple[str, int] | None = None


class Task(NamedTuple):
    """What an image should show.

    Attributes:
        tag: GenEval's kind of task.
        include: All of these.
        exclude: None of these, so many or more.
    """

    tag: str
    include: tuple[Wanted, ...]
    exclude: tuple[Wanted, ...]


class Verdict(NamedTuple):
    """Of one image.

    Attributes:
        partial: The mean of terms.
        strict: 1 or 0.
        correct: 1 or 0.
    """

    partial: float
    strict: float
    correct: float


def reward(
    *,
    detector: str,
    tasks: str | Sequence[Mapping[str, Any]],
    kind: str = "partial",
    threshold: float = 0.3,
    counting_threshold: float = 0.9,
    max_objects: int = 16,
    position_threshold: float = 0.1,
    position_terms: str = "code",
) -> Callable[..., Any]:
    """Makes the reward.

    Args:
        detector: "module:function" of (uint8 images [n, h, w, 3]) -> n lists of `Detection`s, or tuples like them.
        tasks: That of each class, as mappings or as a file with a line of JSON each.
        kind: partial, strict or correct.
        threshold: See `Settings`.
        counting_threshold: See `Settings`.
        max_objects: See `Settings`.
        position_threshold: See `Settings`.
        position_terms: See `Settings`.

    Returns:
        (images, condition) -> float32 [batch].

    Raises:
        UserError: If a field is unknown or out of range, a task is not one, or the detector cannot be imported.
    """
    if kind not in KINDS:
        raise UserError(f"kind: {kind!r} must be one of {', '.join(KINDS)}")
    settings = Settings(
        threshold=threshold,
        counting_threshold=counting_threshold,
        max_objects=max_objects,
        position_threshold=position_threshold,
        position_terms=position_terms,
    )
    lines = _lines(Path(tasks).expanduser()) if isinstance(tasks, str) else tasks
    wanted = [task(line, f"tasks: number {number}") for number, line in enumerate(lines)]
    detect = load(detector, "detector")

    def apply(images: Float[np.ndarray, "batch h w c"], condition: Int[np.ndarray, " batch"]) -> Float[np.ndarray, " batch"]:
        pixels = to_bytes(images, what="GenEval", colours=True)
        asked = [of_condition(wanted, label, "tasks") for label in condition]
        found = list(detect(pixels))
        if len(found) != len(pixels):
            raise ValueError(f"{detector} must give one list for each of {len(pixels)} images, got {len(found)}")
        objects = [[_detection(item, detector) for item in seen] for seen in found]
        verdicts = [judge(seen, goal, settings) for seen, goal in zip(objects, asked, strict=True)]
        return np.array([getattr(verdict, kind) for verdict in verdicts], np.float32)

    return apply


def task(said: Any, where: str = "task") -> Task:
    """Reads a task.

    Args:
        said: A mapping like a line of GenEval's file.
        where: In errors.

    Returns:
        The task.

    Raises:
        UserError: If it is not one.
    """
    if not isinstance(said, Mapping) or not said.get("include"):
        raise UserError(f"{where} must have tag and include, as a line of GenEval's evaluation_metadata.jsonl")
    include = tuple(_wanted(part, index, where) for index, part in enumerate(said["include"]))
    exclude = tuple(_wanted(part, 0, where) for part in said.get("exclude", ()))
    return Task(str(said.get("tag", "")), include, exclude)


def judge(found: Sequence[Detection], task: Task, settings: Settings) -> Verdict:
    """Scores an image.

    Args:
        found: All that was detected in it.
        task: What was asked for.
        settings: See `Settings`.

    Returns:
        All three scores.
    """
    least = settings.counting_threshold if task.tag == "counting" else settings.threshold
    objects: dict[str, list[Detection]] = {}
    for seen in sorted((seen for seen in found if seen.score > least), key=lambda seen: -seen.score):
        kept = objects.setdefault(seen.name, [])
        if len(kept) < settings.max_objects:
            kept.append(seen)
    partial, strict = _partial(objects, task, settings)
    return Verdict(partial, float(strict), float(_correct(objects, task, settings)))


def relations(one: Detection, other: Detection, threshold: float) -> set[str]:
    """Where one object lies, seen from another, by (4).

    Args:
        one: An object.
        other: The one that it is relative to.
        threshold: .1 of (4).

    Returns:
        Some of `POSITIONS`, none where they overlap too much.
    """
    boxes = np.array([one.box, other.box], np.float64).reshape(2, 2, 2)
    offset = boxes[0].mean(axis=0) - boxes[1].mean(axis=0)
    sizes = np.abs(boxes[:, 1] - boxes[:, 0]).sum(axis=0)
    moved = np.maximum(np.abs(offset) - threshold * sizes, 0) * np.sign(offset)
    if np.all(np.abs(moved) < 1e-3):
        return set()
    right, down = moved / np.linalg.norm(offset)
    holds = {"left of": right < -0.5, "right of": right > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {name for name, truth in holds.items() if truth}


def _partial(objects: Mapping[str, list[Detection]], task: Task, settings: Settings) -> tuple[float, bool]:
    """Flow-GRPO's reward, and whether all is exactly as asked."""
    terms, matched = [], []
    for part in task.include:
        seen = objects.get(part.name, [])
        terms.append(1 - abs(part.count - len(seen)) / part.count)  # (1)
        right = len(seen) == part.count
        if not right and (part.colour or part.position):
            terms.append(0.0)
        if right and part.colour:
            coloured = sum(item.colour == part.colour for item in seen)
            terms.append(1 - abs(part.count - coloured) / part.count)  # (2)
            right = coloured == part.count
        if right and part.position:
            earlier = matched[part.position[1]]
            right = earlier is not None and _placed(seen, earlier, part.position[0], settings)
            terms.append(float(right))  # (3)
            if earlier is not None and not right and settings.position_terms == "code":
                terms.append(1.0)
        matched.append(seen if right else None)
    return sum(terms) / len(terms), all(group is not None for group in matched)


def _correct(objects: Mapping[str, list[Detection]], task: Task, settings: Settings) -> bool:
    """GenEval's own verdict."""
    matched = []
    for part in task.include:
        seen = objects.get(part.name, [])[: part.count]
        right = len(seen) == part.count
        if right and part.colour:
            right = sum(item.colour == part.colour for item in seen) == part.count
        if right and part.position:
            earlier = matched[part.position[1]]
            right = earlier is not None and _placed(seen, earlier, part.position[0], settings)
        matched.append(seen if right else None)
    excluded = any(len(objects.get(part.name, [])) >= part.count for part in task.exclude)
    return all(group is not None for group in matched) and not excluded


def _placed(seen: Sequence[Detection], earlier: Sequence[Detection], position: str, settings: Settings) -> bool:
    return all(position in relations(one, other, settings.position_threshold) for one in seen for other in earlier)


def _detection(item: Any, detector: str) -> Detection:
    try:
        found = Detection(*item)
        box = tuple(float(value) for value in found.box)
        found = Detection(str(found.name), float(found.score), box, str(found.colour or ""))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise ValueError(f"{detector} must give (class, score, box, colour), got {str(item)[:60]}") from None
    if len(found.box) != 4:
        raise ValueError(f"{detector} must give boxes (left, top, right, bottom), got {found.box}")
    return found


def _wanted(said: Any, index: int, where: str) -> Wanted:
    position = said.get("position") if isinstance(said, Mapping) else None
    known = isinstance(said, Mapping) and not set(said) - {"class", "count", "color", "position"}
    if not known or not isinstance(said.get("class"), str) or not isinstance(said.get("count"), int) or said["count"] < 1:
        raise UserError(f"{where}: {str(said)[:80]} must have class and count, and may have color and position")
    if position is not None:
        try:
            name, earlier = position
        except (TypeError, ValueError):
            name, earlier = None, None
        if name not in POSITIONS or not isinstance(earlier, int) or not 0 <= earlier < index:
            raise UserError(
                f"{where}: position {str(position)[:40]} must be [one of {', '.join(POSITIONS)}, number of an earlier entry]"
            )
        position = (name, earlier)
    return Wanted(said["class"], said["count"], said.get("color", ""), position)


def _lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"tasks: {path} cannot be read ({error}); give a file with a line of JSON a class") from None
