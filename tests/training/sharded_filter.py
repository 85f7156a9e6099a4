"""Run in a process of its own with eight simulated devices: SpectralDiT's filter and gate with the token grid cut over devices.

Rows of the grid lie on four devices, two a device, so that the filter's window of five rows reaches over both neighbours. The last line that is
printed is JSON: how far values and input gradients are from one device's, and the gathers of the program.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdrl.backbones.spectral import SpectralGate
from jaxdrl.training import mesh

GRID, BATCH, WIDTH = (8, 6), 2, 4


def main():
    devices = mesh.create_mesh(2, 4, 1)
    keys = jax.random.split(jax.random.key(0), 4)
    residual = jax.random.normal(keys[0], (BATCH, GRID[0] * GRID[1], WIDTH)) + jnp.arange(GRID[0] * GRID[1])[:, None] / 10
    time = jax.random.normal(keys[1], (BATCH, 8))
    gate = SpectralGate("timestep", GRID)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(keys[2], leaf.shape), gate.init(keys[3], residual, time, time)
    )
    weights = jax.random.normal(keys[3], residual.shape)

    def value_and_gradient(residual):
        value = lambda residual: (weights * gate.apply(params, residual, time, time)).sum()  # noqa: E731
        return gate.apply(params, residual, time, time), jax.grad(value)(residual)

    expected = jax.jit(value_and_gradient)(residual)
    cut = NamedSharding(devices, P("data", "fsdp"))
    with jax.default_matmul_precision("highest"), jax.set_mesh(devices):
        compiled = jax.jit(value_and_gradient, in_shardings=cut, out_shardings=(cut, cut)).lower(residual).compile()
        found = compiled(jax.device_put(residual, cut))
    report = {
        "far": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(found, expected, strict=True)),
        "changed": float(jnp.abs(expected[0] - residual).max()),
        "shard": found[0].sharding.shard_shape(found[0].shape),
        "gathers": re.findall(r" all-gather(?:-start)?\(", compiled.as_text()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
