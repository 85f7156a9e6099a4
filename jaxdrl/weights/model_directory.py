"""A model in a folder of its own: its name and sizes in `model.json`, its parameters as an Orbax checkpoint, its vocabulary if it has one."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging as absl_logging
from jaxtyping import PyTree

from jaxdrl import backbones, encoders, tokenizers
from jaxdrl.backbones import Backbone
from jaxdrl.encoders import Encoder, TextEncoder
from jaxdrl.errors import UserError
from jaxdrl.rewards import preference
from jaxdrl.rewards.preference import RewardModel
from jaxdrl.weights.convert import Model, name_of
from jaxdrl.weights.files import write_atomically


def check_new(directory: Path) -> None:
    """Refuses a folder that holds something.

    Args:
        directory: Where a model is to be written.

    Raises:
        UserError: If it holds something.
    """
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"--to: {directory} is not empty; choose a new folder")


def save(directory: Path, model: Model, params: PyTree, vocabulary: Mapping[str, Path] | None = None) -> None:
    """Writes a model.

    Args:
        directory: Made if missing.
        model: What the parameters belong to.
        params: Arrays, on any mesh.
        vocabulary: Files that are copied beside them, under these names; for models that read text.

    Raises:
        UserError: If the folder holds something already.
    """
    check_new(directory)
    with _checkpointer() as checkpointer:
        checkpointer.save(directory.absolute() / "params", params)
        checkpointer.wait_until_finished()
    for name, path in (vocabulary or {}).items():
        write_atomically(directory / name, path.read_bytes())
    known = isinstance(model, Backbone | Encoder | TextEncoder | RewardModel)
    fields = dict(model.fields) if known else dataclasses.asdict(model)
    description = {"name": name_of(model), "fields": fields}
    write_atomically(directory / "model.json", json.dumps(description, indent=2).encode())


def describe(directory: Path) -> tuple[str, dict[str, Any]]:
    """Reads what a folder holds.

    Args:
        directory: From `save`.

    Returns:
        The model's name, and its fields with tuples where JSON has lists.

    Raises:
        UserError: If the folder holds no model.
    """
    file = directory / "model.json"
    if not file.is_file():
        raise UserError(f"{directory} holds no model (no model.json); make one with `jaxdrl convert`")
    description = json.loads(file.read_text())
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in description["fields"].items()}
    return description["name"], fields


def load(directory: Path, sharding: Any = None) -> tuple[Model, PyTree]:
    """Reads a model.

    Args:
        directory: From `save`.
        sharding: A tree of shardings for the parameters, a function from their shapes to one, or None (the default device).

    Returns:
        The model and its parameters.

    Raises:
        UserError: If the folder holds no model.
    """
    name, fields = describe(directory)
    rooms = (
        (tokenizers.PUBLISHED, tokenizers.create_published),
        (encoders.PUBLISHED, encoders.create),
        (encoders.PUBLISHED_TEXT, encoders.create_text),
    )
    create = next((create for names, create in rooms if name in names), backbones.create)
    if name in preference.PUBLISHED:
        create, fields = preference.create, fields | _tokenizer(name, directory)
    model: Model = create(name, **fields)
    template = jax.eval_shape(model.init, jax.random.key(0))
    if callable(sharding):
        sharding = sharding(template)
    if sharding is None:
        sharding = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), template)
    template = jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), template, sharding)
    with _checkpointer() as checkpointer:
        return model, checkpointer.restore(directory.absolute() / "params", template)


def _tokenizer(name: str, directory: Path) -> dict[str, Any]:
    """The tokenizer of a reward model that reads text, from the vocabulary that `save` put there."""
    published = preference.PUBLISHED[name]
    if published.tokenizer is None:
        return {}
    for names in published.vocabularies:
        files = {file: directory / file for file in names}
        if all(path.is_file() for path in files.values()):
            return {"tokenizer": published.tokenizer(files)}
    return {}


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("orbax").setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.WARNING)
    return ocp.StandardCheckpointer()
