"""The spectral recipes differ in nothing but the gate, and `benchmarks/spectral.py` and `spectral_gates.py` count what they say."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdrl import cli, recipes
from jaxdrl import config as jaxdrl_config
from jaxdrl.backbones import spectral
from jaxdrl.errors import UserError
from jaxdrl.training import loading, models
from tests.test_package import _load

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").glob("spectral_*.py"))


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_gates_are_those_of_the_backbone():
    assert recipes.GATES == spectral.MODES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_gates_differ_in_the_gate_alone(path):
    recipe = _load(path)
    plain = recipe.get_config("none")
    for small in ("", ",tiny"):
        configs = {gate: recipe.get_config(gate + small).to_dict() for gate in recipes.GATES}
        assert [config["backbone"].pop("spectral") for config in configs.values()] == list(recipes.GATES)
        assert all(config == configs["none"] for config in configs.values())
    assert recipe.get_config().backbone.spectral == recipe.get_config("tiny").backbone.spectral == "timestep"
    assert plain.pretrain.from_scratch and plain.sampler.method == "euler" and not plain.evaluate.best_guidance
    for wrong in ("timestep,none", "fourier", "tiny,fourier"):
        with pytest.raises(UserError, match=r"variant '.*' is unknown; use one of none, timestep, timestep\+label, static"):
            recipe.get_config(wrong)


def test_initial_weights_of_a_seed_are_the_same_but_for_the_gate():
    config = recipes.tiny(recipes.small(jaxdrl_config.default()))
    trees = {}
    for gate in ("none", "timestep"):
        config.backbone.spectral = gate
        flat = jax.tree_util.tree_leaves_with_path(models.backbone(config).init(jax.random.key(3)))
        trees[gate] = {jax.tree_util.keystr(path): leaf for path, leaf in flat}
    assert {path for path in trees["timestep"] if "freq_gate" in path} == set(trees["timestep"]) - set(trees["none"]) != set()
    for path, leaf in trees["none"].items():
        np.testing.assert_array_equal(leaf, trees["timestep"][path])


def test_imagenet_100_has_a_hundred_classes():
    names = _load(ROOT / "configs" / "spectral_imagenet100.py").get_config().data.classes
    assert len(set(names)) == 100 and all(name.startswith("n") and len(name) == 9 for name in names)


def test_adams_second_decay_is_the_configs():
    from jaxdrl.training.stages import pretrain

    config = recipes.tiny(recipes.small(jaxdrl_config.default()))
    config.pretrain.update(adam_b2=0.5, warmup_steps=0, grad_clip=0.0)
    optimizer = pretrain._optimizer(config)
    state = optimizer.init({"w": jnp.ones(1)})
    _, state = optimizer.update({"w": jnp.full(1, 2.0)}, state, {"w": jnp.ones(1)})
    assert [float(leaf[0]) for leaf in jax.tree.leaves(state) if leaf.shape == (1,)] == pytest.approx([0.2, 2.0])


def test_paired_differences_and_their_interval(benchmark):
    paired = benchmark("spectral").paired
    plain, gated = [3.0, 4.0, 5.0, 7.0], [2.5, 3.9, 4.1, 6.8]
    mean, half = paired(plain, gated)
    expected = scipy.stats.ttest_rel(gated, plain).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))
    assert paired([1.0], [0.5]) == (-0.5, float("inf"))


def test_the_table_says_means_spread_and_overhead(benchmark):
    module = benchmark("spectral")
    runs = {
        "none": [{key: 10.0 + seed for key in module.METRICS} for seed in range(3)],
        "timestep": [{key: 9.0 + seed for key in module.METRICS} for seed in range(3)],
    }
    costs = {"none": {"parameters": 1000, "operations": 200.0}, "timestep": {"parameters": 1010, "operations": 201.0}}
    lines = module.table(runs, costs)
    assert "10.000 ± 1.000" in lines[3] and lines[3].endswith("| +1.00 % | +0.50 % |")
    assert lines[-1].startswith("| timestep | -1.000 ± 0.000 (-9.1 %)")
    for run in runs["none"]:  # which a bad generator's precision is
        run["precision"] = 0.0
    assert "| +10.000 ± 2.484 |" in module.table(runs, costs)[-1]


def test_energies_of_bands_are_those_of_the_residual_and_what_the_gate_makes_of_it(benchmark):
    """With static gates of one block the network's residual is r: the bands' sum is r, and r' is (1 + g_low) low + (1 + g_high) high."""
    module = benchmark("spectral_gates")
    config = recipes.tiny(recipes.small(jaxdrl_config.default()))
    config.backbone.update(spectral="static", gate_scale=1.0, depth=2)
    network = models.backbone(config)
    params = loading.drawn(network.init, 3)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    t, labels = jnp.full(3, 0.3), jnp.arange(3)
    found = np.array(module.energies_at(config, params, x, t, labels))
    assert found.shape == (2, 2, 2) and (found > 0).all()
    silent = jax.tree_util.tree_map_with_path(lambda path, leaf: 0 * leaf if "freq_gate" in str(path) else leaf, params)
    still = np.array(module.energies_at(config, silent, x, t, labels))
    # Gates of 0 change nothing, and the first block's residual does not hang on its gate.
    np.testing.assert_allclose(still[..., 0], still[..., 1], rtol=1e-5)
    np.testing.assert_allclose(found[0, :, 0], still[0, :, 0], rtol=1e-5)
    assert np.abs(found[0, :, 1] / found[0, :, 0] - 1).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["spectral_digits", "spectral_patches"])
def test_the_whole_experiment_in_small(recipe, tmp_path):
    def run(script, *arguments):
        command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), f"--out={tmp_path}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    drl = ["--drl=timestep"] if recipe == "spectral_digits" else []
    said = run("spectral", f"--recipe={recipe}", "--seeds=0,1", "--gates=none,timestep", "--tiny", *drl)
    assert "| timestep |" in said and ("| timestep + DRL |" in said) == bool(drl)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [len(runs) for runs in summary["runs"].values()] == [2] * (2 + len(drl))
    assert summary["cost"]["timestep"]["parameters"] > summary["cost"]["none"]["parameters"]
    said = run("spectral_gates", "--gates=timestep", "--sweep=0,1", "--images=8")
    assert "timestep, gates x 0.0" in said and "<svg" in (tmp_path / "gates.html").read_text()
    sweep = json.loads((tmp_path / "gates.json").read_text())["timestep"]["sweep"]
    assert sweep["1.0"] == summary["runs"]["timestep"] and sweep["0.0"] != sweep["1.0"]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_tiny_forms_run_to_the_report(path, tmp_path, capsys):
    assert cli.main(["run", f"--config={path}:tiny", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "+ DRL" in capsys.readouterr().out
    assert "Gate of low frequencies" in (tmp_path / "run" / "report.html").read_text()
