r"""What SpectralDiT's gates do in the runs of `spectral.py`: over time and depth, to the residuals' bands, and when they are turned up or down.

    python benchmarks/spectral_gates.py --out=runs/spectral_patches --gates=timestep --sweep=0,0.5,1,1.5,2

Reads finished runs; writes `gates.json` and `gates.html`. Notation as in `jaxdrl/backbones/spectral.py`: with the residual r of a block, E_low =
mean of low(r)^2 and E_high = mean of high(r)^2 over tokens and channels, before the gate (r) and after it (r'), on test images at time t. The sweep
samples trained generators with s times their gates' scale: s = 0 takes the gates out, 1 is as trained; nothing is trained anew.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdrl import data, stored_config
from jaxdrl.backbones.spectral import SpectralGate, low_pass
from jaxdrl.config import Config
from jaxdrl.data.images import to_float
from jaxdrl.flow import path
from jaxdrl.report import areas, charts
from jaxdrl.training import loading, models

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.drl_seeds import copy
from benchmarks.spectral import evaluated

TIMES = tuple(np.linspace(0.05, 0.95, 10).tolist())
BANDS = ("low", "high")


def main() -> None:
    """Looks at the runs and writes what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="of spectral.py")
    parser.add_argument("--gates", default="timestep,timestep+label,static", type=lambda text: text.split(","))
    parser.add_argument("--sweep", default="", type=lambda text: [float(part) for part in text.split(",") if part])
    parser.add_argument("--images", default=128, type=int)
    options = parser.parse_args()
    found = {}
    for gate in options.gates:
        runs = sorted((options.out / gate).glob("seed*"))
        energies = np.mean([band_energies(run, options.images) for run in runs], axis=0)
        found[gate] = {
            "gates": np.mean([mean_gates(run) for run in runs], axis=0).tolist(),
            "energies": energies.tolist(),
            "sweep": {str(scale): [swept(options.out, gate, run, scale) for run in runs] for scale in options.sweep},
        }
    (options.out / "gates.json").write_text(json.dumps({"times": TIMES, **found}))
    (options.out / "gates.html").write_text(page(found))
    print("\n".join(said(found)))


def mean_gates(workdir: Path) -> Float[np.ndarray, "2 depth times"]:
    """The gates of a trained generator, means over classes.

    Args:
        workdir: Of a run.

    Returns:
        g_low and g_high by block and time.
    """
    config = stored_config.get_config(str(workdir))
    network, params = models.backbone(config), loading.load_model(config, workdir, "base")
    assert network.gates is not None, f"{workdir}: no gates"
    classes = network.num_classes
    times = jnp.tile(jnp.asarray(TIMES, jnp.float32), classes)
    values = network.gates(params, times, jnp.repeat(jnp.arange(classes), len(TIMES)))
    return np.asarray(values).reshape(classes, len(TIMES), -1, 2).mean(axis=0).transpose(2, 1, 0)


def band_energies(workdir: Path, count: int) -> Float[np.ndarray, "times depth 2 2"]:
    """Energies of the residuals' bands on test images.

    Args:
        workdir: Of a run.
        count: Images.

    Returns:
        By time and block: (low, high) x (before, after).
    """
    config = stored_config.get_config(str(workdir))
    images, labels = data.load_arrays(data.open_split(config.data, workdir / "data", "test"), limit=count)
    clean, noise = to_float(images), jax.random.normal(jax.random.key(0), images.shape)
    params = loading.load_model(config, workdir, "base")
    rows = []
    for time in TIMES:
        t = jnp.full(len(clean), time, jnp.float32)
        rows.append(energies_at(config, params, path.interpolate(jnp.asarray(clean), noise, t), t, jnp.asarray(labels)))
    return np.array(rows)


def energies_at(
    config: Config, params, x: Float[Array, "batch h w c"], t: Float[Array, " batch"], labels
) -> list[list[list[float]]]:
    """The bands' energies in every block, in one evaluation of the network.

    Args:
        config: Of the run.
        params: Its generator.
        x: States.
        t: Their times.
        labels: Their classes.

    Returns:
        block -> (low, high) x (before, after).
    """
    seen = []

    def record(call, arguments, options, context):
        result = call(*arguments, **options)
        if isinstance(context.module, SpectralGate) and context.method_name == "__call__":
            bands = []
            for residual in (arguments[0], result):
                low = low_pass(residual, context.module.grid)
                bands.append([float(jnp.mean(part**2)) for part in (low, residual - low)])
            seen.append(np.array(bands).T.tolist())
        return result

    with jax.disable_jit(), nn.intercept_methods(record):
        models.backbone(config).velocity(params, x, t, labels)
    return seen


def swept(out: Path, gate: str, run: Path, scale: float) -> dict[str, float]:
    """Measures a trained generator with its gates turned up or down.

    Args:
        out: Of spectral.py.
        gate: Of the run.
        run: Its workdir.
        scale: s.

    Returns:
        A number a metric.
    """
    seed = int(run.name.removeprefix("seed"))
    if scale == 1:
        return evaluated(run, seed)
    workdir = out / "sweep" / f"{gate}_{scale:g}" / run.name
    copy(run, workdir, ("data", "encoders", "pretrain"))
    config = json.loads((run / "config.json").read_text())
    config["backbone"]["gate_scale"] *= scale
    (workdir / "config.json").write_text(json.dumps(config, indent=2))
    return evaluated(workdir, seed)


def page(found: dict) -> str:
    """Pictures of everything.

    Args:
        found: gate -> gates, energies, sweep.

    Returns:
        HTML.
    """
    style = (Path(charts.__file__).parent / "style.css").read_text()
    largest = max(np.abs(np.array(one["gates"])).max() for one in found.values())
    figures = []
    for gate, one in found.items():
        for index, band in enumerate(BANDS):
            values = np.array(one["gates"])[index]
            figures.append(
                areas.heatmap(
                    f"{gate}: gate of the {band} band",
                    "time (0: noise, 1: data)",
                    "block",
                    values,
                    largest,
                    (TIMES[0], TIMES[-1]),
                )
            )
        ratio = 10 * np.log10(np.array(one["energies"])[..., 1] / np.array(one["energies"])[..., 0]).mean(axis=1)
        series = {f"{band} band": (TIMES, ratio[:, index]) for index, band in enumerate(BANDS)}
        figures.append(
            charts.lines(f"{gate}: energy after / before the gate, mean of the blocks", "time (0: noise, 1: data)", "dB", series)
        )
        if one["sweep"]:
            figures += [
                _sweep_chart(gate, one["sweep"], metric, label) for metric, label in (("fd", "FD judge"), ("spectrum", "gap"))
            ]
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Spectral gates</title><style>{style}</style></head><body><main>"
        f"<h1>SpectralDiT's gates</h1><p>Means over seeds. A gate g multiplies a band of a block's MLP residual by 1 + g.</p>"
        f"<div class='charts'>{''.join(figures)}</div></main></body></html>\n"
    )


def _sweep_chart(gate: str, sweep: dict[str, list[dict[str, float]]], metric: str, label: str) -> str:
    scales = sorted(sweep, key=float)
    means = [statistics.fmean(run[metric] for run in sweep[scale]) for scale in scales]
    series = {label: ([float(scale) for scale in scales], means)}
    return charts.lines(f"{gate}: {label} with the gates turned up or down", "scale of the gates (1: as trained)", label, series)


def said(found: dict) -> list[str]:
    """The numbers in words.

    Args:
        found: gate -> gates, energies, sweep.

    Returns:
        Lines.
    """
    lines = []
    for gate, one in found.items():
        values, energies = np.array(one["gates"]), np.array(one["energies"])
        ratio = 10 * np.log10(energies[..., 1] / energies[..., 0])
        share = energies[..., 1, :] / energies.sum(axis=-2)
        for index, band in enumerate(BANDS):
            noise, end = values[index, :, 0].mean(), values[index, :, -1].mean()
            lines.append(
                f"{gate}, {band}: gate {noise:+.3f} at t = {TIMES[0]:.2f}, {end:+.3f} at {TIMES[-1]:.2f}, "
                f"from {values[index].min():+.3f} to {values[index].max():+.3f}; energy {ratio[..., index].mean():+.2f} dB"
            )
        lines.append(f"{gate}: share of the high band {share[..., 0].mean():.3f} before, {share[..., 1].mean():.3f} after")
        for scale, runs in one["sweep"].items():
            numbers = ", ".join(
                f"{metric} {statistics.fmean(run[metric] for run in runs):.3f}" for metric in ("fd", "recall", "spectrum")
            )
            lines.append(f"{gate}, gates x {scale}: {numbers}")
    return lines


if __name__ == "__main__":
    main()
