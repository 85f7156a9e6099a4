"""Devices and where arrays lie on them: batch over data x fsdp, weights over fsdp and tensor by `sharding_rules.py`."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdrl.errors import UserError
from jaxdrl.training import sharding_rules

AXES = ("data", "fsdp", "tensor")

Tree = TypeVar("Tree")


def create_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays devices out as (data, fsdp, tensor).

    Args:
        data: Size of the data axis; -1 takes what the others leave.
        fsdp: Size of the axis over which weights and batch are sharded.
        tensor: Size of the tensor axis.
        devices: Which; None: all that are here.

    Returns:
        A mesh with Auto axes.

    Raises:
        UserError: If the sizes do not multiply to the number of devices.
    """
    count, where = (jax.device_count(), "here") if devices is None else (len(devices), "of the topology")
    if data == -1 and count % (fsdp * tensor) == 0:
        data = count // (fsdp * tensor)
    if data * fsdp * tensor != count or min(data, fsdp, tensor) < 1:
        raise UserError(f"config.mesh: data={data} x fsdp={fsdp} x tensor={tensor} must multiply to the {count} devices {where}")
    # `jax.make_mesh` refuses to split an axis of a torus: fsdp=32 on 8 x 8 chips.
    laid_out = mesh_utils.create_device_mesh((data, fsdp, tensor), devices, allow_split_physical_axes=True)
    return Mesh(laid_out, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over data x fsdp.

    Args:
        mesh: From `create_mesh`.

    Returns:
        A sharding for batches.
    """
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shardings(tree: Tree, mesh: Mesh | AbstractMesh, axes: Sequence[str] = ("fsdp", "tensor")) -> Tree:
    """Where each leaf of a train state lies, by its path.

    Args:
        tree: Arrays or shapes.
        mesh: From `create_mesh`.
        axes: Over which of the mesh's axes weights are cut.

    Returns:
        The same structure with shardings.
    """
    found = sharding_rules.specs(tree, {name: mesh.shape[name] for name in axes})
    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), found, is_leaf=is_spec)


def place(tree: Tree, mesh: Mesh) -> Tree:
    """Copies a tree of weights or states to the devices.

    Args:
        tree: Arrays.
        mesh: From `create_mesh`.

    Returns:
        The tree, laid out by `shardings`.
    """
    return jax.device_put(tree, shardings(tree, mesh))


def build(make: Callable[..., Tree], mesh: Mesh, *args: Any) -> Tree:
    """Computes a train state where it lies: no device ever holds more than its part.

    Args:
        make: (*args) -> arrays.
        mesh: From `create_mesh`.
        *args: Trees of weights, which are placed first.

    Returns:
        What `make` gives, laid out by `shardings`, in buffers of its own.
    """
    where = shardings(jax.eval_shape(make, *args), mesh)
    # Copies, since what a compiled function returns as it was given shares its buffer.
    made = jax.jit(lambda *args: jax.tree.map(jnp.copy, make(*args)), out_shardings=where)
    return made(*(place(tree, mesh) for tree in args))


def constrain(tree: Tree, mesh: Mesh) -> Tree:
    """Inside jit: keeps a tree laid out by `shardings`.

    The gradient with respect to a tree that is constrained where it is used comes back in the same layout; otherwise the compiler may
    give every device all of it.

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
