"""The posttrain stage around its method: which weights it keeps, interrupted or not, and how it ends when rewards fail."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import config as jaxdrl_config
from jaxdrl import data, recipes
from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.errors import UserError
from jaxdrl.evaluation import collect as collect_module
from jaxdrl.evaluation import manifold
from jaxdrl.evaluation.collect import Network, Space, collect
from jaxdrl.evaluation.image_sources import Split
from jaxdrl.rewards import discriminator, jpeg
from jaxdrl.training import generation, held_out, mesh, models, workdir
from jaxdrl.training.context import Run
from jaxdrl.training.methods import scoring
from jaxdrl.training.metrics import MetricWriter, read_metrics
from jaxdrl.training.randomness import stage_key
from jaxdrl.training.stages import posttrain
from jaxdrl.weights import files

ROOT = Path(__file__).parents[2]


class _State(NamedTuple):
    refresh: jax.Array
    weights: jax.Array


def _method(script, broken=()):
    """A method whose weights are a number of each refresh; `script` gives a refresh's metrics, `broken` where it raises what."""
    left = dict(broken)

    def step(state, frozen, key):
        refresh = int(state.refresh) + 1
        if refresh in left:
            raise left.pop(refresh)
        weights = state.weights + jax.random.normal(jax.random.fold_in(key, refresh), (3,))
        plain = {"control_energy": 0.0, "reward_mean": float(refresh), "sample_spread": 1.0}
        return _State(state.refresh + 1, weights), {k: jnp.float32(v) for k, v in (plain | script.get(refresh, {})).items()}

    return SimpleNamespace(
        settings_from=lambda config: None,
        compile_step=lambda config, settings, devices: step,
        initial_state=lambda config, base: _State(jnp.int32(0), jnp.asarray(base["w"])),
        trained=lambda config, state: state.weights,
        weights=lambda config, tree, frozen: {"w": tree},
        gradient_steps=lambda state: int(state.refresh),
    )


def _config(refreshes=8, **guard):
    config = recipes.tiny(jaxdrl_config.default())
    config.posttrain.refreshes, config.runtime.checkpoint_seconds, config.runtime.progress_seconds = refreshes, 0.0, 100.0
    config.posttrain.guard.update({"spread": 0.5, "every": 0, "patience": 2} | guard)
    return config


def _place(folder, **trees):
    trees = {"pretrain/model": {"w": np.zeros(3, np.float32)}, "encoders/reward": {}, "discriminator/model": {}} | trees
    for name, tree in trees.items():
        files.save_tree(folder / f"{name}.safetensors", tree)
    return folder


def _run(config, folder):
    writer, devices = MetricWriter(folder), mesh.create_mesh()
    try:
        with jax.set_mesh(devices):
            return posttrain.run(Run(config=config, workdir=folder, mesh=devices, writer=writer))
    finally:
        writer.close()


def _kept(folder):
    return np.asarray(files.load_tree(folder / "posttrain/model.safetensors")["w"])


def _metrics(folder):
    return read_metrics(folder)


ALIKE, FINE = {"sample_spread": 0.1}, {}
SCRIPTS = {
    "stopped": ({3: ALIKE, 5: ALIKE, 6: ALIKE}, 4, 6),
    "bad at the end": ({8: ALIKE}, 7, 8),
    "never good": ({1: {"control_energy": 9.0}, 2: {"control_energy": 9.0}}, 0, 2),
    "good": ({}, 8, 8),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_interrupted_anywhere_the_last_good_weights_are_kept(script, tmp_path, monkeypatch, capsys):
    """Ctrl-C in every refresh, and behind the last: weights, metrics and result as in one go, to the bit."""
    metrics, kept, refreshes = SCRIPTS[script]
    config = _config(energy=5.0)
    monkeypatch.setattr(posttrain.methods, "of", lambda config: _method(metrics))
    whole = _run(config, _place(tmp_path / "whole"))
    said = capsys.readouterr().out
    assert (whole["kept_refresh"], whole["refreshes"]) == (kept, refreshes)
    where = "of the base" if kept == 0 else f"after refresh {kept},"
    assert (where in said) == (kept != refreshes) and bool(whole["stopped"]) == (script in ("stopped", "never good"))
    broken = {refresh: KeyboardInterrupt() for refresh in range(2, refreshes + 1)}
    method, cut = _method(metrics, broken), _place(tmp_path / "cut")
    monkeypatch.setattr(posttrain.methods, "of", lambda config: method)
    for _ in broken:
        with pytest.raises(KeyboardInterrupt):
            _run(config, cut)
    with monkeypatch.context() as late, pytest.raises(KeyboardInterrupt):  # the run has ended, its weights are not written
        late.setattr(posttrain.distributed, "save_tree", _interrupt)
        _run(config, cut)
    assert _run(config, cut) == whole
    np.testing.assert_array_equal(_kept(cut), _kept(tmp_path / "whole"))
    assert _metrics(cut) == _metrics(tmp_path / "whole")
    steps = np.cumsum([_normal(config, refresh) for refresh in range(1, kept + 1)], axis=0, dtype=np.float32)
    np.testing.assert_allclose(_kept(cut), steps[-1] if kept else np.zeros(3), rtol=1e-5)


def _interrupt(*arguments):
    raise KeyboardInterrupt


def _normal(config, refresh):
    key = posttrain.stage_key(config.seed, "posttrain")
    return np.asarray(jax.random.normal(jax.random.fold_in(key, refresh), (3,)))


def test_rewards_that_fail_end_the_run_and_the_same_command_goes_on(tmp_path, monkeypatch):
    config = _config()
    config.runtime.checkpoint_seconds = 1000.0  # no checkpoint but the one at the end
    monkeypatch.setattr(posttrain.methods, "of", lambda config: _method({}))
    whole = _run(config, _place(tmp_path / "whole"))
    method = _method({}, {5: scoring.RewardsFailed("posttrain: stopped before learning from refresh 5")})
    monkeypatch.setattr(posttrain.methods, "of", lambda config: method)
    cut = _place(tmp_path / "cut")
    with pytest.raises(UserError, match="before learning from refresh 5"):
        _run(config, cut)
    assert [path.name for path in (cut / "posttrain/checkpoints").iterdir() if path.is_dir()] == ["4"]
    assert _run(config, cut) == whole
    np.testing.assert_array_equal(_kept(cut), _kept(tmp_path / "whole"))
    assert _metrics(cut) == _metrics(tmp_path / "whole")


def test_held_out_images_decide_what_is_good(tmp_path, monkeypatch, capsys):
    """Looked at every third refresh: what has not been looked at is not kept; from the bad look at 6 on, each is."""
    looked = []

    class Looks:
        def __init__(self, run, stage, base):
            self.base = {"held_out_coverage": 0.8}

        def measure(self, params):
            looked.append(np.asarray(params["w"]))
            return {"held_out_coverage": 0.8 if len(looked) == 1 else 0.1}

    monkeypatch.setattr(posttrain.held_out, "HeldOut", Looks)
    monkeypatch.setattr(posttrain.methods, "of", lambda config: _method({}))
    found = _run(_config(every=3, coverage=0.2), _place(tmp_path))
    assert len(looked) == 3 and found["kept_refresh"] == 3 and found["refreshes"] == 7  # at 3, 6 and 7
    assert found["held_out_base"] == {"held_out_coverage": 0.8} and "reward hacking" in found["stopped"]
    np.testing.assert_array_equal(_kept(tmp_path), looked[0])
    assert [line["step"] for line in read_metrics(tmp_path) if "held_out_coverage" in line] == [3, 6, 7]
    assert "warning at refresh 6: reward hacking" in capsys.readouterr().out


def test_no_finite_reward_at_all_ends_the_run(tmp_path, monkeypatch):
    lost = {"reward_not_finite/a": 1.0, "missing_share/a": 1.0, "reward_not_finite/b": 0.0, "missing_share/b": 1.0}
    monkeypatch.setattr(posttrain.methods, "of", lambda config: _method({2: lost}))
    with pytest.raises(UserError, match=r"no reward has a finite value at refresh 2 \(a\)"):
        _run(_config(), _place(tmp_path))
    monkeypatch.setattr(posttrain.methods, "of", lambda config: _method({2: lost | {"missing_share/b": 0.5}}))
    assert _run(_config(), _place(tmp_path / "other"))["refreshes"] == 8


def test_patience_with_rewards_may_change_between_two_calls(tmp_path):
    config = _config()
    with config.unlocked():
        config.posttrain.rewards = {"far": {"name": "remote", "url": "http://a", "scale": 1.0}}
    workdir.open_workdir(tmp_path, config)
    config.posttrain.host.update(timeout_seconds=5.0, isolate=True)
    config.posttrain.rewards.far.url = "http://b"  # the server has moved
    workdir.open_workdir(tmp_path, config)
    config.posttrain.rewards.far.scale = 2.0
    with pytest.raises(UserError, match=r"config\.posttrain\.rewards\.far\.scale"):
        workdir.open_workdir(tmp_path, config)
    config.posttrain.rewards.far.scale = 1.0
    config.posttrain.host.overlap = True
    with pytest.raises(UserError, match=r"config\.posttrain\.host\.overlap"):
        workdir.open_workdir(tmp_path, config)
    config.posttrain.host.overlap = False
    config.posttrain.guard.patience += 1
    with pytest.raises(UserError, match=r"config\.posttrain\.guard\.patience"):
        workdir.open_workdir(tmp_path, config)


def _random(network, seed):
    params = network.init(jax.random.key(seed))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(seed + 1), p.shape), params)


def _prepared(config, folder):
    data.prepare(config.data, folder / "data")
    head = discriminator.init(jax.random.key(3), config.encoders.reward.feature_dim, config.data.num_classes, width=16)
    encoders = {f"encoders/{which}": _random(models.encoder(config, which), 5) for which in ("reward", "judge")}
    base = _random(models.backbone(config), 0)
    return _place(folder, **{"pretrain/model": base, "discriminator/model": head}, **encoders), base


def _red(config, workdir, which):
    """In place of the judge: one pixel's red, in which a random generator's images lie among the real ones."""
    network = Network(params=(), apply=lambda params, images, labels: {"red": images[:, 4, 4, :1]})
    return Space(name=which, spec=FeatureSpec(network="red", fingerprint="", pooling="", size=0), network=network, output="red")


def test_held_out_numbers(tmp_path, monkeypatch):
    config = recipes.tiny(jaxdrl_config.default())
    config.data.update(name="synthetic", image_shape=(8, 8, 3), examples_per_class=12)
    config.posttrain.guard.update(every=1, samples=30, real=12)
    folder, base = _prepared(config, tmp_path)
    devices, red = mesh.create_mesh(), _red(config, folder, "judge")
    monkeypatch.setattr(held_out.measuring, "encoder_space", lambda config, workdir, which: red)
    run = Run(config=config, workdir=folder, mesh=devices, writer=MetricWriter(folder))
    with jax.set_mesh(devices):
        watch = held_out.HeldOut(run, "posttrain", base)
        again = watch.measure(base)
        assert again == watch.base and set(again) == {
            "held_out_coverage",
            *(f"held_out_drift/{name}" for name in held_out.drift.NAMES),
        }
        assert all(again[name] == 0 for name in again if "drift" in name)
        brighter, compiled = jax.tree.map(lambda p: 3 * p, base), []
        jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
        moved = watch.measure(brighter)
        jax.monitoring.clear_event_listeners()
        assert not [event for event in compiled if "backend_compile" in event]
        with monkeypatch.context() as kept:
            kept.setattr(collect_module, "_advance", None)  # nothing is computed again
            assert held_out.HeldOut(run, "posttrain", base).base == watch.base
        # Independently: the same images, the suite's coverage, and their own moments.
        seed = held_out.stage_seed(config.seed, "posttrain/held_out")
        drawn = [generation.Samples(config, p, num=30, seed=seed, num_steps=4) for p in (base, brighter)]
        spaces = watch._spaces
        old, new = (collect(source, spaces, None, keep=["judge", "drift"], batch_size=30).features for source in drawn)
        split = Split(data.open_split(config.data, folder / "data", "validation"), 12)
        real = collect(split, spaces, None, keep=["judge"], batch_size=30)
    assert real.count == 12
    expected = manifold.measure(real.features["judge"], new["judge"]).coverage
    assert (
        moved["held_out_coverage"] == expected
        and watch.base["held_out_coverage"] == manifold.measure(real.features["judge"], old["judge"]).coverage
    )
    drift = (new["drift"].mean(axis=0) - old["drift"].mean(axis=0)) / old["drift"].std(axis=0)
    for name, value in zip(held_out.drift.NAMES, drift, strict=True):
        assert moved[f"held_out_drift/{name}"] == pytest.approx(value, rel=1e-3, abs=1e-5)
    assert max(abs(drift)) > 0.01 and 0 < moved["held_out_coverage"] < 1 and 0 < watch.base["held_out_coverage"] < 1
    config.posttrain.guard.real = 4
    with pytest.raises(UserError, match="coverage of 4 validation images"):
        held_out.HeldOut(run, "posttrain", base)


def _nft():
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs/nft_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    config.posttrain.rewards = {"jpeg_compressibility": {}}
    config.posttrain.guard.every = 0
    config.posttrain.host.update(retries=1, backoff_seconds=0.0, patience=2)
    return config


@pytest.mark.slow
def test_a_reward_that_dies_is_repaired_and_nothing_is_lost(tmp_path, monkeypatch):
    """Alone, so that the run stops before it learns: the weights end as if nothing had happened."""
    config, sizes, left = _nft(), jpeg.sizes, []

    def breaks(images, **options):
        if left and left.pop(0):
            raise ConnectionError("refused")
        return sizes(images, **options)

    monkeypatch.setattr(jpeg, "sizes", breaks)
    _prepared(config, tmp_path / "whole"), _prepared(config, tmp_path / "cut")
    whole = _run(config, tmp_path / "whole")
    left += [False, True, False, True, True]  # the second refresh's retry succeeds; the third has none
    with pytest.raises(
        UserError, match=r"before learning from refresh 3: reward jpeg_compressibility .*ConnectionError: refused"
    ):
        _run(config, tmp_path / "cut")
    assert _run(config, tmp_path / "cut") == whole and not left
    ours, theirs = (files.load_tree(tmp_path / part / "posttrain/model.safetensors") for part in ("whole", "cut"))
    assert files.fingerprint(ours) == files.fingerprint(theirs)
    assert _metrics(tmp_path / "whole") == _metrics(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sum", "gdpo", "uniform", "marble"])
def test_a_masked_reward_leaves_the_others_to_learn_from(rule, tmp_path, monkeypatch, capsys):
    """One of two fails in refreshes 1 and 2, and gives some values that are not finite in 3; with patience 2 it would stop."""
    config, sizes, calls = _nft(), jpeg.sizes, []
    with config.unlocked():
        config.posttrain.rewards = {"jpeg_compressibility": {}, "symmetry": {}}
    config.posttrain.host.update(retries=0, patience=3)
    config.posttrain.balance.rule = rule

    def breaks(images, **options):
        calls.append(len(images))
        if len(calls) <= 2:
            raise ConnectionError("refused")
        return np.where(np.arange(len(images)) < 5, np.inf, sizes(images, **options))

    monkeypatch.setattr(jpeg, "sizes", breaks)
    _, base = _prepared(config, tmp_path)
    _run(config, tmp_path)
    lines = _metrics(tmp_path)
    assert [line["reward_failures/jpeg_compressibility"] for line in lines] == [1, 1, 0]
    assert [line["reward_not_finite/jpeg_compressibility"] for line in lines] == [0, 0, 0.25]
    assert all(line["reward_not_finite/symmetry"] == 0 for line in lines)
    assert capsys.readouterr().out.count("reward jpeg_compressibility failed") == 2
    assert all(np.isfinite(list(value for key, value in line.items() if key != "stage")).all() for line in lines), json.dumps(
        lines
    )
    tuned = files.load_tree(tmp_path / "posttrain/model.safetensors")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tuned))
    assert files.fingerprint(tuned) != files.fingerprint(base)
    calls.clear()
    config.posttrain.host.patience = 2
    (tmp_path / "again").mkdir()
    _prepared(config, tmp_path / "again")
    with pytest.raises(
        UserError, match=r"before learning from refresh 2: reward jpeg_compressibility failed, in 2 refreshes in a row"
    ):
        _run(config, tmp_path / "again")
    with pytest.raises(UserError, match="before learning from refresh 2"):  # it still fails: told so at once
        calls.pop()
        _run(config, tmp_path / "again")


def _draws(config, refreshes, key=None):
    """What the scripted method has learnt after some refreshes, by hand."""
    key = stage_key(config.seed, "posttrain") if key is None else key
    return sum(jax.random.normal(jax.random.fold_in(key, refresh), (3,)) for refresh in refreshes)


BAD = {"reward_mean": float("nan"), "gradient_norm": 1.0}


def test_a_bad_refresh_is_skipped_as_if_it_had_not_been(tmp_path, monkeypatch, capsys):
    config = _config(refreshes=6)
    config.runtime.on_bad_step = "skip"
    monkeypatch.setattr(posttrain.methods, "of", lambda config: _method({3: BAD}))
    result = _run(config, _place(tmp_path))
    assert result["refreshes"] == 6 and result["kept_refresh"] == 6
    np.testing.assert_allclose(_kept(tmp_path), _draws(config, (1, 2, 4, 5, 6)), rtol=1e-6)
    lines = [(line["stage"], line["step"]) for line in read_metrics(tmp_path)]
    assert ("posttrain", 3) not in lines and ("posttrain.bad", 3) in lines and ("posttrain", 4) in lines
    assert "step 3: the loss is nan" in capsys.readouterr().out
    kept = np.load(tmp_path / "posttrain/bad_step_3.npz")
    np.testing.assert_array_equal(kept["key"], jax.random.key_data(stage_key(config.seed, "posttrain")))
    assert kept["refresh"] == 2 and np.isnan(kept["reward_mean"])


def test_a_bad_refresh_is_rolled_back_and_drawn_anew(tmp_path, monkeypatch):
    config, script = _config(refreshes=5), {4: BAD}
    config.runtime.on_bad_step = "rollback"
    made = _method(script)
    step = made.compile_step(config, None, None)
    monkeypatch.setattr(
        made, "compile_step", lambda *_: lambda *given: (step(*given), script.pop(int(given[0].refresh) + 1, 0))[0]
    )
    monkeypatch.setattr(posttrain.methods, "of", lambda config: made)
    assert _run(config, _place(tmp_path))["refreshes"] == 5
    key = stage_key(config.seed, "posttrain")
    expected = _draws(config, (1, 2, 3)) + _draws(config, (4, 5), jax.random.fold_in(key, 2**32 - 1))
    np.testing.assert_allclose(_kept(tmp_path), expected, rtol=1e-6)
    assert [line["step"] for line in read_metrics(tmp_path) if line["stage"] == "posttrain"] == [1, 2, 3, 4, 5]


def test_a_bad_refresh_stops_the_run_and_the_command_goes_on_with_another_policy(tmp_path, monkeypatch):
    config = _config(refreshes=6)
    monkeypatch.setattr(posttrain.methods, "of", lambda config: _method({3: BAD}))
    with pytest.raises(UserError, match="posttrain: step 3: the loss is nan"):
        _run(config, _place(tmp_path))
    config.runtime.on_bad_step = "skip"
    _run(config, tmp_path)
    np.testing.assert_allclose(_kept(tmp_path), _draws(config, (1, 2, 4, 5, 6)), rtol=1e-6)
