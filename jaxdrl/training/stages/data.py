"""Stage 1: the data set, written once as ArrayRecord through a TFDS builder."""

import dataclasses

import jax

from jaxdrl import data
from jaxdrl.training import distributed
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
    # In turn: where hosts share the folder the first one writes it, where they do not each writes its own.
    distributed.in_turn(lambda: _prepare(run))
    summary = data.prepare(run.config.data, data_directory(run))
    return {"name": run.config.data.name, **dataclasses.asdict(summary)}


def _prepare(run: Run) -> None:
    data.prepare(run.config.data, data_directory(run))
    if jax.process_count() > 1 and not run.config.data.in_memory:
        data.open_split(run.config.data, data_directory(run), "train").read_labels()  # keeps them in a file
