r"""Self-distillation with no labels: how the reward's encoder is trained.

Source: Caron et al., "DINO", arXiv 2104.14294, section 3 and algorithm 1.

A student and a teacher (the student's moving average) see different views of an image. With heads g and K prototypes,

    P_s = softmax(g_s / tau_s),     P_t = softmax((g_t - c) / tau_t),        tau_t < tau_s         (1)
    L = mean over ordered pairs of different views of  - sum_k P_t log P_s                          (2)
    c <- m c + (1 - m) mean(g_t)                                                                    (3)
    teacher <- d teacher + (1 - d) student                                                          (4)

Centring (3) and sharpening (tau_t < tau_s) keep both from the two kinds of collapse. The head is a two-layer perceptron, an L2
normalisation and a weight-normalised linear layer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.algorithms.augmentation import views

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
CENTRE_DECAY, TEACHER_DECAY = 0.9, 0.99
PROTOTYPES, HIDDEN, BOTTLENECK = 256, 128, 32

Features = Callable[[PyTree, Float[Array, "batch h w c"]], Float[Array, "batch dim"]]


class State(NamedTuple):
    """Student, teacher (each {"encoder", "head"}) and centre."""

    student: PyTree
    teacher: PyTree
    centre: Float[Array, " prototypes"]


def init(key: Key[Array, ""], encoder: PyTree, feature_dim: int) -> State:
    """Adds a head to an encoder and copies both to the teacher.

    Args:
        key: A key.
        encoder: Fresh encoder weights.
        feature_dim: Size of the pooled feature.

    Returns:
        The state.
    """
    keys = jax.random.split(key, 3)
    sizes = [(feature_dim, HIDDEN), (HIDDEN, BOTTLENECK), (BOTTLENECK, PROTOTYPES)]
    head = [jax.random.normal(k, size) / jnp.sqrt(size[0]) for k, size in zip(keys, sizes, strict=True)]
    student = {"encoder": encoder, "head": head}
    return State(student, jax.tree.map(jnp.array, student), jnp.zeros(PROTOTYPES))


def head(weights: list, features: Float[Array, "batch dim"]) -> Float[Array, "batch prototypes"]:
    """The projection head g.

    Args:
        weights: From `init`.
        features: Pooled features.

    Returns:
        Cosines with the prototypes.
    """
    z = jax.nn.gelu(features @ weights[0]) @ weights[1]
    z = z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-6)
    prototypes = weights[2] / jnp.linalg.norm(weights[2], axis=0, keepdims=True)
    return z @ prototypes


def loss(
    student: PyTree, state: State, features: Features, images: Float[Array, "batch h w c"], key: Key[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, "rows prototypes"]]:
    """The objective (2) on two views.

    Args:
        student: What it is differentiated by.
        state: Teacher and centre.
        features: (encoder weights, images) -> pooled features.
        images: A batch.
        key: Draws the views.

    Returns:
        The loss, and the teacher's outputs for (3).
    """
    first, second = (views(k, images) for k in jax.random.split(key))
    both = jnp.concatenate([first, second])
    taught = head(state.teacher["head"], features(state.teacher["encoder"], both))
    taught = jax.lax.stop_gradient(taught)
    target = jax.nn.softmax((taught - state.centre) / TEACHER_TEMPERATURE)  # (1)
    swapped = jnp.roll(target, len(images), axis=0)
    said = jax.nn.log_softmax(head(student["head"], features(student["encoder"], both)) / STUDENT_TEMPERATURE)
    return -jnp.mean(jnp.sum(swapped * said, axis=-1)), taught  # (2)


def update(
    state: State,
    opt_state: optax.OptState,
    optimizer: optax.GradientTransformation,
    features: Features,
    images: Float[Array, "batch h w c"],
    key: Key[Array, ""],
) -> tuple[State, optax.OptState, Float[Array, ""]]:
    """One training step.

    Args:
        state: Before.
        opt_state: The optimizer's, for the student.
        optimizer: Any optax transformation.
        features: (encoder weights, images) -> pooled features.
        images: A batch.
        key: Draws the views.

    Returns:
        The state and optimizer state after, and the loss.
    """
    (value, taught), grads = jax.value_and_grad(loss, has_aux=True)(state.student, state, features, images, key)
    updates, opt_state = optimizer.update(grads, opt_state, state.student)
    student = optax.apply_updates(state.student, updates)
    teacher = optax.incremental_update(student, state.teacher, 1 - TEACHER_DECAY)  # (4)
    centre = CENTRE_DECAY * state.centre + (1 - CENTRE_DECAY) * taught.mean(axis=0)  # (3)
    return State(student, teacher, centre), opt_state, value


def trainable(state: State) -> PyTree:
    """What the optimizer's state is made for.

    Args:
        state: The state.

    Returns:
        The student.
    """
    return state.student


def result(state: State) -> PyTree:
    """The encoder that is kept: the teacher's.

    Args:
        state: The last one.

    Returns:
        Encoder weights.
    """
    return state.teacher["encoder"]
