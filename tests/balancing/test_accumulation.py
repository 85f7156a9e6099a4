"""Any split of a batch gives the gradient of the whole, with weights that differ between the parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.balancing.accumulation import accumulate


def _loss(params, batch):
    """A masked mean of squares; the mask is uneven, so that a mean of means would be wrong."""
    x, mask = batch
    values = mask * jnp.sum((jnp.tanh(x @ params["w"]) + params["b"] - x[:, :3]) ** 2, axis=1)
    return values.sum(), (mask.sum(), {"loss": (values.sum(), mask.sum()), "x": (x.sum(), jnp.float32(x.size))})


def _many(params, batch):
    """Three losses with masks of their own from one forward pass; the last has no sample."""
    x, mask = batch
    values = jnp.sum((jnp.tanh(x @ params["w"]) + params["b"] - x[:, :3]) ** 2, axis=1)
    masks = jnp.stack([mask, 1 - mask, jnp.zeros_like(mask)])
    return masks @ values, (masks.sum(axis=1), {})


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    params = {"w": jnp.asarray(random.normal(size=(5, 3)), jnp.float32), "b": jnp.zeros(3)}
    x = jnp.asarray(random.normal(size=(24, 5)), jnp.float32)
    mask = jnp.asarray(random.random(24) < np.linspace(0.05, 0.95, 24), jnp.float32)
    return params, (x, mask)


def _close(found, expected):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * scale), found, expected)


@pytest.mark.parametrize("micro_batches", [1, 3, 24])
def test_every_split_gives_the_gradient_of_the_whole(problem, micro_batches):
    params, batch = problem
    expected = jax.grad(lambda params: _loss(params, batch)[0] / batch[1].sum())(params)
    found, metrics = jax.jit(lambda params, batch: accumulate(_loss, params, batch, micro_batches))(params, batch)
    _close(found, expected)
    assert float(metrics["loss"]) == pytest.approx(float(_loss(params, batch)[0] / batch[1].sum()), rel=1e-6)
    assert float(metrics["x"]) == pytest.approx(float(batch[0].mean()), rel=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_many_losses_give_their_gradients_side_by_side(problem, micro_batches):
    params, batch = problem
    found, _ = jax.jit(lambda params, batch: accumulate(_many, params, batch, micro_batches))(params, batch)
    for row, mask in enumerate([batch[1], 1 - batch[1]]):
        expected = jax.grad(lambda params, m=mask: _loss(params, (batch[0], m))[0] / m.sum())(params)
        _close(jax.tree.map(lambda leaf, row=row: leaf[row], found), expected)
    assert all((leaf[2] == 0).all() for leaf in jax.tree.leaves(found))  # no weight, no gradient, and no NaN


def test_sums_stay_in_float32(problem):
    """Small parameters in bfloat16 do not round the sum of many micro-batches."""
    params, batch = problem
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    found, _ = jax.eval_shape(lambda params, batch: accumulate(_loss, params, batch, 24), half, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


def test_a_split_that_does_not_divide(problem):
    params, batch = problem
    with pytest.raises(ValueError, match="24 does not divide into 5"):
        accumulate(_loss, params, batch, 5)
