"""Count, mean and scatter of features, in float64, that merge and subtract exactly.

    n = n_a + n_b,  d = mean_b - mean_a,  mean = mean_a + d n_b / n,  M = M_a + M_b + d d^T n_a n_b / n          (1)

Source: Chan, Golub and LeVeque (1979). The covariance is M / (n - 1), as in every FID code.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sufficient statistics of a Gaussian.

    Attributes:
        count: n.
        mean: float64 [d].
        scatter: M, the sum of outer products about the mean, float64 [d, d].
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Computes them.

        Args:
            features: Any float dtype.

        Returns:
            The statistics.
        """
        x = np.asarray(features, np.float64)
        mean = x.mean(axis=0)
        centred = x - mean  # one array, so that NumPy computes one triangle only
        return cls(count=len(x), mean=mean, scatter=centred.T @ centred)

    @classmethod
    def empty(cls, dim: int) -> "Moments":
        """Statistics of nothing, what merging starts from.

        Args:
            dim: Of the features.

        Returns:
            The statistics.
        """
        return cls(count=0, mean=np.zeros(dim), scatter=np.zeros((dim, dim)))

    @classmethod
    def from_covariance(cls, count: int, mean: Float[np.ndarray, " d"], covariance: Float[np.ndarray, "d d"]) -> "Moments":
        """Takes over what others have computed.

        Args:
            count: n, at least 2.
            mean: Of the features.
            covariance: With n - 1 in the denominator.

        Returns:
            The statistics.
        """
        return cls(count=count, mean=np.asarray(mean, np.float64), scatter=np.asarray(covariance, np.float64) * (count - 1))

    def merge(self, other: "Moments") -> "Moments":
        """Statistics of both sets together, (1).

        Args:
            other: Of the same dimension.

        Returns:
            The merged statistics.
        """
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        n, d = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(d, d) * (self.count * other.count / n)
        return Moments(count=n, mean=self.mean + d * (other.count / n), scatter=scatter)

    def subtract(self, other: "Moments") -> "Moments":
        """Undoes a merge.

        Args:
            other: A part of this set, smaller than it.

        Returns:
            Statistics of the rest.

        Raises:
            ValueError: If nothing would be left.
        """
        n = self.count - other.count
        if n < 1:
            raise ValueError(f"cannot take {other.count} samples from {self.count}")
        mean = (self.count * self.mean - other.count * other.mean) / n
        d = other.mean - mean
        scatter = self.scatter - other.scatter - np.outer(d, d) * (n * other.count / self.count)
        return Moments(count=n, mean=mean, scatter=scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """M / (n - 1); ValueError where there are fewer than 2 samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, there are {self.count}")
        return self.scatter / (self.count - 1)
