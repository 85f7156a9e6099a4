r"""SpectralDiT's gate against none, paired by seed: distances, recall, spectrum gap, and what the gates do.

    python benchmarks/spectral.py --recipe=spectral_patches --seeds=0,1,2,3,4 --out=runs/spectral_patches
    python benchmarks/spectral.py --recipe=spectral_digits --seeds=0,1,2,3,4 --drl=none,timestep --out=runs/spectral_digits

Trains the generator of `configs/RECIPE.py` once for each gate and seed; the gate is all that differs within a seed (same data order, noise and
initial weights of what both have). Samples of a seed start from the same noise. The encoders, which are the measuring stick, are those of the
first run. With `--drl`, Discriminator-Guided RL follows for the gates that it names, and its result is measured in the same way. Prints Markdown
tables and writes `summary.json`; a call that was cut goes on where it stopped; what follows `--` goes to jaxdrl. What the gates do: `spectral_gates.py`.

The paper (arXiv 2606.18765) reports for CIFAR-10 FID 20.78 -> 19.71 (-5.1 %), recall .559 -> .576, spectrum gap .205 -> .161 over five seeds, at
1.36 % more parameters and .6 % more operations.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from scipy import stats

from jaxdrl import recipes, stored_config
from jaxdrl.config import Config
from jaxdrl.training import compute, models

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.drl_seeds import copy, jaxdrl

CONFIGS = Path(__file__).parent.parent / "configs"
METRICS = {"fd": "FD judge", "recall": "recall", "precision": "precision", "coverage": "coverage", "spectrum": "spectrum gap"}


def main() -> None:
    """Runs what is asked for and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    split = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--recipe", required=True, help="spectral_digits, spectral_patches ...")
    parser.add_argument("--seeds", default="0,1,2,3,4", type=lambda text: [int(part) for part in split(text)])
    parser.add_argument("--gates", default=",".join(recipes.GATES), type=split)
    parser.add_argument("--drl", default="", type=lambda text: split(text) if text else [], help="gates that DRL is run for")
    parser.add_argument("--tiny", action="store_true", help="the recipe's small form")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("rest", nargs="*", help="further arguments of jaxdrl, after --")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {gate: [] for gate in options.gates}
    for seed in options.seeds:
        for gate in options.gates:
            found[gate].append(measured(options, gate, seed))
    for gate in options.drl:
        found[f"{gate} + DRL"] = [measured(options, gate, seed, "tuned") for seed in options.seeds]
    costs = {gate: cost(options.out / gate.removesuffix(" + DRL") / f"seed{options.seeds[0]}") for gate in found}
    summary = {"seeds": options.seeds, "runs": found, "cost": costs}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print("\n".join(table(found, costs)))


def measured(options: argparse.Namespace, gate: str, seed: int, model: str = "base") -> dict[str, float]:
    """One run: trained as far as the model needs and measured, or read where it was before.

    Args:
        options: The command line.
        gate: Of the generator.
        seed: `config.seed`.
        model: "base", or "tuned" by DRL.

    Returns:
        A number a metric.
    """
    workdir = options.out / gate / f"seed{seed}"
    first = options.out / options.gates[0] / f"seed{options.seeds[0]}"
    recipe = f"--config={CONFIGS / options.recipe}.py:{gate}{',tiny' if options.tiny else ''}"
    stage = "pretrain" if model == "base" else "posttrain"
    if not (workdir / stage / "result.json").exists():
        if workdir != first:
            copy(first, workdir, ("data", "encoders"))
        jaxdrl(stage, [recipe, f"--config.seed={seed}", *options.rest], workdir)
    return evaluated(workdir, seed, model)


def evaluated(workdir: Path, seed: int, model: str = "base") -> dict[str, float]:
    """Measures a model against the test images.

    Args:
        workdir: Of a run.
        seed: Of the noise.
        model: "base" or "tuned".

    Returns:
        A number a metric.
    """
    out = workdir / f"measured_{model}"
    if not (out / "metrics.json").exists():
        asked = ("--metrics=fd,prdc,spectrum", "--encoder=judge", "--reference=split:test", f"--seed={seed}")
        config: Config = stored_config.get_config(str(workdir))
        number = config.evaluate.num_samples
        jaxdrl("evaluate", [f"--model={model}", f"--num={number}", f"--out={out}", *asked], workdir)
    values = json.loads((out / "metrics.json").read_text())["metrics"]
    return {metric: values[metric]["value"] for metric in METRICS}


def cost(workdir: Path) -> dict[str, float]:
    """What a generator costs.

    Args:
        workdir: Of a run.

    Returns:
        "parameters", and "operations" of one velocity of one image.
    """
    config = stored_config.get_config(str(workdir))
    return {"parameters": models.backbone(config).num_params, "operations": compute.generator_flops(config)}


def paired(plain: list[float], gated: list[float]) -> tuple[float, float]:
    """The mean difference over seeds and half the width of its 95 % interval (Student's t).

    Args:
        plain: A number a seed without the gate.
        gated: With it.

    Returns:
        (mean, half width); the half width is infinite for one seed.
    """
    differences = [b - a for a, b in zip(plain, gated, strict=True)]
    if len(differences) < 2:
        return differences[0], float("inf")
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.fmean(differences), float(stats.t.ppf(0.975, len(differences) - 1)) * error


def table(found: dict[str, list[dict[str, float]]], costs: dict[str, dict[str, float]]) -> list[str]:
    """Two Markdown tables: means with standard deviations, and differences from the first gate.

    Args:
        found: gate -> a dict a seed.
        costs: gate -> from `cost`.

    Returns:
        Lines.
    """
    names = [*METRICS.values(), "parameters", "operations"]
    first = next(iter(found))
    lines = [f"| gate | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for gate, runs in found.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.fmean(values):.3f} ± {spread:.3f}")
        cells += [f"{100 * (costs[gate][key] / costs[first][key] - 1):+.2f} %" for key in ("parameters", "operations")]
        lines.append(f"| {gate} | {' | '.join(cells)} |")
    lines += ["", f"| against {first}, paired | {' | '.join(METRICS.values())} |", "|---" * (len(METRICS) + 1) + "|"]
    for gate in list(found)[1:]:
        cells = []
        for metric in METRICS:
            plain, gated = ([run[metric] for run in found[name]] for name in (first, gate))
            mean, half = paired(plain, gated)
            share = f" ({100 * mean / statistics.fmean(plain):+.1f} %)" if any(plain) else ""
            cells.append(f"{mean:+.3f} ± {half:.3f}{share}")
        lines.append(f"| {gate} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
