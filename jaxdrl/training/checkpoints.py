"""Checkpoints of one stage: Orbax, asynchronous, with checksums of our own.

Orbax restores a file with a flipped byte without a word, so every finished step gets a manifest of sha256 sums beside it. A
step without a manifest, or that does not match it, is passed over for the one before.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging as absl_logging

from jaxdrl.errors import Stopped, UserError
from jaxdrl.training.stopping import Stopping
from jaxdrl.weights.files import write_atomically

State = TypeVar("State")


class Checkpoints:
    """Saves and restores the state of one stage; a context manager.

    Results never depend on when a checkpoint was made: all randomness is a function of the step.
    """

    def __init__(self, directory: Path, seconds: float = 30.0, max_to_keep: int = 2) -> None:
        """Opens a folder of checkpoints.

        Args:
            directory: Made if missing.
            seconds: Least time between two saves of `save_when_due`.
            max_to_keep: Older steps are deleted.
        """
        import orbax.checkpoint as ocp

        logging.getLogger("orbax").setLevel(logging.ERROR)
        absl_logging.set_verbosity(absl_logging.WARNING)
        self._directory = directory.absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._seconds, self._max_to_keep = seconds, max_to_keep
        self._last, self._pending = time.monotonic(), None
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._arguments = ocp.args

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for a save under way and lets go."""
        self.wait()
        self._checkpointer.close()

    def save_when_due(self, step: int, state: Any, flush: Callable[[], None] = lambda: None) -> None:
        """Saves if the last save is long enough ago.

        Args:
            step: Of the state.
            state: A pytree of arrays.
            flush: Called first, so that metrics up to this step are on the disk before the checkpoint is.
        """
        if time.monotonic() - self._last >= self._seconds:
            flush()
            self.save(step, state)

    def after(self, step: int, state: Any, stopping: Stopping, flush: Callable[[], None] = lambda: None) -> None:
        """What a loop does behind each of its steps: saves when it is time to, or because the run is to stop.

        Args:
            step: Of the state.
            state: A pytree of arrays.
            stopping: Asked once.
            flush: As for `save_when_due`.

        Raises:
            Stopped: If the run is to stop; the state is on the disk.
        """
        if not stopping.requested():
            self.save_when_due(step, state, flush)
            return
        flush()
        self.save(step, state)
        self.wait()
        raise Stopped(f"step {step} is in {self._directory}")

    def save(self, step: int, state: Any) -> None:
        """Starts a save; the state may be donated as soon as this returns.

        Args:
            step: Of the state.
            state: A pytree of arrays.
        """
        self.wait()
        folder = self._directory / str(step)
        shutil.rmtree(folder, ignore_errors=True)
        self._checkpointer.save(folder, args=self._arguments.StandardSave(state))
        self._pending, self._last = step, time.monotonic()

    def wait(self) -> None:
        """Waits for the save under way, writes its manifest and deletes steps beyond `max_to_keep`."""
        self._checkpointer.wait_until_finished()
        if self._pending is None:
            return
        folder = self._directory / str(self._pending)
        write_atomically(self._manifest(self._pending), json.dumps(_checksums(folder), indent=1).encode())
        self._pending = None
        for step in self.steps()[: -self._max_to_keep]:
            self._manifest(step).unlink(missing_ok=True)
            shutil.rmtree(self._directory / str(step), ignore_errors=True)

    def steps(self) -> list[int]:
        """Returns the steps that have a folder, ascending; they may be damaged."""
        return sorted(int(path.name) for path in self._directory.iterdir() if path.is_dir() and path.name.isdigit())

    def restore(self, template: State) -> tuple[int, State] | None:
        """Restores the newest step whose checksums hold.

        Args:
            template: A pytree of arrays or `ShapeDtypeStruct`s (with shardings) of the same structure.

        Returns:
            (step, state), or None if no step is whole.

        Raises:
            UserError: If a whole step does not fit the template.
        """
        for step in reversed(self.steps()):
            folder, manifest = self._directory / str(step), self._manifest(step)
            if not manifest.exists() or json.loads(manifest.read_text()) != _checksums(folder):
                print(f"checkpoint {folder} is damaged or unfinished; the one before it is used", flush=True)
                continue
            abstract = jax.tree.map(_abstract, template)
            try:
                return step, self._checkpointer.restore(folder, args=self._arguments.StandardRestore(abstract))
            except ValueError as error:
                line = str(error).strip().split("\n")[0]
                raise UserError(f"checkpoint {folder} does not fit this config ({line}); choose another --workdir") from error
        return None

    def _manifest(self, step: int) -> Path:
        return self._directory / f"{step}.sha256.json"


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
