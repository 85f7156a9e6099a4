r"""The ideal tilt: what KL-regularised RL would reach with a given reward if it were solved exactly.

For each class the solution is p*(x | y) ~ p_base(x | y) exp(lambda r(x, y)). Samples x_i of the base with

    w_i = exp(lambda r_i) / sum_{j in class} exp(lambda r_j)                 (1)

stand for it (self-normalised importance weights), and 1 / (n sum w_i^2) (2) is the share of them that effectively counts.

A network reaches what of it can be written as a change of its own velocity. Adjoint Matching regresses the ideal control u* (KL of the
ideal tilt = 1/2 E int |u*|^2); to first order its solution is the projection P u* on what the network's parameters can express, with

    lambda (E_tuned r - E_base r) = E int <u*, P u*> = E int |P u*|^2 = 2 KL(p_tuned | p_base).       (3)

So the ratio of the two sides is 1 for a finished optimisation, whatever share of the ideal shift it reached; above 1 it has not gone
all the way, below 1 it spends KL on noise.
"""

import numpy as np
from jaxtyping import Float, Int


def weights(rewards: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], scale: float) -> Float[np.ndarray, " n"]:
    """The weights (1): they sum to 1 in every class.

    Args:
        rewards: r of base samples.
        labels: Their classes.
        scale: lambda.

    Returns:
        float64 weights.
    """
    result = np.empty(len(rewards), np.float64)
    for label in np.unique(labels):
        mine = labels == label
        exponent = scale * np.asarray(rewards, np.float64)[mine]
        unnormalised = np.exp(exponent - exponent.max())
        result[mine] = unnormalised / unnormalised.sum()
    return result


def effective_sample_size(
    rewards: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], scale: float
) -> tuple[float, Float[np.ndarray, " classes"]]:
    """The share (2) of samples that count.

    Args:
        rewards: r of base samples.
        labels: Their classes.
        scale: lambda.

    Returns:
        (mean over classes, by class in ascending order), each in (0, 1].
    """
    w = weights(rewards, labels, scale)
    shares = np.array([1 / ((labels == label).sum() * (w[labels == label] ** 2).sum()) for label in np.unique(labels)])
    return float(shares.mean()), shares


def tilted_mean(rewards: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], scale: float) -> float:
    """The mean reward of the ideal tilt, averaged over classes.

    Args:
        rewards: r of base samples.
        labels: Their classes.
        scale: lambda.

    Returns:
        E over p* of r.
    """
    return float((weights(rewards, labels, scale) * rewards).sum() / len(np.unique(labels)))


def ideal_tilt(
    rewards: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], scale: float, num: int, seed: int
) -> Int[np.ndarray, " num"]:
    """Resamples base samples by (1), systematically within each class, classes equally often.

    Args:
        rewards: r of base samples.
        labels: Their classes.
        scale: lambda.
        num: How many to draw; a multiple of the number of classes keeps them exactly balanced.
        seed: Of the systematic offsets.

    Returns:
        Indices into the samples, classes in turn.
    """
    classes, w, rng = np.unique(labels), weights(rewards, labels, scale), np.random.default_rng(seed)
    each = -(-num // len(classes))
    drawn = []
    for label in classes:
        mine = np.flatnonzero(labels == label)
        points = (np.arange(each) + rng.random()) / each
        chosen = np.searchsorted(np.cumsum(w[mine]), points).clip(max=len(mine) - 1)
        drawn.append(rng.permutation(mine[chosen]))
    return np.stack(drawn, axis=1).reshape(-1)[:num]


def projection_ratio(reward_shift: float, kl: float, scale: float) -> float:
    """The ratio of the two sides of (3).

    Args:
        reward_shift: E_tuned r - E_base r.
        kl: KL(p_tuned | p_base) in nats, the control energy of the rollouts.
        scale: lambda.

    Returns:
        The ratio; nan where the KL is 0.
    """
    return scale * reward_shift / (2 * kl) if kl > 0 else float("nan")
