"""Checkpoints, workdirs, metrics, progress, files and train state."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdrl import cli
from jaxdrl.config import default
from jaxdrl.errors import UserError
from jaxdrl.training import checkpoints as checkpoints_module
from jaxdrl.training import mesh, randomness, state, workdir
from jaxdrl.training.batching import in_batches
from jaxdrl.training.checkpoints import Checkpoints, Keep
from jaxdrl.training.context import Run
from jaxdrl.training.metrics import MetricWriter, read_metrics
from jaxdrl.training.progress import Progress
from jaxdrl.training.stopping import Stopping
from jaxdrl.weights import files

ROOT = Path(__file__).parent.parent.parent


def _tree(value):
    optimizer, _ = state.make_optimizer(learning_rate=0.1)
    return state.create({"a": jnp.full((3, 2), value), "b": [jnp.arange(4.0)]}, optimizer, 0.9)


def _same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_newest_whole_checkpoint_is_restored(tmp_path):
    with Checkpoints(tmp_path, keep=Keep(last=2)) as checkpoints:
        assert checkpoints.restore(_tree(0.0)) is None
        for step in (1, 2, 3):
            checkpoints.save(step, _tree(float(step)))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        step, restored = checkpoints.restore(_tree(0.0))
    assert step == 3
    _same(restored, _tree(3.0))


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ({"last": 1}, [6]),
        ({"last": 3}, [4, 5, 6]),
        ({"last": 1, "every_hours": 1.0}, [1, 3, 5, 6]),  # a save every 36 minutes
        ({"last": 1, "best": "fid"}, [2, 6]),
        ({"last": 1, "best": "-fid"}, [4, 6]),
        ({"last": 1, "best": "none"}, [6]),
    ],
)
def test_checkpoints_are_kept_by_policy(keep, kept, tmp_path):
    now = [1000.0]
    keep = Keep(**keep)
    with Checkpoints(tmp_path / "checkpoints", keep=keep, clock=lambda: now[0]) as checkpoints:
        for step, fid in enumerate((3.0, 9.0, float("nan"), 1.0, 2.0, 4.0), 1):
            now[0] += 2160.0
            checkpoints.save(step, {"a": jnp.full(3, float(step))}, {"fid": fid})
        checkpoints.wait()
        assert checkpoints.steps() == kept
        step, restored = checkpoints.restore({"a": jnp.zeros(3)})
        assert step == 6
        np.testing.assert_array_equal(restored["a"], np.full(3, 6.0))
    checkpoints_module.clear(tmp_path, keep)
    if keep.every_hours or keep.best:  # what was only the newest goes when the stage is finished
        assert checkpoints_module.steps(checkpoints_module.place(tmp_path / "checkpoints")) == kept[:-1]
    else:
        assert not list(tmp_path.iterdir())


def test_a_better_step_is_saved_whenever_it_comes(tmp_path):
    stopping = Stopping()
    for first in (1, 5):  # the second time, the best so far is read from the folder
        with Checkpoints(tmp_path, seconds=1e9, keep=Keep(last=9, best="coverage")) as checkpoints:
            for step, coverage in enumerate((0.5, 0.4, 0.7, 0.6), first):
                checkpoints.after(step, {"a": jnp.ones(3)}, stopping, metrics={"coverage": coverage})
            checkpoints.after(first + 4, {"a": jnp.ones(3)}, stopping)
            checkpoints.wait()
            assert checkpoints.steps() == [1, 3]


def test_policies_out_of_range():
    for wrong in ({"last": 0}, {"every_hours": -1.0}):
        with pytest.raises(UserError, match=r"config\.runtime\.checkpoints"):
            Keep(**wrong)


def test_checkpoints_may_lie_elsewhere_but_not_on_those_of_another_run(tmp_path, capsys):
    command = [
        f"--config={ROOT}/configs/drl_digits.py:tiny",
        "--config.pretrain.from_scratch=false",
        "--config.pretrain.shipped=drl_digits",
    ]
    place = f"--config.runtime.checkpoints.directory={tmp_path / 'far'}"
    config = cli._load(f"{ROOT}/configs/drl_digits.py:tiny")
    config.runtime.checkpoints.directory = str(tmp_path / "far")
    run = Run(config=config, workdir=tmp_path / "run", mesh=mesh.create_mesh(), writer=MetricWriter(tmp_path))
    with run.checkpoints("pretrain", "checkpoints") as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(3)})
    assert (tmp_path / "far/pretrain/checkpoints/1").is_dir() and not (tmp_path / "run").exists()
    workdir.claim(checkpoints_module.place(tmp_path / "far"), config)
    workdir.claim(checkpoints_module.place(tmp_path / "far"), config)
    assert cli.main(["pretrain", *command, place, f"--workdir={tmp_path / 'other'}", "--config.seed=5"]) == 2
    assert "config.seed is 0 there and 5 here" in capsys.readouterr().err
    assert cli.main(["pretrain", *command, "--workdir=gs://bucket/run"]) == 2
    assert "config.runtime.checkpoints.directory=gs://" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "no_manifest", "empty"])
def test_damaged_checkpoints_are_passed_over(tmp_path, damage, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _tree(float(step)))
        checkpoints.wait()
        data = max((tmp_path / "2").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
        if damage == "flip":
            content = bytearray(data.read_bytes())
            content[len(content) // 2] ^= 1
            data.write_bytes(bytes(content))
        elif damage == "truncate":
            data.write_bytes(data.read_bytes()[:-1])
        elif damage == "delete":
            data.unlink()
        elif damage == "no_manifest":
            (tmp_path / "2.sha256.json").unlink()
        else:
            (tmp_path / "9").mkdir()
        step, restored = checkpoints.restore(_tree(0.0))
    assert step == (2 if damage == "empty" else 1)
    _same(restored, _tree(float(step)))
    assert "damaged or unfinished" in capsys.readouterr().out


def test_checkpoint_of_another_shape_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3)})
        checkpoints.wait()
        with pytest.raises(UserError, match="does not fit"):
            checkpoints.restore({"a": jnp.zeros(3), "b": jnp.zeros(2)})


def test_kill_during_saves_never_leaves_a_torn_state(tmp_path):
    code = (
        "import sys, jax.numpy as jnp\nfrom pathlib import Path\nfrom jaxdrl.training.checkpoints import Checkpoints\n"
        "with Checkpoints(Path(sys.argv[1])) as c:\n"
        "    for step in range(1, 10**6):\n        c.save(step, {'a': jnp.full((200000,), float(step))})\n        print(step, flush=True)\n"
    )
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
        for _ in range(4):
            process.stdout.readline()
        time.sleep(0.05)
        process.kill()
        process.wait()
        process.stdout.close()
        with Checkpoints(tmp_path) as checkpoints:
            step, restored = checkpoints.restore({"a": jnp.zeros(200000)})
        np.testing.assert_array_equal(restored["a"], np.full(200000, float(step), np.float32))


def test_trees_in_files_come_back_to_the_bit(tmp_path):
    tree = _tree(0.3)
    files.save_tree(tmp_path / "t.safetensors", tree, {"note": "x"})
    back = files.load_tree(tmp_path / "t.safetensors", _tree(9.0))
    _same(back, tree)
    assert files.fingerprint(back) == files.fingerprint(tree) != files.fingerprint(_tree(0.4))
    assert back.step.shape == ()
    nested = files.load_tree(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(nested["params"]["b"]["0"], np.arange(4.0))


def test_all_misfits_are_listed_at_once(tmp_path):
    files.save_tree(tmp_path / "t.safetensors", {"a": np.zeros(3), "b": np.zeros(2)})
    with pytest.raises(UserError, match=r"missing: c; unexpected: b; misshapen: a \(is \(3,\)"):
        files.load_tree(tmp_path / "t.safetensors", {"a": np.zeros(4), "c": np.zeros(1)})
    (tmp_path / "t.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        files.load_tree(tmp_path / "t.safetensors")
    with pytest.raises(UserError, match="is missing"):
        files.load_tree(tmp_path / "none.safetensors")


def test_metrics_of_a_resumed_stage_read_as_if_never_cut(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.for_stage("a").write_scalars(step, {"x": step})
        writer.for_stage("b").write_scalars(step, {"x": -step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "a", "st')  # torn by a kill
    writer = MetricWriter(tmp_path)
    writer.for_stage("a").resume(1)
    writer.for_stage("a").write_scalars(2, {"x": 2})
    writer.close()
    lines = read_metrics(tmp_path)
    assert [(line["stage"], line["step"]) for line in lines] == [("a", 1), ("b", 1), ("b", 2), ("b", 3), ("a", 2)]
    assert all(json.dumps(line) for line in lines)


def test_progress_in_a_log_and_on_a_terminal():
    now = [0.0]
    log = io.StringIO()
    progress = Progress("posttrain", 400, start=100, seconds=10, stream=log, clock=lambda: now[0])
    for step in range(101, 401):
        now[0] += 0.5
        progress.update(step, reward=-0.3)
    lines = log.getvalue().splitlines()
    assert len(lines) == 15 and lines[0] == "posttrain       120/400  2 step/s  2m20s left  reward -0.3"
    assert lines[-1].startswith("posttrain       400/400  2 step/s  0s left")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    progress = Progress("x", 2, stream=terminal, clock=lambda: now[0])
    now[0] += 1
    progress.update(1)
    now[0] += 1
    progress.update(2)
    assert terminal.getvalue().count("\r") == 2 and terminal.getvalue().endswith("\n")


def test_adam_warm_up_and_decay():
    for decay, end in (("constant", 1.0), ("linear", 0.0), ("cosine", 0.0)):
        _, schedule = state.make_optimizer(learning_rate=1.0, warmup_steps=10, total_steps=110, decay=decay)
        assert float(schedule(5)) == pytest.approx(0.5) and float(schedule(10)) == pytest.approx(1.0)
        assert float(schedule(110)) == pytest.approx(end, abs=1e-6)
    _, schedule = state.make_optimizer(learning_rate=1.0, warmup_steps=10, hold_steps=50, total_steps=150, decay="linear")
    assert [float(schedule(step)) for step in (5, 10, 50, 75, 150, 200)] == pytest.approx([0.5, 1, 1, 0.75, 0, 0])
    with pytest.raises(ValueError, match="decay"):
        state.make_optimizer(learning_rate=1.0, decay="steps")


def test_one_update_with_clip_and_average():
    optimizer, _ = state.make_optimizer(learning_rate=0.5, grad_clip=1.0)
    before = state.create({"w": jnp.ones(4)}, optimizer, 0.9)
    grads = {"w": jnp.full(4, 10.0)}
    after = state.apply_gradients(before, grads, optimizer, 0.9)
    clipped = optax.adam(0.5)
    updates, _ = clipped.update({"w": jnp.full(4, 0.5)}, clipped.init(before.params))
    np.testing.assert_allclose(after.params["w"], 1 + updates["w"], rtol=1e-5)
    np.testing.assert_allclose(after.ema["w"], 0.9 + 0.1 * after.params["w"], rtol=1e-5)
    assert int(after.step) == 1
    logged = state.norms(before.params, after.params, grads)
    assert float(logged["gradient_norm"]) == pytest.approx(20) and float(logged["update_norm"]) == pytest.approx(1, rel=1e-4)


def test_keys_differ_by_seed_and_purpose():
    keys = [randomness.stage_key(seed, purpose) for seed in (0, 1) for purpose in ("a", "b")]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4
    assert randomness.stage_seed(0, "a") != randomness.stage_seed(1, "a")


@given(st.integers(1, 30), st.integers(1, 12))
def test_in_batches_is_the_function_on_all(num, size):
    x, y = np.random.default_rng(num).normal(size=(num, 3)), np.arange(num)
    function = jax.jit(lambda x, y: x.sum(axis=1) * y)
    np.testing.assert_allclose(in_batches(function, x, y, size=size), x.sum(axis=1) * y, rtol=1e-5, atol=1e-6)


def test_in_batches_refuses_ragged_and_empty_input():
    unchecked = getattr(in_batches, "__wrapped__", in_batches)  # the type checker would refuse unequal axes first
    for arrays in ((np.zeros((0, 3)),), (np.zeros((4, 3)), np.zeros(3))):
        with pytest.raises(ValueError, match="leading axis"):
            unchecked(lambda *parts: parts[0], *arrays)


def test_a_run_may_go_on_on_another_mesh_and_with_no_other_numbers(tmp_path):
    config = default()
    workdir.open_workdir(tmp_path, config)
    with config.unlocked():
        config.mesh.update(data=1, fsdp=4, frozen="replicated")
    workdir.open_workdir(tmp_path, config)
    config.posttrain.learning_rate *= 2
    with pytest.raises(UserError, match=r"config\.posttrain\.learning_rate"):
        workdir.open_workdir(tmp_path, config)


def test_a_run_on_other_classes_is_refused_in_one_short_line(tmp_path):
    config = default()
    workdir.open_workdir(tmp_path, config)
    config.data.classes = tuple(f"n{number:08d}" for number in range(100))
    with pytest.raises(UserError, match=r"config\.data\.classes is \[\] there and \['n00000000', .* \.\.\. here") as error:
        workdir.open_workdir(tmp_path, config)
    assert len(str(error.value)) < 400
