"""Stage 6: base and tuned model against held-out data, in spaces that the reward saw and spaces that it did not.

Rows: `floor` (train images), `base`, `tuned`, `ideal_tilt` (base samples resampled by exp(lambda r)), and the controls
`longer_pretraining` (equal compute), `best_cfg` and `tuned_best_cfg` (guidance scale and interval chosen on the validation split).
All models get the same noise and labels. Samples go through uint8, as published samples do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jaxdrl import data
from jaxdrl.errors import UserError
from jaxdrl.evaluation import classifier, frechet, memorisation, protocol, tilt
from jaxdrl.evaluation.sampling import Guidance
from jaxdrl.evaluation.statistics import Moments
from jaxdrl.training import generation, loading, models, plateau
from jaxdrl.training.batching import compiled
from jaxdrl.training.context import Run
from jaxdrl.training.metrics import read_metrics
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_seed
from jaxdrl.training.workdir import data_directory, stage_result
from jaxdrl.weights import files

name = "evaluate"


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
    splits = {part: _split(run, part) for part in ("train", "validation", settings.split)}
    rewards = _reward(run)
    samples, guidance = _all_samples(run, splits["validation"][0], rewards)
    spaces = plateau.spaces(run)
    real = {space: function(splits[settings.split][0]) for space, function in spaces.items()}
    options = protocol.Settings(
        kernel_subsets=settings.kernel_subsets,
        kernel_subset_size=settings.kernel_subset_size,
        bootstrap=settings.bootstrap,
        seed=config.seed,
    )
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    images = {"floor": splits["train"][0]} | {row: part[0] for row, part in samples.items() if row != "pool"}
    progress = Progress(name, len(images), unit="row", seconds=0.0)
    for number, (row, part) in enumerate(images.items(), 1):
        rows[row] = {space: protocol.measure(real[space], function(part), options) for space, function in spaces.items()}
        progress.update(number, judge=rows[row]["judge"]["frechet"])
    _keep_for_report(run, splits, samples, spaces, rewards)
    return _tables(run, rows) | _single_numbers(run, splits, samples, rewards) | {"guidance": guidance}


def _split(run: Run, part: str) -> tuple[np.ndarray, np.ndarray]:
    return data.load_arrays(data.open_split(run.config.data, data_directory(run), part), run.config.evaluate.max_real)


def _reward(run: Run) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    config = run.config
    weights = (loading.load_encoder(config, run.workdir, "reward"), loading.load_discriminator(run.workdir))
    return compiled(lambda weights, images, labels: models.reward(config, *weights)(images, labels), weights)


def _all_samples(run: Run, validation: np.ndarray, rewards) -> tuple[dict, dict]:
    """Draws every row's samples, or reads those that an interrupted evaluation has drawn."""
    settings, guidance = run.config.evaluate, {}
    num = settings.num_samples
    samples = {"base": _draw(run, "base", "base", num), "tuned": _draw(run, "tuned", "tuned", num)}
    pool, pool_labels = _draw(run, "pool", "base", settings.tilt_pool * num)
    scale = run.config.posttrain.reward_scale
    chosen = tilt.ideal_tilt(rewards(pool, pool_labels), pool_labels, scale, num, run.config.seed)
    samples["ideal_tilt"] = (pool[chosen], pool_labels[chosen])
    samples["pool"] = (pool, pool_labels)
    if settings.controls:
        samples["longer_pretraining"] = _draw(run, "longer_pretraining", "longer", num)
    if settings.best_guidance:
        for row, model in (("best_cfg", "base"), ("tuned_best_cfg", "tuned")):
            guidance[row] = _choose_guidance(run, model, validation)
            best = Guidance(guidance[row]["scale"], tuple(guidance[row]["interval"]))
            samples[row] = _draw(run, row, model, num, best)
    return samples, guidance


def _draw(run: Run, row: str, model: str, num: int, guidance: Guidance | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One row's uint8 images, from its file if there is one."""
    path = run.workdir / name / f"{row}.safetensors"
    if path.exists():
        kept = files.load_tree(path)
        return kept["images"], kept["labels"]
    purpose = "pool" if row == "pool" else "samples"
    params = loading.load_model(run.config, run.workdir, model)
    images, labels = _generate(run, params, num, stage_seed(run.config.seed, f"evaluate/{purpose}"), guidance)
    files.save_tree(path, {"images": images, "labels": labels})
    return images, labels


def _generate(run: Run, params: PyTree, num: int, seed: int, guidance: Guidance | None) -> tuple[np.ndarray, np.ndarray]:
    steps = run.config.evaluate.sampling_steps
    finish = generation.as_bytes(run.config)
    return generation.generate(run.config, params, finish, num=num, seed=seed, num_steps=steps, guidance=guidance)


def _choose_guidance(run: Run, model: str, validation: np.ndarray) -> dict[str, Any]:
    """Scale and interval with the least judge-space distance to the validation images."""
    settings = run.config.evaluate
    path = run.workdir / name / f"guidance_{model}.safetensors"
    if path.exists():
        kept = files.load_tree(path)
        return {"scale": float(kept["scale"]), "interval": [float(x) for x in kept["interval"]], "judge": float(kept["judge"])}
    judge = plateau.spaces(run)["judge"]
    reference = frechet.Reference(Moments.of(judge(validation)))
    seed, found = stage_seed(run.config.seed, "evaluate/guidance"), []
    params = loading.load_model(run.config, run.workdir, model)
    for scale in settings.guidance_scales:
        for interval in settings.guidance_intervals:
            guidance = Guidance(float(scale), (float(interval[0]), float(interval[1])))
            images, _ = _generate(run, params, settings.guidance_samples, seed, guidance)
            distance = reference.distance(Moments.of(judge(images)))
            found.append((distance, guidance))
    distance, best = min(found, key=lambda pair: pair[0])
    kept = {"scale": np.float64(best.scale), "interval": np.array(best.interval), "judge": np.float64(distance)}
    files.save_tree(path, kept)
    return {"scale": best.scale, "interval": list(best.interval), "judge": distance}


def _tables(run: Run, rows: dict) -> dict[str, Any]:
    judged = {metric: protocol.by_space(rows, metric) for metric in ("precision", "recall", "density", "coverage")}
    return {
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


def _single_numbers(run: Run, splits: dict, samples: dict, rewards) -> dict[str, Any]:
    """Accuracy, memorisation and rewards by row; effective sample size, share of the ideal shift, KL spent."""
    settings = run.config.evaluate
    pixels = lambda images: plateau.thumbnails(images, 64)  # noqa: E731
    machine = classifier.PixelClassifier(pixels(splits["train"][0]), splits["train"][1])
    flat = lambda images: protocol.spread(pixels(images), 5000)  # noqa: E731
    train, held_out = pixels(splits["train"][0]), flat(splits[settings.split][0])
    shown = {row: part for row, part in samples.items() if row != "pool"}
    means = {row: float(rewards(*part).mean()) for row, part in shown.items()}
    means["data"] = float(rewards(*splits[settings.split]).mean())
    pool_rewards, scale = rewards(*samples["pool"]), run.config.posttrain.reward_scale
    ideal = tilt.tilted_mean(pool_rewards, samples["pool"][1], scale)
    mean, per_class = tilt.effective_sample_size(pool_rewards, samples["pool"][1], scale)
    shift, tuned_shift = ideal - float(pool_rewards.mean()), means["tuned"] - means["base"]
    energies = [line["control_energy"] for line in read_metrics(run.workdir) if line["stage"] == "posttrain"]
    kl = float(np.mean(energies[-max(1, len(energies) // 8) :]))
    return {
        "accuracy": {
            row: machine.accuracy(pixels(images), labels)
            for row, (images, labels) in (shown | {"floor": splits[settings.split]}).items()
        },
        "memorisation": {row: memorisation.copies(flat(part[0]), train, held_out) for row, part in shown.items()}
        | {"floor": 0.05},
        "reward_mean": means,
        "ess": {"mean": mean, "per_class": per_class.tolist()},
        "ideal_share": tuned_shift / shift if abs(shift) > 1e-9 else float("nan"),
        "kl": kl,
        "projection_ratio": tilt.projection_ratio(tuned_shift, kl, scale),
        "control": stage_result(run.workdir, "longer") or {},
    }


def _keep_for_report(run: Run, splits: dict, samples: dict, spaces: dict, rewards) -> None:
    """Grids, scatter plots and logits, in one file."""
    config = run.config
    classes = min(config.data.num_classes, 20)
    firsts = lambda labels: np.concatenate([np.resize(np.flatnonzero(labels == y), 8) for y in range(classes)])  # noqa: E731
    kept = {f"grid_{row}": samples[row][0][firsts(samples[row][1])] for row in ("base", "tuned")}
    real = splits[config.evaluate.split]
    kept["grid_real"] = real[0][firsts(real[1])]
    shown = {"data": real[0], "base": samples["base"][0], "tuned": samples["tuned"][0]}
    for space in ("reward", "judge"):
        project = protocol.principal_plane(spaces[space](real[0]))
        for row, images in shown.items():
            kept[f"pca_{space}_{row}"] = project(spaces[space](protocol.spread(images, 700))).astype(np.float32)
    kept["logits_real"] = rewards(*real)
    for row in ("base", "tuned"):
        kept[f"logits_{row}"] = rewards(*samples[row])
    files.save_tree(run.workdir / name / "report_arrays.safetensors", kept)
