r"""Does a classifier see the class that was asked for? A softmax head on frozen features of real images, and its probability as a reward.

With features f = phi(x) of a frozen encoder, logits z = W f + b, and n real images with classes y,

    W, b = argmin  (1 / n) sum_i -log softmax(W s(f_i) + b)_{y_i} + (l2 / 2) |W|^2                 (1)
    reward(x, y) = log softmax(z)_y    or    softmax(z)_y                                        (2)

s standardises each feature; it is folded into W and b afterwards. (1) is convex, so the head does not depend on a seed. It is
scikit-learn's LogisticRegression with C = 1 / (n l2).

A classifier that judges the result must be another one, on other features: see `evaluation.classifier`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl.rewards.discriminator import Features


def train(
    features: Float[np.ndarray, "n dim"],
    labels: Int[np.ndarray, " n"],
    num_classes: int,
    *,
    l2: float = 1e-3,
    max_steps: int = 1000,
) -> dict[str, Float[np.ndarray, "..."]]:
    """Fits the head (1) on the host, by L-BFGS in float64.

    Args:
        features: Of real training images.
        labels: Their classes, 0 .. num_classes - 1; every class must occur.
        num_classes: Without the null class.
        l2: Weight of the penalty.
        max_steps: Of L-BFGS.

    Returns:
        {"kernel": W^T [dim, classes], "bias": b [classes]}, float32.

    Raises:
        ValueError: If a class has no image, a label is no class, or the optimiser does not converge.
    """
    from scipy.optimize import minimize

    missing = sorted(set(range(num_classes)) - set(np.unique(labels).tolist()))
    if missing or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be 0 .. {num_classes - 1} and each must occur; missing: {missing}, found {labels.min()} .. {labels.max()}"
        )
    inputs = np.asarray(features, np.float64)
    centre, spread = inputs.mean(axis=0), inputs.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    inputs = (inputs - centre) / spread
    wanted = np.eye(num_classes)[labels]
    count, dim = inputs.shape

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[: dim * num_classes].reshape(dim, num_classes), flat[dim * num_classes :]
        scores = inputs @ weights + bias
        scores -= scores.max(axis=1, keepdims=True)
        logarithms = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        error = (np.exp(logarithms) - wanted) / count
        value = -(wanted * logarithms).sum() / count + 0.5 * l2 * (weights**2).sum()
        return value, np.concatenate([(inputs.T @ error + l2 * weights).ravel(), error.sum(axis=0)])

    options = {"maxiter": max_steps, "maxfun": 10 * max_steps, "ftol": 1e-14, "gtol": 1e-7}
    found = minimize(objective, np.zeros((dim + 1) * num_classes), jac=True, method="L-BFGS-B", options=options)
    if found.nit >= max_steps:
        raise ValueError(f"the class head did not converge in {max_steps} steps; give more of them, or a larger l2 than {l2}")
    weights = found.x[: dim * num_classes].reshape(dim, num_classes) / spread[:, None]
    bias = found.x[dim * num_classes :] - centre @ weights
    return {"kernel": weights.astype(np.float32), "bias": bias.astype(np.float32)}


def logits(head: PyTree, features: Float[Array, "batch dim"]) -> Float[Array, "batch classes"]:
    """The logits z of (2).

    Args:
        head: From `train`.
        features: phi(x), float32.

    Returns:
        One logit a class.
    """
    return features @ head["kernel"] + head["bias"]


def reward(head: PyTree, features: Features, *, log: bool = True) -> Callable[..., Float[Array, " batch"]]:
    """The reward (2): `reward(images, labels) -> [batch]`, differentiable with respect to the images.

    Args:
        head: From `train`.
        features: phi, images in [-1, 1] -> [batch, dim], with the encoder's frozen weights bound.
        log: Whether the probability's logarithm, in (-inf, 0] nats, is the reward; it has a gradient where the probability is 0.

    Returns:
        The reward function. A label that is no class, such as the null class, gets NaN.
    """

    def score(images: Float[Array, "batch h w c"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
        logarithms = jax.nn.log_softmax(logits(head, features(images)), axis=-1)
        known = (labels >= 0) & (labels < logarithms.shape[-1])
        chosen = jnp.take_along_axis(logarithms, jnp.where(known, labels, 0)[:, None], axis=-1)[:, 0]
        return jnp.where(known, chosen if log else jnp.exp(chosen), jnp.nan)

    return score
