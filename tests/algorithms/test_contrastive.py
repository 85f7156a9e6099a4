"""NT-Xent against PyTorch's cross-entropy, with its gradient, and what views and projections do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdrl.algorithms import contrastive
from jaxdrl.algorithms.augmentation import views


def features(weights, images):
    """A linear encoder, so that the oracle needs no network."""
    return images.reshape(len(images), -1) @ weights


def _state():
    return contrastive.init(jax.random.key(0), 0.3 * jax.random.normal(jax.random.key(1), (16, 6)), 6)


def test_loss_and_gradient_equal_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    state, key = _state(), jax.random.key(5)
    images = jax.random.uniform(jax.random.key(2), (6, 4, 4, 1), minval=-1, maxval=1)
    found, gradient = jax.value_and_grad(contrastive.loss)(state, features, images, key)

    both = np.concatenate([np.asarray(views(k, images)) for k in jax.random.split(key)])
    weights = [torch.tensor(np.asarray(w), dtype=torch.float64, requires_grad=True) for w in (state.encoder, *state.head)]
    hidden = functional.gelu(torch.tensor(both).double().flatten(1) @ weights[0] @ weights[1], approximate="tanh")
    z = functional.normalize(hidden @ weights[2], dim=-1)
    scores = (z @ z.T / contrastive.TEMPERATURE).masked_fill(torch.eye(12, dtype=torch.bool), float("-inf"))
    expected = functional.cross_entropy(scores, (torch.arange(12) + 6) % 12)
    expected.backward()
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), weights, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-3, atol=1e-5)


def test_loss_has_its_closed_forms():
    """Equal projections: log(2N - 1). Orthogonal pairs: log(1 + (2N - 2) exp(-1 / tau))."""
    assert float(contrastive.nt_xent(jnp.ones((8, 5)))) == pytest.approx(np.log(7), rel=1e-5)
    pairs = jnp.concatenate([jnp.eye(4), jnp.eye(4)])
    expected = np.log(1 + 6 * np.exp(-1 / contrastive.TEMPERATURE))
    assert float(contrastive.nt_xent(3.0 * pairs)) == pytest.approx(expected, rel=1e-4)


def test_update_is_one_optimizer_step_on_encoder_and_head():
    state, optimizer = _state(), optax.sgd(0.1)
    images, key = jax.random.normal(jax.random.key(2), (6, 4, 4, 1)), jax.random.key(5)
    after, _, value = contrastive.update(state, optimizer.init(state), optimizer, features, images, key)
    gradient = jax.grad(contrastive.loss)(state, features, images, key)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state, gradient)
    for one, two in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert float(contrastive.loss(after, features, images, key)) < float(value)
    np.testing.assert_array_equal(contrastive.result(after), after.encoder)
