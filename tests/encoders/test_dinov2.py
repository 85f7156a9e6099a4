"""DINOv2 with its preprocessing against transformers and torch (outputs kept in `tests/golden`)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import encoders
from jaxdrl.encoders import preprocess, vit
from jaxdrl.errors import UserError
from jaxdrl.weights import from_torch, model_directory
from tests.golden import cases

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official.npz")


def _encoder(name, **options):
    return encoders.create(name, **cases.DINOV2_SIZES, **({"resolution": cases.DINOV2_RESOLUTION} | options))


def _state(name):
    lines = [line.split(":") for line in GOLDEN[f"{name}/names"]]
    return {key: cases.draw(key, tuple(int(part) for part in shape.split(","))) for key, shape, _ in lines}


def _close(found, expected, bound):
    assert np.abs(found - expected).max() / np.abs(expected).max() < bound


@pytest.mark.parametrize("name", cases.DINOV2)
def test_tokens_and_image_gradients_are_transformers(name):
    """Pixels of another size, a grid that is not square, a table for another grid, the names on disk."""
    network = _encoder(name)
    params = from_torch(network, _state(name))

    def tokens(images):
        found = network.features(params, images)
        return jnp.concatenate([found["cls"][:, None], found["registers"], found["patches"]], axis=1)

    found, pullback = jax.vjp(tokens, jnp.asarray(cases.PICTURES))
    _close(found, GOLDEN[f"{name}/tokens"], 1e-5)
    _close(pullback(jnp.asarray(cases.cotangent(found.shape)))[0], GOLDEN[f"{name}/gradient"], 1e-5)
    pooled = network.features(params, jnp.asarray(cases.PICTURES))["pooled"]
    np.testing.assert_allclose(pooled, found[:, 0], atol=2e-6)


def test_a_folder_remembers_resolution_and_pooling(tmp_path):
    network = _encoder("dinov2-base", pooling="class token, mean patch token")
    params = from_torch(network, _state("dinov2-base"))
    model_directory.save(tmp_path / "model", network, params)
    loaded, weights = model_directory.load(tmp_path / "model")
    assert loaded.fields == network.fields and loaded.preprocess == network.preprocess
    jax.tree.map(np.testing.assert_array_equal, weights, params)


def test_a_file_of_the_other_kind_is_refused():
    with pytest.raises(UserError, match=r"missing: embeddings\.register_tokens"):
        from_torch(_encoder("dinov2-with-registers-base"), _state("dinov2-base"))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(7, 20), (30, 11), (12, 15)])
def test_resizing_is_torchs(kernel, antialias, size):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).standard_normal((2, 12, 15, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images.transpose(0, 3, 1, 2)), size=size, mode=kernel, antialias=antialias, align_corners=False
    )
    found = preprocess.resize(jnp.asarray(images), size, kernel, antialias)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), atol=2e-5)
    with pytest.raises(ValueError, match="kernel"):
        preprocess.resize_matrix(12, 7, "lanczos", antialias)


def test_positions_as_dinov2s_own_code_resamples_them():
    """torch.hub's models scale by (16 + 0.1) / 37, which moves every place a little; transformers' do not."""
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((1 + 37 * 37, 4)).astype(np.float32)
    places = torch.from_numpy(table[1:].reshape(1, 37, 37, 4)).permute(0, 3, 1, 2)
    scale = (16 + 0.1) / 37
    expected = torch.nn.functional.interpolate(places, scale_factor=(scale, scale), mode="bicubic")
    found = vit.resample_positions(table, (16, 16), antialias=False, offset=0.1)
    np.testing.assert_allclose(found[1:].reshape(16, 16, 4), expected[0].permute(1, 2, 0).numpy(), atol=2e-5)
    np.testing.assert_array_equal(found[0], table[0])
    assert np.abs(found - vit.resample_positions(table, (16, 16), antialias=False)).max() > 0.05
    state = _state("dinov2-base")
    one, two = (from_torch(_encoder("dinov2-base", position_offset=offset), state)["positions"] for offset in (0.0, 0.1))
    assert np.abs(one - two).max() > 1e-3
