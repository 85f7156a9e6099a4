"""Rewards as feature spaces of any images: value, and whether it applies, since features are finite numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxdrl import rewards
from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.errors import UserError
from jaxdrl.evaluation.collect import Network, Space
from jaxdrl.rewards import preference
from jaxdrl.rewards.combine import Reward
from jaxdrl.rewards.image_statistics import STATISTICS
from jaxdrl.rewards.preference import prompts
from jaxdrl.weights import files, model_directory

PREFIX = "reward_"
_OTHERS = ("jpeg_incompressibility", "jpeg_compressibility")
_SHORT = {"aesthetic": "aesthetic-v2.5"}


def spaces(make: Callable[[PyTree], Sequence[Reward]], params: PyTree, described: Mapping[str, str]) -> list[Space]:
    """A space of two dimensions for each reward.

    Args:
        make: params -> rewards; called while a program is traced.
        params: Whatever `make` needs.
        described: Label -> what else defines the reward, for the specification.

    Returns:
        Spaces "reward_LABEL". Rewards on the host are computed there.
    """
    fingerprint = files.fingerprint(params)
    networks = {traced: Network(params=params, apply=_both(make, traced), traced=traced) for traced in (True, False)}
    found = []
    for reward in make(params):
        name = f"reward {reward.name}"
        spec = FeatureSpec(network=name, fingerprint=fingerprint, pooling="", size=0, options=str(described.get(reward.name, "")))
        found.append(Space(name=PREFIX + reward.name, spec=spec, network=networks[reward.traced], output=reward.name))
    return found


def _both(make: Callable[[PyTree], Sequence[Reward]], traced: bool):
    xp: Any = jnp if traced else np

    def apply(params, images, labels) -> dict[str, Any]:
        found = {}
        for reward in make(params):
            if reward.traced == traced:
                values = reward(images, labels)
                known = ~xp.isnan(values)
                found[reward.name] = xp.stack([xp.where(known, values, 0.0), known.astype(xp.float32)], axis=1)
        return found

    return apply


def published(
    names: Sequence[str], folders: Sequence[str], class_names: str, template: str, chosen: Sequence[str] = ()
) -> list[Space]:
    """Spaces of rewards by name, without a run.

    Args:
        names: Image statistics, JPEG sizes and published reward models; "aesthetic" is Aesthetic v2.5.
        folders: That `jaxdrl convert` made; those of other models are passed over.
        class_names: See `prompts.class_names`, for models that read text.
        template: Of the prompts.
        chosen: `config.data.classes` of the run whose labels the images have, see `prompts.class_names`.

    Returns:
        The spaces, in the order of the names.

    Raises:
        UserError: If a reward is unknown or given twice, or its folder or class names are missing.
    """
    wanted = [_SHORT.get(name, name) for name in names]
    known = (*STATISTICS, *_OTHERS, *preference.PUBLISHED)
    unknown = [name for name in wanted if name not in known]
    if unknown or len(set(wanted)) < len(wanted):
        raise UserError(f"--rewards: {', '.join(unknown) or 'a name'} is unknown or given twice; choose from {', '.join(known)}")
    places = {model_directory.describe(Path(folder))[0]: Path(folder) for folder in folders}
    loaded, models = {}, {}
    for name in wanted:
        if name in preference.PUBLISHED:
            models[name], loaded[name] = _model(name, places, class_names, template, chosen)

    def make(params: PyTree) -> list[Reward]:
        found = []
        for name in wanted:
            fields = {"model": models[name]} | params[name] if name in models else {}
            found.append(rewards.create(name, **fields))
        return found

    texts = {
        name: f"{class_names}{f', {len(chosen)} classes' if chosen else ''}: {template}"
        for name, tree in loaded.items()
        if tree["text"] is not None
    }
    return spaces(make, loaded, texts)


def _model(
    name: str, places: Mapping[str, Path], class_names: str, template: str, chosen: Sequence[str]
) -> tuple[Any, dict[str, PyTree]]:
    if name not in places:
        raise UserError(
            f"--rewards: {name} needs its folder among --weights; make it with `jaxdrl convert --model={name} --from=FILE --to=DIR`"
        )
    found: tuple[Any, PyTree] = model_directory.load(places[name])
    model, params = found
    if model.text is None:
        return model, {"params": params, "text": None}
    if not class_names:
        raise UserError(f"--rewards: {name} reads prompts; say what the labels stand for with --class_names=imagenet, or a file")
    texts = prompts.prompts(prompts.class_names(class_names, chosen=chosen), template)
    return model, {"params": params, "text": model.text(params, texts)}


def table(
    labels: Sequence[str], rows: Mapping[str, Callable[[str], Float[np.ndarray, "n 2"]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and spread of every reward by row, and how far the other rows are from the base.

    Args:
        labels: Of the rewards.
        rows: Row -> features by space, see `spaces`.

    Returns:
        Label -> row -> {"mean", "std", "count"}; where there is a row "base", of every other also "gain", (its mean - base's) / base's
        spread. Images to which a reward does not apply are left out.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for label in labels:
        numbers: dict[str, dict[str, float]] = {}
        for row, features in rows.items():
            values = np.asarray(features(PREFIX + label), np.float64)
            kept = values[values[:, 1] > 0, 0]
            mean, std = (float(kept.mean()), float(kept.std())) if len(kept) else (float("nan"), float("nan"))
            numbers[row] = {"mean": mean, "std": std, "count": len(kept)}
        if base := numbers.get("base"):
            for row in set(numbers) - {"base"}:
                shift = numbers[row]["mean"] - base["mean"]
                numbers[row]["gain"] = shift / base["std"] if base["std"] > 0 else float("nan")
        found[label] = numbers
    return found
