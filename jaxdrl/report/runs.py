"""Finished and unfinished runs read for a comparison: what each has, in which keys they differ, and what may be compared at all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdrl.errors import UserError
from jaxdrl.training.metrics import read_metrics
from jaxdrl.training.stages import ORDER
from jaxdrl.training.workdir import read_config, stage_result
from jaxdrl.weights import files

LAMBDA = "posttrain.reward_scale"
SHORT = {LAMBDA: "λ", "discriminator.r1": "R1", "posttrain.learning_rate": "learning rate", "posttrain.num_timesteps": "K"}
# How a run was carried out, and where its files lie: nothing that results hang on.
_HOW = ("name", "runtime.", "mesh.", "posttrain.host.", "data.directory", "data.in_memory", "data.workers")
_FREE = ("rewards", "fields", "utility")  # below them are names of the user's choice
# What distances are measured against.
_MEASURED = ("data.name", "data.image_shape", "data.num_classes", "data.classes", "data.split_seed", "data.validation_fraction")
_MEASURED += ("data.examples_per_class", "evaluate.split", "evaluate.max_real", "evaluate.to_uint8")
_BEFORE = {"data.classes": []}  # what configs of older versions meant, that do not know the key
_LONGEST = 12  # entries of a list that are written out
# With these alike, sample i has the same noise and label.
_NOISE = ("seed", "tokenizer.name", "tokenizer.fields")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What a workdir has.

    Attributes:
        name: Short, different from the other runs'.
        path: The workdir.
        config: Key with dots -> value.
        stages: Names of the finished stages, in order.
        evaluation: Result of the evaluate stage; None where it is not finished.
        metrics: Lines of `metrics.jsonl`.
        machine: Lines of `machine.jsonl`.
        seconds: Stage -> seconds so far.
        arrays: Pictures and gates that the evaluate stage kept; empty without.
        fingerprints: "reward" and "judge" -> which encoder, as far as the run has them.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    stages: tuple[str, ...]
    evaluation: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, Any]]
    machine: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]
    arrays: Mapping[str, np.ndarray]
    fingerprints: Mapping[str, str]

    @property
    def missing(self) -> list[str]:
        """Stages without a result."""
        return [stage for stage in ORDER if stage not in self.stages]

    @property
    def noise(self) -> tuple[str, ...]:
        """Equal for runs whose samples start from the same noise."""
        return tuple(json.dumps(self.config.get(key)) for key in _NOISE)


def read(paths: Sequence[Path]) -> list[RunFolder]:
    """Reads runs.

    Args:
        paths: Two workdirs or more.

    Returns:
        The runs, in this order.

    Raises:
        UserError: If one is no workdir, damaged or named twice, or they were measured on different data.
    """
    if len(paths) < 2:
        raise UserError("a comparison needs two workdirs or more; for example `jaxdrl compare runs/lambda1 runs/lambda3`")
    resolved = [path.resolve() for path in paths]
    twice = [path for i, path in enumerate(paths) if resolved[i] in resolved[:i]]
    if twice:
        raise UserError(f"{twice[0]} is named twice")
    runs = [_read(path, name) for path, name in zip(paths, short_names(resolved), strict=True)]
    for key in _MEASURED:
        for run in runs[1:]:
            here, there = (found.config.get(key, _BEFORE.get(key)) for found in (runs[0], run))
            if here != there:
                raise UserError(
                    f"{runs[0].path} and {run.path} have different data (config.{key} is {_word(here)} and {_word(there)}); "
                    "their distances cannot be compared"
                )
    return runs


def short_names(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as long as needed to tell them apart.

    Args:
        paths: All different, absolute.

    Returns:
        Such as "base_1/seed0" and "base_3/seed0".
    """
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differing(runs: Sequence[RunFolder]) -> list[str]:
    """Keys of the config in which runs differ, those that results hang on; λ first, then the seed, those of the evaluation last.

    Args:
        runs: Any.

    Returns:
        Keys with dots. A key that one run's config does not know, of an older version, counts only if the others differ in it; names
        that users choose, such as those of rewards, always.
    """
    known = dict.fromkeys(key for run in runs for key in run.config)
    found = []
    for key in known:
        chosen = any(part in _FREE for part in key.split(".")[:-1])
        values = {json.dumps(run.config.get(key)) for run in runs if key in run.config or chosen}
        if len(values) > 1 and not key.startswith(_HOW):
            found.append(key)
    return sorted(found, key=lambda key: (key != LAMBDA, key != "seed", key.startswith("evaluate.")))


def telling(runs: Sequence[RunFolder], keys: Sequence[str]) -> list[str]:
    """As few keys as tell runs apart that some keys tell apart.

    Args:
        runs: Any.
        keys: With dots.

    Returns:
        Those of the keys, in their order, that each tell more runs apart than the ones before.
    """
    count = lambda some: len({tuple(value(run, key) for key in some) for run in runs})  # noqa: E731
    kept: list[str] = []
    for key in keys:
        if count([*kept, key]) > count(kept):
            kept.append(key)
    return kept


def axis(runs: Sequence[RunFolder]) -> str | None:
    """What the runs are drawn against: λ where it differs, otherwise the only number besides the seed that does.

    Args:
        runs: Any.

    Returns:
        A key; None where there is no such, and runs are merely numbered.
    """
    keys = [key for key in differing(runs) if key != "seed"]
    numbers = [key for key in keys if all(_is_number(run.config.get(key)) for run in runs)]
    if LAMBDA in numbers:
        return LAMBDA
    return numbers[0] if len(numbers) == 1 and keys == numbers else None


def label(run: RunFolder, keys: Sequence[str]) -> str:
    """Values of some keys.

    Args:
        run: Any.
        keys: With dots.

    Returns:
        Such as "λ = 3, seed = 1"; the run's name where there are no keys.
    """
    return ", ".join(f"{short_key(key)} = {value(run, key)}" for key in keys) or run.name


def short_key(key: str) -> str:
    """A key's name in a legend.

    Args:
        key: With dots.

    Returns:
        "λ" for the reward scale, the last part for most others; the two last for the vague ones.
    """
    *parents, last = key.split(".")
    vague = last in ("name", "weights", "width", "depth", "steps", "batch_size", "learning_rate", "fields", "dtype")
    return SHORT.get(key, ".".join(key.split(".")[-2:]) if vague or set(parents[-1:]) & set(_FREE) else last)


def value(run: RunFolder, key: str) -> str:
    """A key's value as text.

    Args:
        run: Any.
        key: With dots.

    Returns:
        Short text; "–" where this run's config does not know the key.
    """
    if key not in run.config:
        return "–"
    return "yes" if run.config[key] == {} and any(part in _FREE for part in key.split(".")[:-1]) else _word(run.config[key])


def notes(runs: Sequence[RunFolder]) -> list[str]:
    """What a reader must know before comparing: a sentence each.

    Args:
        runs: Any.

    Returns:
        Plain text.
    """
    said = []
    for run in runs:
        if run.missing and run.missing != ["report"]:
            last = f"finished: {', '.join(run.stages)}" if run.stages else "no stage is finished"
            said.append(f"{run.name} is not finished ({last}; missing: {', '.join(run.missing)}); it is shown with what it has.")
    if len({run.noise for run in runs}) > 1:
        keys = [key for key in _NOISE if len({json.dumps(run.config.get(key)) for run in runs}) > 1]
        said.append(
            f"The runs do not all have the same noise (config.{', config.'.join(keys)} differs): pictures stand side by side only where "
            "they have."
        )
    for which in ("reward", "judge"):
        found = {run.fingerprints[which] for run in runs if which in run.fingerprints}
        if len(found) > 1:
            said.append(
                f"The runs have {len(found)} different {which} encoders: distances in the {which} space are each in a space of its own, "
                "and only their relative changes may be compared."
            )
    counts = {run.config["evaluate.num_samples"] for run in runs if run.evaluation and "evaluate.num_samples" in run.config}
    if len(counts) > 1:
        listed = ", ".join(map(str, sorted(counts)))
        said.append(f"The runs were measured with different numbers of samples ({listed}); a distance falls with their number.")
    return said


def _read(path: Path, name: str) -> RunFolder:
    if not path.is_dir():
        raise UserError(f"{path} is no folder; `jaxdrl compare` takes workdirs of runs")
    if not (path / "config.json").is_file():
        raise UserError(f"{path} holds no run (no config.json)")
    try:
        results = {stage: stage_result(path, stage) for stage in ORDER}
        finished = {stage: result for stage, result in results.items() if result is not None}
        seconds = {stage: _seconds(path, stage, finished.get(stage)) for stage in ORDER}
        arrays = path / "evaluate" / "report_arrays.safetensors"
        return RunFolder(
            name=name,
            path=path,
            config=_flat(read_config(path)),
            stages=tuple(finished),
            evaluation=finished.get("evaluate"),
            metrics=read_metrics(path),
            machine=read_metrics(path, "machine.jsonl"),
            seconds={stage: spent for stage, spent in seconds.items() if spent is not None},
            arrays=files.load_tree(arrays) if "evaluate" in finished and arrays.exists() else {},
            fingerprints={
                which: spec["fingerprint"]
                for which, spec in finished.get("encoders", {}).items()
                if isinstance(spec, Mapping) and "fingerprint" in spec
            },
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: a file of this run is damaged ({error})") from None


def _seconds(path: Path, stage: str, result: Mapping[str, Any] | None) -> float | None:
    if result is not None:
        return float(result.get("seconds", 0.0))
    spent = path / stage / "seconds.json"
    return float(json.loads(spent.read_text())) if spent.exists() else None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by key with dots; an empty dict is a leaf."""
    found: dict[str, Any] = {}
    for key, leaf in tree.items():
        found |= _flat(leaf, f"{prefix}{key}.") if isinstance(leaf, Mapping) and leaf else {f"{prefix}{key}": leaf}
    return found


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, int | float) and not isinstance(leaf, bool)


def _word(leaf: Any) -> str:
    if isinstance(leaf, float):
        return f"{leaf:g}"
    if isinstance(leaf, list) and len(leaf) > _LONGEST:
        return f"[{', '.join(map(_word, leaf[:_LONGEST]))} and {len(leaf) - _LONGEST} more]"
    if isinstance(leaf, list):
        return "×".join(map(_word, leaf)) if leaf and all(map(_is_number, leaf)) else "[" + ", ".join(map(_word, leaf)) + "]"
    if isinstance(leaf, str) and leaf.count("/") > 2:
        return "…/" + "/".join(leaf.split("/")[-2:])
    return "none" if leaf in ("", {}, None) else str(leaf)
