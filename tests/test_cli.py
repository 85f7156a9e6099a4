"""Mistakes at the command line: one clear line, exit code 2, nothing lost."""

import errno
import types
from pathlib import Path

import jax
import pytest

from jaxdrl import cli
from jaxdrl import config as jaxdrl_config
from jaxdrl.training import workdir as workdirs

ROOT = Path(__file__).parent.parent
DIGITS = f"--config={ROOT}/configs/drl_digits.py:tiny"


def _fails(capsys, *argv):
    assert cli.main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxdrl: error: ") and captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["rnu"], "did you mean run"),
        (["run", DIGITS], "--workdir is missing"),
        (["run", "--workdir=w", "--config=configs/none.py"], "none.py"),
        (["run", "--workdir=w", DIGITS, "--config.posttrain.lerning_rate=1.0"], "did you mean config.posttrain.learning_rate"),
        (["run", "--workdir=w", DIGITS, "--config.posttrain.refreshes=many"], "refreshes"),
        (["run", "--workdir=w", DIGITS, "--wrkdir=x"], "did you mean workdir"),
        (["run", "--workdir=w", DIGITS, "stray"], "stray"),
        (["run", "--workdir=w", f"--config={ROOT}/configs/drl_digits.py:huge"], "variant 'huge'"),
        (["run", "--workdir=nowhere"], "holds no run"),
        (["sample", "--workdir=nowhere", "--out=x.npz"], "holds no run"),
        (["run", "--workdir=w", DIGITS, "--config.mesh.fsdp=7"], "config.mesh"),
    ],
)
def test_mistakes(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in _fails(capsys, *argv)


def test_a_recipe_that_sets_a_key_that_does_not_exist(capsys, tmp_path):
    """As of another version: one line that names the recipe and the key."""
    (tmp_path / "c.py").write_text(
        "from jaxdrl import config\ndef get_config(variant=''):\n    c = config.default()\n    c.data.update(clases=())\n    return c\n"
    )
    said = _fails(capsys, "run", f"--workdir={tmp_path}/w", f"--config={tmp_path}/c.py")
    assert "c.py cannot be loaded (KeyError" in said and "clases" in said and said.count("\n") == 1


def test_config_file_without_get_config(capsys, tmp_path):
    (tmp_path / "c.py").write_text("x = 1\n")
    assert "get_config" in _fails(capsys, "run", f"--workdir={tmp_path}/w", f"--config={tmp_path}/c.py")


def test_workdir_of_another_config(capsys, tiny_run, tmp_path):
    line = _fails(capsys, "pretrain", DIGITS, f"--workdir={tiny_run}", "--config.seed=5", "--config.pretrain.steps=30")
    assert "config.seed is 0 there and 5 here" in line and "config.pretrain.steps" in line
    assert "unknown" in _fails(capsys, "sample", f"--workdir={tiny_run}", "--model=best", "--out=x.npz")
    assert ".npz or .png" in _fails(capsys, "sample", f"--workdir={tiny_run}", "--out=x.jpg")
    (tmp_path / "config.json").write_text((tiny_run / "config.json").read_text())
    assert "missing" in _fails(capsys, "sample", f"--workdir={tmp_path}", "--model=tuned", "--out=x.npz")
    # What may differ: how a run is carried out.
    assert cli.main(["pretrain", f"--workdir={tiny_run}", "--config.runtime.progress_seconds=1.0"]) == 0


def test_one_process_a_workdir(capsys, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    with workdirs.lock(tmp_path):
        assert "in use by another process" in _fails(capsys, "run", DIGITS, f"--workdir={tmp_path}")


def test_full_disk(capsys, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jaxdrl.training.workdir.write_atomically", full)
    assert "full" in _fails(capsys, "run", DIGITS, f"--workdir={tmp_path / 'w'}")


def test_no_shipped_weights(capsys, tmp_path):
    line = _fails(capsys, "run", DIGITS, f"--workdir={tmp_path}", "--config.pretrain.from_scratch=false", "--config.name=mine")
    assert "from_scratch=true" in line


@pytest.mark.parametrize(
    "argv",
    [[], ["--help"], ["run", "--help"], ["sample", "--help"], ["evaluate", "--help"], ["sweep", "--help"], ["compare", "--help"]],
)
def test_help_teaches(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "usage: jaxdrl" in out and "example" in out
    assert all(len(line) <= 130 for line in out.splitlines())


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


@pytest.mark.parametrize(
    ("given", "taken"), [("gs://bucket/cache", "gs://bucket/cache"), ("~/cache", str(Path("~/cache").expanduser()))]
)
def test_a_compilation_cache_may_be_a_bucket(given, taken, monkeypatch):
    asked = {}
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(jax_compilation_cache_dir=None, update=asked.__setitem__))
    config = jaxdrl_config.default()
    config.runtime.compilation_cache = given
    cli._start(config)
    assert asked["jax_compilation_cache_dir"] == taken
