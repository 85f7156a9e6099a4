"""Adjoint Matching as a method of the posttrain stage: several rewards, adapters, micro-batches, and errors that name the key."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxdrl.errors import UserError
from jaxdrl.report import page
from jaxdrl.rewards import discriminator
from jaxdrl.training import compute, mesh, methods, models
from jaxdrl.training.checkpoints import Checkpoints
from jaxdrl.training.methods import adjoint, common
from jaxdrl.training.stages import posttrain

ROOT = Path(__file__).parent.parent.parent
THREE = {"discriminator": {}, "sharpness": {"scale": 3.0}, "width": {"name": "stroke_width", "classes": (0, 1, 2)}}


def _config(rewards=None, rule="sum", **changes):
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / "drl_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    config.posttrain.rewards = ml_collections.ConfigDict(rewards or {"discriminator": {}})
    config.posttrain.balance.rule = rule
    config.posttrain.update(learning_rate=1e-3, warmup_steps=0, epochs=1)
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (config.posttrain[part] if part else config.posttrain)[name] = value
    return config


@pytest.fixture(scope="module")
def frozen():
    config = _config()
    network = models.backbone(config)
    base = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape), network.init(jax.random.key(0)))
    head = discriminator.init(jax.random.key(3), 16, 10, width=8)
    head = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(4), p.shape), head)
    return common.Frozen(base, {}, models.encoder(config, "reward").init(jax.random.key(2)), head)


def _refresh(config, frozen):
    devices = mesh.create_mesh()
    with jax.set_mesh(devices):
        method = methods.of(config)
        step = method.compile_step(config, method.settings_from(config), devices)
        current, metrics = step(method.initial_state(config, frozen.base), frozen, jax.random.key(5))
    return current, jax.device_get(metrics)


def _distance(one, two):
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


def test_phases_have_names_in_the_program(frozen):
    """By which traces show them."""
    config, devices = _config(), mesh.create_mesh()
    with jax.set_mesh(devices):
        step = adjoint.compile_step(config, adjoint.settings_from(config), devices)
        text = step.lower(adjoint.initial_state(config, frozen.base), frozen, jax.random.key(5)).as_text(debug_info=True)
    for phase in ("rollout", "reward", "adjoint", "update"):  # pixels are not decoded
        assert f'"{phase}/' in text or f"({phase})/" in text, phase  # what is differentiated is called jvp(reward)


@pytest.mark.slow
def test_three_rewards_balanced_by_marble(frozen, tmp_path):
    """One of them for three classes only; metrics have the names that the report draws, and the state goes through a checkpoint."""
    config = _config(THREE, "marble", balance__gram="sketch", subset_reduction="mean", batch_size=20)
    current, metrics = _refresh(config, frozen)
    assert int(current.refresh) == adjoint.gradient_steps(current) == 1
    assert 1e-5 < _distance(current.model.params, frozen.base) < 1e-2
    alpha = np.array([metrics[f"alpha/{name}"] for name in THREE])
    assert alpha.sum() == pytest.approx(1, abs=1e-5) and (alpha >= 0).all()
    for name in THREE:
        assert metrics[f"gram_norm/{name}"] > 0 and -1 <= metrics[f"cosine/{name}"] <= 1 and metrics[f"reward_std/{name}"] > 0
    assert 0 <= metrics["conflict_rate"] <= 1 and metrics["threshold"] > 0 and metrics["threshold"] == current.threshold
    assert metrics["missing_share/width"] == pytest.approx(0.7) and 0 < metrics["reward_mean/width"] < 8
    parts = [(1 - metrics[f"missing_share/{name}"]) * metrics[f"reward_mean/{name}"] for name in THREE]
    assert metrics["reward_mean"] == pytest.approx(sum(parts) / 3, rel=1e-4)
    drawn = "".join(page._curves([posttrain.scalars(metrics) | {"stage": "posttrain", "step": i} for i in (1, 2)]))
    for title in (
        "Reward: width",
        "Weights of the rewards",
        "Rewards in conflict",
        "gradient and the update",
        "Adjoint norm by time",
    ):
        assert title in drawn
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, current)
        checkpoints.wait()
        _, restored = checkpoints.restore(adjoint.initial_state(config, frozen.base))
    assert jax.tree.structure(restored) == jax.tree.structure(current)
    assert _distance(restored, current) == 0 and float(current.balance.gram[0, 0]) > 0


@pytest.mark.slow
def test_adapters_in_micro_batches(frozen):
    """Rewards are summed, adapters alone are trained, and the tuned model is the base with them."""
    config = _config(THREE, balance__weights=(1.0, 2.0, 0.5), micro_batches=5, lora__rank=2, lora__alpha=4.0)
    current, metrics = _refresh(config, frozen)
    assert sum(leaf.size for leaf in jax.tree.leaves(current.model.params)) < 2000 and current.balance is None
    merged = adjoint.weights(config, adjoint.trained(config, current), frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(frozen.base)
    changed = [_distance(a, b) > 0 for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(frozen.base), strict=True)]
    assert any(changed) and not all(changed)
    parts = [(1 - metrics[f"missing_share/{name}"]) * metrics[f"reward_mean/{name}"] for name in THREE]
    assert metrics["reward_mean"] == pytest.approx(np.dot(parts, (1.0, 2.0, 0.5)), rel=1e-4)
    assert current.threshold > 0 and 0 <= metrics["masked_share"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sum", "uniform", "exact", "amortised", "sketch"])
def test_micro_batches_change_no_number(frozen, rule):
    marble = rule in ("exact", "amortised", "sketch")
    changes = {"rollout_batch": 0, "outlier_quantile": 0.75}
    if marble:
        # A sketch in parts looks at the first alone: at every step one part's Gram matrix, which is another estimate.
        changes |= {"balance__gram": rule, "balance__average": 0.0}
    plain, one = _refresh(_config(THREE, "marble" if marble else rule, **changes), frozen)
    split, two = _refresh(_config(THREE, "marble" if marble else rule, micro_batches=5, **changes), frozen)
    assert one["masked_share"] == pytest.approx(two["masked_share"], abs=1e-6) and one["masked_share"] > 0
    if rule == "sketch":
        return
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4) and one["threshold"] == pytest.approx(two["threshold"], rel=1e-5)
    assert _distance(plain.model.params, split.model.params) < 2e-5  # Adam's first steps are signs: 1 % of one


@pytest.mark.slow
def test_uniform_is_a_sum_with_lambda_divided(frozen):
    uniform, _ = _refresh(_config(THREE, "uniform"), frozen)
    plain, _ = _refresh(_config(THREE, "sum", reward_scale=1 / 3), frozen)
    assert _distance(uniform.model.params, plain.model.params) < 2e-5
    assert _distance(uniform.model.params, _refresh(_config(THREE, "sum"), frozen)[0].model.params) > 1e-4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rule": "gdpo"}, r"balance\.rule: gdpo normalises advantages.*choose one of sum, uniform, marble"),
        ({"rule": "median"}, r"balance\.rule: 'median'"),
        ({"balance__weights": (1.0, 2.0)}, r"balance\.weights: 2 weights for 1 rewards"),
        ({"rule": "uniform", "balance__weights": (1.0,)}, r"balance\.weights: uniform has none; choose one of sum, marble"),
        ({"rule": "marble", "balance__gram": "guess"}, r"balance: gram must be"),
        ({"rewards": {"sharpness": {}, "small": {"name": "jpeg_compressibility"}}}, r"rewards: .*small .*nft or flow_grpo"),
        ({"rewards": {"beauty": {}}}, r"rewards\.beauty: .*unknown"),
        ({"micro_batches": 3}, r"batch_size \(10\) must be a multiple of micro_batches"),
    ],
)
def test_settings_out_of_range_are_told(changes, said):
    with pytest.raises(UserError, match=rf"config\.posttrain\.{said}"):
        adjoint.settings_from(_config(**changes))


def test_settings_of_the_balance_are_read():
    settings = adjoint.settings_from(_config(THREE, "marble", balance__weights=(1.0, 3.0, 2.0), micro_batches=2))
    assert settings.balance.program.reward_weights == (1.0, 3.0, 2.0) and settings.balance.micro_batches == 2
    np.testing.assert_allclose(settings.reward_weights, (1 / 3, 1.0, 2 / 3))
    assert adjoint.settings_from(_config(THREE, "uniform")).reward_weights == (1 / 3,) * 3
    plain = adjoint.settings_from(_config())
    assert plain.reward_weights == (1.0,) and plain.names == ("discriminator",) and plain.lora is None


def test_a_sketch_must_look_at_something(frozen):
    config = _config(THREE, "marble", balance__gram="sketch", lora__rank=2)
    with pytest.raises(UserError, match=r"config\.posttrain\.balance\.layers: no parameter matches \^final_"):
        adjoint.initial_state(config, frozen.base)


def test_operations_of_every_rule(monkeypatch):
    """Counted in forward passes of the generator, 1 each here: 5 rollout, adjoints, and 2 of 5 steps in each of the updates."""
    monkeypatch.setattr(compute, "generator_flops", lambda config: 1.0)
    monkeypatch.setattr(compute, "encoder_flops", lambda config: 0.0)
    config = _config(THREE, refreshes=1, buffer_size=20, num_timesteps=5, timestep_fraction=0.4)
    counted = {}
    for rule, gram, parts in (
        ("sum", "exact", 1),
        ("sum", "exact", 2),
        ("marble", "sketch", 1),
        ("marble", "exact", 1),
        ("marble", "amortised", 1),
    ):
        config.posttrain.balance.update(rule=rule, gram=gram)
        config.posttrain.micro_batches = parts
        counted[rule, gram, parts] = compute.posttrain_flops(config) / 20
    assert counted["sum", "exact", 1] == 5 + 11 + 3 * 2
    assert counted["sum", "exact", 2] == 5 + 11 + 4 * 2
    assert counted["marble", "sketch", 1] == 5 + 21 + 3 * 2
    assert counted["marble", "exact", 1] == 5 + 21 + 9 * 2
    assert counted["marble", "amortised", 1] == pytest.approx(5 + 21 + 3.6 * 2)
