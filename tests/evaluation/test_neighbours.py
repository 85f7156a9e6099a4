"""Exact neighbours and balls against brute force in float64, `prdc` and a NumPy float16 version of ADM's evaluator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdrl.evaluation import manifold, neighbours

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(400, 12)) @ RNG.normal(size=(12, 12)) * 0.4).astype(np.float32)
Y = (RNG.normal(size=(300, 12)) @ RNG.normal(size=(12, 12)) * 0.4 + 0.3).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks, the last ones short."""
    monkeypatch.setattr(neighbours, "ROWS", 64)
    monkeypatch.setattr(neighbours, "COLUMNS", 112)


def _brute(x, y):
    return np.sqrt(((x[:, None].astype(np.float64) - y[None]) ** 2).sum(-1))


def test_nearest_is_brute_force(small_blocks):
    distances, indices = neighbours.nearest(X, Y, 3)
    expected = _brute(X, Y)
    np.testing.assert_array_equal(indices, np.argsort(expected, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :3], rtol=1e-14)


def test_a_row_is_not_its_own_neighbour_even_among_copies(small_blocks):
    doubled = np.repeat(X[:100], 2, axis=0)
    distances, indices = neighbours.nearest(doubled, doubled, 2, same=True)
    assert (distances[:, 0] == 0).all() and (distances[:, 1] > 0).all()
    np.testing.assert_array_equal(indices[:, 0], np.arange(200) ^ 1)
    with pytest.raises(ValueError, match="no 400-th"):
        neighbours.nearest(X, X, 400, same=True)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(6, 90), m=st.integers(6, 90), offset=st.sampled_from([0.0, 1e3, 1e5]), seed=st.integers(0, 99))
def test_any_size_and_offset(n, m, offset, seed):
    """A large common offset would take float32's Gram trick all its digits; many near ties."""
    rng = np.random.default_rng(seed)
    x, y = (np.round(rng.normal(size=(k, 3)), 1).astype(np.float32) + np.float32(offset) for k in (n, m))
    expected = _brute(x, y)
    np.testing.assert_allclose(neighbours.nearest(x, y, 5)[0], np.sort(expected, axis=1)[:, :5], rtol=1e-12, atol=1e-12)
    radii = np.sort(_brute(x, x) + np.diag(np.full(n, np.inf)), axis=1)[:, 2]
    for closed in (False, True):
        (found,), () = neighbours.inside(x, y, (radii,), closed=closed)
        held = expected <= radii[:, None] if closed else expected < radii[:, None]
        np.testing.assert_array_equal(found.held, held.sum(axis=1))
        np.testing.assert_array_equal(found.holding, held.sum(axis=0))


def test_near_ties_beyond_float32_are_decided_exactly():
    """Two tight clusters far from their mean: float32 orders neighbours at random, and more of them tie than there are spares."""
    near = RNG.normal(size=(80, 6)) * 0.01
    x = (near + np.where(np.arange(80) % 2, 1000.0, -1000.0)[:, None]).astype(np.float32)
    expected = _brute(x, x) + np.diag(np.full(80, np.inf))
    distances, indices = neighbours.nearest(x, x, 3, same=True)
    np.testing.assert_array_equal(indices, np.argsort(expected, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :3], rtol=1e-12)


def test_manifold_metrics_are_those_of_prdc(small_blocks):
    prdc = pytest.importorskip("prdc")
    three, five = (prdc.compute_prdc(real_features=X, fake_features=Y, nearest_k=k) for k in (3, 5))
    found = manifold.measure(X, Y)
    assert found.precision == pytest.approx(three["precision"]) and found.recall == pytest.approx(three["recall"])
    assert found.density == pytest.approx(five["density"]) and found.coverage == pytest.approx(five["coverage"])


def test_the_rim_belongs_to_closed_balls_only():
    """On a grid the k-th neighbour of a copy of the data lies at the very radius."""
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(-1, 2).astype(np.float32)
    shifted = grid + np.float32([1, 0])
    assert manifold.measure(grid, shifted, k=1, closed=True).precision == 1
    assert manifold.measure(grid, shifted, k=1).precision == pytest.approx(30 / 36)


def _adm(real, fake, k):
    """As evaluator.py has it, in NumPy."""

    def square(u, v):
        norm = lambda z: (z.astype(np.float16).astype(np.float32) ** 2).sum(1).astype(np.float16)  # noqa: E731
        inner = (u.astype(np.float16).astype(np.float32) @ v.astype(np.float16).astype(np.float32).T).astype(np.float16)
        return np.maximum(norm(u)[:, None] - np.float16(2) * inner + norm(v)[None], np.float16(0)).astype(np.float32)

    radii = [np.partition(square(z, z), k, axis=1)[:, k] for z in (real, fake)]
    between = square(real, fake)
    return (between <= radii[0][:, None]).any(0).mean(), (between <= radii[1][None]).any(1).mean()


def test_adms_precision_and_recall(small_blocks):
    """Half precision quantises the distances: the numbers differ from the exact ones, and are ADM's."""
    real, fake = X * 4 + 30, Y * 4 + 30
    found = manifold.adm_precision_recall(real, fake, 3)
    assert found == pytest.approx(_adm(real, fake, 3), abs=1e-12)
    exact = manifold.measure(real, fake)
    assert found != pytest.approx((exact.precision, exact.recall), abs=1e-12)
    huge = manifold.adm_precision_recall(X * 1e3, Y * 1e3, 3)  # overflows float16: float32 takes over
    assert huge == pytest.approx((exact.precision, exact.recall), abs=0.01)
    with pytest.raises(ValueError, match="no 3-th"):
        manifold.adm_precision_recall(X[:3], Y, 3)
