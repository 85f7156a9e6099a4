"""Weights of the rewards that have some, besides the discriminator's: made once a run, read by training and measuring alike."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxdrl import data
from jaxdrl.errors import UserError
from jaxdrl.rewards import class_confidence
from jaxdrl.training import loading, models
from jaxdrl.training.batching import compiled
from jaxdrl.training.context import Run
from jaxdrl.training.workdir import data_directory
from jaxdrl.weights import files

_FOLDER = "rewards"  # within the posttrain stage's
_IMAGES = 50_000  # that a class head is fitted to, at most


def load(run: Run) -> dict[str, PyTree]:
    """Reads the weights, or makes what is missing.

    Args:
        run: With data and encoders finished.

    Returns:
        Label of a reward -> weights, as `methods.common.rewards` takes them; rewards without weights are not in it.

    Raises:
        UserError: If a class has no image to be learnt from.
    """
    found = {}
    for label, given in dict(run.config.posttrain.rewards).items():
        if given.get("name", label) == "class_confidence":
            found[label] = _kept(run, label, _class_head)
    return found


def _kept(run: Run, label: str, make) -> PyTree:
    path = run.workdir / "posttrain" / _FOLDER / f"{label}.safetensors"
    if not path.exists():
        _save(path, make(run, label))
    return jax.tree.map(jnp.asarray, files.load_tree(path))


def _save(path: Path, tree: PyTree) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_tree(path, tree)


def _class_head(run: Run, label: str) -> PyTree:
    """The class head on the reward encoder's features of the train images."""
    config = run.config
    encode = compiled(models.features(config, "reward"), loading.load_encoder(config, run.workdir, "reward"))
    images, labels = data.load_arrays(data.open_split(config.data, data_directory(run), "train"), _IMAGES)
    try:
        return class_confidence.train(np.asarray(encode(images)), labels, config.data.num_classes)
    except ValueError as error:
        raise UserError(f"config.posttrain.rewards.{label}: {error}") from error
