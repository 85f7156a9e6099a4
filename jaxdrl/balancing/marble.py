r"""MARBLE: the gradients of K rewards become one update that no reward disagrees with.

Sources: "MARBLE", arXiv 2605.06507 (Proposition 1 is (6)); its code, aim-uofa/MARBLE at 1bf9543a, `flow_grpo/pareto_balancer`
and `train.py`. The quadratic program is MGDA's: Desideri (2012); Sener and Koltun, arXiv 1810.04650. The solver is the active-set
method of Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23.

Each reward keeps its advantage A_k and its own DiffusionNFT loss on the same batch, with L+ and L- independent of k:

    r_k = clip(1/2 + A_k / (2 A_max), 0, 1),     l_k = r_k L+ + (1 - r_k) L-,     g_k = grad l_k.                (1)

Every N-th step is a full one. With unit gradients, and Delta the simplex of k weights,

    u_k = g_k / |g_k|,                                                                                          (2)
    alpha* = argmin_{alpha in Delta} | sum_k alpha_k u_k |^2 = argmin alpha^T G alpha,     G_kl = <u_k, u_l>,    (3)
    d = n sum_k alpha*_k u_k,     n = mean_k |g_k|.                                                             (4)

The gradient of the KL term is added to d; it stays outside the program. <u_k, d> >= |d|^2 / n for every k: no reward loses to
first order. The steps between have one backward pass, on the combined advantage, with weights averaged over full steps:

    alpha <- rho alpha + (1 - rho) alpha*,                                                                      (5)
    A = sum_k alpha_k A_k,     grad l(A) = sum_k alpha_k g_k     where |A| < A_max and every |A_k| < A_max.      (6)

(6) holds because r is affine in A and the weights sum to one, which keeps the offset 1/2. The alpha of (5) was found for *unit*
gradients and (6) weighs the gradients as they are; the paper says so and keeps it.

How (3) is solved: with a ridge that makes the answer unique, and x = s alpha, s >= 0,

    min_{x >= 0}  x^T (G + ridge I) x + (sum_k x_k - 1)^2     has     alpha* = x / sum_k x_k,                    (7)

since for fixed alpha the best s leaves q / (1 + q), which grows with q = alpha^T (G + ridge I) alpha. (7) is a least-squares
problem with x >= 0 in the Cholesky factor of G. The factor has the square root of G's condition number, so float32 is enough.

What the released code does otherwise, as options of `Settings`: a least weight (`floor`) and reward weights, both off there too;
a reward that is not defined for a sample adds nothing to (6) and the other weights stay as they are (`renormalise_missing`; the
paper is silent). n is its mean over the usable gradients, where the paper writes all K. SLSQP in float64 becomes (7). Not taken
over: non-finite entries of a gradient are set to zero there and the rest of it used, here the whole reward is left out; and with
no usable gradient the weights of (5) decay to zero there, here they stay.
"""

import math
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

# In units of the largest diagonal entry of G, where float32 resolves 1.2e-7; together they stay below 1e-6 of the optimum.
_RIDGE = 5e-7
_SAME_TOLERANCE = 2.4e-7  # vectors whose products with all others differ by less are the same vector
_RANK_TOLERANCE = 2e-7  # what is left of G below this is rounding
_SLOPE_TOLERANCE = 2e-7  # a reward enters the support if that lowers (7) at more than this rate
_STATIONARY = 1e-6  # a squared direction of this share of its terms is rounding

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # accelerators would take TF32 or bfloat16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of MARBLE; the defaults are the paper's.

    Attributes:
        solve_every: N, at least 1; 1 solves at every step.
        decay: rho of (5), in [0, 1).
        advantage_limit: A_max of (1), above 0.
        normalise: Whether (2) is applied; without it the paper's training fails.
        minimum_norm: Gradients of this norm or less are left out (the released code's number).
        floor: The least weight of a usable reward in (3), at least 0; above 1 / K it acts as 1 / K.
        reward_weights: One factor above 0 for each u_k, before (3) and in (4), or None for ones.
        renormalise_missing: For a sample with A_k = NaN the weights of the other rewards in (6) are scaled to sum to one; the
            released code lets A_k be 0 and leaves them.
        clip_each: Clip every A_k to A_max before (6), which then holds for advantages of any size; the paper does not.
    """

    solve_every: int = 10
    decay: float = 0.7
    advantage_limit: float = 5.0
    normalise: bool = True
    minimum_norm: float = 1e-12
    floor: float = 0.0
    reward_weights: tuple[float, ...] | None = None
    renormalise_missing: bool = False
    clip_each: bool = False

    def __post_init__(self):
        """Checks the ranges."""
        ranges = {
            "solve_every must be at least 1": self.solve_every >= 1,
            "decay must be in [0, 1)": 0 <= self.decay < 1,
            "advantage_limit must be above 0": self.advantage_limit > 0,
            "minimum_norm must be at least 0": self.minimum_norm >= 0,
            "floor must be at least 0": self.floor >= 0,
            "reward_weights must be above 0": all(0 < weight < math.inf for weight in self.reward_weights or ()),
        }
        for message, holds in ranges.items():
            if not holds:
                raise ValueError(f"marble.Settings: {message}")


def gram(gradients: PyTree[Float[Array, "k ..."]]) -> Float[Array, "k k"]:
    """All inner products <g_k, g_l>, in float32 whatever the gradients' dtype.

    Leaves may be sharded along any axis but the first: they are contracted as they lie, never reshaped.

    Args:
        gradients: A tree of the parameters' structure with a leading axis of K rewards on every leaf, as `jax.vmap`,
            `jax.lax.map` or `jnp.stack` over trees give it.

    Returns:
        The Gram matrix. A gradient with entries that are not finite, or with a norm above 1.8e19, has a diagonal entry that is
        not finite, and spoils its own row and column only.

    Raises:
        ValueError: There is no leaf, or the leading axes differ.
    """
    leaves = jax.tree.leaves(gradients)
    if len({leaf.shape[:1] for leaf in leaves}) != 1 or not leaves[0].ndim:
        raise ValueError("gradients must be a tree with leaves, all with the same leading axis, one entry a reward")

    def products(leaf):
        leaf, axes = leaf.astype(jnp.float32), tuple(range(1, leaf.ndim))
        return jax.lax.dot_general(leaf, leaf, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST)

    return reduce(jnp.add, map(products, leaves))


def normalised_gram(
    gram: Float[Array, "k k"], mask: Bool[Array, " k"] | None = None, minimum_norm: float = 0.0
) -> tuple[Float[Array, "k k"], Float[Array, " k"]]:
    """The Gram matrix of the unit gradients (2), and the norms.

    Args:
        gram: Inner products of the gradients as they are.
        mask: False leaves a reward out; None keeps all.
        minimum_norm: Gradients of this norm or less are left out, at least 0.

    Returns:
        The cosines, with ones on the diagonal, and |g_k|. For a reward that is left out, is not finite or too short, norm, row
        and column are zero: `norms > 0` says which rewards are usable.
    """
    norms = jnp.sqrt(jnp.maximum(jnp.where(_usable(gram, mask), jnp.diagonal(gram), 0.0), 0.0))
    norms = jnp.where(norms > minimum_norm, norms, 0.0)
    usable = norms > 0
    both = usable[:, None] & usable
    cosine = jnp.where(both, gram, 0.0) / jnp.where(both, jnp.outer(norms, norms), 1.0)
    return jnp.where(jnp.eye(len(norms), dtype=bool), usable.astype(jnp.float32), jnp.clip(cosine, -1.0, 1.0)), norms


def min_norm_weights(gram: Float[Array, "k k"], mask: Bool[Array, " k"] | None = None) -> Float[Array, " k"]:
    """Weights of the shortest vector in the convex hull of K vectors, (3), by (7).

    The same Gram matrix gives the same weights, bit for bit, on every device that runs the same program. alpha^T G alpha is
    within 1e-6 of the minimum, in units of the largest diagonal entry (measured for K up to 16: `tests/balancing`). Where several
    weights reach it, the answer is the one with the smallest sum of squares among distinct vectors, up to rounding, which matters
    more where nearly as good ones are far away; identical vectors share evenly, and all zeros give 1 / K. A zero vector among
    others gets all the weight, as (3) says; `normalised_gram` is what leaves such rewards out. The weights are constants of an
    update: reverse-mode differentiation stops here with an error.

    Args:
        gram: Inner products, symmetric and positive semi-definite up to rounding.
        mask: False leaves a reward out; None keeps all.

    Returns:
        alpha, at least 0, with sum 1. Rewards that are left out, or whose inner products are not finite, have weight 0; with none
        left, all weights are 0. An infinite or NaN product of two rewards that are finite themselves leaves both out.
    """
    usable = _usable(gram, mask)
    gram = jnp.where(usable[:, None] & usable, gram.astype(jnp.float32), 0.0)
    largest = jnp.diagonal(gram).max()
    gram = gram / jnp.where(largest > 0, largest, 1.0)
    twins = _identical(gram, usable)
    first = jnp.argmax(twins, axis=1)
    solution = _nonnegative_least_squares(_pivoted_cholesky(gram), usable & (first == jnp.arange(len(usable))))
    shared = jnp.where(usable, solution[first] / jnp.maximum(twins.sum(axis=1), 1), 0.0)
    return shared / jnp.where(usable.any(), shared.sum(), 1.0)


def balance(
    gram: Float[Array, "k k"], settings: Settings, mask: Bool[Array, " k"] | None = None
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """The program of a full step: (2) and (3), with the options of `Settings`.

    A least weight f is (3) again, for the vectors f sum_l u_l + (1 - K f) u_k; their weights beta give
    alpha = f + (1 - K f) beta.

    Args:
        gram: Inner products of the gradients as they are, from `gram`.
        settings: See `Settings`.
        mask: False leaves a reward out; None keeps all.

    Returns:
        alpha* and |g_k|, both 0 for rewards that are not usable. With one usable reward alpha* is 1 for it, with none all are 0.

    Raises:
        ValueError: `reward_weights` has another length than the matrix.
    """
    units, norms = normalised_gram(gram, mask, settings.minimum_norm)
    usable = (norms > 0).astype(jnp.float32)
    weights = _reward_weights(settings, len(norms))
    lengths = weights if settings.normalise else weights * norms
    points = units * jnp.outer(lengths, lengths)
    count = jnp.maximum(usable.sum(), 1.0)
    floor = jnp.minimum(settings.floor, 1 / count)
    rest = 1 - count * floor
    if settings.floor:
        mixing = rest * jnp.diag(usable) + floor * jnp.outer(usable, usable)
        points = _matmul(_matmul(mixing, points), mixing)
    return floor * usable + rest * min_norm_weights(points, norms > 0), norms


def direction_coefficients(alpha: Float[Array, " k"], norms: Float[Array, " k"], settings: Settings) -> Float[Array, " k"]:
    """What each gradient is multiplied with in (4): d = sum_k c_k g_k.

    Args:
        alpha: From `balance`.
        norms: From `balance`; 0 marks rewards that are not usable, which n does not count.
        settings: See `Settings`.

    Returns:
        c_k = n alpha_k w_k / |g_k|, with w the reward weights; without normalisation alpha_k w_k.
    """
    scaled = alpha * _reward_weights(settings, len(norms))
    if not settings.normalise:
        return scaled
    usable = norms > 0
    mean = norms.sum() / jnp.maximum(usable.sum(), 1)
    return jnp.where(usable, scaled * (mean / jnp.where(usable, norms, 1.0)), 0.0)


def weighted_sum(gradients: PyTree[Float[Array, "k ..."]], weights: Float[Array, " k"]) -> PyTree[Float[Array, "..."]]:
    """sum_k w_k g_k, summed in float32, in the gradients' dtype.

    Args:
        gradients: As in `gram`.
        weights: One a reward. A gradient with weight 0 does not count, even if it is not finite.

    Returns:
        A tree of the parameters' shapes.
    """

    def leaf_sum(leaf):
        # 0 * NaN is NaN: what has no weight is replaced first.
        used = jnp.where((weights != 0).reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf.astype(jnp.float32), 0.0)
        total = jax.lax.dot_general(weights, used, (((0,), (0,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
        return total.astype(leaf.dtype)

    return jax.tree.map(leaf_sum, gradients)


def update_direction(
    gradients: PyTree[Float[Array, "k ..."]], alpha: Float[Array, " k"], norms: Float[Array, " k"], settings: Settings
) -> PyTree[Float[Array, "..."]]:
    """The update d of (4): the gradient of a full step, to which the KL term's is added.

    Args:
        gradients: As in `gram`.
        alpha: From `balance`.
        norms: From `balance`.
        settings: See `Settings`.

    Returns:
        A tree of the parameters' shapes; all zero where no reward is usable.
    """
    return weighted_sum(gradients, direction_coefficients(alpha, norms, settings))


def is_full_step(step: int | Int[Array, ""], settings: Settings) -> bool | Bool[Array, ""]:
    """Whether (3) is solved at this step: every N-th, from step 0 on.

    The released code solves on *one* micro-batch of such a step and lets the others go by (6), except at step 0, where every
    micro-batch is solved and averaged by (5). Which gradients a step takes is the caller's.

    Args:
        step: Updates made so far.
        settings: See `Settings`.

    Returns:
        A bool of the step's kind.
    """
    return step % settings.solve_every == 0


def smooth(previous: Float[Array, " k"], alpha: Float[Array, " k"], rho: float) -> Float[Array, " k"]:
    """The moving average (5).

    Args:
        previous: The average so far; zeros before the first full step, which then sets it.
        alpha: alpha* of this step, on the simplex, or all zeros if no reward was usable: the average stays.
        rho: In [0, 1).

    Returns:
        The new average, on the simplex after the first step with a usable reward. A reward that was not usable in this step
        decays by rho and comes back with the next alpha*.
    """
    blend = rho * previous + (1 - rho) * alpha
    return jnp.where(~(previous > 0).any(), alpha, jnp.where((alpha > 0).any(), blend, previous))


def combined_advantage(
    advantages: Float[Array, "k *batch"], weights: Float[Array, " k"], settings: Settings
) -> Float[Array, "*batch"]:
    """A of (6): the one advantage of the steps between two full ones.

    Where a reward is missing for part of the batch, its loss in a full step is a mean over its own samples, and in (6) a mean
    over all: it counts there by the share of samples that have it. That is the released code's rule.

    Args:
        advantages: A_k for each sample; NaN where reward k is not defined for it.
        weights: alpha of (5).
        settings: See `Settings`: `renormalise_missing`, `clip_each`, `advantage_limit`.

    Returns:
        A, not clipped itself: (1) does that. 0 where no reward is defined.
    """
    weights = weights.reshape((-1,) + (1,) * (advantages.ndim - 1))
    defined = ~jnp.isnan(advantages)
    known = jnp.where(defined, advantages, 0.0)
    if settings.clip_each:
        known = jnp.clip(known, -settings.advantage_limit, settings.advantage_limit)
    total = (weights * known).sum(axis=0)
    if not settings.renormalise_missing:
        return total
    available = (weights * defined).sum(axis=0)
    return total / jnp.where(available > 0, available, 1.0)


def cosines(gram: Float[Array, "k k"], coefficients: Float[Array, " k"]) -> Float[Array, " k"]:
    """The cosine of every g_k with the update d = sum_l c_l g_l: positive where the step helps reward k to first order.

    Args:
        gram: Inner products of the g_k.
        coefficients: c, for instance from `direction_coefficients`; the weights alpha of (5) for a step by (6).

    Returns:
        In [-1, 1]; 0 for a reward whose gradient is zero or not finite, and for all if d vanishes up to rounding (a Pareto
        stationary point, where no direction helps every reward).
    """
    units, norms = normalised_gram(gram)
    scaled = jnp.where(norms > 0, coefficients * norms, 0.0)
    scaled = scaled / jnp.maximum(jnp.abs(scaled).max(), jnp.finfo(jnp.float32).tiny)
    along = _matmul(units, scaled)
    square = jnp.sum(scaled * along)
    moves = square > _STATIONARY * jnp.abs(scaled).sum() ** 2
    return jnp.where(moves, jnp.clip(along / jnp.sqrt(jnp.where(moves, square, 1.0)), -1.0, 1.0), 0.0)


def conflict_rate(gram: Float[Array, "k k"], mask: Bool[Array, " k"] | None = None) -> Float[Array, ""]:
    """The share of pairs of rewards whose gradients have a negative cosine.

    Args:
        gram: Inner products, of the gradients or of the unit gradients.
        mask: False leaves a reward out; None keeps all.

    Returns:
        In [0, 1], over the pairs of usable rewards; 0 if there is no pair.
    """
    units, norms = normalised_gram(gram, mask)
    usable = norms > 0
    pairs = jnp.triu(usable[:, None] & usable, 1)
    return (pairs & (units < 0)).sum() / jnp.maximum(pairs.sum(), 1)


class _Search(NamedTuple):
    """Where the active-set method stands: a feasible x, the rewards that may be positive, and whether it ended."""

    x: Float[Array, " k"]
    support: Bool[Array, " k"]
    done: Bool[Array, ""]
    iteration: Int[Array, ""]


def _nonnegative_least_squares(factor: Float[Array, "k k"], usable: Bool[Array, " k"]) -> Float[Array, " k"]:
    """Solves (7), G = factor factor^T, with x_k = 0 where not usable.

    The search starts with every reward in the support (often the answer). An iteration solves the equations of the support. A
    solution without negative parts is taken, and the reward with the steepest descent enters; otherwise x moves towards it until
    a reward reaches 0 and leaves. (7) decreases all the while, so no support comes back and the search ends. Rounding can let a
    reward enter and leave for ever with x unchanged: hence the bound, met by 3 of 200 000 random programs; the others took at
    most 23 iterations.
    """
    size = len(usable)
    ridge = math.sqrt(_RIDGE) * jnp.eye(size)
    system = jnp.concatenate([factor.T, usable[None].astype(jnp.float32), ridge])
    absent = jnp.concatenate([jnp.zeros((size + 1, size)), ridge])  # columns that are orthogonal to all else
    target = jnp.zeros(2 * size + 1).at[size].set(1.0)
    index = jnp.arange(size)

    def iterate(state: _Search) -> _Search:
        goal = jnp.where(state.support, _least_squares(jnp.where(state.support, system, absent), target), 0.0)
        below = state.support & (goal <= 0)
        feasible = ~below.any()
        # Towards the goal, as far as x >= 0.
        reach = jnp.where(below, state.x / jnp.where(below & (state.x > 0), state.x - goal, 1.0), jnp.inf)
        leaving = index == jnp.argmin(reach)
        share = jnp.minimum(reach.min(), 1.0)
        moved = jnp.where(state.support & ~leaving, jnp.maximum(state.x + share * (goal - state.x), 0.0), 0.0)
        # At the goal: who would enter?
        descent = _matmul(target - _matmul(system, goal), system)
        descent = jnp.where(usable & ~state.support, descent, -jnp.inf)
        entering = (index == jnp.argmax(descent)) & (descent > _SLOPE_TOLERANCE)
        return _Search(
            x=jnp.where(feasible, goal, moved),
            support=jnp.where(feasible, state.support | entering, state.support & (moved > 0)),
            done=feasible & ~entering.any(),
            iteration=state.iteration + 1,
        )

    start = usable / jnp.maximum(usable.sum(), 1).astype(jnp.float32)
    state = _Search(start, usable, ~usable.any(), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(lambda state: ~state.done & (state.iteration < 8 * size), iterate, state).x


def _least_squares(columns: Float[Array, "m k"], target: Float[Array, " m"]) -> Float[Array, " k"]:
    """Minimises |columns x - target|^2: modified Gram-Schmidt with the target as last column, backward stable (Bjorck 1967)."""
    size = columns.shape[1]

    def orthogonalise(i, carry):
        left, triangle = carry
        norm = jnp.sqrt(jnp.sum(left[:, i] ** 2))
        row = jnp.where(jnp.arange(size + 1) > i, _matmul(left[:, i] / norm, left), 0.0)
        return left - jnp.outer(left[:, i] / norm, row), triangle.at[i].set(row.at[i].set(norm))

    start = jnp.concatenate([columns, target[:, None]], axis=1), jnp.zeros((size, size + 1))
    _, triangle = jax.lax.fori_loop(0, size, orthogonalise, start)

    def substitute(i, x):
        row = triangle[size - 1 - i]
        return x.at[size - 1 - i].set((row[size] - jnp.sum(row[:size] * x)) / row[size - 1 - i])

    return jax.lax.fori_loop(0, size, substitute, jnp.zeros(size))


def _identical(gram: Float[Array, "k k"], usable: Bool[Array, " k"]) -> Bool[Array, "k k"]:
    """Which of the usable vectors are the same up to rounding, as an equivalence; rounding would decide how they share."""
    both = usable[:, None] & usable
    alike = both & (jnp.abs(gram[:, None] - gram).max(axis=-1) <= _SAME_TOLERANCE)
    first = jnp.where(usable, jnp.argmax(alike, axis=1), jnp.arange(len(usable)))
    return both & (first[:, None] == first)


def _pivoted_cholesky(gram: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """F with F F^T = gram, the largest remaining diagonal entry first; what is left below the tolerance is dropped."""

    def eliminate(i, carry):
        rest, factor = carry
        pivot = jnp.argmax(jnp.diagonal(rest))
        value = rest[pivot, pivot]
        enough = value > _RANK_TOLERANCE
        # Column times ratio, not an outer product of roots: identical vectors cancel to exactly zero.
        ratio = jnp.where(enough, rest[pivot] / jnp.where(enough, value, 1.0), 0.0)
        return rest - jnp.outer(rest[pivot], ratio), factor.at[:, i].set(ratio * jnp.sqrt(jnp.where(enough, value, 0.0)))

    return jax.lax.fori_loop(0, len(gram), eliminate, (gram, jnp.zeros_like(gram)))[1]


def _usable(gram: Float[Array, "k k"], mask: Bool[Array, " k"] | None) -> Bool[Array, " k"]:
    """Rewards that are kept, with finite inner products among themselves."""
    kept = jnp.isfinite(jnp.diagonal(gram))
    if mask is not None:
        kept = kept & mask
    return kept & (jnp.isfinite(gram) | ~kept).all(axis=1)


def _reward_weights(settings: Settings, size: int) -> Float[Array, " k"]:
    weights = settings.reward_weights
    if weights is None:
        return jnp.ones(size)
    if len(weights) != size:
        raise ValueError(f"reward_weights has {len(weights)} entries for {size} rewards")
    return jnp.asarray(weights, jnp.float32)
