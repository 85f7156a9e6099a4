"""Run in a process of its own with eight simulated devices: a scanned network's bare gradient, whose weights are constrained or not.

The last line that is printed is JSON: mesh -> for both, how many gradients of cut weights are replicated, and the largest result of an
all-gather in the optimised program, in elements.
"""

import json
import math
import re

import jax
import jax.numpy as jnp

from jaxdrl import backbones
from jaxdrl.training import mesh, sharding_rules

SIZES = {
    "sample_shape": (8, 8, 4),
    "num_classes": 10,
    "patch_size": 2,
    "width": 64,
    "depth": 3,
    "num_heads": 4,
    "frequency_dim": 32,
}


def largest_gather(text):
    """Of the results of all-gathers, those of tuples counted one by one."""
    results = re.findall(r"= (.*?) all-gather(?:-start)?\(", text)
    shapes = [dims.split(",") for result in results for dims in re.findall(r"\[([\d,]+)\]", result)]
    return max(math.prod(map(int, dims)) for dims in shapes)


def compiled(network, devices, where, *, constrained):
    params = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), params, where)
    rows = mesh.batch_sharding(devices)
    shapes = (((16, 8, 8, 4), jnp.float32), ((16,), jnp.float32), ((16,), jnp.int32))
    batch = [jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for shape, dtype in shapes]

    def loss(params, x, t, y):
        params = mesh.constrain(params, devices) if constrained else params
        return (network.velocity(params, x, t, y) ** 2).mean()

    return jax.jit(jax.grad(loss)).lower(params, *batch).compile()


def main():
    sharding_rules.SMALLEST = 64
    network = backbones.create("SiT", **SIZES, scan_layers=True)
    stacks = jax.eval_shape(network.init, jax.random.key(0))["blocks_0_3"]
    largest = max(leaf.size for leaf in jax.tree.leaves(stacks))
    report = {"largest_stack": largest, "largest_layer": largest // SIZES["depth"]}
    for sizes in ("2x4x1", "1x8x1"):
        devices = mesh.create_mesh(*map(int, sizes.split("x")))
        where = mesh.shardings(jax.eval_shape(network.init, jax.random.key(0)), devices)
        report[sizes] = {}
        for name in ("constrained", "free"):
            with jax.set_mesh(devices):
                program = compiled(network, devices, where, constrained=name == "constrained")
            pairs = zip(jax.tree.leaves(program.output_shardings), jax.tree.leaves(where), strict=True)
            whole = sum(found.is_fully_replicated and not wanted.is_fully_replicated for found, wanted in pairs)
            report[sizes][name] = {"replicated": whole, "largest_gather": largest_gather(program.as_text())}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
