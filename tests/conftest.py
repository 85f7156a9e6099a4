"""Shared settings: CPU only, a persistent compilation cache, and no logging noise."""

import fcntl
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jaxdrl-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Most of the time goes to the compiler, for programs that run once: without LLVM's optimisations it takes half.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import jax
import pytest

from jaxdrl import cli

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A finished run of the digits' tiny form, made once for all test processes, which only read it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    workdir = shared / "tiny_run"
    with (shared / "tiny_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "report" / "result.json").exists():
            traced = ["--config.runtime.profile.stage=posttrain", "--config.runtime.profile.first=1"]
            assert cli.main(["run", f"--config={ROOT}/configs/drl_digits.py:tiny", f"--workdir={workdir}", *traced]) == 0
    return workdir


@pytest.fixture(autouse=True)
def highest_precision():
    """Matmuls in full float32, wherever the tests run."""
    with jax.default_matmul_precision("highest"):
        yield
