"""Rewards on the host within a refresh: every process scores the images that lie on its devices, and all agree on what failed.

A reward that fails (see `rewards/supervised.py`) on one process has failed on all: its column is NaN, which to advantages means "does not
apply". Too many failures end the run *before* anything is learnt from the refresh. Its trajectories depend on the checkpoint and on the
run's key alone, so the same command draws them again. A refresh with a masked reward has learnt from the others; its weights are not those of a run in
which nothing failed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.evaluation import hosts
from jaxdrl.rewards import supervised
from jaxdrl.rewards.combine import Reward
from jaxdrl.training import mesh, models

_ERROR_BYTES = 200


class RewardsFailed(UserError):
    """Raised before a refresh changes the state: the run is to be checkpointed and ended."""


class Scored(NamedTuple):
    """What the host gave, on every device.

    Attributes:
        values: A column a reward on the host, in the order of the config; NaN where it does not apply or failed.
        failed: Which gave nothing, on any process.
    """

    values: Float[Array, "batch h"]
    failed: Bool[Array, " h"]


def settings_from(config: Config) -> supervised.Settings:
    """Reads `config.posttrain.host`.

    Args:
        config: A run's config.

    Returns:
        The settings.

    Raises:
        UserError: If a value is out of range.
    """
    options = config.posttrain.host
    if options.patience < 1:
        raise UserError(f"config.posttrain.host.patience ({options.patience}) must be at least 1")
    try:
        same = ("timeout_seconds", "retries", "backoff_seconds", "isolate")
        return supervised.Settings(**{key: options[key] for key in same})
    except ValueError as error:
        raise UserError(f"config.posttrain.host: {error}") from error


def fields_of(config: Config, label: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says of a reward; a remote one gets the time that an attempt has.

    Args:
        config: A run's config.
        label: Of the reward.
        given: Its fields in the config.

    Returns:
        Fields of `rewards.create`, with `name` where it is not the label.
    """
    fields = {key: models.tuple_of(value) for key, value in given.items()}
    if fields.get("name", label) == "remote":
        # A little less: its own error says more than that of a thread that is left behind.
        fields = {"timeout_seconds": 0.95 * config.posttrain.host.timeout_seconds} | fields
    return fields


def laid_out(tree: PyTree, devices: jax.sharding.Mesh) -> PyTree:
    """Inside jit: lays rows over data x fsdp, or whole on every device where they do not divide.

    Args:
        tree: Arrays with the batch first.
        devices: The mesh.

    Returns:
        The constrained tree, as `HostRewards.score` reads it.
    """
    ways, whole = devices.shape["data"] * devices.shape["fsdp"], NamedSharding(devices, PartitionSpec())
    rows = mesh.batch_sharding(devices)
    constrain = jax.lax.with_sharding_constraint
    return jax.tree.map(lambda leaf: constrain(leaf, whole if leaf.shape[0] % ways else rows), tree)


class HostRewards:
    """The rewards of a config that cannot be traced."""

    def __init__(self, config: Config, rewards: Sequence[Reward], devices: jax.sharding.Mesh) -> None:
        """Starts nothing yet.

        Args:
            config: A run's config.
            rewards: All of the config's, in its order.
            devices: The mesh.
        """
        self._options, settings, self._devices = config.posttrain.host, settings_from(config), devices
        self.columns = [index for index, reward in enumerate(rewards) if not reward.traced]
        self._alone = len(self.columns) == len(rewards)
        self._rewards = []
        for reward in (rewards[column] for column in self.columns):
            fields = {"name": reward.name, "label": reward.name} | fields_of(
                config, reward.name, dict(config.posttrain.rewards[reward.name])
            )
            self._rewards.append(supervised.Supervised(reward, settings, fields))

    def score(self, images: Float[Array, "batch h w c"], labels: Int[Array, " batch"]) -> tuple[Scored, list[str]]:
        """Asks every reward for this process's images, and gathers.

        Args:
            images: From `laid_out`.
            labels: From `laid_out`.

        Returns:
            What all processes found, and an error a reward, empty where there is none.
        """
        (rows, mine), (_, conditions) = _local(images), _local(labels)
        found = [reward(mine, conditions) for reward in self._rewards]
        errors = _gathered([outcome.error for outcome in found])
        rows, columns = hosts.concatenate(rows), hosts.concatenate(np.stack([outcome.values for outcome in found], axis=1))
        values = np.full((len(images), len(found)), np.nan, np.float32)
        # Of rows that several processes have, the first one's values count, on all of them.
        values[rows[::-1]] = columns[::-1]
        failed = np.array([bool(error) for error in errors])
        values[:, failed] = np.nan
        return Scored(self._everywhere(values), self._everywhere(failed)), errors

    def judge(self, errors: Sequence[str], failing: Int[np.ndarray, " k"], refresh: int) -> None:
        """Says what failed, in a line a reward; ends the run where that is too much.

        Args:
            errors: From `score`.
            failing: In how many refreshes in a row, up to the one before, each reward of the config failed.
            refresh: The number of this refresh, from 1.

        Raises:
            RewardsFailed: If every reward of the config failed, or one did in `patience` refreshes in a row.
        """
        all_failed = self._alone and all(errors)
        for reward, column, error in zip(self._rewards, self.columns, errors, strict=True):
            times = int(failing[column]) + 1
            if error and (all_failed or times >= self._options.patience):
                why = "and there is no other that did not" if all_failed else f"in {times} refreshes in a row"
                raise RewardsFailed(
                    f"posttrain: stopped before learning from refresh {refresh}: reward {reward.name} failed, {why} ({error}); "
                    f"mend it or change config.posttrain.host, and the same command goes on with refresh {refresh}, from the same images"
                )
            if error:
                print(
                    f"posttrain: warning at refresh {refresh}: reward {reward.name} failed in {self._options.retries + 1} attempts "
                    f"({error}); it does not count in this refresh, and the run stops at {self._options.patience} in a row",
                    flush=True,
                )

    def _everywhere(self, array: np.ndarray) -> Array:
        whole = NamedSharding(self._devices, PartitionSpec())
        return jax.make_array_from_callback(array.shape, whole, lambda index: array[index])


def masked(
    values: Float[Array, "batch k"], labels: Int[Array, " batch"], rewards: Sequence[Reward], failed: Bool[Array, " k"]
) -> tuple[Float[Array, "batch k"], Bool[Array, " batch"], dict[str, Float[Array, ""]]]:
    """Inside jit: makes what is not finite undefined, and counts it where the reward applies.

    Args:
        values: Of all rewards.
        labels: Of the images.
        rewards: The K rewards of the config.
        failed: Which gave nothing at all; those values are not counted again.

    Returns:
        Values that are finite or NaN; which samples lack a value that others have, of any reward that applies to them; and metrics:
        `reward_not_finite/NAME`, a share of the images to which the reward applies, and `reward_failures/NAME`, 0 or 1, of rewards
        on the host.
    """
    finite, lost, metrics = jnp.isfinite(values), jnp.zeros(len(labels), bool), {}
    for index, reward in enumerate(rewards):
        concerned = jnp.ones(len(labels), bool)
        if reward.classes is not None:
            concerned = jnp.isin(labels, jnp.asarray(reward.classes, jnp.int32))
        if reward.selective:
            concerned &= ~jnp.isnan(values[:, index])
        broken = concerned & ~finite[:, index] & ~failed[index]
        lost |= broken & finite[:, index].any()
        metrics[f"reward_not_finite/{reward.name}"] = broken.sum() / jnp.maximum(concerned.sum(), 1)
        if not reward.traced:
            metrics[f"reward_failures/{reward.name}"] = failed[index].astype(jnp.float32)
    return jnp.where(finite, values, jnp.nan), lost, metrics


def _local(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rows of an array that lie on this process's devices, each once: (their numbers, the rows)."""
    parts = {}
    for shard in array.addressable_shards:
        parts.setdefault(shard.index[0].start or 0, shard.data)
    starts = sorted(parts)
    numbers = [np.arange(start, start + len(parts[start])) for start in starts]
    return np.concatenate(numbers), np.concatenate([np.asarray(parts[start]) for start in starts])


def _gathered(errors: Sequence[str]) -> list[str]:
    """For each reward the error of the first process that has one: all say, and do, the same."""
    block = np.zeros((len(errors), _ERROR_BYTES), np.uint8)
    for row, error in zip(block, errors, strict=True):
        content = error.encode()[:_ERROR_BYTES]
        row[: len(content)] = np.frombuffer(content, np.uint8)
    found = [[bytes(row).rstrip(b"\0").decode(errors="ignore") for row in part] for part in hosts.gather(block)]
    return [next(filter(None, said), "") for said in zip(*found, strict=True)]
