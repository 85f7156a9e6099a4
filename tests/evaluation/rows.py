"""On how many devices rows are computed, as JSON, for `test_local_devices.py`: run with eight simulated devices."""

import json

import jax
import numpy as np

from jaxdrl.config import default
from jaxdrl.evaluation.local_devices import by_rows
from jaxdrl.training import generation, models
from jaxdrl.training.batching import compiled

ROWS = np.random.default_rng(0).normal(size=(43, 5)).astype(np.float32)
WEIGHTS = {"kernel": np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)}


def linear(params, rows, scale):
    """A product of each row by itself."""
    return scale[:, None] * (rows[:, :, None] * params["kernel"]).sum(axis=1)


def watched(parts: list):
    """`linear` that notes what part of its rows each device has."""

    def function(params, rows, scale):
        jax.debug.inspect_array_sharding(rows, callback=lambda sharding: parts.append(sharding.shard_shape(rows.shape)[0]))
        jax.debug.inspect_array_sharding(
            params["kernel"], callback=lambda sharding: parts.append(sharding.shard_shape(params["kernel"].shape)[0])
        )
        return linear(params, rows, scale)

    return function


def drawn() -> np.ndarray:
    """20 latents of a small generator, numbers 3 to 22, two a device and call."""
    config = default()
    with config.unlocked():
        config.backbone.update(width=16, depth=1, num_heads=2, frequency_dim=16)
        config.evaluate.batch_size = 2
    network = models.backbone(config)
    blurred = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape)  # noqa: E731
    params = jax.tree.map(blurred, network.init(jax.random.key(0)))
    latents, labels = generation.generate(config, params, lambda part: part, num=20, seed=3, num_steps=2, first=3)
    assert labels.tolist() == [(3 + i) % config.data.num_classes for i in range(20)]
    return latents


if __name__ == "__main__":
    parts: list[int] = []
    scale = np.arange(len(ROWS), dtype=np.float32)
    found = by_rows(watched(parts), WEIGHTS)(ROWS, scale)
    batched = compiled(linear, WEIGHTS, size=2)(ROWS, scale)
    with jax.default_matmul_precision("highest"):
        latents = drawn()
    numbers = {"rows": found.tolist(), "batched": batched.tolist(), "latents": latents.tolist()}
    print(json.dumps({"devices": jax.device_count(), "parts": sorted(set(parts))} | numbers))
