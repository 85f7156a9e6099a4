"""Steps whose loss or gradient is not finite, or whose gradient is far larger than it was: the run stops, skips them or goes back.

A step is a gradient step in the stages pretrain and longer, and a refresh in posttrain. `config.runtime.on_bad_step`:

    stop        the run ends with an error; the last checkpoint is kept
    skip        the state stays as it was before the step, and the next step has the next batch and draws
    rollback    the last checkpoint is restored, and everything from there on is drawn with another key

In each case the step's batch, or what draws it again, goes to `<workdir>/<stage>/bad_step_N.npz`, and a line of the stage `<stage>.bad` to the
metrics. Too large is a norm above `spike_factor` times the median of the last 100 metric lines, once there are 10; it is read from the
metrics, so that a resumed run judges as an uninterrupted one does. Where nothing is bad, every policy gives the same bits.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxdrl.errors import UserError
from jaxdrl.training import distributed
from jaxdrl.training.context import Run
from jaxdrl.training.metrics import read_metrics
from jaxdrl.weights.files import make_atomically, write_atomically

POLICIES = ("stop", "skip", "rollback")
_LINES, _LEAST = 100, 10


class GoBack(Exception):
    """The loop is to start again, from the last checkpoint."""


class BadSteps:
    """Judges the steps of a stage, and keeps the account of bad ones."""

    def __init__(self, run: Run, stage: str, step: int) -> None:
        """Reads what a resumed run has seen.

        Args:
            run: The run; metrics after `step` have been dropped.
            stage: Its name.
            step: At which the stage goes on.

        Raises:
            UserError: If a setting is out of range.
        """
        options = run.config.runtime
        if options.on_bad_step not in POLICIES:
            raise UserError(f"config.runtime.on_bad_step: {options.on_bad_step!r} must be one of {', '.join(POLICIES)}")
        if options.bad_steps_in_a_row < 1 or (options.spike_factor != 0 and options.spike_factor <= 1):
            raise UserError(
                f"config.runtime: bad_steps_in_a_row ({options.bad_steps_in_a_row}) must be at least 1 and spike_factor "
                f"({options.spike_factor}) above 1, or 0: never"
            )
        self.policy, self._factor, self._most = options.on_bad_step, options.spike_factor, options.bad_steps_in_a_row
        self._stage, self._folder = stage, run.workdir / stage
        self._writer = run.writer.for_stage(f"{stage}.bad")
        self._writer.resume(step)
        lines = distributed.from_first([line for line in read_metrics(run.workdir) if line["stage"] in (stage, f"{stage}.bad")])
        self._norms = [line["gradient_norm"] for line in lines if line["stage"] == stage and "gradient_norm" in line]
        self._skipped = {line["step"] for line in lines if line["stage"] != stage}
        file = self._folder / "rollbacks.json"
        self._rollbacks: list[dict[str, Any]] = distributed.from_first(json.loads(file.read_text()) if file.exists() else [])

    @property
    def limit(self) -> float:
        """The largest norm that is not too large."""
        if not self._factor or len(self._norms) < _LEAST:
            return math.inf
        return float(np.float32(self._factor * np.median(self._norms[-_LINES:])))  # as a compiled step compares

    def key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """The stage's key, another one after each rollback.

        Args:
            key: Of the stage.

        Returns:
            The key for the next step.
        """
        return jax.random.fold_in(key, 2**32 - len(self._rollbacks)) if self._rollbacks else key

    def seen(self, norm: float) -> None:
        """Counts a good step, or several, for the median.

        Args:
            norm: As it is written to the metrics as `gradient_norm`.
        """
        if math.isfinite(norm):
            self._norms.append(norm)

    def judge(self, loss: float, norm: float) -> str:
        """Looks at a step.

        Args:
            loss: Of the step.
            norm: Of its gradient.

        Returns:
            What is wrong with it, or "".
        """
        wrong = [
            f"the {name} is {value}" for name, value in (("loss", loss), ("gradient norm", norm)) if not math.isfinite(value)
        ]
        if not wrong and norm > self.limit:
            wrong = [
                f"the gradient norm is {norm:.3g}, more than config.runtime.spike_factor ({self._factor:g}) x its median "
                f"({self.limit / self._factor:.3g})"
            ]
        return " and ".join(wrong)

    def found(self, step: int, wrong: str, numbers: Mapping[str, float], batch: Mapping[str, Any]) -> None:
        """Writes a bad step down, and says so.

        Args:
            step: Its number, from 1.
            wrong: From `judge`.
            numbers: For the metrics.
            batch: Arrays, for the file.

        Raises:
            UserError: If the policy is to stop, or too many were bad in a row.
            GoBack: If the policy is to roll back.
        """
        mine = f".process{jax.process_index()}" if jax.process_index() else ""
        path = self._folder / f"bad_step_{step}{mine}.npz"
        make_atomically(path, lambda part: _savez(part, {**numbers, **batch}))
        self._writer.write_scalars(step, numbers)
        self._writer.flush()
        self._skipped.add(step)
        said = f"{self._stage}: step {step}: {wrong}; its batch is in {path}"
        row = next(n for n in range(len(self._skipped) + 1) if step - n not in self._skipped)
        if self.policy == "rollback":
            row = 1 + sum(rollback["step"] >= step for rollback in self._rollbacks)
        if self.policy == "stop" or row > self._most:
            many = f"number {row} in a row (config.runtime.bad_steps_in_a_row); " if self.policy != "stop" else ""
            raise UserError(
                f"{said}; {many}lower config.{'posttrain' if self._stage == 'posttrain' else 'pretrain'}.learning_rate, or choose skip or "
                "rollback as config.runtime.on_bad_step (the last checkpoint is kept)"
            )
        print(f"{said}; {'skipped' if self.policy == 'skip' else 'going back to the last checkpoint'}", flush=True)
        if self.policy == "rollback":
            # Written down before anything is computed with the other key.
            if distributed.first():
                content = [*self._rollbacks, {"step": step, "wrong": wrong}]
                write_atomically(self._folder / "rollbacks.json", json.dumps(content, indent=1).encode())
            distributed.from_first(None)
            raise GoBack


def _savez(path: Any, arrays: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(values) for name, values in arrays.items()})
