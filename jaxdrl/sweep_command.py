"""`jaxdrl sweep`: the search for the best guidance, resumable, with its curves."""

import json
import shutil
from pathlib import Path

from absl import flags

from jaxdrl import measure_command
from jaxdrl.config import Config
from jaxdrl.errors import UserError

SWEEP_HELP = """usage: jaxdrl sweep --workdir=DIR [--model=tuned] [--scales=1,1.25,...] [--intervals=0:1,0.1:1,0.3:1] [options]

  --scales     scales of classifier-free guidance, 1 is none; default 1 and config.evaluate.guidance_scales
  --intervals  LOW:HIGH, times at which it acts; default config.evaluate.guidance_intervals
  --num        samples a point; default config.evaluate.guidance_samples
  --metrics    measured at every point, as for `jaxdrl evaluate`; default fd,prdc
  --metric     picks the best point; default the first of --metrics
  --reference  default split:validation, so that the choice does not see the test images
  --encoder, --weights, --model, --seed, --steps, --batch_size ...: as for `jaxdrl evaluate`
  --out        default DIR/sweeps/MODEL; sweep.json, sweep.html, and a file a point: the same command goes on where it stopped

examples
  jaxdrl sweep --workdir=runs/first --model=tuned --num=5000
  jaxdrl sweep --workdir=runs/sit_xl --scales=1,1.25,1.5,1.75,2 --num=50000 --metrics=fd-dinov2,fid --reference=edm2_stats.pkl \\
      --weights=models/dinov2-large,models/inception
"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags, and those of `jaxdrl evaluate`.

    Args:
        values: Where they are defined.
    """
    measure_command.define_flags(values)
    flags.DEFINE_list("scales", None, "Of guidance.", flag_values=values)
    flags.DEFINE_list("intervals", None, "LOW:HIGH.", flag_values=values)
    flags.DEFINE_string("metric", None, "That picks the best point.", flag_values=values)


def run(values: flags.FlagValues, config: Config) -> int:
    """Runs the command.

    Args:
        values: Parsed flags.
        config: Of the workdir.

    Returns:
        0.

    Raises:
        UserError: If something is missing or does not fit.
    """
    from jaxdrl.evaluation import search, suite
    from jaxdrl.report import sweep_page
    from jaxdrl.training.progress import Progress
    from jaxdrl.weights.files import write_atomically

    useless = [name for name in ("samples", "guidance", "interval", "bootstrap", "save_statistics") if values[name].present]
    if useless:
        raise UserError(f"--{useless[0]} is for `jaxdrl evaluate`; a sweep draws its own samples, at --scales and --intervals")
    metrics, encoder = values.metrics or ["fd", "prdc"], values.encoder or "judge"
    values.num = values.num or config.evaluate.guidance_samples
    values.reference = values.reference or "split:validation"
    options = suite.Options(
        kernel_subsets=values.kd_subsets,
        kernel_subset_size=values.kd_subset_size,
        k=values.k,
        density_k=values.density_k,
    )
    out = Path(values.out) if values.out else Path(values.workdir) / "sweeps" / values.model
    points = search.grid(*_axes(values, config))
    if values.metric and values.metric not in metrics and not any(values.metric in _names(name) for name in metrics):
        raise UserError(f"--metric: {values.metric!r} is not among --metrics ({', '.join(metrics)})")

    def measure(guidance) -> dict[str, float]:
        place = out / "points" / search.name(guidance)
        subject = measure_command.generated(values, config, guidance.scale, guidance.interval)
        result = measure_command.measure(values, config, subject, metrics, encoder, options, place, reference_folder=out)
        shutil.rmtree(place)  # the features of a point are as large as the reference's
        return {name: number["value"] for name, number in result["metrics"].items()}

    settings = {
        **{key: getattr(values, key) for key in ("model", "num", "seed", "steps", "reference", "k", "density_k")},
        **{"kd_subsets": values.kd_subsets, "kd_subset_size": values.kd_subset_size, "metrics": metrics, "encoder": encoder},
    }
    progress = Progress("sweep", len(points), unit="point", seconds=0.0)
    cells = search.search(points, measure, out / "points", settings, progress.update)
    metric = values.metric or next(iter(cells[0].numbers))
    best = search.best(cells, metric)
    kept = {
        "metric": metric,
        "best": _plain(best),
        "points": [_plain(cell) for cell in cells],
        "settings": settings,
        "name": Path(values.workdir).name,
    }
    write_atomically(out / "sweep.json", json.dumps(kept, indent=2).encode())
    write_atomically(
        out / "sweep.html", sweep_page.render(cells, metric, f"{values.model} of {Path(values.workdir).name}", settings).encode()
    )
    print(f"\n{sweep_page.plain(cells, metric)}\n\nbest {metric}: {_said(best)}\n{out / 'sweep.html'}")
    return 0


def _names(metric: str) -> tuple[str, ...]:
    """Numbers that a metric gives under other names."""
    return {"prdc": ("precision", "recall", "density", "coverage"), "adm-pr": ("adm-precision", "adm-recall")}.get(
        metric, (metric,)
    )


def _axes(values: flags.FlagValues, config: Config) -> tuple[list[float], list[tuple[float, float]]]:
    try:
        scales = [float(scale) for scale in values.scales] if values.scales else [1.0, *config.evaluate.guidance_scales]
        texts = values.intervals or [f"{low}:{high}" for low, high in config.evaluate.guidance_intervals]
        intervals = [tuple(float(part) for part in text.split(":")) for text in texts]
        return scales, [(low, high) for low, high in intervals]
    except ValueError:
        raise UserError("--scales are numbers, and --intervals are LOW:HIGH, separated by commas") from None


def _plain(cell) -> dict:
    return {"scale": cell.guidance.scale, "interval": list(cell.guidance.interval), **cell.numbers}


def _said(cell) -> str:
    scale, (low, high) = cell.guidance.scale, cell.guidance.interval
    return "no guidance" if scale == 1.0 else f"scale {scale:g} for t in [{low:g}, {high:g}]"
