"""The plateau curve: distances of the generator to the validation images while it is trained."""

from collections.abc import Callable

import numpy as np
from jaxtyping import PyTree

from jaxdrl import data
from jaxdrl.evaluation import frechet
from jaxdrl.training import generation, loading, models
from jaxdrl.training.batching import compiled, in_batches
from jaxdrl.training.context import Run
from jaxdrl.training.workdir import data_directory


def spaces(run: Run) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The three feature spaces in which a run is measured: images, uint8 or float in [-1, 1] -> float32 [n, d].

    Args:
        run: The run, with its encoders trained.

    Returns:
        "reward", "judge" and "pixels" (averaged over squares so that the side is at most 16).
    """
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for which in ("reward", "judge"):
        functions[which] = compiled(models.features(run.config, which), loading.load_encoder(run.config, run.workdir, which))
    functions["pixels"] = thumbnails
    return functions


def thumbnails(images: np.ndarray, side: int = 16) -> np.ndarray:
    """Pixels as features; large images are averaged over squares: a covariance of 3072 dimensions takes minutes.

    Args:
        images: uint8, or float in [-1, 1].
        side: Larger images come down to about this.

    Returns:
        float32 [n, pixels].
    """
    return in_batches(lambda part: _thumbnails(part, side), images)


def _thumbnails(images: np.ndarray, side: int) -> np.ndarray:
    images = data.to_float(images) if images.dtype == np.uint8 else images
    n, height, width, channels = images.shape
    factor = max(1, height // side)
    if factor > 1 and height % factor == 0 and width % factor == 0:
        images = images.reshape(n, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))
    return np.asarray(images, np.float32).reshape(n, -1)


def measure(run: Run) -> Callable[[PyTree], dict[str, float]]:
    """Prepares the curve's measurement.

    Args:
        run: The run, with its encoders trained.

    Returns:
        params -> {"judge_frechet": ..., "reward_frechet": ..., "pixels_frechet": ...} against the validation split.
    """
    config = run.config
    images, _ = data.load_arrays(data.open_split(config.data, data_directory(run), "validation"), config.evaluate.max_real)
    functions, finish = spaces(run), generation.as_bytes(config)
    real = {space: function(images) for space, function in functions.items()}

    def distances(params: PyTree) -> dict[str, float]:
        settings = {"num": config.pretrain.curve_samples, "seed": config.seed, "num_steps": config.evaluate.sampling_steps}
        fake, _ = generation.generate(config, params, finish, **settings)
        return {
            f"{space}_frechet": float(frechet.frechet_from_features(real[space], function(fake)))
            for space, function in functions.items()
        }

    return distances
