"""Bytes that a post-training run holds, by shapes alone: `python benchmarks/memory.py` prints the tables of docs/memory.md.

Nothing is computed and no weight is drawn: sizes are those of `jax.eval_shape`, cut by `training/sharding_rules.py`. `--compile` adds what
the gradient of SiT-XL/2 holds besides weights under each remat policy, as XLA's CPU compiler counts it (minutes).
"""

import argparse
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdrl import backbones, encoders, tokenizers
from jaxdrl.algorithms import nft
from jaxdrl.training import sharding_rules, state

MESHES = {"1 device": {}, "fsdp 8": {"fsdp": 8}, "fsdp 64": {"fsdp": 64}, "fsdp 8 x tensor 2": {"fsdp": 8, "tensor": 2}}


def held(tree: Any, sizes: dict[str, int], halved: bool = False) -> float:
    """Bytes of a tree on one device.

    Args:
        tree: Shapes.
        sizes: Of the mesh's axes "fsdp" and "tensor".
        halved: Kernels are kept in bfloat16, as by config.mesh.frozen_dtype.

    Returns:
        Bytes.
    """
    specs = jax.tree.leaves(sharding_rules.specs(tree, sizes), is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec))
    total = 0.0
    for (keys, leaf), spec in zip(jax.tree_util.tree_leaves_with_path(tree), specs, strict=True):
        width = 2 if halved and sharding_rules.path_of(keys).endswith("/kernel") else leaf.dtype.itemsize
        total += math.prod(leaf.shape) * width / math.prod(sizes[axis] for axis in spec if axis)
    return total


def weights() -> list[str]:
    """Lines of the table of states.

    Returns:
        Markdown, in GB (1e9 bytes).
    """
    key = jax.random.key(0)
    params = jax.eval_shape(backbones.create("SiT-XL/2", scan_layers=True).init, key)
    adam = optax.adam(1e-5)
    trained = jax.eval_shape(lambda params: state.create(params, adam), params)
    averaged = jax.eval_shape(lambda params: state.create(params, adam, 0.999), params)
    policies = jax.eval_shape(lambda params: nft.create(params, adam), params)
    decoder = jax.eval_shape(tokenizers.create("sd-vae").init, key)
    encoder = jax.eval_shape(encoders.create("dinov2-large", scan_layers=True).init, key)
    rows: list[tuple[str, Any, bool]] = [
        ("adjoint matching: weights and Adam's moments", trained, False),
        ("with an average (`posttrain.ema_decay`)", averaged, False),
        ("policy gradients: theta, theta_old, theta_ref, average, moments", policies, False),
        ("gradient", params, False),
        ("theta_base", params, False),
        ("theta_base, `frozen_dtype=bfloat16`", params, True),
        ("SD-VAE", decoder, False),
        ("SD-VAE, `frozen_dtype=bfloat16`", decoder, True),
        ("DINOv2-L", encoder, False),
        ("DINOv2-L, `frozen_dtype=bfloat16`", encoder, True),
    ]
    cells = lambda tree, halved: " | ".join(f"{held(tree, sizes, halved) / 1e9:.2f}" for sizes in MESHES.values())  # noqa: E731
    return [f"| {name} | {cells(tree, halved)} |" for name, tree, halved in rows]


def buffers() -> list[str]:
    """Lines of the table of trajectories, all of a refresh on all devices together.

    Returns:
        Markdown, in GB (1e9 bytes).
    """
    lines = []
    for name, trajectories in (("SiT-XL/2", 2304), ("JiT-H/16", 3072), ("DiTDH-XL", 3072)):
        numbers = trajectories * 100 * math.prod(backbones.create(name).sample_shape)
        cells = " | ".join(f"{numbers * width / 1e9:.1f}" for width in (8, 6))
        lines.append(f"| {name}, {trajectories} of 100 steps | {cells} |")
    return lines


def activations(batch: int = 8) -> list[str]:
    """Lines of the table of remat policies.

    Args:
        batch: Samples.

    Returns:
        Markdown, in GB (1e9 bytes).
    """
    lines = []
    for policy in ("none", "dots", "dots_no_batch", "full"):
        network = backbones.create("SiT-XL/2", scan_layers=True, remat=policy)
        params = jax.eval_shape(network.init, jax.random.key(0))
        shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)  # noqa: E731
        given = (shape(batch, *network.sample_shape), shape(batch), shape(batch, dtype=jnp.int32))
        loss = lambda params, x, t, y, network=network: (network.velocity(params, x, t, y) ** 2).mean()  # noqa: E731
        used = jax.jit(jax.grad(loss)).lower(params, *given).compile().memory_analysis().temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]
        lines.append(f"| `{policy}` | {used / 1e9:.2f} |")
    return lines


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    print("\n".join([*weights(), "", *buffers(), *(["", *activations()] if options.compile else [])]), flush=True)


if __name__ == "__main__":
    main()
