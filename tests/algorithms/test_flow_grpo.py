"""Flow-GRPO: the ratio before the first update, closed forms, the code's formulas in NumPy, and a small problem."""

import dataclasses
import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxdrl import algorithms
from jaxdrl.algorithms import flow_grpo as fg
from jaxdrl.algorithms.advantages import group_advantages
from jaxdrl.balancing.accumulation import accumulate
from jaxdrl.flow import ode
from jaxdrl.flow.memoryless import Schedule
from tests.flow.gaussians import gaussian_velocity

KEY = jax.random.key(0)
CODE = fg.Settings(kl_form="code", kl_weight=0.04, clip_range=0.05)
MEMORYLESS = fg.Settings(memoryless=Schedule(num_steps=12))
COLLECT = jax.jit(fg.collect, static_argnums=(0, 5))


def _velocity(params, x, t, y):
    """Two layers, different for each label."""
    hidden = jnp.tanh(x @ params["a"] + t[:, None] * params["b"] + params["c"][y])
    return hidden @ params["d"] - x


def _params(seed, dim=4, width=16):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = {"a": (dim, width), "b": (width,), "c": (2, width), "d": (width, dim)}
    return {name: jax.random.normal(key, shape) / 2 for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def _rollout(settings, size=12, k=None):
    labels = jnp.arange(size, dtype=jnp.int32) % 2
    noise = jax.random.normal(jax.random.key(5), (size, 4))
    # What only the loss reads is left at its default: fewer compilations.
    settings = dataclasses.replace(settings, clip_range=1e-4, kl_weight=0.004, kl_form="paper", advantage_limit=5.0)
    buffer, _ = COLLECT(_velocity, _params(0), noise, labels, KEY, settings)
    advantages = np.random.default_rng(0).uniform(-6, 6, size=size if k is None else (size, k))
    return buffer._replace(advantages=jnp.asarray(advantages, jnp.float32))


@partial(jax.jit, static_argnums=(2, 3))
def _mean_loss(params, batch, settings, micro_batches=1):
    """Gradient and metrics of the mean loss; the reference is elsewhere."""
    return accumulate(lambda params, part: fg.loss(_velocity, params, _params(2), part, settings), params, batch, micro_batches)


def _close(found, expected, tolerance=1e-5):
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale), found, expected)


@pytest.mark.parametrize("settings", [CODE, fg.Settings(shift=3.0, window=3, reduction="sum")], ids=["all steps", "window"])
def test_the_ratio_is_one_before_the_first_update(settings):
    """In micro-batches too; afterwards it is not."""
    batch = _rollout(settings)
    _, metrics = _mean_loss(_params(0), batch, settings, 4)
    # A matrix product in another batch rounds differently; nothing else may.
    assert float(metrics["ratio_deviation"]) < 2e-6 and float(metrics["clipped_share"]) == 0
    assert float(metrics["approximate_kl"]) < 1e-11
    moved = jax.tree.map(lambda leaf: 1.01 * leaf, _params(0))
    assert float(_mean_loss(moved, batch, settings, 4)[1]["ratio_deviation"]) > 1e-4


def test_the_ratio_is_one_up_to_a_rounding_without_matrix_products():
    """Images, with the memoryless SDE and the local linear integrator."""
    velocity = lambda scale, x, t, y: scale * x  # noqa: E731
    noise, scale = jax.random.normal(KEY, (6, 2, 3, 3)), jnp.float32(0.5)
    buffer, _ = COLLECT(velocity, scale, noise, jnp.zeros(6, jnp.int32), KEY, MEMORYLESS)
    buffer = buffer._replace(advantages=jnp.ones(6))
    _, (_, metrics) = jax.jit(lambda scale, buffer: fg.loss(velocity, scale, scale, buffer, MEMORYLESS))(scale, buffer)
    total, count = metrics["ratio_deviation"]
    assert float(total / count) <= 2.0**-23 and float(count) == 66 and float(metrics["kl"][0]) == 0
    _, (_, metrics) = jax.jit(lambda scale, buffer: fg.loss(velocity, 2 * scale, scale, buffer, MEMORYLESS))(scale, buffer)
    assert float(metrics["ratio_deviation"][0] / count) > 1e-2


def test_log_probabilities_are_those_of_the_steps():
    random = np.random.default_rng(0)
    after, mean, deviation = random.normal(size=(5, 2, 3)), random.normal(size=(5, 2, 3)), random.uniform(0.1, 2, size=5)
    expected = scipy.stats.norm.logpdf(after, mean, deviation[:, None, None])
    arrays = (jnp.asarray(part, jnp.float32) for part in (after, mean, deviation))
    found = {
        reduction: fg.log_probability(*args, fg.Settings(reduction=reduction))
        for reduction, args in zip(("mean", "sum"), [tuple(arrays)] * 2, strict=True)
    }
    np.testing.assert_allclose(found["mean"], expected.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found["sum"], expected.sum(axis=(1, 2)), rtol=1e-5)
    settings = fg.Settings(shift=3.0)
    batch, (a, b, c) = _rollout(settings), settings.coefficients.T
    for index in range(9):
        x, after = np.asarray(batch.states[:, index]), batch.states[:, index + 1]
        value = _velocity(_params(0), x, jnp.full(12, settings.times[index]), batch.labels)
        expected = scipy.stats.norm.logpdf(after, a[index] * x + b[index] * np.asarray(value), c[index]).mean(axis=1)
        np.testing.assert_allclose(batch.log_probs[:, index], expected, rtol=2e-4, atol=2e-5)


def _official_step(model_output, sample, sigma, sigma_prev, sigma_max, noise_level, prev_sample):
    """sde_step_with_logprob of the released code, line by line: noise at sigma = 1, v = noise - data; float64."""
    dt = sigma_prev - sigma
    std_dev_t = np.sqrt(sigma / (1 - np.where(sigma == 1, sigma_max, sigma))) * noise_level
    mean = sample * (1 + std_dev_t**2 / (2 * sigma) * dt) + model_output * (1 + std_dev_t**2 * (1 - sigma) / (2 * sigma)) * dt
    log_prob = -((prev_sample - mean) ** 2) / (2 * ((std_dev_t * np.sqrt(-1 * dt)) ** 2))
    log_prob = log_prob - np.log(std_dev_t * np.sqrt(-1 * dt)) - np.log(np.sqrt(2 * np.pi))
    return log_prob.mean(axis=1), mean, std_dev_t


def _official(params, batch, settings):
    """The training step of train_sd3.py on the whole buffer: mean over samples and steps; float64."""
    sigmas = 1 - settings.times

    def predict(tree, x, s):
        return x - np.tanh(x @ tree["a"] + (1 - s) * tree["b"] + tree["c"][np.asarray(batch.labels)]) @ tree["d"]

    params, reference = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (params, _params(2)))
    advantages = np.clip(np.asarray(batch.advantages, np.float64), -settings.advantage_limit, settings.advantage_limit)
    values = []
    for j in range(int(0.99 * settings.num_steps)):
        x, after = (np.asarray(batch.states[:, i], np.float64) for i in (j, j + 1))
        args = x, sigmas[j], sigmas[j + 1], sigmas[1], settings.noise_level, after
        log_prob, mean, std_dev_t = _official_step(predict(params, x, sigmas[j]), *args)
        _, mean_ref, _ = _official_step(predict(reference, x, sigmas[j]), *args)
        ratio = np.exp(log_prob - np.asarray(batch.log_probs[:, j], np.float64))
        clipped = np.clip(ratio, 1.0 - settings.clip_range, 1.0 + settings.clip_range)
        policy = np.maximum(-advantages * ratio, -advantages * clipped).mean()
        kl = (((mean - mean_ref) ** 2).mean(axis=1) / (2 * std_dev_t**2)).mean()
        values.append(policy + settings.kl_weight * kl)
    return np.mean(values)


@pytest.mark.parametrize(
    "settings", [CODE, fg.Settings(kl_form="code", shift=3.0, noise_level=1.2, advantage_limit=3.0, clip_range=0.02)]
)
def test_loss_and_gradient_are_the_official_ones(settings):
    batch = _rollout(settings)
    params = jax.tree.map(lambda leaf, other: leaf + 0.1 * other, _params(0), _params(3))
    gradient, metrics = _mean_loss(params, batch, settings)
    assert 0.1 < float(metrics["clipped_share"]) < 0.95
    assert float(metrics["loss"]) == pytest.approx(_official(params, batch, settings), rel=1e-4, abs=1e-4)
    for name, place in [("a", (1, 2)), ("a", (3, 7)), ("b", (4,)), ("c", (1, 5)), ("d", (2, 3)), ("d", (9, 0))]:
        ends = []
        for sign in (1, -1):
            moved = {key: np.array(leaf, np.float64) for key, leaf in params.items()}
            moved[name][place] += sign * 1e-6
            ends.append(_official(moved, batch, settings))
        largest = float(jnp.abs(gradient[name]).max())
        assert float(gradient[name][place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-3 * largest)


@pytest.mark.parametrize("settings", [fg.Settings(shift=3.0), MEMORYLESS], ids=["sde", "memoryless"])
def test_divergence_in_closed_form(settings):
    """The KL of two Gaussian steps; the paper's factor on |v - v_ref|^2; the code's form is D times it."""
    random = np.random.default_rng(0)
    x, first, second = (jnp.asarray(random.normal(size=(9, 3)), jnp.float32) for _ in range(3))
    steps = jnp.arange(9)
    a, b, c = settings.coefficients[:9].T
    exact = scipy.stats.multivariate_normal
    rows = []
    for i in range(9):
        p, q = (exact(np.asarray(a[i] * x[i] + b[i] * v[i]), c[i] ** 2) for v in (first, second))
        # log p - log q is affine, so its mean under p is its value at p's mean.
        rows.append(p.logpdf(p.mean) - q.logpdf(p.mean))
    options = {"memoryless": settings.memoryless, "shift": settings.shift}
    for reduction, scale in (("sum", 1), ("mean", 3)):
        for form, factor in (("paper", 1), ("code", np.diff(settings.times)[:9])):
            one = fg.Settings(kl_form=form, reduction=reduction, **options)
            found = fg._divergence(first, second, jnp.asarray(b, jnp.float32), jnp.asarray(c, jnp.float32), steps, one)
            np.testing.assert_allclose(found, factor * np.asarray(rows) / scale, rtol=1e-4)
    if settings.memoryless is None:
        t, step = settings.times[1:9], np.diff(settings.times)[1:9]
        sigma = settings.noise_level * np.sqrt((1 - t) / t)
        factor = step / 2 * (sigma * t / (2 * (1 - t)) + 1 / sigma) ** 2
        np.testing.assert_allclose(rows[1:], factor * np.sum((first - second)[1:] ** 2, axis=1), rtol=1e-4)


def test_defaults_are_the_published_penalty():
    """The paper's form with .004 is the code's with .04 at ten equal steps."""
    paper, code = fg.Settings(clip_range=0.05), CODE
    batch = _rollout(paper)
    _close(_mean_loss(_params(0), batch, paper)[0], _mean_loss(_params(0), batch, code)[0])


def test_the_memoryless_noise_level():
    """a = sqrt(2) is Euler-Maruyama of dX = (2 v - X / t) dt + sqrt(2 (1 - t) / t) dW."""
    settings = fg.Settings(num_steps=20, noise_level=2**0.5)
    t, step = settings.times[1:-1], 1 / 20
    expected = np.stack([1 - step / t, np.full(19, 2 * step), np.sqrt(2 * (1 - t) / t * step)], axis=1)
    np.testing.assert_allclose(settings.coefficients[1:], expected, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        fg.Settings(num_steps=100),
        fg.Settings(num_steps=100, noise_level=2**0.5),
        fg.Settings(num_steps=60, window=20),
        fg.Settings(memoryless=Schedule(num_steps=100)),
    ],
    ids=["paper", "memoryless level", "window", "local linear"],
)
def test_marginals_are_the_odes(settings):
    base = gaussian_velocity(0.5, 0.6)
    velocity = lambda params, x, t, y: base(x, t)  # noqa: E731
    noise, labels = jax.random.normal(KEY, (40_000, 1)), jnp.zeros(40_000, jnp.int32)
    buffer, _ = COLLECT(velocity, None, noise, labels, jax.random.key(1), settings)
    exact = ode.sample(base, noise, ode.uniform_grid(200))
    assert float(buffer.samples.mean()) == pytest.approx(float(exact.mean()), abs=0.015)
    assert float(buffer.samples.std()) == pytest.approx(float(exact.std()), abs=0.015)
    middle = buffer.states[:, settings.num_trained // 2, 0]
    t = settings.times[int(buffer.steps[0, settings.num_trained // 2])]
    assert float(middle.mean()) == pytest.approx(0.5 * t, abs=0.02)
    assert float(middle.std()) == pytest.approx(np.sqrt(0.36 * t**2 + (1 - t) ** 2), abs=0.02)


def test_a_window_is_drawn_anew_and_only_it_is_noisy():
    settings, noise = fg.Settings(window=2, window_range=(1, 6)), jax.random.normal(KEY, (4, 4))
    labels, starts = jnp.zeros(4, jnp.int32), set()
    for seed in range(20):
        buffer, _ = COLLECT(_velocity, _params(0), noise, labels, jax.random.key(seed), settings)
        assert buffer.states.shape == (4, 3, 4) and buffer.log_probs.shape == (4, 2)
        starts.add(int(buffer.steps[0, 0]))
        assert (buffer.steps[:, 1] == buffer.steps[:, 0] + 1).all()
    assert starts == {1, 2, 3, 4}
    x = buffer.states[:, -1]  # what follows the window is the ODE
    for t in settings.times[int(buffer.steps[0, 1]) + 1 : -1]:
        x = x + 0.1 * _velocity(_params(0), x, jnp.full(4, t), labels)
    np.testing.assert_allclose(buffer.samples, x, rtol=1e-4, atol=1e-5)


def test_the_last_step_is_not_trained_on():
    assert fg.Settings().num_trained == 9 and fg.Settings(timestep_fraction=1.0).num_trained == 10
    assert fg.Settings(memoryless=Schedule(num_steps=12), timestep_fraction=1.0).num_trained == 11  # it has no noise


def test_the_policy_gradient_is_the_rewards_gradient():
    """At rho = 1 the loss's gradient is minus that of the expected reward: a shift of the velocity, a linear reward."""
    settings = fg.Settings(
        num_steps=8, timestep_fraction=1.0, reduction="sum", kl_weight=0.0, advantage_limit=100.0, drop_zero=False
    )
    base = gaussian_velocity(0.5, 0.6)
    velocity = lambda shift, x, t, y: base(x, t) + shift[jnp.round(8 * t).astype(int)][:, None]  # noqa: E731
    size = 40_000
    noise, labels = jax.random.normal(KEY, (size, 1)), jnp.zeros(size, jnp.int32)
    buffer, _ = COLLECT(velocity, jnp.zeros(8), noise, labels, jax.random.key(1), settings)
    advantages = buffer.samples[:, 0] - buffer.samples.mean()
    found = jax.jit(
        lambda buffer: jax.grad(lambda shift: fg.loss(velocity, shift, None, buffer, settings)[0] / size)(jnp.zeros(8))
    )(buffer._replace(advantages=advantages))

    def end(shift):  # linear in the noise: the mean travels without it
        x = jnp.zeros((1, 1))
        for t, (a, b, _) in zip(settings.times[:-1], settings.coefficients, strict=True):
            x = a * x + b * velocity(shift, x, jnp.full(1, t), None)
        return x[0, 0]

    np.testing.assert_allclose(-8 * found, jax.jit(jax.grad(end))(jnp.zeros(8)), atol=0.02)  # of .05 to .5; the loss is a mean


def test_rewards_share_a_forward_pass_and_missing_ones_do_not_count():
    settings = CODE
    params = jax.tree.map(lambda leaf, other: leaf + 0.05 * other, _params(0), _params(3))
    batch = _rollout(settings, k=3)
    rows, _ = _mean_loss(params, batch, settings)
    for k in range(3):
        single, _ = _mean_loss(params, batch._replace(advantages=batch.advantages[:, k]), settings)
        _close(jax.tree.map(lambda leaf, k=k: leaf[k] + leaf[3], rows), single)
    broken = batch._replace(
        states=batch.states.at[7].set(jnp.nan), advantages=batch.advantages.at[:, 2].set(0).at[:3, 0].set(jnp.nan)
    )
    found, _ = _mean_loss(params, broken, settings)
    without = batch._replace(advantages=batch.advantages.at[7].set(jnp.nan).at[:3, 0].set(0.0).at[:, 2].set(jnp.nan))
    _close(found, _mean_loss(params, without, settings)[0])
    assert all((leaf[2] == 0).all() and jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_a_split_changes_nothing_and_zero_advantages_are_dropped():
    settings, params = CODE, _params(3)
    batch = _rollout(settings)
    batch = batch._replace(advantages=batch.advantages.at[:5].set(0.0))
    whole, metrics = _mean_loss(params, batch, settings)
    found, again = _mean_loss(params, batch, settings, 4)
    _close(found, whole, 1e-6)
    assert float(again["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    for drop, expected in ((True, 7), (False, 12)):
        chosen = dataclasses.replace(settings, drop_zero=drop)
        weight = jax.jit(lambda batch, chosen=chosen: fg.loss(_velocity, params, params, batch, chosen)[1][0])(batch)
        assert float(weight) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 1},
        {"noise_level": 0.0},
        {"clip_range": 0.0},
        {"kl_form": "none"},
        {"reduction": "none"},
        {"window": 10},
        {"window_range": (3, 11)},
        {"timestep_fraction": 0.0},
    ],
)
def test_ranges(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        fg.Settings(**options)


def test_what_each_algorithm_needs():
    for name, need in algorithms.NEEDS.items():
        assert importlib.import_module(f"jaxdrl.algorithms.{name}").NEEDS == need == algorithms.needs(name)
    with pytest.raises(ValueError, match="must be one of"):
        algorithms.needs("ppo")


def test_the_reward_goes_up_and_the_policy_stays_near_the_reference():
    """Two classes, one Gaussian each, in the plane; the reward of each is another direction. Three seeds in one compilation."""
    settings = fg.Settings(kl_weight=0.3, clip_range=0.02)
    means, optimizer, size = jnp.asarray([[-1.0, 0.0], [1.0, 0.0]]), optax.adam(0.02), 256
    directions = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])

    def velocity(params, x, t, y):
        offset = means[y]
        exact = gaussian_velocity(0.0, 0.5)(x - t[:, None] * offset, t) + offset
        features = jnp.concatenate([jnp.ones_like(x[:, :1]), x, t[:, None]], axis=1)
        return exact + jnp.einsum("bf,bfd->bd", features, params[y])

    base = jnp.zeros((2, 4, 2))

    def iterate(carry, key):
        noise_key, key = jax.random.split(key)
        labels = jnp.arange(size) % 2
        noise = jax.random.normal(noise_key, (size, 2))
        buffer, _ = fg.collect(velocity, carry[0], noise, labels, key, settings)
        rewards = jnp.sum(directions[labels] * buffer.samples, axis=1)
        advantages, measured = group_advantages(rewards, labels, 2)
        buffer = buffer._replace(advantages=advantages)

        def update(carry, _):
            params, opt_state = carry
            function = lambda params, part: fg.loss(velocity, params, base, part, settings)  # noqa: E731
            gradient, metrics = accumulate(function, params, buffer, 2)
            change, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, change), opt_state), metrics

        carry, metrics = jax.lax.scan(update, carry, None, 2)
        return carry, metrics | measured

    def run(seed):
        return jax.lax.scan(iterate, (base, optimizer.init(base)), jax.random.split(jax.random.key(seed), 60))[1]

    history = jax.jit(lambda seeds: jax.lax.map(run, seeds))(jnp.arange(3))
    gain = history["reward_mean"][:, -10:].mean(axis=1) - history["reward_mean"][:, 0]
    level = history["kl"][..., 0].reshape(3, 4, -1).mean(axis=2)
    assert (gain > 0.3).all() and (history["kl"][:, 0, 0] == 0).all()
    assert (level[:, -1] > 0.01).all() and (level[:, -1] < 1.4 * level[:, -2]).all() and (level[:, -1] < 1).all()
    assert (history["ratio_deviation"][..., 0] < 1e-5).all() and (history["ratio_deviation"][..., 1] > 1e-4).all()
