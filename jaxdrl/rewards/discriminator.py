r"""The discriminator whose logit is the reward: a class-conditional projection head on frozen features.

Sources: "Discriminator-Guided RL", arXiv 2606.19162, section 4 and App. E; Miyato and Koyama, "cGANs with projection
discriminator", arXiv 1802.05637; Mescheder et al., arXiv 1801.04406 (R1).

With frozen features f = phi(x), classes y, W: d -> 512,

    h = W f                                                                                     (1)
    logit(x, y) = <w, h> + <h, e(y)> + b(y)                                                     (2)
    L = E_data softplus(-logit) + E_model softplus(logit) + (gamma / 2) E_data |d logit / d x|^2   (3)

The R1 gradient in (3) is taken with respect to the *image*, through the frozen encoder. The paper's algorithm prints the
gradient of D = sigmoid(logit); Mescheder et al. take the logit's, and so does this file. The "mlp2" head puts two residual
GELU blocks f <- f + V gelu(U f) of width 512 before (1); the paper found it no better. At the optimum of (3) with gamma = 0 the
logit is log q(f | y) - log p_base(f | y), which is why it serves as the reward r of KL-regularised RL at lambda = 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

Features = Callable[[Float[Array, "batch ..."]], Float[Array, "batch dim"]]


def init(key: Key[Array, ""], feature_dim: int, num_classes: int, *, width: int = 512, head: str = "linear") -> PyTree:
    """Initialises the head.

    Args:
        key: A key.
        feature_dim: d, the size of the pooled features.
        num_classes: How many classes e(y) and b(y) know.
        width: Rows of W, and the width of the residual blocks.
        head: "linear" or "mlp2".

    Returns:
        A dict of float32 arrays. w, e and b start at zero: the first logit is 0 for every image.

    Raises:
        ValueError: If the head is unknown.
    """
    if head not in ("linear", "mlp2"):
        raise ValueError(f"head must be linear or mlp2, got {head!r}")
    keys = jax.random.split(key, 5)
    dense = lambda key, rows, columns: jax.random.normal(key, (rows, columns)) / jnp.sqrt(rows)  # noqa: E731
    params: dict[str, PyTree] = {
        "projection": dense(keys[0], feature_dim, width),
        "weight": jnp.zeros(width),
        "embedding": jnp.zeros((num_classes, width)),
        "bias": jnp.zeros(num_classes),
    }
    if head == "mlp2":
        params["blocks"] = {
            str(i): {"up": dense(keys[1 + 2 * i], feature_dim, width), "down": 0.1 * dense(keys[2 + 2 * i], width, feature_dim)}
            for i in range(2)
        }
    return params


def logits(params: PyTree, features: Float[Array, "batch dim"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """The logit (2) from features.

    Args:
        params: From `init`.
        features: phi(x), float32.
        labels: y, int32.

    Returns:
        float32 [batch]: positive where the head believes in data.
    """
    for _, block in sorted(params.get("blocks", {}).items()):
        features = features + jax.nn.gelu(features @ block["up"], approximate=False) @ block["down"]
    h = features @ params["projection"]  # (1)
    joint = params["weight"] + jnp.asarray(params["embedding"])[labels]
    return jnp.sum(h * joint, axis=-1) + jnp.asarray(params["bias"])[labels]  # (2)


def loss(
    params: PyTree,
    real: Float[Array, "batch dim"],
    real_labels: Int[Array, " batch"],
    fake: Float[Array, "batch2 dim"],
    fake_labels: Int[Array, " batch2"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The logistic part of the loss (3), from features: the encoder is frozen, so every image is encoded once.

    Args:
        params: The head.
        real: phi of images of the data.
        real_labels: Their classes.
        fake: phi of images of the model.
        fake_labels: Their classes.

    Returns:
        The loss, and metrics `logistic` (the same number) and `accuracy`.
    """
    real_logits, fake_logits = logits(params, real, real_labels), logits(params, fake, fake_labels)
    logistic = jnp.mean(jax.nn.softplus(-real_logits)) + jnp.mean(jax.nn.softplus(fake_logits))
    accuracy = 0.5 * (jnp.mean(real_logits > 0) + jnp.mean(fake_logits <= 0))
    return logistic, {"logistic": logistic, "accuracy": accuracy}


def r1_penalty(
    params: PyTree, features: Features, images: Float[Array, "batch ..."], labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """E_data |d logit / d x|^2 of (3), before gamma / 2, through the frozen encoder to the pixels.

    Args:
        params: The head.
        features: phi, images in [-1, 1] -> [batch, dim], with the encoder's frozen weights bound.
        images: Images of the data.
        labels: Their classes.

    Returns:
        A float32 scalar.
    """
    gradients = jax.grad(lambda images: logits(params, features(images), labels).sum())(images)
    return jnp.mean(jnp.sum(gradients**2, axis=tuple(range(1, images.ndim))))


def reward(params: PyTree, features: Features) -> Callable[..., Float[Array, " batch"]]:
    """The logit as a reward: `reward(images, labels) -> [batch]`, differentiable with respect to the images.

    Args:
        params: A trained head.
        features: phi with its weights bound.

    Returns:
        The reward function.
    """
    return lambda images, labels: logits(params, features(images), labels)
