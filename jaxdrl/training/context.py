"""What every stage is given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from jaxdrl.training.metrics import MetricWriter
from jaxdrl.training.stopping import Stopping


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its config, its folder, its devices and its metrics.

    Attributes:
        config: The (frozen) config tree.
        workdir: Where all results go.
        mesh: Devices, axes ("data", "fsdp", "tensor").
        writer: Metrics of all stages.
        stopping: Says at each step whether the run is to end.
    """

    config: Any
    workdir: Path
    mesh: jax.sharding.Mesh
    writer: MetricWriter
    stopping: Stopping = field(default_factory=Stopping)


@runtime_checkable
class Stage(Protocol):
    """A module of `training/stages/`: what it is called and what it does."""

    name: str

    def run(self, run: Run) -> dict:
        """Does the stage's work, going on from its checkpoint if there is one; returns what goes to `result.json`."""
        ...
