"""Adjoint Matching with several rewards: one linearisation, a loss that is affine in the weights, and MARBLE on its gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.algorithms import adjoint_matching as am
from jaxdrl.balancing import gradients
from jaxdrl.balancing.accumulation import accumulate
from jaxdrl.flow import ode
from jaxdrl.flow.memoryless import Schedule, lean_adjoint, lean_adjoints
from jaxdrl.training.methods import adjoint
from tests.flow.gaussians import gaussian_velocity

BATCH, DIM, STEPS, COUNT = 12, 2, 8, 3
KEY = jax.random.key(7)
WEIGHTS = (1.0, 0.5, 2.0)


def _velocity(params, x, t, y):
    hidden = jnp.tanh(x @ params["first"] + t[:, None])
    return hidden @ params["final_linear"]


def _reward(x, y):
    """Three rewards; the last does not apply to labels below 4."""
    applies = y >= 4
    distance = jnp.sqrt(jnp.where(applies, jnp.sum(x**2, axis=1), 1.0))
    return jnp.stack([jnp.sin(x).sum(axis=1), -jnp.cos(x[:, 0]) * x[:, 1], jnp.where(applies, distance, jnp.nan)], axis=1)


def _settings(**options):
    options = {"reward_weights": WEIGHTS, "reward_scale": 1.5} | options
    return am.Settings(schedule=Schedule(num_steps=STEPS), **options)


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _close(found, expected, tolerance=1e-6):
    """Relative to the whole, as rounding is."""
    found, expected = _flat(found), _flat(expected)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def problem():
    """theta, and buffers of the same trajectories: of every reward, of their weighted sum, and of each alone."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    base = {"first": draw(DIM, 6), "final_linear": draw(6, DIM)}
    params = jax.tree.map(lambda leaf: leaf + 0.1 * draw(*leaf.shape), base)
    noise, labels = draw(BATCH, DIM) * 2, jnp.arange(BATCH)
    with jax.default_matmul_precision("highest"):
        run = lambda function, reward: function(_velocity, params, base, reward, noise, labels, KEY, _settings())  # noqa: E731
        alone = lambda i: run(am.collect, lambda x, y: _reward(x, jnp.full_like(y, 9))[:, i])[0]  # noqa: E731
        collect = jax.jit(
            lambda: (
                run(am.collect_per_reward, _reward),
                run(am.collect, _reward),
                [alone(i) for i in range(COUNT)],
            )
        )
        (each, metrics), (summed, summed_metrics), singles = collect()
    return params, each, summed, singles, metrics, summed_metrics


def _losses(settings, threshold=0.0):
    return lambda params, part: am.per_reward_losses(_velocity, params, part, KEY, jnp.float32(threshold), settings)


def _separate(params, batch, settings):
    """grad S_1 .. grad S_m and grad C, by forward mode."""

    def means(params):
        sums, (weights, _) = _losses(settings)(params, batch)
        return sums / weights

    parts = jax.jit(jax.jacfwd(means))(params)
    return np.concatenate([np.asarray(leaf).reshape(COUNT + 1, -1) for leaf in jax.tree.leaves(parts)], axis=1)


def _balanced(params, batch, settings, **options):
    own = gradients.Settings(**options)
    count = batch.adjoints.shape[1]
    step = lambda p, b: gradients.balanced(_losses(settings), p, b, gradients.initial(count), jnp.int32(0), own)  # noqa: E731
    return jax.jit(step)(params, batch)


def test_adjoints_share_every_linearisation_of_the_base():
    schedule, seen = Schedule(num_steps=STEPS), []
    states, terminals = (jax.random.normal(jax.random.key(i), (n, 5, DIM)) for i, n in ((0, STEPS + 1), (1, COUNT)))

    def velocity(x, t):
        jax.debug.callback(lambda _: seen.append(1), x[0, 0])
        return jnp.tanh(x @ jnp.array([[0.5, -1.0], [0.3, 0.8]]) + t[:, None])

    found, base = lean_adjoints(velocity, states, terminals, schedule)
    jax.effects_barrier()
    assert len(seen) == STEPS + 1
    for i in range(COUNT):
        alone, alone_base = lean_adjoint(velocity, states, terminals[i], schedule)
        _close(found[:, i], alone)
        np.testing.assert_array_equal(base, alone_base)


def test_every_adjoint_is_that_of_its_reward_alone(problem):
    _, each, summed, singles, metrics, summed_metrics = problem
    half = (0.5 * _settings().schedule.gain ** 2).reshape(1, -1, 1).astype(np.float32)
    applies = np.arange(BATCH) >= 4
    for i, single in enumerate(singles):
        rows = applies if i == 2 else np.ones(BATCH, bool)
        np.testing.assert_array_equal(each.states, single.states)
        _close((each.base - half * each.adjoints[:, i])[rows], single.targets[rows])
    assert not np.asarray(each.adjoints[:4, 2]).any() and np.asarray(each.adjoints[4:, 2]).any()
    assert np.isfinite(each.adjoints).all() and np.isnan(each.rewards[:4, 2]).all() and np.isfinite(each.rewards[4:]).all()
    combined = np.einsum("i,bi...->b...", np.float32(WEIGHTS), each.adjoints)
    _close(each.base - half * combined, summed.targets, 2e-6)
    np.testing.assert_array_equal(each.rewards, summed.rewards)
    total = np.nansum(np.asarray(each.rewards) * np.float32(WEIGHTS), axis=1)
    assert float(metrics["reward_mean"]) == pytest.approx(total.mean(), rel=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, summed_metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ((1.0, 1.0, 1.0), {}),
        (WEIGHTS, {"subset_reduction": "mean", "outlier_mask": False}),
        pytest.param(WEIGHTS, {"subset_reduction": "mean"}, marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_affine_in_the_weights(problem, weights, options):
    """grad C + sum_i c_i grad S_i is the gradient for the summed reward, mask and all; c = 1 gives that of the plain sum."""
    params, each, *_ = problem
    settings = _settings(reward_weights=weights, **options)
    half = (0.5 * settings.schedule.gain**2).reshape(1, -1, 1).astype(np.float32)
    targets = each.base - half * np.einsum("i,bi...->b...", np.float32(weights), each.adjoints)
    summed = am.Buffer(each.states, targets, each.labels)

    @jax.jit
    def both(params):
        whole = jax.grad(lambda p: am.loss(_velocity, p, summed, KEY, jnp.float32(0.0), settings), has_aux=True)(params)
        return whole, gradients.combined(_losses(settings), params, each, jnp.array([*weights, 1.0]))

    (expected, (threshold, expected_metrics)), (found, metrics) = both(params)
    _close(found, expected)
    assert float(threshold) == pytest.approx(float(metrics["threshold"]), rel=1e-6)
    assert (float(threshold) > 0) == settings.outlier_mask
    for name in ("loss", "masked_share"):
        assert float(metrics[name]) == pytest.approx(float(expected_metrics[name]), rel=1e-5, abs=1e-7)


def test_the_tuned_law_tilts_by_the_combined_weights():
    """Data N(m, s^2), rewards b_i x: N(m + lambda sum_i c_i b_i s^2, s^2), from the adjoints of each reward."""
    mean, std, steps, slopes, weights = 0.3, 0.7, 50, jnp.array([1.2, -0.4]), (0.75, 1.5)
    schedule = Schedule(num_steps=steps, gain_eps=0.0)
    settings = am.Settings(schedule=schedule, reward_scale=2.0, reward_weights=weights)
    base, times = gaussian_velocity(mean, std), jnp.asarray(schedule.times)
    velocity = lambda params, x, t, y: base(x, t) + jnp.interp(t, times, params)[:, None]  # noqa: E731
    zero, noise = jnp.zeros(steps + 1), jax.random.normal(jax.random.key(1), (8, 1))
    labels = jnp.zeros(8, jnp.int32)
    rewards = lambda x, y: x * slopes  # noqa: E731
    each = jax.jit(lambda: am.collect_per_reward(velocity, zero, zero, rewards, noise, labels, KEY, settings)[0])()
    # The minimum of C + sum_i c_i S_i at each step; it does not depend on x here.
    best = -0.5 * schedule.gain**2 * np.einsum("i,biks->bk", weights, each.adjoints)
    np.testing.assert_allclose(best.std(axis=0), 0, atol=2e-4)
    sample = jax.jit(lambda p: ode.sample(lambda x, t: velocity(p, x, t, None), noise, ode.uniform_grid(400), method="euler"))
    shift = float((sample(jnp.append(best.mean(axis=0), 0.0)) - sample(zero)).mean())
    assert shift / (2.0 * float(jnp.array(weights) @ slopes) * std**2) == pytest.approx(1.0005, abs=0.002)


def test_marble_solves_for_the_true_gradients(problem):
    """Its Gram matrix is that of the S_i, without the control cost, and no reward loses where two are nearly opposite."""
    params, each, *_ = problem
    opposed = each._replace(adjoints=each.adjoints.at[:, 1].set(-each.adjoints[:, 0] + 0.3 * each.adjoints[:, 1]))
    settings = _settings(reward_weights=(1 / 3,) * COUNT)
    found, state, metrics = _balanced(params, opposed, settings, gram="exact")
    parts = _separate(params, opposed, settings)
    np.testing.assert_allclose(state.gram, parts[:-1] @ parts[:-1].T, rtol=1e-4)
    direction = _flat(found) - parts[-1]
    cosines = parts[:-1] @ direction / np.linalg.norm(parts[:-1], axis=1) / np.linalg.norm(direction)
    plain = parts[:-1].sum(axis=0)
    assert (parts[:-1] @ plain).min() < 0 < cosines.min()
    np.testing.assert_allclose(metrics["cosine"], cosines, atol=1e-3)
    assert float(metrics["conflict_rate"]) > 0
    norms = np.linalg.norm(parts[:-1], axis=1)
    np.testing.assert_allclose(metrics["gram_norm"], norms, rtol=1e-4)
    _close(direction, norms.mean() * np.asarray(metrics["alpha"]) @ (parts[:-1] / norms[:, None]), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gram", gradients.GRAMS)
def test_marble_with_one_reward_is_the_sum(problem, gram):
    params, _, _, singles, *_ = problem
    rows, half = slice(4, None), (0.5 * _settings().schedule.gain ** 2).reshape(1, -1, 1).astype(np.float32)
    alone = problem[1]._replace(adjoints=problem[1].adjoints[:, :1], rewards=problem[1].rewards[:, :1])
    alone = jax.tree.map(lambda leaf: leaf[rows], alone)
    buffer = am.Buffer(alone.states, alone.base - half * alone.adjoints[:, 0], alone.labels)
    settings = _settings(reward_weights=(1.0,))
    expected = jax.jit(jax.grad(lambda p: am.loss(_velocity, p, buffer, KEY, jnp.float32(0.0), settings)[0]))(params)
    found, _, metrics = _balanced(params, alone, settings, gram=gram)
    _close(found, expected)
    assert float(metrics["alpha"][0]) == 1.0
    np.testing.assert_array_equal(alone.states, singles[0].states[rows])


@pytest.mark.slow
@pytest.mark.parametrize("gram", gradients.GRAMS)
def test_a_reward_that_applies_nowhere_has_no_say(problem, gram):
    params, each, *_ = problem
    found, _, metrics = _balanced(params, jax.tree.map(lambda leaf: leaf[:4], each), _settings(), gram=gram)
    assert np.isfinite(_flat(found)).all() and float(metrics["alpha"][2]) == 0 and float(metrics["alpha"].sum()) > 0.99


def test_micro_batches_change_no_number(problem):
    """The mask looks at the norms of all trajectories; a trajectory that is not finite counts in no part."""
    params, each, summed, *_ = problem
    settings, parts, threshold = _settings(), 3, jnp.float32(2.0)
    each = each._replace(adjoints=each.adjoints.at[5].set(jnp.nan))
    summed = summed._replace(targets=summed.targets.at[5].set(jnp.inf))
    coefficients = jnp.array([0.2, 0.5, 0.3, 1.0])

    @jax.jit
    def ways(params):
        whole = lambda p: am.loss(_velocity, p, summed, KEY, threshold, settings)  # noqa: E731
        sums = lambda p, part: am.loss_sums(_velocity, p, part, KEY, settings)  # noqa: E731
        masked, moved = adjoint.masked_in_parts(_velocity, params, summed, KEY, threshold, settings, parts)
        masked_each, _ = adjoint.masked_in_parts(_velocity, params, each, KEY, threshold, settings, parts)
        return (
            (jax.grad(whole, has_aux=True)(params), moved, masked.keep, masked_each.keep),
            accumulate(sums, params, masked, parts),
            gradients.combined(_losses(settings, threshold), params, each, coefficients),
            gradients.combined(_losses(settings), params, masked_each, coefficients, parts),
        )

    ((expected, (new, expected_metrics)), moved, keep, keep_each), (found, metrics), (one, _), (split, split_metrics) = ways(
        params
    )
    assert not keep[5] and 0 < keep.sum() < BATCH - 1 and float(moved) == float(new)
    np.testing.assert_array_equal(keep, keep_each)
    _close(found, expected)
    _close(split, one)
    for name in ("loss", "masked_share"):
        for part in (metrics, split_metrics):
            assert float(part[name]) == pytest.approx(float(expected_metrics[name]), rel=1e-5)
    assert "threshold" not in split_metrics
    with pytest.raises(ValueError, match="no mask"):
        am.loss_sums(_velocity, params, summed, KEY, settings)


def test_size_of_the_subset():
    for fraction, size in ((0.4, 4), (0.01, 1), (1.0, STEPS)):
        settings = dataclasses.replace(_settings(), timestep_fraction=fraction)
        assert am.subset_size(settings) == size == len(am.draw_subset(KEY, settings))
