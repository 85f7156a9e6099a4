"""Line, scatter and histogram charts as SVG text: no library, no script, colours from the page's style sheet."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 40


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


class _Frame:
    """Axes of one chart: maps data to pixels and draws the grid."""

    def __init__(self, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " m"], pad: float = 0.06) -> None:
        self.x_low, self.x_high = _range(x, 0.0)
        self.y_low, self.y_high = _range(y, pad)

    def point(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        for value in ticks(self.x_low, self.x_high):
            px, _ = self.point(value, self.y_low)
            parts.append(
                f'<text class="tick" x="{px:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{number(value)}</text>'
            )
        for value in ticks(self.y_low, self.y_high):
            _, py = self.point(self.x_low, value)
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


def lines(title: str, x_label: str, y_label: str, series: Mapping[str, tuple[Any, Any]]) -> str:
    """A line chart.

    Args:
        title: Above the chart.
        x_label: With its unit.
        y_label: With its unit.
        series: name -> (x, y); points that are not finite are left out. The n-th name takes the n-th colour.

    Returns:
        A <figure>.
    """
    kept = {}
    for name, (x, y) in series.items():
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        fine = np.isfinite(x) & np.isfinite(y)
        if fine.any():
            kept[name] = (x[fine], y[fine])
    if not kept:
        return _figure(title, "", ["no data"])
    frame = _Frame(np.concatenate([x for x, _ in kept.values()]), np.concatenate([y for _, y in kept.values()]))
    body = frame.axes(x_label, y_label)
    for index, (x, y) in enumerate(kept.values()):
        points = [frame.point(a, b) for a, b in zip(*_thinned(x, y), strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        body += f'<polyline class="line c{index}" points="{path}"/>'
        if len(points) <= 40:
            body += "".join(f'<circle class="dot c{index}" cx="{a:.1f}" cy="{b:.1f}" r="2.2"/>' for a, b in points)
    return _figure(title, body, list(kept))


def scatter(title: str, clouds: Mapping[str, Float[np.ndarray, "n 2"]]) -> str:
    """A scatter plot of clouds of points.

    Args:
        title: Above the chart.
        clouds: name -> points; the first lies at the back.

    Returns:
        A <figure>.
    """
    every = np.concatenate(list(clouds.values()))
    frame = _Frame(every[:, 0], every[:, 1])
    body = frame.axes("first principal direction of the data", "second")
    for index, points in enumerate(clouds.values()):
        places = [frame.point(float(a), float(b)) for a, b in points]
        body += "".join(f'<circle class="mark c{index}" cx="{a:.1f}" cy="{b:.1f}" r="1.7"/>' for a, b in places)
    return _figure(title, body, list(clouds))


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
    frame = _Frame(x, y)
    body = frame.axes(x_label, y_label)
    places = [frame.point(a, b) for a, b in zip(*best, strict=True)]
    body += f'<polyline class="line c0" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>'
    body += "".join(f'<circle class="dot c0" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places)
    body += "".join(f'<circle class="mark c1" cx="{a:.1f}" cy="{b:.1f}" r="2.4"/>' for a, b in map(frame.point, x, y))
    return _figure(title, body, ["front", "all points"])


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


def _figure(title: str, body: str, names: Sequence[str]) -> str:
    keys = "".join(f'<span class="key c{index}">{html.escape(name)}</span>' for index, name in enumerate(names))
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{body}</svg>' if body else ""
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{picture}<div class='keys'>{keys}</div></figure>"
