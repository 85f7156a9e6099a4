"""Prints the cost of a toy program on 8 simulated devices, counted by hand in `test_hlo.py`: 5 steps of a scanned tower of 6 layers."""

import dataclasses
import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxdrl.planning import hlo
from jaxdrl.training import mesh


def main() -> None:
    devices = mesh.create_mesh(2, 4, 1)
    cut = NamedSharding(devices, PartitionSpec(None, "fsdp"))
    weights = jax.ShapeDtypeStruct((6, 256, 256), jnp.float32, sharding=cut)
    inputs = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=mesh.batch_sharding(devices))

    def layer(h, w):
        return jnp.tanh(h @ w), None

    def loss(weights, inputs):
        return (jax.lax.scan(jax.checkpoint(layer), inputs, weights)[0] ** 2).sum()

    def steps(weights, inputs):
        def step(weights, _):
            return weights - jax.lax.with_sharding_constraint(jax.grad(loss)(weights, inputs), cut), None

        return jax.lax.scan(step, weights, None, length=5)[0]

    compiled = jax.jit(steps).trace(weights, inputs).lower().compile()
    print(json.dumps(dataclasses.asdict(hlo.cost(compiled.as_text(), flops=1e12, bandwidth=1e9, devices=8))))


if __name__ == "__main__":
    main()
