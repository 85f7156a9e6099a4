"""Run in a process of its own with eight simulated devices: one refresh of post-training on one device and on each mesh given.

Arguments: the algorithm ("adjoint_matching", "nft", "flow_grpo", "marble": adjoint matching of three rewards in two micro-batches), the
backbone ("SiT", ..., "spectral": SiT with its gate, "+scan": scanned, "+remat", "+lora": adapters, "+memory": every
way to save memory, "+whole": weights and gradients that are held
whole on purpose), then meshes as
"DATAxFSDPxTENSOR". The last line that is printed is JSON: mesh -> how far it is from one device, and what lies where.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxdrl.rewards import discriminator
from jaxdrl.training import frozen_weights, loading, mesh, methods, models, sharding_rules
from jaxdrl.training.methods import common

ROOT = Path(__file__).parent.parent.parent


def config_of(algorithm, family):
    """The digits' tiny form: two gradient steps of Adam, weights wide enough for every mesh."""
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / "drl_digits.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config, (family, *options) = recipe.get_config("tiny"), family.split("+")
    config.posttrain.update(buffer_size=32, rollout_batch=16, batch_size=16, learning_rate=1e-3, refreshes=1, epochs=1)
    config.posttrain.update(num_timesteps=4, group_size=4, ema_decay=0.9)
    config.posttrain.flow_grpo.num_steps = config.posttrain.nft.num_steps = 4
    config.encoders.reward.depth = 1
    config.backbone.update(name="SiT" if family == "spectral" else family, width=32, depth=2, num_heads=4)
    config.backbone.spectral = "timestep" if family == "spectral" else "none"
    if family == "DiT":
        # Its velocity divides by sqrt(a_n), and with drawn weights is 1e5 times as large as the adjoint: v_theta - v_base, which is zero
        # before the first step, would be rounding as large as what is learnt.
        config.posttrain.reward_scale *= 1000
    # Three times the width in hidden channels: with twice, a tensor half of one layer's two gates has the shape of two layers' projections.
    if family == "JiT":
        config.backbone.fields = ml_collections.ConfigDict({"context_length": 4, "bottleneck": 8, "mlp_ratio": 4.5})
    if family == "DiTDH":
        config.backbone.fields = ml_collections.ConfigDict({"head_width": 48, "head_num_heads": 4, "mlp_ratio": 4.5})
    if "scan" in options:
        config.backbone.update(scan_layers=True, depth=3)
    if "remat" in options:
        config.backbone.remat = "full"
    if "memory" in options:
        config.posttrain.update(
            rollout_batch=8, shuffle_block=8, buffer_memory="pinned_host", buffer_dtype="bfloat16", reward_batch=8
        )
        config.mesh.frozen = "fsdp"
    if "lora" in options:
        config.posttrain.lora.rank = 4
    if algorithm == "marble":
        rewards = {"discriminator": {}, "sharpness": {}, "stroke_width": {"classes": (0, 1, 2)}}
        config.posttrain.rewards, config.posttrain.micro_batches = ml_collections.ConfigDict(rewards), 2
        config.posttrain.balance.update(rule="marble", gram="exact")
    else:
        config.posttrain.algorithm = algorithm
    return config


def frozen_of(config):
    """Weights at no initial value: a fresh adaLN network is zero everywhere."""
    base = loading.drawn(models.backbone(config).init, 1)
    encoder = models.encoder(config, "reward").init(jax.random.key(2))
    width = dict(models.encoder(config, "reward").fields)["feature_dim"]
    head = discriminator.init(jax.random.key(3), width, 10, width=8)
    head = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(4), leaf.shape), head)
    return common.Frozen(base, {}, encoder, head)


def whole_in(text, config, first, frozen):
    """What a device holds all of, by the shapes in its program: stacked weights or gradients that are cut, trajectories."""
    shape = lambda dims: "f32[" + ",".join(map(str, dims)) + "]"  # noqa: E731
    cut = {
        shape(leaf.shape)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(first)
        if re.search(r"/blocks_\d+_\d+/", sharding_rules.path_of(keys))
        and leaf.ndim == 3
        and leaf.shape[0] > 1
        and not leaf.sharding.is_fully_replicated
    }
    # The part of one weight may look like the whole of another.
    cut -= {shape(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves((first, frozen))}
    options = config.posttrain
    trajectories = shape((options.buffer_size, options.num_timesteps, *models.backbone(config).sample_shape))
    return sorted(name for name in cut | {trajectories} if name in text)


def refresh(config, frozen, devices):
    """The state and metrics after one call of the compiled step, on the host; and what lies where."""
    method = methods.of(config)
    with jax.default_matmul_precision("highest"), jax.set_mesh(devices):
        step = method.compile_step(config, method.settings_from(config), devices)
        first = mesh.place(method.initial_state(config, frozen.base), devices)
        where = jax.tree.map(lambda leaf: leaf.sharding, first)
        given = (first, frozen_weights.place(config, frozen, devices), jax.random.key(5))
        compiled = step.lower(*given).compile()
        whole = whole_in(compiled.as_text(), config, *given[:2])
        after, metrics = compiled(*given)
    moved = [
        sharding_rules.path_of(path)
        for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(where), strict=True)
        if leaf.ndim and not leaf.sharding.is_equivalent_to(place, leaf.ndim)
    ]
    sharded = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(after))
    return jax.device_get((after, metrics)), {
        "sharded": sharded,
        "leaves": len(jax.tree.leaves(after)),
        "moved": moved,
        "whole": whole,
    }


def compared(found, expected):
    """Largest differences: of weights, of Adam's first moment (linear in the gradient) by leaf as a share of its largest entry, of metrics."""
    (state, metrics), (state1, metrics1) = found, expected
    far = {"weights": 0.0, "moments": 0.0}
    for (keys, value), one in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(state1), strict=True):
        path = sharding_rules.path_of(keys)
        distance = float(np.abs(np.asarray(value, np.float64) - one).max()) if np.size(value) else 0.0
        if "/params/" in path:
            far["weights"] = max(far["weights"], distance)
        elif "/mu/" in path:
            # With its own scale, but not that of a gradient which is zero up to rounding, as a key's bias has.
            far["moments"] = max(far["moments"], distance / max(float(np.abs(one).max()), 1e-3))
    far["reward"] = float(abs(metrics["reward_mean"] - metrics1["reward_mean"]))
    far["gradient_norm"] = float(abs(metrics["gradient_norm"] / metrics1["gradient_norm"] - 1))
    return far


def main():
    algorithm, family, *meshes = sys.argv[1:]
    # The tiny network's weights are small; cut them all the same.
    sharding_rules.SMALLEST = 1
    if family.endswith("+whole"):
        everywhere = lambda devices: jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())  # noqa: E731
        mesh.constrain = lambda tree, devices: jax.lax.with_sharding_constraint(tree, everywhere(devices))
    config = config_of(algorithm, family)
    frozen = frozen_of(config)
    one = jax.make_mesh((1, 1, 1), mesh.AXES, devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 3)
    expected, _ = refresh(config, frozen, one)
    moved = [float(jnp.abs(jnp.asarray(leaf)).max()) for leaf in jax.tree.leaves(expected[0].model.params)]
    report = {"one": {"gradient_norm": float(expected[1]["gradient_norm"]), "finite": bool(np.isfinite(moved).all())}}
    for sizes in meshes:
        found, layout = refresh(config, frozen, mesh.create_mesh(*map(int, sizes.split("x"))))
        report[sizes] = compared(found, expected) | layout
        print(sizes, report[sizes], flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
