"""Adjoint Matching against closed forms: the tuned law is p_base exp(lambda r), and the loss has the gradient it should."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdrl.algorithms import adjoint_matching as am
from jaxdrl.flow import ode
from jaxdrl.flow.memoryless import Schedule
from tests.flow.gaussians import gaussian_velocity, mixture_velocity

LABEL = jnp.zeros


def _settings(steps=50, scale=1.0, **options):
    schedule = Schedule(num_steps=steps, gain_eps=options.pop("gain_eps", None))
    return am.Settings(schedule=schedule, reward_scale=scale, **options)


def _collect(velocity, params, base, reward, settings, batch=4000, dim=1, seed=0):
    noise_key, key = jax.random.split(jax.random.key(seed))
    noise = jax.random.normal(noise_key, (batch, dim))
    return am.collect(velocity, params, base, reward, noise, LABEL(batch, jnp.int32), key, settings)


def _table_velocity(times, base):
    """The base plus a free shift at every grid time: contains the optimum for a linear reward on Gaussian data."""

    def velocity(params, x, t, y):
        shift = jnp.stack([jnp.interp(t, times, params["shift"][:, i]) for i in range(x.shape[-1])], axis=-1)
        return base(x, t) + shift

    return velocity


# Data N(m, s^2), reward b x: the tilted law is N(m + lambda b s^2, s^2). Sampled with the ODE, the paper's offsets over-tilt by
# 4.9 % at K = 50; without the offset in the gain the ratio is 1.0005.
@pytest.mark.parametrize(("gain_eps", "ratio"), [(None, 1.0488), (0.0, 1.0005)])
def test_tilt_of_a_gaussian_under_a_linear_reward(gain_eps, ratio):
    mean, std, tilt, steps = 0.3, 0.7, 1.5, 50
    settings = _settings(steps, gain_eps=gain_eps)
    base = gaussian_velocity(mean, std)
    velocity = _table_velocity(settings.schedule.times, base)
    zero = {"shift": jnp.zeros((steps + 1, 1))}
    buffer, _ = _collect(velocity, zero, zero, lambda x, y: tilt * x[:, 0], settings, batch=64)
    # The optimum of the regression at each step is the target's offset from the base, which does not depend on x here.
    offsets = buffer.targets - jax.vmap(lambda x: base(x, jnp.asarray(settings.schedule.times[:-1])))(buffer.states)
    np.testing.assert_allclose(offsets.std(axis=0), 0, atol=2e-4)
    params = {"shift": jnp.concatenate([offsets.mean(axis=0), jnp.zeros((1, 1))])}
    noise = jax.random.normal(jax.random.key(1), (2000, 1))

    def end(params):
        return ode.sample(lambda x, t: velocity(params, x, t, None), noise, ode.uniform_grid(400), method="euler").mean()

    shift = float(end(params) - end(zero))  # same noise: the difference has no Monte-Carlo error
    assert shift / (tilt * std**2) == pytest.approx(ratio, abs=0.003)


def _mlp(dim, width=64):
    class Residual(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            h = jnp.concatenate([x, t[:, None], jnp.sin(jnp.pi * t)[:, None]], axis=-1)
            for _ in range(2):
                h = nn.gelu(nn.Dense(width)(h))
            return nn.Dense(dim, kernel_init=nn.initializers.zeros)(h)

    return Residual()


def _tune(base, reward, dim, scale, steps=25, refreshes=30, updates=24, batch=1500, seed=0):
    """Trains base + small network with the algorithm as shipped (gain_eps = 0)."""
    settings = _settings(steps, scale, gain_eps=0.0, outlier_mask=False)
    network = _mlp(dim)
    velocity = lambda params, x, t, y: base(x, t) + (network.apply(params, x, t) if params is not None else 0.0)  # noqa: E731
    params = network.init(jax.random.key(seed), jnp.zeros((1, dim)), jnp.zeros(1))
    total = refreshes * updates
    optimizer = optax.chain(optax.clip_by_global_norm(50.0), optax.adam(optax.cosine_decay_schedule(4e-3, total)))

    @jax.jit
    def refresh(carry, key):
        params, opt_state = carry
        noise_key, sde_key, update_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, (batch, dim))
        buffer, metrics = am.collect(velocity, params, None, reward, noise, LABEL(batch, jnp.int32), sde_key, settings)

        def update(carry, key):
            params, opt_state = carry
            pick, subset = jax.random.split(key)
            part = jax.tree.map(lambda v: v[jax.random.permutation(pick, batch)[:500]], buffer)
            grads = jax.grad(lambda p: am.loss(velocity, p, part, subset, jnp.zeros(()), settings)[0])(params)
            updates_, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates_), opt_state), None

        return jax.lax.scan(update, (params, opt_state), jax.random.split(update_key, updates))[0], metrics

    carry = (params, optimizer.init(params))
    for key in jax.random.split(jax.random.key(seed + 1), refreshes):
        carry, _ = refresh(carry, key)
    noise = jax.random.normal(jax.random.key(99), (40_000, dim))
    return ode.sample(lambda x, t: velocity(carry[0], x, t, None), noise, ode.uniform_grid(50))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_tuned_law_in_one_dimension(scale):
    """A two-component mixture under a quadratic reward: mean and spread of the tilted law from a fine quadrature."""
    weights, means, stds = [0.4, 0.6], [[-1.0], [0.9]], [0.4, 0.3]
    reward = lambda x, y: -0.5 * (x[:, 0] - 0.3) ** 2 + 0.4 * x[:, 0]  # noqa: E731
    samples = _tune(mixture_velocity(weights, means, stds), reward, 1, scale)[:, 0]
    x = np.linspace(-4, 4, 8001)
    density = sum(w * np.exp(-0.5 * ((x - m[0]) / s) ** 2) / s for w, m, s in zip(weights, means, stds, strict=True)) * np.exp(
        scale * np.asarray(reward(jnp.asarray(x)[:, None], None))
    )
    density /= density.sum()
    mean, spread = (density * x).sum(), np.sqrt((density * (x - (density * x).sum()) ** 2).sum())
    # Monte-Carlo error of 40 000 samples is .005; the rest is K = 25 (W1 about .012) and the fit.
    assert abs(float(samples.mean()) - mean) < 0.04, (float(samples.mean()), mean)
    assert abs(float(samples.std()) - spread) < 0.04, (float(samples.std()), spread)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_tuned_law_and_share_of_the_ideal_shift_in_two_dimensions(scale):
    """Four modes in the plane and a reward that is not linear; >= 90 % of the ideal shift in reward is reached."""
    weights, means, stds = [0.25] * 4, [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], [0.3, 0.3, 0.3, 0.3]
    reward = lambda x, y: jnp.sin(1.5 * x[:, 0]) + 0.5 * x[:, 0] * x[:, 1]  # noqa: E731
    samples = _tune(mixture_velocity(weights, means, stds), reward, 2, scale)
    rng = np.random.default_rng(0)
    base = np.asarray(means)[rng.integers(0, 4, 400_000)] + 0.3 * rng.normal(size=(400_000, 2))
    values = np.asarray(reward(jnp.asarray(base, jnp.float32), None), np.float64)
    tilt = np.exp(scale * values) / np.exp(scale * values).sum()
    ideal, start = (tilt * values).sum(), values.mean()
    share = (float(reward(samples, None).mean()) - start) / (ideal - start)
    assert 0.9 <= share <= 1.1, share
    np.testing.assert_allclose(samples.mean(axis=0), tilt @ base, atol=0.07)
    np.testing.assert_allclose(samples.std(axis=0), np.sqrt(tilt @ (base - tilt @ base) ** 2), atol=0.07)


def _problem(batch=6, steps=8, **options):
    settings = _settings(steps, **options)
    velocity = lambda params, x, t, y: params["a"] * x + params["b"] * t[:, None]  # noqa: E731
    params = {"a": jnp.float32(0.5), "b": jnp.float32(-0.2)}
    return velocity, params, settings, batch


def test_without_reward_the_base_is_a_stationary_point():
    velocity, params, settings, batch = _problem()
    buffer, metrics = _collect(velocity, params, params, lambda x, y: 0 * x[:, 0], settings, batch, 2)
    value, grads = jax.value_and_grad(lambda p: am.loss(velocity, p, buffer, jax.random.key(0), jnp.zeros(()), settings)[0])(
        params
    )
    assert abs(float(value)) < 1e-8 and all(abs(float(g)) < 1e-4 for g in jax.tree.leaves(grads))
    assert float(metrics["control_energy"]) < 1e-10


def test_gradient_with_respect_to_the_velocity_is_twice_the_adjoint():
    """At v_theta = v_base: dL/dv_k = 2 A_k for each k, whatever sigma_k is; the adjoint comes from an explicit recursion."""
    from jaxdrl.flow.memoryless import lean_adjoint

    velocity, params, settings, batch = _problem(timestep_fraction=1.0, outlier_mask=False)
    reward = lambda x, y: jnp.sin(x).sum(axis=-1)  # noqa: E731
    buffer, _ = _collect(velocity, params, params, reward, settings, batch, 2)
    terminal = -jnp.cos(_end(buffer, velocity, params, settings))
    states = jnp.concatenate([jnp.moveaxis(buffer.states, 1, 0), _end(buffer, velocity, params, settings)[None]])
    adjoints, _ = lean_adjoint(lambda x, t: velocity(params, x, t, None), states, terminal, settings.schedule)

    def value(shift):
        moved = lambda p, x, t, y: velocity(p, x, t, y) + shift[jnp.round(t * 8).astype(int), jnp.arange(len(t)) // 8]  # noqa: E731
        return am.loss(moved, params, buffer, jax.random.key(0), jnp.zeros(()), settings)[0] * batch

    order = am.draw_subset(jax.random.key(0), settings)
    found = jax.grad(value)(jnp.zeros((8, batch, 2)))
    assert sorted(order.tolist()) == list(range(8))
    np.testing.assert_allclose(found, 2 * adjoints, rtol=2e-3, atol=1e-4)


def _end(buffer, velocity, params, settings):
    last = buffer.states[:, -1]
    times = jnp.full(len(last), settings.schedule.times[-2])
    return last + settings.schedule.step_size * velocity(params, last, times, buffer.labels)


def test_subset_is_stratified_and_fresh():
    settings = _settings(100)
    drawn = [np.asarray(am.draw_subset(jax.random.key(seed), settings)) for seed in range(5)]
    for subset in drawn:
        assert len(subset) == 40 == len(set(subset.tolist()))
        assert (subset < 60).sum() == 20
    assert len({tuple(sorted(subset.tolist())) for subset in drawn}) == 5
    assert len(am.draw_subset(jax.random.key(0), _settings(20))) == 8


def test_mean_over_the_subset_is_the_sum_divided_by_its_size():
    velocity, params, settings, batch = _problem(outlier_mask=False)
    buffer, _ = _collect(velocity, params, params, lambda x, y: x[:, 0], settings, batch, 2)
    other = am.Settings(schedule=settings.schedule, outlier_mask=False, subset_reduction="mean")
    value = lambda s: float(am.loss(velocity, params, buffer, jax.random.key(1), jnp.zeros(()), s)[0])  # noqa: E731
    assert value(settings) == pytest.approx(4 * value(other), rel=1e-5)


def test_outlier_mask_follows_its_formula():
    velocity, params, settings, _ = _problem()
    buffer, _ = _collect(velocity, params, params, lambda x, y: x[:, 0], settings, 40, 2)
    buffer = buffer._replace(targets=buffer.targets.at[3].add(100.0))
    value, (first, metrics) = am.loss(velocity, params, buffer, jax.random.key(1), jnp.zeros(()), settings)
    assert float(metrics["masked_share"]) == pytest.approx(4 / 40)
    assert float(value) < 1e3  # the outlier's loss alone would be over 1e5
    _, (second, _) = am.loss(velocity, params, buffer, jax.random.key(1), jnp.float32(0.5), settings)
    quantile = float(first)
    assert float(second) == pytest.approx(0.9 * 0.5 + 0.1 * min(quantile, 2.5), rel=1e-4)


def test_a_nan_trajectory_leaves_loss_and_gradient_finite():
    velocity, params, settings, batch = _problem(outlier_mask=False)
    buffer, _ = _collect(velocity, params, params, lambda x, y: x[:, 0], settings, batch, 2)
    broken = buffer._replace(states=buffer.states.at[0].set(jnp.nan), targets=buffer.targets.at[1].set(jnp.inf))
    run = lambda b: jax.value_and_grad(  # noqa: E731
        lambda p: am.loss(velocity, p, b, jax.random.key(0), jnp.zeros(()), settings)[0]
    )(params)
    value, grads = run(broken)
    rest = run(jax.tree.map(lambda v: v[2:], buffer))
    np.testing.assert_allclose(value, rest[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), grads, rest[1])


def test_control_energy_is_the_kl_of_the_two_sdes():
    """A constant shift c of the velocity: KL = 1/2 sum_k D (2 c / sigma_k)^2 per dimension."""
    settings = _settings(10)
    velocity = lambda params, x, t, y: -x + params  # noqa: E731
    _, metrics = _collect(velocity, jnp.float32(0.3), jnp.float32(0.0), lambda x, y: x[:, 0], settings, 16, 2)
    expected = 0.5 * 2 * (0.1 * (2 * 0.3 / settings.schedule.gain) ** 2).sum()
    assert float(metrics["control_energy"]) == pytest.approx(expected, rel=1e-4)
