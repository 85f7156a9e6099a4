"""What the methods of post-training share: what they read, how rollouts are cut, and the optimizer."""

from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from jaxdrl import rewards as reward_functions
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.rewards.combine import Reward
from jaxdrl.training import models, state


class Frozen(NamedTuple):
    """What the step reads and never changes: the KL reference and the way from its space to the reward."""

    base: PyTree
    tokenizer: PyTree
    encoder: PyTree
    head: PyTree


def rewards(config: Config, encoder: PyTree | None, head: PyTree | None) -> list[Reward]:
    """The rewards of `config.posttrain.rewards`; the discriminator's logit is given its weights.

    Args:
        config: A run's config.
        encoder: Weights of the reward encoder; None where no reward is going to be computed.
        head: The discriminator's.

    Returns:
        Rewards, in the config's order.

    Raises:
        UserError: Naming the key of a reward or a field that is unknown.
    """
    found = []
    for label, given in dict(config.posttrain.rewards).items():
        fields = {key: models.tuple_of(value) for key, value in dict(given).items()}
        name = fields.pop("name", label)
        if name == "discriminator":
            encode = models.features(config, "reward")
            fields |= {"params": head, "features": lambda images, encode=encode: encode(encoder, images)}
        try:
            found.append(reward_functions.create(name, label=label, **fields))
        except UserError as error:
            raise UserError(f"config.posttrain.rewards.{label}: {error}") from error
    return found


def in_chunks(collect, noise, labels, key, size: int):
    """Collects `size` trajectories at a time, one after the other: less memory, and better caching on CPU.

    Args:
        collect: (noise, labels, key) as one tuple -> (buffer, metrics).
        noise: [batch, ...].
        labels: [batch].
        key: Split over the chunks.
        size: 0: all at once.

    Returns:
        (buffer, metrics) of all, metrics averaged.
    """
    if size in (0, len(noise)):
        return collect((noise, labels, key))
    chunks = len(noise) // size
    # Interleaved, so that a chunk of a batch that is sharded over devices lies on all of them.
    split = lambda values: values.reshape((size, chunks, *values.shape[1:])).swapaxes(0, 1)  # noqa: E731
    buffer, metrics = jax.lax.map(collect, (split(noise), split(labels), jax.random.split(key, chunks)))
    join = lambda values: values.swapaxes(0, 1).reshape((len(noise), *values.shape[2:]))  # noqa: E731
    return jax.tree.map(join, buffer), jax.tree.map(lambda values: values.mean(axis=0), metrics)


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
