"""Rows of trajectories, where they are kept, rewards in parts, and the precision and layout of frozen networks."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes
from jaxdrl.errors import UserError
from jaxdrl.training import frozen_weights, loading, mesh, models
from jaxdrl.training.methods import adjoint, buffers, common, policy


def _config(**options):
    config = recipes.tiny(recipes.small(jaxdrl_config.default()))
    config.posttrain.update({"buffer_size": 24, "rollout_batch": 12, "batch_size": 8} | options)
    return config


@pytest.mark.parametrize(("memory", "together"), [("device", 12), ("pinned_host", 4)])
def test_rows_hold_every_trajectory_once_and_are_taken_whole(memory, together):
    config, devices = _config(shuffle_block=4, buffer_memory=memory, rollout_batch=together), mesh.create_mesh()
    states = jnp.arange(24 * 6.0).reshape(24, 2, 3)

    @jax.jit
    def roll(states):
        collect = lambda part: (buffers.in_rows(config, {"x": part[0], "id": part[1]}, devices), {})  # noqa: E731
        return common.in_chunks(collect, states, jnp.arange(24), jax.random.key(0), together, joined=False)[0]

    kept = roll(states)
    assert kept["x"].shape == (24 // together, together // 4, 4, 2, 3) and kept["x"].sharding.memory_kind == memory
    assert kept["id"].sharding.memory_kind == "device"
    # Chunks are interleaved, rows too: of those rolled out together, i, i + n / g, i + 2 n / g ...
    assert sorted(np.asarray(kept["id"])[0, 0].tolist()) == [0, 6, 12, 18]  # for both: the chunks are interleaved as well
    orders = buffers.orders(config, jax.random.key(1))
    assert orders.shape == (3, 2) and sorted(orders.ravel().tolist()) == list(range(6))
    take = jax.jit(lambda kept, rows: buffers.take(config, kept, rows, devices))
    parts = [take(kept, rows) for rows in orders]
    assert parts[0]["x"].shape == (8, 2, 3) and parts[0]["x"].sharding.memory_kind == "device"
    assert sorted(np.concatenate([part["id"] for part in parts]).tolist()) == list(range(24))
    for part in parts:
        np.testing.assert_array_equal(part["x"], np.asarray(states)[np.asarray(part["id"])])


def test_without_rows_minibatches_are_drawn_from_the_whole_buffer():
    config = _config(batch_size=10)
    orders = buffers.orders(config, jax.random.key(1))
    assert orders.shape == (2, 10) and len(set(orders.ravel().tolist())) == 20
    values = jnp.arange(24.0)
    np.testing.assert_array_equal(buffers.take(config, values, orders[0], mesh.create_mesh()), np.asarray(orders[0], np.float32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"buffer_dtype": "float16"}, "buffer_dtype: 'float16' must be one of float32, bfloat16"),
        ({"buffer_memory": "disk"}, "buffer_memory: 'disk' must be one of device, pinned_host"),
        ({"buffer_memory": "pinned_host", "shuffle_block": 1, "rollout_batch": 1}, "needs a shuffle_block above 1"),
        ({"buffer_memory": "pinned_host", "shuffle_block": 4}, r"set shuffle_block \(4\) to rollout_batch \(12\), or"),
        ({"shuffle_block": 3}, r"shuffle_block \(3\) must divide batch_size \(8\) and rollout_batch \(12\)"),
        ({"shuffle_block": 8}, r"shuffle_block \(8\) must divide"),
        ({"reward_batch": 5}, r"reward_batch \(5\) must divide what is rolled out at a time \(12\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        adjoint.settings_from(_config(**options))


def test_policy_gradients_refuse_what_is_for_trajectories():
    config = recipes.tiny(recipes.policy_gradient(jaxdrl_config.default(), "nft"))
    policy.settings_from(config)
    config.posttrain.buffer_dtype = "bfloat16"
    with pytest.raises(UserError, match=r"buffer_dtype: is for adjoint_matching"):
        policy.settings_from(config)


def test_rewards_in_parts_are_the_same_and_keep_less():
    weights = jax.random.normal(jax.random.key(0), (64, 64)) / 8

    def score(samples, labels):
        for _ in range(6):
            samples = jnp.tanh(samples @ weights)
        return {"reward": samples.sum(axis=1) * labels}

    samples, labels = jax.random.normal(jax.random.key(1), (256, 64)), jnp.arange(256)
    total = lambda size: jax.jit(jax.value_and_grad(lambda x: common.in_parts(score, x, labels, size)["reward"].sum()))  # noqa: E731
    (whole, gradient), (parts, other) = total(0)(samples), total(32)(samples)
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)
    np.testing.assert_allclose(other, gradient, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(common.in_parts(score, samples, labels, 32)["reward"], score(samples, labels)["reward"], rtol=1e-4)
    held = [total(size).lower(samples).compile().memory_analysis().temp_size_in_bytes for size in (0, 32)]
    assert held[1] < 0.7 * held[0]


def _half(**options):
    config = _config()
    config.backbone.dtype = "bfloat16"
    config.mesh.update({"frozen_dtype": "bfloat16"} | options)
    return config


def _frozen(config):
    base = loading.drawn(models.backbone(config).init, 1)
    return common.Frozen(base, {}, loading.drawn(models.encoder(config, "reward").init, 2), {"projection": jnp.ones((4, 4))})


@pytest.mark.parametrize("family", ["SiT", *(pytest.param(name, marks=pytest.mark.slow) for name in ("JiT", "REPA", "DiTDH"))])
def test_kernels_in_bfloat16_change_no_number(family):
    config = _half()
    config.backbone.update(name=family, depth=1)
    fields = {"JiT": {"context_length": 4}, "DiTDH": {"head_width": 32, "head_num_heads": 2, "head_depth": 1}}
    config.backbone.fields = ml_collections.ConfigDict(fields.get(family, {}))
    network, frozen = models.backbone(config), _frozen(config)
    stored = frozen_weights.stored(config, frozen)
    assert stored.encoder is frozen.encoder  # which computes in float32
    x, t, y = jax.random.normal(jax.random.key(0), (2, *network.sample_shape)), jnp.array([0.2, 0.7]), jnp.array([1, 10])
    velocity = jax.jit(lambda params: network.velocity(params, x, t, y))
    np.testing.assert_array_equal(velocity(stored.base), velocity(frozen.base))
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(stored.base) < 0.6 * size(frozen.base) and stored.base["y_embedder"].dtype == jnp.float32


def test_the_base_of_adapters_stays_float32():
    config = _half()
    config.posttrain.lora.rank = 2
    with pytest.raises(UserError, match="frozen_dtype: bfloat16 is for frozen networks that compute in it"):
        frozen_weights.check(config)
    config.tokenizer.update(name="sd-vae", dtype="bfloat16")
    frozen = _frozen(_config())._replace(tokenizer={"conv": {"kernel": jnp.ones((2, 2))}})
    stored = frozen_weights.stored(config, frozen)
    assert stored.base is frozen.base and stored.tokenizer["conv"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize(("key", "value"), [("frozen", "host"), ("frozen_dtype", "float16")])
def test_unknown_layouts_of_frozen_networks_are_refused(key, value):
    config = _config()
    config.mesh[key] = value
    with pytest.raises(UserError, match=rf"config\.mesh\.{key}: '{value}' must be one of"):
        adjoint.settings_from(config)


def test_layouts_of_frozen_networks():
    devices = jax.sharding.AbstractMesh((1, 2, 4), mesh.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    frozen = common.Frozen({"attn": {"qkv": {"kernel": jax.ShapeDtypeStruct((1152, 3456), jnp.float32)}}}, {}, {}, {})
    config, axes = _config(), {}
    for layout in frozen_weights.LAYOUTS:
        config.mesh.frozen = layout
        axes[layout] = tuple(frozen_weights.shardings(config, frozen, devices).base["attn"]["qkv"]["kernel"].spec)
    assert axes == {"like_trained": ("fsdp", "tensor"), "fsdp": (None, "fsdp"), "replicated": ()}
    placed = frozen_weights.place(_config(), _frozen(_config()), mesh.create_mesh())
    assert all(leaf.committed for leaf in jax.tree.leaves(placed))
