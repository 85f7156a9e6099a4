"""A generator in a folder of its own: its name and sizes in `model.json`, its parameters as an Orbax checkpoint."""

import json
import logging
from pathlib import Path
from typing import Any

import jax
from absl import logging as absl_logging
from jaxtyping import PyTree

from jaxdrl import backbones
from jaxdrl.backbones import Backbone
from jaxdrl.errors import UserError
from jaxdrl.weights.files import write_atomically


def save(directory: Path, backbone: Backbone, params: PyTree) -> None:
    """Writes a generator.

    Args:
        directory: Made if missing.
        backbone: What the parameters belong to.
        params: Arrays, on any mesh.

    Raises:
        UserError: If the folder holds something already.
    """
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"--to: {directory} is not empty; choose a new folder")
    with _checkpointer() as checkpointer:
        checkpointer.save(directory.absolute() / "params", params)
        checkpointer.wait_until_finished()
    description = {"name": backbone.name, "fields": dict(backbone.fields)}
    write_atomically(directory / "model.json", json.dumps(description, indent=2).encode())


def load(directory: Path, sharding: Any = None) -> tuple[Backbone, PyTree]:
    """Reads a generator.

    Args:
        directory: From `save`.
        sharding: A tree of shardings for the parameters, a function from their shapes to one, or None (the default device).

    Returns:
        The backbone and its parameters.

    Raises:
        UserError: If the folder holds no generator.
    """
    file = directory / "model.json"
    if not file.is_file():
        raise UserError(f"{directory} holds no generator (no model.json); make one with `jaxdrl convert`")
    description = json.loads(file.read_text())
    backbone = backbones.create(description["name"], **description["fields"])
    template = jax.eval_shape(backbone.init, jax.random.key(0))
    if callable(sharding):
        sharding = sharding(template)
    if sharding is None:
        sharding = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), template)
    template = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), template, sharding)
    with _checkpointer() as checkpointer:
        return backbone, checkpointer.restore(directory.absolute() / "params", template)


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("orbax").setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.WARNING)
    return ocp.StandardCheckpointer()
