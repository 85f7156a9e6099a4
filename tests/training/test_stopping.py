"""SIGTERM: the state is saved at the next step, the exit code is 75, and the same command gives the bits of an undisturbed run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import cli
from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.errors import Stopped
from jaxdrl.evaluation.collect import Network, Space, collect
from jaxdrl.training.checkpoints import Checkpoints
from jaxdrl.training.stages import ORDER
from jaxdrl.training.stopping import Stopping
from jaxdrl.weights import files

ROOT = Path(__file__).parent.parent.parent


def test_the_first_signal_is_heard_and_the_handler_put_back(capsys):
    before, stopping = signal.getsignal(signal.SIGTERM), Stopping()
    with stopping.listening():
        assert not stopping.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.requested() and stopping.signalled
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
    assert "a second SIGTERM ends at once" in capsys.readouterr().err


def test_a_second_signal_ends_the_process():
    code = "import os, signal, time\nfrom jaxdrl.training.stopping import Stopping\nwith Stopping().listening():\n"
    code += "    os.kill(os.getpid(), signal.SIGTERM)\n    print('first', flush=True)\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('second')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == -signal.SIGTERM and found.stdout == "first\n"


def test_a_loop_saves_once_and_ends(tmp_path):
    stopping, flushed = Stopping(), []
    with Checkpoints(tmp_path, seconds=1e9) as checkpoints:
        checkpoints.after(1, {"a": jnp.ones(3)}, stopping)
        assert checkpoints.steps() == []
        stopping.signalled = True
        with pytest.raises(Stopped, match="step 2"):
            checkpoints.after(2, {"a": jnp.full(3, 2.0)}, stopping, flush=lambda: flushed.append(True))
        assert flushed == [True]
        step, restored = checkpoints.restore({"a": jnp.zeros(3)})
    assert step == 2
    np.testing.assert_array_equal(restored["a"], np.full(3, 2.0))


class _Images:
    def __init__(self):
        self.read = []

    def __len__(self):
        return 40

    def batches(self, start, stop, size):
        for first in range(start, stop, size):
            self.read.append(first)
            count = min(size, stop - first)
            yield np.full((count, 2, 2, 1), first, np.uint8), np.zeros(count, np.int32)


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path):
    network = Network(params={}, apply=lambda params, images, labels: {"mean": images.reshape(len(images), -1)})
    space = Space(
        name="mean", spec=FeatureSpec(network="mean", fingerprint="", pooling="", size=0), network=network, output="mean"
    )
    source, answers = _Images(), iter([False, True])
    with pytest.raises(Stopped, match=r"24 of 40"):
        collect(source, [space], tmp_path, keep=["mean"], batch_size=8, stop=lambda: next(answers))
    found = collect(source, [space], tmp_path, keep=["mean"], batch_size=8)
    assert source.read == [0, 8, 16, 24, 32] and found.computed == 24
    expected = collect(_Images(), [space], None, keep=["mean"], batch_size=8)
    np.testing.assert_array_equal(found.features["mean"], expected.features["mean"])


@pytest.mark.slow
def test_terminated_in_every_stage_it_ends_with_75_and_goes_on(tiny_run, tmp_path, monkeypatch, capsys):
    """Each call is signalled at the first question of the first stage that has not been stopped yet."""
    workdir, stopped, asked = tmp_path / "run", [], Stopping.requested

    def requested(self):
        begun = [stage for stage in ORDER[1:] if (workdir / stage).is_dir() and not (workdir / stage / "result.json").exists()]
        inside = [stage for stage in begun if stage not in stopped and not (workdir / stage / "seconds.json").exists()]
        if inside:
            stopped.append(inside[0])
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(self)

    monkeypatch.setattr(Stopping, "requested", requested)
    command, codes = ["posttrain", f"--config={ROOT}/configs/drl_digits.py:tiny", f"--workdir={workdir}"], []
    while not codes or (codes[-1] == 75 and len(codes) < 9):
        codes.append(cli.main(command))
    assert codes == [75] * len(stopped) + [0] and stopped == ["encoders", "pretrain", "discriminator", "posttrain"]
    assert capsys.readouterr().err.count("the same command goes on from there") == 4
    for name in ("encoders/reward", "pretrain/model", "discriminator/model", "posttrain/model"):
        one, two = (files.load_tree(place / f"{name}.safetensors") for place in (tiny_run, workdir))
        assert files.fingerprint(one) == files.fingerprint(two), name
