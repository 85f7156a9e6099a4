"""Where the trajectories of a refresh are kept between rollout and updates, and how minibatches are taken from them.

By default a minibatch is drawn from the whole buffer, trajectory by trajectory; over a mesh that moves every minibatch across devices,
and each device holds all of it for a moment. With `config.posttrain.shuffle_block` = g, trajectories i, i + n / g, i + 2 n / g ... of the n
that are rolled out together stay together: minibatches are drawn from such rows of g, anew each epoch. Where data x fsdp divides g, a row lies
over all devices, and nothing moves. Which trajectories share a minibatch depends on g and on `rollout_batch`, never on the mesh.

Rows can be kept in the host's memory (`config.posttrain.buffer_memory` = "pinned_host") and are then copied to the devices row by row; what is rolled
out together is then one row, so that its arrays are cut along their first axis alone: TPUs slice nothing else there.
"""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PyTree

from jaxdrl.config import Config
from jaxdrl.errors import UserError

DTYPES = ("float32", "bfloat16")
MEMORIES = ("device", "pinned_host")


def check(config: Config, devices: Mesh | None = None) -> None:
    """Refuses what does not fit.

    Args:
        config: A run's config.
        devices: The mesh, where it is known.

    Raises:
        UserError: If a value is unknown, or sizes do not divide.
    """
    options = config.posttrain
    for key, known in (("buffer_dtype", DTYPES), ("buffer_memory", MEMORIES)):
        if options[key] not in known:
            raise UserError(f"config.posttrain.{key}: {options[key]!r} must be one of {', '.join(known)}")
    changed = [key for key, usual in _USUAL.items() if options[key] != usual]
    if options.algorithm != "adjoint_matching" and changed:
        raise UserError(
            f"config.posttrain.{changed[0]}: is for adjoint_matching, whose trajectories fill the memory; leave {_USUAL[changed[0]]}"
        )
    block, together = options.shuffle_block, options.rollout_batch or options.buffer_size
    if block < 1 or math.gcd(options.batch_size, together) % block:
        raise UserError(
            f"config.posttrain.shuffle_block ({block}) must divide batch_size ({options.batch_size}) and "
            f"{'rollout_batch' if options.rollout_batch else 'buffer_size'} ({together})"
        )
    if options.buffer_memory == "pinned_host" and together != block:
        raise UserError(
            f"config.posttrain.buffer_memory: pinned_host keeps what is rolled out together as one row: set shuffle_block ({block}) to "
            f"{'rollout_batch' if options.rollout_batch else 'buffer_size'} ({together}), or rollout_batch to shuffle_block"
        )
    ways = devices.shape["data"] * devices.shape["fsdp"] if devices is not None else 1
    if options.buffer_memory == "pinned_host" and (block == 1 or block % ways):
        raise UserError(
            f"config.posttrain.buffer_memory: pinned_host needs a shuffle_block above 1 that is a multiple of data x fsdp ({ways}), got {block}"
        )


_USUAL = {"buffer_dtype": "float32", "buffer_memory": "device", "shuffle_block": 1}


def in_rows(config: Config, buffer: PyTree, devices: Mesh) -> PyTree:
    """Inside jit: arranges what was rolled out together.

    Args:
        config: A run's config, with a shuffle_block of more than 1.
        buffer: Leaves [n, ...].
        devices: The mesh.

    Returns:
        Leaves [n / g, g, ...], in the memory that the config names; those that are small stay on the device.
    """
    block, where = config.posttrain.shuffle_block, _rows(config, devices, 1)

    def arrange(leaf):
        rows = leaf.reshape(block, -1, *leaf.shape[1:]).swapaxes(0, 1)
        rows = jax.lax.with_sharding_constraint(rows, where)
        return jax.device_put(rows, where.with_memory_kind("pinned_host")) if _on_host(config, leaf.ndim - 1) else rows

    return jax.tree.map(arrange, buffer)


def orders(config: Config, key: Key[Array, ""]) -> Int[Array, "batches rows"]:
    """What the minibatches of an epoch are made of.

    Args:
        config: A run's config.
        key: Of the epoch.

    Returns:
        Numbers of rows, one line a minibatch. What does not fill a batch is left out, other trajectories in each epoch.
    """
    options = config.posttrain
    batches, size = options.buffer_size // options.batch_size, options.batch_size // options.shuffle_block
    order = jax.random.permutation(key, options.buffer_size // options.shuffle_block)
    return order[: batches * size].reshape(batches, size)


def take(config: Config, buffer: PyTree, rows: Int[Array, " rows"], devices: Mesh) -> PyTree:
    """Inside jit: a minibatch.

    Args:
        config: A run's config.
        buffer: Leaves [n, ...]; with a shuffle_block of more than 1 [chunks, n / g, g, ...].
        rows: A line of `orders`.
        devices: The mesh.

    Returns:
        Leaves [batch, ...] on the devices.
    """
    if config.posttrain.shuffle_block == 1:
        return jax.tree.map(lambda leaf: leaf[rows], buffer)

    def pick(leaf):
        on_host = _on_host(config, leaf.ndim - 3)
        # In the hosts' memory a chunk is a row (`check`): nothing else than the first axis is sliced or reshaped there, as TPUs want it.
        listed = leaf if on_host else leaf.reshape(-1, 1, *leaf.shape[2:])

        def row(index):
            index = jax.device_put(index, _whole(devices).with_memory_kind("pinned_host")) if on_host else index
            found = jax.lax.dynamic_index_in_dim(listed, index, keepdims=True)
            return jax.device_put(found, _rows(config, devices, 2))[0, 0]

        # [rows, g, ...]: as in `in_rows`, the axis that lies over the devices comes first.
        return jax.lax.map(row, rows).swapaxes(0, 1).reshape(-1, *leaf.shape[3:])

    return jax.tree.map(pick, buffer)


def _on_host(config: Config, dimensions: int) -> bool:
    """Trajectories are; labels, rewards and masks are not worth the way."""
    return config.posttrain.buffer_memory == "pinned_host" and dimensions > 1


def _whole(devices: Mesh) -> NamedSharding:
    return NamedSharding(devices, PartitionSpec())


def _rows(config: Config, devices: Mesh, axis: int) -> NamedSharding:
    ways = devices.shape["data"] * devices.shape["fsdp"]
    over = ("data", "fsdp") if config.posttrain.shuffle_block % ways == 0 else None
    return NamedSharding(devices, PartitionSpec(*(None,) * axis, over))
