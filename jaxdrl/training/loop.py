"""Runs stages in order: a finished one is skipped, a cut one goes on where it stopped."""

import importlib
import json
import time
from collections.abc import Sequence

import jax

from jaxdrl.errors import Stopped
from jaxdrl.training import checkpoints, distributed
from jaxdrl.training.context import Run, Stage
from jaxdrl.training.workdir import disk_errors, finish_stage, stage_result
from jaxdrl.weights.files import write_atomically


def run_stages(run: Run, names: Sequence[str]) -> dict[str, dict]:
    """Runs the named stages.

    Args:
        run: The run.
        names: Modules of `training/stages/`, in order.

    Returns:
        name -> result; each has `seconds`, over all attempts.

    Raises:
        UserError: As the stages do.
        Stopped: If the run was asked to stop; the same command goes on.
    """
    results = {}
    for name in names:
        stage: Stage = importlib.import_module(f"jaxdrl.training.stages.{name}")  # type: ignore[assignment]
        found = distributed.from_first(stage_result(run.workdir, name))
        if found is not None:
            print(f"{name}: done before, skipped", flush=True)
            results[name] = found
            continue
        if run.stopping.requested():
            raise Stopped(f"before stage {name}, in {run.workdir}")
        with disk_errors(run.workdir), jax.set_mesh(run.mesh):
            results[name] = _run(run, stage)
    return results


def _run(run: Run, stage: Stage) -> dict:
    folder = run.workdir / stage.name
    run.at(stage.name, 0)
    folder.mkdir(parents=True, exist_ok=True)
    spent = folder / "seconds.json"
    before = json.loads(spent.read_text()) if spent.exists() else 0.0
    print(f"{stage.name}: {'goes on' if before else 'starts'}", flush=True)
    began = time.monotonic()
    try:
        result = stage.run(run)
    finally:
        seconds = before + time.monotonic() - began
        if distributed.first():
            write_atomically(spent, json.dumps(round(seconds, 3)).encode())
    run.writer.flush()
    if distributed.first():
        finish_stage(run.workdir, stage.name, result | {"seconds": round(seconds, 2)})
        checkpoints.clear(run.stage_folder(stage.name), run.keep)
    distributed.wait_for(folder / "result.json")
    print(f"{stage.name}: done in {seconds:.0f} s", flush=True)
    return result | {"seconds": round(seconds, 2)}
