"""All devices of one process: the weights on each of them, and to each its share of the rows."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree, Shaped

from jaxdrl.evaluation import hosts


def local_mesh() -> Mesh:
    """All devices of this process in one axis, "data"."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies weights to every device of this process.

    Args:
        tree: Arrays; those of a mesh of several processes lie whole on every device.
        mesh: From `local_mesh`.

    Returns:
        The tree, whole on each device.
    """
    return jax.device_put(hosts.local(tree), NamedSharding(mesh, PartitionSpec()))


def by_rows(function: Callable, params: PyTree) -> Callable[..., Shaped[np.ndarray, "n ..."]]:
    """A compiled function of weights and rows as one of rows alone, computed on all devices of this process.

    The weights stay an argument of the program: as constants in it, large ones would be copied and folded.

    Args:
        function: `function(params, *arrays)`; one output, whose rows depend on the arrays' rows one by one.
        params: Weights; they are copied to the devices here and stay there.

    Returns:
        `f(*arrays)` of arrays of one leading axis -> the output, on the host. Rows that the devices do not divide are filled up with
        zeros, and cut again.
    """
    mesh = local_mesh()
    rows, weights, call = NamedSharding(mesh, PartitionSpec("data")), replicated(params, mesh), jax.jit(function)

    def apply(*arrays: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
        number = len(arrays[0])
        missing = -number % mesh.size
        if missing:
            arrays = tuple(np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)]) for array in arrays)
        with jax.set_mesh(mesh):
            return np.asarray(call(weights, *jax.device_put(arrays, rows)))[:number]

    return apply
