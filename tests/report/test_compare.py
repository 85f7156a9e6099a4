"""`jaxdrl compare`: what differs, the same noise side by side, honest numbers, and one line about what cannot be compared."""

import json
import re
import shutil

import pytest

from jaxdrl import cli
from jaxdrl.report import compare_page, runs
from tests.report import pages

SCALE = "posttrain.reward_scale"
chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def sweep(tiny_run, tmp_path_factory):
    """Three lambdas in disorder, one of them with another seed too, and a run that is not finished."""
    base = tmp_path_factory.mktemp("sweep")
    return [
        pages.variant(tiny_run, base / "three", {SCALE: 3.0}, shift=2.0, gates=True),
        pages.variant(tiny_run, base / "third", {SCALE: 0.3}),
        pages.variant(tiny_run, base / "one", {SCALE: 1.0}, shift=1.5),
        pages.variant(tiny_run, base / "other", {SCALE: 1.0, "seed": 7}, shift=1.2),
        pages.variant(tiny_run, base / "cut", {SCALE: 10.0}, without=("longer", "evaluate", "report")),
    ]


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "deep" / "compare.html"
    assert cli.main(["compare", *map(str, sweep), f"--out={out}"]) == 0
    return out


def test_page_is_whole_and_its_pictures_have_words(written):
    html = written.read_text()
    page = pages.check(html)
    assert len(page.alts) > 20
    titles = (
        "The runs",
        "The same noise in every run",
        "Distances against λ",
        "Precision and coverage",
        "Rewards",
        "Spectral gates",
    )
    for title in (*titles, "How post-training went", "Time by stage", "FD in the judge space"):
        assert title in html
    assert "They differ in λ (0.3, 1, 3, 10); seed (0, 7)." in html


def test_strips_go_up_in_lambda_from_the_same_noise(written):
    page = pages.Page(written.read_text())
    columns = [alt for alt in page.alts if "one above the other" in alt]
    assert [alt.partition(":")[0] for alt in columns] == [
        "base, before post-training",
        "λ = 0.3 (third), after post-training",
        "λ = 1 (one), after post-training",
        "λ = 3 (three), after post-training",
    ]
    sources = re.findall(r'src="([^"]*)"', written.read_text())
    assert len(set(sources)) == len(sources) == 4


def test_numbers_of_the_table_are_those_of_the_runs(sweep, written, capsys):
    found = runs.read(sweep)
    head, body = compare_page.cells(compare_page.in_order(found))
    by_name = {line[1]: dict(zip(head, line, strict=True)) for line in body}
    for run in found:
        line = by_name[run.name]
        if run.evaluation is None:
            assert line["FD judge"] == line["recall"] == "–"
            continue
        assert line["FD judge"].startswith(f"{run.evaluation['spaces']['judge']['tuned']:.3f} ±")
        assert line["FD judge"].partition(" ")[0] in written.read_text()
    assert by_name["three"]["λ"] == "3" and by_name["other"]["seed"] == "7"
    ratio = float(by_name["three"]["FD pixels"].split()[0]) / float(by_name["third"]["FD pixels"].split()[0])
    assert ratio == pytest.approx(2, rel=0.01)
    assert cli.main(["compare", *map(str, sweep), f"--out={written}"]) == 0
    said = capsys.readouterr().out
    assert "note: cut is not finished" in said and "three" in said and str(written) in said


def test_points_stand_at_their_lambda(sweep):
    found = compare_page.in_order(runs.read(sweep[:3]))
    assert [run.name for run in found] == ["third", "one", "three"]
    drawn = compare_page._distances(found)
    figure = drawn[drawn.index("FD in the judge space") :]
    points = re.search(r'class="line c0 d0" points="([^"]*)"', figure).group(1).split()
    xs = [float(point.split(",")[0]) for point in points]
    assert len(xs) == 3 and (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(0.52, abs=0.02)  # log(1 / .3) / log(10)
    ys = [float(point.split(",")[1]) for point in points]
    assert ys[0] > ys[1] > ys[2]


def test_what_a_reader_must_know(sweep, tiny_run, tmp_path):
    said = " ".join(runs.notes(runs.read(sweep)))
    assert (
        "cut is not finished (finished: data, encoders, pretrain, discriminator, posttrain; missing: longer, evaluate, report)"
        in said
    )
    assert "config.seed differs" in said and "encoders" not in said.split("missing:")[1]
    own = pages.variant(tiny_run, tmp_path / "own", {"evaluate.num_samples": 5})
    result = json.loads((own / "encoders" / "result.json").read_text())
    result["judge"]["fingerprint"] = "another"
    (own / "encoders" / "result.json").write_text(json.dumps(result))
    said = " ".join(runs.notes(runs.read([sweep[0], own])))
    assert "2 different judge encoders" in said and "(5, 100)" in said and "reward encoders" not in said
    assert runs.notes(runs.read(sweep[:3])) == []


def test_runs_that_differ_in_words_are_numbered(sweep, tiny_run, tmp_path):
    other = pages.variant(tiny_run, tmp_path / "w", {"sampler.method": "euler", SCALE: 3.0, "runtime.profile.count": 4})
    found = runs.read([sweep[0], other])
    assert runs.differing(found) == ["sampler.method"] and runs.axis(found) is None
    html = compare_page.render(found)
    pages.check(html)
    assert "Distances by run" in html and "run (its number in the table)" in html
    rate = pages.variant(tiny_run, tmp_path / "v", {"posttrain.learning_rate": 0.5, SCALE: 3.0})
    assert runs.axis(runs.read([sweep[0], rate])) == "posttrain.learning_rate"
    rewards = pages.variant(tiny_run, tmp_path / "r", {"posttrain.rewards": {"inked_pixels": {}}, SCALE: 3.0})
    found = runs.read([sweep[0], rewards])
    assert runs.differing(found) == ["posttrain.rewards.discriminator", "posttrain.rewards.inked_pixels"]
    assert [runs.value(run, "posttrain.rewards.inked_pixels") for run in found] == ["–", "yes"]
    assert runs.telling(found, runs.differing(found)) == ["posttrain.rewards.discriminator"]
    assert "rewards.discriminator = yes" in compare_page.render(found)


def test_runs_without_any_evaluation(sweep, tiny_run, tmp_path):
    bare = pages.variant(tiny_run, tmp_path / "bare", {SCALE: 2.0}, without=runs.ORDER)
    html = compare_page.render(runs.read([sweep[-1], bare]))
    pages.check(html)
    assert "None of them has been evaluated yet" in html and "no stage is finished" in html and "Distances" not in html


def test_mistakes(sweep, tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    patches = pages.variant(tiny_run, tmp_path / "patches", {"data.name": "patches"})
    chosen = pages.variant(tiny_run, tmp_path / "chosen", {"data.classes": [*"9876543210"]})
    torn = pages.variant(tiny_run, tmp_path / "torn", {})
    (torn / "evaluate" / "result.json").write_text("{")
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([sweep[0]], "two workdirs or more"),
        ([], "two workdirs or more"),
        ([sweep[0], tmp_path / "nowhere"], "is no folder"),
        ([sweep[0], tmp_path / "empty"], "holds no run"),
        ([sweep[0], sweep[1], sweep[0].parent / "." / "three"], "is named twice"),
        ([sweep[0], patches], "different data (config.data.name is digits and patches)"),
        ([sweep[0], chosen], "different data (config.data.classes is [] and [9, 8, 7, 6, 5, 4, 3, 2, 1, 0])"),
        ([sweep[0], torn], "damaged"),
        ([sweep[0], sweep[1], "--out=page.pdf"], ".html"),
        ([sweep[0], sweep[1], "--outt=x.html"], "--outt"),
    ):
        assert cli.main(["compare", *map(str, arguments)]) == 2
        line = capsys.readouterr().err
        assert line.startswith("jaxdrl: error: ") and line.count("\n") == 1 and said in line


def test_short_names_are_as_long_as_needed(tmp_path):
    paths = [tmp_path / "a" / "seed0", tmp_path / "b" / "seed0"]
    assert runs.short_names(paths) == ["a/seed0", "b/seed0"] and runs.short_names(paths[:1]) == ["seed0"]


@chromium
@pytest.mark.parametrize("width", pages.WIDTHS)
def test_a_browser_lays_it_out(written, tmp_path, width):
    window, page, out = pages.overflow(written, tmp_path, width)
    assert window == width and page <= width and out == []


@chromium
def test_dark_and_printed(written, tmp_path):
    light, dark = (pages.screenshot(written, tmp_path, 768, dark=dark) for dark in (False, True))
    assert light.mean() > 200 and dark.mean() < 80 and dark.std() > 10
    pages.browser(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", written.as_uri())
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "page.pdf").stat().st_size > 20_000


def test_runs_from_before_classes_could_be_chosen_are_compared(sweep, tiny_run, tmp_path):
    older = pages.variant(tiny_run, tmp_path / "older", {SCALE: 5.0})
    config = json.loads((older / "config.json").read_text())
    assert config["data"].pop("classes") == []
    (older / "config.json").write_text(json.dumps(config))
    for pair in ([sweep[0], older], [older, sweep[0]]):
        assert runs.differing(runs.read(pair)) == [SCALE]
