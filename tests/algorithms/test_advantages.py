"""Group advantages against NumPy, line by line as the released trackers compute them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.algorithms.advantages import Settings, group_advantages

COMPUTE = jax.jit(group_advantages, static_argnums=(2, 3))


def _tracker(rewards, groups, spread, epsilon):
    """`PerPromptStatTracker.update` for one reward, NaN-aware, in float64."""
    rewards = np.asarray(rewards, np.float64)
    result = np.full_like(rewards, np.nan)
    for group in np.unique(groups):
        rows = groups == group
        std = np.nanstd(rewards if spread == "global" else rewards[rows]) + epsilon
        result[rows] = (rewards[rows] - np.nanmean(rewards[rows])) / std
    return result


@pytest.mark.parametrize("spread", ["global", "group"])
@pytest.mark.parametrize("epsilon", [1e-4, 0.3])
def test_like_the_released_tracker(spread, epsilon):
    random = np.random.default_rng(0)
    groups = random.integers(0, 7, size=60)
    rewards = random.normal(size=(3, 60)) * [[1.0], [0.01], [30.0]] + [[0.0], [5.0], [-100.0]]
    rewards[1, ::4] = np.nan
    found, metrics = COMPUTE(jnp.asarray(rewards), groups, 9, Settings(spread=spread, epsilon=epsilon))  # two groups are empty
    rewards = np.asarray(rewards, np.float32)  # 5 + .01 z loses digits here, not in the advantages
    for row in range(3):
        np.testing.assert_allclose(found[row], _tracker(rewards[row], groups, spread, epsilon), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(metrics["reward_mean"], np.nanmean(rewards, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["reward_spread"], np.nanstd(rewards.astype(np.float64), axis=1), rtol=1e-4)
    np.testing.assert_allclose(metrics["missing_share"], [0, 0.25, 0], atol=1e-6)
    means = np.stack([np.nanmean(np.where(groups == group, rewards, np.nan), axis=1) for group in groups], axis=1)
    np.testing.assert_allclose(metrics["group_spread"], np.sqrt(np.nanmean((rewards - means) ** 2, axis=1)), rtol=1e-3)


@pytest.mark.parametrize("epsilon", [1e-4, 0.0])
@pytest.mark.parametrize("spread", ["global", "group"])
def test_constant_groups_teach_nothing(spread, epsilon):
    """Exactly 0, also for a constant whose mean is not exact in float32, and for a group of one."""
    rewards = jnp.asarray([0.1] * 7 + [123.456] * 3 + [1.0, 2.0] + [9.0])
    groups = jnp.asarray([0] * 7 + [1] * 3 + [2] * 2 + [3])
    found, metrics = COMPUTE(rewards, groups, 5, Settings(spread=spread, epsilon=epsilon))
    assert (np.asarray(found)[[*range(10), 12]] == 0).all() and found[10] == -found[11] != 0
    assert float(metrics["zero_spread_share"]) == pytest.approx(3 / 4)
    everything, _ = COMPUTE(jnp.full(13, 0.1), jnp.arange(13) % 2, 5, Settings(spread=spread, epsilon=epsilon))
    assert (np.asarray(everything) == 0).all()


def test_scale_of_a_reward_does_not_matter_and_clipping_does():
    rewards = jnp.asarray(np.random.default_rng(1).normal(size=13))
    groups = jnp.arange(13) % 2
    first, _ = COMPUTE(rewards, groups, 5, Settings(epsilon=0.0))
    second, _ = COMPUTE(10 * rewards + 3, groups, 5, Settings(epsilon=0.0))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    clipped, _ = COMPUTE(rewards, groups, 5, Settings(epsilon=0.0, limit=0.5))
    np.testing.assert_allclose(clipped, np.clip(first, -0.5, 0.5), atol=1e-6)
    assert float(jnp.abs(first).max()) > 0.5


def test_a_reward_that_is_nowhere_defined():
    found, metrics = COMPUTE(jnp.full(13, jnp.nan), jnp.arange(13) % 2, 5, Settings())
    assert jnp.isnan(found).all() and float(metrics["missing_share"]) == 1 and float(metrics["zero_spread_share"]) == 0
    infinite, _ = COMPUTE(jnp.arange(13.0).at[2].set(jnp.inf), jnp.arange(13) % 2, 5, Settings())
    assert np.isnan(infinite).tolist() == [index == 2 for index in range(13)]


@pytest.mark.parametrize("options", [{"spread": "batch"}, {"epsilon": -1.0}, {"limit": 0.0}])
def test_ranges(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Settings(**options)
