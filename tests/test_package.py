"""The package as a whole: light to import, every recipe loads, the ways in agree."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdrl import config as jaxdrl_config
from jaxdrl.errors import UserError

ROOT = Path(__file__).parent.parent
HEAVY = ("tensorflow", "torch", "transformers", "tensorflow_datasets", "grain", "sklearn", "skimage", "orbax", "clu", "PIL")


def test_import_is_light():
    modules = "jaxdrl, jaxdrl.config, jaxdrl.flow.ode, jaxdrl.backbones, jaxdrl.encoders, jaxdrl.algorithms.adjoint_matching, "
    modules += "jaxdrl.rewards, jaxdrl.training.lora"
    code = f"import sys, {modules}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_python_m_jaxdrl():
    found = subprocess.run([sys.executable, "-m", "jaxdrl", "--version"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "0.1.0"


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_recipes(path):
    module = _load(path)
    full, tiny = module.get_config(), module.get_config("tiny")
    assert full.name == path.stem and tiny.name == f"{path.stem}_tiny"
    assert "Command:" in module.__doc__ and "Source:" in module.__doc__ and "Hardware:" in module.__doc__
    for config in (full, tiny):
        keys = set(_keys(config.to_dict()))
        assert keys == set(_keys(jaxdrl_config.default().to_dict()))
    with pytest.raises(AttributeError):
        full.posttrain.lambda_ = 3.0
    with pytest.raises(TypeError):
        full.posttrain.refreshes = "many"
    with pytest.raises(UserError, match="variant"):
        module.get_config("huge")


def _keys(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict) and key not in ("fields", "rewards", "utility"):  # which take any name
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
