"""`jaxdrl evaluate` on files or on a checkpoint: collects features, computes metrics, prints a table and writes JSON."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from jaxdrl.config import Config, default
from jaxdrl.errors import UserError

EVALUATE_HELP = """usage: jaxdrl evaluate --samples A --reference B --metrics fid,sfid,is,prdc --weights DIR[,DIR ...] [options]
       jaxdrl evaluate --workdir=DIR --num=50000 [--model=tuned] [--guidance=1.5] [--interval=0.1,1] [options]
       jaxdrl evaluate --workdir=DIR                       (the stages of a run up to its own evaluation)

what is measured
  --samples    .npz (arr_0, uint8 NHWC; streamed), a folder of .png/.jpg, or split:NAME of a data set (with --config or --workdir)
  --num        how many samples; of --samples the first, of a split some; default all, of a checkpoint what its config says
  --workdir    samples straight from a run's checkpoint: --model (tuned, base, longer), --seed, --steps, --guidance,
               --interval; labels are balanced, image i is the same whatever the batch size and the number of hosts
  --reference  images as for --samples; or statistics: ADM's VIRTUAL_*.npz, JiT's, MeanFlow's, EDM2's .pkl, or --save_statistics';
               default in a workdir: split:<config.evaluate.split>
  --train      the generator's training images, for memorisation

how
  --metrics    fid, sfid, fid-pytorch-fid, fid-clean-fid, is, is-torch-fidelity, kid, cmmd, fd-dinov2, fd-dinov3, fd-siglip,
               fd-clip, fd-mae, fd-convnext, fdr6, spectrum, drift; and in the space of --encoder: fd, fd-infinity, kd, prdc
               (precision, recall, density, coverage), adm-pr, accuracy, memorisation.
               Default: fid,sfid,is,prdc; in a workdir fd,kd,prdc
  --rewards    published reward models and image statistics: pickscore, hpsv2, hpsv2.1, clipscore, imagereward, aesthetic,
               aesthetic-v2, brightness, symmetry ...; mean and spread, against --base the shift in the base's standard
               deviations, and how images drift
  --base       samples of the untuned model, as for --samples; in a workdir the base's own, with the same noise
  --class_names, --prompt: what labels stand for (imagenet or digits, with a run those of its classes; a file with a
               name a line) and "a photo of a {class}"
  --encoder    a space or a published encoder (default inception); in a workdir also judge (the default), reward, pixels
  --weights    folders that `jaxdrl convert` made, one an encoder; "random" draws weights, to try a pipeline out
  --bootstrap  resamples for 95 % confidence intervals of Frechet distances, Inception Score, prdc, accuracy; default 0
  --batch_size images a device and call; default 64
  --k, --density_k, --kd_subsets, --kd_subset_size: precision and recall (3), density and coverage (5), KD (100 of 1000)

what is written
  --out        folder for metrics.json and the state from which an interrupted call goes on; default beside the samples
  --save_statistics  FILE.npz: statistics of the samples with their specification, a --reference for later

examples
  jaxdrl convert --model=inception-v3-fid --from=pt_inception-2015-12-05-6726825d.pth --to=models/inception
  jaxdrl evaluate --samples a.npz --reference VIRTUAL_imagenet256_labeled.npz --metrics fid,sfid,is,adm-pr \\
      --weights models/inception
  jaxdrl evaluate --workdir=runs/first --guidance=1.5 --interval=0.1,1 --num=50000 --metrics=fd,prdc --encoder=judge
"""

_DEFAULTS = {"files": ["fid", "sfid", "is", "prdc"], "workdir": ["fd", "kd", "prdc"]}
OF_CHECKPOINT = ("model", "guidance", "interval", "seed", "steps")
_TEXTS = ("samples", "reference", "train", "base", "encoder", "out", "save_statistics", "class_names", "prompt")
# name -> (default, least)
_INTEGERS = {
    **{"num": (None, 1), "steps": (None, 1), "seed": (None, 0), "bootstrap": (0, 0), "batch_size": (64, 1)},
    **{"k": (3, 1), "density_k": (5, 1), "kd_subsets": (100, 1), "kd_subset_size": (1000, 1)},
}
OWN_FLAGS = (*_TEXTS, *_INTEGERS, "model", "metrics", "rewards", "weights", "interval", "guidance")


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags.

    Args:
        values: Where they are defined.
    """
    for name in _TEXTS:
        flags.DEFINE_string(name, None, "See --help.", flag_values=values)
    for name, (start, least) in _INTEGERS.items():
        flags.DEFINE_integer(name, start, "See --help.", lower_bound=least, flag_values=values)
    flags.DEFINE_string("model", "tuned", "base, tuned or longer.", flag_values=values)
    flags.DEFINE_list("rewards", [], "See --help.", flag_values=values)
    flags.DEFINE_list("metrics", None, "See --help.", flag_values=values)
    flags.DEFINE_list("weights", [], "Folders.", flag_values=values)
    flags.DEFINE_list("interval", ["0", "1"], "Times at which guidance acts.", flag_values=values)
    flags.DEFINE_float("guidance", 1.0, "Scale.", flag_values=values)


def wanted(values: flags.FlagValues) -> bool:
    """Whether the command measures something of its own, rather than running the stages of a workdir.

    Args:
        values: Parsed.

    Returns:
        True if any of the command's own flags was given.
    """
    return any(values[name].present for name in OWN_FLAGS)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A set of images and what there is to say of it.

    Attributes:
        source: An `ImageSource`.
        description: Of the images, for the state and for the result.
    """

    source: Any
    description: dict[str, Any]


def run(values: flags.FlagValues, config: Config) -> int:
    """Runs the command.

    Args:
        values: Parsed flags.
        config: Of the workdir or recipe; the default one otherwise.

    Returns:
        0.

    Raises:
        UserError: If something is missing or does not fit.
    """
    from jaxdrl.evaluation import suite

    of_run = not values.samples
    useless = [] if of_run else [name for name in OF_CHECKPOINT if values[name].present]
    if useless:
        raise UserError(f"--{useless[0]} is for samples of a checkpoint (--workdir alone); --samples are measured as they are")
    metrics = values.metrics or ([] if values.rewards else _DEFAULTS["workdir" if of_run else "files"])
    _check_rewards(values)
    if values.rewards and not of_run and not values.reference and not metrics:
        values.reference = values.base  # what drifts, drifts from the base
    if values.rewards and "drift" not in metrics and (of_run or values.reference):
        metrics = [*metrics, "drift"]
    encoder = values.encoder or ("judge" if of_run else "inception")
    options = suite.Options(
        kernel_subsets=values.kd_subsets,
        kernel_subset_size=values.kd_subset_size,
        k=values.k,
        density_k=values.density_k,
        bootstrap=values.bootstrap,
    )
    suite.spaces_of(metrics, encoder)  # refuses an unknown metric before anything is computed
    if of_run:
        samples = generated(values, config, values.guidance, interval(values))
    else:
        samples = images(values.samples, values, config, values.num or 0)
    out = Path(values.out) if values.out else _default_out(values)
    if not values.reference and not of_run and any(suite.get(name).reference for name in metrics):
        raise UserError("--reference is missing: images, or a file of statistics")
    result = measure(values, config, samples, metrics, encoder, options, out)
    print("\n" + table(result))
    print(f"\n{out / 'metrics.json'}")
    return 0


def interval(values: flags.FlagValues) -> tuple[float, float]:
    """Reads --interval.

    Args:
        values: Parsed flags.

    Returns:
        (low, high).

    Raises:
        UserError: If it is not two numbers.
    """
    try:
        low, high = (float(part) for part in values.interval)
    except ValueError:
        raise UserError(f"--interval must be LOW,HIGH, got {','.join(values.interval)!r}") from None
    return low, high


def images(place: str, values: flags.FlagValues, config: Config, limit: int = 0) -> Subject:
    """Images of a file, a folder or a split.

    Args:
        place: As given by the user.
        values: Parsed flags, for the workdir.
        config: For `split:`.
        limit: Only so many: the first of a file, drawn by a fixed seed from a split; 0: all.

    Returns:
        The images.

    Raises:
        UserError: If there are none.
    """
    from jaxdrl import data
    from jaxdrl.evaluation import image_sources

    if place.startswith("split:"):
        if config == default():
            raise UserError(f"{place}: give --config or --workdir, which say of which data set")
        folder = config.data.directory or (Path(values.workdir) / "data" if values.workdir else "")
        if not folder:
            raise UserError(f"{place}: give --config.data.directory or --workdir, where the data set is")
        split = data.open_split(config.data, Path(folder).expanduser(), place.removeprefix("split:"))
        source = image_sources.Split(split, limit)
        kept = {"source": f"{config.data.name} {place}", "to_uint8": "stored", "labels": "of the data"}
        chosen = data.class_names(config.data)
        return Subject(source=source, description=kept | ({"classes": list(chosen)} if chosen else {}))
    path = Path(place)
    source = image_sources.Files(path, limit)
    kept = {"source": path.name, "to_uint8": "stored", "labels": "of the file" if source.labelled else "unknown"}
    if path.is_file():
        kept["written"] = str(path.stat().st_mtime_ns)
    return Subject(source=source, description=kept)


def generated(values: flags.FlagValues, config: Config, scale: float, times: tuple[float, float], model: str = "") -> Subject:
    """Samples of a run's model.

    Args:
        values: Parsed flags.
        config: Of the run.
        scale: Of guidance; 1 is none.
        times: At which it acts.
        model: Which; empty: as --model says.

    Returns:
        The images.

    Raises:
        UserError: If the model is not there.
    """
    from jaxdrl.evaluation.sampling import Guidance
    from jaxdrl.training import generation, loading
    from jaxdrl.weights import files

    model = model or values.model
    params = loading.load_model(config, Path(values.workdir), model)
    num, steps = values.num or config.evaluate.num_samples, values.steps or config.evaluate.sampling_steps
    seed = values.seed or 0
    guidance = None if scale == 1.0 else Guidance(scale, times)
    source = generation.Samples(config, params, num=num, seed=seed, num_steps=steps, guidance=guidance)
    description = {
        "source": f"{model} of {Path(values.workdir).name}",
        "weights": files.fingerprint(params),
        "seed": seed,
        "steps": steps,
        "method": config.sampler.method,
        "guidance": scale,
        "interval": list(times) if guidance else [],
        "to_uint8": config.evaluate.to_uint8,
        "labels": "balanced",
    }
    return Subject(source=source, description=description)


def measure(
    values: flags.FlagValues,
    config: Config,
    samples: Subject,
    metrics: list[str],
    encoder: str,
    options: Any,
    out: Path,
    reference_folder: Path | None = None,
) -> dict[str, Any]:
    """Collects and computes.

    Args:
        values: Parsed flags.
        config: Of the run, for its own encoders.
        samples: To be measured.
        metrics: By name.
        encoder: Space of the metrics without one.
        options: `suite.Options`.
        out: Folder of the results.
        reference_folder: Where the reference's features are kept; None: `out`.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: If something is missing or does not fit.
    """
    from jaxdrl.evaluation import memorisation, reference_files, suite
    from jaxdrl.report.build import versions
    from jaxdrl.weights.files import write_atomically

    began = time.monotonic()
    needed = suite.spaces_of(metrics, encoder)
    spaces = _spaces(values, config, list(needed))
    keep = {name for name, (features, _) in needed.items() if features}
    if options.bootstrap:
        keep |= suite.needs_bootstrap_features(metrics, encoder)
    scores = _reward_spaces(values, config)
    keep |= {space.name for space in scores}
    mine = _collect("samples", samples, [*spaces, *scores], sorted(keep), out / "samples", values)
    statistics, reference = _reference(values, config, spaces, needed, reference_folder or out)
    place, said = Path(values.reference or ""), None
    if statistics:
        said = reference_files.images_of(place)
        reference_files.require_comparable(samples.description, said or {}, place)
    train = None
    if any(suite.get(name).train for name in metrics):
        if not values.train:
            raise UserError("memorisation needs --train, the generator's training images")
        own = [space for space in spaces if space.name == encoder]
        train = _collect("train", images(values.train, values, config), own, [encoder], out / "train", values)
    sets = suite.Sets(samples=mine, reference=reference, statistics=statistics, train=train, encoder=encoder, options=options)
    numbers, warnings = suite.measure(metrics, sets)
    if statistics and said is None:
        taken = ", ".join(statistics)
        warnings.append(f"{place.name} does not say how its statistics were made; they are taken for those of {taken}")
    if values.save_statistics:
        reference_files.save(Path(values.save_statistics), mine.moments, mine.specs, mine.count, samples.description)
    result = {
        "metrics": suite.to_json(numbers),
        "warnings": warnings,
        "rewards": _rewards(values, config, scores, mine, out, warnings),
        "samples": samples.description | {"num": mine.count},
        "reference": {
            "source": values.reference or _default_reference(config),
            "from_statistics": sorted(statistics),
            "images": said,
        },
        "specifications": {space.name: space.spec.to_dict() for space in [*spaces, *scores]},
        "options": vars(options),
        "images_per_second": round(mine.computed / mine.seconds, 3) if mine.computed else None,
        "seconds": round(time.monotonic() - began, 2),
        "versions": versions(),
    }
    if train is not None:
        pairs = memorisation.closest(mine.features[encoder], train.features[encoder])
        result["nearest_training_images"] = [{"sample": i, "train": j, "distance": distance} for i, j, distance in pairs]
    write_atomically(out / "metrics.json", json.dumps(result, indent=2).encode())
    return result


def table(result: dict[str, Any]) -> str:
    """The numbers as text.

    Args:
        result: From `measure`.

    Returns:
        Lines.
    """
    by_class = [name for name in result["metrics"] if name.startswith("accuracy/")]
    lines = [("metric", "value", "", "95 % interval", "space")]
    for name, number in result["metrics"].items():
        if name in by_class and len(by_class) > 20:
            continue
        spread = f"± {number['spread']:.4g}" if "spread" in number else ""
        between = "{:.6g} .. {:.6g}".format(*number["interval"]) if "interval" in number else ""
        lines.append((name, f"{number['value']:.6g}", spread, between, number.get("space", "")))
    for name, number in result.get("rewards", {}).items():
        gain = f"{number['gain']:+.3f} of the base's" if "gain" in number else ""
        lines.append((f"reward {name}", f"{number['mean']:.6g}", f"± {number['std']:.4g}", gain, ""))
    kept = [column for column in range(5) if column < 2 or any(line[column] for line in lines[1:])]
    widths = {column: max(len(line[column]) for line in lines) for column in kept}
    text = ["  ".join(line[column].ljust(widths[column]) for column in kept).rstrip() for line in lines]
    about = result["samples"]
    said = [f"{about['num']} images of {about['source']} against {result['reference']['source']}"]
    if len(by_class) > 20:
        said.append(f"accuracies of {len(by_class)} classes are in metrics.json")
    said += [f"warning: {warning}" for warning in result["warnings"]]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], "", *said])


def _default_out(values: flags.FlagValues) -> Path:
    if values.samples:
        name = values.samples.replace("split:", "")
        return Path(name).with_suffix("").with_name(Path(name).stem + "_evaluation")
    tag = "" if values.guidance == 1.0 else f"_guidance{values.guidance:g}_{'-'.join(values.interval)}"
    number = f"_{values.num}" if values.num else ""
    return Path(values.workdir) / "evaluations" / f"{values.model}{tag}{number}_seed{values.seed or 0}"


def _default_reference(config: Config) -> str:
    return f"split:{config.evaluate.split}"


def _spaces(values: flags.FlagValues, config: Config, names: list[str]) -> list[Any]:
    """The run's own spaces, those of the pixels, and published ones."""
    from jaxdrl.evaluation import spaces
    from jaxdrl.training import measuring

    own = {}
    for name in names:
        if name in ("spectrum", "drift", "pixels"):
            own[name] = spaces.image_statistics(name)
        elif name in ("judge", "reward"):
            if not values.workdir:
                raise UserError(f"--encoder={name} needs the --workdir whose encoder it is")
            own[name] = measuring.encoder_space(config, Path(values.workdir), name)
    others = [name for name in names if name not in own]
    folders = [] if not others else [folder for folder in values.weights if not _is_reward(folder)]
    if others and not folders:
        raise UserError(f"--weights is missing: {', '.join(others)} need converted encoders (see `jaxdrl evaluate --help`)")
    published = spaces.published(others, spaces.Weights(folders)) if others else []
    own |= {space.name: space for space in published}
    return [own[name] for name in names]


def _check_rewards(values: flags.FlagValues) -> None:
    useless = [name for name in ("base", "class_names", "prompt") if values[name].present and not values.rewards]
    if useless:
        raise UserError(f"--{useless[0]} is for --rewards; say which")


def _is_reward(folder: str) -> bool:
    from jaxdrl.rewards import preference
    from jaxdrl.weights import model_directory

    return (Path(folder) / "model.json").is_file() and model_directory.describe(Path(folder))[0] in preference.PUBLISHED


def _reward_spaces(values: flags.FlagValues, config: Config) -> list[Any]:
    if not values.rewards:
        return []
    from jaxdrl import data
    from jaxdrl.evaluation import reward_spaces
    from jaxdrl.rewards.preference import prompts

    chosen = data.class_names(config.data)
    classes = values.class_names or (prompts.usual_source(config.data.name, chosen) if config != default() else "")
    return reward_spaces.published(values.rewards, values.weights, classes, values.prompt or prompts.TEMPLATE, chosen)


def _rewards(
    values: flags.FlagValues, config: Config, spaces: list[Any], mine: Any, out: Path, warnings: list[str]
) -> dict[str, Any]:
    """Means and spreads of the rewards, and the shift against the base."""
    if not spaces:
        return {}
    from jaxdrl.evaluation import reward_spaces

    names = [space.name.removeprefix(reward_spaces.PREFIX) for space in spaces]
    rows, base = {"tuned": mine.features.__getitem__}, None
    if values.base:
        base = images(values.base, values, config, values.num or 0)
    elif not values.samples and values.model != "base":
        base = generated(values, config, values.guidance, interval(values), "base")
    if base is not None:
        rows["base"] = _collect("base", base, spaces, [space.name for space in spaces], out / "base", values).features.__getitem__
    found = reward_spaces.table(names, rows)
    silent = [name for name, numbers in found.items() if not numbers["tuned"]["count"]]
    if silent:
        warnings.append(f"{', '.join(silent)}: no image has a label that is a class, so there is no prompt to compare it with")
    return {name: numbers["tuned"] | ({"base": numbers["base"]} if base else {}) for name, numbers in found.items()}


def _reference(values: flags.FlagValues, config: Config, spaces: list[Any], needed: dict, out: Path) -> tuple[dict, Any]:
    """Statistics out of a file, and whatever of the rest images give."""
    from jaxdrl.evaluation import reference_files, sample_files

    place = values.reference or _default_reference(config)
    wanted = [space for space in spaces if needed[space.name][1]]
    if not wanted:
        return {}, None
    statistics: dict[str, Any] = {}
    path = Path(place)
    if not place.startswith("split:") and path.is_file():
        found = {space.name: reference_files.load_space(path, space.name, space.spec) for space in wanted}
        statistics = {name: moments for name, moments in found.items() if moments is not None}
    missing = [space for space in wanted if space.name not in statistics or needed[space.name][1] == "features"]
    if not missing:
        return statistics, None
    if not place.startswith("split:") and not sample_files.has_images(path):
        names = ", ".join(space.name for space in missing)
        raise UserError(f"--reference: {place} has no images, and no statistics for {names}")
    keep = [space.name for space in missing if needed[space.name][1] == "features"]
    return statistics, _collect("reference", images(place, values, config), missing, keep, out / "reference", values)


def _collect(name: str, subject: Subject, spaces: list[Any], keep: list[str], folder: Path, values: flags.FlagValues) -> Any:
    from jaxdrl.evaluation.collect import collect
    from jaxdrl.training.progress import Progress
    from jaxdrl.training.workdir import disk_errors

    progress = Progress(name, len(subject.source), unit="image")
    # A folder for each choice of features, so that another --metrics neither meets nor destroys what was computed for this one.
    asked = json.dumps([[space.spec.to_dict() | {"name": space.name} for space in spaces], keep], sort_keys=True)
    with disk_errors(folder):
        return collect(
            subject.source,
            spaces,
            folder / hashlib.sha256(asked.encode()).hexdigest()[:8],
            keep=keep,
            description=subject.description,
            batch_size=values.batch_size,
            progress=progress.update,
        )
