"""Rewards on the host within a refresh: masked, counted, told of, and at last a clean stop; on one device, on eight, in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.config import default
from jaxdrl.errors import UserError
from jaxdrl.training import mesh
from jaxdrl.training.methods import common, scoring
from tests.training import scored

ROOT = Path(__file__).parents[2]


def _host(config, *applies, classes=None):
    return scoring.HostRewards(config, scored.rewards(*applies, classes=classes), mesh.create_mesh())


def _raises(images, condition):
    raise ConnectionError("refused")


def test_columns_failures_and_warnings(capsys):
    config = scored.config("r0", "r1", "r2")
    host = _host(config, scored.mean, None, _raises)
    assert host.columns == [0, 2]
    images, labels = scored.batch()
    found, errors = host.score(jnp.asarray(images), jnp.asarray(labels))
    np.testing.assert_allclose(found.values[:, 0], images.mean(axis=(1, 2, 3)), rtol=1e-6)
    assert np.isnan(found.values[:, 1]).all() and found.failed.tolist() == [False, True]
    assert errors == ["", "ConnectionError: refused"]
    host.judge(errors, np.array([0, 0, 1]), 8)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "warning at refresh 8: reward r2 failed in 1 attempts (ConnectionError: refused)" in said
    with pytest.raises(scoring.RewardsFailed, match=r"before learning from refresh 9: reward r2 failed, in 3 .*ConnectionError"):
        host.judge(errors, np.array([0, 0, 2]), 9)
    host.judge(["", ""], np.array([9, 9, 9]), 9)
    assert capsys.readouterr().out == ""


def test_where_nothing_is_left_the_run_stops_at_once():
    config = scored.config("r0", "r1")
    host = _host(config, _raises, _raises)
    with pytest.raises(UserError, match=r"reward r0 failed, and there is no other that did not"):
        host.judge(["no", "no"], np.zeros(2, int), 1)
    host.judge(["no", ""], np.zeros(2, int), 1)
    mixed = _host(scored.config("r0", "r1"), _raises, None)
    mixed.judge(["no"], np.zeros(2, int), 1)  # the traced one is left


def test_values_that_are_not_finite_are_masked_and_counted():
    chosen = scored.rewards(scored.mean, None, _raises, scored.mean, classes=(0, 1))
    labels = jnp.array([0, 0, 1, 2])
    nan, inf = np.nan, np.inf
    values = jnp.array([[1, nan, nan, 1], [inf, nan, nan, nan], [2, nan, nan, nan], [nan, nan, nan, 1.0]])
    failed = jnp.array([False, False, True, False])
    kept, lost, metrics = jax.jit(lambda values, labels: scoring.masked(values, labels, chosen, failed))(values, labels)
    np.testing.assert_array_equal(kept[:, 0], [1, nan, 2, nan])
    assert lost.tolist() == [False, True, True, False]  # of what failed for all, nothing is lost beside the others
    shares = [metrics[f"reward_not_finite/r{i}"] for i in range(4)]
    np.testing.assert_allclose(shares, [1 / 3, 1, 0, 2 / 3], rtol=1e-6)
    assert {name: float(metrics[name]) for name in metrics if "failures" in name} == {
        "reward_failures/r0": 0,
        "reward_failures/r2": 1,
        "reward_failures/r3": 0,
    }


def test_a_selective_reward_says_by_nan_that_it_does_not_apply():
    plain, chosen = (scored.rewards(scored.mean, selective=selective)[0] for selective in (False, True))
    values, labels = jnp.array([[1.0], [np.nan], [np.inf], [np.nan]]), jnp.zeros(4, jnp.int32)
    for reward, lost, share in ((plain, [False, True, True, True], 3 / 4), (chosen, [False, False, True, False], 1 / 2)):
        kept, found, metrics = scoring.masked(values, labels, [reward], jnp.array([False]))
        np.testing.assert_array_equal(kept[:, 0], [1, np.nan, np.nan, np.nan])
        assert found.tolist() == lost and metrics["reward_not_finite/r0"] == pytest.approx(share)


def test_a_remote_reward_has_the_time_of_an_attempt():
    config = scored.config("far", "remote", "jpeg_compressibility")
    config.posttrain.host.timeout_seconds = 20.0
    with config.unlocked():
        config.posttrain.rewards.far = {"name": "remote", "url": "http://a", "prompts": ["x", "y"]}
        config.posttrain.rewards.remote = {"url": "http://a", "timeout_seconds": 3.0}
    given = config.posttrain.rewards.to_dict()
    fields = {label: scoring.fields_of(config, label, given[label]) for label in given}
    assert fields["far"] == {
        "name": "remote",
        "url": "http://a",
        "prompts": ("x", "y"),
        "timeout_seconds": 19.0,
    }
    assert fields["remote"]["timeout_seconds"] == 3.0 and fields["jpeg_compressibility"] == {}
    assert [reward.name for reward in common.rewards(config)] == ["far", "jpeg_compressibility", "remote"]
    config.posttrain.rewards.far.url = "ftp://a"
    with pytest.raises(UserError, match=r"^config\.posttrain\.rewards\.far: url: 'ftp://a' must be http"):
        common.rewards(config)


def test_settings_are_told():
    config = default()
    for key, value in (("timeout_seconds", 0.0), ("retries", -1), ("patience", 0)):
        with config.unlocked():
            changed = config.copy_and_resolve_references()
        changed.posttrain.host[key] = value
        with pytest.raises(UserError, match=rf"config\.posttrain\.host.*{key}"):
            scoring.settings_from(changed)
    assert scoring.settings_from(config).timeout_seconds == 60.0


def _start(devices, *arguments):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.scored", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["8 devices", "2 processes of 4"])
def test_images_on_many_devices_and_processes(way):
    """Each process scores its own images, each once; what fails on one has failed on all, with the same words."""
    port = str(20000 + os.getpid() % 20000)
    running = [_start(8)] if way == "8 devices" else [_start(4, process, port) for process in ("0", "1")]
    expected = scored.batch()[0].mean(axis=(1, 2, 3))
    for process in running:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        found = json.loads(out.splitlines()[-1])
        assert found["devices"] == 8 and found["asked"] == len(expected) // len(running)
        for name in ("values", "whole"):
            np.testing.assert_allclose(found[name], expected, rtol=1e-6)
        assert found["errors"] == ["", "ConnectionError: refused by process " + str(len(running) - 1)]
        assert found["failed"] == [False, True] and found["masked"] and found["replicated"]
