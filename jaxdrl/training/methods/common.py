"""What the methods of post-training share: their rewards and the balance of these, adapters, how rollouts are cut, and the optimizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxdrl import rewards as reward_functions
from jaxdrl.balancing import gradients, marble
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.rewards.combine import Reward
from jaxdrl.rewards.preference import PUBLISHED
from jaxdrl.training import lora, models, preference, state
from jaxdrl.training.methods import scoring


class Frozen(NamedTuple):
    """What the step reads and never changes: the KL reference and the way from its space to the rewards.

    Attributes:
        base: The KL reference.
        tokenizer: Decodes samples.
        encoder: The reward encoder, of the discriminator and the class head.
        head: The discriminator's.
        rewards: Label -> weights, of rewards that have their own, from `training/reward_weights.py`.
    """

    base: PyTree
    tokenizer: PyTree
    encoder: PyTree
    head: PyTree
    rewards: Mapping[str, PyTree] = {}


def in_chunks(collect, noise, labels, key, size: int, *, joined: bool = True):
    """Collects `size` trajectories at a time, one after the other: less memory, and better caching on CPU.

    Args:
        collect: (noise, labels, key) as one tuple -> (buffer, metrics).
        noise: [batch, ...].
        labels: [batch].
        key: Split over the chunks.
        size: 0: all at once.
        joined: Whether chunks are put together again; otherwise they are the first axis, even of one.

    Returns:
        (buffer, metrics) of all, metrics averaged.
    """
    if joined and size in (0, len(noise)):
        return collect((noise, labels, key))
    chunks = len(noise) // (size or len(noise))
    size = len(noise) // chunks
    # Interleaved, so that a chunk of a batch that is sharded over devices lies on all of them.
    split = lambda values: values.reshape((size, chunks, *values.shape[1:])).swapaxes(0, 1)  # noqa: E731
    keys = jax.random.split(key, chunks) if chunks > 1 else key[None]
    buffer, metrics = jax.lax.map(collect, (split(noise), split(labels), keys))
    if not joined:
        return buffer, jax.tree.map(lambda values: values.mean(axis=0), metrics)
    join = lambda values: values.swapaxes(0, 1).reshape((len(noise), *values.shape[2:]))  # noqa: E731
    return jax.tree.map(join, buffer), jax.tree.map(lambda values: values.mean(axis=0), metrics)


def in_parts(score: Callable[..., Any], samples: Float[Array, "batch ..."], labels: Int[Array, " batch"], size: int) -> Any:
    """Decodes and rewards `size` samples at a time: what decoder and encoder keep for the reward's gradient is of so many alone.

    Args:
        score: (samples, labels) -> arrays with the samples first, each of its sample alone.
        samples: What is scored.
        labels: Their conditions.
        size: Divides the batch; 0: all at once.

    Returns:
        What `score` gives; its gradient scores twice.
    """
    if size in (0, len(samples)):
        return score(samples, labels)
    # Interleaved, as in `in_chunks`.
    split = lambda values: values.reshape((size, -1, *values.shape[1:])).swapaxes(0, 1)  # noqa: E731
    # Without `checkpoint`, the loop would keep what every part keeps.
    found = jax.lax.map(jax.checkpoint(lambda part: score(*part)), (split(samples), split(labels)))
    return jax.tree.map(lambda values: values.swapaxes(0, 1).reshape((len(samples), *values.shape[2:])), found)


def optimizer(config: Config):
    """Reads the optimizer of `config.posttrain`.

    Args:
        config: A run's config.

    Returns:
        An optax transformation and its schedule.
    """
    options = config.posttrain
    return state.make_optimizer(
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        total_steps=options.refreshes * options.epochs * (options.buffer_size // options.batch_size),
        decay=options.decay,
        grad_clip=options.grad_clip,
    )


def rewards(config: Config, weights: Frozen | None = None, *, measured: bool = False) -> list[Reward]:
    """The rewards of `config.posttrain.rewards`, with their weights bound.

    Args:
        config: A run's config.
        weights: Encoder, discriminator and others; None where rewards are asked for their names and kinds only.
        measured: Whether those of `config.evaluate.rewards` follow.

    Returns:
        The rewards, in the config's order.

    Raises:
        UserError: If a name or a field is unknown, a needed field is missing, or a label is given twice.
    """
    known, asked = weights or Frozen(None, None, None, None), dict(config.posttrain.rewards)
    twice = sorted(set(asked) & set(dict(config.evaluate.rewards)))
    if twice:
        raise UserError(f"config.evaluate.rewards.{twice[0]} is a label of config.posttrain.rewards, and measured in any case")
    groups = {"posttrain": asked} | ({"evaluate": dict(config.evaluate.rewards)} if measured else {})
    found = []
    for group, named in groups.items():
        for label, given in named.items():
            try:
                found.append(_reward(config, label, dict(given), known))
            except UserError as error:
                raise UserError(f"config.{group}.rewards.{label}: {error}") from error
    return found


def _reward(config: Config, label: str, given: Mapping[str, Any], weights: Frozen) -> Reward:
    fields = scoring.fields_of(config, label, given)
    name, own = fields.pop("name", label), weights.rewards.get(label) or {}
    through = lambda which, params: lambda images: jax.named_scope("encode")(models.features(config, which))(params, images)  # noqa: E731
    if name == "discriminator":
        fields |= {"params": weights.head, "features": through("reward", weights.encoder)}
    elif name == "class_confidence":
        fields |= {"head": own, "features": through("reward", weights.encoder)}
    elif name == "bradley_terry":
        preference.check(config)
        fields |= {"head": own.get("head"), "features": through("preference", own.get("encoder"))}
    elif name in PUBLISHED:
        model, _ = models.reward_model(name, given)
        taken = ("weights", "prompt", "class_names", *models.REWARD_SIZES)
        fields = {key: value for key, value in fields.items() if key not in taken}
        # Where only names and kinds are asked for, there are no rows of text yet.
        text = own["text"] if own else model.text and jnp.zeros((config.data.num_classes, 1))
        fields |= {"model": model, "params": own.get("params"), "text": text}
    return reward_functions.create(name, label=label, **fields)


def reward_weights(config: Config, rules: Sequence[str]) -> tuple[float, ...]:
    """Checks `config.posttrain.balance` against the rewards.

    Args:
        config: A run's config.
        rules: Those that the method has.

    Returns:
        One weight a reward, ones where none are given.

    Raises:
        UserError: If the rule is none of these, or the weights do not fit the rewards.
    """
    balance, count = config.posttrain.balance, len(dict(config.posttrain.rewards))
    weights = tuple(float(weight) for weight in balance.weights) or (1.0,) * count
    if balance.rule not in rules:
        raise UserError(f"config.posttrain.balance.rule: {balance.rule!r} must be one of {', '.join(rules)}")
    if balance.rule == "uniform" and balance.weights:
        others = ", ".join(rule for rule in rules if rule != "uniform")
        raise UserError(f"config.posttrain.balance.weights: uniform has none; choose one of {others}, or leave them out")
    if not count or len(weights) != count:
        raise UserError(f"config.posttrain.balance.weights: {len(weights)} weights for {count} rewards")
    return weights


def balance(config: Config, advantage_limit: float = 5.0) -> gradients.Settings:
    """Reads what MARBLE needs of `config.posttrain`.

    Args:
        config: A run's config.
        advantage_limit: A_max of `balancing/marble.py`, for methods that have advantages.

    Returns:
        The settings.

    Raises:
        ValueError: If a value is unknown or out of range.
    """
    options = config.posttrain.balance
    weights = tuple(float(weight) for weight in options.weights) or None
    return gradients.Settings(
        gram=options.gram,
        program=marble.Settings(
            solve_every=options.solve_every, decay=options.decay, advantage_limit=advantage_limit, reward_weights=weights
        ),
        layers=tuple(options.layers),
        average=options.average,
        micro_batches=config.posttrain.micro_batches,
    )


def adapters(options: Any) -> lora.Settings | None:
    """Reads `config.posttrain.lora`.

    Args:
        options: That part of the config.

    Returns:
        The settings, or None: all weights are trained.

    Raises:
        UserError: If a value is out of range.
    """
    if not options.rank:
        return None
    return lora.Settings(rank=options.rank, alpha=options.alpha, targets=tuple(options.targets))


def trained_at_first(config: Config, base: PyTree) -> PyTree:
    """What is trained, before the first step: the base's weights, or adapters that change nothing yet.

    Args:
        config: A run's config.
        base: The base's parameters.

    Returns:
        The base itself, or new adapters.

    Raises:
        UserError: If adapters do not fit the network, or a sketch would look at no parameter.
    """
    options = config.posttrain
    settings = adapters(options.lora)
    tree = base if settings is None else lora.init(base, settings, jax.random.key(config.seed))
    if options.balance.rule == "marble" and options.balance.gram == "sketch":
        try:
            gradients.matching(tree, tuple(options.balance.layers))
        except ValueError as error:
            raise UserError(f"config.posttrain.balance.layers: {error}") from error
    return tree


def merged(settings: lora.Settings | None, base: PyTree, tree: PyTree) -> PyTree:
    """The generator's parameters.

    Args:
        settings: From `adapters`.
        base: The base's parameters.
        tree: What is trained.

    Returns:
        The tree itself, or the base with adapters merged into it.
    """
    return tree if settings is None else lora.merge(base, tree, settings)


def by_reward(measured: dict[str, Float[Array, "..."]], names: Sequence[str]) -> dict[str, Float[Array, ""]]:
    """Vectors over rewards as one number a reward: `alpha/brightness`.

    Args:
        measured: Numbers, and vectors with one entry a reward.
        names: Labels of the rewards.

    Returns:
        Numbers.
    """
    named = {}
    for metric, values in measured.items():
        if values.ndim:
            named |= {f"{metric}/{name}": values[i] for i, name in enumerate(names)}
        else:
            named[metric] = values
    return named


def check_sizes(options: Any) -> None:
    """Refuses sizes that do not fit each other.

    Args:
        options: `config.posttrain`.

    Raises:
        UserError: Naming the keys.
    """
    if options.buffer_size < options.batch_size:
        raise UserError(
            f"config.posttrain.buffer_size ({options.buffer_size}) must be at least batch_size ({options.batch_size})"
        )
    if options.rollout_batch and options.buffer_size % options.rollout_batch:
        raise UserError(
            f"config.posttrain.buffer_size ({options.buffer_size}) must be a multiple of rollout_batch ({options.rollout_batch})"
        )
    together = options.rollout_batch or options.buffer_size
    if options.reward_batch < 0 or (options.reward_batch and together % options.reward_batch):
        raise UserError(
            f"config.posttrain.reward_batch ({options.reward_batch}) must divide what is rolled out at a time ({together}), or be 0"
        )
    if options.micro_batches < 1 or options.batch_size % options.micro_batches:
        raise UserError(
            f"config.posttrain.batch_size ({options.batch_size}) must be a multiple of micro_batches ({options.micro_batches})"
        )
