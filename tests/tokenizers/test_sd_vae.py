"""Stable Diffusion's autoencoder against diffusers (outputs kept in `tests/golden`)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxdrl import cli
from jaxdrl.tokenizers import SdVae
from jaxdrl.weights import from_torch, model_directory, to_torch
from tests.golden import cases

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official.npz")
VAE = SdVae(**cases.VAE)


def _state():
    lines = [line.split(":") for line in GOLDEN["vae/names"]]
    return {key: cases.draw(key, tuple(int(part) for part in shape.split(","))) for key, shape, _ in lines}


def _close(found, name, bound=1e-5):
    expected = GOLDEN[f"vae/{name}"]
    assert np.abs(found - expected).max() / np.abs(expected).max() < bound


def test_encoder_decoder_and_gradients_are_diffusers():
    params = from_torch(VAE, _state())

    @jax.jit
    def encoded(images):
        (mean, std), pullback = jax.vjp(lambda images: VAE.moments(params, images), images)
        return mean, std, pullback((jnp.asarray(cases.cotangent(mean.shape)), jnp.zeros_like(std)))[0]

    @jax.jit
    def decoded(latents):
        images, pullback = jax.vjp(lambda latents: VAE.decode(params, latents), latents)
        return images, pullback(jnp.asarray(cases.cotangent(images.shape)))[0]

    for found, name in zip(encoded(jnp.asarray(cases.IMAGES)), ("mean", "std", "gradient_images"), strict=True):
        _close(found, name)
    for found, name in zip(decoded(jnp.asarray(cases.LATENTS)), ("decoded", "gradient_latents"), strict=True):
        _close(found, name)


def test_scale_sample_and_mode():
    params = from_torch(VAE, _state())
    mean, std = VAE.moments(params, jnp.asarray(cases.IMAGES))
    np.testing.assert_allclose(VAE.encode(params, jnp.asarray(cases.IMAGES)), 0.18215 * mean, rtol=1e-6)
    keys = jax.random.split(jax.random.key(0), 300)
    drawn = jax.lax.map(lambda key: VAE.encode(params, jnp.asarray(cases.IMAGES), key), keys)
    np.testing.assert_allclose(drawn.std(axis=0) / (0.18215 * std), 1, atol=0.25)
    np.testing.assert_allclose((drawn.mean(axis=0) - 0.18215 * mean) / (0.18215 * std), 0, atol=0.3)


def test_decoding_in_parts_changes_nothing():
    params = from_torch(VAE, _state())
    latents = jax.random.normal(jax.random.key(0), (5, 2, 3, 4))
    np.testing.assert_allclose(VAE.decode(params, latents, batch_size=2), VAE.decode(params, latents), rtol=1e-4, atol=1e-4)


def test_round_trip_old_names_and_the_command_line(tmp_path):
    state = _state()
    params = from_torch(VAE, state)
    back = to_torch(VAE, params)
    assert back.keys() == state.keys() and all(np.array_equal(back[key], value) for key, value in state.items())
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in state.items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        renamed[key] = value[:, :, None, None] if "attentions.0." in key and value.ndim == 2 else value
    assert renamed.keys() != state.keys()
    jax.tree.map(np.testing.assert_array_equal, from_torch(VAE, renamed), params)
    model_directory.save(tmp_path / "vae", VAE, params)
    loaded, weights = model_directory.load(tmp_path / "vae")
    assert loaded == VAE
    jax.tree.map(np.testing.assert_array_equal, weights, params)
    assert cli.main(["export", f"--from={tmp_path / 'vae'}", f"--to={tmp_path / 'vae.safetensors'}"]) == 0
    assert safetensors.numpy.load_file(tmp_path / "vae.safetensors").keys() == state.keys()


def test_published_size_and_shapes():
    vae = SdVae()
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 2) == 83.65
    assert vae.latent_shape((256, 512, 3)) == (32, 64, 4)
    with pytest.raises(ValueError, match="multiple of 8"):
        vae.latent_shape((60, 64, 3))
    half = SdVae(**cases.VAE, dtype="bfloat16")
    params = from_torch(VAE, _state())
    found, exact = half.decode(params, jnp.asarray(cases.LATENTS)), VAE.decode(params, jnp.asarray(cases.LATENTS))
    assert found.dtype == jnp.float32 and 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
