"""Images and spaces for `test_collect.py`, and a program that collects them on other devices and in other processes."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdrl.config import default
from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.evaluation import frechet, hosts
from jaxdrl.evaluation.collect import Network, Space, collect
from jaxdrl.evaluation.sampling import Guidance
from jaxdrl.evaluation.spaces import image_statistics
from jaxdrl.evaluation.statistics import Moments
from jaxdrl.training import generation, models

IMAGES = np.random.default_rng(0).integers(0, 256, (203, 6, 6, 1), np.uint8)
LABELS = (np.arange(203) % 7).astype(np.int32)
WEIGHTS = np.random.default_rng(1).normal(size=(36, 5)).astype(np.float32)


def linear(weights, images):
    """A nonlinear feature of 5 dimensions; one product with a vector each, so that no batch splits a sum otherwise."""
    flat = jnp.asarray(images).reshape(len(images), -1)
    return jnp.tanh((flat[:, :, None] * weights).sum(axis=1)) + 3


def spec(name: str, fingerprint: str = "a") -> FeatureSpec:
    return FeatureSpec(network=name, fingerprint=fingerprint, pooling="", size=6)


_NETWORK = Network(
    params=WEIGHTS,
    apply=lambda weights, images, labels: {"out": linear(weights, images), "label": labels[:, None].astype(jnp.float32)},
)
SPACES = [
    Space(name="linear", spec=spec("linear"), network=_NETWORK, output="out"),
    Space(name="label", spec=spec("label"), network=_NETWORK, output="label"),
    image_statistics("spectrum"),
]


class Source:
    """The images; stops with Ctrl-C before image `cut`."""

    def __init__(self, cut: int | None = None, num: int = len(IMAGES)) -> None:
        self.cut, self.first, self.num = cut, None, num

    def __len__(self) -> int:
        return self.num

    def batches(self, start, stop, size):
        self.first = start
        for low in range(start, stop, size):
            if self.cut is not None and low >= self.cut:
                raise KeyboardInterrupt
            high = min(low + size, stop)
            yield IMAGES[low:high], LABELS[low:high]


def summary(folder: Path) -> dict:
    """Numbers to compare, with an equal number of images on every device."""
    found = collect(Source(), SPACES, folder, keep=["linear"], batch_size=4)
    reference = frechet.Reference(Moments.of(np.random.default_rng(2).normal(size=(50, 5)) + 3))
    return {
        "devices": jax.device_count(),
        "distance": reference.distance(found.moments["linear"]),
        "spectrum": found.moments["spectrum"].mean.tolist(),
        "mean": found.moments["linear"].mean.tolist(),
        "trace": float(np.trace(found.moments["linear"].covariance)),
        "features": np.asarray(found.features["linear"], np.float64).sum(axis=0).tolist(),
        "labels": found.labels.tolist(),
        "generated": generated(),
    }


def generated() -> str:
    """sha256 of this process's share of 40 images of a small generator, four at a time on each device, by their numbers."""
    config = default()
    with config.unlocked():
        config.backbone.update(width=16, depth=1, num_heads=2, frequency_dim=16)
    network = models.backbone(config)
    drawn = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape)  # noqa: E731
    params = jax.tree.map(drawn, network.init(jax.random.key(0)))
    source = generation.Samples(config, params, num=40, seed=3, num_steps=2, guidance=Guidance(1.5, (0.2, 1.0)))
    half = 40 // jax.process_count()
    start = jax.process_index() * half
    images = np.concatenate([part for part, _ in source.batches(start, start + half, 4 * jax.local_device_count())])
    everything = hosts.concatenate(images)
    assert everything.std() > 10 and len(np.unique(everything, axis=0)) == 40
    return hashlib.sha256(everything.tobytes()).hexdigest()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        address = f"127.0.0.1:{sys.argv[3]}"
        jax.distributed.initialize(address, num_processes=2, process_id=int(sys.argv[2]))
    with jax.default_matmul_precision("highest"):
        print(json.dumps(summary(Path(sys.argv[1]))))
