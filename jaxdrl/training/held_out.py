r"""What the reward does not see: during RL, the model's images beside held-out ones, in the judge's features and in colour and light.

    coverage = share of the balls around validation images (k = 5) that hold one of the model's,   arXiv 2002.09797      (1)
    drift_s = (mean of statistic s over the model's images - over the base's) / its standard deviation over the base's   (2)

A policy that games its reward gives the same few images, or strange ones: (1) falls while the reward rises. All models get the same noise
and labels, so that two numbers differ by the weights alone. The real images' and the base's features are collected once and kept.
"""

import numpy as np
from jaxtyping import PyTree

from jaxdrl import data
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.evaluation import drift, manifold, spaces
from jaxdrl.evaluation.collect import Collected, ImageSource, collect
from jaxdrl.evaluation.image_sources import Split
from jaxdrl.training import generation, measuring
from jaxdrl.training.context import Run
from jaxdrl.training.mesh import on_this_process
from jaxdrl.training.randomness import stage_seed
from jaxdrl.training.workdir import data_directory

NEIGHBOUR = 5


class HeldOut:
    """The validation split, the base, and whatever model is asked about."""

    def __init__(self, run: Run, stage: str, base: PyTree) -> None:
        """Collects the features of real images and of the base's, unless the stage's folder has them.

        Args:
            run: With data and encoders.
            stage: Its name, that of the folder.
            base: Weights of the generator before RL.

        Raises:
            UserError: If the validation split has too few images.
        """
        self._run, self._config, settings = run, run.config, run.config.posttrain.guard
        self._spaces = [measuring.encoder_space(run.config, run.workdir, "judge")]
        if run.config.data.image_shape[2] == 3:
            self._spaces.append(spaces.image_statistics("drift"))
        folder = run.workdir / stage / "held_out"
        split = Split(data.open_split(run.config.data, data_directory(run), "validation"), settings.real)
        if len(split) <= NEIGHBOUR:
            raise UserError(
                f"config.posttrain.guard: coverage of {len(split)} validation images cannot be measured, it takes more than {NEIGHBOUR}; "
                "raise guard.real or config.data.validation_fraction, or set guard.every=0"
            )
        self._real = self._collect(split, folder / "real", {"split": "validation"}).features["judge"]
        self._radii = manifold.radii(self._real, NEIGHBOUR)
        steps, seed = run.config.evaluate.sampling_steps, stage_seed(run.config.seed, f"{stage}/held_out")
        self._samples = generation.Samples(run.config, base, num=settings.samples, seed=seed, num_steps=steps)
        found = self._collect(self._samples, folder / "base", {"model": "base", "seed": seed, "sampling_steps": steps})
        self._light = None
        if "drift" in found.features:
            values = np.asarray(found.features["drift"], np.float64)
            self._light = values.mean(axis=0), values.std(axis=0)
        self.base = self._numbers(found)

    def measure(self, params: PyTree) -> dict[str, float]:
        """Draws a model's images and compares them.

        Args:
            params: Weights of the generator.

        Returns:
            `held_out_coverage` (1) in [0, 1]; of colour images `held_out_drift/NAME` (2).
        """
        return self._numbers(self._collect(self._samples.of(on_this_process(params, self._run.mesh)), None, {}))

    def _collect(self, source: ImageSource, folder, described: dict) -> Collected:
        # One program for all: no batch is larger than what a device draws of the samples.
        size = min(self._config.evaluate.batch_size, -(-self._config.posttrain.guard.samples // self._run.mesh.size))
        keep, seconds = [space.name for space in self._spaces], self._config.runtime.checkpoint_seconds
        return collect(source, self._spaces, folder, keep=keep, description=described, batch_size=size, seconds=seconds)

    def _numbers(self, found: Collected) -> dict[str, float]:
        numbers = {"held_out_coverage": manifold.coverage(self._real, found.features["judge"], self._radii)}
        if self._light is not None:
            mean, deviation = self._light
            moved = np.asarray(found.features["drift"], np.float64).mean(axis=0) - mean
            moved = np.divide(moved, deviation, out=np.zeros_like(moved), where=deviation > 0)
            numbers |= {f"held_out_drift/{name}": float(value) for name, value in zip(drift.NAMES, moved, strict=True)}
        return numbers


def check(config: Config) -> None:
    """Refuses settings that do not fit, before anything is computed.

    Args:
        config: A run's config.

    Raises:
        UserError: Naming the key of `config.posttrain.guard`.
    """
    options = config.posttrain.guard
    for key in ("spread", "reward_spread", "energy", "coverage", "drift", "every", "real"):
        if options[key] < 0:
            raise UserError(f"config.posttrain.guard.{key} ({options[key]}) must be at least 0; 0 is never")
    if options.patience < 1 or options.samples < 1:
        raise UserError(
            f"config.posttrain.guard: patience ({options.patience}) and samples ({options.samples}) must be at least 1"
        )
    if options.drift and not options.every:
        raise UserError("config.posttrain.guard.drift: nothing is measured with guard.every=0; set it, or drift to 0")
    if options.drift and config.data.image_shape[2] != 3:
        raise UserError("config.posttrain.guard.drift is for colour images, and these are not; set it to 0")
