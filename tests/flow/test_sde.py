"""SDE samplers against SiT's own, noise by noise (outputs kept in `tests/golden`), and against a closed form."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.flow import sde
from tests.flow.gaussians import gaussian_velocity
from tests.golden import cases

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "official.npz")


@pytest.mark.parametrize("name", cases.SDE)
def test_samples_are_sits(name):
    method, form, last_step = cases.SDE[name]
    found = sde.sample(
        lambda x, t: jnp.tanh(2 * x) - x * t[:, None],
        jnp.asarray(cases.SDE_START),
        jax.random.key(3),
        num_steps=cases.SDE_STEPS,
        method=method,
        form=form,
        last_step=last_step,
    )
    np.testing.assert_allclose(found, GOLDEN[f"sde/{name}"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("form", sde.FORMS)
def test_every_form_has_the_marginal_of_the_data(form):
    """Data N(0.5, 0.4^2): mean and spread of 20 000 samples, Monte-Carlo errors .003 and .002."""
    noise = jax.random.normal(jax.random.key(0), (20_000, 1))
    # A closing step of .04 along a constant w overshoots: the score is 25 times as steep there.
    last = "euler" if form == "constant" else "mean"
    draw = jax.jit(lambda noise: sde.sample(gaussian_velocity(0.5, 0.4), noise, jax.random.key(1), form=form, last_step=last))
    found = draw(noise)
    assert abs(float(found.mean()) - 0.5) < 0.02 and abs(float(found.std()) - 0.4) < 0.02


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "SBDM"}, "infinite"),
        ({"form": "linear"}, "form must be"),
        ({"method": "dopri5"}, "method"),
        ({"last_step": "Mean"}, "last_step"),
        ({"last_step_size": 1.0}, "last_step_size"),
        ({"num_steps": 1}, "num_steps"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        sde.sample(lambda x, t: x, jnp.ones((2, 2)), jax.random.key(0), **options)
