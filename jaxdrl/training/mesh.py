"""Devices and where arrays lie on them: batch over data x fsdp, large weights over fsdp."""

from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdrl.errors import UserError

AXES = ("data", "fsdp", "tensor")
_SMALLEST_SHARDED = 2**14

Tree = TypeVar("Tree")


def create_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Lays all devices out as (data, fsdp, tensor).

    Args:
        data: Size of the data axis; -1 takes what the others leave.
        fsdp: Size of the axis over which weights and batch are sharded.
        tensor: Size of the tensor axis.

    Returns:
        A mesh with Auto axes.

    Raises:
        UserError: If the sizes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    if data == -1 and devices % (fsdp * tensor) == 0:
        data = devices // (fsdp * tensor)
    if data * fsdp * tensor != devices or min(data, fsdp, tensor) < 1:
        raise UserError(f"config.mesh: data={data} x fsdp={fsdp} x tensor={tensor} must multiply to the {devices} devices here")
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over data x fsdp.

    Args:
        mesh: From `create_mesh`.

    Returns:
        A sharding for batches.
    """
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Where each leaf of a train state lies: the largest divisible axis of a large leaf over fsdp, all else replicated.

    Args:
        tree: Arrays or shapes.
        mesh: From `create_mesh`.

    Returns:
        The same structure with shardings.
    """

    def rule(leaf) -> NamedSharding:
        size = mesh.shape["fsdp"]
        axes = [i for i in range(leaf.ndim) if leaf.shape[i] % size == 0]
        if size == 1 or not axes or leaf.size < _SMALLEST_SHARDED:
            return NamedSharding(mesh, PartitionSpec())
        largest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(mesh, PartitionSpec(*[("fsdp" if i == largest else None) for i in range(leaf.ndim)]))

    return jax.tree.map(rule, tree)


def place(tree: Tree, mesh: Mesh) -> Tree:
    """Copies a tree of weights or states to the devices.

    Args:
        tree: Arrays.
        mesh: From `create_mesh`.

    Returns:
        The tree, laid out by `shardings`.
    """
    return jax.device_put(tree, shardings(tree, mesh))


def constrain(tree: Tree, mesh: Mesh) -> Tree:
    """Inside jit: keeps a tree (gradients above all, which come back replicated otherwise) laid out by `shardings`.

    Args:
        tree: Traced arrays.
        mesh: From `create_mesh`.

    Returns:
        The constrained tree.
    """
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def constrain_batch(tree: Tree, mesh: Mesh) -> Tree:
    """Inside jit: keeps the first axis of every leaf over data x fsdp where it divides.

    Args:
        tree: Traced arrays with the batch first.
        mesh: From `create_mesh`.

    Returns:
        The constrained tree.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    target = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, target) if leaf.shape[0] % ways == 0 else leaf, tree)


def on_this_process(tree: Tree, mesh: Mesh) -> Tree:
    """Whole weights where this process can read them, whatever part of them its devices hold; all processes must call it.

    Args:
        tree: Arrays on the mesh.
        mesh: From `create_mesh`.

    Returns:
        The tree itself in a run of one process, otherwise copies on one device of this process.
    """
    if jax.process_count() == 1:
        return tree
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
