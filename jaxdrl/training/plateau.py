"""The plateau curve: distances of the generator to the validation images while it is trained."""

from collections.abc import Callable

from jaxtyping import PyTree

from jaxdrl import data
from jaxdrl.evaluation import frechet
from jaxdrl.evaluation.collect import collect
from jaxdrl.evaluation.image_sources import Split
from jaxdrl.training import generation, measuring
from jaxdrl.training.context import Run
from jaxdrl.training.workdir import data_directory


def measure(run: Run) -> Callable[[PyTree], dict[str, float]]:
    """Prepares the curve's measurement.

    Args:
        run: The run, with its encoders trained.

    Returns:
        params -> {"judge_frechet": ..., "reward_frechet": ..., "pixels_frechet": ...} against the validation split.
    """
    config = run.config
    spaces, size = measuring.run_spaces(config, run.workdir), config.evaluate.batch_size
    validation = Split(data.open_split(config.data, data_directory(run), "validation"), config.evaluate.max_real)
    real = collect(validation, spaces, None, batch_size=size)
    references = {name: frechet.Reference(moments) for name, moments in real.moments.items()}

    def distances(params: PyTree) -> dict[str, float]:
        settings = {"num": config.pretrain.curve_samples, "seed": config.seed, "num_steps": config.evaluate.sampling_steps}
        fake = collect(generation.Samples(config, params, **settings), spaces, None, batch_size=size)
        return {f"{name}_frechet": reference.distance(fake.moments[name]) for name, reference in references.items()}

    return distances
