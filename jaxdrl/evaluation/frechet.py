r"""The Frechet distance between Gaussians fitted to features.

Sources: Dowson and Landau (1982); Heusel et al., "FID", arXiv 1706.08500; Chong and Forsyth, "FD infinity", arXiv 1911.07023.

    FD = |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))                                     (1)

With any factors S_i = F_i F_i^T the trace of the root is the sum of the singular values of F_1^T F_2 (2): S_1 S_2 has the eigenvalues
of (F_1^T F_2)(F_1^T F_2)^T. The factors are pivoted Cholesky ones, which stop at the rank, so singular covariances need no offset on the
diagonal; singular values carry the precision of the data where roots of eigenvalues would carry half of it. Where both sets are
smaller than their dimension, the centred samples themselves are the factors (3).

FD grows with 1 / N. FD_infinity is the intercept of a line through FD_N against 1 / N (4).
"""

import numpy as np
from jaxtyping import Float

from jaxdrl.evaluation.statistics import Moments


def factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """F with F F^T = S, as narrow as the rank of S.

    Args:
        covariance: Symmetric, positive semi-definite up to rounding.

    Returns:
        float64 [d, rank].
    """
    from scipy.linalg.lapack import dpstrf

    lower, pivots, rank, _ = dpstrf(covariance, lower=1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


class Reference:
    """One side of the distance with the factor of its covariance, for many comparisons."""

    def __init__(self, moments: Moments) -> None:
        """Takes the factor.

        Args:
            moments: Of the reference.
        """
        self.moments = moments
        self._factor = factor(moments.covariance)
        self._trace = float(np.trace(moments.covariance))

    def distance(self, other: Moments) -> float:
        """The distance (1) by (2).

        Args:
            other: Of the same dimension.

        Returns:
            FD; rounding can make it a little negative for equal inputs.

        Raises:
            ValueError: If the dimensions differ.
        """
        if other.mean.shape != self.moments.mean.shape:
            raise ValueError(f"dimensions differ: {self.moments.mean.shape[0]} and {other.mean.shape[0]}")
        difference = self.moments.mean - other.mean
        from scipy.linalg import svdvals

        root = svdvals(self._factor.T @ factor(other.covariance)).sum()
        return float(difference @ difference + self._trace + np.trace(other.covariance) - 2 * root)


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
    """The distance (1) between two sets of features, by (3) where both are smaller than their dimension.

    Args:
        x: One side.
        y: The other.

    Returns:
        FD.
    """
    from scipy.linalg import svdvals

    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if max(len(x), len(y)) >= x.shape[1]:
        return frechet_distance(Moments.of(x), Moments.of(y))
    difference = x.mean(axis=0) - y.mean(axis=0)
    x, y = ((part - part.mean(axis=0)) / np.sqrt(len(part) - 1) for part in (x, y))
    trace = svdvals(x @ y.T).sum()
    return float(difference @ difference + (x**2).sum() + (y**2).sum() - 2 * trace)


def bias(reference: Moments, count: int) -> float:
    """How far from 0 the distance of `count` fresh samples of the reference itself lies, to first order in 1 / N, for Gaussian features.

    The mean gives tr S / N. The covariance's error E has E|E_ij|^2 = s_i s_j (1 + [i = j]) / N in the eigenbasis of S and costs
    1/2 sum_ij |E_ij|^2 / (s_i + s_j), the Bures metric.

    Args:
        reference: The real side.
        count: N, of the generated samples.

    Returns:
        A distance.
    """
    s = np.linalg.eigvalsh(reference.covariance).clip(min=0)
    s = s[s > 0]
    pairs = (s[:, None] * s / (s[:, None] + s)).sum()
    return float((s.sum() + 0.5 * (pairs + s.sum() / 2)) / count)


def extrapolated(
    reference: Reference, features: Float[np.ndarray, "n d"], *, points: int = 15, seed: int = 0
) -> tuple[float, Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """FD_infinity by (4), with dgm-eval's sizes: `points` of them, equally far apart, from min(5000, max(n / 10, 2)) to n.

    Args:
        reference: The real side.
        features: The generated side.
        points: Sizes N.
        seed: Of the subsets, drawn without replacement (dgm-eval has no seed).

    Returns:
        (intercept, sizes, distances).
    """
    n, rng = len(features), np.random.default_rng(seed)
    sizes = np.linspace(min(5000, max(n / 10, 2)), n, points).astype(int)
    values = []
    for size in sizes:
        chosen = np.sort(rng.choice(n, size, replace=False))
        values.append(reference.distance(Moments.of(features[chosen])))
    slope_and_intercept = np.polyfit(1 / sizes, values, 1)
    return float(slope_and_intercept[1]), sizes.astype(float), np.array(values)


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
