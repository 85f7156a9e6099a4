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
    return sampling.sample(NETWORK, PARAMS, **({"num": 10, "seed": 4, "num_steps": 3, "batch_size": 10} | options))


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
