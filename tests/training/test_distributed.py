"""Two processes with four devices each, over gloo: they agree, share batches and checkpoints, and give the numbers of one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxdrl import cli, data
from jaxdrl import config as jaxdrl_config
from jaxdrl.errors import UserError
from jaxdrl.training import distributed, feeding, mesh
from jaxdrl.training.metrics import read_metrics
from jaxdrl.weights import files
from tests.training import several

ROOT = Path(__file__).parent.parent.parent
SIZES = [f"encoders.{which}.batch_size=16" for which in ("reward", "judge")]
SIZES += [f"{stage}.batch_size=16" for stage in ("pretrain", "discriminator", "posttrain")]
SIZES += ["posttrain.buffer_size=32", "posttrain.rollout_batch=16"]  # so that eight devices share every batch


def _port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _environment(devices=4):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}


def _ended(processes, seconds=900):
    said = [process.communicate(timeout=seconds) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in said], [error for _, error in said]


def _start(commands, devices=4):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": _environment(devices)}
    return [subprocess.Popen([sys.executable, "-m", *command], **pipes) for command in commands]


def _run(workdir, *more, recipe="drl_digits", stage="run"):
    """The commands of two processes."""
    command = ["jaxdrl", stage, f"--config={ROOT}/configs/{recipe}.py:tiny", f"--workdir={workdir}"]
    command += [f"--config.{size}" for size in SIZES] + list(more)
    several_processes = [f"--config.runtime.distributed=localhost:{_port()}", "--config.runtime.num_processes=2"]
    return [[*command, *several_processes, f"--config.runtime.process_index={index}"] for index in range(2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distributed": "on"}, "off, auto or HOST:PORT"),
        ({"distributed": "host:port"}, "off, auto or HOST:PORT"),
        ({"distributed": "host:80"}, "num_processes"),
        ({"distributed": "host:80", "num_processes": 2, "process_index": 2}, "from 0 to num_processes - 1"),
        ({"num_processes": 2}, "are for HOST:PORT"),
        ({"distributed": "auto", "process_index": 0}, "are for HOST:PORT"),
    ],
)
def test_options_that_do_not_fit(options, said):
    runtime = jaxdrl_config.default().runtime
    runtime.update(options)
    with pytest.raises(UserError, match=said):
        distributed.initialise(runtime)


def test_one_process_is_asked_nothing(tmp_path):
    distributed.initialise(jaxdrl_config.default().runtime)
    unread = object()  # JSON could not carry it
    assert distributed.first() and distributed.from_first(unread) is unread and distributed.in_turn(lambda: 3) == 3
    with pytest.raises(UserError, match="mine"):
        distributed.on_first(lambda: (_ for _ in ()).throw(UserError("mine")))
    distributed.check_shared(tmp_path)
    distributed.wait_for(tmp_path / "none")
    distributed.save_tree(tmp_path / "a.safetensors", {"a": np.ones(2)})
    assert files.load_tree(tmp_path / "a.safetensors")["a"].tolist() == [1, 1] and len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(
        distributed.shared_out(lambda first, count: (np.arange(first, first + count),), 5)[0], np.arange(5)
    )
    devices, batch = mesh.create_mesh(), np.ones((2, 8, 3))
    assert feeding.share(devices, 8) == (0, 1) and feeding.place(batch, devices, 8) is batch
    with distributed.alone(), distributed.lost_contact():
        distributed.leave(75)


def test_only_errors_about_contact_are_taken_for_them():
    import jax

    with pytest.raises(jax.errors.JaxRuntimeError), distributed.lost_contact():
        raise jax.errors.JaxRuntimeError("Gloo: Connection closed by peer")  # in a run of one process


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    port = _port()
    codes, out, error = _ended(_start([["tests.training.several", str(folder), str(index), str(port)] for index in range(2)]))
    assert codes == [0, 0], error
    return folder, [json.loads(text.splitlines()[-1]) for text in out]


@pytest.mark.slow
def test_two_processes_agree(two):
    _, (zero, one) = two
    assert (zero["first"], one["first"]) == (True, False)
    assert zero["from_first"] == one["from_first"] == {"said": 0, "long": "xxxxx"}
    assert zero["in_turn"] == ["0", "UserError: of 1"] and one["in_turn"] == ["1", "UserError: of 1"]
    assert zero["on_first"] == ["'made'", "Stopped: of 0"] and one["on_first"] == ["None", "Stopped: of 0"]
    for found in (zero, one):
        assert found["not_shared"].startswith("UserError: process 1 does not see") and "all hosts share" in found["not_shared"]
        assert found["shared_out"] == list(range(7))
        assert found["stopped"][0] is False and found["stopped"][2] == "Stopped: step 7"
    assert zero["stopped"][1] is False and one["stopped"][1] is True


@pytest.mark.slow
def test_two_processes_read_the_batches_of_one(two):
    expected = data.batches(several.source(), batch_size=16, seed=1).stacked(3, 2)["label"].tolist()
    shares = {"(2, 4, 1)": 2, "(8, 1, 1)": 2, "(4, 1, 2)": 2, "(1, 1, 8)": 1}
    for index, found in enumerate(two[1]):
        for sizes, parts in shares.items():
            assert found["fed"][sizes] == [[index if parts > 1 else 0, parts], expected], sizes
        assert found["odd"] == [0, 1]


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_restored_on_other_meshes(two):
    """Saved over (2, 4, 1) by two processes of four devices; restored over (4, 2, 1), by one of four devices and by one of one."""
    folder, found = two
    assert [part["restored"][0] for part in found] == [True, True] and "fsdp" in found[0]["restored"][1]
    for devices, sharded in ((4, True), (1, False)):
        codes, out, error = _ended(_start([["tests.training.several", str(folder)]], devices))
        assert codes == [0], error
        same, spec = json.loads(out[0].splitlines()[-1])["restored"]
        assert same and ("fsdp" in spec) == sharded


@pytest.mark.slow
def test_the_whole_recipe_gives_the_numbers_of_one_process(tmp_path):
    """Float32 sums in another order, through Adam: weights differ by a few 1e-4, the tables of the report by less than one per cent."""
    command = _run(tmp_path / "one")[0][:-3]
    codes, _, error = _ended(_start([command], devices=1))
    assert codes == [0], error
    codes, out, error = _ended(_start(_run(tmp_path / "two")), 1800)
    assert codes == [0, 0], error
    assert "report:" in out[0] and out[1].replace("[Gloo]", "").count("posttrain") == 0  # process 0 alone speaks
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    for space, rows in one["spaces"].items():
        for row, value in rows.items():
            assert two["spaces"][space][row] == pytest.approx(value, rel=1e-2), (space, row)
    for name in ("encoders/reward", "encoders/judge", "pretrain/model", "discriminator/model", "posttrain/model", "longer/model"):
        mine, others = (files.named_leaves(files.load_tree(tmp_path / place / f"{name}.safetensors")) for place in ("one", "two"))
        for leaf, value in mine.items():
            np.testing.assert_allclose(others[leaf], value, atol=5e-3, err_msg=f"{name} {leaf}")
    steps = [
        [(line["stage"], line["step"]) for line in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())]
        for name in ("one", "two")
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_policy_gradients_with_rewards_on_the_hosts_and_adapters(tmp_path):
    """MARBLE over five rewards, of which each process computes JPEG size for its own images, beside the next rollout; adapters are trained."""
    options = {"recipe": "marble_digits", "stage": "posttrain"}
    more = [
        "--config.posttrain.lora.rank=2",
        "--config.posttrain.host.overlap=True",
        "--config.posttrain.group_size=8",
        "--config.posttrain.balance.layers=('proj',)",
    ]
    codes, _, error = _ended(_start([_run(tmp_path / "one", *more, **options)[0][:-3]], devices=1))
    assert codes == [0], error
    codes, _, error = _ended(_start(_run(tmp_path / "two", *more, **options), devices=2), 1800)
    assert codes == [0, 0], error
    lines = [[line for line in read_metrics(tmp_path / name) if line["stage"] == "posttrain"] for name in ("one", "two")]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    named = [key for key in lines[0][0] if key.startswith("reward_mean/")]
    assert len(named) == 5 and "reward_mean/jpeg_compressibility" in named
    for key in named:  # before the first update; a pixel of an image may be rounded the other way
        assert lines[1][0][key] == pytest.approx(lines[0][0][key], rel=2e-3), key
    one, two = (
        files.named_leaves(files.load_tree(tmp_path / name / "posttrain" / "model.safetensors")) for name in ("one", "two")
    )
    for leaf, value in one.items():
        np.testing.assert_allclose(two[leaf], value, atol=5e-3, err_msg=leaf)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM])
def test_one_of_two_hangs_dies_or_is_preempted(how, tmp_path):
    """The other one names it and ends with 75; after SIGTERM to one, both end at the same step."""
    port, beat, end = _port(), tmp_path / ".heartbeat/1.json", time.monotonic() + 120
    processes = _start([["tests.training.looping", str(tmp_path), str(index), str(port)] for index in range(2)])
    while time.monotonic() < end and not (beat.exists() and json.loads(beat.read_text())["step"] > 5):
        time.sleep(0.1)
    processes[1].send_signal(how)
    try:
        _, error = processes[0].communicate(timeout=120)
        assert processes[0].returncode == 75, error
    finally:
        processes[0].kill()
        if how != signal.SIGTERM:
            processes[1].kill()
        codes, _, errors = _ended(processes[1:], 120)
    if how == signal.SIGTERM:
        assert codes == [75] and "stopped: step" in error
        assert error.split("stopped: ")[1].split(";")[0] == errors[0].split("stopped: ")[1].split(";")[0]
    elif how == signal.SIGSTOP:
        # Which of two lines it is depends on whether the watch had seen a second sign of life.
        assert re.search(r"process 1( on \S+)? has given no sign of life", error) and "stage steps" in error
    else:
        assert "process 1 on" in error or "contact with another process was lost" in error


def test_a_workdir_on_another_host_is_named(tmp_path, monkeypatch, capsys):
    """What `wait_for` says reaches the user as one line."""

    def blind(workdir):
        raise UserError("process 1 does not see it")

    monkeypatch.setattr(distributed, "check_shared", blind)
    assert cli.main(["pretrain", f"--config={ROOT}/configs/drl_digits.py:tiny", f"--workdir={tmp_path}"]) == 2
    assert "process 1 does not see it" in capsys.readouterr().err
