"""The tables of `docs/memory.md` are what `benchmarks/memory.py` prints."""

import importlib.util
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("memory", ROOT / "benchmarks" / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_is_on_the_page(memory):
    page = (ROOT / "docs" / "memory.md").read_text().splitlines()
    lines = [*memory.weights(), *memory.buffers()]
    assert len(lines) == 13 and not [line for line in lines if line not in page]


def test_bytes_by_hand(memory):
    tree = {"blocks_0": {"mlp": {"fc1": {"kernel": jax.ShapeDtypeStruct((256, 1024), "float32")}}}}
    assert memory.held(tree, {}) == 256 * 1024 * 4
    assert memory.held(tree, {"fsdp": 4, "tensor": 2}) == 256 * 1024 * 4 / 8
    assert memory.held(tree, {"fsdp": 4}, halved=True) == 256 * 1024 * 2 / 4
