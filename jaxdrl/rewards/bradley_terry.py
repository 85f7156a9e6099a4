r"""Bradley-Terry: a reward from choices between two images of one condition.

Sources: Bradley and Terry, "Rank analysis of incomplete block designs", Biometrika 39 (1952); Christiano et al., arXiv 1706.03741. PickScore
(arXiv 2305.01569) and ImageReward (arXiv 2304.05977) are trained by (2) on people's choices.

With a score s(x, y) of an image x for a condition y, the first of two images is chosen with probability

    P(a > b | y) = sigmoid(s(a, y) - s(b, y)),                                                                (1)
    L = - mean [c log P(a > b | y) + (1 - c) log P(b > a | y)],      c = 1 if a was chosen, 0 if b, 1/2 a tie. (2)

(1) does not see what is added to s for a condition as a whole, so that the score is fixed up to a constant b(y); the score here has none,

    s(x, y) = <w, f> + <e(y), f>,      f = (phi(x) - m) / d,                                                   (3)

on the features phi of a frozen encoder, standardised by the mean m and deviation d of the images that are compared. At the optimum of
(2) the differences of s are the log-odds of a choice: one unit of reward is a choice of 73 %.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.rewards.discriminator import Features


def init(key: Key[Array, ""], mean: Float[Array, " dim"], deviation: Float[Array, " dim"], num_classes: int) -> PyTree:
    """Initialises the head of (3).

    Args:
        key: A key.
        mean: m, of the features.
        deviation: d; what does not vary (below 1e-6) is not looked at.
        num_classes: How many conditions e(y) knows.

    Returns:
        "shared" w and "own" e, both small, and the constants "mean" and "scale".
    """
    scale = jnp.where(deviation > 1e-6, 1 / jnp.where(deviation > 1e-6, deviation, 1.0), 0.0)
    shared = 1e-3 * jax.random.normal(key, mean.shape)
    return {"shared": shared, "own": jnp.zeros((num_classes, len(mean))), "mean": mean, "scale": scale}


def scores(head: PyTree, features: Float[Array, "batch dim"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """The score (3).

    Args:
        head: From `init`; "mean" and "scale" are constants.
        features: phi(x).
        labels: y.

    Returns:
        s(x, y).
    """
    standard = (features - jax.lax.stop_gradient(head["mean"])) * jax.lax.stop_gradient(head["scale"])
    return jnp.sum(standard * (head["shared"] + jnp.asarray(head["own"])[labels]), axis=-1)


def loss(
    first: Float[Array, " pairs"], second: Float[Array, " pairs"], choices: Float[Array, " pairs"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The negative log-likelihood (2).

    Args:
        first: s(a, y).
        second: s(b, y).
        choices: c, in [0, 1].

    Returns:
        (L in nats, metrics `agreement`: the share of pairs, ties left out, whose better score was chosen).
    """
    difference = first - second
    value = jnp.mean(jax.nn.softplus(difference) - choices * difference)
    decided = choices != 0.5
    right = decided & ((difference > 0) == (choices > 0.5))
    return value, {"agreement": right.sum() / jnp.maximum(decided.sum(), 1)}


def choose(
    key: Key[Array, ""], first: Float[Array, " pairs"], second: Float[Array, " pairs"], temperature: float
) -> Float[Array, " pairs"]:
    """Draws choices by (1) from known utilities: synthetic people.

    Args:
        key: A key.
        first: Utility of a.
        second: Utility of b.
        temperature: What utilities are divided by; the smaller, the surer the choices.

    Returns:
        c, 0 or 1.
    """
    return jax.random.bernoulli(key, jax.nn.sigmoid((first - second) / temperature)).astype(jnp.float32)


def reward(head: PyTree, features: Features) -> Callable[..., Float[Array, " batch"]]:
    """The score as a reward: `reward(images, labels) -> [batch]`, differentiable with respect to the images.

    Args:
        head: Trained.
        features: phi, images in [-1, 1] -> [batch, dim], with the encoder's frozen weights bound.

    Returns:
        The reward function. A label that is no class, such as the null class, gets NaN.
    """

    def score(images: Float[Array, "batch h w c"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
        known = (labels >= 0) & (labels < len(head["own"]))
        return jnp.where(known, scores(head, features(images), jnp.where(known, labels, 0)), jnp.nan)

    return score
