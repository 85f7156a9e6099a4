"""Charts whose areas carry the numbers: shares of a whole, and numbers on a grid."""

import html
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxdrl.report import charts

_SIDE = 190  # of a pie's square
_FEW = 0.07  # a smaller slice has no room for its share


def duration(seconds: float) -> str:
    """A time as people say it.

    Args:
        seconds: At least 0.

    Returns:
        "1.4 s", "52 s", "4 min 27 s" or "3 h 5 min".
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def pie(title: str, parts: Mapping[str, float], said: Callable[[float], str] = duration) -> str:
    """Parts of a whole, as a ring with the whole in its middle.

    Args:
        title: Above the chart.
        parts: name -> size; the n-th name takes the n-th colour, also where others are 0 and left out.
        said: A size in words.

    Returns:
        A <figure>, whose legend gives size and share of each part.
    """
    whole = sum(parts.values(), 0.0)
    if whole <= 0:
        return charts.figure(title, "", "", "<span class='soft'>nothing took time</span>")
    body, legend, words, angle = "", "", [], 0.0
    for index, (name, size) in enumerate(parts.items()):
        share = size / whole
        if share <= 0:
            continue
        body += _slice(angle, share, f"c{index % charts.COLOURS}")
        text = f"{name} {said(size)}, {_percent(share)}"
        legend += f'<span class="key point c{index % charts.COLOURS}">{html.escape(text)}</span>'
        words.append(text)
        angle += share
    middle = _SIDE / 2
    body += f'<text class="total" x="{middle}" y="{middle + 5}" text-anchor="middle">{html.escape(said(whole))}</text>'
    alt = html.escape(f"{title}: {said(whole)} in all. {'; '.join(words)}.")
    left = (charts.WIDTH - _SIDE) / 2
    view = f"{-left:g} 0 {charts.WIDTH} {_SIDE}"
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox='{view}' role='img' aria-label=\"{alt}\">{body}</svg>"
        f"<div class='keys'>{legend}</div></figure>"
    )


def heatmap(
    title: str, x_label: str, y_label: str, values: Float[np.ndarray, "rows columns"], limit: float, x: Sequence[float]
) -> str:
    """Numbers of both signs on a grid: the colour is the sign, its strength the size.

    Args:
        title: Above the chart.
        x_label: Of the columns.
        y_label: Of the rows, which are counted from 0 upwards.
        values: Row 0 is drawn at the bottom.
        limit: The size that has the full colour, the same in charts that are to be compared.
        x: The first and the last column's place on the axis.

    Returns:
        A <figure>.
    """
    rows, columns = values.shape
    wide = (charts.WIDTH - charts.LEFT - charts.RIGHT) / columns
    high = (charts.HEIGHT - charts.TOP - charts.BOTTOM) / rows
    body = ""
    for (row, column), value in np.ndenumerate(values):
        strength = min(abs(value) / limit, 1.0) if limit > 0 else 0.0
        if strength < 0.005:
            continue
        left, top = charts.LEFT + column * wide, charts.HEIGHT - charts.BOTTOM - (row + 1) * high
        body += (
            f'<rect class="cell c{0 if value < 0 else 1}" x="{left:.2f}" y="{top:.2f}" width="{wide:.2f}" '
            f'height="{high:.2f}" fill-opacity="{strength:.2f}"/>'
        )
    body += _borders(rows, x) + _words(x_label, y_label)
    flat = [
        f"block {row} from {charts.number(float(line[0]))} to {charts.number(float(line[-1]))}" for row, line in enumerate(values)
    ]
    most = charts.number(float(np.abs(values).max(initial=0.0)))
    alt = f"{title}: {rows} rows ({y_label}) by {columns} columns ({x_label}), at most {most} in size. {'; '.join(flat[:8])}."
    size = charts.number(float(f"{limit:.2g}"))
    legend = f"<span class='key point c0'>−{size}</span><span class='key point c1'>+{size}</span><span class='soft'>no colour: 0</span>"
    return charts.figure(title, body, alt, legend)


def _slice(start: float, share: float, kind: str) -> str:
    """A part of the ring, clockwise from the top; its share written on it where there is room."""
    middle, outer, inner = _SIDE / 2, _SIDE / 2 - 3, _SIDE * 0.28
    place = lambda turn, radius: (  # noqa: E731
        middle + radius * math.sin(2 * math.pi * turn),
        middle - radius * math.cos(2 * math.pi * turn),
    )
    end = start + min(share, 0.9999)
    (x1, y1), (x2, y2), (x3, y3), (x4, y4) = place(start, outer), place(end, outer), place(end, inner), place(start, inner)
    big = int(share > 0.5)
    path = (
        f"M{x1:.2f} {y1:.2f}A{outer:.2f} {outer:.2f} 0 {big} 1 {x2:.2f} {y2:.2f}"
        f"L{x3:.2f} {y3:.2f}A{inner:.2f} {inner:.2f} 0 {big} 0 {x4:.2f} {y4:.2f}Z"
    )
    text = ""
    if share >= _FEW:
        x, y = place(start + share / 2, (outer + inner) / 2)
        text = f'<text class="on" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{100 * share:.0f}%</text>'
    return f'<path class="slice {kind}" d="{path}"/>{text}'


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "under 1 %"


def _borders(rows: int, x: Sequence[float]) -> str:
    """Frame and ticks: the ends and the middle of the columns, every few rows."""
    wide, high = charts.WIDTH - charts.LEFT - charts.RIGHT, charts.HEIGHT - charts.TOP - charts.BOTTOM
    body = f'<rect class="frame" x="{charts.LEFT}" y="{charts.TOP}" width="{wide}" height="{high}"/>'
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        text = charts.number(x[0] + share * (x[-1] - x[0]))
        place = f'x="{charts.LEFT + share * wide:.1f}" y="{charts.HEIGHT - charts.BOTTOM + 15}"'
        body += f'<text class="tick" {place} text-anchor="{anchor}">{text}</text>'
    step = max(1, math.ceil(rows / 8))
    for row in range(0, rows, step):
        y = charts.HEIGHT - charts.BOTTOM - (row + 0.5) * high / rows + 3.5
        body += f'<text class="tick" x="{charts.LEFT - 6}" y="{y:.1f}" text-anchor="end">{row}</text>'
    return body


def _words(x_label: str, y_label: str) -> str:
    across, up = (charts.LEFT + charts.WIDTH - charts.RIGHT) / 2, (charts.TOP + charts.HEIGHT - charts.BOTTOM) / 2
    return (
        f'<text class="label" x="{across}" y="{charts.HEIGHT - 7}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text class="label" transform="translate(12 {up}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>'
    )
