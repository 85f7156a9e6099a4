"""How the tests run the launchers: with programs of their own in front of the machine's."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"


def program(folder, name, text):
    """Writes a bash script that a launcher will take for the program of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


def environment(folder=None, **variables):
    """The environment without what a scheduler or an earlier launcher has put there."""
    found = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "OMPI_", "JAX_", "XLA_", "CUDA_", "NCCL_"))
    }
    if folder is not None:
        found["PATH"] = f"{folder}:{found['PATH']}"
    return found | {name: str(value) for name, value in variables.items()}


def run(script, *arguments, seconds=120, cwd=ROOT, **options):
    """Runs a launcher to its end; `env` is an environment."""
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        check=False,
        **options,
    )


def error(finished):
    """The one line of a mistake."""
    assert finished.returncode == 2, finished
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert ": error: " in line
    return line
