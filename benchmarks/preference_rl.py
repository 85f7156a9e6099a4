r"""Preference RL on the base and on top of DRL, over lambda: the reward trained on, what it stands for, and how images drift.

    python benchmarks/preference_rl.py --seeds=0 --scales=0.3,1,3 --out=runs/preference_rl

arXiv 2606.19162, App. I.3, on handwritten digits (`configs/prl_digits.py`): a Bradley-Terry model of synthetic choices is the reward, the
utility behind the choices the held-out reward. All runs of a seed share the reward model, which is trained on samples of the base. Prints a
Markdown table, writes `summary.json` and `pareto.html`: held-out reward against each drift statistic, a path over lambda for each start.
A call that was cut goes on where it stopped.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from jaxdrl.report import charts

CONFIGS = Path(__file__).parent.parent / "configs"
UTILITY = ("stroke_width", "symmetry")  # of configs/prl_digits.py
DRIFTS = ("brightness", "contrast", "whiteness", "sharpness")
STARTS = ("base", "DRL")
_REWARD = Path("posttrain") / "rewards"


def main() -> None:
    """Runs what is asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--scales", default="0.3,1,3", type=lambda text: [float(part) for part in text.split(",")])
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    points: dict[str, list[dict[str, float]]] = {start: [] for start in STARTS}
    for start in STARTS:
        for scale in options.scales:
            runs = [measured(options.out, start, scale, seed, options.scales[0]) for seed in options.seeds]
            points[start].append({key: statistics.median(run[key] for run in runs) for key in runs[0]} | {"lambda": scale})
    (options.out / "summary.json").write_text(json.dumps(points, indent=2))
    (options.out / "pareto.html").write_text(page(points))
    print(markdown(points))


def measured(out: Path, start: str, scale: float, seed: int, first: float) -> dict[str, float]:
    """One run of PRL.

    Args:
        out: Where runs are.
        start: "base" or "DRL".
        scale: lambda.
        seed: `config.seed`.
        first: The lambda of the run on the base whose reward model all others take.

    Returns:
        Numbers by name.
    """
    recipe, workdir = f"{CONFIGS / 'prl_digits.py'}", out / f"{start}_{scale:g}" / f"seed{seed}"
    if start == "DRL":
        drl = out / "drl" / f"seed{seed}"
        quick = ["--config.evaluate.controls=false", "--config.evaluate.best_guidance=false"]
        jaxdrl(f"{CONFIGS / 'drl_digits.py'}", seed, drl, quick)
        recipe = f"{recipe}:{drl.absolute()}"
    given = out / f"base_{first:g}" / f"seed{seed}" / _REWARD
    if workdir / _REWARD != given and not (workdir / _REWARD).exists():
        shutil.copytree(given, workdir / _REWARD)
    jaxdrl(recipe, seed, workdir, [f"--config.posttrain.reward_scale={scale}"])
    report = json.loads((workdir / "report.json").read_text())
    rows = report["rewards"]
    # Of the data's spread: the base differs between the starts, the data do not.
    shift = {name: (values["tuned"]["mean"] - values["data"]["mean"]) / values["data"]["std"] for name, values in rows.items()}
    found = {"reward": rows["bradley_terry"]["tuned"]["mean"], "held-out reward": sum(shift[name] for name in UTILITY)}
    found |= {f"drift of {name}": shift[name] for name in DRIFTS}
    found |= {"control energy, nats": report["kl"], "FD judge": report["spaces"]["judge"]["tuned"]}
    found |= {metric: report[metric]["tuned"] for metric in ("coverage", "accuracy")}
    return found


def jaxdrl(recipe: str, seed: int, workdir: Path, flags: list[str]) -> None:
    """Calls the command line in a process of its own.

    Args:
        recipe: `--config`.
        seed: `config.seed`.
        workdir: Where.
        flags: Further ones.
    """
    command = ["run", f"--config={recipe}", f"--config.seed={seed}", f"--workdir={workdir}", *flags]
    subprocess.run([sys.executable, "-m", "jaxdrl", *command], check=True)


def page(points: dict[str, list[dict[str, float]]]) -> str:
    """The Pareto plots.

    Args:
        points: start -> a dict a lambda.

    Returns:
        HTML.
    """
    style = (Path(charts.__file__).parent / "style.css").read_text()
    figures = []
    for name in (*DRIFTS, "FD judge", "coverage"):
        key = f"drift of {name}" if name in DRIFTS else name
        label = f"{name}, data's standard deviations from the data" if name in DRIFTS else name
        series = {
            f"{start} + PRL": ([point[key] for point in path], [point["held-out reward"] for point in path])
            for start, path in points.items()
        }
        figures.append(charts.lines(f"Held-out reward against {name}", label, "held-out reward", series))
    scales = ", ".join(f"{point['lambda']:g}" for point in points["base"])
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Preference RL</title><style>{style}</style></head><body><main>"
        f"<h1>Preference RL on the base and on DRL</h1><p>A path over lambda = {scales} for each start.</p>"
        f"<div class='charts'>{''.join(figures)}</div></main></body></html>\n"
    )


def markdown(points: dict[str, list[dict[str, float]]]) -> str:
    """The points as a table.

    Args:
        points: start -> a dict a lambda.

    Returns:
        Markdown.
    """
    names = [name for name in points["base"][0] if name != "lambda"]
    lines = ["| start, lambda | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for start, path in points.items():
        for point in path:
            lines.append(f"| {start} + PRL, {point['lambda']:g} | " + " | ".join(f"{point[name]:.3g}" for name in names) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
