r"""REPA: a generator's tokens aligned with an encoder's while it is trained by flow matching.

Source: Yu et al., "Representation Alignment for Generation", arXiv 2410.06940; sihyun-yu/REPA loss.py. With projected tokens h_j of the
generator (`Backbone.aligned`) and tokens f_j of a frozen encoder on the clean image, for each encoder j

    L_align = - mean over tokens and encoders of  < h_j / |h_j|, f_j / |f_j| >                  (1)
    L = | v_theta(x_t, t, y) - (x - e) |^2  +  c L_align,      mean over dimensions, c = 0.5    (2)

The authors count time the other way (t = 1 noise, noise - data); `Backbone.aligned` has turned it round, which leaves (2) as it is.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.algorithms.flow_matching import TimeLaw
from jaxdrl.flow import path

WEIGHT = 0.5


def alignment(
    projections: Sequence[Float[Array, "batch tokens dim"]], targets: Sequence[Float[Array, "batch tokens dim"]]
) -> Float[Array, ""]:
    """The negative mean cosine (1).

    Args:
        projections: h_j, one for each encoder.
        targets: f_j, in the same order.

    Returns:
        A float32 scalar in [-1, 1].
    """
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # noqa: E731
    cosines = [jnp.mean(jnp.sum(unit(h) * unit(f), axis=-1)) for h, f in zip(projections, targets, strict=True)]
    return -jnp.mean(jnp.stack(cosines))


def loss(
    aligned: Callable[..., tuple[Float[Array, "batch ..."], Sequence[Float[Array, "batch tokens dim"]]]],
    params: PyTree,
    data: Float[Array, "batch ..."],
    labels: Int[Array, " batch"],
    targets: Sequence[Float[Array, "batch tokens dim"]],
    key: Key[Array, ""],
    *,
    label_dropout: float,
    null_label: int,
    weight: float = WEIGHT,
    times: TimeLaw | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """REPA's loss (2).

    Args:
        aligned: `Backbone.aligned`: (params, x, t, y) -> (velocity, projections).
        params: What the loss is differentiated by.
        data: Latents.
        labels: Classes.
        targets: f_j of the clean images.
        key: Draws noise, times and dropped labels.
        label_dropout: Probability of the null label.
        null_label: Its index.
        weight: c.
        times: The law of t; None: uniform, as in the paper.

    Returns:
        The loss and its parts, `flow_matching` and `alignment`.
    """
    noise_key, time_key, drop_key = jax.random.split(key, 3)
    noise = jax.random.normal(noise_key, data.shape, jnp.float32)
    t = (times or TimeLaw()).draw(time_key, len(data))
    labels = jnp.where(jax.random.bernoulli(drop_key, label_dropout, labels.shape), null_label, labels)
    predicted, projections = aligned(params, path.interpolate(data, noise, t), t, labels)
    matching = jnp.mean((predicted - path.velocity_target(data, noise)) ** 2)
    aligning = alignment(projections, targets)
    return matching + weight * aligning, {"flow_matching": matching, "alignment": aligning}
