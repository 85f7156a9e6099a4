"""Gathers the results of a workdir and writes the two files of the report."""

import json
import platform
from importlib import metadata
from pathlib import Path

from jaxdrl.errors import UserError
from jaxdrl.report import page
from jaxdrl.training.metrics import read_metrics
from jaxdrl.training.stages import ORDER
from jaxdrl.training.workdir import read_config, stage_result
from jaxdrl.weights import files


def write(workdir: Path) -> dict[str, str]:
    """Writes `report.json` and `report.html`.

    Args:
        workdir: With a finished evaluation.

    Returns:
        {"json": ..., "html": ...}, names inside the workdir.

    Raises:
        UserError: If the evaluate stage has not been run.
    """
    evaluation = stage_result(workdir, "evaluate")
    if evaluation is None:
        raise UserError(f"{workdir} has no evaluation; run `jaxdrl evaluate --workdir={workdir}`")
    results = {stage: stage_result(workdir, stage) for stage in ORDER if stage != "report"}
    report = {
        "config": read_config(workdir),
        "seeds": [read_config(workdir)["seed"]],
        **evaluation,
        "seconds": {stage: result["seconds"] for stage, result in results.items() if result},
        "stages": {stage: result for stage, result in results.items() if result and stage != "evaluate"},
        "versions": versions(),
    }
    files.write_atomically(workdir / "report.json", json.dumps(report, indent=2).encode())
    arrays = files.load_tree(workdir / "evaluate" / "report_arrays.safetensors")
    html = page.render(report, [*read_metrics(workdir), *read_metrics(workdir, "machine.jsonl")], arrays)
    files.write_atomically(workdir / "report.html", html.encode())
    return {"json": "report.json", "html": "report.html"}


def versions() -> dict[str, str]:
    """Versions of what computes.

    Returns:
        name -> version.
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("jaxdrl", "jax", "flax", "optax", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
