"""SiT's initialisation, and its scanned form against the unrolled one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import backbones
from tests.drawing import drawn

SIZES = {"sample_shape": (4, 6, 2), "num_classes": 3, "patch_size": 2, "width": 32, "depth": 3, "num_heads": 4}


def _stacked(params):
    blocks = [params[f"blocks_{index}"] for index in range(SIZES["depth"])]
    rest = {name: value for name, value in params.items() if not name.startswith("blocks_")}
    return rest | {"blocks_0_3": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_blocks_equal_unrolled_ones(remat):
    plain = backbones.create("SiT", **SIZES, frequency_dim=16)
    scanned = backbones.create("SiT", **SIZES, frequency_dim=16, scan_layers=True, remat=remat)
    params = drawn(plain.init, scale=0.3)
    x, t, y = jax.random.normal(jax.random.key(2), (2, 4, 6, 2)), jnp.array([0.2, 0.7]), jnp.array([1, 3])
    value = lambda network: jax.jit(jax.value_and_grad(lambda p: (network.velocity(p, x, t, y) ** 2).sum()))  # noqa: E731
    expected, gradient = value(plain)(params)
    found, scanned_gradient = value(scanned)(_stacked(params))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert jax.tree.structure(scanned_gradient) == jax.tree.structure(jax.eval_shape(scanned.init, jax.random.key(0)))
    for one, two in zip(jax.tree.leaves(_stacked(gradient)), jax.tree.leaves(scanned_gradient), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4 * float(jnp.abs(one).max()))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_initialisation_is_the_published_one(scan_layers):
    """Xavier uniform with the fans of one block, N(0, 0.02) for time and label, zeros for what gates and what leaves."""
    network = backbones.create("SiT", **SIZES, scan_layers=scan_layers)
    params = jax.jit(network.init)(jax.random.key(0))
    blocks = params["blocks_0_3"] if scan_layers else _stacked(params)["blocks_0_3"]
    for kernel, fans in (
        (params["x_embedder"]["kernel"], 8 + 32),
        *((kernel, 32 + 96) for kernel in blocks["attn"]["qkv"]["kernel"]),
        *((kernel, 32 + 32) for kernel in blocks["attn"]["proj"]["kernel"]),
        *((kernel, 32 + 128) for kernel in blocks["mlp"]["fc1"]["kernel"]),
        *((kernel, 128 + 32) for kernel in blocks["mlp"]["fc2"]["kernel"]),
    ):
        limit = (6 / fans) ** 0.5
        assert 0.9 * limit < float(jnp.abs(kernel).max()) <= limit
        assert float(kernel.std()) == pytest.approx(limit / 3**0.5, rel=0.15)
    assert not np.allclose(blocks["mlp"]["fc1"]["kernel"][0], blocks["mlp"]["fc1"]["kernel"][1])
    for normal in (params["t_embedder_0"]["kernel"], params["t_embedder_2"]["kernel"], params["y_embedder"]):
        assert float(normal.std()) == pytest.approx(0.02, rel=0.2)
    for zero in (blocks["adaLN_modulation"], params["final_adaLN_modulation"], params["final_linear"]):
        assert all(not leaf.any() for leaf in jax.tree.leaves(zero))
    assert not any(blocks[part][name]["bias"].any() for part, name in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1")))
