"""How far a discriminator's probabilities are from frequencies."""

import numpy as np
from jaxtyping import Float


def expected_calibration_error(real: Float[np.ndarray, " n"], fake: Float[np.ndarray, " m"], bins: int = 10) -> float:
    """Mean gap between predicted probability and frequency of data, over bins of the prediction.

    Args:
        real: Logits of data.
        fake: Logits of samples; both sides get weight one half, whatever their numbers.
        bins: Equal parts of [0, 1].

    Returns:
        In [0, 1]; 0 is perfectly calibrated.
    """
    logits = np.concatenate([real, fake]).astype(np.float64)
    probability = 1 / (1 + np.exp(-logits))
    truth = np.concatenate([np.ones(len(real)), np.zeros(len(fake))])
    weight = np.concatenate([np.full(len(real), 0.5 / len(real)), np.full(len(fake), 0.5 / len(fake))])
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs((weight * (truth - probability))[index == part].sum()) for part in range(bins)]
    return float(sum(gaps))
