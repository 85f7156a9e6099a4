"""Host rewards for `test_scoring.py`; run in a process of its own: scores a batch that lies over all devices, prints what was found."""

import json
import sys

import jax
import numpy as np

from jaxdrl import config as jaxdrl_config
from jaxdrl import rewards as reward_functions
from jaxdrl.training import mesh
from jaxdrl.training.methods import scoring


def config(*names):
    made = jaxdrl_config.default()
    with made.unlocked():
        made.posttrain.rewards = {name: {} for name in names}
    made.posttrain.host.update(retries=0, backoff_seconds=0.0)
    return made


def mean(images, condition):
    return images.mean(axis=(1, 2, 3))


def rewards(*applies, **fields):
    """None is a traced one; they are called r0, r1 ..."""
    names = [f"r{i}" for i in range(len(applies))]
    return [
        reward_functions.Reward(name=name, apply=apply or mean, traced=apply is None, **fields)
        for name, apply in zip(names, applies, strict=True)
    ]


def batch(count=16):
    return np.random.default_rng(0).uniform(-1, 1, (count, 4, 4, 1)).astype(np.float32), np.arange(count, dtype=np.int32) % 3


def main():
    if len(sys.argv) > 1:
        jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
    devices, asked = mesh.create_mesh(data=2, fsdp=2, tensor=2), []
    last = jax.process_index() == jax.process_count() - 1

    def counted(images, condition):
        asked.append(len(images))
        return mean(images, condition)

    def fails_on_one(images, condition):
        if last:
            raise ConnectionError(f"refused by process {jax.process_index()}")
        return mean(images, condition)

    host = scoring.HostRewards(config("r0", "r1"), rewards(counted, fails_on_one), devices)
    lay = jax.jit(lambda tree: scoring.laid_out(tree, devices))
    with jax.set_mesh(devices):
        scored, errors = host.score(*lay(batch()))
        odd = host.score(*lay(tuple(part[:15] for part in batch())))[0]  # lies whole on every device
    whole = np.append(np.asarray(odd.values.addressable_data(0))[:, 0], np.asarray(scored.values.addressable_data(0))[15, 0])
    result = {
        "devices": jax.device_count(),
        "asked": asked[0],
        "errors": errors,
        "values": np.asarray(scored.values.addressable_data(0))[:, 0].tolist(),
        "whole": whole.tolist(),
        "failed": np.asarray(scored.failed.addressable_data(0)).tolist(),
        "masked": bool(np.isnan(np.asarray(scored.values.addressable_data(0))[:, 1]).all()),
        "replicated": scored.values.is_fully_replicated,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
