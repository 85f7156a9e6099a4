"""Rewards from choices: closed forms of the likelihood, and a head that finds what people like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import rewards
from jaxdrl.rewards import bradley_terry


def test_the_loss_is_the_likelihood_written_out():
    first, second, chosen = (np.array(row, np.float32) for row in ([1.0, 0.0, 3.0, 2.0], [0.0, 2.0, 3.5, 2.5], [1, 1, 0, 0.5]))
    value, metrics = bradley_terry.loss(jnp.asarray(first), jnp.asarray(second), jnp.asarray(chosen))
    chance = 1 / (1 + np.exp(second - first))
    expected = -np.mean(chosen * np.log(chance) + (1 - chosen) * np.log(1 - chance))
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["agreement"]) == pytest.approx(2 / 3)  # the tie does not count


def test_choices_follow_the_odds():
    key, ones = jax.random.key(0), jnp.ones(20_000)
    chosen = bradley_terry.choose(key, 1.5 * ones, 1.0 * ones, 0.25)
    assert float(chosen.mean()) == pytest.approx(1 / (1 + np.exp(-2)), abs=0.01)


def test_scores_are_standardised_and_of_the_class():
    mean, deviation = jnp.array([1.0, 2.0, 5.0]), jnp.array([2.0, 0.5, 0.0])
    head = bradley_terry.init(jax.random.key(0), mean, deviation, 2)
    head |= {"shared": jnp.array([1.0, 2.0, 9.0]), "own": jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 7.0]])}
    features = jnp.array([[3.0, 3.0, 8.0], [3.0, 3.0, 8.0]])
    np.testing.assert_allclose(bradley_terry.scores(head, features, jnp.array([0, 1])), [5.0, 6.0], rtol=1e-6)
    reward = rewards.create("bradley_terry", head=head, features=lambda images: images.reshape(len(images), -1))
    found = reward(features.reshape(2, 1, 1, 3), jnp.array([1, 2]))
    assert float(found[0]) == pytest.approx(6.0) and np.isnan(found[1])  # 2 is no class


def test_the_optimum_has_the_utilitys_differences():
    """Enough choices on linear features: differences of scores become differences of utilities, by temperature."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3)).astype(np.float32)
    utility = features @ np.array([1.0, -0.5, 0.0], np.float32)
    a, b = rng.integers(0, 400, (2, 60_000))
    chosen = bradley_terry.choose(jax.random.key(1), jnp.asarray(utility[a]), jnp.asarray(utility[b]), 0.5)
    head = bradley_terry.init(jax.random.key(2), jnp.zeros(3), jnp.ones(3), 1)
    labels = jnp.zeros(400, jnp.int32)

    @jax.jit
    def newton(shared):
        def value(shared):
            scores = bradley_terry.scores(head | {"shared": shared}, jnp.asarray(features), labels)
            return bradley_terry.loss(scores[a], scores[b], chosen)[0]

        return shared - jnp.linalg.solve(jax.hessian(value)(shared), jax.grad(value)(shared))

    shared = head["shared"]
    for _ in range(8):
        shared = newton(shared)
    np.testing.assert_allclose(shared, [2.0, -1.0, 0.0], atol=0.05)
