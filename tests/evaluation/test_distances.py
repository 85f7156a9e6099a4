"""Distances and manifold metrics against independent implementations and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdrl.errors import UserError
from jaxdrl.evaluation import calibration, classifier, frechet, kernel, manifold, memorisation, protocol, ratio, spectrum, tilt
from jaxdrl.evaluation.statistics import Moments

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 12)) @ RNG.normal(size=(12, 12)) * 0.4
Y = RNG.normal(size=(300, 12)) @ RNG.normal(size=(12, 12)) * 0.4 + 0.3


def _sqrtm(x, y):
    difference = x.mean(0) - y.mean(0)
    one, two = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(one @ two)
    return difference @ difference + np.trace(one + two - 2 * root.real)


def test_frechet_against_scipys_matrix_root():
    assert frechet.frechet_from_features(X, Y) == pytest.approx(_sqrtm(X, Y), rel=1e-9)
    assert frechet.frechet_distance(Moments.of(X), Moments.of(X)) == pytest.approx(0, abs=1e-9)


def test_frechet_between_gaussians_in_closed_form():
    eye = np.eye(5)
    one = Moments(count=11, mean=np.zeros(5), scatter=10 * 4.0 * eye)
    two = Moments(count=11, mean=np.full(5, 0.5), scatter=10 * 9.0 * eye)
    assert frechet.frechet_distance(one, two) == pytest.approx(5 * 0.25 + 5 * (2 - 3) ** 2)
    with pytest.raises(ValueError, match="dimensions"):
        frechet.frechet_distance(one, Moments.of(X))


def test_fewer_samples_than_dimensions():
    wide_x, wide_y = RNG.normal(size=(20, 50)), RNG.normal(size=(25, 50)) + 0.1
    by_roots = frechet.frechet_distance(Moments.of(wide_x), Moments.of(wide_y))
    assert frechet.frechet_from_features(wide_x, wide_y) == pytest.approx(by_roots, rel=1e-6)


def test_digits_have_a_singular_covariance_and_a_known_distance():
    """Even and odd images of the bundled digits: rank 61 of 64; .070525 by two other routes (scaled to [0, 1])."""
    from sklearn.datasets import load_digits

    images = load_digits().data / 16
    assert frechet.frechet_from_features(images[::2], images[1::2]) == pytest.approx(0.070525, abs=2e-6)


@pytest.mark.parametrize("rank", [3, 12])
def test_a_set_lies_nowhere_from_itself(rank):
    """Singular or not, given as moments or as features; and the factor is as narrow as the rank."""
    x = X[:, :rank] @ RNG.normal(size=(rank, 40))
    moments = Moments.of(x)
    assert frechet.factor(moments.covariance).shape == (40, rank)
    np.testing.assert_allclose(
        frechet.factor(moments.covariance) @ frechet.factor(moments.covariance).T, moments.covariance, atol=1e-11
    )
    assert frechet.frechet_distance(moments, moments) == pytest.approx(0, abs=1e-10 * np.trace(moments.covariance))
    shifted = frechet.frechet_distance(moments, Moments.of(x + 0.25))
    assert shifted == pytest.approx(40 * 0.0625, rel=1e-9)


def test_scale_of_singular_data_in_closed_form():
    """S and 4 S: tr (1 + 4 - 2 * 2) S, whatever the rank; roots of eigenvalues would lose half the digits."""
    x = X[:, :5] @ RNG.normal(size=(5, 300))
    one, two = Moments.of(x - x.mean(0)), Moments.of(2 * (x - x.mean(0)))
    assert frechet.frechet_distance(one, two) == pytest.approx(np.trace(one.covariance), rel=1e-10)


def test_the_bias_falls_as_one_over_n_and_is_foretold():
    """N FD_N is constant for samples of the reference, and `bias` says which constant; FD_infinity takes it away."""
    rng = np.random.default_rng(3)
    for scales, bound in ((np.ones(32), 0.04), (np.exp(-np.arange(32) / 8), 0.15)):
        truth = Moments.from_covariance(10**9, np.zeros(32), np.diag(scales**2))
        reference = frechet.Reference(truth)
        for n in (500, 1000, 4000):
            drawn = np.mean([reference.distance(Moments.of(rng.normal(size=(n, 32)) * scales)) for _ in range(24)])
            assert drawn == pytest.approx(frechet.bias(truth, n), rel=bound)
    samples = rng.normal(size=(5000, 32)) * scales + 0.1
    plain = reference.distance(Moments.of(samples))
    value, sizes, values = frechet.extrapolated(reference, samples, seed=0)
    assert abs(value - 0.32) < 0.25 * abs(plain - 0.32) + 0.01
    assert len(sizes) == len(values) == 15 and sizes[0] == 500 and values[-1] == pytest.approx(plain)
    assert value == frechet.extrapolated(reference, samples, seed=0)[0] != frechet.extrapolated(reference, samples, seed=1)[0]


def test_kid_draws_as_torch_fidelity():
    """RandomState(2020), samples before data, subsets without replacement: its own numbers, written out."""
    rng, values = np.random.RandomState(2020), []
    for _ in range(7):
        fake = Y[rng.choice(len(Y), 50, replace=False)]
        values.append(kernel.mmd(fake, X[rng.choice(len(X), 50, replace=False)]))
    assert kernel.kernel_distance(X, Y, subsets=7, subset_size=50) == pytest.approx((np.mean(values), np.std(values)))


def test_cmmd_against_explicit_kernels(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 130)
    x, y = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (X, Y))
    k = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 200).mean()  # noqa: E731
    assert kernel.cmmd(X, Y) == pytest.approx(1000 * (k(x, x) + k(y, y) - 2 * k(x, y)), rel=1e-5)
    assert kernel.cmmd(3 * X, X) == pytest.approx(0, abs=1e-6)


def test_fdr6_is_the_mean_of_six_ratios():
    found = ratio.ratios({space: 2 * value for space, value in ratio.VALIDATION.items()})
    assert found["fdr6"] == pytest.approx(2) and len(found) == 7
    with pytest.raises(UserError, match="fdr-mae, fdr-siglip2"):
        ratio.ratios({space: 1.0 for space in ratio.VALIDATION if space not in ("fdr-mae", "fdr-siglip2")})


def test_radial_power_of_waves():
    """A wave of r cycles has all its power at r; white noise has the same everywhere; ten times the amplitude is two decades."""
    rows = np.arange(16)[:, None] + np.zeros((16, 16))
    for cycles in (1, 3, 8):
        wave = np.cos(2 * np.pi * cycles * rows / 16)[None, :, :, None].astype(np.float32)
        power = np.asarray(spectrum.radial_power(jnp.asarray(wave)))[0]
        assert power.shape == (8,) and power.argmax() == cycles - 1 and power[power.argmax()] > 1e5 * np.sort(power)[-2]
    noise = RNG.normal(size=(400, 16, 24, 3)).astype(np.float32)
    flat = np.asarray(spectrum.radial_power(jnp.asarray(noise))).mean(axis=0)
    np.testing.assert_allclose(flat, 1, rtol=0.05)
    louder = np.asarray(spectrum.radial_power(jnp.asarray(10 * noise))).mean(axis=0)
    assert spectrum.gap(flat, louder) == pytest.approx(2, rel=1e-5) and spectrum.gap(flat, flat) == 0
    with pytest.raises(ValueError, match="different sizes"):
        spectrum.gap(flat, flat[:4])


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 390))
def test_moments_merge_and_subtract(cut):
    one, two, whole = Moments.of(X[:cut]), Moments.of(X[cut:]), Moments.of(X)
    merged, rest = one.merge(two), whole.subtract(one)
    np.testing.assert_allclose(merged.covariance, np.cov(X.T), atol=1e-12)
    np.testing.assert_allclose(merged.mean, X.mean(0), atol=1e-12)
    np.testing.assert_allclose(rest.scatter, two.scatter, atol=1e-9)
    with pytest.raises(ValueError, match="cannot take"):
        one.subtract(whole)


def test_bootstrap_error_is_the_spread_over_fresh_samples():
    reference = frechet.Reference(Moments.of(X))
    fresh = [reference.distance(Moments.of(RNG.normal(size=(300, 12)) * 0.5)) for _ in range(200)]
    sets = [frechet.bootstrap(reference, RNG.normal(size=(300, 12)) * 0.5, resamples=100, seed=seed) for seed in range(5)]
    assert np.mean([values.std(ddof=1) for values in sets]) == pytest.approx(np.std(fresh), rel=0.25)


def test_paired_error_of_a_difference_is_its_spread_over_fresh_samples():
    """Two models from the same noise: far surer than their own errors say."""
    reference = frechet.Reference(Moments.of(X))
    noise = RNG.normal(size=(200, 300, 12)) * 0.5
    models = lambda z: (z, 1.1 * z + 0.05)  # noqa: E731
    spread = np.std([np.subtract(*(reference.distance(Moments.of(part)) for part in models(z))) for z in noise], ddof=1)
    rows = {}
    for row, part in zip(("base", "tuned"), models(noise[0]), strict=True):
        rows[row] = {"judge": {"frechet_resampled": frechet.bootstrap(reference, part, resamples=200, seed=3)}}
    errors = protocol.paired_errors(rows, "base")["judge"]
    assert errors["base"] == 0 and errors["tuned"] == pytest.approx(spread, rel=0.3)
    alone = rows["tuned"]["judge"]["frechet_resampled"].std(ddof=1)
    assert errors["tuned"] < 0.7 * alone


def test_kernel_distance_against_explicit_sums():
    x, y, d = X[:6], Y[:6], 12
    k = lambda a, b: (a @ b / d + 1) ** 3  # noqa: E731
    within = sum(k(a[i], a[j]) for a in (x, y) for i in range(6) for j in range(6) if i != j) / 30
    across = 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel.mmd(x, y) == pytest.approx(within - across, rel=1e-9)
    mean, deviation = kernel.kernel_distance(X, X[::-1].copy(), subsets=30, subset_size=100)
    assert abs(mean) < 0.2 * kernel.mmd(X[:300], Y)
    assert deviation > 0
    assert kernel.kernel_distance(X, Y, subsets=5, subset_size=50, seed=1) == kernel.kernel_distance(
        X, Y, subsets=5, subset_size=50, seed=1
    )


def test_memorisation_counts_copies_and_only_those():
    train, held_out, fresh = (RNG.normal(size=(300, 6)) for _ in range(3))
    assert memorisation.copies(held_out, train, held_out, 0.05) == pytest.approx(0.05, abs=0.005)
    assert memorisation.copies(fresh, train, held_out) < 0.12
    half = np.concatenate([train[:150] + 1e-3, fresh[:150]])
    assert memorisation.copies(half, train, held_out) > 0.5
    half[7] = train[200]
    assert memorisation.closest(half, train, 3)[0] == (7, 200, 0.0) and len(memorisation.closest(half, train, 3)) == 3


def test_ideal_tilt_of_a_gaussian():
    """Rewards b x on N(0, 1) with lambda: the tilted law is N(lambda b, 1), its effective sample size exp(-(lambda b)^2)."""
    x, labels, slope, scale = RNG.normal(size=200_000), RNG.integers(0, 2, 200_000), 0.8, 0.5
    rewards = slope * x * np.where(labels == 0, 1, -1)
    chosen = tilt.ideal_tilt(rewards, labels, scale, 40_000, 0)
    assert np.bincount(labels[chosen]).tolist() == [20_000, 20_000]
    assert x[chosen][labels[chosen] == 0].mean() == pytest.approx(0.4, abs=0.02)
    assert x[chosen][labels[chosen] == 1].mean() == pytest.approx(-0.4, abs=0.02)
    assert tilt.tilted_mean(rewards, labels, scale) == pytest.approx(0.8 * 0.4, abs=0.01)
    mean, per_class = tilt.effective_sample_size(rewards, labels, scale)
    assert mean == pytest.approx(np.exp(-0.16), abs=0.01) and per_class.shape == (2,)


def test_calibration():
    logits = RNG.normal(size=200_000) * 2
    truth = RNG.random(200_000) < 1 / (1 + np.exp(-logits))
    real, fake = logits[truth], logits[~truth]
    assert calibration.expected_calibration_error(real, fake) < 0.01
    assert calibration.expected_calibration_error(3 * real, 3 * fake) > 0.08


def test_classifiers_know_the_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 8 - 1)[..., None].astype(np.float32)
    machine = classifier.PixelClassifier(images[::2], digits.target[::2])
    assert machine.accuracy(images[1::2], digits.target[1::2]) > 0.97
    assert machine.accuracy(images[1::2], (digits.target[1::2] + 1) % 10) < 0.03
    predicted = classifier.predict(digits.data[::2], digits.target[::2], digits.data[1::2])
    by_class = classifier.accuracy_by_class(predicted, digits.target[1::2])
    assert list(by_class) == list(range(10)) and min(by_class.values()) > 0.85
    assert np.average(list(by_class.values()), weights=np.bincount(digits.target[1::2])) == pytest.approx(
        (predicted == digits.target[1::2]).mean()
    )
    flat = digits.data
    assert classifier.nearest_neighbours(flat[::2], digits.target[::2], flat[1::2], digits.target[1::2]) > 0.96


def test_measure_and_its_tables():
    options = protocol.Settings(kernel_subsets=5, kernel_subset_size=100, bootstrap=10)
    found = protocol.measure(X, Y, options)
    assert found["frechet"] == pytest.approx(_sqrtm(X, Y), rel=1e-9) and found["frechet_se"] > 0
    assert found["precision"] == manifold.measure(X, Y).precision
    table = protocol.by_space({"base": {"judge": found}}, "frechet")
    assert table == {"judge": {"base": found["frechet"]}}
    assert len(protocol.spread(X, 50)) == 50 and protocol.spread(X, 5000) is X
    plane = protocol.principal_plane(X)(X)
    values = np.linalg.eigvalsh(np.cov(X.T))[::-1][:2]
    np.testing.assert_allclose(plane.var(axis=0, ddof=1), values, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_projection_ratio_of_a_gaussian_under_a_linear_reward(scale):
    """N(0, 1) and r = 3 x tilt to N(3 lambda, 1): shift 9 lambda, KL 4.5 lambda^2; a fraction f of the way gives 1 / f."""
    for fraction in (1.0, 0.5):
        mean = fraction * 3 * scale
        assert tilt.projection_ratio(3 * mean, 0.5 * mean**2, scale) == pytest.approx(1 / fraction)
    assert np.isnan(tilt.projection_ratio(0.0, 0.0, scale))
