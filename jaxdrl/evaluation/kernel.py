r"""Kernel distances: squared maximum mean discrepancies, with a cubic kernel (KD, KID) and with a Gaussian one (CMMD).

Sources: Binkowski et al., "KID", arXiv 1801.01401; Jayasumana et al., "CMMD", arXiv 2401.09603; toshas/torch-fidelity metric_kid.py;
google-research/cmmd distance.py. In d dimensions, with m samples a side,

    k(a, b) = (<a, b> / d + 1)^3
    KD = (sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)) / (m (m - 1)) - 2 mean_{ij} k(x_i, y_j)             (1)

unbiased and averaged over random subsets; torch-fidelity's generator, order of draws and default seed give its very number. And

    k(a, b) = exp(-|a - b|^2 / (2 sigma^2)),   CMMD = 1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y))            (2)

biased, on features of length 1, sigma = 10. Kernel values lie within a percent of 1, so what is summed is k - 1, which cancels in (2).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

BLOCK = 4096


def mmd(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"]) -> float:
    """The estimate (1).

    Args:
        x: One side.
        y: The other, as many.

    Returns:
        MMD^2, possibly a little negative.
    """
    m, d = x.shape
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (m * (m - 1)) - 2 * xy.mean())


def kernel_distance(
    real: Float[np.ndarray, "n d"],
    fake: Float[np.ndarray, "m d"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """The mean of (1) over random subsets.

    Args:
        real: Features of data.
        fake: Features of samples.
        subsets: How many.
        subset_size: Samples a side; at most as many as there are.
        seed: Of the choice.

    Returns:
        (mean, standard deviation over the subsets); the literature prints them times 1000, some divide the second by sqrt(subsets).
    """
    rng = np.random.RandomState(seed)
    size = min(subset_size, len(real), len(fake))
    values = []
    for _ in range(subsets):
        mine = np.asarray(fake[rng.choice(len(fake), size, replace=False)], np.float64)
        values.append(mmd(mine, np.asarray(real[rng.choice(len(real), size, replace=False)], np.float64)))
    return float(np.mean(values)), float(np.std(values))


def cmmd(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], sigma: float = 10.0) -> float:
    """The distance (2), in blocks on the device, summed in float64.

    Args:
        real: CLIP features of data, of any length: they are normalised here.
        fake: Of samples.
        sigma: Bandwidth.

    Returns:
        CMMD; 0 for equal sets.
    """
    x, y = (_unit(part) for part in (real, fake))
    return 1000.0 * (_mean_kernel(x, x, sigma) + _mean_kernel(y, y, sigma) - 2 * _mean_kernel(x, y, sigma))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def _mean_kernel(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """Mean of k - 1."""
    total = 0.0
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            total += float(np.asarray(_row_sums(x[i : i + BLOCK], y[j : j + BLOCK], sigma), np.float64).sum())
    return total / (len(x) * len(y))


@partial(jax.jit, static_argnames="sigma")
def _row_sums(x, y, sigma: float):
    inner = jnp.einsum("id,jd->ij", x, y, precision=jax.lax.Precision.HIGHEST)
    square = jnp.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * inner, 0.0)
    return jnp.expm1(-square / (2 * sigma**2)).sum(axis=1)
