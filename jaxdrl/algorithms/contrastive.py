r"""Contrastive learning with no labels: how the judge's encoder is trained.

Source: Chen et al., "SimCLR", arXiv 2002.05709, section 2.1.

Two views of each of N images give 2 N features; with projections z on the unit sphere, partner j(i) and temperature tau,

    L = - (1 / 2N) sum_i log ( exp(<z_i, z_j(i)> / tau) / sum_{k != i} exp(<z_i, z_k> / tau) )        (1)
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.algorithms.augmentation import views

TEMPERATURE, HIDDEN, PROJECTION = 0.2, 128, 64

Features = Callable[[PyTree, Float[Array, "batch h w c"]], Float[Array, "batch dim"]]


class State(NamedTuple):
    """What is trained: encoder and projection head."""

    encoder: PyTree
    head: PyTree


def init(key: Key[Array, ""], encoder: PyTree, feature_dim: int) -> State:
    """Adds a projection head to an encoder.

    Args:
        key: A key.
        encoder: Fresh encoder weights.
        feature_dim: Size of the pooled feature.

    Returns:
        The state.
    """
    first, second = jax.random.split(key)
    head = [
        jax.random.normal(first, (feature_dim, HIDDEN)) / jnp.sqrt(feature_dim),
        jax.random.normal(second, (HIDDEN, PROJECTION)) / jnp.sqrt(HIDDEN),
    ]
    return State(encoder, head)


def nt_xent(z: Float[Array, "two_n dim"]) -> Float[Array, ""]:
    """The loss (1).

    Args:
        z: Projections; row i and row i + N are views of one image. Normalised here.

    Returns:
        A scalar.
    """
    z = z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-6)
    similarity = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, z @ z.T / TEMPERATURE)
    partner = jnp.roll(jnp.arange(len(z)), len(z) // 2)
    return optax.softmax_cross_entropy_with_integer_labels(similarity, partner).mean()


def loss(
    state: State, features: Features, images: Float[Array, "batch h w c"], key: Key[Array, ""], strength: float = 1.0
) -> Float[Array, ""]:
    """The loss (1) on two views of a batch.

    Args:
        state: What it is differentiated by.
        features: (encoder weights, images) -> pooled features.
        images: A batch.
        key: Draws the views.
        strength: Of the augmentation, see `augmentation.views`.

    Returns:
        A scalar.
    """
    both = jnp.concatenate([views(k, images, strength) for k in jax.random.split(key)])
    hidden = jax.nn.gelu(features(state.encoder, both) @ state.head[0])
    return nt_xent(hidden @ state.head[1])


def update(
    state: State,
    opt_state: optax.OptState,
    optimizer: optax.GradientTransformation,
    features: Features,
    images: Float[Array, "batch h w c"],
    key: Key[Array, ""],
    strength: float = 1.0,
) -> tuple[State, optax.OptState, Float[Array, ""]]:
    """One training step.

    Args:
        state: Before.
        opt_state: The optimizer's.
        optimizer: Any optax transformation.
        features: (encoder weights, images) -> pooled features.
        images: A batch.
        key: Draws the views.
        strength: Of the augmentation, see `augmentation.views`.

    Returns:
        The state and optimizer state after, and the loss.
    """
    value, grads = jax.value_and_grad(loss)(state, features, images, key, strength)
    updates, opt_state = optimizer.update(grads, opt_state, state)
    return cast(State, optax.apply_updates(state, updates)), opt_state, value


def trainable(state: State) -> PyTree:
    """What the optimizer's state is made for.

    Args:
        state: The state.

    Returns:
        The whole state.
    """
    return state


def result(state: State) -> PyTree:
    """The encoder that is kept.

    Args:
        state: The last one.

    Returns:
        Encoder weights.
    """
    return state.encoder
