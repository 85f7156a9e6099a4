"""Charts: every series can be seen and told apart, nothing lies on anything else, and the numbers are where they belong."""

import itertools
import re
from importlib import resources

import numpy as np
import pytest

from jaxdrl.report import areas, charts, sections
from tests.report import pages

STYLE = (resources.files("jaxdrl.report") / "style.css").read_text()
# Machado et al. (2009), severity 1: what a colour becomes for people who lack one kind of cone, in linear RGB.
SEEN = {
    "trichromat": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _palette(dark):
    """Colour of the cards, and of the series."""
    rules = STYLE.split("@media screen and (prefers-color-scheme: dark)")[1 if dark else 0]
    found = dict(re.findall(r"--(card|c\d+): (#[0-9a-f]{6})", rules[:1200]))
    return found["card"], [found[f"c{i}"] for i in range(charts.COLOURS)]


def _linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    scaled = np.array(matrix) @ np.clip(linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(scaled > 216 / 24389, np.cbrt(scaled), (24389 / 27 * scaled + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_every_series_has_a_style_of_its_own():
    styles = [charts.style(i).split() for i in range(charts.STYLES)]
    assert charts.STYLES >= 24 and len(set(map(tuple, styles))) == charts.STYLES
    for one, other in itertools.pairwise(styles):
        assert one[0] != other[0] and one[1] != other[1]
    for colour, dash in styles:
        assert f".{colour} {{ --c: var(--{colour}); }}" in STYLE
        assert dash == "d0" or (f".line.{dash} {{ stroke-dasharray" in STYLE and f".key.stroke.{dash}::before" in STYLE)
    for rule in (".line { fill: none; stroke: var(--c)", ".dot, .mark, .slice, .cell { fill: var(--c)"):
        assert rule in STYLE


def test_the_sixth_series_is_drawn_like_the_first():
    drawn = charts.lines("t", "x", "y", {str(i): ([0, 1], [i, i + 1]) for i in range(12)})
    found = re.findall(r'polyline class="line (c\d) (d\d)"', drawn)
    assert len(set(found)) == 12 and all(f".{colour} {{ --c" in STYLE for colour, _ in found)
    assert len(re.findall(r'class="key stroke', drawn)) == 12


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_told_apart_by_everyone(dark):
    card, colours = _palette(dark)
    light = lambda colour: float(_linear(colour) @ [0.2126, 0.7152, 0.0722])  # noqa: E731
    for colour in colours:
        high, low = sorted((light(colour), light(card)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3, colour
    for eye, matrix in SEEN.items():
        seen = [_lab(np.array(matrix) @ _linear(colour)) for colour in colours]
        for i, j in itertools.combinations(range(len(colours)), 2):
            same_dash = charts.style(i).split()[1] == charts.style(j).split()[1]
            assert np.linalg.norm(seen[i] - seen[j]) > (25 if same_dash else 12), (eye, colours[i], colours[j])


def test_equal_ratios_are_equally_far_apart_on_logarithmic_axes():
    drawn = charts.lines("t", "x", "y", {"a": ([0.1, 1, 10, 0], [1, 10, 100, 5])}, log_x=True, log_y=True)
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]*)"', drawn).group(1).split()]
    assert len(points) == 3
    assert points[1] == pytest.approx(np.mean([points[0], points[2]], axis=0), abs=0.1)
    shown = [float(t) for t in re.findall(r'text-anchor="end">([^<]*)<', drawn)]
    assert {1.0, 10.0, 100.0} <= set(shown) and len(shown) <= 7


def test_bars_of_errors():
    drawn = charts.lines("t", "x", "y", {"a": ([1, 2], [3.0, 5.0]), "b": ([1], [4.0])}, errors={"a": [0.5, 0.0]})
    ((x1, x2, y1, y2),) = re.findall(r'class="bar c0" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', drawn)
    ys = sorted(float(y) for y in re.findall(r'class="dot c0 d0" cx="[\d.]+" cy="([\d.]+)"', drawn))
    assert x1 == x2 and (float(y1) + float(y2)) / 2 == pytest.approx(ys[-1], abs=0.1)
    assert float(y1) - float(y2) == pytest.approx((ys[-1] - ys[0]) / 2, abs=0.2)


def _boxes(drawn, kind):
    pattern = rf'<text class="{kind}" x="([\d.-]+)" y="([\d.-]+)" text-anchor="(\w+)">([^<]*)<'
    for x, y, anchor, text in re.findall(pattern, drawn):
        width = 5.5 * len(text)
        left = float(x) - {"start": 0, "middle": width / 2, "end": width}[anchor]
        yield left, left + width, float(y) - 8, float(y)


def test_ticks_and_words_do_not_lie_on_each_other():
    crowded = charts.lines("t", "x", "y", {"a": (range(1, 60), range(1, 60))}, x_ticks=[float(i) for i in range(1, 60)])
    cloud = charts.paths(
        "t", "x", "y", {"a": ([0.5, 0.51, 0.52, 0.9], [0.5, 0.5, 0.51, 0.9], ["base", "0.3", "1", "a long word"])}
    )
    for drawn, kind in ((crowded, "tick"), (cloud, "tick word")):
        boxes = list(_boxes(drawn, kind))
        assert len(boxes) >= 4
        for one, other in itertools.combinations(boxes, 2):
            assert one[1] <= other[0] + 1 or other[1] <= one[0] + 1 or one[3] <= other[2] + 1 or other[3] <= one[2] + 1
        assert all(left >= 0 and right <= charts.WIDTH for left, right, _, _ in boxes)
    outside = charts.lines("t", "x", "y", {"a": ([1, 10], [1, 2])}, log_x=True, x_ticks=[1.0, 10.0, 30.0])
    assert re.findall(r'text-anchor="middle">(\d+)<', outside) == ["1", "10"]
    assert "a long word at 0.9, 0.9" in cloud and cloud.count("<polyline") == 1
    assert charts.paths("t", "x", "y", {"a": ([1], [1], ["w"])}, joined=False).count("<polyline") == 0
    some = charts.paths("t", "x", "y", {"a": ([1, float("nan")], [1, 2], ["v", "w"]), "b": ([float("inf")], [1], ["u"])})
    assert some.count("<circle") == 1 and "nan" not in some and "no data" in charts.paths("t", "x", "y", {})


def test_pie_has_the_shares():
    drawn = areas.pie("Time", {"data": 30.0, "encoders": 0.0, "posttrain": 90.0})
    assert re.findall(r'slice (c\d)"', drawn) == ["c0", "c2"]
    assert "25%" in drawn and "75%" in drawn and "data 30 s, 25 %" in drawn and "2 min 0 s" in drawn
    # A quarter from the top, clockwise, ends at three o'clock.
    x, y = re.search(r"0 0 1 ([\d.]+) ([\d.]+)L", drawn).groups()
    assert (float(x), float(y)) == pytest.approx((190 - 3, 95), abs=0.1)
    assert "nothing took time" in areas.pie("Time", {"data": 0.0})
    assert [areas.duration(s) for s in (1.44, 52.0, 267.0, 11100.0)] == ["1.4 s", "52 s", "4 min 27 s", "3 h 5 min"]
    pages.check(drawn)


def test_heatmap_colours_signs_and_sizes():
    drawn = areas.heatmap("Gate", "time", "block", np.array([[0.0, 1.0], [-0.5, 2.0]]), 2.0, (0.0, 1.0))
    cells = re.findall(r'cell (c\d)" x="([\d.]+)" y="([\d.]+)".*?fill-opacity="([\d.]+)"', drawn)
    assert [(kind, opacity) for kind, _, _, opacity in cells] == [("c1", "0.50"), ("c0", "0.25"), ("c1", "1.00")]
    assert float(cells[0][2]) > float(cells[1][2])  # block 0 is at the bottom
    pages.check(drawn)


def test_gates_are_drawn_before_and_after():
    base, tuned = np.full((2, 3, 5), 0.1), np.full((2, 3, 5), 0.3)
    names = {"base": "base", "tuned": "after DRL", "change": "change"}
    drawn = sections.gates({"gates_base": base, "gates_tuned": tuned}, names)
    assert len(drawn) == 6 and len(sections.gate_curves({"gates_base": base, "gates_tuned": tuned})) == 2
    assert set(re.findall(r'fill-opacity="([\d.]+)"', drawn[0])) == {"0.33"}
    assert set(re.findall(r'fill-opacity="([\d.]+)"', drawn[2])) == {"1.00"}
    assert sections.gates({"logits_base": base}, names) == sections.gate_curves({}) == []


def test_large_images_are_reduced():
    images = np.arange(2 * 5 * 4, dtype=np.uint8).reshape(2, 5, 4, 1)
    found = sections.reduced(images, 2)
    assert found.shape == (2, 2, 2, 1) and found[0, 0, 0, 0] == round(np.mean([0, 1, 4, 5]))
    assert sections.reduced(images, 1) is images
    small, large = (sections.picture("t", "a" * 30, [np.zeros((3, side, side, 3), np.uint8)], largest=64) for side in (64, 512))
    assert len(large) < 2 * len(small)


def test_steps_in_words():
    lines = [{"stage": "posttrain", "step": i, "step_seconds": 9.0 if i == 1 else 2.0, "input_wait": 0.01} for i in (1, 2, 3)]
    said = sections.steps_said([*lines, {"stage": "pretrain", "step": 7, "step_seconds": 1.0}], "posttrain", "refreshes")
    assert said == "posttrain: 3 refreshes, median 2.0 s each, the first 9.0 s, as it is compiled; 1.0 % of it waiting for data."
    assert sections.steps_said(lines, "pretrain", "steps") == ""
