"""Scalars by stage and step: `metrics.jsonl`, and TensorBoard events where asked for.

The interface is that of clu's metric writers, which import TensorFlow and are therefore not used. A resumed stage drops the
lines after its checkpoint first, so that the file reads as if the run had never been cut.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdrl.errors import UserError
from jaxdrl.weights.files import write_atomically


class MetricWriter:
    """Writes the metrics of a run; `for_stage` gives a stage its own view."""

    def __init__(
        self,
        workdir: Path,
        *,
        tensorboard: bool = False,
        wandb: str = "",
        writes: bool = True,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens `<workdir>/metrics.jsonl` and `machine.jsonl` for appending.

        Args:
            workdir: Of the run.
            tensorboard: Whether events go to `<workdir>/tensorboard` too.
            wandb: A project of Weights & Biases; empty: none. The run's name there is the workdir's.
            writes: False in all processes of a run but one: nothing is opened or written.
            config: What Weights & Biases shows as the run's settings.

        Raises:
            UserError: If tensorboardX or wandb is asked for and not installed.
        """
        self.path = workdir / "metrics.jsonl"
        self._writes = writes
        self._events: Any = None
        self._wandb: Any = None
        if not writes:
            return
        _drop(self.path, lambda line: False)
        _drop(workdir / "machine.jsonl", lambda line: False)
        self._file, self._machine = self.path.open("a"), (workdir / "machine.jsonl").open("a")
        if wandb:
            self._wandb = _wandb_run(wandb, workdir, config)
        if tensorboard:
            try:
                import tensorboardX
            except ImportError:
                raise UserError("config.runtime.tensorboard needs: pip install 'jaxdrl[tensorboard]'") from None
            self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def for_stage(self, stage: str) -> "StageWriter":
        """Returns a writer whose lines carry the stage's name.

        Args:
            stage: A name.

        Returns:
            The view.
        """
        return StageWriter(self, stage)

    def write(self, stage: str, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line.

        Args:
            stage: A name.
            step: Of that stage.
            scalars: name -> number.
        """
        if not self._writes:
            return
        line = {"stage": stage, "step": int(step)} | {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps(line) + "\n")
        self._show(stage, step, scalars)

    def machine(self, stage: str, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line on the machine: what a resumed run does not repeat.

        Args:
            stage: A name.
            step: Of that stage.
            scalars: name -> number.
        """
        if not self._writes:
            return
        line = {"stage": stage, "step": int(step)} | {name: round(float(value), 6) for name, value in scalars.items()}
        self._machine.write(json.dumps(line) + "\n")
        self._show(f"{stage}.machine", step, scalars)

    def _show(self, stage: str, step: int, scalars: Mapping[str, Any]) -> None:
        named = {f"{stage}/{name}": float(value) for name, value in scalars.items()}
        if self._events is not None:
            for name, value in named.items():
                self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            # A step of each stage's own: wandb's counter can only rise.
            self._wandb.log(named | {f"{stage}/step": int(step)})

    def drop_after(self, stage: str, step: int) -> None:
        """Removes the lines of a stage that come after a step.

        Args:
            stage: A name.
            step: The last one to keep.
        """
        if not self._writes:
            return
        self._file.close()
        _drop(self.path, lambda line: line["stage"] == stage and line["step"] > step)
        self._file = self.path.open("a")

    def flush(self) -> None:
        """Brings every line to the disk."""
        if not self._writes:
            return
        self._file.flush()
        self._machine.flush()
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if not self._writes:
            return
        self.flush()
        self._file.close()
        self._machine.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


class StageWriter:
    """A stage's view of the run's metrics, with clu's `write_scalars`."""

    def __init__(self, writer: MetricWriter, stage: str) -> None:
        """Binds a stage's name.

        Args:
            writer: Of the run.
            stage: A name.
        """
        self._writer, self._stage = writer, stage

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line.

        Args:
            step: Of this stage.
            scalars: name -> number.
        """
        self._writer.write(self._stage, step, scalars)

    def write_machine(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line to `machine.jsonl`.

        Args:
            step: Of this stage.
            scalars: name -> number.
        """
        self._writer.machine(self._stage, step, scalars)

    def resume(self, step: int) -> None:
        """Drops this stage's lines after a step.

        Args:
            step: That of the restored checkpoint, 0 for a fresh start.
        """
        self._writer.drop_after(self._stage, step)

    def flush(self) -> None:
        """Brings every line to the disk."""
        self._writer.flush()


def read_metrics(workdir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Reads all lines; a torn last line is left out.

    Args:
        workdir: Of a run.
        name: "machine.jsonl" for what the machine did; a step that a resumed run took again has two lines.

    Returns:
        A dict a line, empty if there are none.
    """
    path = workdir / name
    return [json.loads(line) for line in _whole_lines(path)] if path.exists() else []


def _wandb_run(project: str, workdir: Path, config: Mapping[str, Any] | None) -> Any:
    """The run of this workdir, gone on with if there is one; its steps are each stage's own."""
    try:
        import wandb
    except ImportError:
        raise UserError("config.runtime.wandb needs: pip install 'jaxdrl[wandb]'") from None
    name = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
    run = wandb.init(project=project, name=workdir.name, id=name, resume="allow", dir=str(workdir), config=dict(config or {}))
    run.define_metric("*/step", hidden=True)
    return run


def _whole_lines(path: Path) -> list[str]:
    lines = path.read_text().split("\n")
    return [line for line in lines[:-1] if line]


def _drop(path: Path, condition) -> None:
    """Rewrites the file without torn lines and without those that meet the condition."""
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if not condition(json.loads(line))]
    content = "".join(line + "\n" for line in kept).encode()
    if content != path.read_bytes():
        write_atomically(path, content)
