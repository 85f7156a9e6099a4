r"""The kernel distance: squared maximum mean discrepancy with a cubic kernel.

Source: Binkowski et al., "KID", arXiv 1801.01401. In d dimensions k(a, b) = (<a, b> / d + 1)^3 and, with m samples a side,

    MMD^2 = (sum_{i != j} k(x_i, x_j) + sum_{i != j} k(y_i, y_j)) / (m (m - 1)) - 2 mean_{ij} k(x_i, y_j).      (1)

Unbiased; averaged over random subsets.
"""

import numpy as np
from jaxtyping import Float


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
    real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"], *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The mean of (1) over random subsets.

    Args:
        real: Features of data.
        fake: Features of samples.
        subsets: How many.
        subset_size: Samples a side; at most as many as there are.
        seed: Of the choice.

    Returns:
        (mean, standard error); the literature prints them times 1000.
    """
    rng = np.random.default_rng(seed)
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    size = min(subset_size, len(real), len(fake))
    values = [mmd(real[rng.choice(len(real), size, False)], fake[rng.choice(len(fake), size, False)]) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values) / np.sqrt(subsets))
