"""Stage 6: base and tuned model against held-out data, in spaces that the reward saw and spaces that it did not.

Rows: `floor` (train images), `base`, `tuned`, `ideal_tilt` (base samples resampled by exp(lambda r), where the discriminator's logit r is the
reward of Adjoint Matching, which aims at it), and the controls `longer_pretraining` (equal compute), `best_cfg` and `tuned_best_cfg`
(guidance scale and interval chosen on the validation split).
All models get the same noise and labels. Samples go through uint8, as published samples do, and are measured as they are drawn: what is
kept of a row is its features, in a folder of its own from which an interrupted evaluation goes on.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdrl import data
from jaxdrl.config import Config
from jaxdrl.data import Source
from jaxdrl.errors import UserError
from jaxdrl.evaluation import classifier, drift, frechet, memorisation, protocol, reward_spaces, search, spaces, tilt
from jaxdrl.evaluation.collect import Collected, ImageSource, collect
from jaxdrl.evaluation.image_sources import Split
from jaxdrl.evaluation.sampling import Guidance
from jaxdrl.training import distributed, generation, loading, measuring, models, reward_weights
from jaxdrl.training.context import Run
from jaxdrl.training.metrics import read_metrics
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_seed
from jaxdrl.training.workdir import data_directory, stage_result

name = "evaluate"
_SVM_SIDE = 32  # larger images are classified by their neighbours in the judge space
_SPACES = measuring.NAMES
_GATE_TIMES, _GATE_CLASSES = 21, 16


def run(run: Run) -> dict:
    """Samples, measures, and keeps what the report draws.

    Args:
        run: The run, with all training stages finished.

    Returns:
        The tables of the report.

    Raises:
        UserError: If `config.evaluate.split` is unknown or fewer than 2 samples a class are asked for.
    """
    config, settings = run.config, run.config.evaluate
    if settings.split not in ("test", "validation"):
        raise UserError(f"config.evaluate.split: {settings.split!r} must be test or validation")
    if settings.num_samples < 2 * config.data.num_classes:
        raise UserError(f"config.evaluate.num_samples ({settings.num_samples}) must be at least 2 a class")
    sets = _Sets(run)
    guidance = sets.collect_all()
    options = protocol.Settings(
        kernel_subsets=settings.kernel_subsets,
        kernel_subset_size=settings.kernel_subset_size,
        bootstrap=settings.bootstrap,
        seed=config.seed,
    )
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    names = ["floor", *sets.generated]
    progress = Progress(name, len(names), unit="row", seconds=0.0)
    for number, row in enumerate(names, 1):
        real = sets.real(settings.split)
        rows[row] = {space: protocol.measure(real.features[space], sets.features(row, space), options) for space in _SPACES}
        progress.update(number, judge=rows[row]["judge"]["frechet"])
    _keep_for_report(run, sets)
    return _tables(run, rows) | _single_numbers(run, sets) | {"guidance": guidance}


class _Sets:
    """Features of the splits and of every row's samples, collected once and read from their folders."""

    def __init__(self, run: Run) -> None:
        self._run, self._config = run, run.config
        self.spaces = measuring.run_spaces(run.config, run.workdir)
        self._logit = measuring.logit_space(run.config, run.workdir, self.spaces[0])
        colour = [spaces.image_statistics("drift")] if run.config.data.image_shape[2] == 3 else []
        self.rewards = [*dict(run.config.posttrain.rewards), *dict(run.config.evaluate.rewards)]
        scores = measuring.reward_spaces(run.config, run.workdir, reward_weights.load(run))
        self._all = [*self.spaces, self._logit, *colour, *scores]
        self.generated: list[str] = []
        self._rows: dict[str, Collected] = {}
        self._chosen = np.zeros(0, int)

    @property
    def tilts(self) -> bool:
        """Whether the base tilted by the logit is what the method aims at."""
        return self._config.posttrain.algorithm == "adjoint_matching" and list(dict(self._config.posttrain.rewards)) == [
            "discriminator"
        ]

    def real(self, part: str) -> Collected:
        """Of a split; the floor's is of the train images."""
        return self._collect(f"real_{part}", Split(_split(self._run, part), self._config.evaluate.max_real), {"split": part})

    def row(self, row: str) -> Collected:
        return self.real("train") if row == "floor" else self._rows["pool" if row == "ideal_tilt" else row]

    def features(self, row: str, space: str) -> np.ndarray:
        found = self.row(row).features[space]
        return found[self._chosen] if row == "ideal_tilt" else found

    def labels(self, row: str) -> np.ndarray:
        found = self.row(row).labels
        return found[self._chosen] if row == "ideal_tilt" else found

    def logits(self, row: str) -> np.ndarray:
        return self.features(row, "logit")[:, 0]

    def collect_all(self) -> dict[str, dict[str, Any]]:
        """Every row, in the order of the table; returns the best guidances."""
        settings, guidance = self._config.evaluate, {}
        num = settings.num_samples
        for row in ("base", "tuned"):
            self._draw(row, row, num)
        if self.tilts:
            self._draw("pool", "base", settings.tilt_pool * num)
            scale, pool = self._config.posttrain.reward_scale, self._rows["pool"]
            self._chosen = tilt.ideal_tilt(pool.features["logit"][:, 0], pool.labels, scale, num, self._config.seed)
            self.generated.append("ideal_tilt")
        if settings.controls:
            self._draw("longer_pretraining", "longer", num)
        if settings.best_guidance:
            for row, model in (("best_cfg", "base"), ("tuned_best_cfg", "tuned")):
                best = self._choose_guidance(model)
                self._draw(row, model, num, best.guidance)
                guidance[row] = {
                    "scale": best.guidance.scale,
                    "interval": list(best.guidance.interval),
                    "judge": best.numbers["judge"],
                }
        return guidance

    def _draw(self, row: str, model: str, num: int, guidance: Guidance | None = None) -> None:
        seed = stage_seed(self._config.seed, f"evaluate/{'pool' if row == 'pool' else 'samples'}")
        described = {"model": model, "guidance": list(guidance or ())}
        self._rows[row] = self._collect(row, self._source(model, num, seed, guidance), described)
        if row != "pool":
            self.generated.append(row)

    def _source(self, model: str, num: int, seed: int, guidance: Guidance | None) -> generation.Samples:
        params = loading.load_model(self._config, self._run.workdir, model)
        guidance = None if guidance is not None and guidance.scale == 1.0 else guidance
        steps = self._config.evaluate.sampling_steps
        return generation.Samples(self._config, params, num=num, seed=seed, num_steps=steps, guidance=guidance)

    def _collect(self, folder: str, source: ImageSource, described: dict[str, Any]) -> Collected:
        return collect(
            source,
            self._all,
            self._run.workdir / name / folder,
            keep=[space.name for space in self._all],
            description=described,
            batch_size=self._config.evaluate.batch_size,
            seconds=self._config.runtime.checkpoint_seconds,
            stop=lambda: self._run.stopping.signalled,
        )

    def _choose_guidance(self, model: str) -> search.Cell:
        """Scale and interval with the least judge-space distance to the validation images."""
        settings, judge = self._config.evaluate, [space for space in self.spaces if space.name == "judge"]
        reference = frechet.Reference(self.real("validation").moments["judge"])
        seed = stage_seed(self._config.seed, "evaluate/guidance")

        def measure(guidance: Guidance) -> dict[str, float]:
            source = self._source(model, settings.guidance_samples, seed, guidance)
            return {"judge": reference.distance(collect(source, judge, None, batch_size=settings.batch_size).moments["judge"])}

        points = search.grid(settings.guidance_scales, settings.guidance_intervals)
        kept = {"samples": settings.guidance_samples, "steps": settings.sampling_steps}
        return search.best(search.search(points, measure, self._run.workdir / name / f"guidance_{model}", kept), "judge")

    def few_images(self, row: str, each: int = 8, classes: int = 20) -> np.ndarray:
        """The first images of the first classes, in rows; drawn again, since no image is kept."""
        classes = min(self._config.data.num_classes, classes)
        if row == "real":
            source = _split(self._run, self._config.evaluate.split)
            labels = source.read_labels()
            firsts = np.concatenate([np.resize(np.flatnonzero(labels == y), each) for y in range(classes)])
            return np.stack([source[int(index)]["image"] for index in firsts])
        seed = stage_seed(self._config.seed, "evaluate/samples")
        source = self._source(row, self._config.evaluate.num_samples, seed, None)
        stride = self._config.data.num_classes
        rounds = range(0, min(each * stride, len(source)), stride)
        columns = []
        for start in rounds:
            stop = min(start + classes, len(source))
            columns.append(
                np.concatenate([images for images, _ in source.batches(start, stop, self._config.evaluate.batch_size)])
            )
        whole = [column for column in columns if len(column) == classes]
        return np.stack([whole[i % len(whole)] for i in range(each)], axis=1).reshape(classes * each, *whole[0].shape[1:])


def _split(run: Run, part: str) -> Source:
    return data.open_split(run.config.data, data_directory(run), part)


def _tables(run: Run, rows: dict) -> dict[str, Any]:
    judged = {metric: protocol.by_space(rows, metric) for metric in ("precision", "recall", "density", "coverage")}
    return {
        "algorithm": run.config.posttrain.algorithm,
        "trained_on": list(dict(run.config.posttrain.rewards)),
        "samples": run.config.evaluate.num_samples,
        "split": run.config.evaluate.split,
        "spaces": protocol.by_space(rows, "frechet"),
        "spaces_se": protocol.by_space(rows, "frechet_se"),
        "spaces_change_se": protocol.paired_errors(rows, "base"),
        "spaces_tuned_se": protocol.paired_errors(rows, "tuned"),
        "kernel": protocol.by_space(rows, "kernel"),
        "kernel_se": protocol.by_space(rows, "kernel_se"),
        **{metric: table["judge"] for metric, table in judged.items()},
        "reward_space": {metric: table["reward"] for metric, table in judged.items()},
    }


def _single_numbers(run: Run, sets: _Sets) -> dict[str, Any]:
    """Accuracy, memorisation, rewards and drift by row; KL spent; effective sample size and share of the ideal shift."""
    held_out = sets.real(run.config.evaluate.split)
    few = lambda values: protocol.spread(values, 5000)  # noqa: E731
    train, others = sets.real("train").features["pixels"], few(held_out.features["pixels"])
    means = {row: float(sets.logits(row).mean()) for row in sets.generated}
    means["data"] = float(held_out.features["logit"].mean())
    lines = distributed.from_first(read_metrics(run.workdir))
    energies = [line["control_energy"] for line in lines if line["stage"] == "posttrain"]
    kl = float(np.mean(energies[-max(1, len(energies) // 8) :]))
    copied = {row: memorisation.copies(few(sets.features(row, "pixels")), train, others) for row in sets.generated}
    features = {"data": held_out.features.__getitem__} | {row: partial(sets.features, row) for row in sets.generated}
    return {
        **_accuracies(run, sets, held_out),
        "memorisation": copied | {"floor": 0.05},
        "drift": _drifts(sets, held_out),
        "reward_mean": means,
        "rewards": reward_spaces.table(sets.rewards, features),
        "kl": kl,
        **(_ideal_numbers(run, sets, means["tuned"] - means["base"], kl) if sets.tilts else {}),
        "control": stage_result(run.workdir, "longer") or {},
    }


def _ideal_numbers(run: Run, sets: _Sets, tuned_shift: float, kl: float) -> dict[str, Any]:
    """What the ideal tilt would have reached."""
    scale, pool = run.config.posttrain.reward_scale, sets.row("pool")
    rewards = pool.features["logit"][:, 0]
    mean, per_class = tilt.effective_sample_size(rewards, pool.labels, scale)
    shift = tilt.tilted_mean(rewards, pool.labels, scale) - float(rewards.mean())
    return {
        "ess": {"mean": mean, "per_class": per_class.tolist()},
        "ideal_share": tuned_shift / shift if abs(shift) > 1e-9 else float("nan"),
        "projection_ratio": tilt.projection_ratio(tuned_shift, kl, scale),
    }


def _accuracies(run: Run, sets: _Sets, held_out: Collected) -> dict[str, Any]:
    """Are samples of the class that was asked for? By pixels where images are small, otherwise by neighbours in the judge space."""
    train = sets.real("train")
    if max(run.config.data.image_shape[:2]) <= _SVM_SIDE:
        machine = classifier.PixelClassifier(train.features["pixels"], train.labels)
        predict, space = machine.predict, "pixels"
    else:
        predict, space = (lambda features: classifier.predict(train.features["judge"], train.labels, features)), "judge"
    predicted = {row: predict(sets.features(row, space)) for row in sets.generated}
    shares = {row: float((found == sets.labels(row)).mean()) for row, found in predicted.items()}
    shares["floor"] = float((predict(held_out.features[space]) == held_out.labels).mean())
    by_class = {row: classifier.accuracy_by_class(predicted[row], sets.labels(row)) for row in ("base", "tuned")}
    return {"accuracy": shares, "accuracy_space": space, "accuracy_by_class": by_class}


def _drifts(sets: _Sets, held_out: Collected) -> dict[str, dict[str, float]]:
    """The five statistics by row, of colour images."""
    if "drift" not in held_out.moments:
        return {}
    rows = {"data": held_out.features["drift"]} | {row: sets.features(row, "drift") for row in sets.generated}
    return {row: dict(zip(drift.NAMES, map(float, values.mean(axis=0)), strict=True)) for row, values in rows.items()}


def _keep_for_report(run: Run, sets: _Sets) -> None:
    """Grids, scatter plots and logits, in one file."""
    held_out = sets.real(run.config.evaluate.split)
    kept = {f"grid_{row}": sets.few_images(row) for row in ("real", "base", "tuned")}
    shown = {"data": held_out, "base": sets.row("base"), "tuned": sets.row("tuned")}
    for space in ("reward", "judge"):
        project = protocol.principal_plane(held_out.features[space])
        for row, found in shown.items():
            kept[f"pca_{space}_{row}"] = project(protocol.spread(found.features[space], 700)).astype(np.float32)
    kept["logits_real"] = np.array(held_out.features["logit"][:, 0])
    for row in ("base", "tuned"):
        kept[f"logits_{row}"] = np.array(sets.logits(row))
    kept |= {f"gates_{row}": found for row in ("base", "tuned") if (found := _gates(run.config, run.workdir, row)) is not None}
    distributed.save_tree(run.workdir / name / "report_arrays.safetensors", kept)


def _gates(config: Config, workdir: Path, row: str) -> np.ndarray | None:
    """SpectralDiT's gates by block and time, [2, depth, times], means over the first classes; None where the network has none."""
    network = models.backbone(config)
    if network.gates is None:
        return None
    times, classes = (
        np.linspace(0, 1, _GATE_TIMES, dtype=np.float32),
        np.arange(min(network.num_classes, _GATE_CLASSES), dtype=np.int32),
    )
    with distributed.alone():
        params = loading.load_model(config, workdir, row)
        found = np.asarray(network.gates(params, jnp.tile(times, len(classes)), jnp.repeat(classes, len(times))), np.float32)
    return found.reshape(len(classes), len(times), -1, 2).mean(axis=0).transpose(2, 1, 0)
