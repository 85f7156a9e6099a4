"""Flow matching's laws of times and targets, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdrl.algorithms import flow_matching
from jaxdrl.algorithms.flow_matching import TimeLaw


@pytest.mark.parametrize(
    "law", [TimeLaw(), TimeLaw(kind="logit_normal", mean=-0.8, std=0.8), TimeLaw(kind="logit_normal", shift=6.9)]
)
def test_times_follow_their_law(law):
    """Undoing shift and sigmoid gives a normal (or the uniform) law: Kolmogorov-Smirnov on 20 000 draws."""
    t = np.asarray(law.draw(jax.random.key(0), 20_000), np.float64)
    noise = 1 - t
    unshifted = noise / (law.shift - (law.shift - 1) * noise)
    if law.kind == "uniform":
        assert scipy.stats.kstest(1 - unshifted, "uniform").pvalue > 1e-3
        return
    kept = (unshifted > 1e-5) & (unshifted < 1 - 1e-5)
    logits = np.log((1 - unshifted[kept]) / unshifted[kept])
    assert scipy.stats.kstest(logits, "norm", args=(law.mean, law.std)).pvalue > 1e-3


def test_raes_shift_draws_more_times_near_the_noise():
    plain, shifted = (TimeLaw(shift=shift).draw(jax.random.key(0), 1000) for shift in (1.0, 6.928))
    s = 1 - plain
    np.testing.assert_allclose(1 - shifted, 6.928 * s / (1 + 5.928 * s), rtol=1e-4)
    assert float(shifted.mean()) < 0.25


def test_the_target_stays_finite_near_the_data():
    data, noise = jax.random.normal(jax.random.key(0), (2, 4, 3))
    t = jnp.array([0.0, 0.5, 0.96, 1.0])
    x = t[:, None] * data + (1 - t[:, None]) * noise
    expected = (data - x) / jnp.maximum(1 - t, 0.05)[:, None]
    np.testing.assert_allclose(flow_matching.target(data, noise, t, 0.05), expected, atol=1e-5)
    np.testing.assert_array_equal(flow_matching.target(data, noise, t), data - noise)


def test_the_exact_velocity_has_no_loss_on_a_point():
    """All data at one point: v = (x - x_t) / (1 - t), which JiT's clipped form meets with its clipped target."""
    point = jnp.array([0.3, -0.7])
    data = jnp.broadcast_to(point, (64, 2))

    def velocity(params, x, t, y):
        return (params - x) / jnp.maximum(1 - t, 0.05)[:, None]

    options = {"label_dropout": 0.1, "null_label": 3}
    labels = jnp.zeros(64, jnp.int32)
    clipped = flow_matching.loss(velocity, point, data, labels, jax.random.key(0), **options, target_eps=0.05)
    assert float(clipped) < 1e-8
    late = TimeLaw(kind="logit_normal", mean=5.0)
    plain = flow_matching.loss(velocity, point, data, labels, jax.random.key(0), **options, times=late)
    assert float(plain) > 1e-2


def test_laws_that_do_not_exist_are_refused():
    for options, said in (
        ({"kind": "cosine"}, "uniform or logit_normal"),
        ({"std": 0.0}, "positive"),
        ({"shift": -1.0}, "positive"),
    ):
        with pytest.raises(ValueError, match=said):
            TimeLaw(**options)
