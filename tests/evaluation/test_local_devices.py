"""Rows over all devices of a process: the same numbers, each device its share, the weights copied once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdrl.evaluation import local_devices
from tests.evaluation import rows

ROOT = Path(__file__).parent.parent.parent
SCALE = np.arange(len(rows.ROWS), dtype=np.float32)


@pytest.fixture(scope="module")
def eight():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "tests.evaluation.rows"]
    return json.loads(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout)


def test_every_device_has_its_share_and_the_numbers_are_those_of_one(eight):
    expected = SCALE[:, None] * (rows.ROWS @ rows.WEIGHTS["kernel"])
    np.testing.assert_allclose(local_devices.by_rows(rows.linear, rows.WEIGHTS)(rows.ROWS, SCALE), expected, rtol=1e-5, atol=1e-5)
    assert eight["devices"] == 8 and eight["parts"] == [5, 6]  # all five rows of the kernel, and 48 / 8 rows
    for found in (eight["rows"], eight["batched"]):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_samples_are_drawn_on_all_devices_and_are_those_of_one(eight):
    """Noise goes by a sample's number, so neither batches nor devices change it."""
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(eight["latents"], rows.drawn(), atol=1e-5)


def test_weights_travel_once(monkeypatch):
    placed, put = [], jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda tree, where: placed.append(len(jax.tree.leaves(tree))) or put(tree, where))
    call = local_devices.by_rows(rows.linear, rows.WEIGHTS)
    for _ in range(3):
        call(rows.ROWS, SCALE)
    assert placed == [1, 2, 2, 2]  # the kernel, then rows and scale of every call


def test_a_mesh_of_one_axis_has_every_device():
    assert local_devices.local_mesh().shape == {"data": jax.local_device_count()}
    (kernel,) = jax.tree.leaves(local_devices.replicated(rows.WEIGHTS, local_devices.local_mesh()))
    np.testing.assert_array_equal(kernel, rows.WEIGHTS["kernel"])
    assert kernel.sharding.is_fully_replicated
