"""Run in a process of its own: one posttrain refresh on the mesh given as arguments; prints the weights' checksum numbers.

Arguments: "one", or the mesh's three sizes; then "marble" for three rewards, balanced, in two micro-batches.
"""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from jaxdrl.training import mesh, models, state
from jaxdrl.training.methods import adjoint, common

ROOT = Path(__file__).parent.parent.parent


def main():
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / "drl_digits.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config("tiny")
    config.posttrain.update(buffer_size=32, rollout_batch=16, batch_size=16, learning_rate=1e-3)
    if sys.argv[-1] == "marble":
        rewards = {"discriminator": {}, "sharpness": {}, "stroke_width": {"classes": (0, 1, 2)}}
        config.posttrain.rewards, config.posttrain.micro_batches = ml_collections.ConfigDict(rewards), 2
        config.posttrain.balance.update(rule="marble", gram="exact")
    if sys.argv[1] == "one":
        devices = jax.make_mesh((1, 1, 1), mesh.AXES, devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 3)
    else:
        devices = mesh.create_mesh(*map(int, sys.argv[1:4]))
    mesh._SMALLEST_SHARDED = 1  # the tiny network's weights are small; shard them all the same
    network = models.backbone(config)
    base = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(1), p.shape), network.init(jax.random.key(0)))
    encoder = models.encoder(config, "reward").init(jax.random.key(2))
    from jaxdrl.rewards import discriminator

    head = discriminator.init(jax.random.key(3), 16, 10, width=8)
    head = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(4), p.shape), head)
    with jax.default_matmul_precision("highest"), jax.set_mesh(devices):
        step = adjoint.compile_step(config, adjoint.settings_from(config), devices)
        current = mesh.place(adjoint.initial_state(config, base), devices)
        frozen = mesh.place(common.Frozen(base, {}, encoder, head), devices)
        sharded = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(current))
        for _ in range(2):
            current, metrics = step(current, frozen, jax.random.key(5))
    flat = jnp.concatenate([jnp.ravel(jax.device_get(leaf)) for leaf in jax.tree.leaves(current.model.params)])
    print(json.dumps({"params": flat.tolist(), "reward": float(metrics["reward_mean"]), "sharded": sharded}))


if __name__ == "__main__":
    main()
    del state
