"""REPA's loss against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl import backbones
from jaxdrl.algorithms import flow_matching, representation_alignment
from tests.drawing import drawn


def test_alignment_is_the_negative_mean_cosine():
    h, f = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    cosine = (h * f).sum(-1) / np.linalg.norm(h, axis=-1) / np.linalg.norm(f, axis=-1)
    found = representation_alignment.alignment([jnp.asarray(h)], [jnp.asarray(f)])
    assert float(found) == pytest.approx(-cosine.mean(), rel=1e-5)
    both = representation_alignment.alignment([jnp.asarray(h)] * 2, [jnp.asarray(f), jnp.asarray(3 * h)])
    assert float(both) == pytest.approx(-(cosine.mean() + 1) / 2, rel=1e-5)


def test_loss_is_flow_matching_plus_half_the_alignment():
    sizes = {"sample_shape": (4, 4, 2), "num_classes": 3, "patch_size": 2, "width": 16, "depth": 2, "num_heads": 2}
    network = backbones.create("REPA", **sizes, projector_dims=(6,), projector_depth=1, projector_hidden=8)
    params = drawn(network.init)
    data, labels = jax.random.normal(jax.random.key(2), (5, 4, 4, 2)), jnp.array([0, 1, 2, 0, 1])
    targets, key = [jax.random.normal(jax.random.key(3), (5, 4, 6))], jax.random.key(4)
    options = {"label_dropout": 0.4, "null_label": 3}
    aligned = lambda p: representation_alignment.loss(network.aligned, p, data, labels, targets, key, **options)  # noqa: E731
    (value, parts), gradient = jax.jit(jax.value_and_grad(aligned, has_aux=True))(params)
    expected = jax.jit(lambda p: flow_matching.loss(network.velocity, p, data, labels, key, **options))(params)
    assert float(parts["flow_matching"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(value) == pytest.approx(float(expected + 0.5 * parts["alignment"]), rel=1e-5)
    assert float(jnp.abs(gradient["projectors_0"]["4"]["kernel"]).max()) > 0
