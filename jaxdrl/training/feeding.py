"""Batches for a mesh of several processes: each reads the rows that lie on its own devices, and all together are the global batch.

Which rows those are is asked of the mesh, whose devices need not be in the order of the processes; processes that hold the same rows
(a tensor axis across hosts) read the same.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Shaped

from jaxdrl.training.mesh import batch_sharding


def share(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """What this process reads of a global batch.

    Args:
        mesh: From `mesh.create_mesh`.
        batch_size: Of all processes together.

    Returns:
        (i, n): the i-th of n equal parts, for `process_index` and `process_count` of `data.batches`; (0, 1), all of it, in a run of one
        process, where the batch does not divide, or where this process's rows are not one stretch.
    """
    if jax.process_count() == 1 or batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return 0, 1
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    stretches = sorted({part[0].indices(batch_size)[:2] for part in places.values() if part is not None})
    start, size = stretches[0][0], sum(stop - start for start, stop in stretches)
    if stretches[-1][1] - start != size or start % size or batch_size % size:
        return 0, 1
    return start // size, batch_size // size


def place(local: Shaped[np.ndarray, "steps batch ..."], mesh: Mesh, batch_size: int):
    """Makes the global array of which every process has read its share.

    Args:
        local: Consecutive batches, of this process's share.
        mesh: From `mesh.create_mesh`.
        batch_size: Of all processes together.

    Returns:
        [steps, batch_size, ...] over data x fsdp; what was given, where every process has it all.
    """
    if jax.process_count() == 1 or batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return local
    index, _ = share(mesh, batch_size)
    offset = index * local.shape[1]

    def rows(where: Any) -> np.ndarray:
        start, stop, _ = where[1].indices(batch_size)
        return local[:, start - offset : stop - offset]

    shape = (local.shape[0], batch_size, *local.shape[2:])
    return jax.make_array_from_callback(shape, NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))), rows)
