"""What every stage is given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from etils import epath

from jaxdrl.training.checkpoints import Checkpoints, Keep, place
from jaxdrl.training.heartbeat import Heartbeat
from jaxdrl.training.metrics import MetricWriter
from jaxdrl.training.stopping import Stopping
from jaxdrl.training.telemetry import ProfileWindow


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its config, its folder, its devices and its metrics.

    Attributes:
        config: The (frozen) config tree.
        workdir: Where all results go.
        mesh: Devices, axes ("data", "fsdp", "tensor").
        writer: Metrics of all stages.
        stopping: Says at each step whether the run is to end.
        heartbeat: Told at each step where the run is.
        profile: Told it too; traces a few steps.
    """

    config: Any
    workdir: Path
    mesh: jax.sharding.Mesh
    writer: MetricWriter
    stopping: Stopping = field(default_factory=Stopping)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    profile: ProfileWindow | None = None

    def at(self, stage: str, step: int) -> Path | None:
        """Tells all who want to know how far a stage is.

        Args:
            stage: Its name.
            step: How many of its steps are done.

        Returns:
            The folder of a trace that ends here, if one does.
        """
        self.heartbeat.at(stage, step)
        return None if self.profile is None else self.profile.at(stage, step)

    @property
    def keep(self) -> Keep:
        """Which checkpoints are kept.

        Raises:
            UserError: If `config.runtime.checkpoints` is out of range.
        """
        options = self.config.runtime.checkpoints
        return Keep(last=options.keep_last, every_hours=options.keep_every_hours, best=options.keep_best)

    def stage_folder(self, stage: str) -> epath.Path:
        """Where a stage's checkpoints are: the workdir, or `config.runtime.checkpoints.directory`."""
        return place(self.config.runtime.checkpoints.directory or self.workdir) / stage

    def checkpoints(self, stage: str, *parts: str) -> Checkpoints:
        """Opens checkpoints as the config says.

        Args:
            stage: Name of the stage.
            *parts: Folders within the stage's.

        Returns:
            A context manager.
        """
        return Checkpoints(self.stage_folder(stage).joinpath(*parts), self.config.runtime.checkpoint_seconds, self.keep)


@runtime_checkable
class Stage(Protocol):
    """A module of `training/stages/`: what it is called and what it does."""

    name: str

    def run(self, run: Run) -> dict:
        """Does the stage's work, going on from its checkpoint if there is one; returns what goes to `result.json`."""
        ...
