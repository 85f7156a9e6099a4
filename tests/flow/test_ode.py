"""Samplers against the exact flow of Gaussian data, and guidance against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.flow import guidance, ode
from tests.flow.gaussians import gaussian_velocity

MEAN, STD = 0.8, 0.5


@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("heun", 2.0), ("dpm2", 2.0)])
def test_order_of_convergence(method, order):
    with jax.enable_x64(True):
        x = jnp.linspace(-1.5, 1.5, 7, dtype=jnp.float64)[:, None]
        # Up to t = 0.9, so that Heun's closing Euler step does not hide its order.
        t = 0.9
        exact = t * MEAN + np.sqrt(t**2 * STD**2 + (1 - t) ** 2) * x
        errors = []
        for steps in (32, 64):
            grid = jnp.linspace(0, t, steps + 1, dtype=jnp.float64)
            states = ode.integrate(gaussian_velocity(MEAN, STD), x, jnp.append(grid, 1.0), method=method)
            errors.append(float(jnp.abs(states[-2] - exact).max()))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15, errors


def test_the_end_is_the_data_distribution():
    x = jax.random.normal(jax.random.key(0), (20000, 1))
    end = ode.sample(gaussian_velocity(MEAN, STD), x, ode.uniform_grid(50))
    assert abs(float(end.mean()) - MEAN) < 0.01 and abs(float(end.std()) - STD) < 0.01


@pytest.mark.parametrize("method", ["heun", "euler", "dpm2"])
def test_number_of_evaluations(method):
    """Counts calls as the network sees them: scan bodies times their length."""
    steps, calls = 6, []

    def velocity(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return -x

    ode.sample(velocity, jnp.ones((1, 1)), ode.uniform_grid(steps), method=method).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == ode.evaluations(steps, method) == (11 if method == "heun" else 6)


@pytest.mark.parametrize("method", ["heun", "euler", "dpm2"])
def test_sampling_keeps_no_trajectory(method):
    x, grid = jax.random.normal(jax.random.key(0), (1000, 10)), ode.uniform_grid(50)
    sample = jax.jit(lambda x: ode.sample(gaussian_velocity(MEAN, STD), x, grid, method=method))
    np.testing.assert_array_equal(
        sample(x), jax.jit(lambda x: ode.integrate(gaussian_velocity(MEAN, STD), x, grid, method=method))(x)[-1]
    )
    assert sample.lower(x).compile().memory_analysis().temp_size_in_bytes < 5 * x.nbytes


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_multistep_is_dpm_solver_as_diffusion_nft_writes_it(shift):
    """dpm_step of its solver.py, order 2: noise at sigma = 1, v = noise - data, log-SNR log((1 - sigma) / sigma)."""
    base, grid = gaussian_velocity(MEAN, STD), ode.shifted_grid(8, shift)
    start = np.linspace(-1.5, 1.5, 7)[:, None]
    sigmas, sample, outputs = 1 - np.asarray(grid, np.float64), start, []
    for i in range(8):
        s, t = sigmas[i], sigmas[i + 1]
        velocity = -np.asarray(base(jnp.asarray(sample), jnp.full(7, 1 - s)), np.float64)
        outputs.append(sample - s * velocity)
        if i in (0, 7):  # first order, DDIM
            sample = (1 - t) * outputs[-1] + t * (sample - (1 - s) * outputs[-1]) / s
            continue
        with np.errstate(divide="ignore"):
            lambda_t, lambda_s0, lambda_s1 = (np.log(1 - sigma) - np.log(sigma) for sigma in (t, s, sigmas[i - 1]))
        h, h_0 = lambda_t - lambda_s0, lambda_s0 - lambda_s1
        slope = (outputs[-1] - outputs[-2]) / (h_0 / h)
        change = (1 - t) * (np.exp(-h) - 1.0)
        sample = t / s * sample - change * outputs[-1] - 0.5 * change * slope
    found = ode.sample(base, jnp.asarray(start, jnp.float32), grid, method="dpm2")
    np.testing.assert_allclose(found, sample, rtol=1e-4, atol=1e-5)
    euler = ode.sample(base, jnp.asarray(start, jnp.float32), grid, method="euler")
    assert float(jnp.abs(found - euler).max()) > 0.01


def test_last_heun_step_is_euler():
    grid = jnp.array([0.0, 0.5, 1.0])
    states = ode.integrate(lambda x, t: t[:, None] * jnp.ones_like(x), jnp.zeros((1, 1)), grid)
    np.testing.assert_allclose(states[:, 0, 0], [0.0, 0.125, 0.375])


def test_shifted_grid_is_raes():
    steps, shift = 10, 6.928
    s = 1 - np.linspace(0, 1, steps + 1)
    expected = 1 - shift * s / (1 + (shift - 1) * s)
    np.testing.assert_allclose(ode.shifted_grid(steps, shift), expected, atol=1e-6)
    np.testing.assert_allclose(ode.shifted_grid(steps, 1.0), ode.uniform_grid(steps), atol=1e-6)
    assert float(ode.shifted_grid(2, 3.0)[1]) == pytest.approx(0.25)  # half of the steps in the quarter next to the noise
    with pytest.raises(ValueError, match="shift"):
        ode.shifted_grid(4, 0.0)
    with pytest.raises(ValueError, match="num_steps"):
        ode.uniform_grid(0)
    with pytest.raises(ValueError, match="heun, euler"):
        ode.integrate(lambda x, t: x, jnp.ones((1, 1)), ode.uniform_grid(2), method="rk4")


def test_classifier_free_guidance_and_its_interval():
    conditional, unconditional = (lambda x, t: 3 * jnp.ones_like(x)), (lambda x, t: jnp.ones_like(x))
    guided = guidance.classifier_free(conditional, unconditional, 2.0, (0.1, 0.7))
    t = jnp.array([0.0, 0.1, 0.11, 0.69, 0.7, 1.0])
    np.testing.assert_allclose(guided(jnp.zeros((6, 1)), t)[:, 0], [3, 3, 5, 5, 3, 3])
    everywhere = guidance.classifier_free(conditional, unconditional, 2.0)
    np.testing.assert_allclose(everywhere(jnp.zeros((6, 1)), t)[:, 0], 5)


def test_guidance_of_some_channels_and_autoguidance():
    strong, weak = (lambda x, t: 3 * jnp.ones_like(x)), (lambda x, t: jnp.ones_like(x))
    x, t = jnp.zeros((2, 2, 2, 4)), jnp.full(2, 0.5)
    found = guidance.classifier_free(strong, weak, 2.0, channels=3)(x, t)
    np.testing.assert_allclose(found[0, 0, 0], [5, 5, 5, 3])
    np.testing.assert_allclose(guidance.autoguidance(strong, weak, 1.5)(x, t), 4)
