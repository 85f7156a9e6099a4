"""The compiled DRL step on eight simulated devices gives the numbers of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdrl.errors import UserError
from jaxdrl.training import mesh

ROOT = Path(__file__).parent.parent.parent


def _step(*sizes):
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "tests.training.sharded_step", *map(str, sizes)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one_device():
    return _step("one")


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_same_numbers_on_any_mesh(sizes, one_device):
    found = _step(*sizes)
    assert (found["sharded"] > 0) == (sizes[1] > 1)
    # Adam divides by the gradient's size: where it is nearly 0, rounding becomes a few per cent of a step of 1e-3.
    np.testing.assert_allclose(found["params"], one_device["params"], atol=5e-5)
    assert found["reward"] == pytest.approx(one_device["reward"], abs=1e-4)


@pytest.mark.slow
def test_several_rewards_give_the_same_numbers_on_any_mesh():
    one, found = _step("one", "marble"), _step(2, 4, 1, "marble")
    np.testing.assert_allclose(found["params"], one["params"], atol=5e-5)
    assert found["reward"] == pytest.approx(one["reward"], abs=1e-4)


def test_mesh_sizes_must_fit():
    assert mesh.create_mesh().shape == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
    with pytest.raises(UserError, match=r"config\.mesh"):
        mesh.create_mesh(3, 5, 7)
