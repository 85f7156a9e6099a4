"""Scalars by stage and step: `metrics.jsonl`, and TensorBoard events where asked for.

The interface is that of clu's metric writers, which import TensorFlow and are therefore not used. A resumed stage drops the
lines after its checkpoint first, so that the file reads as if the run had never been cut.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdrl.errors import UserError
from jaxdrl.weights.files import write_atomically


class MetricWriter:
    """Writes the metrics of a run; `for_stage` gives a stage its own view."""

    def __init__(self, workdir: Path, *, tensorboard: bool = False, writes: bool = True) -> None:
        """Opens `<workdir>/metrics.jsonl` for appending.

        Args:
            workdir: Of the run.
            tensorboard: Whether events go to `<workdir>/tensorboard` too.
            writes: False in all processes of a run but one: nothing is opened or written.

        Raises:
            UserError: If tensorboard is asked for and tensorboardX is not installed.
        """
        self.path = workdir / "metrics.jsonl"
        self._writes = writes
        self._events: Any = None
        if not writes:
            return
        _drop(self.path, lambda line: False)
        self._file = self.path.open("a")
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
        for name, value in scalars.items():
            if self._events is not None:
                self._events.add_scalar(f"{stage}/{name}", float(value), step)

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
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if not self._writes:
            return
        self.flush()
        self._file.close()
        if self._events is not None:
            self._events.close()


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

    def resume(self, step: int) -> None:
        """Drops this stage's lines after a step.

        Args:
            step: That of the restored checkpoint, 0 for a fresh start.
        """
        self._writer.drop_after(self._stage, step)

    def flush(self) -> None:
        """Brings every line to the disk."""
        self._writer.flush()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads all lines; a torn last line is left out.

    Args:
        workdir: Of a run.

    Returns:
        A dict a line, empty if there are none.
    """
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in _whole_lines(path)] if path.exists() else []


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
