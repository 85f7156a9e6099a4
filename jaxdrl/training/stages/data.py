"""Stage 1: the data set, written once as ArrayRecord through a TFDS builder."""

import dataclasses

from jaxdrl import data
from jaxdrl.training.context import Run
from jaxdrl.training.workdir import data_directory

name = "data"


def run(run: Run) -> dict:
    """Prepares the data set unless it is there.

    Args:
        run: The run.

    Returns:
        Its name, shape, classes and sizes.
    """
    summary = data.prepare(run.config.data, data_directory(run))
    return {"name": run.config.data.name, **dataclasses.asdict(summary)}
