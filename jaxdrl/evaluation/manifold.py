r"""Precision, recall, density and coverage from k-nearest-neighbour balls.

Sources: Kynkaanniemi et al., arXiv 1904.06991 (precision and recall, k = 3); Naeem et al., arXiv 2002.09797 (density and coverage,
k = 5). With NND_k(z) the distance from z to its k-th neighbour in its own set (itself excluded by index, not by distance),

    precision = share of fakes inside some real ball,   recall = share of reals inside some fake ball            (1)
    density = (1 / (k M)) sum_j #{real balls that hold fake j}                                                   (2)
    coverage = share of real balls that hold at least one fake                                                   (3)

Distances are Euclidean on raw features. Inside means strictly closer, as in the `prdc` package and dgm-eval; torch-fidelity counts the
rim too (`closed`). ADM's evaluator computes squared distances in half precision, counts the rim, and lets a point be its own nearest
neighbour: `adm_precision_recall`. Computed in blocks, see `neighbours.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdrl.evaluation import neighbours


class Manifold(NamedTuple):
    """The four numbers."""

    precision: float
    recall: float
    density: float
    coverage: float


def radii(x: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
    """NND_k of every row.

    Args:
        x: Features.
        k: Which neighbour, at least 1.

    Returns:
        float64 distances.

    Raises:
        ValueError: If there are not k other rows.
    """
    return neighbours.nearest(x, x, k, same=True)[0][:, -1]


class Contributions(NamedTuple):
    """What the four numbers are the means of."""

    precision: Float[np.ndarray, " m"]
    recall: Float[np.ndarray, " n"]
    density: Float[np.ndarray, " m"]
    coverage: Float[np.ndarray, " n"]


def contributions(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], *, k: int = 3, density_k: int = 5, closed: bool = False
) -> Contributions:
    """Precision and recall (1), density (2) and coverage (3) image by image, in one pass over the distances.

    Args:
        real: Features of data.
        fake: Features of samples.
        k: Neighbour that sets the balls of precision and recall.
        density_k: Neighbour that sets the balls of density and coverage.
        closed: The rim of a ball belongs to it.

    Returns:
        One array for each number; its mean is the number.

    Raises:
        ValueError: If a set has not as many samples as neighbours are asked for.
    """
    both = neighbours.nearest(real, real, max(k, density_k), same=True)[0]
    sets = (both[:, k - 1], both[:, density_k - 1])
    (narrow, wide), (around_fake,) = neighbours.inside(real, fake, sets, (radii(fake, k),), closed=closed)
    return Contributions(
        precision=(narrow.holding > 0).astype(float),
        recall=(around_fake.holding > 0).astype(float),
        density=wide.holding / density_k,
        coverage=(wide.held > 0).astype(float),
    )


def measure(
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], *, k: int = 3, density_k: int = 5, closed: bool = False
) -> Manifold:
    """The means of `contributions`.

    Args:
        real: Features of data.
        fake: Features of samples.
        k: For precision and recall.
        density_k: For density and coverage.
        closed: The rim of a ball belongs to it.

    Returns:
        The four numbers.
    """
    found = contributions(real, fake, k=k, density_k=density_k, closed=closed)
    return Manifold(*(float(part.mean()) for part in found))


def coverage(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], balls: Float[np.ndarray, " n"]) -> float:
    """Coverage (3) alone, with radii that are known: for one set of real features and many of fake ones.

    Args:
        real: Features of data.
        fake: Features of samples, at least one.
        balls: From `radii(real, k)`.

    Returns:
        In [0, 1].
    """
    (held,), _ = neighbours.inside(real, fake, (balls,))
    return float((held.held > 0).mean())


def adm_precision_recall(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], k: int = 3) -> tuple[float, float]:
    """Precision and recall (1) as ADM's evaluator computes them.

    Source: openai/guided-diffusion evaluations/evaluator.py (`ManifoldEstimator`). Squared distances are rounded to float16, float32 where
    that overflows, so that among Inception features many are equal; the radius is the (k + 1)-th smallest with the point itself among them.

    Args:
        real: Features of the 10 000 reference images.
        fake: Features of all samples.
        k: Neighbour.

    Returns:
        (precision, recall).
    """
    real_radii, fake_radii = _half_radii(real, k), _half_radii(fake, k)
    precise, recalled = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for i in range(0, len(real), neighbours.ROWS):
        for j in range(0, len(fake), neighbours.COLUMNS):
            rows, columns = slice(i, i + neighbours.ROWS), slice(j, j + neighbours.COLUMNS)
            square = _half_squared(real[rows], fake[columns])
            precise[columns] |= (square <= real_radii[rows, None]).any(axis=0)
            recalled[rows] |= (square <= fake_radii[None, columns]).any(axis=1)
    return float(precise.mean()), float(recalled.mean())


def _half_radii(x: np.ndarray, k: int) -> np.ndarray:
    if len(x) <= k:
        raise ValueError(f"{len(x)} samples have no {k}-th neighbour")
    found = []
    for i in range(0, len(x), neighbours.ROWS):
        rows = x[i : i + neighbours.ROWS]
        square = np.concatenate(
            [_half_squared(rows, x[j : j + neighbours.COLUMNS]) for j in range(0, len(x), neighbours.COLUMNS)], axis=1
        )
        found.append(np.partition(square, k, axis=1)[:, k])
    return np.concatenate(found)


def _half_squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    square = np.asarray(_squared_in(x, y, jnp.float16), np.float32)
    return square if np.isfinite(square).all() else np.asarray(_squared_in(x, y, jnp.float32))


def _squared_in(x, y, dtype):
    return _jitted_squared(jnp.asarray(x, dtype), jnp.asarray(y, dtype))


@jax.jit
def _jitted_squared(x, y):
    inner = jnp.einsum("id,jd->ij", x, y, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    norms = [(part.astype(jnp.float32) ** 2).sum(axis=1).astype(part.dtype) for part in (x, y)]
    return jnp.maximum(norms[0][:, None] - 2 * inner.astype(x.dtype) + norms[1][None], 0)
