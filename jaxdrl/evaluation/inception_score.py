r"""The Inception Score, with the splits of its two reference implementations.

Sources: Salimans et al., arXiv 1606.03498; openai/guided-diffusion evaluations/evaluator.py; toshas/torch-fidelity metric_isc.py. With class
probabilities p(y | x) from the FID network's logits without bias, for each split of the samples

    IS = exp( mean_x KL( p(y | x) | mean_x p(y | x) ) )                                        (1)

ADM: splits of 5000 in the order of the samples, and their mean. torch-fidelity: ten splits after a shuffle with seed 2020, mean and
standard deviation. The two differ in the second decimal on the same logits, so the rule is part of the number.
"""

import itertools

import numpy as np
from jaxtyping import Float

RULES = ("adm", "torch-fidelity")


def inception_score(logits: Float[np.ndarray, "n classes"], rule: str = "adm") -> tuple[float, float]:
    """The score (1) over splits.

    Args:
        logits: Without bias, any float dtype.
        rule: One of `RULES`.

    Returns:
        Mean and standard deviation (n in the denominator) over the splits.

    Raises:
        ValueError: If the rule is unknown, or there are fewer samples than splits.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if len(logits) < 10:
        raise ValueError(f"an Inception Score needs at least 10 samples, got {len(logits)}")
    logits = np.asarray(logits, np.float64)
    if rule == "adm":
        splits = [logits[start : start + 5000] for start in range(0, len(logits), 5000)]
    else:
        order = np.random.RandomState(2020).permutation(len(logits))
        edges = [i * len(logits) // 10 for i in range(11)]
        splits = [logits[order[low:high]] for low, high in itertools.pairwise(edges)]
    scores = np.array([_score(split) for split in splits])
    return float(scores.mean()), float(scores.std())


def _score(logits: np.ndarray) -> float:
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    return float(np.exp((p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1).mean()))
