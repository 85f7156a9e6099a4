"""Whole samplers of the papers: JiT's guided Heun (its authors' code, kept in `tests/golden`) and RAE's shifted Euler."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import backbones
from jaxdrl.flow import guidance, ode, sde
from jaxdrl.weights import from_torch
from tests.golden import cases
from tests.weights.test_convert import _state

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official.npz")


def test_jits_guided_heun_sampler():
    network = backbones.create("JiT", **cases.CASES["jit"][1])
    params, labels = from_torch(network, _state("jit")), jnp.asarray(cases.LABELS)
    with_label = lambda y: lambda x, t: network.velocity(params, x, t, y)  # noqa: E731
    velocity = guidance.classifier_free(
        with_label(labels), with_label(jnp.full_like(labels, 10)), cases.GUIDED["scale"], cases.GUIDED["interval"]
    )
    sample = jax.jit(lambda x: ode.sample(velocity, x, ode.uniform_grid(cases.GUIDED["steps"])))
    found = sample(jnp.asarray(cases.inputs("jit")))
    expected = GOLDEN["jit/guided"]
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.parametrize("name", ["sit", "dit"])
def test_sits_and_dits_guidance_of_three_channels(name):
    network = backbones.create(cases.CASES[name][0], **cases.CASES[name][1])
    params, labels = from_torch(network, _state(name)), jnp.asarray(cases.LABELS)
    with_label = lambda y: lambda x, t: network.predict(params, x, t, y)  # noqa: E731
    velocity = guidance.classifier_free(
        with_label(labels), with_label(jnp.full_like(labels, 10)), cases.GUIDED["scale"], channels=3
    )
    found = jax.jit(velocity)(jnp.asarray(cases.inputs(name)), jnp.asarray(cases.times(name)))
    expected = GOLDEN[f"{name}/guided"]
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.parametrize("kind", ["sde", "euler", "heun"])
def test_repas_samplers_with_guidance_on_an_interval(kind):
    """The same noise, step by step; their time runs from 1 to 0, and both ends of the interval belong to it."""
    network = backbones.create("REPA", **cases.CASES["repa"][1])
    params, labels = from_torch(network, _state("repa")), jnp.asarray(cases.LABELS)
    with_label = lambda y: lambda x, t: network.velocity(params, x, t, y)  # noqa: E731
    interval = (0.0, 1.0) if kind == "heun" else (1 - cases.REPA_HIGH, 1.0)
    null = with_label(jnp.full_like(labels, 10))
    velocity = guidance.classifier_free(with_label(labels), null, 1.8, interval, closed=True)
    start, grid = jnp.asarray(cases.inputs("repa")), ode.uniform_grid(cases.REPA_STEPS)
    if kind == "sde":
        found = jax.jit(lambda x: sde.sample(velocity, x, jax.random.key(3), num_steps=cases.REPA_STEPS))(start)
    else:
        found = jax.jit(lambda x: ode.sample(velocity, x, grid, method=kind))(start)
    expected = GOLDEN[f"repa/{kind}"]
    assert np.abs(found - expected).max() / np.abs(expected).max() < 2e-5


def test_raes_shifted_euler_sampler():
    """bytetriper/RAE transport/integrators.py: 1 - linspace(0, .999, 50), shifted, from noise at 1 downwards, 49 Euler steps."""
    shift, v = (16 * 16 * 768 / 4096) ** 0.5, lambda x, t: np.tanh(x) * (1 + t)  # noise - data, at their t
    t = 1 - np.linspace(0, 0.999, 50)
    t = shift * t / (1 + (shift - 1) * t)
    assert t[-1] == pytest.approx(0.00689, abs=5e-6)
    x = np.random.default_rng(0).standard_normal((4, 3))
    start = jnp.asarray(x, jnp.float32)
    for now, after in itertools.pairwise(t):
        x = x + (after - now) * v(x, now)
    grid = ode.shifted_grid(49, shift, end=0.999)
    ours = lambda x, t: -jnp.tanh(x) * (2 - t)[:, None]  # noqa: E731
    np.testing.assert_allclose(ode.sample(ours, start, grid, method="euler"), x, rtol=1e-4, atol=1e-5)
    for end in (0.0, 1.1):
        with pytest.raises(ValueError, match="end"):
            ode.shifted_grid(10, shift, end=end)
