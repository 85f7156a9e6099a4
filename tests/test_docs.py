"""The documentation: it builds without a warning, links lead somewhere, and every recipe, package and example has its page."""

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="Sphinx is not installed: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        tmp_path / "trees",
        DOCS,
        tmp_path / "html",
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert found.returncode == 0, found.stderr[-3000:]
    page = (tmp_path / "html" / "api" / "algorithms.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert "Float[Array, 'batch ...']" in text and "jaxlib._jax" not in text  # annotations as they are written
    assert "A_K = - lambda d r(X_K, y) / d X_K" in text  # equations as they are written
    recipe = (tmp_path / "html" / "recipes" / "drl_digits.html").read_text()
    assert 'href="../results.html"' in recipe and re.search(r'href="\.\./_downloads/\w+/drl_digits\.py"', recipe)


def _slug(heading):
    """An anchor as GitHub makes it of a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http://", "https://"))]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), f"{link} leads nowhere"
        if anchor:
            headings = re.findall(r"^#{1,3} (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{link}: no such heading"


def test_every_recipe_has_a_page_and_every_page_a_recipe():
    pages = {path.stem: path.read_text() for path in (DOCS / "recipes").glob("*.md")}
    overview = pages.pop("index")
    assert sorted(pages) == RECIPES == sorted(re.findall(r"^\| \[(\w+)\]\(\1\.md\)", overview, re.MULTILINE))
    for name, page in pages.items():
        assert f"--config=configs/{name}.py --workdir=" in page
        for row in ("hardware", "hours", "expected"):
            assert re.search(rf"^\| {row} \| \S", page, re.MULTILINE), f"{name}: {row}"
        header = _load(ROOT / "configs" / f"{name}.py").__doc__
        if "ot run at full size" in header or "not been measured yet" in header:
            assert "not run here" in page


def test_every_config_key_in_the_pages_exists():
    tree = _load(ROOT / "jaxdrl" / "config.py").default()
    free = ("fields", "rewards", "utility")
    for page in PAGES:
        for key in set(re.findall(r"--config\.([a-z_0-9.]*[a-z_0-9])=", page.read_text())):
            level = tree
            for part in key.split("."):
                assert part in level, f"{page.name}: {key}"
                level = level[part]
                if part in free:
                    break


def test_every_package_has_a_page():
    modules = _load(DOCS / "conf.py").modules
    pages = sorted(path.stem for path in (DOCS / "api").glob("*.md") if path.stem not in ("index", "config"))
    packages = sorted(path.parent.name for path in (ROOT / "jaxdrl").glob("*/__init__.py"))
    assert pages == sorted([*packages, "jaxdrl"])
    files = {path for path in (ROOT / "jaxdrl").rglob("*.py") if path.name != "__main__.py" and path.parent.name != "assets"}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files} - {"jaxdrl"}
    assert names == {name for page in pages for name in modules(page)}


def test_the_backbone_page_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "own_backbone.md").read_text(), re.DOTALL)
    exec(compile(code, "own_backbone.md", "exec"), {})
    assert re.search(r"^\d+ parameters, \(2, 8, 8, 1\)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.slow
def test_the_data_page_runs(tmp_path):
    from jaxdrl import config, data

    for number, split in enumerate(("train", "train", "train", "test")):
        for label in ("cat", "dog"):
            path = tmp_path / "pictures" / split / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40 + number, 30, 3), 200 if label == "dog" else 10, np.uint8)).save(path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "own_data.md").read_text(), re.DOTALL)
    (tmp_path / "my_pictures.py").write_text(code)
    command = [sys.executable, "my_pictures.py", "pictures", "prepared"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, timeout=120)
    settings = config.default().data
    settings.update(name="my_pictures", image_shape=(32, 32, 3), num_classes=2, validation_fraction=1 / 3)
    summary = data.prepare(settings, tmp_path / "prepared")
    assert summary.class_names == ("cat", "dog") and summary.sizes == {"train": 4, "validation": 2, "test": 2}
    test = data.open_split(settings, tmp_path / "prepared", "test")
    assert test.images.shape == (2, 32, 32, 3) and [int(image.mean()) for image in test.images] == [
        200 if label else 10 for label in test.labels
    ]


def test_the_pictures_are_drawn_from_a_run(tiny_run, tmp_path):
    drawing = _load(DOCS / "draw_method.py")
    drawing.main([f"--workdir={tiny_run}", f"--out={tmp_path}"])
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == sorted(path.name for path in (DOCS / "method").glob("*.png")) and len(drawn) == 4
    for name in drawn:
        kept = Image.open(DOCS / "method" / name)
        assert Image.open(tmp_path / name).size == kept.size and (DOCS / "method" / name).stat().st_size < 300_000
        assert kept.getpixel((40, 10))[:3] == drawing.CARD  # its own ground, so that text is legible on dark pages
