r"""Nearest neighbours and balls among many features, exactly, without a full distance matrix.

The device computes blocks of squared distances in float32,

    |x - y|^2 = |x|^2 + |y|^2 - 2 <x, y>,   x and y moved so that the mean of y is 0                             (1)

whose error is far below BAND (|x|^2 + |y|^2). Whatever that error could decide (an order of neighbours, a point at the rim of a ball)
is computed again on the host in float64 from the differences themselves (2), so results do not depend on block sizes or devices.
Memory: both sets once on the device in float32, and one block of ROWS x COLUMNS distances (32 MB).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

ROWS, COLUMNS = 1024, 8192
BAND = 1e-5
_SPARE = 4


class Inside(NamedTuple):
    """How points lie in balls.

    Attributes:
        held: For each ball, how many points it holds.
        holding: For each point, how many balls hold it.
    """

    held: Int[np.ndarray, " balls"]
    holding: Int[np.ndarray, " points"]


def nearest(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], k: int = 1, *, same: bool = False
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """The k nearest rows of y for every row of x.

    Args:
        x: Queries.
        y: Candidates.
        k: How many.
        same: x and y are the same set: a row is not its own neighbour (by its number, not by distance 0).

    Returns:
        (float64 distances in ascending order, row numbers in y).

    Raises:
        ValueError: If y has too few rows.
    """
    if len(y) < k + same:
        raise ValueError(f"{len(y)} samples have no {k}-th neighbour")
    centre, columns = _columns(y)
    largest = max(float(norms.max()) for _, (_, norms) in columns)
    spare = min(k + _SPARE, len(y) - same)
    distances, indices = np.empty((len(x), k)), np.empty((len(x), k), np.int64)
    for start in range(0, len(x), ROWS):
        rows = np.asarray(x[start : start + ROWS], np.float64)
        block, norms = _padded(rows - centre, ROWS)
        best = (jnp.full((ROWS, spare), jnp.inf), jnp.zeros((ROWS, spare), jnp.int32))
        first = start if same else -ROWS  # a negative number of a row equals no column's
        for begin, part in columns:
            best = _merge_nearest(block, part, best, jnp.int32(begin), jnp.int32(first), jnp.int32(len(y)))
        rough, candidates = (np.asarray(part)[: len(rows)] for part in best)
        for low in range(0, len(rows), 128):
            cut = slice(low, min(low + 128, len(rows)))
            exact = np.sqrt(((rows[cut, None] - np.asarray(y[candidates[cut]], np.float64)) ** 2).sum(axis=2))
            order = np.lexsort((candidates[cut], exact), axis=1)[:, :k]
            distances[start + low : start + cut.stop] = np.take_along_axis(exact, order, 1)
            indices[start + low : start + cut.stop] = np.take_along_axis(candidates[cut], order, 1)
        if spare < len(y) - same:
            # What was not a candidate is at least so far away.
            reach = rough[:, -1] - BAND * (norms[: len(rows)] + largest)
            for row in np.flatnonzero(distances[start : start + len(rows), -1] ** 2 > reach):
                one = start + int(row)
                distances[one], indices[one] = _nearest_of_one(rows[row], y, k, one if same else -1)
    return distances, indices


def inside(
    centres: Float[np.ndarray, "n d"],
    points: Float[np.ndarray, "m d"],
    radii: Sequence[Float[np.ndarray, " n"]],
    point_radii: Sequence[Float[np.ndarray, " m"]] = (),
    *,
    closed: bool = False,
) -> tuple[list[Inside], list[Inside]]:
    """Counts points in balls, for several sets of balls in one pass over the distances.

    Args:
        centres: Of balls.
        points: Which lie in them or not.
        radii: One set of radii of `centres` or more.
        point_radii: Sets of radii of balls around `points`, which hold `centres` or not.
        closed: A point at the very radius counts as inside.

    Returns:
        (for each of `radii`, for each of `point_radii`), in the second with the roles exchanged.
    """
    centre, columns = _columns(points)
    own, other = ([np.asarray(r, np.float64) for r in sets] for sets in (radii, point_radii))
    by_row = np.zeros((len(own) + len(other), len(centres)), np.int64)
    by_column = np.zeros((len(own) + len(other), len(points)), np.int64)
    for start in range(0, len(centres), ROWS):
        rows = np.asarray(centres[start : start + ROWS], np.float64)
        here = slice(start, start + len(rows))
        block, _ = _padded(rows - centre, ROWS)
        mine = _fill([r[here] for r in own], ROWS)
        for begin, part in columns:
            size = len(part[1])
            there = slice(begin, min(begin + size, len(points)))
            theirs = _fill([r[there] for r in other], size)
            rim, some, row_counts, column_counts = _count_block(block, part, mine, theirs, len(rows), there.stop - begin)
            by_row[:, here] += np.asarray(row_counts)[:, : len(rows)]
            by_column[:, there] += np.asarray(column_counts)[:, : there.stop - begin]
            if bool(some):
                _recount(np.asarray(rim), rows, points, (here, there), (own, other), (by_row, by_column), closed)
    first = [Inside(by_row[i], by_column[i]) for i in range(len(own))]
    return first, [Inside(by_column[i], by_row[i]) for i in range(len(own), len(by_row))]


def _columns(y: np.ndarray) -> tuple[np.ndarray, list]:
    """The centre, and y in blocks on the device: (first row, (block, squared norms))."""
    centre = np.zeros(y.shape[1])
    for start in range(0, len(y), COLUMNS):
        centre += np.asarray(y[start : start + COLUMNS], np.float64).sum(axis=0)
    centre /= len(y)
    # As many blocks as COLUMNS asks for, of one size, so that little is padding.
    size = -(-len(y) // -(-len(y) // COLUMNS))
    size, blocks = -(-size // 16) * 16, []
    for start in range(0, len(y), size):
        part, norms = _padded(np.asarray(y[start : start + size], np.float64) - centre, size)
        blocks.append((start, (jnp.asarray(part), jnp.asarray(norms))))
    return centre, blocks


def _padded(rows: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    block = np.zeros((size, rows.shape[1]), np.float32)
    block[: len(rows)] = rows
    return block, (block.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)


def _fill(radii: list[np.ndarray], size: int) -> np.ndarray:
    """Squares, [sets, size] float32; padding is -inf, a ball that holds nothing and has no rim."""
    block = np.full((len(radii), size), -np.inf, np.float32)
    for row, values in zip(block, radii, strict=True):
        row[: len(values)] = values**2
    return block


def _squared(x, y, y_norms):
    norms = (x**2).sum(axis=1)
    inner = jnp.einsum("id,jd->ij", x, y, precision=jax.lax.Precision.HIGHEST)
    total = norms[:, None] + y_norms[None]
    return jnp.maximum(total - 2 * inner, 0.0), total


@jax.jit
def _merge_nearest(x, part, best, begin, first, count):
    square, _ = _squared(x, *part)
    column, row = begin + jnp.arange(square.shape[1]), first + jnp.arange(square.shape[0])
    hidden = (column[None] == row[:, None]) | (column[None] >= count)
    found, where = jax.lax.top_k(-jnp.where(hidden, jnp.inf, square), min(best[0].shape[1], square.shape[1]))
    values = jnp.concatenate([best[0], -found], axis=1)
    indices = jnp.concatenate([best[1], where.astype(jnp.int32) + begin], axis=1)
    found, where = jax.lax.top_k(-values, best[0].shape[1])
    return -found, jnp.take_along_axis(indices, where, axis=1)


@jax.jit
def _count_block(x, part, mine, theirs, num_rows, num_columns):
    """Rim pairs, whether there are any, and what the other pairs count for, by row and by column."""
    square, total = _squared(x, *part)
    real = (jnp.arange(square.shape[0]) < num_rows)[:, None] & (jnp.arange(square.shape[1]) < num_columns)[None]
    radii = [*(r[:, None] for r in mine), *(r[None] for r in theirs)]
    near = jnp.zeros_like(real)
    for radius in radii:
        near |= jnp.abs(square - radius) <= BAND * total
    rim, clear = real & near, real & ~near
    held = [clear & (square < radius) for radius in radii]
    return rim, rim.any(), jnp.stack([h.sum(axis=1) for h in held]), jnp.stack([h.sum(axis=0) for h in held])


def _recount(rim, rows, points, places, sets, counts, closed: bool) -> None:
    """Decides the pairs at a rim, which no set has counted, by (2)."""
    (here, there), (mine, theirs) = places, sets
    i, j = np.nonzero(rim)
    for low in range(0, len(i), 4096):
        a, b = i[low : low + 4096], j[low : low + 4096]
        # The root, as in radii: a point at the very radius must be found there.
        exact = np.sqrt(((rows[a] - np.asarray(points[there.start + b], np.float64)) ** 2).sum(axis=1))
        radii = [r[here.start + a] for r in mine] + [r[there.start + b] for r in theirs]
        for index, radius in enumerate(radii):
            held = exact <= radius if closed else exact < radius
            np.add.at(counts[0][index], here.start + a[held], 1)
            np.add.at(counts[1][index], there.start + b[held], 1)


def _nearest_of_one(row: np.ndarray, y: np.ndarray, k: int, itself: int) -> tuple[np.ndarray, np.ndarray]:
    exact = np.concatenate(
        [((np.asarray(y[s : s + COLUMNS], np.float64) - row) ** 2).sum(axis=1) for s in range(0, len(y), COLUMNS)]
    )
    if itself >= 0:
        exact[itself] = np.inf
    order = np.lexsort((np.arange(len(exact)), exact))[:k]
    return np.sqrt(exact[order]), order
