r"""One update from K rewards' losses: where the Gram matrix comes from, and what it costs.

Source: "MARBLE", arXiv 2605.06507, equations as numbered in `marble.py`. Per-reward losses share one forward pass, and come as sums

    l_k = S_k(theta) / W_k,    k = 1 .. K,    and last the KL term, outside the program,                        (1)

whose weights W_k do not depend on theta. A pullback of the forward pass turns any c into sum_k c_k grad l_k at the cost of *one* backward
pass, so a step has the cost of a single reward's once c is known. c needs the Gram matrix <g_k, g_l>:

    "exact"       K backward passes at every step; c from (4) of `marble.py`;
    "amortised"   the paper's: exact at every N-th step, c = alpha, averaged over full steps, at the others (unnormalised, as stated there);
    "sketch"      g_k restricted to some layers S, at every step,

                      G_kl = sum_{layers in S} <g_k, g_l>,    G <- rho G + (1 - rho) G_kl of this step.             (2)

                  The backward pass stops behind the last of them, and norms enter (4) of `marble.py` by their ratios only.

S is the last linear layer. Its inputs and the residuals of all rewards are there after the forward pass, so that K rewards cost K
products of a batch of tokens with a batch of residuals, whatever the depth. All layers, S the whole network, are "exact" with an average.
`benchmarks/marble_gram.py` compares choices (numbers: docs/marble.md). On handwritten digits the modulation of the head (adaLN) must
stay out: its gradients depend on classes and times more than on images, and are the longer ones. A part of the batch, with all layers,
costs more and is worse: a minibatch's cosines are mostly its own noise. For the same reason rho is small: the step follows the gradients
of *this* minibatch.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl.balancing import marble
from jaxdrl.balancing.accumulation import accumulate

GRAMS = ("exact", "amortised", "sketch")
Losses = Callable[[PyTree, PyTree], tuple[Float[Array, " k1"], tuple[Float[Array, " k1"], Mapping[str, Any]]]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the Gram matrix comes from.

    Attributes:
        gram: One of `GRAMS`.
        program: Of `marble.py`.
        layers: Regular expressions on the paths of parameters, for "sketch": those that match one are looked at.
        average: rho of the sketched Gram matrix, in [0, 1).
        micro_batches: Parts in which the update's gradient is summed up; the Gram matrix of "sketch" is then that of the first part.
    """

    gram: str = "amortised"
    program: marble.Settings = field(default_factory=marble.Settings)
    layers: tuple[str, ...] = ("^final_.*linear",)
    average: float = 0.3
    micro_batches: int = 1

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one is unknown or out of range.
        """
        if self.gram not in GRAMS:
            raise ValueError(f"gram must be one of {', '.join(GRAMS)}, got {self.gram!r}")
        if not 0 <= self.average < 1 or self.micro_batches < 1 or not self.layers:
            raise ValueError(
                f"average ({self.average}) must be in [0, 1), micro_batches ({self.micro_batches}) at least 1, and layers not empty"
            )


class State(NamedTuple):
    """What is carried from step to step.

    Attributes:
        alpha: (5) of `marble.py`; zeros before the first full step.
        gram: The averaged Gram matrix of the sketch; zeros before the first step.
    """

    alpha: Float[Array, " k"]
    gram: Float[Array, "k k"]


def initial(num_rewards: int) -> State:
    """The state before the first step.

    Args:
        num_rewards: K.

    Returns:
        Zeros.
    """
    return State(jnp.zeros(num_rewards), jnp.zeros((num_rewards, num_rewards)))


def balanced(
    losses: Losses,
    params: PyTree,
    batch: PyTree,
    state: State,
    step: Int[Array, ""],
    settings: Settings,
    plain: Float[Array, " k"] | None = None,
) -> tuple[PyTree, State, dict[str, Float[Array, "..."]]]:
    """The gradient of one step.

    Args:
        losses: (params, part of a batch) -> (sums [K + 1], (weights [K + 1], metrics as name -> (sum, weight))), see (1).
        params: What is differentiated.
        batch: A tree whose leaves have the batch as first axis.
        state: From `initial` or the step before.
        step: Number of the step.
        settings: See `Settings`.
        plain: Coefficients of the sum to compare with, such as that of the raw rewards; None: ones.

    Returns:
        (gradient, state, metrics): besides the losses' own, `alpha` [K], `cosine` [K] (of every reward's gradient, as far as it is known,
        with the update, the KL term left out), `worst_cosine`, the least of them, `worst_cosine_of_sum`, what it would be for the
        plain sum, `conflict_rate` and `gram_norm` [K].
    """
    gradient, state, metrics = _balanced(losses, params, batch, state, step, settings)
    gram = metrics.pop("gram")
    ones = jnp.ones(len(gram)) if plain is None else plain
    usable = jnp.isfinite(jnp.diagonal(gram)) & (jnp.diagonal(gram) > 0)
    worst = lambda cosines: jnp.where(usable.any(), jnp.min(cosines, where=usable, initial=1.0), 0.0)  # noqa: E731
    metrics |= {"worst_cosine": worst(metrics["cosine"]), "worst_cosine_of_sum": worst(marble.cosines(gram, ones))}
    return gradient, state, metrics


def _balanced(losses, params, batch, state: State, step, settings: Settings):
    if settings.gram == "sketch":
        return _sketched(losses, params, batch, state, settings)
    full = marble.is_full_step(step, settings.program) if settings.gram == "amortised" else True
    if full is True:
        return _exact(losses, params, batch, state, settings)
    exact = lambda: _exact(losses, params, batch, state, settings)  # noqa: E731
    return jax.lax.cond(full, exact, lambda: _cached(losses, params, batch, state, settings))


def combined(
    losses: Losses, params: PyTree, batch: PyTree, coefficients: Float[Array, " k1"], micro_batches: int = 1
) -> tuple[PyTree, dict[str, Float[Array, ""]]]:
    """sum_k c_k grad l_k in one backward pass a micro-batch.

    Args:
        losses: As in `balanced`.
        params: What is differentiated.
        batch: As in `balanced`.
        coefficients: c, one a loss.
        micro_batches: In how many parts; with more than one, the weights must not depend on the network's output.

    Returns:
        (gradient, metrics).

    Raises:
        ValueError: If the batch does not divide into so many parts.
    """
    if micro_batches == 1:
        _, pullback, (weights, metrics) = jax.vjp(lambda params: losses(params, batch), params, has_aux=True)
        return pullback(_scale(coefficients, weights))[0], _means(metrics)
    # Of the whole batch: the weights do not depend on the network, which the compiler drops here.
    _, (weights, _) = losses(params, batch)
    scale = _scale(coefficients, weights)

    def part_gradient(part):
        def total(params):
            sums, (_, metrics) = losses(params, part)
            # 0 * NaN is NaN: what has no coefficient does not count.
            return jnp.sum(jnp.where(scale != 0, scale * sums, 0.0)), metrics

        (_, metrics), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return gradient, metrics

    parts = split(batch, micro_batches)
    shapes = jax.eval_shape(part_gradient, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    add = lambda carry, part: (jax.tree.map(jnp.add, carry, part_gradient(part)), None)  # noqa: E731
    (gradient, metrics), _ = jax.lax.scan(add, zeros, parts)
    return gradient, _means(metrics)


def split(batch: PyTree, micro_batches: int) -> PyTree:
    """A batch in equal parts, interleaved, so that a part of a batch that is sharded over devices lies on all of them.

    Args:
        batch: A tree whose leaves have the batch as first axis.
        micro_batches: How many parts.

    Returns:
        The tree with the parts as first axis.

    Raises:
        ValueError: If the batch does not divide.
    """
    size = len(jax.tree.leaves(batch)[0])
    if size % micro_batches:
        raise ValueError(f"a batch of {size} does not divide into {micro_batches} micro-batches")
    return jax.tree.map(lambda leaf: leaf.reshape((size // micro_batches, micro_batches, *leaf.shape[1:])).swapaxes(0, 1), batch)


def _scale(coefficients: Float[Array, " k1"], weights: Float[Array, " k1"]) -> Float[Array, " k1"]:
    return jnp.where(weights > 0, coefficients / jnp.where(weights > 0, weights, 1.0), 0.0)


def _means(metrics: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    return {
        name: jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0) for name, (total, weight) in metrics.items()
    }


def _exact(losses, params, batch, state: State, settings: Settings):
    gradients, metrics = accumulate(losses, params, batch, settings.micro_batches)
    rewards = jax.tree.map(lambda leaf: leaf[:-1], gradients)
    gram = marble.gram(rewards)
    alpha, norms = marble.balance(gram, settings.program)
    coefficients = marble.direction_coefficients(alpha, norms, settings.program)
    direction = jax.tree.map(lambda update, leaf: update + leaf[-1], marble.weighted_sum(rewards, coefficients), gradients)
    state = State(marble.smooth(state.alpha, alpha, settings.program.decay), gram)
    return direction, state, metrics | _diagnostics(gram, alpha, coefficients)


def _cached(losses, params, batch, state: State, settings: Settings):
    """A step between two full ones; the Gram matrix shown is the last full step's."""
    coefficients = jnp.append(state.alpha, 1.0)
    gradient, metrics = combined(losses, params, batch, coefficients, settings.micro_batches)
    return gradient, state, metrics | _diagnostics(state.gram, state.alpha, state.alpha)


def _sketched(losses, params, batch, state: State, settings: Settings):
    chosen = matching(params, settings.layers)
    part = jax.tree.map(lambda leaf: leaf[0], split(batch, settings.micro_batches))
    total, pullback, (weights, metrics) = jax.vjp(lambda params: losses(params, part), params, has_aux=True)
    units = jnp.diag(jnp.where(weights > 0, 1 / jnp.where(weights > 0, weights, 1.0), 0.0)).astype(total.dtype)
    # Leaves that are not chosen are never used: the compiler ends the backward pass behind the last that is.
    few = jax.vmap(lambda row: [leaf for leaf, take in zip(jax.tree.leaves(pullback(row)[0]), chosen, strict=True) if take])
    gram = marble.gram(few(units[:-1]))
    usable = jnp.isfinite(gram).all()
    mixed = settings.average * state.gram + (1 - settings.average) * gram
    averaged = jnp.where(usable, jnp.where((state.gram != 0).any(), mixed, gram), state.gram)
    alpha, norms = marble.balance(averaged, settings.program)
    coefficients = marble.direction_coefficients(alpha, norms, settings.program)
    if settings.micro_batches == 1:
        gradient = pullback(jnp.append(coefficients, 1.0) @ units)[0]
        metrics = _means(metrics)
    else:
        gradient, metrics = combined(losses, params, batch, jnp.append(coefficients, 1.0), settings.micro_batches)
    state = State(alpha, averaged)
    return gradient, state, metrics | _diagnostics(averaged, alpha, coefficients)


def matching(params: PyTree, patterns: tuple[str, ...]) -> list[bool]:
    """Which leaves a sketch looks at.

    Args:
        params: The tree.
        patterns: Regular expressions on paths such as "final_layer/linear/kernel".

    Returns:
        One truth a leaf, in the tree's order.

    Raises:
        ValueError: If no leaf matches.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [
        "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path) for path, _ in leaves
    ]
    chosen = [any(re.search(pattern, path) for pattern in patterns) for path in paths]
    if not any(chosen):
        raise ValueError(f"no parameter matches {', '.join(patterns)}; there are {', '.join(paths[:8])} ...")
    return chosen


def _diagnostics(gram, alpha, coefficients) -> dict[str, Float[Array, "..."]]:
    return {
        "alpha": alpha,
        "cosine": marble.cosines(gram, coefficients),
        "conflict_rate": marble.conflict_rate(gram),
        "gram_norm": jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0)),
        "gram": gram,
    }
