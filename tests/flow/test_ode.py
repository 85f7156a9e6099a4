"""Samplers against the exact flow of Gaussian data, and guidance against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.flow import guidance, ode
from tests.flow.gaussians import gaussian_velocity

MEAN, STD = 0.8, 0.5


@pytest.mark.parametrize(("method", "order"), [("euler", 1.0), ("heun", 2.0)])
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


@pytest.mark.parametrize("method", ["heun", "euler"])
def test_number_of_evaluations(method):
    """Counts calls as the network sees them: scan bodies times their length."""
    steps, calls = 6, []

    def velocity(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return -x

    ode.sample(velocity, jnp.ones((1, 1)), ode.uniform_grid(steps), method=method).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == ode.evaluations(steps, method) == (11 if method == "heun" else 6)


@pytest.mark.parametrize("method", ["heun", "euler"])
def test_sampling_keeps_no_trajectory(method):
    x, grid = jax.random.normal(jax.random.key(0), (1000, 10)), ode.uniform_grid(50)
    sample = jax.jit(lambda x: ode.sample(gaussian_velocity(MEAN, STD), x, grid, method=method))
    np.testing.assert_array_equal(
        sample(x), jax.jit(lambda x: ode.integrate(gaussian_velocity(MEAN, STD), x, grid, method=method))(x)[-1]
    )
    assert sample.lower(x).compile().memory_analysis().temp_size_in_bytes < 5 * x.nbytes


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
    with pytest.raises(ValueError, match="heun or euler"):
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
