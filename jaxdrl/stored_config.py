"""The config of an existing workdir, as a recipe: `--config=stored_config.py:WORKDIR`; the command line uses it by itself."""

from pathlib import Path

import ml_collections

from jaxdrl.training.workdir import read_config


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """Reads `<workdir>/config.json`.

    Args:
        workdir: A folder with a run.

    Returns:
        The config tree, with tuples where JSON has lists.
    """
    return ml_collections.ConfigDict(_with_tuples(read_config(Path(workdir))))


def _with_tuples(value):
    if isinstance(value, dict):
        return {key: _with_tuples(part) for key, part in value.items()}
    return tuple(_with_tuples(part) for part in value) if isinstance(value, list) else value
