"""Run in a process of its own with eight simulated devices: where tokens and heads lie in a transformer that is cut over "tensor".

The last line that is printed is JSON: by the number of tokens, shapes of a device's part of what the scan of blocks keeps for the backward
pass, and of the largest gathered tokens.
"""

import json
import re

import jax
import jax.numpy as jnp

from jaxdrl import backbones
from jaxdrl.training import mesh

BATCH, DEPTH, WIDTH = 8, 3, 48


def shapes(side: int) -> dict[str, list]:
    """Of the gradient of a SiT with side^2 tokens on data 1 x fsdp 2 x tensor 4."""
    devices = mesh.create_mesh(1, 2, 4)
    network = backbones.create(
        "SiT",
        **{"sample_shape": (side, side, 3), "num_classes": 3, "patch_size": 1, "width": WIDTH, "depth": DEPTH, "num_heads": 4},
        **{"scan_layers": True, "remat": "full"},
    )
    params = mesh.place(network.init(jax.random.key(0)), devices)

    def gradient(params, x, t, y):
        loss = lambda params: (network.velocity(mesh.constrain(params, devices), x, t, y) ** 2).sum()  # noqa: E731
        return jax.grad(loss)(params)

    rows = mesh.batch_sharding(devices)
    given = [jnp.ones((BATCH, side, side, 3)), jnp.full(BATCH, 0.5), jnp.zeros(BATCH, jnp.int32)]
    with jax.set_mesh(devices):
        text = jax.jit(gradient).lower(params, *(jax.device_put(one, rows) for one in given)).compile().as_text()
    part = re.compile(rf"f32\[{DEPTH},{BATCH // 2},(\d+),(\d+)\]")
    kept = {(int(tokens), int(width)) for tokens, width in part.findall(text)}
    gathered = re.findall(rf" = f32\[{BATCH // 2},{side**2},(\d+)\][^=]* all-gather\(", text)
    return {"kept": sorted(kept), "gathered": sorted(set(map(int, gathered)))}


if __name__ == "__main__":
    print(json.dumps({side**2: shapes(side) for side in (4, 5)}))
