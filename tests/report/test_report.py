"""The report: honest words, numbers that are there, a page without requests that a browser renders."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import recipes
from jaxdrl.config import default
from jaxdrl.errors import UserError
from jaxdrl.report import build, charts, page, table
from jaxdrl.training import models
from jaxdrl.training.stages import evaluate
from jaxdrl.weights import files
from tests.drawing import drawn
from tests.report import pages


def test_page_is_whole_and_asks_for_nothing(tiny_run):
    html = (tiny_run / "report.html").read_text()
    read = pages.check(html)
    assert read.addresses and any("base: 10 rows of 8" in alt for alt in read.alts)
    titles = ("The same noise, before and after", "The distances", "Is the base converged?", "How each stage went")
    for title in (*titles, "Precision against coverage", "Time by stage"):
        assert title in html
    for row in table.ROWS.values():
        assert row in html
    judge = json.loads((tiny_run / "report.json").read_text())["spaces"]["judge"]
    assert f"{judge['tuned']:.3f}" in html


def _report(tuned, longer=1.0, error=0.01):
    spaces = {space: {"floor": 0.2, "base": 1.0, "tuned": tuned, "longer_pretraining": longer} for space in table.SPACES}
    errors = {space: dict.fromkeys(values, error) for space, values in spaces.items()}
    return {"spaces": spaces, "spaces_se": errors, "spaces_change_se": errors, "spaces_tuned_se": errors}


def test_rows_and_headline_name_the_method():
    assert "After Flow-GRPO the distance" in page.headline(_report(0.6) | {"algorithm": "flow_grpo"})
    assert "After Discriminator-Guided RL" in page.headline(_report(0.6))
    assert table.titles({"algorithm": "nft"})["tuned_best_cfg"] == "+ NFT + best guidance"
    assert table.titles({})["tuned"] == "+ DRL"


def test_curves_of_several_rewards():
    lines = [
        {"stage": "posttrain", "step": i, "reward_mean/a": i, "reward_mean/b": -i, "alpha/a": 0.5, "alpha/b": 0.5} for i in (1, 2)
    ]
    drawn = "".join(page._curves(lines))
    for title in ("Reward: a", "Reward: b", "Weights of the rewards"):
        assert title in drawn
    assert "Rewards in conflict" not in drawn


def test_headline_says_what_happened():
    assert "50 % smaller in the judge space" in page.headline(_report(0.6))
    assert "25 % LARGER in the judge space" in page.headline(_report(1.2))
    assert page.headline(_report(0.95, error=0.1)).count("no clear change") == 3
    assert "same compute is better" in page.headline(_report(0.6, longer=0.5))
    assert "neither clearly worse nor better" in page.headline(_report(0.6, longer=0.61))
    assert "same compute is worse" in page.headline(_report(0.6, longer=0.9))
    without = _report(0.6)
    for values in without["spaces"].values():
        values.pop("longer_pretraining")
    assert "compute" not in page.headline(without)


def test_excess_over_the_floor():
    report = _report(0.6, error=0.04)
    assert table.excess_change(report["spaces"], "judge", "tuned") == pytest.approx(-0.5)
    assert table.change_error(report, "judge", "tuned") == pytest.approx(0.05)


def test_table_in_text_and_markdown(tiny_run):
    result = json.loads((tiny_run / "evaluate" / "result.json").read_text())
    text, marked = table.plain(result), table.markdown(result)
    assert text.splitlines()[0].split() == [
        "FD",
        "reward",
        "FD",
        "judge",
        "FD",
        "pixels",
        "precision",
        "recall",
        "coverage",
        "accuracy",
        "copies",
    ]
    assert len(marked.splitlines()) == 2 + len(result["spaces"]["judge"])
    for row in result["spaces"]["judge"].values():
        assert f"{row:.3f}" in text and f"{row:.3f}" in marked


def test_report_without_an_evaluation_is_refused(tmp_path):
    with pytest.raises(UserError, match="no evaluation"):
        build.write(tmp_path)


def test_ticks_are_round_and_cover_the_range():
    assert charts.ticks(0.0, 1.0) == [0.0, 0.5, 1.0]
    for low, high in ((-3.7, 12.1), (1e-5, 4e-5), (990.0, 1003.0), (-1.0, -0.5)):
        found = charts.ticks(low, high)
        assert 2 <= len(found) <= 7 and all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert charts.number(20000.0) == "20k" and charts.number(0.25) == "0.25"


def test_charts_draw_every_point_and_skip_what_is_not_finite():
    drawn = charts.lines("t", "x", "y", {"a": ([1, 2, 3], [1.0, float("nan"), 2.0]), "b": ([1], [5.0])})
    assert drawn.count("<circle") == 3 and drawn.count("<polyline") == 2 and "nan" not in drawn
    assert "no data" in charts.lines("t", "x", "y", {"a": ([1.0], [float("inf")])})
    cloud = charts.scatter("t", {"data": np.zeros((5, 2)), "base": np.ones((4, 2))})
    assert cloud.count("<circle") == 9
    assert charts.histogram("t", "x", {"a": np.arange(100.0)}).count("<polyline") == 1
    long = charts.lines("t", "x", "y", {"a": (range(10_000), np.arange(10_000.0))})
    assert len(re.search(r'points="([^"]*)"', long).group(1).split()) == 300


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", pages.WIDTHS)
def test_a_browser_renders_it(tiny_run, tmp_path, width):
    pixels = pages.screenshot(tiny_run / "report.html", tmp_path, width)
    assert pixels.shape == (1500, width)
    assert pixels.std() > 10 and (pixels < 80).mean() > 0.01
    window, page, out = pages.overflow(tiny_run / "report.html", tmp_path, width)
    assert window == width and page <= width and out == []


def test_a_method_is_called_by_what_it_was_trained_on():
    assert table.method({}) == "DRL" and table.method({"algorithm": "nft", "trained_on": ["inked_pixels"]}) == "NFT"
    assert table.titles({"trained_on": ["bradley_terry"]})["tuned"] == "+ Adjoint Matching"


def test_gates_are_kept_for_the_report(tmp_path):
    config = recipes.tiny(default())
    config.data.update(name="digits", image_shape=(8, 8, 1), num_classes=3)
    config.backbone.update(depth=2, spectral="timestep+label")
    params = drawn(models.backbone(config).init)
    files.save_tree(tmp_path / "posttrain" / "model.safetensors", params)
    found = evaluate._gates(config, tmp_path, "tuned")
    times, classes = jnp.array([0.0, 0.5, 1.0]), jnp.arange(3)
    each = [models.backbone(config).gates(params, times, jnp.full(3, label)) for label in classes]
    assert found.shape == (2, 2, 21) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :, ::10], np.mean(each, axis=0).transpose(2, 1, 0), atol=1e-6)
    config.backbone.spectral = "none"
    assert evaluate._gates(config, tmp_path, "tuned") is None
