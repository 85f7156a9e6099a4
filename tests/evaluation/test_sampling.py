"""Samples depend on their number and the seed, on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdrl import backbones
from jaxdrl.evaluation import sampling
from jaxdrl.flow import ode

NETWORK = backbones.create(
    "SiT", sample_shape=(4, 4, 1), num_classes=3, patch_size=2, width=16, depth=1, num_heads=2, learn_sigma=False
)
PARAMS = jax.tree.map(lambda leaf: leaf + 0.2 * jax.random.normal(jax.random.key(1), leaf.shape), NETWORK.init(jax.random.key(0)))


def _sample(**options):
    solver = sampling.Solver(num_steps=3, **{key: options.pop(key) for key in sampling.Solver._fields if key in options})
    return sampling.sample(NETWORK, PARAMS, solver, **({"num": 10, "seed": 4, "batch_size": 10} | options))


def test_batch_size_does_not_matter():
    images, labels = _sample()
    smaller, _ = _sample(batch_size=4)
    np.testing.assert_allclose(images, smaller, atol=1e-5)
    np.testing.assert_array_equal(labels, np.arange(10) % 3)
    assert not np.allclose(images, _sample(seed=5)[0])


def test_against_a_sampler_written_out():
    images, labels = _sample()
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(jax.random.key(4), i), (4, 4, 1)) for i in range(10)])
    expected = ode.sample(lambda x, t: NETWORK.velocity(PARAMS, x, t, jnp.asarray(labels)), noise, ode.uniform_grid(3))
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_guidance_of_scale_one_is_none_and_of_another_is_not():
    plain = _sample()[0]
    np.testing.assert_allclose(_sample(guidance=sampling.Guidance(1.0))[0], plain, atol=1e-5)
    guided = _sample(guidance=sampling.Guidance(2.0))[0]
    assert not np.allclose(guided, plain, atol=1e-3)
    assert not np.allclose(_sample(guidance=sampling.Guidance(2.0, (0.4, 1.0)))[0], guided, atol=1e-3)


def test_the_solver_chooses_method_grid_and_guided_channels():
    _, labels = _sample()
    noise = sampling.noise(jax.random.key(4), jnp.arange(10), (4, 4, 1))
    velocity = lambda x, t: NETWORK.velocity(PARAMS, x, t, jnp.asarray(labels))  # noqa: E731
    expected = ode.sample(velocity, noise, ode.shifted_grid(3, 4.0, 0.9), method="euler")
    np.testing.assert_allclose(_sample(method="euler", time_shift=4.0, time_end=0.9)[0], expected, atol=1e-5)
    guided = _sample(guidance=sampling.Guidance(2.0), guidance_channels=1)[0]
    np.testing.assert_allclose(guided, _sample(guidance=sampling.Guidance(2.0))[0], atol=1e-6)
    unguided = _sample(guidance=sampling.Guidance(2.0), guidance_channels=0)[0]
    np.testing.assert_allclose(unguided, _sample()[0], atol=1e-5)


def test_finish_sees_every_sample_once():
    seen = []
    kept, _ = _sample(batch_size=4, finish=lambda part: seen.append(len(part)) or part.mean(axis=(1, 2, 3)))
    assert seen == [4, 4, 2]
    np.testing.assert_allclose(kept, _sample()[0].mean(axis=(1, 2, 3)), atol=1e-5)


def test_other_weights_and_seeds_compile_nothing_again(monkeypatch):
    """The function is traced once for a network and solver, however often a sampler is made of it."""
    traced, noise = [], sampling.noise
    monkeypatch.setattr(sampling, "noise", lambda *arguments: traced.append(1) or noise(*arguments))
    solver = sampling.Solver(num_steps=2, time_end=0.7)  # of no other test
    drawn = [
        sampling.sample(NETWORK, jax.tree.map(lambda leaf, by=by: leaf * by, PARAMS), solver, num=4, seed=seed, batch_size=4)[0]
        for by, seed in ((1.0, 0), (1.5, 0), (1.5, 1))
    ]
    assert len(traced) == 1 and not np.allclose(drawn[0], drawn[1]) and not np.allclose(drawn[1], drawn[2])
