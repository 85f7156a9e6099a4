"""Gradients of a batch in parts: a mean is (sum, weight) until the end, so that no split into micro-batches changes an update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Sums = dict[str, tuple[Float[Array, "..."], Float[Array, "..."]]]
Loss = Callable[[PyTree, PyTree], tuple[Float[Array, "*k"], tuple[Float[Array, "*k"], Sums]]]


def accumulate(
    loss_sum_and_weight: Loss, params: PyTree, batch: PyTree, micro_batches: int = 1
) -> tuple[PyTree, dict[str, Float[Array, "..."]]]:
    """The gradient of sum(losses) / sum(weights) over a batch, one micro-batch in memory at a time.

    Equal to the gradient on the whole batch up to rounding, however unequal the weights of the micro-batches are; dividing within
    each and averaging over them would not be. What a loss draws at random has to belong to a sample, not to its place in the
    micro-batch, for the split not to matter.

    Args:
        loss_sum_and_weight: (params, part of the batch) -> (sum, (weight, metrics)). The sum is a scalar, or [K] for K losses that
            share one forward pass; the weight has its shape and does not depend on the parameters. Metrics are name -> (sum,
            weight), each with a weight of its own.
        params: What is differentiated.
        batch: A tree whose leaves all have the batch as first axis.
        micro_batches: How many parts; 1 is no accumulation.

    Returns:
        The mean gradient, float32, of the parameters' structure; for [K] losses with a leading axis of K on every leaf, as
        `balancing.marble` takes it (K backward passes, one after the other). And the metrics, sum / weight. Whatever has no weight
        at all is 0.

    Raises:
        ValueError: If the batch is not divisible into so many parts.
    """
    size = len(jax.tree.leaves(batch)[0])
    if micro_batches < 1 or size % micro_batches:
        raise ValueError(f"a batch of {size} does not divide into {micro_batches} micro-batches")
    # Interleaved, so that a micro-batch of a batch that is sharded over devices lies on all of them.
    split = lambda leaf: leaf.reshape((size // micro_batches, micro_batches, *leaf.shape[1:])).swapaxes(0, 1)  # noqa: E731
    parts = jax.tree.map(split, batch)

    def sums(part):
        total, pullback, aux = jax.vjp(lambda params: loss_sum_and_weight(params, part), params, has_aux=True)
        if total.ndim == 0:
            gradient = pullback(jnp.ones_like(total))[0]
        else:
            gradient = jax.lax.map(lambda row: pullback(row)[0], jnp.eye(len(total), dtype=total.dtype))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (gradient, *aux))

    shapes = jax.eval_shape(sums, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    add = lambda carry, part: (jax.tree.map(jnp.add, carry, sums(part)), None)  # noqa: E731
    (gradient, weight, metrics), _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda leaf: _mean(leaf, weight), gradient), {name: _mean(*pair) for name, pair in metrics.items()}


def _mean(total, weight):
    weight = weight.reshape(weight.shape + (1,) * (total.ndim - weight.ndim))
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)
