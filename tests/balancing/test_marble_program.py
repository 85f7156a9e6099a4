"""MARBLE's program against exhaustive search, other solvers and its KKT conditions; the update and its amortised form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jaxdrl.balancing import marble

LARGEST = 16
SOLVE = jax.jit(marble.min_norm_weights)
BALANCE = jax.jit(marble.balance, static_argnums=1)
UPDATE = jax.jit(marble.update_direction, static_argnums=3)
COSINES = jax.jit(marble.cosines)
SOLVE_ALL = jax.jit(jax.vmap(marble.min_norm_weights))
KINDS = ("free", "square", "half rank", "plane", "line", "repeated", "nearly the same", "nearly opposite", "uneven")
PAPER = marble.Settings()


def _vectors(kind, count, seed):
    """K vectors of one kind; unit vectors, except where they are "uneven"."""
    random = np.random.default_rng(seed)
    dim = {"free": 300, "square": count, "half rank": max(1, count // 2), "plane": 2, "line": 1}.get(kind, 40)
    vectors = random.normal(size=(count, dim))
    if kind == "repeated":
        vectors = vectors[random.integers(0, max(1, count // 2), size=count)]
    if kind.startswith("nearly"):
        vectors = random.normal(size=(1, dim)) + 10 ** random.uniform(-4, -1) * vectors
    if kind == "nearly opposite":
        vectors[::2] *= -1
    if kind == "uneven":
        return vectors * 10 ** random.uniform(-3, 0, size=(count, 1))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _gram(kind, count, seed):
    vectors = _vectors(kind, count, seed)
    return (vectors @ vectors.T).astype(np.float32)


def _padded(gram):
    """A 16 x 16 matrix with NaN where there is no reward, and the mask: one shape, one compilation."""
    gram = np.asarray(gram, np.float32)
    padded, mask = np.full((LARGEST, LARGEST), np.nan, np.float32), np.arange(LARGEST) < len(gram)
    padded[: len(gram), : len(gram)] = gram
    return padded, mask


def _solve(gram, mask=None):
    padded, inside = _padded(gram)
    if mask is not None:
        inside[: len(gram)] &= mask
    found = np.asarray(SOLVE(padded, inside))
    assert not found[len(gram) :].any()
    return found[: len(gram)]


def _kkt(gram, alpha):
    """How far alpha is off the simplex; its KKT gap over the largest diagonal entry, half a bound on the objective's error."""
    gram, alpha = np.asarray(gram, np.float64), np.asarray(alpha, np.float64)
    slopes = gram @ alpha
    scale = np.diagonal(gram).max() or 1.0
    return max(abs(alpha.sum() - 1), -alpha.min()), (alpha @ slopes - slopes.min()) / scale


def _excess(gram, alpha, best):
    gram, alpha = np.asarray(gram, np.float64), np.asarray(alpha, np.float64)
    return (alpha @ gram @ alpha - best @ gram @ best) / (np.diagonal(gram).max() or 1.0)


def _search(gram):
    """The best of the shortest vectors in the affine hulls of all subsets that lie in the convex hull; float64."""
    count, best, value = len(gram), None, np.inf
    gram = np.asarray(gram, np.float64)
    for size in range(1, count + 1):
        for support in map(list, itertools.combinations(range(count), size)):
            system = np.ones((size + 1, size + 1))
            system[:size, :size], system[size, size] = gram[np.ix_(support, support)], 0
            part = np.linalg.lstsq(system, np.eye(size + 1)[size], rcond=1e-10)[0][:size]
            alpha = np.zeros(count)
            alpha[support] = np.clip(part, 0, None)
            if part.min() > -1e-9 and alpha.sum() > 0.5:
                alpha /= alpha.sum()
                if alpha @ gram @ alpha < value:
                    best, value = alpha, alpha @ gram @ alpha
    return best


def _slsqp(gram, floor=0.0):
    """The released code's solver, in float64."""
    gram, count = np.asarray(gram, np.float64), len(gram)
    found = scipy.optimize.minimize(
        lambda a: 0.5 * a @ gram @ a,
        np.full(count, 1 / count),
        jac=lambda a: gram @ a,
        bounds=[(floor, None)] * count,
        constraints=[{"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like}],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    return found.x


@pytest.fixture(scope="module")
def solved():
    """960 programs of every kind with 1 to 16 rewards, and our answers."""
    cases = [(kind, count, seed) for kind, count, seed in itertools.product(KINDS, range(1, LARGEST + 1), range(7))]
    grams = [_gram(*case) for case in cases]
    padded = [_padded(gram) for gram in grams]
    answers = np.asarray(SOLVE_ALL(np.stack([gram for gram, _ in padded]), np.stack([mask for _, mask in padded])))
    return [(case, gram, answer[: len(gram)]) for case, gram, answer in zip(cases, grams, answers, strict=True)]


def test_kkt_conditions_hold(solved):
    for case, gram, alpha in solved:
        off, gap = _kkt(gram, alpha)
        assert off < 1e-6 and gap < 5e-7, case


def test_objective_is_that_of_an_exhaustive_search(solved):
    """All subsets of up to eight rewards. Rounding to float32 leaves Grams slightly indefinite, so ours may be the lower one."""
    for case, gram, alpha in solved:
        if len(gram) <= 6 or (len(gram) == 8 and case[2] == 0):
            assert abs(_excess(gram, alpha, _search(gram))) < 1e-6, case


def test_objective_is_that_of_the_released_solver(solved):
    for case, gram, alpha in solved:
        if case[1] in (5, 9, 16) and case[2] < 3:
            assert abs(_excess(gram, alpha, _slsqp(gram))) < 1e-6, case


def test_objective_is_that_of_quadprog(solved):
    quadprog = pytest.importorskip("quadprog")
    for case, gram, alpha in solved:
        values, vectors = np.linalg.eigh(gram.astype(np.float64))
        scale = values.max()
        convex = (vectors * np.clip(values / scale, 1e-11, None)) @ vectors.T
        count = len(gram)
        best = quadprog.solve_qp(convex, np.zeros(count), np.c_[np.ones(count), np.eye(count)], np.r_[1, np.zeros(count)], 1)[0]
        assert abs(_excess(gram, alpha, best)) < 1e-6, case


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.integers(1, LARGEST), st.integers(1, 40), st.integers(0, 2**31), st.floats(-6, 6), st.integers(0, 2**LARGEST - 1))
def test_any_shape_scale_and_mask(count, dim, seed, exponent, bits):
    """The answer solves the program of the rewards that are kept, at any scale, and gives nothing to the others."""
    vectors = np.random.default_rng(seed).normal(size=(count, dim)) * 10**exponent
    gram = (vectors @ vectors.T).astype(np.float32)
    mask = (bits >> np.arange(count)) % 2 == 1
    alpha = _solve(gram, mask)
    assert not alpha[~mask].any()
    if mask.any():
        off, gap = _kkt(gram[np.ix_(mask, mask)], alpha[mask])
        assert off < 1e-6 and gap < 5e-7


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_rewards_does_not_matter(kind):
    gram, order = _gram(kind, 9, 1), np.random.default_rng(0).permutation(9)
    alpha, permuted = _solve(gram), _solve(gram[np.ix_(order, order)])
    # Where many weights reach the minimum, rounding moves them more than it moves the minimum.
    tolerance = {"half rank": 1e-2, "plane": 1e-3, "nearly the same": 2e-2, "nearly opposite": 2e-2}.get(kind, 1e-5)
    np.testing.assert_allclose(permuted, alpha[order], atol=tolerance)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[3.0, 1.0]], [1]),
        ([[1, 2]] * 3, [1 / 3] * 3),  # identical
        ([[1, 2], [2, 4]], [1, 0]),  # parallel: the shorter
        ([[1, 2], [-1, -2]], [0.5, 0.5]),  # opposite
        ([[1, 2], [-2, -4]], [2 / 3, 1 / 3]),
        ([[1, 0], [0, 1]], [0.5, 0.5]),
        ([[1, 0], [0, 2]], [0.8, 0.2]),
        ([[1, 0], [1, 1]], [1, 0]),  # an acute corner
        ([[1, 0], [1, 0], [0, 1]], [0.25, 0.25, 0.5]),
        ([[1, 0], [-1, 0], [0, 1], [0, -1]], [0.25] * 4),  # many minimisers: the smallest sum of squares
        ([[0, 0], [1, 0], [0, 1]], [1, 0, 0]),  # a zero gradient is the shortest point of the hull
        ([[0, 0]] * 4, [0.25] * 4),
        ([[1e-15, 0], [0, 1e-15]], [0.5, 0.5]),
        ([[1e18, 0], [0, 1e18]], [0.5, 0.5]),
    ],
)
def test_cases_with_a_known_answer(vectors, expected):
    vectors = np.array(vectors, np.float64)
    np.testing.assert_allclose(_solve(vectors @ vectors.T), expected, atol=2e-6)


@pytest.mark.parametrize("count", [2, 5, 16])
def test_identical_gradients_share_evenly_in_spite_of_rounding(count):
    random = np.random.default_rng(count)
    noise = 1 + 1e-7 * random.uniform(-1, 1, size=(count + 1, count + 1))
    gram = np.ones((count + 1, count + 1))
    gram[-1, :-1] = gram[:-1, -1] = 0.3  # and one other reward
    alpha = _solve((gram * noise)[:LARGEST, :LARGEST])
    np.testing.assert_allclose(alpha[:count], alpha[0], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_have_no_weight(bad):
    gram = _gram("free", 5, 0)
    gram[2], gram[:, 2] = bad, bad
    alpha, others = _solve(gram), [0, 1, 3, 4]
    assert alpha[2] == 0
    np.testing.assert_allclose(alpha[others], _solve(gram[np.ix_(others, others)]), atol=1e-6)
    crossed = _gram("free", 5, 0)
    crossed[1, 3] = crossed[3, 1] = bad  # both are finite, their product is not
    alpha = _solve(crossed)
    assert not alpha[[1, 3]].any() and abs(alpha.sum() - 1) < 1e-6


def test_nothing_left_has_no_weight():
    assert not _solve(_gram("free", 3, 0), np.zeros(3, bool)).any()
    assert not _solve(np.full((3, 3), np.nan)).any()


def test_plain_jitted_and_vmapped_calls_agree():
    grams = np.stack([_padded(_gram("free", count, count))[0] for count in (5, 9)])
    jitted = np.stack([SOLVE(gram, ~np.isnan(np.diagonal(gram))) for gram in grams])
    np.testing.assert_allclose(SOLVE_ALL(grams, ~np.isnan(np.diagonal(grams, axis1=1, axis2=2))), jitted, atol=1e-6)
    np.testing.assert_allclose(marble.min_norm_weights(jnp.diag(jnp.array([1.0, 4.0]))), [0.8, 0.2], atol=1e-6)


def _tree(vectors, dtype=jnp.float32):
    """K vectors of 12 as gradients of a small model."""
    vectors = jnp.asarray(vectors, dtype)
    return {"w": vectors[:, :6].reshape(-1, 2, 3), "rest": (vectors[:, 6:11], vectors[:, 11])}


def _flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in (tree["w"], *tree["rest"])])


def _uneven(count=5, seed=0, spread=3.0, shared=0.0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, 12)) + shared) * 10 ** random.uniform(-spread, 0, size=(count, 1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gram_is_of_the_whole_tree_in_float32(dtype):
    tree = _tree(_uneven(), dtype)
    vectors = np.stack([_flat(jax.tree.map(lambda leaf: leaf[k], tree)) for k in range(5)])  # noqa: B023
    found = marble.gram(tree)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, vectors @ vectors.T, rtol=2e-6, atol=1e-6)


def test_gram_refuses_trees_without_a_common_leading_axis():
    with pytest.raises(ValueError, match="leading axis"):
        marble.gram({})
    with pytest.raises((ValueError, TypeError), match=r"leading axis|annotation"):  # jaxtyping's error comes first under test
        marble.gram({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})


def test_units_and_norms():
    vectors = _uneven()
    vectors[1] = 0
    units, norms = marble.normalised_gram(marble.gram(_tree(vectors)))
    lengths = np.linalg.norm(vectors, axis=1)
    expected = vectors / np.where(lengths > 0, lengths, 1)[:, None]
    np.testing.assert_allclose(norms, lengths, rtol=1e-6)
    np.testing.assert_allclose(units, expected @ expected.T, atol=1e-6)
    assert list(np.diagonal(units)) == [1, 0, 1, 1, 1]


def test_units_of_what_is_masked_short_or_not_finite_are_zero():
    vectors = np.eye(5, 12)
    vectors[1, 3], vectors[2] = np.nan, 1e-6 * vectors[2]
    mask = jnp.array([True, True, True, False, True])
    units, norms = marble.normalised_gram(marble.gram(_tree(vectors)), mask, minimum_norm=1e-5)
    np.testing.assert_array_equal(norms, [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(units, np.diag([1.0, 0, 0, 0, 1]))


def _by_hand(vectors, settings):
    """(2) to (4) with SLSQP, in float64; returns alpha* and d."""
    weights = np.array(settings.reward_weights or np.ones(len(vectors)))
    norms = np.linalg.norm(vectors, axis=1)
    points = weights[:, None] * (vectors / norms[:, None] if settings.normalise else vectors)
    scale = np.linalg.norm(points, axis=1).max()
    alpha = _slsqp(points @ points.T / scale**2, settings.floor)
    return alpha, (norms.mean() if settings.normalise else 1.0) * alpha @ points


@pytest.mark.parametrize(
    "options",
    [{}, {"normalise": False}, {"floor": 0.1}, {"floor": 0.05, "reward_weights": (2.0, 1.0, 1.0, 0.3, 3.0)}],
    ids=str,
)
def test_update_is_that_of_the_formulas(options):
    settings = marble.Settings(**options)
    for seed in range(4):
        vectors = _uneven(seed=seed, spread=3.0 if settings.normalise else 0.5)
        alpha, norms = BALANCE(marble.gram(_tree(vectors)), settings)
        expected, direction = _by_hand(vectors, settings)
        np.testing.assert_allclose(alpha, expected, atol=1e-4)
        found = _flat(UPDATE(_tree(vectors), alpha, norms, settings))
        np.testing.assert_allclose(found, direction, atol=2e-4 * np.abs(direction).max())


def test_a_floor_that_does_not_fit_is_uniform():
    settings, gram = marble.Settings(floor=0.9), marble.gram(_tree(_uneven()))
    np.testing.assert_allclose(BALANCE(gram, settings, jnp.ones(5, bool))[0], 0.2, atol=1e-6)
    alpha, _ = BALANCE(gram, settings, jnp.array([True, False, True, False, False]))
    np.testing.assert_allclose(alpha, [0.5, 0, 0.5, 0, 0], atol=1e-6)


def test_rewards_that_are_not_usable_do_not_change_the_update():
    """Vanishing, NaN and masked gradients: neither in the program, nor in the mean norm, nor in the sum."""
    good = _uneven(2)
    vectors = np.stack([1e-13 * np.ones(12), good[0], np.full(12, np.nan), good[1], 5 * np.ones(12)])
    tree, mask = _tree(vectors), jnp.array([True] * 4 + [False])
    alpha, norms = BALANCE(marble.gram(tree), PAPER, mask)
    expected, direction = _by_hand(good, PAPER)
    np.testing.assert_allclose(alpha, [0, expected[0], 0, expected[1], 0], atol=1e-4)
    np.testing.assert_allclose(_flat(UPDATE(tree, alpha, norms, PAPER)), direction, atol=2e-4 * np.abs(direction).max())
    alpha, norms = BALANCE(marble.gram(tree), PAPER, jnp.zeros(5, bool))
    assert not alpha.any() and not _flat(UPDATE(tree, alpha, norms, PAPER)).any()


def test_one_usable_reward_is_followed():
    vectors = np.zeros((5, 12))
    vectors[3] = np.arange(12)
    alpha, norms = BALANCE(marble.gram(_tree(vectors)), PAPER)
    np.testing.assert_array_equal(alpha, [0, 0, 0, 1, 0])
    np.testing.assert_allclose(_flat(UPDATE(_tree(vectors), alpha, norms, PAPER)), vectors[3], rtol=1e-6)


def test_weighted_sum_keeps_the_dtype_and_sums_in_float32():
    vectors = np.ones((300, 12))
    found = marble.weighted_sum(_tree(vectors, jnp.bfloat16), jnp.ones(300))
    assert found["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(_flat(found), 300, rtol=4e-3)  # a bfloat16 sum of ones stops at 256


@pytest.mark.parametrize("count", [5, 16])
def test_no_reward_loses_to_first_order(count):
    """At the optimum every cosine with d is at least |d| / n, though rewards conflict and their plain sum harms some."""
    harmed = 0
    for seed in range(30):
        vectors = _uneven(count, seed, shared=0.6 if count > 12 else 0)  # 0 lies in the hull of 16 vectors in 12 dimensions
        gram = jnp.asarray(vectors @ vectors.T, jnp.float32)
        alpha, norms = BALANCE(gram, PAPER)
        found = np.asarray(COSINES(gram, marble.direction_coefficients(alpha, norms, PAPER)))
        length = np.linalg.norm(alpha @ (vectors / norms[:, None]))
        assert length > 1e-2 and found.min() >= length - 1e-4
        harmed += float(COSINES(gram, jnp.ones(count)).min()) < -1e-3
    assert harmed > 3


def test_cosines_and_conflicts_in_closed_form():
    vectors = np.array([[1.0, 0], [0, 2], [-3, -3], [0, 0], [np.nan, 1]])
    gram = jnp.asarray(vectors @ vectors.T, jnp.float32)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(COSINES(gram, jnp.array([2.0, 1, 0, 9, 9])), [root, root, -1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(marble.conflict_rate(gram), 2 / 3)
    np.testing.assert_allclose(marble.conflict_rate(gram, jnp.array([True, True, False, True, True])), 0)
    np.testing.assert_allclose(marble.conflict_rate(gram[:1, :1]), 0)


def test_a_direction_that_is_rounding_has_no_cosines():
    for seed in range(10):
        vectors = _uneven(5, seed, spread=1.0)
        coefficients = np.array([0.3, 0.7, 1.1, 0.2, 1.0])
        vectors[4] = -coefficients[:4] @ vectors[:4]
        gram = jnp.asarray(vectors @ vectors.T, jnp.float32)
        np.testing.assert_array_equal(COSINES(gram, jnp.asarray(coefficients)), np.zeros(5))


def test_moving_average():
    first, second = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.0, 0.25, 0.75])
    average = marble.smooth(jnp.zeros(3), first, PAPER.decay)
    np.testing.assert_array_equal(average, first)
    average = marble.smooth(average, second, PAPER.decay)
    np.testing.assert_allclose(average, [0.35, 0.425, 0.225], atol=1e-6)
    np.testing.assert_array_equal(marble.smooth(average, jnp.zeros(3), PAPER.decay), average)


def _losses(scale, seed=0):
    """The DiffusionNFT loss (1) of a linear model, a function of theta and one advantage, with K advantages for it."""
    random = np.random.default_rng(seed)
    x, target, old, theta = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((8, 3), (8, 2), (3, 2), (3, 2)))
    advantages = jnp.asarray(scale * random.normal(size=(4, 8)), jnp.float32)

    def loss(theta, advantage):
        share = jnp.clip(0.5 + advantage / (2 * PAPER.advantage_limit), 0, 1)
        mix = lambda beta: jnp.sum(((1 - beta) * x @ old + beta * x @ theta - target) ** 2, axis=1)  # noqa: E731
        return jnp.mean(share * mix(0.1) + (1 - share) * mix(-0.1))

    return loss, theta, advantages


@pytest.mark.parametrize(("scale", "clip_each", "exact"), [(1.0, False, True), (20.0, False, False), (20.0, True, True)])
def test_one_pass_on_the_combined_advantage_is_the_weighted_sum_of_gradients(scale, clip_each, exact):
    """(6), while no advantage is clipped, or if each is clipped before; otherwise it does not hold."""
    loss, theta, advantages = _losses(scale)
    alpha = jnp.array([0.1, 0.4, 0.2, 0.3])
    each = jax.vmap(jax.grad(loss), (None, 0))(theta, advantages)
    combined = marble.combined_advantage(advantages, alpha, marble.Settings(clip_each=clip_each))
    error = np.abs(jax.grad(loss)(theta, combined) - marble.weighted_sum(each, alpha)).max() / np.abs(each).max()
    assert error < 1e-6 if exact else error > 1e-2


def test_missing_rewards():
    advantages = jnp.array([[1.0, jnp.nan, jnp.nan], [3.0, 3.0, jnp.nan]])
    alpha = jnp.array([0.75, 0.25])
    np.testing.assert_allclose(marble.combined_advantage(advantages, alpha, PAPER), [1.5, 0.75, 0])
    renormalised = marble.combined_advantage(advantages, alpha, marble.Settings(renormalise_missing=True))
    np.testing.assert_allclose(renormalised, [1.5, 3, 0])
    blocks = marble.combined_advantage(jnp.ones((2, 3, 4)), alpha, PAPER)
    np.testing.assert_allclose(blocks, np.ones((3, 4)))


def test_every_tenth_step_is_a_full_one():
    assert [step for step in range(25) if marble.is_full_step(step, PAPER)] == [0, 10, 20]
    assert bool(marble.is_full_step(jnp.int32(4), marble.Settings(solve_every=1)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"solve_every": 0}, "solve_every"),
        ({"decay": 1.0}, "decay"),
        ({"advantage_limit": 0.0}, "advantage_limit"),
        ({"minimum_norm": -1.0}, "minimum_norm"),
        ({"floor": -0.1}, "floor"),
        ({"reward_weights": (1.0, 0.0)}, "reward_weights"),
    ],
)
def test_bad_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        marble.Settings(**options)


def test_reward_weights_of_another_number_are_refused():
    with pytest.raises(ValueError, match="2 entries for 4 rewards"):
        marble.balance(jnp.eye(4), marble.Settings(reward_weights=(1.0, 2.0)))
