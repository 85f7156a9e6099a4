"""The train state, its optimizer and one update, for every stage that trains a network."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that training changes.

    Attributes:
        step: Gradient steps taken, int32.
        params: The weights that are differentiated, float32.
        ema: Their exponential moving average, or None.
        opt_state: The optimizer's state.
    """

    step: PyTree
    params: PyTree
    ema: PyTree
    opt_state: optax.OptState


def create(params: PyTree, optimizer: optax.GradientTransformation, ema_decay: float = 0.0) -> TrainState:
    """The state at step 0.

    Args:
        params: Initial weights.
        optimizer: From `make_optimizer`.
        ema_decay: 0 keeps no average.

    Returns:
        A state whose average, if any, is a copy of the weights.
    """
    ema = jax.tree.map(jnp.array, params) if ema_decay > 0 else None
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=optimizer.init(params))


def apply_gradients(
    state: TrainState, grads: PyTree, optimizer: optax.GradientTransformation, ema_decay: float = 0.0
) -> TrainState:
    """One optimizer step, and one step of the average.

    Args:
        state: Before.
        grads: Same structure as the weights.
        optimizer: From `make_optimizer`.
        ema_decay: d in ema <- d ema + (1 - d) params; the same as given to `create`.

    Returns:
        The state after.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema if state.ema is None else optax.incremental_update(params, state.ema, 1 - ema_decay)
    return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    hold_steps: int = 0,
    total_steps: int = 0,
    decay: str = "constant",
    grad_clip: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Adam with linear warm-up, an optional decay to 0 and an optional clip of the global norm.

    Args:
        learning_rate: At its highest.
        warmup_steps: From 0 linearly.
        hold_steps: The rate stays at its highest until this step at least; then the decay begins.
        total_steps: Where the decay ends; unused for "constant".
        decay: "constant", "linear" or "cosine".
        grad_clip: Global norm, 0 for none.
        b1: Adam's first decay.
        b2: Adam's second decay.

    Returns:
        The transformation and its learning-rate schedule.

    Raises:
        ValueError: If the decay is unknown.
    """
    hold = max(hold_steps, warmup_steps)
    rest = max(total_steps - hold, 1)
    tails = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(learning_rate, rest),
    }
    if decay not in tails:
        raise ValueError(f"decay must be one of {', '.join(tails)}, got {decay!r}")
    warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
    schedule = optax.join_schedules([warmup, tails["constant"], tails[decay]], [warmup_steps, hold])
    parts = [optax.clip_by_global_norm(grad_clip)] if grad_clip > 0 else []
    return optax.chain(*parts, optax.adam(schedule, b1=b1, b2=b2)), schedule


def norms(before: PyTree, after: PyTree, grads: PyTree) -> dict[str, Float[Array, ""]]:
    """The norms that are logged with every update.

    Args:
        before: Weights before the update.
        after: Weights after it.
        grads: The gradient.

    Returns:
        `gradient_norm`, `update_norm` and `parameter_norm`.
    """
    difference = jax.tree.map(jnp.subtract, after, before)
    return {
        "gradient_norm": optax.tree.norm(grads),
        "update_norm": optax.tree.norm(difference),
        "parameter_norm": optax.tree.norm(after),
    }
