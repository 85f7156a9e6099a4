"""Every family of published encoders against transformers and torch-fidelity (outputs kept in `tests/golden`)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import encoders
from jaxdrl.encoders import preprocess
from jaxdrl.errors import UserError
from jaxdrl.weights import from_torch, model_directory, to_torch
from tests.golden import cases

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official.npz")


def _state(name):
    """The file's content: drawn by name, as `make.py` drew it."""
    lines = [line.split(":") for line in GOLDEN[f"{name}/names"]]
    return {key: cases.draw(key, tuple(int(part) for part in shape.split(",") if part)) for key, shape, _ in lines}


def _encoder(name, **options):
    return encoders.create(name, **(cases.ENCODERS[name][2] | options))


def _close(found, expected, bound):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() / np.abs(expected).max() < bound


def _outputs(network, params, images):
    """What the golden file has, in transformers' shapes: all tokens (or the last map), and the pooled feature where it is special."""
    found = network.features(params, images)
    front = [found["cls"][:, None]] if "cls" in found and "projection" not in found else []
    tokens = jnp.concatenate([*front, *([found["registers"]] if "registers" in found else []), found["patches"]], axis=1)
    return tokens, found["pooled"]


@pytest.mark.parametrize("name", cases.ENCODERS)
def test_features_and_image_gradients_are_transformers(name):
    network = _encoder(name)
    params = from_torch(network, _state(name))
    special = f"{name}/pooled" in GOLDEN.files

    def outputs(images):
        tokens, pooled = _outputs(network, params, images)
        if name.startswith("convnext"):
            height, width = (side // 32 for side in network.preprocess.size)
            tokens = tokens.reshape(len(images), height, width, -1).transpose(0, 3, 1, 2)
        return (tokens, pooled) if special else (tokens,)

    found, pullback = jax.vjp(outputs, jnp.asarray(cases.PICTURES))
    _close(found[0], GOLDEN[f"{name}/tokens"], 1e-5)
    if special:
        _close(found[1], GOLDEN[f"{name}/pooled"], 1e-5)
    weights = [jnp.asarray(cases.cotangent(GOLDEN[f"{name}/{key}"].shape)) for key in ("tokens", "pooled")[: len(found)]]
    _close(pullback(tuple(weights))[0], GOLDEN[f"{name}/gradient"], 1e-5)


@pytest.mark.parametrize("name", cases.ENCODERS)
def test_files_come_back(name):
    """Bit for bit, but for positions that were resampled and for what the encoder does not use."""
    network, state = _encoder(name), _state(name)
    params = from_torch(network, state)
    back = to_torch(network, params)
    for key, value in back.items():
        if "position_embedding" not in key:
            # transformers saves SigLIP's vision tower without its prefix; whole models, which are published, have it.
            np.testing.assert_array_equal(value, state.get(key, state.get(key.removeprefix("vision_model."))), err_msg=key)
    jax.tree.map(np.testing.assert_array_equal, from_torch(network, back), params)
    used = {key.removeprefix("vision_model.") if key not in state else key for key in back}
    used |= {key for key in state if "position" in key}
    assert all("mask_token" in key for key in set(state) - used)


def test_inception_is_the_fid_network():
    """Bytes, TensorFlow 1's resize, 2048 features to 1e-6; sFID's channels last; logits without bias."""
    network, state = encoders.create("inception-v3-fid"), _state("inception")
    params = from_torch(network, state)

    found = jax.jit(network.features)(params, jnp.asarray(cases.PICTURES))
    _close(found["pool"], GOLDEN["inception/pool"], 1e-6)
    _close(found["spatial"], GOLDEN["inception/spatial"], 5e-6)  # one place; ours is the nearer to float64
    _close(found["logits"], GOLDEN["inception/logits"], 2e-6)
    assert network.feature_dim == 2048 and encoders.create("inception-v3-fid", pooling="spatial").feature_dim == 2023
    with pytest.raises(ValueError, match="but for Inception"):
        encoders.create("inception-v3-fid", dtype="bfloat16")
    back = to_torch(network, params)
    assert {key for key in state if "num_batches" not in key} == set(back)
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)


@pytest.mark.slow
def test_inceptions_image_gradient_is_the_authors():
    network = encoders.create("inception-v3-fid")
    params = from_torch(network, _state("inception"))
    with jax.enable_x64(True):  # rounding turns units of a ReLU network on and off, and its gradient jumps
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        weight = jnp.asarray(cases.cotangent(GOLDEN["inception/pool"].shape), jnp.float64)
        total = lambda images, params: (network.features(params, images)["pool"] * weight).sum()  # noqa: E731
        gradient = jax.jit(jax.grad(total))(jnp.asarray(cases.PICTURES, jnp.float64), double)
        _close(gradient, GOLDEN["inception/gradient"], 1e-9)


def test_whole_models_files_are_read():
    """Text towers, decoders, classifiers and prefixes of other classes are passed over; what is missing is still told."""
    extra = {"siglip-so400m-patch14-224": ["text_model.x", "logit_scale"], "clip-vit-large-patch14": ["text_projection.weight"]}
    for name, keys in extra.items():
        state = {k if k.startswith(("vision", "visual")) else f"vision_model.{k}": value for k, value in _state(name).items()}
        expected = from_torch(_encoder(name), _state(name))
        found = from_torch(_encoder(name), state | {key: np.zeros(1, np.float32) for key in keys})
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    for name, prefix, key in (("vit-mae-base", "vit.", "decoder.x"), ("convnextv2-atto", "convnextv2.", "classifier.bias")):
        state = {prefix + k: value for k, value in _state(name).items()} | {key: np.zeros(1, np.float32)}
        jax.tree.map(np.testing.assert_array_equal, from_torch(_encoder(name), state), from_torch(_encoder(name), _state(name)))
    state = _state("dinov3-vitb16")
    del state["layer.0.attention.v_proj.bias"]
    with pytest.raises(UserError, match=r"missing: layer\.0\.attention\.v_proj\.bias"):
        from_torch(_encoder("dinov3-vitb16"), state)


def test_tf1_resize_is_the_gather_formula():
    """src = dst in / out, corners in common, edges repeated."""
    for source, target in ((48, 299), (500, 299), (299, 299)):
        matrix = preprocess.resize_matrix(source, target, "tf1-bilinear")
        row = np.random.default_rng(0).standard_normal(source)
        place = np.arange(target) * (source / target)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, source - 1)
        expected = row[low] * (1 - (place - low)) + row[high] * (place - low)
        np.testing.assert_allclose(matrix @ row, expected, atol=1e-3)  # places are float32 there


@pytest.mark.parametrize("name", ["dinov3-vitb16", "convnextv2-atto"])
def test_image_gradients_and_r1_match_finite_differences_in_float64(name):
    """First derivative of a logit, and derivative by the head of the R1 penalty, which differentiates twice."""
    from jaxdrl.rewards import discriminator

    with jax.enable_x64(True):
        network = _encoder(name)
        double = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)  # noqa: E731
        params = double(from_torch(network, _state(name)))
        head = double(discriminator.init(jax.random.key(0), network.feature_dim, 3, width=8))
        head = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(1), leaf.shape, leaf.dtype), head)
        images = jnp.asarray(cases.PICTURES, jnp.float64)
        direction = jnp.asarray(np.random.default_rng(3).standard_normal(images.shape))
        labels = jnp.array([0, 2])
        features = jax.jit(lambda images: network.features(params, images)["pooled"])
        logit = lambda s: discriminator.logits(head, features(images + s * direction), labels).sum()  # noqa: E731
        finite = (logit(1e-3) - logit(-1e-3)) / 2e-3
        assert float(jax.grad(logit)(0.0)) == pytest.approx(float(finite), rel=2e-3)
        tilt = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape, leaf.dtype), head)
        penalty = jax.jit(
            lambda s: discriminator.r1_penalty(jax.tree.map(lambda a, b: a + s * b, head, tilt), features, images, labels)
        )
        finite = (penalty(1e-3) - penalty(-1e-3)) / 2e-3
        assert float(jax.grad(penalty)(0.0)) == pytest.approx(float(finite), rel=2e-3) and float(finite) != 0


def test_scan_remat_bfloat16_and_a_folder(tmp_path):
    name = "dinov3-vits16plus"
    plain, scanned = _encoder(name), _encoder(name, scan_layers=True, remat="full")
    params, stacked = (from_torch(network, _state(name)) for network in (plain, scanned))
    value = lambda network, weights: jax.jit(  # noqa: E731
        jax.grad(lambda images: (network.features(weights, images)["pooled"] ** 2).sum())
    )(jnp.asarray(cases.PICTURES))
    np.testing.assert_allclose(value(scanned, stacked), value(plain, params), rtol=1e-3, atol=1e-6)
    half = _encoder(name, dtype="bfloat16").features(params, jnp.asarray(cases.PICTURES))["pooled"]
    exact = plain.features(params, jnp.asarray(cases.PICTURES))["pooled"]
    assert half.dtype == jnp.float32 and 0 < float(jnp.abs(half - exact).max()) < 0.05 * float(jnp.abs(exact).max())
    model_directory.save(tmp_path / "model", plain, params)
    loaded, weights = model_directory.load(tmp_path / "model")
    assert loaded.fields == plain.fields and loaded.preprocess == plain.preprocess
    jax.tree.map(np.testing.assert_array_equal, weights, params)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("dinov2-large", 304.37),
        ("dinov2-giant", 1136.48),
        ("dinov3-vitb16", 85.66),
        ("siglip-so400m-patch14-384", 428.23),
        ("clip-vit-large-patch14", 303.97),
        ("vit-mae-large", 303.30),
        ("convnextv2-tiny", 27.87),
        ("inception-v3-fid", 23.85),
    ],
)
def test_published_sizes(name, millions):
    """Learned numbers of the published models, in millions (`tests/golden/published_encoders.py` compares them tensor by tensor)."""
    shapes = jax.eval_shape(encoders.create(name).init, jax.random.key(0))
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(millions, rel=2e-2)


def test_clips_text_tower(tmp_path):
    """The end of the text is found, nothing behind a token is seen, and the file of a whole model will do."""
    network, state = encoders.create_text("clip-vit-large-patch14-text", **cases.TEXT), _state("text")
    params = from_torch(network, state | {"logit_scale": np.zeros((), np.float32), "vision_model.x": np.zeros(1, np.float32)})
    found = network.features(params, jnp.asarray(cases.IDS))
    _close(found["tokens"], GOLDEN["text/tokens"], 1e-5)
    _close(found["projection"], GOLDEN["text/projection"], 1e-5)
    np.testing.assert_array_equal(found["pooled"], found["tokens"][jnp.arange(2), jnp.array([3, 8])])
    other = network.features(params, jnp.asarray(np.where(cases.IDS == 0, 50, cases.IDS)))
    np.testing.assert_allclose(other["projection"], found["projection"], atol=1e-6)
    model_directory.save(tmp_path / "model", network, params)
    loaded, weights = model_directory.load(tmp_path / "model")
    assert loaded.fields == network.fields
    jax.tree.map(np.testing.assert_array_equal, weights, params)
    assert set(to_torch(network, params)) == set(state)
    with pytest.raises(ValueError, match="unknown"):
        encoders.create_text("clip-text")
    with pytest.raises(ValueError, match="unknown fields"):
        encoders.create_text("clip-vit-large-patch14-text", heads=3)
