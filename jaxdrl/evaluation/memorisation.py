"""Copies of training images among the samples.

A sample counts as a copy if its nearest training image (in pixels) is closer than all but `quantile` of the *held-out* images are to
theirs: real images that were never trained on give `quantile` by construction, so anything above it is memorisation.
"""

import numpy as np
from jaxtyping import Float

from jaxdrl.evaluation.neighbours import nearest


def copies(
    samples: Float[np.ndarray, "n d"], train: Float[np.ndarray, "m d"], held_out: Float[np.ndarray, "k d"], quantile: float = 0.05
) -> float:
    """The share of samples that are copies.

    Args:
        samples: Generated.
        train: What the generator was trained on.
        held_out: Real images that it was not.
        quantile: Share of held-out images that the threshold lets pass as copies, in (0, 1).

    Returns:
        A share; `quantile` is what fresh data would give.
    """
    threshold = np.quantile(nearest(held_out, train)[0], quantile)
    return float((nearest(samples, train)[0] < threshold).mean())


def closest(samples: Float[np.ndarray, "n d"], train: Float[np.ndarray, "m d"], limit: int = 20) -> list[tuple[int, int, float]]:
    """The samples that are nearest to a training image, to be looked at.

    Args:
        samples: Generated.
        train: What the generator was trained on.
        limit: How many.

    Returns:
        (number of the sample, number of the training image, distance), nearest first.
    """
    distances, indices = (found[:, 0] for found in nearest(samples, train))
    order = np.argsort(distances, kind="stable")[:limit]
    return [(int(i), int(indices[i]), float(distances[i])) for i in order]
