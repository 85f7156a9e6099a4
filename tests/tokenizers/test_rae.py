"""RAE against its authors' code and transformers' DINOv2 (outputs kept in `tests/golden`)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.encoders import preprocess, vit
from jaxdrl.errors import UserError
from jaxdrl.tokenizers import Rae
from jaxdrl.weights import from_torch, model_directory, to_torch
from tests.golden import cases

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official.npz")
RAE = Rae(**cases.RAE)


def _state():
    lines = [line.split(":") for line in GOLDEN["rae/names"]]
    state = {key: cases.draw(key, tuple(int(part) for part in shape.split(","))) for key, shape, _ in lines}
    return state | {"mean": cases.draw("mean", (32, 3, 3)), "var": np.abs(cases.draw("var", (32, 3, 3))) + np.float32(0.5)}


def _close(found, name, bound=1e-5):
    expected = GOLDEN[f"rae/{name}"]
    assert np.abs(found - expected).max() / np.abs(expected).max() < bound


def test_encoder_decoder_and_gradients_are_the_authors():
    params = from_torch(RAE, _state())
    latents, pullback = jax.vjp(lambda images: RAE.encode(params, images), jnp.asarray(cases.PICTURES))
    _close(latents, "latents", 2e-5)
    _close(pullback(jnp.asarray(cases.cotangent(latents.shape)))[0], "gradient_images", 2e-5)
    images, pullback = jax.vjp(lambda latents: RAE.decode(params, latents), jnp.asarray(cases.FEATURES))
    _close(images, "pictures")
    _close(pullback(jnp.asarray(cases.cotangent(images.shape)))[0], "gradient_latents")


def test_training_noise_is_uniform_in_size_and_comes_before_the_normalisation():
    params = from_torch(RAE, _state())
    images = jnp.broadcast_to(jnp.asarray(cases.PICTURES[:1]), (400, 48, 48, 3))
    noisy = RAE.encode(params, images, jax.random.key(0), noise=0.8) - RAE.encode(params, images)
    sizes = np.asarray((noisy * jnp.sqrt(params["var"] + 1e-5)).std(axis=(1, 2, 3)))
    assert abs(sizes.mean() - 0.4) < 0.04 and abs(sizes.std() - 0.8 / 12**0.5) < 0.03 and sizes.max() < 0.9
    with pytest.raises(ValueError, match="needs a key"):
        RAE.encode(params, images[:1], noise=0.8)


def test_round_trip_and_what_may_be_missing(tmp_path):
    params = from_torch(RAE, _state())
    back = to_torch(RAE, params)
    for key, value in _state().items():
        if key in ("embeddings.position_embeddings", "embeddings.mask_token", "layernorm.weight", "layernorm.bias"):
            continue
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    assert back["embeddings.position_embeddings"].shape == (1, 10, 32)
    jax.tree.map(np.testing.assert_array_equal, from_torch(RAE, back), params)
    with pytest.raises(UserError, match="missing: mean"):
        from_torch(RAE, {key: value for key, value in back.items() if key != "mean"})
    model_directory.save(tmp_path / "rae", RAE, params)
    loaded, weights = model_directory.load(tmp_path / "rae")
    assert loaded == RAE
    jax.tree.map(np.testing.assert_array_equal, weights, params)


def test_published_sizes():
    rae = Rae()
    shapes = jax.eval_shape(rae.init, jax.random.key(0))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    assert round(count(shapes["decoder"]) + 257 * 1152 / 1e6, 1) == 415.4
    assert rae.latent_shape((256, 256, 3)) == (16, 16, 768)
    with pytest.raises(ValueError, match="256 x 256"):
        rae.latent_shape((128, 128, 3))


def test_position_tables_keep_their_class_token_and_their_own_grid():
    table = np.random.default_rng(0).standard_normal((26, 4)).astype(np.float32)
    assert vit.resample_positions(table, (5, 5)) is table
    resized = vit.resample_positions(table, (3, 2))
    assert resized.shape == (7, 4)
    np.testing.assert_array_equal(resized[0], table[0])
    constant = np.ones((26, 4), np.float32)
    np.testing.assert_allclose(vit.resample_positions(constant, (3, 3)), 1, rtol=1e-6)


def test_bicubic_is_torchs():
    """Rows sum to 1; a = -.75 bends a ramp by 3 / 64 halfway between pixels, where a = -.5 would keep it."""
    for source, target in ((48, 42), (16, 40)):
        np.testing.assert_allclose(preprocess.resize_matrix(source, target).sum(axis=1), 1, rtol=1e-6)
    ramp = preprocess.resize_matrix(20, 40) @ np.arange(20.0)
    np.testing.assert_allclose(np.abs(ramp - (np.arange(40) + 0.5) / 2 + 0.5)[6:-6], 3 / 64, rtol=1e-4)
