"""What ships in the package: small, whole, and what the recipes expect."""

import importlib.util
from pathlib import Path

import jax
import pytest

from jaxdrl.errors import UserError
from jaxdrl.training import models
from jaxdrl.training.stages import pretrain
from jaxdrl.weights import assets, files

ROOT = Path(__file__).parent.parent


def _config(recipe):
    spec = importlib.util.spec_from_file_location(recipe, ROOT / "configs" / f"{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("recipe", ["drl_digits", "drl_patches"])
def test_shipped_weights_fit_the_recipe_and_their_fingerprints(recipe):
    config = _config(recipe)
    assert assets.available(recipe)
    state = files.match(pretrain.initial_state(config), assets.load(recipe, "state"), "state")
    assert int(state.step) == config.pretrain.steps
    for which in ("reward", "judge"):
        template = jax.eval_shape(models.encoder(config, which).init, jax.random.key(0))
        files.match(template, assets.load(recipe, which), which)


def test_together_they_are_under_two_megabytes():
    sizes = [path.stat().st_size for path in (ROOT / "jaxdrl" / "assets").rglob("*") if path.is_file()]
    assert sum(sizes) < 2_000_000


def test_damage_and_absence_are_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="from_scratch=true"):
        assets.load("drl_unknown", "state")
    assert not assets.available("drl_unknown") and assets.fingerprints("drl_unknown") == {}
    tree = assets.load("drl_digits", "reward")
    folder = tmp_path / "drl_digits"
    files.save_tree(folder / "reward.safetensors", jax.tree.map(lambda leaf: leaf + 1e-6, tree))
    (folder / "fingerprints.json").write_bytes((ROOT / "jaxdrl/assets/drl_digits/fingerprints.json").read_bytes())
    monkeypatch.setattr(assets, "_folder", lambda recipe: tmp_path / recipe)
    with pytest.raises(UserError, match="damaged"):
        assets.load("drl_digits", "reward")
