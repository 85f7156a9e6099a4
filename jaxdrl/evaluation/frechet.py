r"""The Frechet distance between Gaussians fitted to features.

Sources: Dowson and Landau (1982); Heusel et al., "FID", arXiv 1706.08500.

    FD = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))                                     (1)

With R = S_1^(1/2), tr (S_1 S_2)^(1/2) is the sum of the square roots of the eigenvalues of R S_2 R (2): two symmetric problems,
exact for singular covariances too. Where there are fewer samples than dimensions, S_i = X_i^T X_i with centred, scaled rows
and the trace is the nuclear norm of X_1 X_2^T (3), cheaper and more accurate.
"""

import numpy as np
from jaxtyping import Float

from jaxdrl.evaluation.statistics import Moments


class Reference:
    """One side of the distance with the root R of its covariance, for many comparisons."""

    def __init__(self, moments: Moments) -> None:
        """Takes the root.

        Args:
            moments: Of the reference.
        """
        self.moments = moments
        values, vectors = np.linalg.eigh(moments.covariance)
        self._root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    def distance(self, other: Moments) -> float:
        """The distance (1) by (2).

        Args:
            other: Of the same dimension.

        Returns:
            FD; rounding can make it as low as -1e-10 for equal inputs.

        Raises:
            ValueError: If the dimensions differ.
        """
        if other.mean.shape != self.moments.mean.shape:
            raise ValueError(f"dimensions differ: {self.moments.mean.shape[0]} and {other.mean.shape[0]}")
        difference = self.moments.mean - other.mean
        values = np.linalg.eigvalsh(self._root @ other.covariance @ self._root)
        trace = np.sqrt(values.clip(min=0)).sum()
        return float(difference @ difference + np.trace(self.moments.covariance) + np.trace(other.covariance) - 2 * trace)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The distance (1) between two sets of statistics.

    Args:
        a: One side.
        b: The other.

    Returns:
        FD.
    """
    return Reference(a).distance(b)


def frechet_from_features(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The distance (1) between two sets of features, by (3) where a set is smaller than its dimension.

    Args:
        x: One side.
        y: The other.

    Returns:
        FD.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) >= x.shape[1]:
        return frechet_distance(Moments.of(x), Moments.of(y))
    difference = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((part - part.mean(axis=0)) / np.sqrt(len(part) - 1) for part in (x, y))
    trace = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(difference @ difference + (x**2).sum() + (y**2).sum() - 2 * trace)


def bootstrap(
    reference: Reference, features: Float[np.ndarray, "n d"], *, resamples: int, seed: int
) -> Float[np.ndarray, " resamples"]:
    """The distance of bootstrap sets of the generated samples; their standard deviation is its standard error.

    Two sets of the same size and seed are resampled alike, row by row. So where row i of both was generated from the same noise,
    the standard deviation of the difference of the two results is the (smaller) standard error of the difference.

    Args:
        reference: The real side, held fixed.
        features: The generated side.
        resamples: How many bootstrap sets.
        seed: Of the resampling.

    Returns:
        float64 distances.
    """
    rng = np.random.default_rng(seed)
    features = np.asarray(features, np.float64)
    return np.array(
        [reference.distance(Moments.of(features[rng.integers(0, len(features), len(features))])) for _ in range(resamples)]
    )
