"""The best guidance: every scale with every interval, each measured once, the best by a named metric.

Source: "Discriminator-Guided RL", arXiv 2606.19162, "best CFG": scales 1 .. 4 in steps of .25 and intervals (0, 1), (.1, 1), (.3, 1), chosen by
the Frechet distance of each model.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxdrl.errors import UserError
from jaxdrl.evaluation import hosts
from jaxdrl.evaluation.sampling import Guidance
from jaxdrl.weights.files import write_atomically

LARGER_IS_BETTER = (
    "is",
    "is-torch-fidelity",
    "precision",
    "recall",
    "density",
    "coverage",
    "adm-precision",
    "adm-recall",
    "accuracy",
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the search.

    Attributes:
        guidance: Scale and interval; scale 1 is no guidance.
        numbers: Metric -> value.
    """

    guidance: Guidance
    numbers: Mapping[str, float]


def grid(scales: Iterable[float | int], intervals: Iterable[tuple[float | int, float | int]]) -> list[Guidance]:
    """All pairs; scale 1, for which the interval means nothing, once.

    Args:
        scales: At least one.
        intervals: (low, high) within [0, 1].

    Returns:
        The points, by interval and then by scale.

    Raises:
        UserError: If an interval is none, or there is no point.
    """
    spans = [(float(low), float(high)) for low, high in intervals]
    for low, high in spans:
        if not 0 <= low < high <= 1:
            raise UserError(f"a guidance interval is LOW, HIGH with 0 <= LOW < HIGH <= 1, got {low:g}, {high:g}")
    ordered = sorted({float(scale) for scale in scales})
    points = [Guidance(1.0)] if 1.0 in ordered else []
    points += [Guidance(scale, interval) for interval in spans for scale in ordered if scale != 1.0]
    if not points:
        raise UserError("the search has no point: give scales and intervals")
    return points


def name(guidance: Guidance) -> str:
    """A name for a file.

    Args:
        guidance: A point.

    Returns:
        Such as "1.5_0.1-1".
    """
    return f"{guidance.scale:g}_{guidance.interval[0]:g}-{guidance.interval[1]:g}"


def search(
    points: Sequence[Guidance],
    measure: Callable[[Guidance], Mapping[str, float]],
    folder: Path,
    settings: Mapping[str, Any],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Cell]:
    """Measures every point that has not been measured.

    Args:
        points: From `grid`.
        measure: Point -> numbers.
        folder: A file a point.
        settings: What the numbers depend on besides the point: a folder with others is refused.
        progress: Called with the number of points that are done.

    Returns:
        A cell a point.

    Raises:
        UserError: If the folder holds points that were measured otherwise.
    """
    wanted, cells = json.loads(json.dumps(dict(settings))), []
    for done, guidance in enumerate(points, 1):
        path = folder / f"{name(guidance)}.json"
        kept = json.loads(hosts.texts(path.read_text() if path.exists() else "null")[0])
        if kept is not None:
            if kept["settings"] != wanted:
                differ = [key for key in wanted | kept["settings"] if wanted.get(key) != kept["settings"].get(key)]
                raise UserError(f"{folder} holds a search with another {', '.join(differ)}; choose another folder")
            numbers = kept["numbers"]
        else:
            numbers = dict(measure(guidance))
            kept = {"settings": wanted, "guidance": {"scale": guidance.scale, "interval": guidance.interval}, "numbers": numbers}
            if jax.process_index() == 0:
                write_atomically(path, json.dumps(kept, indent=2).encode())
        cells.append(Cell(guidance=guidance, numbers=numbers))
        progress(done)
    return cells


def best(cells: Sequence[Cell], metric: str) -> Cell:
    """The best cell; among equals the one with the least guidance.

    Args:
        cells: From `search`.
        metric: By name; larger is better for those in `LARGER_IS_BETTER`.

    Returns:
        The cell.

    Raises:
        UserError: If the metric has not been measured.
    """
    if metric not in cells[0].numbers:
        raise UserError(f"--metric: {metric!r} has not been measured; choose one of {', '.join(cells[0].numbers)}")
    sign = -1 if metric in LARGER_IS_BETTER else 1
    return min(cells, key=lambda cell: (sign * cell.numbers[metric], cell.guidance.scale))


def pareto(cells: Sequence[Cell], x: str, y: str) -> list[Cell]:
    """Cells that no other one beats in one metric without losing in the other.

    Args:
        cells: From `search`.
        x: One metric.
        y: The other.

    Returns:
        The front, by x from its best.
    """
    signs = [-1 if metric in LARGER_IS_BETTER else 1 for metric in (x, y)]
    points = sorted(cells, key=lambda cell: (signs[0] * cell.numbers[x], signs[1] * cell.numbers[y]))
    front: list[Cell] = []
    for cell in points:
        if not front or signs[1] * cell.numbers[y] < signs[1] * front[-1].numbers[y]:
            front.append(cell)
    return front
