"""SiT against a PyTorch re-statement of its forward pass on randomised weights, and against the published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import backbones
from jaxdrl.backbones import layers
from tests.drawing import drawn

SIZES = {"SiT-S/2": 32.96, "SiT-B/2": 130.51, "SiT-L/2": 458.10, "SiT-XL/2": 675.13}


def _torch_forward(params, x, t, y, patch, heads, frequency_dim, channels):
    """The forward pass of SiT written with torch's own layers, from section 3 of the paper and its repository's conventions."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    p = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), dtype=torch.float64), params)
    x, t, y = torch.tensor(np.asarray(x)).double(), torch.tensor(np.asarray(t)).double(), torch.tensor(np.asarray(y)).long()
    linear = lambda layer, v: functional.linear(v, layer["kernel"].T, layer["bias"])  # noqa: E731
    batch, height, width, in_channels = x.shape
    dim = p["x_embedder"]["kernel"].shape[1]
    kernel = p["x_embedder"]["kernel"].reshape(patch, patch, in_channels, dim).permute(3, 2, 0, 1)
    tokens = functional.conv2d(x.permute(0, 3, 1, 2), kernel, p["x_embedder"]["bias"], stride=patch)
    rows, columns = tokens.shape[2:]
    tokens = tokens.flatten(2).transpose(1, 2)
    position = torch.zeros(rows * columns, dim, dtype=torch.float64)
    for token in range(rows * columns):
        for half, place in enumerate((token % columns, token // columns)):  # the column's half comes first
            for i in range(dim // 4):
                angle = place / 10000 ** (i / (dim / 4))
                position[token, half * dim // 2 + i] = np.sin(angle)
                position[token, half * dim // 2 + dim // 4 + i] = np.cos(angle)
    tokens = tokens + position
    frequencies = torch.exp(-np.log(10000) * torch.arange(frequency_dim // 2).double() / (frequency_dim // 2))
    angles = t[:, None] * frequencies
    time = linear(p["t_embedder_0"], torch.cat([angles.cos(), angles.sin()], -1))
    c = linear(p["t_embedder_2"], functional.silu(time)) + p["y_embedder"][y]
    norm = lambda v: functional.layer_norm(v, (dim,), eps=1e-6)  # noqa: E731
    for index in range(sum(name.startswith("blocks_") for name in p)):
        block = p[f"blocks_{index}"]
        m = linear(block["adaLN_modulation"], functional.silu(c)).unsqueeze(1).chunk(6, dim=-1)
        h = norm(tokens) * (1 + m[1]) + m[0]
        qkv = linear(block["attn"]["qkv"], h).reshape(batch, -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(batch, -1, dim)
        tokens = tokens + m[2] * linear(block["attn"]["proj"], h)
        h = norm(tokens) * (1 + m[4]) + m[3]
        h = functional.gelu(linear(block["mlp"]["fc1"], h), approximate="tanh")
        tokens = tokens + m[5] * linear(block["mlp"]["fc2"], h)
    shift, scale = linear(p["final_adaLN_modulation"], functional.silu(c)).unsqueeze(1).chunk(2, dim=-1)
    out = linear(p["final_linear"], norm(tokens) * (1 + scale) + shift)
    out = out.reshape(batch, rows, columns, patch, patch, -1)
    return torch.einsum("nhwpqc->nhpwqc", out).reshape(batch, height, width, -1)[..., :channels].numpy()


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_forward_pass_equals_torch(learn_sigma):
    sizes = {"sample_shape": (8, 12, 3), "num_classes": 5, "patch_size": 2, "width": 32, "depth": 2, "num_heads": 4}
    network = backbones.create("SiT", **sizes, frequency_dim=64, learn_sigma=learn_sigma)
    params = drawn(network.init, scale=0.3)
    x = jax.random.normal(jax.random.key(1), (4, 8, 12, 3))
    t, y = jnp.array([0.0, 0.21, 0.77, 1.0]), jnp.array([0, 5, 3, 1])
    found = network.velocity(params, x, t, y)
    expected = _torch_forward(params, x, t, y, 2, 4, 64, 3)
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.parametrize("name", SIZES)
def test_published_parameter_counts(name):
    network = backbones.create(name)
    assert round(network.num_params / 1e6, 2) == SIZES[name]
    assert network.null_label == 1000 and network.sample_shape == (32, 32, 4)


def _tiny(**options):
    sizes = {"sample_shape": (4, 4, 1), "num_classes": 3, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2}
    return backbones.create("SiT", **sizes, learn_sigma=False, **options)


def test_a_fresh_network_outputs_zero_and_null_is_a_class_of_its_own():
    network = _tiny()
    params = jax.jit(network.init)(jax.random.key(0))
    x, t = jax.random.normal(jax.random.key(1), (2, 4, 4, 1)), jnp.full(2, 0.4)
    np.testing.assert_array_equal(network.velocity(params, x, t, jnp.zeros(2, jnp.int32)), 0)
    params = drawn(network.init, scale=0.3)
    outputs = [network.velocity(params, x, t, jnp.full(2, label)) for label in (0, 2, network.null_label)]
    assert not np.allclose(outputs[0], outputs[2]) and not np.allclose(outputs[1], outputs[2])


def test_remat_changes_memory_not_numbers():
    plain, saved = _tiny(), _tiny(remat="full")
    params = drawn(plain.init, scale=0.3)
    x, t, y = jax.random.normal(jax.random.key(1), (2, 4, 4, 1)), jnp.full(2, 0.4), jnp.array([0, 1])
    gradient = lambda network: jax.jit(jax.grad(lambda p: (network.velocity(p, x, t, y) ** 2).sum()))  # noqa: E731
    for one, two in zip(jax.tree.leaves(gradient(plain)(params)), jax.tree.leaves(gradient(saved)(params)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert "remat" in str(jax.make_jaxpr(gradient(saved))(params)) and "remat" not in str(jax.make_jaxpr(gradient(plain))(params))


def test_bfloat16_matmuls_keep_float32_weights_and_output():
    exact, half = _tiny(), _tiny(dtype="bfloat16")
    params = drawn(half.init)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0))))
    x, t, y = jax.random.normal(jax.random.key(1), (2, 4, 4, 1)), jnp.full(2, 0.4), jnp.array([0, 1])
    found, expected = half.velocity(params, x, t, y), exact.velocity(params, x, t, y)
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "SiT-M/2"}, "choose one of"),
        ({"patch_size": 3}, "patch_size 3"),
        ({"num_heads": 3}, "num_heads"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"remat": "some"}, "remat"),
        ({"hidden": 3}, "hidden"),
        ({"frequency_dim": 7}, "even"),
    ],
)
def test_bad_sizes_are_refused(options, said):
    sizes = {"name": "SiT", "sample_shape": (4, 4, 1), "num_classes": 3, "patch_size": 2, "width": 16, "depth": 1, "num_heads": 2}
    with pytest.raises(ValueError, match=said):
        backbones.create(**(sizes | options))


def test_patches_are_cut_and_put_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    tokens = layers.patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[1, 4].reshape(2, 2, 3), x[1, 2:4, 2:4])
    np.testing.assert_array_equal(layers.unpatchify(tokens, 2, (2, 3)), x)
