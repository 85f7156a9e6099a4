r"""What `config.posttrain.host.overlap` saves: seconds a refresh beside a reward on the host that takes its time.

    python benchmarks/host_overlap.py [--out=overlap.json] [--seconds=0,1,2,4] [--refreshes=5] [--steps=100]

DiffusionNFT on the digits' generator (configs/nft_digits.py, random weights), rewarded by the brightness of its images, on the host, after a
sleep: a server's time, in which this machine's cores are free. The sampler takes `--steps` steps, so that rolling out costs about what learning
does, as it does at scale. Refreshes follow each other; the first of each way is left out (it compiles), and medians are shown. `ideal` is max(roll, sleep) + learn, with roll and learn timed alone on the same machine.
Prints a Markdown table and writes --out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs import nft_digits
from jaxdrl.config import Config
from jaxdrl.training import mesh, models
from jaxdrl.training.methods import common, policy

_SLEEP = {"seconds": 0.0}


def slow(images: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """A reward that waits.

    Args:
        images: [batch, h, w, c].
        condition: Not looked at.

    Returns:
        Means, [batch].
    """
    time.sleep(_SLEEP["seconds"])
    return images.mean(axis=(1, 2, 3))


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", default="0,1,2,4")
    parser.add_argument("--refreshes", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    devices = mesh.create_mesh()
    with jax.set_mesh(devices):
        ways = {overlap: _Way(_config(overlap, options.steps), devices) for overlap in (False, True)}
        roll, learn = ways[False].halves()
        rows = []
        for seconds in map(float, options.seconds.split(",")):
            _SLEEP["seconds"] = seconds
            taken = {overlap: [way.refresh() for _ in range(options.refreshes + 1)][1:] for overlap, way in ways.items()}
            plain, beside = (float(np.median(taken[overlap])) for overlap in (False, True))
            rows.append({"sleep": seconds, "plain": plain, "overlap": beside, "ideal": max(roll, seconds) + learn})
    print(f"roll {roll:.2f} s, learn {learn:.2f} s, on {jax.devices()[0].device_kind}, {options.refreshes} refreshes each\n")
    print("| reward, s | a refresh, s | with overlap, s | saved | ideal, s |\n|---|---|---|---|---|")
    for row in rows:
        saved = 1 - row["overlap"] / row["plain"]
        print(f"| {row['sleep']:g} | {row['plain']:.2f} | {row['overlap']:.2f} | {saved:.0%} | {row['ideal']:.2f} |")
    if options.out:
        options.out.write_text(json.dumps({"roll": roll, "learn": learn, "rows": rows}, indent=1))


def _config(overlap: bool, steps: int) -> Config:
    config: Any = nft_digits.get_config()
    with config.unlocked():
        config.posttrain.rewards = {"slow": {"name": "function", "path": "__main__:slow"}}
    config.posttrain.nft.update(num_steps=steps, times_per_sample=9)
    config.posttrain.host.overlap, config.posttrain.refreshes = overlap, 1 << 30
    return config


class _Way:
    """A run with or without overlap."""

    def __init__(self, config: Config, devices: jax.sharding.Mesh) -> None:
        self._config, self._devices, self._key = config, devices, jax.random.key(0)
        settings = policy.settings_from(config)
        base = models.backbone(config).init(jax.random.key(1))
        self._frozen = common.Frozen(base, {}, None, None)
        self._state = policy.initial_state(config, base)
        self._step = policy.compile_step(config, settings, devices)

    def refresh(self) -> float:
        """One refresh; what was dispatched for the next one may go on behind it, as in a run."""
        began = time.monotonic()
        self._state, metrics = self._step(self._state, self._frozen, self._key)
        jax.device_get(metrics)
        return time.monotonic() - began

    def halves(self) -> tuple[float, float]:
        """Seconds of the rollout, and of learning from it."""
        halves = policy._Halves(self._config, policy.settings_from(self._config), self._devices)
        roll, learn = jax.jit(halves.roll), jax.jit(halves.learn)
        state = self._state
        rolled = roll(state.model.old, state.refresh, self._frozen, self._key)
        rolled = rolled._replace(rewards=rolled.images.mean(axis=(1, 2, 3))[:, None])
        first = _seconds(lambda: roll(state.model.old, state.refresh, self._frozen, self._key))
        return first, _seconds(lambda: learn(state, self._frozen, rolled, self._key))


def _seconds(call: Callable[[], Any]) -> float:
    taken = []
    for _ in range(4):
        began = time.monotonic()
        jax.block_until_ready(call())
        taken.append(time.monotonic() - began)
    return float(np.median(taken[1:]))


if __name__ == "__main__":
    main()
