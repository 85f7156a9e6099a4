"""The projection discriminator against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdrl.rewards import discriminator

MEANS = jnp.array([[0.4, -0.2], [-0.3, 0.5]])


def _gaussians(key, labels):
    """Real N(m_y, I) and fake N(-m_y, I): the log-ratio is exactly 2 <m_y, x>."""
    first, second = jax.random.split(key)
    shape = (*labels.shape, 2)
    return (
        jax.random.normal(first, shape) + MEANS[labels],
        jax.random.normal(second, shape) - MEANS[labels],
    )


def test_logit_converges_to_the_analytic_log_ratio():
    labels = jnp.arange(4096) % 2
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, 600))
    params = discriminator.init(jax.random.key(0), 2, 2, width=8)

    def step(carry, key):
        params, opt_state = carry
        real, fake = _gaussians(key, labels)
        grads = jax.grad(lambda p: discriminator.loss(p, real, labels, fake, labels)[0])(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(jax.random.key(1), 600)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, optimizer.init(params)))
    x = jax.random.normal(jax.random.key(2), (500, 2))
    for label in range(2):
        found = discriminator.logits(params, x, jnp.full(500, label))
        np.testing.assert_allclose(found, 2 * x @ MEANS[label], atol=0.12)


def test_r1_is_the_squared_image_gradient_through_the_encoder():
    matrix = jax.random.normal(jax.random.key(0), (12, 5))

    def features(images):
        return jnp.tanh(images.reshape(len(images), -1) @ matrix)

    params = discriminator.init(jax.random.key(1), 5, 3, width=7)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), params)
    images = jax.random.normal(jax.random.key(3), (6, 2, 2, 3))
    labels = jnp.arange(6) % 3
    found = discriminator.r1_penalty(params, features, images, labels)
    joint = params["projection"] @ (params["weight"] + params["embedding"][labels]).T
    inner = (1 - features(images) ** 2) * joint.T
    expected = jnp.mean(jnp.sum((inner @ matrix.T) ** 2, axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_projection_form_of_the_logit():
    params = discriminator.init(jax.random.key(0), 4, 3, width=6)
    params = jax.tree.map(lambda p: p + jax.random.normal(jax.random.key(1), p.shape), params)
    features, labels = jax.random.normal(jax.random.key(2), (5, 4)), jnp.array([0, 2, 1, 1, 0])
    h = np.asarray(features) @ np.asarray(params["projection"])
    expected = [
        h[i] @ np.asarray(params["weight"]) + h[i] @ np.asarray(params["embedding"])[y] + np.asarray(params["bias"])[y]
        for i, y in enumerate(labels)
    ]
    np.testing.assert_allclose(discriminator.logits(params, features, labels), expected, rtol=2e-5)


def test_mlp2_adds_two_residual_blocks_that_matter():
    params = discriminator.init(jax.random.key(0), 4, 3, width=6, head="mlp2")
    assert [block["up"].shape for block in params["blocks"].values()] == [(4, 6), (4, 6)]
    params = jax.tree.map(lambda p: p + 1.0, params)
    features, labels = jax.random.normal(jax.random.key(2), (5, 4)), jnp.zeros(5, jnp.int32)
    plain = {name: part for name, part in params.items() if name != "blocks"}
    assert not np.allclose(discriminator.logits(params, features, labels), discriminator.logits(plain, features, labels))


def test_reward_is_the_logit_and_is_differentiable():
    params = discriminator.init(jax.random.key(0), 3, 2, width=4)
    params = jax.tree.map(lambda p: p + 0.5, params)
    reward = discriminator.reward(params, lambda images: images.mean(axis=(1, 2)))
    images, labels = jnp.ones((4, 2, 2, 3)), jnp.array([0, 1, 0, 1])
    gradient = jax.grad(lambda x: reward(x, labels).sum())(images)
    assert gradient.shape == images.shape and np.all(np.abs(gradient) > 0)
    with pytest.raises(ValueError, match="mlp2"):
        discriminator.init(jax.random.key(0), 3, 2, head="deep")


def test_a_head_as_files_hold_it_can_be_bound_inside_jit():
    params = discriminator.init(jax.random.key(0), 5, 3, width=8)
    features, labels = jax.random.normal(jax.random.key(1), (4, 5)), jnp.array([0, 2, 1, 2])
    bound = jax.tree.map(np.asarray, params)
    found = jax.jit(lambda labels: discriminator.logits(bound, features, labels))(labels)
    np.testing.assert_allclose(found, discriminator.logits(params, features, labels), atol=1e-6)
