r"""Policy gradients and many rewards on the digits, over seeds: what each arm gains, what it costs, what it breaks.

    python benchmarks/policy_gradients.py --seeds=0,1,2 --out=runs/policy_gradients
    python benchmarks/policy_gradients.py --arms=nft,nft_free --seeds=0 --out=runs/policy_gradients

Arms: `nft` and `grpo` (one reward without a gradient, the shipped recipes), `nft_free` (NFT without its KL term, which the guard stops),
`marble` (five rewards, the shipped recipe) and `sum` (the same rewards summed up, in the same budget). Each seed has its own discriminator,
rollouts and noise; base and encoders are the package's. Prints a Markdown table a question and writes `summary.json`; a call that
was cut goes on where it stopped.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

SHARED = ("data", "encoders", "pretrain", "discriminator")  # stages that are the same in all arms of a seed
CONFIGS = Path(__file__).parent.parent / "configs"
ARMS = {
    "nft": ("nft_digits", ()),
    "nft_free": ("nft_digits", ("--config.posttrain.nft.kl_weight=0.0",)),
    "grpo": ("grpo_digits", ()),
    "marble": ("marble_digits", ()),
    "sum": ("marble_digits", ("--config.posttrain.balance.rule=sum",)),
}


def main() -> None:
    """Runs what is asked for and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ARMS), type=lambda text: text.split(","))
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    unknown = sorted(set(options.arms) - set(ARMS))
    if unknown:
        parser.error(f"--arms: {', '.join(unknown)} unknown; choose from {', '.join(ARMS)}")
    summary = {arm: summarise([measured(options.out, arm, seed) for seed in options.seeds]) for arm in options.arms}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(markdown(summary))


def measured(out: Path, arm: str, seed: int) -> dict[str, float]:
    """Runs one seed of one arm, unless it is done.

    Args:
        out: Where runs are.
        arm: One of `ARMS`.
        seed: `config.seed`.

    Returns:
        Numbers by name.
    """
    workdir = out / arm / f"seed{seed}"
    recipe, flags = ARMS[arm]
    for other in ARMS:
        source = out / other / f"seed{seed}"
        if not workdir.exists() and (source / SHARED[-1] / "result.json").exists():
            for stage in SHARED:
                shutil.copytree(source / stage, workdir / stage)
    command = ["run", f"--config={CONFIGS / recipe}.py", f"--config.seed={seed}", f"--workdir={workdir}", *flags]
    subprocess.run([sys.executable, "-m", "jaxdrl", *command], check=True)
    report = json.loads((workdir / "report.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["stage"] == "posttrain"]
    rows = report["rewards"]
    found = {f"gain of {name}": values["tuned"]["gain"] for name, values in rows.items()}
    found["least gain"] = min(found.values())
    found["control energy, nats"] = report["kl"]
    for metric in ("precision", "recall", "coverage", "accuracy"):
        found[f"change of {metric}"] = report[metric]["tuned"] - report[metric]["base"]
    for space, values in report["spaces"].items():
        found[f"FD {space}, base"], found[f"FD {space}, tuned"] = values["base"], values["tuned"]
    for name in ("worst_cosine", "worst_cosine_of_sum", "conflict_rate"):
        curve = [line[name] for line in trained if name in line]
        if curve:
            found[f"{name}, median"] = statistics.median(curve)
            found[f"{name}, share of refreshes above 0"] = statistics.fmean(value > 0 for value in curve)
    if "ratio_deviation" in trained[0]:
        found["|ratio - 1| before the first update"] = trained[0]["ratio_deviation"]
    found["refreshes"] = report["stages"]["posttrain"]["refreshes"]
    found["stopped by the guard"] = float(bool(report["stages"]["posttrain"]["stopped"]))
    found["spread within a condition, last / first"] = trained[-1]["sample_spread"] / trained[0]["sample_spread"]
    return found


def summarise(runs: list[dict[str, float]]) -> dict[str, dict]:
    """Medians and ranges over seeds.

    Args:
        runs: The numbers of each seed.

    Returns:
        name -> {"median", "values"}.
    """
    return {
        name: {"median": statistics.median(run[name] for run in runs), "values": [run[name] for run in runs]} for name in runs[0]
    }


def markdown(summary: dict[str, dict[str, dict]]) -> str:
    """The summary as one table: a row a number, a column an arm.

    Args:
        summary: arm -> name -> statistics.

    Returns:
        Markdown; a cell has the median and, in brackets, every seed.
    """
    names = list(dict.fromkeys(name for found in summary.values() for name in found))
    lines = ["| median (each seed) | " + " | ".join(summary) + " |", "|---" * (len(summary) + 1) + "|"]
    for name in names:
        cells = []
        for found in summary.values():
            values = found.get(name)
            cells.append(f"{values['median']:.3g} ({', '.join(f'{value:.3g}' for value in values['values'])})" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
