"""The small encoders and the objectives that train them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdrl import encoders
from jaxdrl.algorithms import augmentation, contrastive, self_distillation
from jaxdrl.encoders import small_convnet
from jaxdrl.errors import UserError

SIZES = {
    "small-vit": {"width": 16, "depth": 2, "feature_dim": 16},
    "small-convnet": {"width": 8, "depth": 2, "feature_dim": 12},
}


def _create(name):
    network = encoders.create(name, image_shape=(8, 8, 1), **SIZES[name])
    params = network.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return network, jax.tree.unflatten(structure, noisy)


@pytest.mark.parametrize("name", SIZES)
def test_features_are_smooth_in_the_image(name):
    """The directional derivative from autodiff equals a finite difference: no kink, nothing detached."""
    network, params = _create(name)
    images, direction = jax.random.normal(jax.random.key(2), (2, 3, 8, 8, 1))
    value = jax.jit(lambda s: jnp.sum(jnp.sin(network.features(params, images + s * direction)["pooled"])))
    finite = (value(1e-2) - value(-1e-2)) / 2e-2
    assert float(jax.grad(value)(0.0)) == pytest.approx(float(finite), rel=0.02)
    features = network.features(params, images)
    assert features["pooled"].shape == (3, network.feature_dim) == (3, SIZES[name]["feature_dim"])
    assert features["patches"].ndim == 3


def test_the_transformer_can_put_the_mean_patch_token_beside_the_class_token():
    network = encoders.create("small-vit", image_shape=(8, 8, 1), width=16, depth=2, feature_dim=32)
    found = network.features(network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (3, 8, 8, 1)))
    np.testing.assert_array_equal(found["pooled"][:, :16], found["global"])
    np.testing.assert_allclose(found["pooled"][:, 16:], found["patches"].mean(axis=1), rtol=1e-6)
    assert "mean patch token" in network.spec("f").pooling and network.feature_dim == 32


@pytest.mark.parametrize("name", SIZES)
def test_images_do_not_mix(name):
    network, params = _create(name)
    images = jax.random.normal(jax.random.key(2), (4, 8, 8, 1))
    alone = network.features(params, images[2:3])["pooled"]
    np.testing.assert_allclose(network.features(params, images)["pooled"][2:3], alone, atol=1e-5)


def test_neighbourhoods_make_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    for stride in (1, 2):
        expected = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        found = small_convnet.neighbourhoods(x, stride) @ kernel.reshape(27, 5)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="small-vit"):
        encoders.create("dinov9")
    with pytest.raises(ValueError, match="halved"):
        encoders.create("small-convnet", image_shape=(6, 6, 1))
    with pytest.raises(ValueError, match="must be width or twice width"):
        encoders.create("small-vit", image_shape=(8, 8, 1), width=16, feature_dim=8)
    with pytest.raises(ValueError, match="unknown fields"):
        encoders.create("small-vit", image_shape=(8, 8, 1), heads=2)
    network, params = _create("small-vit")
    with pytest.raises(ValueError, match="takes images"):
        network.features(params, jnp.zeros((1, 16, 16, 1)))


def test_statistics_of_other_features_are_refused():
    network, _ = _create("small-vit")
    one, two = network.spec("abc"), network.spec("abd")
    one.require_same(network.spec("abc"))
    with pytest.raises(UserError, match=r"fingerprint \(abc and abd\)"):
        one.require_same(two)
    usual, other = (encoders.create("vit-mae-large", **fields).spec("a") for fields in ({}, {"eps": 1e-6, "attention": "xla"}))
    assert usual.options == "" and other.options == "eps=1e-06"


def test_nt_xent_against_explicit_sums():
    z = np.asarray(jax.random.normal(jax.random.key(0), (8, 5)), np.float64)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for i in range(8):
        scores = np.exp(unit @ unit[i] / contrastive.TEMPERATURE)
        total -= np.log(scores[(i + 4) % 8] / (scores.sum() - scores[i]))
    assert float(contrastive.nt_xent(jnp.asarray(z, jnp.float32))) == pytest.approx(total / 8, rel=1e-4)


def test_sinkhorn_knopp_uses_all_prototypes_equally():
    plan = self_distillation.sinkhorn_knopp(0.1 * jax.random.normal(jax.random.key(0), (64, 8)))
    np.testing.assert_allclose(plan.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(axis=0), 8, rtol=0.05)


def test_koleo_prefers_spread_features():
    line = jnp.linspace(0, 0.1, 16)
    near = jnp.stack([jnp.cos(line), jnp.sin(line)], axis=1)
    far = jnp.stack([jnp.cos(60 * line), jnp.sin(60 * line)], axis=1)
    assert float(self_distillation.koleo(far)) < float(self_distillation.koleo(near)) - 1


@pytest.mark.parametrize("objective", [self_distillation, contrastive])
def test_training_pulls_views_of_one_image_together(objective):
    """SimCLR: views' features agree more, about their common mean. DINO: its cross-entropy falls, which equal prototypes' cannot."""
    from sklearn.datasets import load_digits

    network, params = _create("small-vit")
    features = lambda p, images: network.features(p, images)["pooled"]  # noqa: E731
    state = objective.init(jax.random.key(0), params, 16)
    optimizer = optax.adam(3e-3)
    opt_state = optimizer.init(objective.trainable(state))
    images = jnp.asarray(load_digits().images[:16, ..., None] / 8 - 1, jnp.float32)

    def agreement(weights):
        found = []
        for seed in range(8):
            one, two = (features(weights, augmentation.views(k, images)) for k in jax.random.split(jax.random.key(seed)))
            one, two = (
                (part - part.mean(0)) / jnp.linalg.norm(part - part.mean(0), axis=1, keepdims=True) for part in (one, two)
            )
            found.append(float(jnp.mean(jnp.sum(one * two, axis=1))))
        return np.mean(found)

    before, losses = agreement(objective.result(state)), []
    update = jax.jit(lambda s, o, k: objective.update(s, o, optimizer, features, images, k))
    for key in jax.random.split(jax.random.key(4), 150):
        state, opt_state, loss = update(state, opt_state, key)
        losses.append(float(loss))
    if objective is contrastive:
        assert agreement(objective.result(state)) > before + 0.1
    else:
        assert np.mean(losses[-20:]) < np.mean(losses[:10]) - 0.5


def test_views_keep_shape_and_vanish_at_strength_zero():
    images = jax.random.uniform(jax.random.key(0), (3, 8, 8, 2), minval=-1, maxval=1)
    np.testing.assert_allclose(augmentation.views(jax.random.key(1), images, 0.0), images, atol=1e-5)
    seen = augmentation.views(jax.random.key(1), images)
    assert seen.shape == images.shape and not np.allclose(seen, images, atol=0.1)
