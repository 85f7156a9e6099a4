r"""Precision, recall, density and coverage from k-nearest-neighbour balls.

Sources: Kynkaanniemi et al., arXiv 1904.06991 (precision and recall, k = 3); Naeem et al., arXiv 2002.09797 (density and coverage,
k = 5). With NND_k(z) the distance from z to its k-th neighbour in its own set (itself excluded by index, not by distance),

    precision = share of fakes inside some real ball,   recall = share of reals inside some fake ball            (1)
    density = (1 / (k M)) sum_j #{real balls that hold fake j}                                                   (2)
    coverage = share of real balls that hold at least one fake                                                   (3)

Inside means strictly closer, and distances are Euclidean on raw features, as in the `prdc` package. Computed in blocks of rows.
"""

import numpy as np
from jaxtyping import Float

BLOCK = 1000


def distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Euclidean distances in float64.

    Args:
        x: Rows.
        y: Columns.

    Returns:
        All pairs.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(square.clip(min=0))


def radii(x: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    """NND_k of every row.

    Args:
        x: Features.
        k: Which neighbour, at least 1.

    Returns:
        Distances.

    Raises:
        ValueError: If there are not k other rows.
    """
    if len(x) <= k:
        raise ValueError(f"{len(x)} samples have no {k}-th neighbour")
    found = []
    for start in range(0, len(x), BLOCK):
        block = distances(x[start : start + BLOCK], x)
        block[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        found.append(np.partition(block, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def precision_recall(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], k: int = 3) -> tuple[float, float]:
    """Precision and recall (1).

    Args:
        real: Features of data.
        fake: Features of samples.
        k: Neighbour that sets the balls.

    Returns:
        (precision, recall).
    """
    real_radii, fake_radii = radii(real, k), radii(fake, k)
    inside, recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for start in range(0, len(real), BLOCK):
        rows = slice(start, start + BLOCK)
        block = distances(real[rows], fake)
        inside |= (block < real_radii[rows, None]).any(axis=0)
        recalled[rows] = (block < fake_radii[None]).any(axis=1)
    return float(inside.mean()), float(recalled.mean())


def density_coverage(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], k: int = 5) -> tuple[float, float]:
    """Density (2) and coverage (3).

    Args:
        real: Features of data.
        fake: Features of samples.
        k: Neighbour that sets the balls.

    Returns:
        (density, coverage).
    """
    real_radii, held, covered = radii(real, k), 0, 0
    for start in range(0, len(real), BLOCK):
        rows = slice(start, start + BLOCK)
        inside = distances(real[rows], fake) < real_radii[rows, None]
        held += inside.sum()
        covered += inside.any(axis=1).sum()
    return float(held / (k * len(fake))), float(covered / len(real))


def nearest(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Distance from every row of x to its nearest row of y.

    Args:
        x: Queries.
        y: Candidates.

    Returns:
        Distances.
    """
    return np.concatenate([distances(x[start : start + BLOCK], y).min(axis=1) for start in range(0, len(x), BLOCK)])
