"""Several processes on one machine: with children that need no JAX, and once with it."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launch import local_multiprocess
from tests.launch.shells import LAUNCH, environment

SCRIPT = str(LAUNCH / "local_multiprocess.py")
# What every child starts with: `index`, and how often it was started in `attempt`.
PRELUDE = """
import json, os, pathlib, signal, sys, time
words = dict(word[len("--config.runtime."):].split("=") for word in sys.argv[1:] if word.startswith("--config.runtime."))
index, folder = int(words["process_index"]), pathlib.Path(os.environ["FOLDER"])
with (folder / f"runs{index}").open("a") as runs:
    runs.write("x")
attempt = len((folder / f"runs{index}").read_text())
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
"""


def started(tmp_path, child, *options, **variables):
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(child)]
    return subprocess.Popen(
        [sys.executable, SCRIPT, *options, "--", *command],
        env=environment(FOLDER=tmp_path, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(tmp_path, child, *options, **variables):
    process = started(tmp_path, child, *options, **variables)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_every_process_knows_its_place_and_its_devices(tmp_path):
    child = """
    names = ("JAX_PLATFORMS", "JAX_CPU_COLLECTIVES_IMPLEMENTATION", "XLA_FLAGS")
    print(json.dumps([words, {name: os.environ[name] for name in names}]))
    """
    code, out, _ = ended(
        tmp_path,
        child,
        "--processes=3",
        "--devices-per-process=4",
        XLA_FLAGS="--xla_a=1 --xla_force_host_platform_device_count=2",
    )
    assert code == 0
    lines = dict(line.split(" ", 1) for line in out.splitlines())
    assert sorted(lines) == ["[0]", "[1]", "[2]"]
    found = [json.loads(lines[f"[{index}]"]) for index in range(3)]
    assert [words["process_index"] for words, _ in found] == ["0", "1", "2"]
    assert {words["num_processes"] for words, _ in found} == {"3"}
    (address,) = {words["distributed"] for words, _ in found}
    assert address.startswith("127.0.0.1:")
    for _, variables in found:
        assert variables == {
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=4",
        }


def test_the_first_that_fails_decides_and_ends_the_others(tmp_path):
    child = """
    if index == 1:
        wait_for("up")
        sys.exit(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = os.fork()
    if not worker:
        time.sleep(300)
    (folder / "worker").write_text(str(worker))
    (folder / "up").touch()
    time.sleep(300)
    """
    code, _, err = ended(tmp_path, child, "--grace=0.1", "--restarts=3")
    assert code == 3
    assert "process 1 ended with exit code 3" in err
    assert (tmp_path / "runs0").read_text() == "x"
    assert gone(tmp_path / "worker")


def test_what_a_process_leaves_behind_ends_with_it(tmp_path):
    child = """
    worker = os.fork()
    if not worker:
        time.sleep(300)
    (folder / "worker").write_text(str(worker))
    """
    assert ended(tmp_path, child, "--processes=1")[0] == 0
    assert gone(tmp_path / "worker")


def gone(path):
    """Whether the process whose number is in the file has ended, or does so at once."""
    worker = Path(f"/proc/{path.read_text()}/stat")
    for _ in range(100):
        try:
            if worker.read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_a_checkpoint_or_a_death_restarts_all(tmp_path):
    child = """
    if index == 0:
        wait_for("runs1")
        sys.exit(75 if attempt == 1 else 0)
    while len((folder / "runs0").read_text()) < attempt:
        time.sleep(0.01)
    if attempt == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(75 if attempt == 1 else 0)
    """
    code, _, err = ended(tmp_path, child, "--restarts=3", "--grace=30")
    assert code == 0, err
    assert (tmp_path / "runs0").read_text() == (tmp_path / "runs1").read_text() == "xxx"
    assert "exit code 137" in err


def test_after_75_the_others_have_time_to_save(tmp_path):
    child = """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
    if index:
        wait_for("saving")
        sys.exit(75)
    (folder / "saving").touch()
    time.sleep(0.7)
    (folder / "saved").touch()
    sys.exit(75)
    """
    assert ended(tmp_path, child, "--grace=60")[0] == 75
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(("code", "attempts"), [(0, 1), (1, 1), (2, 1), (75, 3)])
def test_restarts_are_counted_and_mistakes_not_repeated(tmp_path, code, attempts):
    found, _, _ = ended(tmp_path, f"sys.exit({code})", "--processes=1", "--restarts=2", "--grace=0")
    assert found == code
    assert (tmp_path / "runs0").read_text() == "x" * attempts


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_and_nothing_restarts(tmp_path, number):
    child = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / f"up{index}").touch()
    time.sleep(300)
    """
    process = started(tmp_path, child, "--restarts=5", "--grace=60")
    while not ((tmp_path / "up0").exists() and (tmp_path / "up1").exists()):
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert (tmp_path / "runs0").read_text() == (tmp_path / "runs1").read_text() == "x"


def test_graphics_processors_are_dealt_out():
    options = local_multiprocess.Options(
        command=("x",), processes=2, devices=2, platform="cuda", restarts=0, window=1.0, grace=1.0
    )
    assert [local_multiprocess.variables(options, index, {})["CUDA_VISIBLE_DEVICES"] for index in range(2)] == ["0,1", "2,3"]
    named = {"CUDA_VISIBLE_DEVICES": "7,5,3,1"}
    assert local_multiprocess.variables(options, 1, named)["CUDA_VISIBLE_DEVICES"] == "3,1"
    with pytest.raises(ValueError, match="names 1 GPUs, 4 are needed"):
        local_multiprocess.variables(options, 0, {"CUDA_VISIBLE_DEVICES": "7"})


def test_a_dry_run_prints_every_process(capsys):
    assert local_multiprocess.main(["--processes=2", "--devices-per-process=8", "--dry-run", "--", "no-such-program", "a b"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "--xla_force_host_platform_device_count=8" in first
    assert "no-such-program 'a b' --config.runtime.distributed=127.0.0.1:" in first
    assert second.endswith("--config.runtime.num_processes=2 --config.runtime.process_index=1")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--processes=2"], "the command is missing"),
        (["--processes=0", "--", "true"], "must be at least 1"),
        (["--grace=-1", "--", "true"], "must not be negative"),
        (["--", "/no/such/program"], "/no/such/program: No such file"),
    ],
)
def test_a_mistake_is_one_line(given, says, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended_with:
        local_multiprocess.main(given)
    assert ended_with.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.slow
def test_processes_of_jax_add_up_and_come_back(tmp_path):
    child = """
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    jax.distributed.initialize(words["distributed"], num_processes=int(words["num_processes"]), process_id=index)
    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("data",)), PartitionSpec("data"))
    mine = np.full(jax.local_device_count(), index + 1, np.float32)
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))(
        jax.make_array_from_process_local_data(sharding, mine))
    print("sum", float(np.asarray(total.addressable_data(0))), flush=True)
    if attempt == 1:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)
    """
    code, out, err = ended(tmp_path, child, "--devices-per-process=2", "--restarts=1", "--grace=1")
    assert code == 0, err
    assert out.count("sum 6.0") == 4
