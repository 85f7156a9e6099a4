"""Line, scatter, path and histogram charts as SVG text: no library, no script, colours from the page's style sheet.

The n-th series has a colour and a dash that no other of the first `STYLES` has; neighbours differ in both, so that a chart is read without
seeing colours too. What a chart shows is said in words as well: its `aria-label`.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 40
COLOURS, DASHES = 8, 4  # in style.css
STYLES = COLOURS * DASHES
_TICK_GAP = 30  # pixels between two labels of the x axis
_LETTER = 5.8  # pixels, of a label of 10.5


def style(index: int) -> str:
    """The classes of a series.

    Args:
        index: Its number, from 0.

    Returns:
        A colour and a dash; from `STYLES` on they come again.
    """
    return f"c{index % COLOURS} d{(index + index // COLOURS) % DASHES}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover a range.

    Args:
        low: Smallest value.
        high: Largest value, above `low`.
        count: About how many.

    Returns:
        Multiples of 1, 2 or 5 times a power of ten inside the range.
    """
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Of an axis; of a logarithmic one, whose ends are powers of ten: 1, 2 and 5, or powers of ten alone where those are many."""
    if not log:
        return ticks(low, high)
    for factors in ((1, 2, 5), (1,)):
        found = [f * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for f in factors]
        found = [value for value in found if low <= math.log10(value) <= high]
        if 2 <= len(found) <= 7:
            return found
    # Less than a factor of two, or very many powers.
    return [float(f"{10.0**value:.2g}") for value in np.linspace(low, high, 6)[1:-1]]


def number(value: float) -> str:
    """A tick's label: short, without trailing zeros; thousands as k.

    Args:
        value: Any number.

    Returns:
        Text.
    """
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


class Frame:
    """Axes of one chart: maps data to pixels and draws the grid."""

    def __init__(
        self,
        x: Float[np.ndarray, " n"],
        y: Float[np.ndarray, " m"],
        *,
        log_x: bool = False,
        log_y: bool = False,
        x_pad: float = 0.0,
        y_pad: float = 0.06,
    ) -> None:
        """Takes the range of the data.

        Args:
            x: All of them; above 0 with `log_x`.
            y: All of them.
            log_x: Whether equal ratios of x are equally far apart.
            log_y: The same for y, which is then above 0.
            x_pad: Share of the range that is left free at both sides.
            y_pad: The same above and below.
        """
        self._log_x, self._log_y = log_x, log_y
        self.x_low, self.x_high = _range(np.log10(x) if log_x else x, x_pad)
        self.y_low, self.y_high = _range(np.log10(y) if log_y else y, y_pad)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point.

        Args:
            x: Of the data.
            y: Of the data.

        Returns:
            (from the left, from the top).
        """
        across = ((math.log10(x) if self._log_x else x) - self.x_low) / (self.x_high - self.x_low)
        up = ((math.log10(y) if self._log_y else y) - self.y_low) / (self.y_high - self.y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str, x_ticks: Sequence[float] | None = None) -> str:
        """Grid, ticks and labels.

        Args:
            x_label: With its unit.
            y_label: With its unit.
            x_ticks: Where; by default round numbers. Those without room, or outside, are left out.

        Returns:
            SVG.
        """
        parts, last = [], -math.inf
        left, bottom = 10.0**self.x_low if self._log_x else self.x_low, 10.0**self.y_low if self._log_y else self.y_low
        for value in _ticks(self.x_low, self.x_high, self._log_x) if x_ticks is None else sorted(x_ticks):
            px, _ = self.point(value, bottom)
            half, text = _LETTER * len(number(value)) / 2, number(value)
            if px - last < _TICK_GAP or not LEFT - 1 < px < WIDTH - RIGHT + 1:
                continue
            last, place = px, min(px, WIDTH - 1 - half)
            parts.append(f'<text class="tick" x="{place:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{text}</text>')
        for value in _ticks(self.y_low, self.y_high, self._log_y):
            _, py = self.point(left, value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{py + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 7}" text-anchor="middle">{html.escape(x_label)}</text>'
        )
        parts.append(
            f'<text class="label" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>'
        )
        return "".join(parts)


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, tuple[Any, Any]],
    *,
    errors: Mapping[str, Any] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[float] | None = None,
    joined: bool = True,
) -> str:
    """A line chart.

    Args:
        title: Above the chart.
        x_label: With its unit.
        y_label: With its unit.
        series: name -> (x, y); points that are not finite are left out, on logarithmic axes those not above 0 too. The n-th name that
            has points takes the n-th style.
        errors: name -> half the length of the bar at each point, for some of the series.
        log_x: Whether the x axis is logarithmic.
        log_y: Whether the y axis is; bars that reach below 0 then end near it.
        x_ticks: Where ticks of the x axis are.
        joined: Whether points are joined by lines; without, x is a number that means nothing, and is left some room.

    Returns:
        A <figure>.
    """
    kept = {}
    for name, (x, y) in series.items():
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        half = np.asarray((errors or {}).get(name, np.zeros(len(x))), np.float64)
        fine = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log_x)) & ((y > 0) | (not log_y))
        if fine.any():
            half = np.minimum(np.nan_to_num(half[fine]), 0.9 * y[fine] if log_y else np.inf)
            kept[name] = (x[fine], y[fine], half)
    if not kept:
        return figure(title, "", "", keys(["no data"], "point"))
    every = np.concatenate([y + sign * half for _, y, half in kept.values() for sign in (-1, 1)])
    frame = Frame(np.concatenate([x for x, _, _ in kept.values()]), every, log_x=log_x, log_y=log_y, x_pad=0.0 if joined else 0.1)
    body, said = frame.axes(x_label, y_label, x_ticks), []
    for index, (name, (x, y, half)) in enumerate(kept.items()):
        points = [frame.point(a, b) for a, b in zip(*_thinned(x, y), strict=True)]
        for a, b, error in zip(x, y, half, strict=True):
            if error > 0:
                (px, low), (_, high) = frame.point(a, b - error), frame.point(a, b + error)
                body += f'<line class="bar c{index % COLOURS}" x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        if joined:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            body += f'<polyline class="line {style(index)}" points="{path}"/>'
        if len(points) <= 40:
            body += "".join(f'<circle class="dot {style(index)}" cx="{a:.1f}" cy="{b:.1f}" r="2.4"/>' for a, b in points)
        said.append(f"{name} {_said(y)}")
    alt = f"{title}: {y_label} against {x_label}, from {number(_least(kept))} to {number(_most(kept))}. {_listed(said)}"
    return figure(title, body, alt, keys(list(kept), "stroke" if joined else "point"))


def paths(
    title: str, x_label: str, y_label: str, series: Mapping[str, tuple[Any, Any, Sequence[str]]], joined: bool = True
) -> str:
    """Points in a plane, each with a word beside it, joined in their order.

    Args:
        title: Above the chart.
        x_label: With its unit.
        y_label: With its unit.
        series: name -> (x, y, words); points that are not finite are left out.
        joined: Whether they are joined.

    Returns:
        A <figure>; words without room are left out of the picture, not of its description.
    """
    kept = {}
    for name, (x, y, words) in series.items():
        points = [
            (float(a), float(b), word) for a, b, word in zip(x, y, words, strict=True) if math.isfinite(a) and math.isfinite(b)
        ]
        if points:
            kept[name] = tuple(zip(*points, strict=True))
    if not kept:
        return figure(title, "", "", keys(["no data"], "point"))
    xs, ys = (np.array([value for values in kept.values() for value in values[i]]) for i in (0, 1))
    frame = Frame(xs, ys, x_pad=0.12, y_pad=0.12)
    taken = [(px - 3, py - 3, px + 3, py + 3) for px, py in (frame.point(a, b) for a, b in zip(xs, ys, strict=True))]
    body, texts, said = frame.axes(x_label, y_label), "", []
    for index, (name, (x, y, words)) in enumerate(kept.items()):
        places = [frame.point(a, b) for a, b in zip(x, y, strict=True)]
        if joined and len(places) > 1:
            body += f'<polyline class="line {style(index)}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>'
        body += "".join(f'<circle class="dot {style(index)}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places)
        for place, word in zip(places, words, strict=True):
            texts += _beside(place, word, taken)
        said.append(f"{name}: " + "; ".join(f"{w} at {number(a)}, {number(b)}" for a, b, w in zip(x, y, words, strict=True)))
    return figure(
        title,
        body + texts,
        f"{title}: {y_label} against {x_label}. {_listed(said)}",
        keys(list(kept), "stroke" if joined else "point"),
    )


def scatter(title: str, clouds: Mapping[str, Float[np.ndarray, "n 2"]]) -> str:
    """A scatter plot of clouds of points.

    Args:
        title: Above the chart.
        clouds: name -> points; the first lies at the back.

    Returns:
        A <figure>.
    """
    every = np.concatenate(list(clouds.values()))
    frame = Frame(every[:, 0], every[:, 1])
    x_label = "first principal direction of the data"
    body, said = frame.axes(x_label, "second"), []
    for index, (name, points) in enumerate(clouds.items()):
        places = [frame.point(float(a), float(b)) for a, b in points]
        body += "".join(f'<circle class="mark {style(index)}" cx="{a:.1f}" cy="{b:.1f}" r="1.7"/>' for a, b in places)
        said.append(
            f"{name}, {len(points)} points around {number(float(points[:, 0].mean()))}, {number(float(points[:, 1].mean()))}"
        )
    return figure(
        title, body, f"{title}: a cloud of points each, second against {x_label}. {_listed(said)}", keys(list(clouds), "point")
    )


def front(title: str, x_label: str, y_label: str, best: tuple[Any, Any], every: tuple[Any, Any]) -> str:
    """Points, and a line through those that are not beaten.

    Args:
        title: Above the chart.
        x_label: With its unit.
        y_label: With its unit.
        best: (x, y) of the front, in order.
        every: (x, y) of all points.

    Returns:
        A <figure>.
    """
    x, y = (np.asarray(values, np.float64) for values in every)
    frame = Frame(x, y)
    body = frame.axes(x_label, y_label)
    places = [frame.point(a, b) for a, b in zip(*best, strict=True)]
    body += f'<polyline class="line c0" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>'
    body += "".join(f'<circle class="dot c0" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places)
    body += "".join(f'<circle class="mark c1" cx="{a:.1f}" cy="{b:.1f}" r="2.4"/>' for a, b in map(frame.point, x, y))
    ends = "; ".join(f"{number(a)}, {number(b)}" for a, b in zip(*best, strict=True))
    alt = f"{title}: {len(x)} points, {y_label} against {x_label}. On the front: {ends}."
    return figure(title, body, alt, keys(["front", "all points"], "point"))


def histogram(title: str, x_label: str, samples: Mapping[str, Float[np.ndarray, " n"]], bins: int = 40) -> str:
    """Outlines of histograms over a common range.

    Args:
        title: Above the chart.
        x_label: With its unit.
        samples: name -> values.
        bins: Over the central 99.8 % of all values.

    Returns:
        A <figure>.
    """
    every = np.concatenate(list(samples.values()))
    low, high = np.quantile(every, [0.001, 0.999])
    edges = np.linspace(low, high, bins + 1)
    series = {}
    for name, values in samples.items():
        density, _ = np.histogram(values, edges, density=True)
        series[name] = (np.repeat(edges, 2)[1:-1], np.repeat(density, 2))
    return lines(title, x_label, "density", series)


def figure(title: str, body: str, alt: str, legend: str = "") -> str:
    """A picture between its title and its legend.

    Args:
        title: Plain text.
        body: SVG; empty for none.
        alt: What the picture shows, in words.
        legend: HTML.

    Returns:
        A <figure>.
    """
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(alt)}">{body}</svg>' if body else ""
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{picture}<div class='keys'>{legend}</div></figure>"


def keys(names: Sequence[str], kind: str) -> str:
    """A legend.

    Args:
        names: Of the series, in order.
        kind: "stroke" for lines, "point" for points and areas.

    Returns:
        HTML.
    """
    return "".join(f'<span class="key {kind} {style(i)}">{html.escape(name)}</span>' for i, name in enumerate(names))


def _range(values: np.ndarray, pad: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    extra = pad * (high - low) if high > low else max(abs(low), 1.0) * 0.5
    return low - extra, high + extra


def _thinned(x: np.ndarray, y: np.ndarray, limit: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Means of equal runs of points: a curve of many thousand steps stays readable and the page small."""
    if len(x) <= limit:
        return x, y
    parts = np.array_split(np.arange(len(x)), limit)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _beside(place: tuple[float, float], word: str, taken: list[tuple[float, float, float, float]]) -> str:
    """A word at the first side of a point where nothing is; empty if there is none."""
    (px, py), width = place, _LETTER * len(word)
    right, level, lefts = (px + 6, "start"), py + 3.5, (px - 6 - width, "end")
    middle, near_right, near_left = (px - width / 2, "middle"), (px + 4, "start"), (px - 4 - width, "end")
    above = [(*column, py - rise) for rise in (6, 16) for column in (middle, near_right, near_left)]
    below = [(*column, py + fall) for fall in (14, 24) for column in (middle, near_right, near_left)]
    for left, anchor, base in ((*right, level), (*lefts, level), *above, *below):
        box = (left, base - 8, left + width, base + 1)
        inside = box[0] > LEFT and box[2] < WIDTH and box[1] > 0 and box[3] < HEIGHT - BOTTOM
        if inside and not any(box[0] < r and l < box[2] and box[1] < b and t < box[3] for l, t, r, b in taken):  # noqa: E741
            taken.append(box)
            at = {"start": left, "end": left + width, "middle": left + width / 2}[anchor]
            return f'<text class="tick word" x="{at:.1f}" y="{base:.1f}" text-anchor="{anchor}">{html.escape(word)}</text>'
    return ""


def _said(y: np.ndarray) -> str:
    if len(y) == 1 or y.min() == y.max():
        return f"is {number(y[0])}"
    return f"goes from {number(y[0])} to {number(y[-1])}, least {number(y.min())}, most {number(y.max())}"


def _listed(said: Sequence[str], limit: int = 8) -> str:
    more = [f"and {len(said) - limit} more"] if len(said) > limit else []
    return "; ".join([*said[:limit], *more]) + "."


def _least(kept: Mapping[str, Any]) -> float:
    return min(float(values[0].min()) for values in kept.values())


def _most(kept: Mapping[str, Any]) -> float:
    return max(float(values[0].max()) for values in kept.values())
