"""The page of a search for the best guidance: curves over the scale, and what each metric costs in another."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdrl.evaluation import search
from jaxdrl.evaluation.search import Cell
from jaxdrl.report import charts, sections

_PAIRS = (("precision", "recall"), ("density", "coverage"), ("fid", "is"), ("fid", "sfid"), ("adm-precision", "adm-recall"))


def render(cells: Sequence[Cell], metric: str, title: str, settings: Mapping[str, Any]) -> str:
    """Writes the page.

    Args:
        cells: From `search.search`.
        metric: That picked the best.
        title: What was searched for.
        settings: Shown below.

    Returns:
        HTML without scripts or requests.
    """
    best, names = search.best(cells, metric), [name for name in cells[0].numbers if "/" not in name]
    curves = [charts.lines(name, "guidance scale", name, _series(cells, name)) for name in names]
    pairs = [(metric, name) for name in names if name != metric] + [pair for pair in _PAIRS if set(pair) <= set(names)]
    fronts = [_front(cells, x, y) for x, y in dict.fromkeys(pairs)]
    text = lambda value: ", ".join(value) if isinstance(value, list) else value  # noqa: E731
    shown = "; ".join(f"{key} {text(value)}" for key, value in settings.items() if value is not None)
    low, high = best.guidance.interval
    where = "without guidance" if best.guidance.scale == 1 else f"at scale {best.guidance.scale:g} for t in [{low:g}, {high:g}]"
    parts = [
        f"<h1>Guidance of {html.escape(title)}</h1><p class='lead'>The best {html.escape(metric)}, {best.numbers[metric]:.4g}, is reached "
        f"{where}.</p><p class='soft'>{html.escape(shown)}</p>",
        f"<h2>Over the scale</h2><p class='soft'>A line an interval of times at which guidance acts. Scale 1 is no guidance.</p>"
        f"<div class='charts'>{''.join(curves)}</div>",
        "<h2>What one costs in the other</h2><p class='soft'>Each point is a scale and an "
        "interval; on the front no other point is better in one without being worse in the other.</p>"
        f"<div class='charts'>{''.join(fronts)}</div>",
        f"<h2>All points</h2>{_table(cells, best, names)}",
    ]
    return sections.document(f"jaxdrl: guidance, {title}", parts)


def plain(cells: Sequence[Cell], metric: str) -> str:
    """The points as text, the best marked.

    Args:
        cells: From `search.search`.
        metric: That picked the best.

    Returns:
        Lines.
    """
    best, names = search.best(cells, metric), [name for name in cells[0].numbers if "/" not in name]
    lines = [["", "scale", "interval", *names]]
    lines += [["*" if cell is best else "", *_row(cell, names)] for cell in cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _row(cell: Cell, names: Sequence[str]) -> list[str]:
    low, high = cell.guidance.interval
    interval = "" if cell.guidance.scale == 1 else f"{low:g} .. {high:g}"
    return [f"{cell.guidance.scale:g}", interval, *(f"{cell.numbers[name]:.4g}" for name in names)]


def _series(cells: Sequence[Cell], name: str) -> dict[str, tuple[list[float], list[float]]]:
    plain = [cell for cell in cells if cell.guidance.scale == 1]
    series: dict[str, tuple[list[float], list[float]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.guidance.scale):
        if cell.guidance.scale == 1:
            continue
        low, high = cell.guidance.interval
        x, y = series.setdefault(f"t in [{low:g}, {high:g}]", ([1.0] * len(plain), [cell.numbers[name] for cell in plain]))
        x.append(cell.guidance.scale)
        y.append(cell.numbers[name])
    return series or {"no guidance": ([1.0], [cells[0].numbers[name]])}


def _front(cells: Sequence[Cell], x: str, y: str) -> str:
    front = search.pareto(cells, x, y)
    series = {"front": ([cell.numbers[x] for cell in front], [cell.numbers[y] for cell in front])}
    return charts.front(f"{y} against {x}", x, y, series["front"], ([c.numbers[x] for c in cells], [c.numbers[y] for c in cells]))


def _table(cells: Sequence[Cell], best: Cell, names: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("scale", "interval", *names))
    rows = []
    for cell in cells:
        mark = "main" if cell is best else ""
        rows.append(f"<tr class='{mark}'>" + "".join(f"<td>{html.escape(text)}</td>" for text in _row(cell, names)) + "</tr>")
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(rows)}</table></div>"
