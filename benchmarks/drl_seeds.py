r"""Discriminator-Guided RL over several seeds: every stage again for each seed, then means, spreads and medians.

Each seed trains its own base, discriminator and controls; the encoders, which are the measuring stick, are those of the first seed.

    python benchmarks/drl_seeds.py --config=configs/drl_patches.py --seeds=0,1,2,3,4 --out=runs/patches_seeds
    python benchmarks/drl_seeds.py --config=configs/drl_patches.py --seeds=0 --out=runs/sweep \
        --sweep posttrain.reward_scale=0.3,1,3,10 --sweep discriminator.r1=0,0.003 -- --config.evaluate.split=validation

Prints a Markdown table and writes `summary.json`. A call that was cut goes on where it stopped. What follows `--` goes to jaxdrl.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from jaxdrl.report.table import SPACES, excess_change

SHARED = ("data", "encoders", "pretrain")
ROWS = ("tuned", "longer_pretraining", "best_cfg", "tuned_best_cfg", "ideal_tilt")


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", default="0,1,2,3,4", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--sweep", action="append", default=[], help="key=value,value,...; several make a grid")
    parser.add_argument("rest", nargs="*", help="further arguments of jaxdrl run, after --")
    options = parser.parse_args()
    grid = [[(sweep.split("=")[0], value) for value in sweep.split("=")[1].split(",")] for sweep in options.sweep]
    reports: dict[str, dict[int, dict]] = {}
    for point in itertools.product(*grid):
        name = "_".join(f"{key.split('.')[-1]}{value}" for key, value in point) or "default"
        flags = [f"--config.{key}={value}" for key, value in point] + options.rest
        for seed in options.seeds:
            workdir = options.out / name / f"seed{seed}"
            run(options, flags, seed, workdir)
            reports.setdefault(name, {})[seed] = json.loads((workdir / "report.json").read_text())
    summary = {name: summarise(list(found.values())) for name, found in reports.items()}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(markdown(summary))


def run(options: argparse.Namespace, flags: list[str], seed: int, workdir: Path) -> None:
    """Runs one seed at one point, from the base of that seed.

    Args:
        options: The command line.
        flags: Overrides of the config.
        seed: `config.seed`.
        workdir: Where.
    """
    trunk = options.out / "base" / f"seed{seed}"
    first = options.out / "base" / f"seed{options.seeds[0]}"
    common = [f"--config={options.config}", f"--config.seed={seed}", "--config.pretrain.from_scratch=true"]
    if not (trunk / "pretrain" / "result.json").exists():
        if trunk != first:
            copy(first, trunk, ("data", "encoders"))
        jaxdrl("pretrain", common, trunk)
    copy(trunk, workdir, SHARED)
    jaxdrl("run", common + flags, workdir)


def copy(source: Path, target: Path, stages: tuple[str, ...]) -> None:
    """Copies finished stages to a new workdir.

    Args:
        source: A workdir.
        target: Another.
        stages: Which.
    """
    target.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if not (target / stage / "result.json").exists():
            shutil.rmtree(target / stage, ignore_errors=True)
            shutil.copytree(source / stage, target / stage)
    if not (target / "metrics.jsonl").exists():
        shutil.copy(source / "metrics.jsonl", target / "metrics.jsonl")


def jaxdrl(command: str, arguments: list[str], workdir: Path) -> None:
    """Calls the command line in a process of its own.

    Args:
        command: "pretrain", "run" or another.
        arguments: Its flags.
        workdir: Where.
    """
    subprocess.run([sys.executable, "-m", "jaxdrl", command, f"--workdir={workdir}", *arguments], check=True)


def summarise(reports: list[dict]) -> dict:
    """Medians, means and standard deviations over seeds.

    Args:
        reports: `report.json` of each seed.

    Returns:
        name -> {"median", "mean", "std", "values"}.
    """
    found: dict[str, list[float]] = {}
    for report in reports:
        judge = report["spaces"]["judge"]
        for space in SPACES:
            for row in ("floor", "base", *ROWS):
                if row in report["spaces"][space]:
                    found.setdefault(f"{space} {row}", []).append(report["spaces"][space][row])
            for row in ROWS:
                if row in report["spaces"][space]:
                    found.setdefault(f"excess {space} {row}", []).append(excess_change(report["spaces"], space, row))
        for metric in ("precision", "recall", "coverage", "accuracy", "memorisation"):
            change = report[metric]["tuned"] - report[metric]["base"]
            found.setdefault(f"change {metric}", []).append(change)
        if "longer_pretraining" in judge:
            found.setdefault("plateau (judge, longer / base - 1)", []).append(judge["longer_pretraining"] / judge["base"] - 1)
        for key in ("ideal_share", "kl", "projection_ratio"):
            if key in report:
                found.setdefault(key.replace("_", " "), []).append(report[key])
        for reward, rows in report["rewards"].items():
            found.setdefault(f"gain of {reward}", []).append(rows["tuned"]["gain"])
        if "ess" in report:
            found.setdefault("effective sample size", []).append(report["ess"]["mean"])
        found.setdefault("discriminator accuracy", []).append(report["stages"]["discriminator"]["accuracy"])
    return {
        name: {
            "median": statistics.median(values),
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            "values": values,
        }
        for name, values in found.items()
    }


def markdown(summary: dict) -> str:
    """The summary as tables.

    Args:
        summary: point -> name -> statistics.

    Returns:
        Markdown.
    """
    parts = []
    for point, numbers in summary.items():
        parts.append(f"\n### {point}\n\n| | median | mean ± std | seeds |\n|---|---|---|---|")
        for name, found in numbers.items():
            values = " ".join(f"{value:.3f}" for value in found["values"])
            parts.append(f"| {name} | {found['median']:.3f} | {found['mean']:.3f} ± {found['std']:.3f} | {values} |")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
