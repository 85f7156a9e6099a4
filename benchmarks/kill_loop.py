r"""`kill -9` at random moments of a run, again and again: no run may be lost, and the final weights must be those of an undisturbed run, bit for bit.

    python benchmarks/kill_loop.py --kills=50 --out=runs/killed
    python benchmarks/kill_loop.py --kills=50 --out=runs/killed --config=configs/nft_digits.py:tiny --seed=1 -- --config.seed=3

The undisturbed run comes first (`OUT/whole`). Then a run is started, killed after a time that a seeded generator draws, and started again
with the same command, until it ends by itself; its weights, metrics and report are compared; and a fresh one begins until there were
so many kills. A call of the command may take no longer than ten times the undisturbed run. Prints kills by stage as a Markdown table
and writes `OUT/kills.json`; the exit code is 1 if anything differs. What follows `--` goes to jaxdrl.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from jaxdrl.training.stages import ORDER
from jaxdrl.weights import files

STARTUP = "(start)"


def main() -> int:
    """Kills, compares and prints the table.

    Returns:
        0 if every run ended with the same bits.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/drl_digits.py:tiny")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--share", type=float, default=0.25, help="a call lives for at most this share of the undisturbed run")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("rest", nargs="*", help="further arguments of jaxdrl run, after --")
    options = parser.parse_args()
    whole = options.out / "whole"
    began = time.monotonic()
    if _call(options, whole, None) != 0:
        raise SystemExit(f"the undisturbed run failed: {whole}.log")
    seconds = time.monotonic() - began
    expected, moments = results(whole), random.Random(options.seed)
    killed: list[dict] = []
    rounds = 0
    while len(killed) < options.kills:
        rounds += 1
        workdir = options.out / "killed"
        shutil.rmtree(workdir, ignore_errors=True)
        if not _round(options, workdir, seconds, moments, killed, rounds):
            return _lost(options, killed, f"round {rounds} did not end: {workdir}.log")
        different = [name for name, value in results(workdir).items() if expected[name] != value]
        if different:
            return _lost(options, killed, f"round {rounds} differs in {', '.join(different)}")
    _write(options, killed, rounds, "")
    return 0


def _round(
    options: argparse.Namespace, workdir: Path, seconds: float, moments: random.Random, killed: list[dict], number: int
) -> bool:
    """One run from nothing to its end; False if it failed by itself."""
    while True:
        left = options.kills - len(killed)
        code = _call(options, workdir, moments.uniform(0.0, options.share * seconds) if left else None, 10 * seconds)
        if code != -9:
            return code == 0
        killed.append({"round": number, "stage": stage_of(workdir)})
        print(f"kill {len(killed)}: {killed[-1]['stage']}", file=sys.stderr, flush=True)


def _call(options: argparse.Namespace, workdir: Path, moment: float | None, limit: float | None = None) -> int:
    """One call of the command, killed after `moment` seconds; its exit code, -9 where it was killed."""
    command = [sys.executable, "-m", "jaxdrl", "run", f"--config={options.config}", f"--workdir={workdir}"]
    command += ["--config.runtime.checkpoint_seconds=0.0", *options.rest]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{workdir}.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            return process.wait(limit if moment is None else moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return -9 if moment is not None else 1


def stage_of(workdir: Path) -> str:
    """The stage in which a run was killed.

    Args:
        workdir: Of the run.

    Returns:
        The first stage that is begun and not finished, or "(start)" where none was running.
    """
    for stage in ORDER:
        folder = workdir / stage
        if folder.is_dir() and not (folder / "result.json").exists():
            return stage
    return STARTUP


def results(workdir: Path) -> dict[str, object]:
    """What must be the same: every file of weights, the metrics and the tables, without what the clock gives.

    Args:
        workdir: Of a finished run.

    Returns:
        name -> value.
    """
    found: dict[str, object] = {}
    for path in sorted(workdir.glob("*/*.safetensors")):
        found[str(path.relative_to(workdir))] = files.fingerprint(files.load_tree(path))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found["metrics.jsonl"] = lines
    evaluation = json.loads((workdir / "evaluate" / "result.json").read_text())
    timed = ("seconds", "control")
    return found | {f"evaluate/{key}": value for key, value in evaluation.items() if key not in timed}


def _lost(options: argparse.Namespace, killed: list[dict], problem: str) -> int:
    _write(options, killed, killed[-1]["round"] if killed else 1, problem)
    print(problem, file=sys.stderr)
    return 1


def _write(options: argparse.Namespace, killed: list[dict], rounds: int, problem: str) -> None:
    count = Counter(kill["stage"] for kill in killed)
    summary = {"config": options.config, "seed": options.seed, "kills": len(killed), "runs": rounds, "by_stage": dict(count)}
    (options.out / "kills.json").write_text(json.dumps(summary | {"problem": problem}, indent=2))
    stages = [*ORDER, STARTUP]
    print("| " + " | ".join(["kills", "runs", *stages, "final bits"]) + " |")
    print("|" + "---|" * (len(stages) + 3))
    cells = [len(killed), rounds, *(count.get(stage, 0) for stage in stages), problem or "the same"]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
