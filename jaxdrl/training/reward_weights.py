"""Weights of the rewards that have some, besides the discriminator's: made once a run, read by training and measuring alike."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from jaxdrl import data
from jaxdrl.errors import UserError
from jaxdrl.rewards import class_confidence
from jaxdrl.rewards import preference as preference_models
from jaxdrl.rewards.preference import prompts
from jaxdrl.training import distributed, loading, models, preference
from jaxdrl.training.batching import compiled
from jaxdrl.training.context import Run
from jaxdrl.training.randomness import stage_seed
from jaxdrl.training.workdir import data_directory
from jaxdrl.weights import files

_FOLDER = "rewards"  # within the posttrain stage's
_IMAGES = 50_000  # that a class head is fitted to, at most


def load(run: Run) -> dict[str, PyTree]:
    """Reads the weights of the rewards that a run trains on or measures, or makes what is missing.

    Args:
        run: With data, encoders and pretrain finished.

    Returns:
        Label of a reward -> weights, as `methods.common.rewards` takes them; rewards without weights are not in it.

    Raises:
        UserError: If a folder of weights is missing, or a class has no image to be learnt from.
    """
    found, config = {}, run.config
    for label, given in {**dict(config.posttrain.rewards), **dict(config.evaluate.rewards)}.items():
        name = given.get("name", label)
        if name == "class_confidence":
            found[label] = _kept(run, label, _class_head)
        elif name == "bradley_terry":
            found[label] = _kept(run, label, _preference)
        elif name in preference_models.PUBLISHED:
            found[label] = _published(run, label, given)
    return found


def _published(run: Run, label: str, given) -> dict[str, PyTree]:
    """Weights of a published reward model, and a row of text a class."""
    config, group = run.config, "posttrain" if label in run.config.posttrain.rewards else "evaluate"
    key = f"config.{group}.rewards.{label}"
    try:
        model, params = models.reward_model(given.get("name", label), dict(given), with_params=True)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if params is None:
        params = loading.drawn(model.init, stage_seed(config.seed, f"random/reward/{label}"))
    if model.text is None:
        return {"params": params, "text": None}
    try:
        chosen = data.class_names(config.data)
        source = models.tuple_of(given.get("class_names", prompts.usual_source(config.data.name, chosen)))
        names = prompts.class_names(source, config.data.num_classes, chosen)
        rows = model.text(params, prompts.prompts(names, given.get("prompt", prompts.TEMPLATE)))
    except UserError as error:
        raise UserError(f"{key}: {error} (fields class_names and prompt)") from error
    return {"params": params, "text": rows}


def _preference(run: Run, label: str) -> PyTree:
    tree, measured = preference.train(run)
    said = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in measured.items())
    print(f"posttrain: reward {label} learnt from choices: {said}", flush=True)
    path = run.workdir / "posttrain" / _FOLDER / f"{label}.json"
    if distributed.first():
        files.write_atomically(path, json.dumps(measured, indent=2).encode())
    return tree


def _kept(run: Run, label: str, make) -> PyTree:
    path = run.workdir / "posttrain" / _FOLDER / f"{label}.safetensors"
    if not distributed.from_first(path.exists()):
        _save(path, make(run, label))
    return files.load_tree(path)


def _save(path: Path, tree: PyTree) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    distributed.save_tree(path, tree)


def _class_head(run: Run, label: str) -> PyTree:
    """The class head on the reward encoder's features of the train images."""
    config = run.config
    images, labels = data.load_arrays(data.open_split(config.data, data_directory(run), "train"), _IMAGES)
    with distributed.alone():
        encode = compiled(models.features(config, "reward"), loading.load_encoder(config, run.workdir, "reward"))
        try:
            return class_confidence.train(np.asarray(encode(images)), labels, config.data.num_classes)
        except ValueError as error:
            raise UserError(f"config.posttrain.rewards.{label}: {error}") from error
