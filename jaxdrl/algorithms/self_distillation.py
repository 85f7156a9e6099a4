r"""Self-distillation with no labels: how the reward's encoder is trained.

Sources: Caron et al., "DINO", arXiv 2104.14294, section 3 and algorithm 1; Oquab et al., "DINOv2", arXiv 2304.07193, section 4 (the
Sinkhorn-Knopp assignment and the KoLeo regulariser, which a network this small needs against collapse).

A student and a teacher (the student's moving average) see different views of an image. With heads g and K prototypes,

    P_s = softmax(g_s / tau_s),     P_t = SinkhornKnopp(g_t / tau_t),        tau_t < tau_s          (1)
    L_dino = mean over both views of  - sum_k P_t(other view) log P_s(this view)                    (2)
    L_koleo = - (1 / n) sum_i log min_{j != i} | f_i - f_j |,     f the unit-norm pooled features   (3)
    L = L_dino + 0.1 L_koleo                                                                        (4)
    teacher <- d teacher + (1 - d) student                                                          (5)

Sinkhorn-Knopp makes the teacher use all prototypes equally often within a batch (three normalisations of rows and columns); it
takes the place of DINO's centring. The head is a two-layer perceptron, an L2 normalisation and a weight-normalised linear layer.
Measured on the digits (1500 steps, seed 0): without (3) nearest-neighbour accuracy .68 and effective rank 2.3 of 48 features;
with it .84 and 29.9; with DINO's centring and (3) .83 and 24.1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.algorithms.augmentation import views

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, TEACHER_DECAY = 0.1, 0.05, 0.99
KOLEO_WEIGHT, SINKHORN_ITERATIONS = 0.1, 3
PROTOTYPES, HIDDEN, BOTTLENECK = 256, 128, 32

Features = Callable[[PyTree, Float[Array, "batch h w c"]], Float[Array, "batch dim"]]


class State(NamedTuple):
    """Student and teacher, each {"encoder", "head"}."""

    student: PyTree
    teacher: PyTree


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
    return State(student, jax.tree.map(jnp.array, student))


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


def sinkhorn_knopp(scores: Float[Array, "rows prototypes"]) -> Float[Array, "rows prototypes"]:
    """The teacher's assignment (1): rows sum to 1, prototypes are used (nearly) equally often.

    Args:
        scores: Outputs of the head.

    Returns:
        Probabilities.
    """
    plan = jnp.exp((scores - scores.max()) / TEACHER_TEMPERATURE)
    for _ in range(SINKHORN_ITERATIONS):
        plan = plan / plan.sum(axis=0, keepdims=True)
        plan = plan / plan.sum(axis=1, keepdims=True)
    return plan


def koleo(features: Float[Array, "rows dim"]) -> Float[Array, ""]:
    """The regulariser (3): features of a batch spread over the sphere.

    Args:
        features: Pooled features of different images.

    Returns:
        A scalar, lower when nearest neighbours are further apart.
    """
    unit = features / (jnp.linalg.norm(features, axis=-1, keepdims=True) + 1e-6)
    nearest = jnp.argmax(unit @ unit.T - 2 * jnp.eye(len(unit)), axis=1)
    distance = jnp.sqrt(jnp.sum((unit - unit[nearest]) ** 2, axis=-1) + 1e-8)
    return -jnp.mean(jnp.log(distance))


def loss(
    student: PyTree,
    state: State,
    features: Features,
    images: Float[Array, "batch h w c"],
    key: Key[Array, ""],
    strength: float = 1.0,
) -> Float[Array, ""]:
    """The objective (4) on two views.

    Args:
        student: What it is differentiated by.
        state: For the teacher.
        features: (encoder weights, images) -> pooled features.
        images: A batch.
        key: Draws the views.
        strength: Of the augmentation, see `augmentation.views`.

    Returns:
        A scalar.
    """
    both = jnp.concatenate([views(k, images, strength) for k in jax.random.split(key)])
    taught = head(state.teacher["head"], features(state.teacher["encoder"], both))
    target = jnp.roll(jax.lax.stop_gradient(sinkhorn_knopp(taught)), len(images), axis=0)  # (1)
    seen = features(student["encoder"], both)
    said = jax.nn.log_softmax(head(student["head"], seen) / STUDENT_TEMPERATURE)
    distillation = -jnp.mean(jnp.sum(target * said, axis=-1))  # (2)
    return distillation + KOLEO_WEIGHT * (koleo(seen[: len(images)]) + koleo(seen[len(images) :]))  # (4)


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
        opt_state: The optimizer's, for the student.
        optimizer: Any optax transformation.
        features: (encoder weights, images) -> pooled features.
        images: A batch.
        key: Draws the views.
        strength: Of the augmentation, see `augmentation.views`.

    Returns:
        The state and optimizer state after, and the loss.
    """
    value, grads = jax.value_and_grad(loss)(state.student, state, features, images, key, strength)
    updates, opt_state = optimizer.update(grads, opt_state, state.student)
    student = optax.apply_updates(state.student, updates)
    teacher = optax.incremental_update(student, state.teacher, 1 - TEACHER_DECAY)  # (5)
    return State(student, teacher), opt_state, value


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
