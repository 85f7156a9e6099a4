r"""The published recipes planned for slices that nobody has to book: the table of docs/scale.md.

    python benchmarks/plan_table.py --out=runs/plans [--slices=v5e:4x4,h200:8] [--recipes=sit_xl,repa_xl]

Each plan is `jaxdrl plan --json` in a process of its own with the settings below, which are what its advice says for that slice. A plan that is in
the folder is not made again; one that does not fit is a row as well. The table is of everything in the folder.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPES = ("sit_xl", "repa_xl", "jit_h", "rae_xl")
# Of a slice: the mesh, and parts that its chips divide. A gradient step has 576 trajectories, so 256 chips are 64 x 4.
SLICES = {
    "v5e:4x4": {"fsdp": 16, "rollout_batch": 256, "reward_batch": 16, "micro_batches": 36},
    "v5e:16x16": {"fsdp": 64, "tensor": 4, "rollout_batch": 256, "reward_batch": 64, "micro_batches": 3},
    "v5p:2x4x4": {"fsdp": 32, "rollout_batch": 256, "reward_batch": 128, "micro_batches": 6},
    "v6e:8x8": {"fsdp": 64, "rollout_batch": 256, "reward_batch": 64, "micro_batches": 9},
    "h200:8": {"fsdp": 8, "rollout_batch": 256, "reward_batch": 64, "micro_batches": 8},
}
# Trajectories in pixel space and in RAE's latents are 64 times as large: they wait in the hosts' memory, where what is rolled out together
# is a row. 192 divides a gradient step, and the chips divide it.
LARGE: dict[str, Any] = {"rollout_batch": 192, "shuffle_block": 192, "buffer_dtype": "bfloat16", "buffer_memory": "pinned_host"}


def main() -> None:
    """Makes what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--recipes", default=",".join(RECIPES), type=lambda text: text.split(","))
    parser.add_argument("--slices", default=",".join(SLICES), type=lambda text: text.split(","))
    options = parser.parse_args()
    for asked, known in ((options.recipes, RECIPES), (options.slices, SLICES)):
        if unknown := sorted(set(asked) - set(known)):
            parser.error(f"{', '.join(unknown)} is unknown; choose from {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for where in options.slices:
        for recipe in options.recipes:
            file = options.out / f"{recipe}-{where.replace(':', '-')}.json"
            if not file.exists() and (found := planned(recipe, where)) is not None:
                file.write_text(json.dumps(found, indent=2))
    plans = {file.stem: json.loads(file.read_text()) for file in options.out.glob("*.json")}
    print("\n".join(table(plans)))


def settings(recipe: str, where: str) -> list[str]:
    """What the command line says for a slice.

    Args:
        recipe: One of `RECIPES`.
        where: One of `SLICES`.

    Returns:
        `group.key=value`.
    """
    posttrain = {"shuffle_block": 64} | dict(SLICES[where])
    mesh = {key: posttrain.pop(key) for key in ("fsdp", "tensor") if key in posttrain}
    if recipe in ("jit_h", "rae_xl"):
        posttrain |= LARGE | {"reward_batch": math.gcd(posttrain["reward_batch"], LARGE["rollout_batch"])}
    groups = {"mesh": mesh, "posttrain": posttrain}
    return [f"{group}.{key}={value}" for group, values in groups.items() for key, value in values.items()]


def planned(recipe: str, where: str) -> dict[str, Any] | None:
    """Plans a recipe for a slice.

    Args:
        recipe: One of `RECIPES`.
        where: One of `SLICES`.

    Returns:
        What `jaxdrl plan --json` prints, with the settings; None where it failed, which is said.
    """
    given = settings(recipe, where)
    command = [sys.executable, "-m", "jaxdrl", "plan", f"--config={ROOT}/configs/drl_imagenet_{recipe}.py", f"--topology={where}"]
    done = subprocess.run([*command, "--json", *(f"--config.{one}" for one in given)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode not in (0, 1) or not done.stdout:
        print(f"{recipe} on {where}: exit code {done.returncode}: {done.stderr[-500:]}", file=sys.stderr, flush=True)
        return None
    found = json.loads(done.stdout)
    print(f"{recipe} on {where}: {found['verdict']} (compiled in {found['compile_seconds']:.0f} s)", file=sys.stderr, flush=True)
    return found | {"settings": given}


def table(plans: Mapping[str, dict[str, Any]]) -> list[str]:
    """A Markdown table, by slice.

    Args:
        plans: RECIPE-SLICE -> from `planned`.

    Returns:
        Lines.
    """
    lines = [
        "| recipe | slice | settings | state + frozen, GB a chip | peak of HBM, GiB a chip | 1e15 operations a chip and refresh | collectives, GB a chip and refresh "
        "| a refresh at least, s | recipe at least, hours | chip-hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {f"{recipe}-{where.replace(':', '-')}": None for where in SLICES for recipe in RECIPES}
    for name in order:
        if name in plans:
            lines.append(f"| {' | '.join(_cells(plans[name]))} |")
    return lines


def _cells(found: dict[str, Any]) -> list[str]:
    peak, room = found["peak_bytes"] / 2**30, found["memory_bytes"] / 2**30
    about = "about " if found["estimated"] else ""
    cells = [found["recipe"].removeprefix("drl_imagenet_"), found["topology"]]
    cells.append(", ".join(f"`{one.partition('.')[2]}`" for one in found["settings"]))
    cells += [f"{(found['state_bytes'] + found['frozen_bytes']) / 1e9:.2f}", f"{about}{peak:.1f} of {room:.1f}"]
    if not found["fits"]:
        return [*cells, "does not fit", "", "", "", ""]
    sent = ", ".join(f"{kind} {value / 1e9:,.0f}" for kind, value in found["link_bytes"].items() if value > 1e9)
    cells += [f"{found['flops'] / 1e15:.1f}", sent, f"{found['step_seconds']:.0f}", f"{found['hours']:.1f}"]
    return [*cells, f"{found['chip_hours']:.0f}"]


if __name__ == "__main__":
    main()
