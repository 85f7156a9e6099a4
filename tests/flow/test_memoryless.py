"""The memoryless SDE and its lean adjoint against closed forms (identities of arXiv 2606.19162 and 2409.08861)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.flow import ode
from jaxdrl.flow.memoryless import Schedule, lean_adjoint, rollout
from tests.flow.gaussians import gaussian_velocity, mixture_velocity

SAMPLES = 100_000


def _roll(velocity, schedule, shape, seed=0):
    noise_key, key = jax.random.split(jax.random.key(seed))
    noise = jax.random.normal(noise_key, shape)
    return jax.jit(lambda noise: rollout(velocity, noise, key, schedule))(noise)


# Monte-Carlo error of a standard deviation from 1e5 samples: 0.7 / sqrt(2e5) = .0016.
@pytest.mark.parametrize(
    ("integrator", "steps", "expected"),
    [("local_linear", 50, 0.703), ("local_linear", 100, 0.702), ("euler_maruyama", 50, 0.721), ("euler_maruyama", 100, 0.711)],
)
def test_terminal_spread_of_gaussian_data(integrator, steps, expected):
    schedule = Schedule(num_steps=steps, integrator=integrator)
    states, _ = _roll(gaussian_velocity(0.0, 0.7), schedule, (SAMPLES, 1))
    assert abs(float(states[-1].std()) - expected) < 0.005


def _mixture():
    return mixture_velocity([0.3, 0.7], [[-1.2], [0.8]], [0.35, 0.25])


def _wasserstein(samples):
    """W1 to the mixture's exact quantiles; 1e5 exact samples are .003 from them."""
    x = np.linspace(-4, 4, 40_001)
    density = 0.3 * np.exp(-0.5 * ((x + 1.2) / 0.35) ** 2) / 0.35 + 0.7 * np.exp(-0.5 * ((x - 0.8) / 0.25) ** 2) / 0.25
    ranks = (np.arange(len(samples)) + 0.5) / len(samples)
    return np.abs(np.sort(samples) - np.interp(ranks, np.cumsum(density) / density.sum(), x)).mean()


# Euler-Maruyama's values are means of six seeds, which spread by .003.
@pytest.mark.parametrize(("steps", "local_linear", "euler"), [(10, 0.029, 0.089), (25, 0.012, 0.038), (50, 0.008, 0.020)])
def test_distance_to_a_mixture_and_spread_on_the_way(steps, local_linear, euler):
    found = {}
    for integrator in ("local_linear", "euler_maruyama"):
        states, _ = _roll(_mixture(), Schedule(num_steps=steps, integrator=integrator), (SAMPLES, 1))
        found[integrator] = (_wasserstein(np.asarray(states[-1, :, 0])), float(states.std(axis=1).max()))
    assert found["local_linear"] == (pytest.approx(local_linear, abs=0.005), pytest.approx(1.0, abs=0.02))
    assert found["euler_maruyama"] == (pytest.approx(euler, abs=0.011), pytest.approx(1.46, abs=0.06))


def test_state_norms_follow_the_ode():
    velocity, steps = gaussian_velocity(0.5, 0.6), 100
    schedule = Schedule(num_steps=steps)
    states, _ = _roll(velocity, schedule, (20_000, 4))
    noise = jax.random.normal(jax.random.key(9), (20_000, 4))
    path = ode.integrate(velocity, noise, ode.uniform_grid(steps))
    norm = lambda x: jnp.linalg.norm(x, axis=-1).mean(axis=-1)  # noqa: E731
    np.testing.assert_allclose(norm(states)[5:], norm(path)[5:], rtol=0.05)
    euler, _ = _roll(velocity, Schedule(num_steps=steps, integrator="euler_maruyama"), (20_000, 4))
    assert float((norm(euler) / norm(path))[1:10].max()) > 1.3


def _linear(matrix):
    return lambda x, t: x @ matrix.T * (1 + t[:, None])


@pytest.mark.parametrize("integrator", ["local_linear", "euler_maruyama"])
def test_adjoint_against_an_independent_recursion(integrator):
    """With v = (1 + t) M x the Jacobian is (1 + t) M, and (8), (9) can be run by hand in NumPy."""
    steps, dim = 7, 3
    matrix = np.asarray(jax.random.normal(jax.random.key(0), (dim, dim)))
    schedule = Schedule(num_steps=steps, integrator=integrator)
    states, _ = _roll(_linear(matrix), schedule, (2, dim))
    terminal = jax.random.normal(jax.random.key(1), (2, dim))
    adjoints, values = lean_adjoint(_linear(matrix), states, terminal, schedule)
    step, current = 1 / steps, np.asarray(terminal, np.float64)
    for k in reversed(range(steps)):
        after = (k + 1) / steps
        pulled = (1 + after) * current @ matrix
        if integrator == "local_linear":
            ratio = (k / steps + step) / (after + step)
            current = ratio * (current + 2 * step * pulled)
        else:
            current = current + step * (2 * pulled - current / (after + step))
        np.testing.assert_allclose(adjoints[k], current, rtol=1e-4, atol=1e-5)
    fresh = [_linear(matrix)(states[k], jnp.full(2, k / steps)) for k in range(steps)]
    np.testing.assert_allclose(values, np.stack(fresh), rtol=1e-6, atol=1e-6)


def test_adjoint_is_linear_in_its_terminal_value():
    schedule = Schedule(num_steps=12)
    states, _ = _roll(_mixture(), schedule, (50, 1))
    first, second = jax.random.normal(jax.random.key(3), (2, 50, 1))
    solve = jax.jit(lambda terminal: lean_adjoint(_mixture(), states, terminal, schedule)[0])
    together, parts = solve(2.0 * first - 0.5 * second), 2.0 * solve(first) - 0.5 * solve(second)
    assert float(jnp.abs(together - parts).max() / jnp.abs(together).max()) < 1e-6  # 2e-7 measured


def test_rollout_returns_the_velocities_it_used():
    schedule = Schedule(num_steps=5)
    states, velocities = _roll(_mixture(), schedule, (8, 1))
    for k in range(5):
        np.testing.assert_allclose(velocities[k], _mixture()(states[k], jnp.full(8, k / 5)), atol=1e-5)
    np.testing.assert_allclose(states[-1], states[-2] + 0.2 * velocities[-1], atol=1e-6)


def test_printed_coefficients():
    """(3) to (5) at K = 4, k = 1, worked out by hand: u = 1/2, 3/4."""
    phi, omega, noise = Schedule(num_steps=4).forward_coefficients()[1]
    assert phi == pytest.approx(2 / 3) and omega == pytest.approx(0.75 * 5 / 9)
    assert noise**2 == pytest.approx(1.5 * 5 / 9 - (2 / 3) * (0.75 - 4 / 9 * 0.5))
    gain = Schedule(num_steps=4).gain
    assert gain[1] ** 2 == pytest.approx(2 * (0.75 + 0.25) / 0.5)
    assert Schedule(num_steps=4, gain_eps=0.0).gain[1] ** 2 == pytest.approx(2 * 0.75 / 0.5)


@pytest.mark.parametrize("offsets", [{}, {"time_offset": 0.01, "noise_offset": 0.0}, {"time_offset": 0.2, "noise_offset": 0.1}])
def test_local_linear_coefficients_are_the_exact_integrals(offsets):
    """dX = (2 v - X / u) dt + sqrt(2 (1 - t + eps) / u) dW over one step with v held: Phi, Omega and V by quadrature."""
    schedule = Schedule(num_steps=8, **offsets)
    delta, eps = offsets.get("time_offset", 1 / 8), offsets.get("noise_offset", 1 / 8)
    for k, (a, b, c) in enumerate(schedule.forward_coefficients()[:-1]):
        s = np.linspace(k / 8, (k + 1) / 8, 20_001)
        decay = (s + delta) / (s[-1] + delta)
        assert a == pytest.approx(decay[0]) and b == pytest.approx(np.trapezoid(2 * decay, s), rel=1e-6)
        assert c**2 == pytest.approx(np.trapezoid(2 * (1 - s + eps) / (s + delta) * decay**2, s), rel=1e-6)


@pytest.mark.parametrize(
    ("offsets", "expected"), [({}, (0.0563, 0.7045)), ({"time_offset": 0.01, "noise_offset": 0.0}, (0.0458, 0.6784))]
)
def test_offsets_widen_what_frozen_velocities_narrow(offsets, expected):
    """Gaussian data of spread .05 and .7 at K = 40: holding v over a step narrows, the papers' offsets of 1 / K widen."""
    for spread, value in zip((0.05, 0.7), expected, strict=True):
        states, _ = _roll(gaussian_velocity(0.0, spread), Schedule(num_steps=40, **offsets), (SAMPLES, 1))
        assert float(states[-1].std()) == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_steps", 1), ("integrator", "heun"), ("gain_eps", -0.1), ("noise_offset", -0.1), ("time_offset", 0.0)],
)
def test_bad_schedules_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        Schedule(**{"num_steps": 10, field: value})


def test_euler_maruyama_needs_an_offset_of_a_step():
    assert Schedule(num_steps=10, integrator="euler_maruyama", time_offset=0.1).offset_times[0] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="time_offset"):
        Schedule(num_steps=10, integrator="euler_maruyama", time_offset=0.05)
