"""The published networks and their weight tables against the authors' own PyTorch code (outputs kept in `tests/golden`)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import backbones
from jaxdrl.errors import UserError
from jaxdrl.weights import from_torch, to_torch, torch_files
from jaxdrl.weights.convert import model_for
from tests.golden import cases

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official.npz")


def _backbone(name, **options):
    family, fields, _ = cases.CASES[name]
    return backbones.create(family, **fields, **options)


def _state(name):
    """The state dict that the authors' network had: drawn weights, and their fixed tables from ours."""
    fixed = to_torch(_backbone(name), _backbone(name).init(jax.random.key(0)))
    state = {}
    for line in GOLDEN[f"{name}/names"]:
        key, shape, learned = line.split(":")
        size = tuple(int(part) for part in shape.split(",") if part)
        state[key] = cases.draw(key, size) if int(learned) else fixed[key]
        assert state[key].shape == size
    return state


def _close(found, expected, bound):
    expected = np.asarray(expected)
    assert np.abs(found - expected).max() / np.abs(expected).max() < bound


@pytest.mark.parametrize("name", cases.CASES)
def test_outputs_and_input_gradients_are_the_authors(name):
    network = _backbone(name)
    params = from_torch(network, _state(name))
    t, y = jnp.asarray(cases.times(name)), jnp.asarray(cases.LABELS)
    out, pullback = jax.vjp(lambda x: network.predict(params, x, t, y), jnp.asarray(cases.inputs(name)))
    _close(out, GOLDEN[f"{name}/out"], 1e-5)
    _close(pullback(jnp.asarray(cases.cotangent(out.shape)))[0], GOLDEN[f"{name}/gradient"], 1e-5)


@pytest.mark.parametrize("name", cases.CASES)
def test_round_trip_is_exact_and_complete(name):
    state = _state(name)
    back = to_torch(_backbone(name), from_torch(_backbone(name), state))
    assert set(back) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


@pytest.mark.parametrize("options", [{}, {"scan_layers": True}])
def test_repa_projections_are_the_authors(options):
    network = _backbone("repa", **options)
    params = from_torch(network, _state("repa"))
    x, y = jnp.asarray(cases.inputs("repa")), jnp.asarray(cases.LABELS)
    velocity, (projection,) = network.aligned(params, x, 1 - jnp.asarray(cases.TIMES), y)
    _close(projection, GOLDEN["repa/projection"], 1e-5)
    _close(velocity, -GOLDEN["repa/out"], 1e-5)


def test_diffusers_own_numbers_are_an_option():
    """DiTTransformer2DModel differs from DiT in the time features and one eps: the same weights, other outputs."""
    lines = [line.split(":") for line in GOLDEN["diffusers/names"]]
    state = {key: cases.draw(key, tuple(int(part) for part in shape.split(","))) for key, shape, _ in lines}
    network = _backbone("dit", numerics="diffusers")
    params = from_torch(network, state)
    t, y = jnp.asarray(cases.STEPS), jnp.asarray(cases.LABELS)
    out, pullback = jax.vjp(lambda x: network.predict(params, x, t, y), jnp.asarray(cases.inputs("dit")))
    _close(out, GOLDEN["diffusers/out"], 1e-5)
    _close(pullback(jnp.asarray(cases.cotangent(out.shape)))[0], GOLDEN["diffusers/gradient"], 1e-5)
    with pytest.raises(AssertionError):
        _close(_backbone("dit").predict(params, jnp.asarray(cases.inputs("dit")), t, y), GOLDEN["diffusers/out"], 1e-3)
    back = to_torch(network, params, style="diffusers")
    assert set(back) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


@pytest.mark.parametrize("name", ["repa", "ditdh"])
def test_reversed_families_are_turned_round_once(name):
    network = _backbone(name)
    params = from_torch(network, _state(name))
    x, y = jnp.asarray(cases.inputs(name)), jnp.asarray(cases.LABELS)
    _close(network.velocity(params, x, 1 - jnp.asarray(cases.TIMES), y), -GOLDEN[f"{name}/out"], 1e-5)


def test_jit_velocity_from_its_image():
    network = _backbone("jit")
    params = from_torch(network, _state("jit"))
    x, t = cases.inputs("jit"), np.array([0.0, 0.37, 0.99], np.float32)
    image = np.asarray(network.predict(params, jnp.asarray(x), jnp.asarray(t), jnp.asarray(cases.LABELS)))
    found = network.velocity(params, jnp.asarray(x), jnp.asarray(t), jnp.asarray(cases.LABELS))
    _close(found, (image - x) / np.array([1.0, 0.63, 0.05])[:, None, None, None], 1e-5)


def test_wrappers_of_training_scripts_are_taken_off():
    network, state = _backbone("jit"), _state("jit")
    wrapped = {f"net.{key}": value for key, value in state.items()}
    raw = {key: value + 1 if key.startswith("net.blocks") else value for key, value in wrapped.items()}
    checkpoint = {"model": raw, "model_ema1": wrapped, "model_ema2": raw, "epoch": 3}
    expected = from_torch(network, state)
    for given in (wrapped, checkpoint, {f"module.{key}": value for key, value in wrapped.items()}):
        jax.tree.map(np.testing.assert_array_equal, from_torch(network, given), expected)
    other = from_torch(network, checkpoint, weights="raw")
    np.testing.assert_array_equal(other["blocks_0"]["mlp"]["w3"]["bias"], expected["blocks_0"]["mlp"]["w3"]["bias"] + 1)
    with pytest.raises(UserError, match="no ema weights"):
        from_torch(network, {"model": raw})
    with pytest.raises(UserError, match="ema or raw"):
        from_torch(network, state, weights="last")


def test_old_repa_block_names():
    state = _state("repa")
    old = {key.replace("blocks.2.", "decoder_blocks.0."): value for key, value in state.items()}
    assert old.keys() != state.keys()
    jax.tree.map(np.testing.assert_array_equal, from_torch(_backbone("repa"), old), from_torch(_backbone("repa"), state))


def test_everything_that_is_wrong_is_told_at_once():
    state = _state("sit")
    del state["blocks.1.attn.qkv.bias"]
    state["blocks.9.attn.qkv.bias"] = np.zeros(3, np.float32)
    state["final_layer.linear.weight"] = np.zeros((7, 32), np.float32)
    state["pos_embed"] = state["pos_embed"][:, ::-1]
    with pytest.raises(UserError) as error:
        from_torch(_backbone("sit"), state)
    for said in (
        "missing: blocks.1.attn.qkv.bias",
        "unexpected: blocks.9.attn.qkv.bias",
        "final_layer.linear.weight (is (7, 32), must be (32, 32))",
        "pos_embed (is not the table that follows from the sizes)",
    ):
        assert said in str(error.value)
    with pytest.raises(UserError, match="choose one of"):
        from_torch("SiT-M/2", state)


def test_published_names_infer_learn_sigma():
    for channels in (16, 32):
        state = {"final_layer.linear.bias": np.zeros(channels, np.float32)}
        with pytest.raises(UserError, match="missing") as error:
            from_torch("SiT-S/2", state)
        assert "wrong" not in str(error.value)


def test_diffusers_layout_of_dit():
    network = _backbone("dit")
    params = from_torch(network, _state("dit"))
    state = to_torch(network, params, style="diffusers")
    assert state["transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"].shape == (11, 32)
    q = state["transformer_blocks.1.attn1.to_q.weight"]
    np.testing.assert_array_equal(q, _state("dit")["blocks.1.attn.qkv.weight"][:32])
    jax.tree.map(np.testing.assert_array_equal, from_torch(network, state), params)
    state["transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"] = np.zeros((11, 32), np.float32)
    with pytest.raises(UserError, match="differs from its copy"):
        from_torch(network, state)
    with pytest.raises(ValueError, match="no layout"):
        to_torch(_backbone("sit"), from_torch(_backbone("sit"), _state("sit")), style="diffusers")


def test_resolution_and_classes_are_read_from_the_weights():
    """Published 512-pixel files have longer position tables under the same name."""
    network = backbones.create("SiT-S/8", sample_shape=(64, 64, 4), num_classes=7, depth=2, learn_sigma=False)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5, network.init(jax.random.key(0)))
    state = to_torch(network, params)
    found = model_for("SiT-S/8", state, depth=2)
    assert found.sample_shape == (64, 64, 4) and found.num_classes == 7 and dict(found.fields)["learn_sigma"] is False
    jax.tree.map(np.testing.assert_array_equal, from_torch("SiT-S/8", state, depth=2), params)
    back = to_torch("SiT-S/8", params, depth=2, sample_shape=(64, 64, 4))
    assert back.keys() == state.keys()
    with pytest.raises(UserError, match=r"SiT-S/8: .*unknown fields"):
        from_torch("SiT-S/8", state, dept=2)


def test_torchs_own_tensors_in_any_precision():
    torch = pytest.importorskip("torch")
    state = {key: torch.nn.Parameter(torch.from_numpy(value.copy())) for key, value in _state("sit").items()}
    expected = from_torch(_backbone("sit"), _state("sit"))
    jax.tree.map(np.testing.assert_array_equal, from_torch(_backbone("sit"), state), expected)
    half = from_torch(_backbone("sit"), {key: value.bfloat16() for key, value in state.items() if key != "pos_embed"})
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-2), half, expected)


def test_tensors_are_read_once_and_only_when_they_are_converted(tmp_path):
    reads = []

    class Counted(torch_files.LazyTensor):
        def __array__(self, dtype=None, copy=None):
            reads.append(self._name)
            return super().__array__(dtype, copy)

    path = tmp_path / "sit.safetensors"
    torch_files.write(path, _state("sit"))
    file = torch_files.read(path)
    lazy = {name: Counted(file._file, name) for name in file}
    del lazy["blocks.2.mlp.fc2.bias"]
    with pytest.raises(UserError, match=r"missing: blocks\.2\.mlp\.fc2\.bias"):
        from_torch(_backbone("sit"), lazy)
    assert set(reads) <= {"pos_embed"}  # which is compared
    reads.clear()
    from_torch(_backbone("sit"), {name: Counted(file._file, name) for name in file})
    assert sorted(reads) == sorted(file)
