"""Conversions on the linear path against exact Gaussian posteriors and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdrl.flow import path

MEAN, STD = 0.7, 0.4
KINDS = ("velocity", "data", "noise", "score")


def _exact(x, t):
    """Posterior means for data N(MEAN, STD^2), written from the joint Gaussian, not from the velocity."""
    variance = t**2 * STD**2 + (1 - t) ** 2
    data = MEAN + t * STD**2 / variance * (x - t * MEAN)
    noise = (1 - t) / variance * (x - t * MEAN)
    return {"data": data, "noise": noise, "velocity": data - noise, "score": -(x - t * MEAN) / variance}


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_conversions_match_exact_posteriors(source, target):
    x = jnp.linspace(-2, 2, 12).reshape(4, 3, 1)
    t = jnp.array([0.1, 0.35, 0.6, 0.9])
    exact = _exact(x, t.reshape(4, 1, 1))
    found = path.convert(exact[source], x, t, source=source, target=target)
    np.testing.assert_allclose(found, exact[target], rtol=2e-5, atol=2e-5)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_there_and_back(source, target, t, seed):
    first, second = jax.random.split(jax.random.key(seed))
    value, x = jax.random.normal(first, (2, 3)), jax.random.normal(second, (2, 3))
    times = jnp.full(2, t)
    there = path.convert(value, x, times, source=source, target=target)
    np.testing.assert_allclose(path.convert(there, x, times, source=target, target=source), value, atol=1e-3)


def test_interpolation_and_its_derivative():
    data, noise = jnp.ones((2, 3)), -2 * jnp.ones((2, 3))
    np.testing.assert_allclose(path.interpolate(data, noise, jnp.array([0.0, 1.0])), [[-2] * 3, [1] * 3])
    at = lambda t: path.interpolate(data, noise, jnp.full(2, t))  # noqa: E731
    np.testing.assert_allclose(jax.jacfwd(at)(0.3), path.velocity_target(data, noise), rtol=1e-6)


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="velocity"):
        path.convert(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones(1), source="eps", target="data")
