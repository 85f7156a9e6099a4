"""Adapters on every backbone against the explicit product and the chain rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import backbones
from jaxdrl.backbones import stack
from jaxdrl.errors import UserError
from jaxdrl.training import lora, state
from jaxdrl.weights import files, from_torch, to_torch

SMALL = {"sample_shape": (4, 4, 2), "num_classes": 3, "patch_size": 2, "width": 16, "depth": 1, "num_heads": 2}
EXTRA = {
    "SiT": {},
    "DiT": {},
    "REPA": {"projector_dims": (6,), "projector_depth": 1},
    "JiT": {"context_length": 3, "context_start": 0},
    "DiTDH": {"head_width": 24, "head_num_heads": 2, "head_depth": 1},
    "gate": {"spectral": "timestep"},
}
FAST = {"xla_backend_optimization_level": 0}  # to compile
SETTINGS = lora.Settings(rank=3, alpha=6.0)
EVERYTHING = lora.Settings(rank=2, alpha=1.0, targets=("",), start="kaiming")


def _network(family, **options):
    return backbones.create("SiT" if family == "gate" else family, **SMALL | EXTRA[family] | options)


def _random(tree, seed=0, scale=0.3):
    draw = np.random.default_rng(seed).standard_normal
    return jax.tree.map(lambda leaf: (scale * draw(leaf.shape)).astype(np.float32), tree)


def _setup(family, settings=SETTINGS, **options):
    """A network, random weights and adapters whose B is no longer 0."""
    network = _network(family, **options)
    base = _random(jax.eval_shape(network.init, jax.random.key(0)))
    adapters = _random(jax.eval_shape(lambda: lora.init(base, settings, jax.random.key(1))), seed=2)
    return network, base, adapters


def _loss(network):
    x, t, y = jax.random.normal(jax.random.key(3), (2, *SMALL["sample_shape"])), jnp.array([0.3, 0.8]), jnp.array([0, 3])
    return lambda params: (network.velocity(params, x, t, y) ** 2).sum()


def _flat(adapters):
    """Path of the layer -> {"a", "b"}."""
    pairs = {}
    for name, leaf in files.named_leaves(adapters).items():
        path, _, which = name.rpartition("/")
        pairs.setdefault(path, {})[which] = leaf.astype(np.float64)
    return pairs


def _parts(path):
    return 3 if path.endswith("attn/qkv") else 1


@pytest.mark.parametrize("family", EXTRA)
def test_fresh_adapters_change_no_number(family):
    network = _network(family)
    base = _random(jax.eval_shape(network.init, jax.random.key(0)))
    adapters = lora.init(base, SETTINGS, jax.random.key(1))
    merged = lora.merge(base, adapters, SETTINGS)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    assert files.fingerprint(merged) == files.fingerprint(base)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}
    layers = {path for path in files.named_leaves(base) if path.endswith("/kernel")}
    everything = jax.tree.map(np.zeros_like, jax.eval_shape(lambda: lora.init(base, EVERYTHING, jax.random.key(1))))
    assert {f"{path}/kernel" for path in _flat(everything)} == layers
    assert {f"{path}/kernel" for path in _flat(adapters)} == {path for path in layers if "attn/" in path}


@pytest.mark.parametrize("family", EXTRA)
def test_merging_is_the_explicit_product(family):
    """W + (alpha / rank) A B, part by part of a fused kernel; and nothing else moves."""
    _, base, adapters = _setup(family, EVERYTHING)
    merged, pairs = files.named_leaves(lora.merge(base, adapters, EVERYTHING)), _flat(adapters)
    rows = np.random.default_rng(0).standard_normal
    for name, before in files.named_leaves(base).items():
        path = name.removesuffix("/kernel")
        if path not in pairs:
            np.testing.assert_array_equal(merged[name], before)
            continue
        x, a, b = rows((5, before.shape[0])), pairs[path]["a"], pairs[path]["b"]
        assert len(a) == _parts(path)
        expected = x @ before + 0.5 * np.concatenate([x @ a[i] @ b[i] for i in range(len(a))], axis=1)
        np.testing.assert_allclose(x @ merged[name], expected, atol=1e-5)


@pytest.mark.parametrize("family", EXTRA)
def test_gradients_are_the_chain_rule_and_reach_the_adapters_alone(family):
    network, base, adapters = _setup(family)
    loss, scale = _loss(network), SETTINGS.alpha / SETTINGS.rank

    def shifted(adapters, shift):
        """The gradient by the shift is the gradient by the merged kernels."""
        return loss(jax.tree.map(jnp.add, lora.merge(base, adapters, SETTINGS), shift))

    found, full = jax.jit(jax.grad(shifted, argnums=(0, 1)), compiler_options=FAST)(adapters, jax.tree.map(np.zeros_like, base))
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    gradients, kernels, pairs = _flat(found), files.named_leaves(full), _flat(adapters)
    for path, pair in pairs.items():
        blocks = np.split(kernels[f"{path}/kernel"].astype(np.float64), _parts(path), axis=1)
        expected = {
            "a": np.stack([scale * g @ b.T for g, b in zip(blocks, pair["b"], strict=True)]),
            "b": np.stack([scale * a.T @ g for g, a in zip(blocks, pair["a"], strict=True)]),
        }
        for which, value in expected.items():
            assert np.abs(value).max() > 0
            np.testing.assert_allclose(gradients[path][which], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("family", ["SiT", "JiT", "DiTDH"])
def test_scanned_is_unrolled(family):
    """The same key gives the same adapters, stacked; merged they make the same network."""
    deeper = {"depth": 3} | ({"context_start": 1} if family == "JiT" else {"head_depth": 2} if family == "DiTDH" else {})
    network, base, _ = _setup(family, **deeper)
    scanned = _network(family, scan_layers=True, **deeper)
    stacked_base = stack.stacked(base, jax.eval_shape(scanned.init, jax.random.key(0)))
    one, two = (lora.init(params, SETTINGS, jax.random.key(1)) for params in (base, stacked_base))
    assert files.fingerprint(stack.stacked(one, two)) == files.fingerprint(two)
    assert lora.count(one) == lora.count(two) and set(one) != set(two)
    one = _random(one)
    two = stack.stacked(one, two)
    merged, merged_stacked = lora.merge(base, one, SETTINGS), lora.merge(stacked_base, two, SETTINGS)
    for name, value in files.named_leaves(stack.stacked(merged, merged_stacked)).items():
        np.testing.assert_allclose(files.named_leaves(merged_stacked)[name], value, atol=1e-6, err_msg=name)
    if family == "SiT":
        np.testing.assert_allclose(
            jax.jit(_loss(network), compiler_options=FAST)(merged),
            jax.jit(_loss(scanned), compiler_options=FAST)(merged_stacked),
            rtol=1e-4,
        )


@pytest.mark.parametrize("family", EXTRA)
def test_export_of_merged_weights(family):
    network, base, adapters = _setup(family)
    merged = lora.merge(base, adapters, SETTINGS)
    back = from_torch(network, to_torch(network, merged))
    assert files.fingerprint(back) == files.fingerprint(merged) != files.fingerprint(base)


def test_trainable_parameters():
    """Attention of the papers' SiT-XL/2: four adapters of rank 32 a block, as in diffusers' q, k, v and out."""
    shapes = jax.eval_shape(backbones.create("SiT-XL/2").init, jax.random.key(0))
    adapters = jax.eval_shape(lambda: lora.init(shapes, lora.Settings(), jax.random.key(0)))
    assert lora.count(adapters) == 28 * 4 * 32 * (1152 + 1152)
    joint = lora.Settings(fused=())
    adapters = jax.eval_shape(lambda: lora.init(shapes, joint, jax.random.key(0)))
    assert lora.count(adapters) == 28 * 32 * ((1152 + 3 * 1152) + (1152 + 1152))


def test_starts():
    """N(0, 1 / rank^2), or uniform below 1 / sqrt(inputs); layers differ, the same key repeats."""
    params = {f"blocks_{i}": {"attn": {"qkv": {"kernel": jnp.zeros((400, 600))}}} for i in range(2)}
    make = lambda seed=0, **fields: _flat(  # noqa: E731
        lora.init(params, lora.Settings(targets=("qkv",), **fields), jax.random.key(seed))
    )
    drawn = make(rank=8)["blocks_0/attn/qkv"]["a"]
    assert drawn.shape == (3, 400, 8) and abs(drawn.std() * 8 - 1) < 0.03 and abs(drawn.mean()) < 0.005
    np.testing.assert_array_equal(drawn, make(rank=8)["blocks_0/attn/qkv"]["a"])
    for other in (make(rank=8)["blocks_1/attn/qkv"]["a"], make(seed=1, rank=8)["blocks_0/attn/qkv"]["a"]):
        assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.05
    uniform = make(rank=8, start="kaiming")["blocks_0/attn/qkv"]["a"]
    assert 0.99 / 20 < np.abs(uniform).max() <= 1 / 20 and abs(uniform.std() * 20 * 3**0.5 - 1) < 0.03


def test_training_lowers_a_loss_and_leaves_the_base():
    """A train state whose parameters are the adapters."""
    network, base, _ = _setup("SiT")
    adapters = lora.init(base, SETTINGS, jax.random.key(1))
    loss = _loss(network)
    optimizer, _ = state.make_optimizer(learning_rate=1e-2)

    @jax.jit
    def step(current, base):
        value, grads = jax.value_and_grad(lambda adapters: loss(lora.merge(base, adapters, SETTINGS)))(current.params)
        return state.apply_gradients(current, grads, optimizer), value

    current, values = state.create(adapters, optimizer), []
    for _ in range(8):
        current, value = step(current, base)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]
    sizes = [leaf.size for leaf in jax.tree.leaves(current.opt_state)]
    assert sum(sizes) == 2 * lora.count(adapters) + 2  # Adam's moments, and two counters


def test_files_keep_adapters(tmp_path):
    _, _, adapters = _setup("JiT")
    files.save_tree(tmp_path / "adapters.safetensors", adapters)
    assert files.fingerprint(files.load_tree(tmp_path / "adapters.safetensors")) == files.fingerprint(adapters)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"targets": (r"attn/query$",)},
            r"'attn/query\$' matches no linear layer .* has blocks_N/adaLN_modulation, blocks_N/attn/proj",
        ),
        ({"targets": ("attn/qkv", "y_embedder")}, "'y_embedder' matches no linear layer"),
        ({"targets": ()}, "targets is empty"),
        ({"targets": ("attn/(qkv",)}, "no regular expression"),
        ({"rank": 0}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"start": "zeros"}, "start must be gaussian or kaiming"),
        ({"fused": (("qkv", 5),)}, "blocks_0/attn/qkv has 48 outputs, which are not 5 equal parts"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, said):
    params = jax.eval_shape(_network("SiT").init, jax.random.key(0))
    with pytest.raises(UserError, match=said):
        lora.init(params, lora.Settings(**fields), jax.random.key(0))


def test_targets_may_name_a_block():
    _, base, _ = _setup("SiT", depth=2)
    settings = lora.Settings(rank=2, targets=("blocks_1/mlp",))
    assert set(_flat(lora.init(base, settings, jax.random.key(0)))) == {"blocks_1/mlp/fc1", "blocks_1/mlp/fc2"}
    with pytest.raises(UserError, match="scan_layers=False"):
        lora.init(jax.eval_shape(_network("SiT", depth=2, scan_layers=True).init, jax.random.key(0)), settings, jax.random.key(0))


def test_adapters_of_another_network_are_refused():
    _, base, adapters = _setup("SiT")
    wider = _random(jax.eval_shape(backbones.create("SiT", **SMALL | {"width": 32}).init, jax.random.key(0)))
    with pytest.raises(ValueError, match=r"blocks_0/attn/proj makes \(16, 16\), its kernel is \(32, 32\)"):
        lora.merge(wider, adapters, SETTINGS)
    with pytest.raises(ValueError, match=r"adapters for \['blocks_0/attn'\]"):
        lora.merge(base | {"blocks_0": {"mlp": base["blocks_0"]["mlp"]}}, adapters, SETTINGS)
