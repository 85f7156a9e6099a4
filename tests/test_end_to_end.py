"""The tiny forms from end to end: complete, resumable after kill -9 bit for bit, skipped when done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxdrl import cli
from jaxdrl.evaluation import drift
from jaxdrl.training.metrics import read_metrics
from jaxdrl.weights import files

ROOT = Path(__file__).parent.parent
STAGES = ("data", "encoders", "pretrain", "discriminator", "posttrain", "longer", "evaluate", "report")
WEIGHTS = (
    "encoders/reward",
    "encoders/judge",
    "pretrain/model",
    "pretrain/state",
    "discriminator/model",
    "posttrain/model",
    "longer/model",
)


def _numbers(workdir):
    """The report without what depends on the clock or the machine."""
    report = json.loads((workdir / "report.json").read_text())
    report.pop("seconds")
    for result in report["stages"].values():
        result.pop("seconds")
    report["control"].pop("seconds")
    return report


def _metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_report_has_the_promised_keys(tiny_run):
    report = json.loads((tiny_run / "report.json").read_text())
    promised = {"config", "seeds", "samples", "spaces", "coverage", "recall", "precision", "accuracy", "seconds"}
    assert promised <= report.keys()
    assert set(report["spaces"]) == {"reward", "judge", "pixels"}
    rows = {"floor", "base", "tuned", "ideal_tilt", "longer_pretraining", "best_cfg"}
    for values in report["spaces"].values():
        assert rows <= values.keys() and all(np.isfinite(list(values.values())))
    assert set(report["seconds"]) == set(STAGES) - {"report"}
    assert report["samples"] == 100 and report["seeds"] == [0]


def test_every_stage_left_its_result_and_no_checkpoints(tiny_run):
    for stage in STAGES:
        assert (tiny_run / stage / "result.json").exists(), stage
        assert not list((tiny_run / stage).glob("checkpoints*")), stage


def test_the_phases_of_a_traced_step_were_timed(tiny_run):
    (found,) = (line for line in read_metrics(tiny_run, "machine.jsonl") if "phase_seconds/rollout" in line)
    assert found["stage"] == "posttrain" and found["step"] == 2
    assert all(found[f"phase_seconds/{phase}"] > 0 for phase in ("rollout", "adjoint", "update"))
    assert list((tiny_run / "profile").rglob("perfetto_trace.json.gz"))


def test_the_tuned_model_is_not_the_base(tiny_run):
    base, tuned = (files.load_tree(tiny_run / stage / "model.safetensors") for stage in ("pretrain", "posttrain"))
    assert files.fingerprint(base) != files.fingerprint(tuned)
    assert list(files.named_leaves(base)) == list(files.named_leaves(tuned))


def test_base_and_control_branch_off_the_trunk(tiny_run):
    """The trunk's rate is constant; the base is the end of a branch, the control that of a branch further on."""
    config, control = (json.loads((tiny_run / name).read_text()) for name in ("config.json", "longer/result.json"))
    steps, decay = config["pretrain"]["steps"], config["pretrain"]["decay_steps"]
    assert decay > 0
    trunks = [files.load_tree(tiny_run / stage / "state.safetensors") for stage in ("pretrain", "longer")]
    assert [int(trunk["step"]) for trunk in trunks] == [steps, steps + control["steps"]]
    assert control["total_steps"] == steps + control["steps"] + decay
    for stage, trunk in zip(("pretrain", "longer"), trunks, strict=True):
        branch = files.load_tree(tiny_run / stage / "model.safetensors")
        assert files.fingerprint(branch) != files.fingerprint(trunk["ema"])


def test_a_finished_run_is_skipped(tiny_run, capsys):
    before = (tiny_run / "report.json").stat().st_mtime_ns
    assert cli.main(["run", f"--workdir={tiny_run}"]) == 0
    assert capsys.readouterr().out.count("done before, skipped") == len(STAGES)
    assert (tiny_run / "report.json").stat().st_mtime_ns == before


def test_sample_writes_adm_files_and_pictures(tiny_run, tmp_path):
    for model in ("base", "tuned"):
        out = tmp_path / f"{model}.npz"
        assert cli.main(["sample", f"--workdir={tiny_run}", f"--model={model}", "--num=40", "--seed=3", f"--out={out}"]) == 0
    base, tuned = (np.load(tmp_path / f"{model}.npz") for model in ("base", "tuned"))
    assert base["arr_0"].shape == (40, 8, 8, 1) and base["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(base["labels"]), [4] * 10)
    # The same noise: images of a hardly tuned model stay close to the base's, far closer than two of the base's are.
    near = np.abs(base["arr_0"].astype(float) - tuned["arr_0"]).mean()
    far = np.abs(base["arr_0"].astype(float) - np.roll(base["arr_0"], 10, axis=0)).mean()
    assert near < 0.5 * far
    picture = tmp_path / "grid.png"
    assert cli.main(["sample", f"--workdir={tiny_run}", "--model=longer", "--num=20", f"--out={picture}"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_killed_in_every_stage_and_resumed_it_gives_the_same_bits(tiny_run, tmp_path):
    """kill -9 a moment after each stage starts, again and again; then compare weights, metrics and report."""
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "jaxdrl", "run", f"--workdir={workdir}"]
    command += [f"--config={ROOT}/configs/drl_digits.py:tiny", "--config.runtime.checkpoint_seconds=0.0"]
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_PLATFORMS": "cpu"}
    killed = set()
    for _ in range(20):
        log = (tmp_path / "log").open("w+")
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            started = [stage for stage in STAGES if (workdir / stage).exists() and not (workdir / stage / "result.json").exists()]
            # The branch in which the learning rate decays is killed by itself.
            started += [f"{stage} decay" for stage in started if (workdir / stage / "checkpoints_decay").exists()]
            fresh = [stage for stage in started if stage not in killed]
            if fresh:
                if fresh[0] in ("pretrain", "discriminator", "posttrain", "longer"):
                    _wait_for_checkpoint(workdir / fresh[0], process)
                killed.add(fresh[0])
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.01)
        log.seek(0)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, log.read()[-3000:]
    assert process.returncode == 0
    assert {"encoders", "pretrain", "pretrain decay", "discriminator", "posttrain"} <= killed
    for name in WEIGHTS:
        one, two = (files.load_tree(place / f"{name}.safetensors") for place in (tiny_run, workdir))
        assert files.fingerprint(one) == files.fingerprint(two), name
    expected, found = _numbers(tiny_run), _numbers(workdir)
    expected["config"].pop("runtime"), found["config"].pop("runtime")
    assert expected == found
    assert _metrics(tiny_run) == _metrics(workdir)


@pytest.mark.slow
def test_killed_on_a_mesh_and_resumed_on_one_device(tiny_run, tmp_path):
    """Two simulated devices up to a checkpoint of the posttrain stage, then one: the numbers of a run on one, to rounding."""
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "jaxdrl", "run", f"--workdir={workdir}", f"--config={ROOT}/configs/drl_digits.py:tiny"]
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "JAX_PLATFORMS": "cpu"}
    meshed = environment | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    log = (tmp_path / "log").open("w+")
    more = ["--config.mesh.fsdp=2", "--config.runtime.checkpoint_seconds=0.0"]
    process = subprocess.Popen([*command, *more], stdout=log, stderr=subprocess.STDOUT, env=meshed, cwd=ROOT)
    while process.poll() is None and not (workdir / "posttrain").exists():
        time.sleep(0.01)
    _wait_for_checkpoint(workdir / "posttrain", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
    assert not (workdir / "posttrain" / "result.json").exists()
    done = subprocess.run([*command, "--config.mesh.fsdp=1"], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    steps = [[line["step"] for line in _metrics(place) if line["stage"] == "posttrain"] for place in (tiny_run, workdir)]
    assert steps[0] == steps[1]
    for name in WEIGHTS:
        one, two = (files.load_tree(place / f"{name}.safetensors") for place in (tiny_run, workdir))
        for path, leaf in files.named_leaves(one).items():
            np.testing.assert_allclose(files.named_leaves(two)[path], leaf, rtol=2e-3, atol=2e-3, err_msg=f"{name} {path}")


def _wait_for_checkpoint(stage, process):
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end and not list(stage.glob("checkpoints/*.sha256.json")):
        time.sleep(0.01)


# By name: what they compute is what the digits' recipe does, at another size and in colour, as tests/test_published_recipes.py does too.
def _slow(*recipes):
    return [pytest.param(recipe, marks=pytest.mark.slow) for recipe in recipes]


RECIPES = _slow("drl_cifar10", "drl_patches", "drl_patches32", "drl_imagenet64")
POLICY_GRADIENTS = ["marble_digits", *_slow("nft_digits", "grpo_digits")]


@pytest.mark.parametrize("recipe", POLICY_GRADIENTS)
def test_policy_gradients_tiny_forms(recipe, tmp_path, capsys):
    """The encoders, base and discriminator are as in the digits' recipe: nothing of them is compiled again."""
    assert cli.main(["run", f"--config={ROOT}/configs/{recipe}.py:tiny", f"--workdir={tmp_path / 'run'}"]) == 0
    title = "+ Flow-GRPO" if recipe == "grpo_digits" else "+ NFT"
    assert title in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert title in page and ("Weights of the rewards" in page) == (recipe == "marble_digits")


@pytest.mark.parametrize("recipe", RECIPES)
def test_other_recipes_tiny_forms(recipe, tmp_path, capsys):
    assert cli.main(["run", f"--config={ROOT}/configs/{recipe}.py:tiny", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "FD judge" in capsys.readouterr().out
    report, colour = json.loads((tmp_path / "run" / "report.json").read_text()), recipe != "drl_patches"
    assert ("Colour and light" in (tmp_path / "run" / "report.html").read_text()) == colour
    assert set(report["drift"].get("tuned", ())) == (set(drift.NAMES) if colour else set())
    assert report["accuracy_space"] == ("judge" if recipe == "drl_imagenet64" else "pixels")
    assert set(report["accuracy_by_class"]["tuned"]) == set(map(str, range(report["config"]["data"]["num_classes"])))
