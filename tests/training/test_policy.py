"""Policy gradients as a method of the posttrain stage: one step of every kind, and errors that name the key."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxdrl import algorithms
from jaxdrl.errors import UserError
from jaxdrl.rewards import discriminator
from jaxdrl.training import mesh, methods, models
from jaxdrl.training.methods import common, policy

ROOT = Path(__file__).parent.parent.parent


def _recipe(name):
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("tiny")


def _config(algorithm="nft", **changes):
    config = _recipe("nft_digits" if algorithm == "nft" else "grpo_digits")
    config.posttrain.rewards = ml_collections.ConfigDict({"brightness": {}})
    config.posttrain.update(learning_rate=1e-3, warmup_steps=0, epochs=1)
    config.posttrain.update(changes)
    return config


@pytest.fixture(scope="module")
def frozen():
    config = _config()
    network = models.backbone(config)
    base = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape), network.init(jax.random.key(0)))
    head = discriminator.init(jax.random.key(3), 16, 10, width=8)
    head = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(4), p.shape), head)
    return common.Frozen(base, {}, models.encoder(config, "reward").init(jax.random.key(2)), head)


def _steps(config, frozen, count=1):
    devices = mesh.create_mesh()
    with jax.set_mesh(devices):
        method = methods.of(config)
        step = method.compile_step(config, method.settings_from(config), devices)
        current, seen = method.initial_state(config, frozen.base), []
        for _ in range(count):
            current, metrics = step(current, frozen, jax.random.key(5))
            seen.append(jax.device_get(metrics))
    return current, seen


def _distance(one, two):
    return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


@pytest.mark.parametrize("algorithm", ["nft", "flow_grpo"])
def test_a_refresh_moves_the_policy_and_nothing_else(frozen, algorithm):
    config = _config(algorithm, batch_size=20)  # one gradient step a refresh
    current, (metrics, second) = _steps(config, frozen, 2)
    assert int(current.refresh) == 2 and methods.of(config).gradient_steps(current) == 2
    assert _distance(current.model.reference, frozen.base) == 0
    assert _distance(current.model.params, frozen.base) > 1e-4
    assert _distance(methods.of(config).trained(config, current), current.model.params) > 0  # the EMA lags behind
    assert metrics["reward_mean"] == pytest.approx(metrics["reward_mean/brightness"], abs=1e-6)
    assert metrics["control_energy"] > 0 and 0 < metrics["sample_spread"] < 1
    assert second["kl"] > 0
    if algorithm == "flow_grpo":
        assert (
            metrics["ratio_deviation"] < 1e-6 and second["ratio_deviation"] < 1e-6
        )  # before it the policy is the one that sampled
        assert _distance(current.model.old, current.model.params) == 0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["nft", "flow_grpo"])
def test_micro_batches_and_chunks_change_no_number(frozen, algorithm):
    plain, _ = _steps(_config(algorithm, rollout_batch=0), frozen)
    split, _ = _steps(_config(algorithm, rollout_batch=0, micro_batches=5), frozen)
    assert _distance(plain.model.params, split.model.params) < 2e-5  # Adam's first steps are signs: 2 % of one


@pytest.mark.slow
def test_rewards_on_the_host_are_traced_ones_in_two_programs(frozen, monkeypatch):
    """The same reward declared as a host one gives the same step."""
    traced, (one,) = _steps(_config(), frozen)
    create = common.reward_functions.create

    def on_host(name, **fields):
        made = create(name, **fields)
        apply = made.apply
        values = lambda images, labels: np.asarray(apply(jnp.asarray(images), jnp.asarray(labels)))  # noqa: E731
        return type(made)(name=made.name, apply=values, traced=False)

    monkeypatch.setattr(common.reward_functions, "create", on_host)
    hosted, (two,) = _steps(_config(), frozen)
    assert _distance(traced.model.params, hosted.model.params) < 2e-5
    assert one["reward_mean"] == pytest.approx(two["reward_mean"], abs=1e-6)


_SLOW = [pytest.param(rule, marks=pytest.mark.slow) for rule in ("sum", "gdpo", "uniform", "exact", "amortised")]


@pytest.mark.parametrize("rule", ["sketch", *_SLOW])
def test_five_rewards_in_every_balance(frozen, rule):
    config = _recipe("marble_digits")
    config.posttrain.rewards.symmetry.classes = (0, 1, 2)  # for the others it does not count
    gram = rule if rule in ("exact", "amortised", "sketch") else "amortised"
    config.posttrain.balance.update(rule="marble" if gram == rule else rule, gram=gram)
    current, (metrics,) = _steps(config, frozen)
    names = list(dict(config.posttrain.rewards))
    assert all(f"reward_mean/{name}" in metrics for name in names)
    assert _distance(current.model.params, frozen.base) > 1e-5
    assert metrics["missing_share/symmetry"] > 0.3 and metrics["missing_share/sharpness"] == pytest.approx(0, abs=1e-6)
    if rule in ("exact", "amortised", "sketch"):
        alpha = np.array([metrics[f"alpha/{name}"] for name in names])
        assert alpha.sum() == pytest.approx(1, abs=1e-5) and (alpha >= 0).all()
        assert all(-1 <= metrics[f"cosine/{name}"] <= 1 for name in names)


def test_adapters_are_trained_alone_and_merged_at_the_end(frozen):
    """With a reward on the host, between two programs."""
    config = _config(rewards=ml_collections.ConfigDict({"jpeg_compressibility": {}, "symmetry": {}}))
    config.posttrain.lora.update(rank=2, alpha=4.0)
    current, (metrics, _) = _steps(config, frozen, 2)
    assert metrics["reward_mean/jpeg_compressibility"] < -0.3 and metrics["reward_spread/jpeg_compressibility"] > 0
    assert sum(leaf.size for leaf in jax.tree.leaves(current.model.params)) < 2000
    merged = policy.weights(config, policy.trained(config, current), frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(frozen.base)
    changed = [_distance(a, b) > 0 for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(frozen.base), strict=True)]
    assert any(changed) and not all(changed)


def test_conditions_are_balanced():
    drawn = np.asarray(policy._conditions(jax.random.key(0), 25, 10))
    counts = np.bincount(drawn, minlength=10)
    assert counts.min() == 2 and counts.max() == 3 and sorted(drawn[:10]) == list(range(10))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group_size": 7}, "group_size"),
        ({"micro_batches": 3}, "micro_batches"),
        ({"micro_batches": 0}, "micro_batches"),
        ({"balance.rule": "median"}, "balance.rule"),
        ({"balance.weights": (1.0, 2.0)}, "balance.weights"),
        ({"balance.rule": "uniform", "balance.weights": (1.0,)}, "balance.weights"),
        ({"balance.rule": "marble", "balance.gram": "guess"}, "gram"),
        ({"nft.old_policy": "fast"}, "old_policy"),
        ({"nft.times": "late"}, "times"),
        ({"nft.mixing": 0.0}, "mixing"),
        ({"advantages.spread": "local"}, "spread"),
        ({"rewards": ml_collections.ConfigDict({"beauty": {}})}, r"rewards\.beauty.*unknown"),
        ({"rewards": ml_collections.ConfigDict({"ink": {"name": "brightness", "colour": 1}})}, r"rewards\.ink.*colour"),
        ({"rewards": ml_collections.ConfigDict({})}, "0 rewards"),
    ],
)
def test_settings_out_of_range_are_told(changes, said):
    config = _config()
    for key, value in changes.items():
        part, _, name = key.rpartition(".")
        (config.posttrain[part] if part else config.posttrain)[name] = value
    with pytest.raises(UserError, match=rf"config\.posttrain.*{said}"):
        policy.settings_from(config)


def test_weights_of_rewards_reach_the_program():
    config = _config(rewards=ml_collections.ConfigDict({"brightness": {}, "symmetry": {}}))
    config.posttrain.balance.update(rule="marble", weights=(1.0, 3.0))
    assert policy.settings_from(config).balance.program.reward_weights == (1.0, 3.0)


def test_flow_grpos_settings_are_read():
    config = _config("flow_grpo")
    config.sampler.time_shift = 3.0
    config.posttrain.flow_grpo.update(sde="memoryless", num_steps=6, window=2)
    settings = policy.settings_from(config).algorithm
    assert settings.shift == 3.0 and policy.settings_from(_config("nft")).algorithm.shift == 1.0
    assert settings.memoryless.num_steps == 6 and settings.num_trained == 2
    config.posttrain.flow_grpo.sde = "ode"
    with pytest.raises(UserError, match=r"flow_grpo\.sde"):
        policy.settings_from(config)
    assert algorithms.needs("flow_grpo") == "trajectories" and algorithms.needs("nft") == "samples"
