"""What is measured of a set of samples, in one feature space and in all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from jaxdrl.evaluation import frechet, kernel, manifold
from jaxdrl.evaluation.statistics import Moments


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the distances are taken.

    Attributes:
        kernel_subsets: For the kernel distance.
        kernel_subset_size: Samples a subset and side.
        bootstrap: Resamples for the standard error of the Frechet distance.
        manifold_samples: At most so many a side for precision, recall, density and coverage.
        seed: Of all resampling.
    """

    kernel_subsets: int = 100
    kernel_subset_size: int = 500
    bootstrap: int = 50
    manifold_samples: int = 4000
    seed: int = 0


def measure(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], settings: Settings) -> dict[str, Any]:
    """Measures samples against data in one space.

    Args:
        real: Features of data.
        fake: Features of samples.
        settings: See `Settings`.

    Returns:
        frechet, frechet_se, frechet_resampled (an array, see `frechet.bootstrap`), kernel, kernel_se, precision, recall, density, coverage.
    """
    reference = frechet.Reference(Moments.of(real))
    distance, deviation = kernel.kernel_distance(
        real, fake, subsets=settings.kernel_subsets, subset_size=settings.kernel_subset_size, seed=settings.seed
    )
    shape = manifold.measure(spread(real, settings.manifold_samples), spread(fake, settings.manifold_samples))
    resampled = frechet.bootstrap(reference, fake, resamples=settings.bootstrap, seed=settings.seed)
    return {
        "frechet": reference.distance(Moments.of(fake)),
        "frechet_se": float(resampled.std(ddof=1)),
        "frechet_resampled": resampled,
        "kernel": distance,
        "kernel_se": deviation / np.sqrt(settings.kernel_subsets),
        **shape._asdict(),
    }


def spread(values: Shaped[np.ndarray, "n ..."], limit: int) -> Shaped[np.ndarray, "m ..."]:
    """At most `limit` rows, drawn without replacement by a fixed seed (a stride would drop classes).

    Args:
        values: Rows.
        limit: How many at most.

    Returns:
        The rows, in their order.
    """
    if len(values) <= limit:
        return values
    return values[np.sort(np.random.default_rng(0).choice(len(values), limit, replace=False))]


def principal_plane(reference: Float[np.ndarray, "n d"]) -> Callable[[Float[np.ndarray, "m d"]], Float[np.ndarray, "m 2"]]:
    """The two leading principal directions of the data, for the scatter plot.

    Args:
        reference: Features of data.

    Returns:
        A projection.
    """
    mean = reference.mean(axis=0)
    _, _, directions = np.linalg.svd(reference - mean, full_matrices=False)
    return lambda values: (values - mean) @ directions[:2].T


def by_space(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], metric: str) -> dict[str, dict[str, float]]:
    """Turns {row: {space: {metric: x}}} into {space: {row: x}} for one metric.

    Args:
        rows: As measured.
        metric: Which.

    Returns:
        The table.
    """
    table: dict[str, dict[str, float]] = {}
    for row, spaces in rows.items():
        for space, values in spaces.items():
            table.setdefault(space, {})[row] = values[metric]
    return table


def paired_errors(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], against: str) -> dict[str, dict[str, float]]:
    """Standard errors of differences between rows whose samples share their noise, see `frechet.bootstrap`.

    Args:
        rows: As measured: {row: {space: {"frechet_resampled": array}}}.
        against: The row that is subtracted.

    Returns:
        {space: {row: standard error of FD(row) - FD(against)}} for the rows that were resampled alike.
    """
    table: dict[str, dict[str, float]] = {}
    for row, spaces in rows.items():
        for space, values in spaces.items():
            difference = values["frechet_resampled"] - rows[against][space]["frechet_resampled"]
            table.setdefault(space, {})[row] = float(difference.std(ddof=1))
    return table
