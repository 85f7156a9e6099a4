"""The notebooks of `colab/`: how they lie in git, and that every cell of them runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(path.name for path in (ROOT / "colab").glob("*.ipynb"))
BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/jaxdrl/jaxdrl/blob/main/colab/{})"
)
LONGEST = 15  # lines of a code cell, empty ones not counted


def _read(name):
    return nbformat.read(ROOT / "colab" / name, as_version=nbformat.NO_CONVERT)


def _texts(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def test_there_are_four():
    assert [name[:2] for name in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_in_git_there_is_no_output(name):
    notebook = _read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.metadata.kernelspec.name) == (4, "python3")
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert not cell.metadata and cell.source.strip()
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert sum(bool(line.strip()) for line in cell.source.splitlines()) <= LONGEST


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_opens_with_its_badge_and_the_installation(name):
    first, second = _read(name).cells[:2]
    badge, empty, title = first.source.splitlines()[:3]
    assert (badge, empty, title[:2]) == (BADGE.format(name), "", "# ")
    assert 'TINY = "JAXDRL_TINY" in os.environ' in second.source
    assert re.search(r'find_spec\("jaxdrl"\) is None:\n    %pip install .*git\+https://', second.source)
    assert badge in (ROOT / "colab" / "README.md").read_text()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_it_points_at_exists(name):
    text = "\n".join(_texts(_read(name)))
    for other in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert other in NOTEBOOKS
    for path in re.findall(r"`((?:docs|configs|jaxdrl|launch)/[\w/]+\.\w+)", text):
        assert (ROOT / path).is_file(), path


def _run(folder, notebook):
    """Executes a notebook with nbmake: a process, a folder and a kernel of their own."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    nbformat.write(notebook, folder / "notebook.ipynb")
    environment = os.environ | {
        "JAXDRL_TINY": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        # The kernel is that of this environment, whatever the user has registered.
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(folder),
    }
    options = ["--nbmake", "--nbmake-timeout=1800", "--nbmake-kernel=python3", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-q", *options, "notebook.ipynb"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs(name, tmp_path):
    done = _run(tmp_path, _read(name))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout


def test_a_cell_that_fails_is_seen(tmp_path):
    cells = [nbformat.v4.new_code_cell("import jaxdrl"), nbformat.v4.new_code_cell("1 / 0")]
    done = _run(tmp_path, nbformat.v4.new_notebook(cells=cells))
    assert done.returncode == 1 and "ZeroDivisionError" in done.stdout, done.stdout
