"""The self-distillation objective against a PyTorch re-statement, and the teacher's part in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdrl.algorithms import self_distillation
from jaxdrl.algorithms.augmentation import views


def features(weights, images):
    """A linear encoder, so that the oracle needs no network."""
    return images.reshape(len(images), -1) @ weights


@pytest.fixture
def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    state = self_distillation.init(keys[0], 0.3 * jax.random.normal(keys[1], (16, 6)), 6)
    leaves, structure = jax.tree.flatten(state.teacher)
    other = [leaf + 0.2 * jax.random.normal(keys[2], leaf.shape) for leaf in leaves]
    state = state._replace(teacher=jax.tree.unflatten(structure, other))
    return state, jax.random.uniform(keys[3], (8, 4, 4, 1), minval=-1, maxval=1), jax.random.key(9)


def _torch_loss(state, first, second):
    """DINO algorithm 1 with DINOv2's Sinkhorn-Knopp (columns are samples there) and KoLeo, in float64."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    tensor = lambda tree: jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), dtype=torch.float64), tree)  # noqa: E731
    student, teacher = tensor(state.student), tensor(state.teacher)
    images = [tensor(part).flatten(1) for part in (first, second)]

    def head(weights, z):
        z = functional.normalize(functional.gelu(z @ weights[0], approximate="tanh") @ weights[1], dim=-1)
        return z @ functional.normalize(weights[2], dim=0)

    def assign(scores):
        q = torch.exp(scores / self_distillation.TEACHER_TEMPERATURE).T
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
            q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
        return (q * q.shape[1]).T

    def spread(z):
        z = functional.normalize(z, dim=-1)
        distance = torch.cdist(z, z) + 10 * torch.eye(len(z))
        return -torch.log(distance.min(dim=1).values).mean()

    assigned = assign(torch.cat([head(teacher["head"], x @ teacher["encoder"]) for x in images])).chunk(2)
    seen = [x @ student["encoder"] for x in images]
    said = [torch.log_softmax(head(student["head"], z) / self_distillation.STUDENT_TEMPERATURE, dim=-1) for z in seen]
    crossed = [-(assigned[1 - i] * said[i]).sum(dim=-1).mean() for i in (0, 1)]
    return float(sum(crossed) / 2 + 0.1 * (spread(seen[0]) + spread(seen[1])))


def test_loss_equals_torch_on_the_same_views(problem):
    state, images, key = problem
    first, second = (views(k, images) for k in jax.random.split(key))
    found = jax.jit(lambda state: self_distillation.loss(state.student, state, features, images, key))(state)
    assert float(found) == pytest.approx(_torch_loss(state, first, second), rel=1e-4)


def test_teacher_is_taught_by_the_average_alone(problem):
    """No gradient reaches the teacher; after an update it has moved by exactly (5)."""
    state, images, key = problem
    through = jax.jit(
        jax.grad(lambda teacher: self_distillation.loss(state.student, state._replace(teacher=teacher), features, images, key))
    )
    assert all(not leaf.any() for leaf in jax.tree.leaves(through(state.teacher)))
    optimizer = optax.sgd(0.5)
    after, _, _ = self_distillation.update(state, optimizer.init(state.student), optimizer, features, images, key)
    kept = self_distillation.TEACHER_DECAY
    for old, student, new in zip(*map(jax.tree.leaves, (state.teacher, after.student, after.teacher)), strict=True):
        np.testing.assert_allclose(new, kept * old + (1 - kept) * student, rtol=1e-5, atol=1e-7)
    assert not np.allclose(after.student["encoder"], state.student["encoder"])
    np.testing.assert_array_equal(self_distillation.result(after), after.teacher["encoder"])


def test_a_collapsed_encoder_is_pushed_apart():
    """KoLeo's gradient, unlike the distillation's, grows as features meet."""
    near = jnp.ones((8, 6)) + 1e-3 * jax.random.normal(jax.random.key(1), (8, 6))
    moved = near - 1e-5 * jax.grad(self_distillation.koleo)(near)
    assert float(self_distillation.koleo(moved)) < float(self_distillation.koleo(near))
    apart = jnp.eye(8)[:, :6] + 0.1
    norm = lambda z: float(jnp.linalg.norm(jax.grad(self_distillation.koleo)(z)))  # noqa: E731
    assert norm(near) > 10 * norm(apart)
