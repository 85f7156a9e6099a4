"""One of two processes for `test_distributed.py`, or a process alone: what they tell each other, their batches and their checkpoints.

Arguments: folder, number of this process and port; or folder alone, for a process that restores what two have saved. Prints JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdrl import data
from jaxdrl.data.sources import InMemory
from jaxdrl.errors import Stopped, UserError
from jaxdrl.training import distributed, feeding, mesh
from jaxdrl.training.checkpoints import Checkpoints
from jaxdrl.training.stopping import Stopping


def told(call):
    try:
        return repr(call())
    except (UserError, Stopped) as error:
        return f"{type(error).__name__}: {error}"


def state(devices=None):
    """Weights large enough to be sharded over fsdp, small ones that are not, and a counter."""
    tree = {"large": np.arange(2**15, dtype=np.float32).reshape(128, 256), "small": np.arange(3.0, dtype=np.float32)}
    tree |= {"step": np.int32(7)}
    return tree if devices is None else mesh.place(tree, devices)


def source():
    return InMemory(np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1), np.arange(100, dtype=np.int32) % 4)


def fed(devices, start, count):
    index, parts = feeding.share(devices, 16)
    own = data.batches(source(), batch_size=16 // parts, seed=1, process_index=index, process_count=parts)
    placed = feeding.place(own.stacked(start, count)["label"], devices, 16)
    total = jax.jit(lambda labels: labels * 1, out_shardings=NamedSharding(devices, PartitionSpec()))(placed)
    return [index, parts], np.asarray(total).tolist()


def restore(folder, devices):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        found = checkpoints.restored(lambda: jax.tree.map(jnp.zeros_like, state()), devices)
    whole = jax.device_get(mesh.on_this_process(found, devices))
    same = all(np.array_equal(one, two) for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(state()), strict=True))
    return bool(same), str(found["large"].sharding.spec)


def main():
    folder = Path(sys.argv[1])
    if len(sys.argv) == 2:
        print(json.dumps({"restored": restore(folder, mesh.create_mesh(data=-1, fsdp=min(2, jax.device_count())))}))
        return
    index = int(sys.argv[2])
    distributed.initialise(
        ml_collections.ConfigDict(
            {"distributed": f"localhost:{sys.argv[3]}", "num_processes": 2, "process_index": index, "heartbeat_seconds": 0.0}
        )
    )
    found: dict = {
        "first": distributed.first(),
        "from_first": distributed.from_first({"said": index, "long": "x" * (5 - 4 * index)}),
    }

    def fails(who):
        def call():
            if index == who:
                raise (UserError if who else Stopped)(f"of {who}")
            return index

        return call

    found["in_turn"] = [told(lambda: distributed.in_turn(lambda: index)), told(lambda: distributed.in_turn(fails(1)))]
    found["on_first"] = [told(lambda: distributed.on_first(lambda: "made")), told(lambda: distributed.on_first(fails(0)))]
    distributed.check_shared(folder)
    own = folder / f"own{index}"
    own.mkdir()
    distributed._PATIENCE = 1.0
    (folder / "own0/x").touch() if index == 0 else None
    found["not_shared"] = told(lambda: distributed.wait_for(own / "x", seconds=0.5))
    found["shared_out"] = distributed.shared_out(lambda first, count: (np.arange(first, first + count),), 7)[0].tolist()
    devices = mesh.create_mesh(data=2, fsdp=4)
    found["fed"] = {str(sizes): fed(mesh.create_mesh(*sizes), 3, 2) for sizes in ((2, 4, 1), (8, 1, 1), (4, 1, 2), (1, 1, 8))}
    found["odd"] = feeding.share(devices, 12)
    stopping = Stopping()
    with stopping.listening():
        before = stopping.requested()
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        with Checkpoints(folder / "checkpoints") as checkpoints:
            ended = told(lambda: checkpoints.after(7, state(devices), stopping))
    found["stopped"] = [before, stopping.signalled, ended.split(" is in")[0]]
    found["restored"] = restore(folder, mesh.create_mesh(data=4, fsdp=2))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
