"""Collecting features: whatever the batches, devices, processes and interruptions, the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.errors import UserError
from jaxdrl.evaluation import collect as collect_module
from jaxdrl.evaluation import frechet, hosts
from jaxdrl.evaluation.collect import Network, Space, collect
from jaxdrl.evaluation.local_devices import local_mesh
from jaxdrl.evaluation.statistics import Moments
from tests.evaluation import collected

IMAGES, LABELS = collected.IMAGES, collected.LABELS


def test_networks_are_computed_in_full_precision():
    """Accelerators take TF32 or bfloat16 otherwise."""
    program = collect_module._program((_outer,), (("out", 0, "out"),), local_mesh())
    text = program.lower([jnp.ones((48, 2))], jnp.zeros((8, 4, 4, 3), jnp.uint8), jnp.zeros(8, jnp.int32)).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in text


def _outer(weights, images, labels):
    return {"out": images.reshape(len(images), -1) @ weights}


def test_features_and_moments_are_those_of_the_images(tmp_path):
    found = collect(collected.Source(), collected.SPACES, tmp_path, keep=["linear"], batch_size=7)
    expected = np.asarray(collected.linear(collected.WEIGHTS, IMAGES / np.float32(127.5) - 1))
    np.testing.assert_allclose(found.features["linear"], expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(found.moments["linear"].mean, found.features["linear"].astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        found.moments["linear"].covariance, np.cov(found.features["linear"].astype(np.float64).T), rtol=1e-9
    )
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.count == len(IMAGES) and set(found.features) == {"linear"}
    assert found.moments["label"].mean[0] == pytest.approx(LABELS.mean())
    in_memory = collect(collected.Source(), collected.SPACES, None, keep=["linear"], batch_size=7)
    np.testing.assert_array_equal(in_memory.features["linear"], found.features["linear"])


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(1, 199), max_size=4), half=st.booleans())
def test_no_order_of_merging_changes_a_distance(cuts, half):
    x = np.random.default_rng(0).normal(size=(200, 6)) * 3 + 50
    x = x.astype(np.float32) if half else x.astype(np.float32).astype(np.float64)
    parts = np.split(x, sorted(cuts))
    reference = frechet.Reference(Moments.of(np.random.default_rng(1).normal(size=(300, 6)) * 3 + 49))
    whole = reference.distance(Moments.of(x))
    for order in (parts, parts[::-1]):
        total = Moments.empty(6)
        for part in order:
            total = total.merge(Moments.of(part)) if len(part) else total
        assert reference.distance(total) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("size", [1, 13, 64, 500])
def test_batches_change_no_number(size):
    """float32 rounds differently in other batches: that is the network's noise, and all there is."""
    whole = collect(collected.Source(), collected.SPACES, None, keep=["linear"], batch_size=50)
    found = collect(collected.Source(), collected.SPACES, None, keep=["linear"], batch_size=size)
    np.testing.assert_allclose(found.features["linear"], whole.features["linear"], rtol=1e-5, atol=1e-5)
    same = Moments.of(found.features["linear"])
    np.testing.assert_allclose(found.moments["linear"].scatter, same.scatter, rtol=1e-9, atol=1e-9)


def _killed(state):
    raise KeyboardInterrupt


@pytest.mark.parametrize("rows", [4096, 60])
def test_an_interrupted_collection_goes_on(tmp_path, monkeypatch, rows):
    """Cut at three places, each time with half-written features behind the saved state: bit for bit the same."""
    monkeypatch.setattr("jaxdrl.evaluation.collect._ROWS", rows)
    whole = collect(collected.Source(), collected.SPACES, None, keep=["linear"], batch_size=8)
    for stop in (24, 25, 100):
        with pytest.raises(KeyboardInterrupt):
            collect(collected.Source(stop), collected.SPACES, tmp_path, keep=["linear"], batch_size=8, seconds=-1.0)
        with (tmp_path / "linear.f32").open("ab") as file:
            file.write(b"half a row")
    source = collected.Source()
    found = collect(source, collected.SPACES, tmp_path, keep=["linear"], batch_size=8)
    assert source.first > 80
    np.testing.assert_array_equal(found.features["linear"], whole.features["linear"])
    np.testing.assert_array_equal(found.moments["linear"].scatter, whole.moments["linear"].scatter)
    with monkeypatch.context() as killed:  # behind the last batch, before what waits was merged: nothing is left to compute
        killed.setattr("jaxdrl.evaluation.collect._State.finish", _killed)
        with pytest.raises(KeyboardInterrupt):
            collect(collected.Source(), collected.SPACES, tmp_path / "late", keep=["linear"], batch_size=8, seconds=-1.0)
    late = collect(collected.Source(), collected.SPACES, tmp_path / "late", keep=["linear"], batch_size=8)
    np.testing.assert_array_equal(late.moments["linear"].scatter, whole.moments["linear"].scatter)
    again = collected.Source()
    collect(again, collected.SPACES, tmp_path, keep=["linear"], batch_size=8)
    assert again.first is None  # nothing is computed twice


def test_what_does_not_fit_is_refused(tmp_path):
    collect(collected.Source(), collected.SPACES, tmp_path, description={"seed": 1, "guidance": 1.5})
    with pytest.raises(UserError, match=r"guidance 1\.5 there, 2\.0 wanted"):
        collect(collected.Source(), collected.SPACES, tmp_path, description={"seed": 1, "guidance": 2.0})
    with pytest.raises(UserError, match="specs: linear fingerprint a there, b wanted"):
        other = [Space(**vars(space) | {"spec": collected.spec(space.name, "b")}) for space in collected.SPACES[:1]]
        collect(collected.Source(), [*other, *collected.SPACES[1:]], tmp_path, description={"seed": 1, "guidance": 1.5})
    (tmp_path / "state.npz").write_bytes((tmp_path / "state.npz").read_bytes()[:-40])
    with pytest.raises(UserError, match="is damaged"):
        collect(collected.Source(), collected.SPACES, tmp_path, description={"seed": 1, "guidance": 1.5})
    apply = lambda params, images, labels: {"x": jnp.where(images[:, 0, 0] > 0.9, jnp.nan, 1.0)}  # noqa: E731
    space = Space(
        name="bad",
        spec=FeatureSpec(network="bad", fingerprint="", pooling="", size=0),
        network=Network(params=(), apply=apply),
        output="x",
    )
    worst = int(np.flatnonzero((IMAGES[:, 0, 0] / 127.5 - 1 > 0.9).any(axis=1))[0])
    with pytest.raises(UserError, match=f"the bad feature of image {worst} is not finite"):
        collect(collected.Source(), [space], None)
    with pytest.raises(UserError, match="0 images are too few"):
        collect(collected.Source(num=0), collected.SPACES, None)


def test_float64_survives_the_way_between_hosts():
    value = np.array([1 + 2**-52, np.pi])
    assert hosts.gather(value)[0].tobytes() == value.tobytes()
    np.testing.assert_array_equal(hosts.concatenate(value), value)


def _other(*arguments: str, devices: int) -> dict:
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.evaluation.collected", *arguments]
    root = Path(__file__).parents[2]
    running = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, check=False)
    assert running.returncode == 0, running.stderr
    return json.loads(running.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["8 devices", "2 processes of 4"])
def test_devices_and_processes_change_no_number(tmp_path, way):
    """Features from a network and from pixels, the distance and the labels: to 1e-9 those of one device. Generated images: to the bit."""
    one = collected.summary(tmp_path / "one")
    eight = way == "8 devices"
    found = [_other(str(tmp_path / "eight"), devices=8)] if eight else _two_processes(tmp_path / "two")
    for other in found:
        assert other["devices"] == 8 and one["devices"] == jax.device_count()
        assert other["labels"] == one["labels"] and other["generated"] == one["generated"]
        for key in ("distance", "spectrum", "mean", "trace", "features"):
            np.testing.assert_allclose(other[key], one[key], rtol=1e-9)


def _two_processes(folder: Path) -> list[dict]:
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    port = str(20000 + os.getpid() % 20000)
    root, running = Path(__file__).parents[2], []
    for process in ("0", "1"):
        command = [sys.executable, "-W", "ignore", "-m", "tests.evaluation.collected", str(folder), process, port]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=root))
    found = []
    for process in running:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        found.append(json.loads(out.splitlines()[-1]))
    return found
