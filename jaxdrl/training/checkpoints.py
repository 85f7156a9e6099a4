"""Checkpoints of one stage: Orbax, asynchronous, with checksums of our own, in a folder or a bucket.

Orbax restores a file with a flipped byte without a word, so every finished step gets a manifest beside it: sha256 sums, when it was made,
and the metrics by which it may be the best. A step without a manifest, or that does not match it, is passed over for the one before.

The state of a stage holds its step, and batches, buffers and random draws are functions of the step alone: so a checkpoint is where the data
iterator, the buffers and the random numbers stand too. Arrays are saved whole, whatever mesh they lie on, and restored onto any other.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging as absl_logging
from etils import epath
from jax.sharding import Mesh

from jaxdrl.errors import Stopped, UserError
from jaxdrl.training import distributed
from jaxdrl.training import mesh as meshes
from jaxdrl.training.stopping import Stopping
from jaxdrl.weights.files import write_atomically

State = TypeVar("State")
_MANIFEST = ".sha256.json"


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which steps are kept when newer ones are whole; `config.runtime.checkpoints`.

    Attributes:
        last: So many of the newest, at least 1.
        every_hours: And one in so many hours, for good; 0: none.
        best: And the one with the greatest value of this metric, for good, or with the least of NAME where it is "-NAME"; "": none. A step
            that is better than all before it is saved whenever it comes.
    """

    last: int = 2
    every_hours: float | int = 0.0
    best: str = ""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: If one is out of its range.
        """
        if self.last < 1 or self.every_hours < 0:
            raise UserError(
                f"config.runtime.checkpoints: keep_last ({self.last}) must be at least 1 and keep_every_hours ({self.every_hours}) at least 0"
            )

    def score(self, metrics: Mapping[str, float]) -> float | None:
        """How good a step is: larger is better; None where that was not measured, or is not finite."""
        value = metrics.get(self.best.removeprefix("-")) if self.best else None
        if value is None or not math.isfinite(value):
            return None
        return -value if self.best.startswith("-") else value


class Checkpoints:
    """Saves and restores the state of one stage; a context manager. Every process of a run calls every method.

    Results never depend on when a checkpoint was made: all randomness is a function of the step.
    """

    def __init__(
        self,
        directory: Path | epath.Path,
        seconds: float = 30.0,
        keep: Keep = Keep(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens a folder of checkpoints.

        Args:
            directory: Made if missing; `gs://` too.
            seconds: Least time between two saves of `after`.
            keep: Which steps are not deleted.
            clock: For tests.
        """
        import orbax.checkpoint as ocp

        logging.getLogger("orbax").setLevel(logging.ERROR)
        absl_logging.set_verbosity(absl_logging.WARNING)
        self._directory = place(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._seconds, self._keep, self._clock = seconds, keep, clock
        self._last, self._pending, self._metrics = time.monotonic(), None, {}
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._arguments = ocp.args
        scores = [keep.score(found["metrics"]) for found in manifests(self._directory).values()]
        self._best = max((score for score in scores if score is not None), default=-math.inf)

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for a save under way and lets go."""
        self.wait()
        self._checkpointer.close()

    def after(
        self,
        step: int,
        state: Any,
        stopping: Stopping,
        *,
        metrics: Mapping[str, float] = {},
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        """What a loop does behind each of its steps: saves when it is time to, or because the run is to stop.

        Args:
            step: Of the state.
            state: A pytree of arrays.
            stopping: Asked once.
            metrics: Of the step.
            flush: Called first, so that metrics up to this step are on the disk before the checkpoint is.

        Raises:
            Stopped: If the run is to stop; the state is on the disk.
        """
        stops, score = stopping.requested(), self._keep.score(metrics)
        better = score is not None and score > self._best
        if not (stops or distributed.from_first(better or time.monotonic() - self._last >= self._seconds)):
            return
        flush()
        self.save(step, state, metrics)
        if stops:
            self.wait()
            raise Stopped(f"step {step} is in {self._directory}")

    def save(self, step: int, state: Any, metrics: Mapping[str, float] = {}) -> None:
        """Starts a save; the state may be donated as soon as this returns.

        Args:
            step: Of the state.
            state: A pytree of arrays; those of several processes' run lie on its mesh.
            metrics: Of the step.
        """
        self.wait()
        folder = self._directory / str(step)
        if distributed.first() and folder.exists():
            self._manifest(step).unlink(missing_ok=True)
            folder.rmtree()
        distributed.from_first(None)
        self._checkpointer.save(folder, args=self._arguments.StandardSave(state))
        self._pending, self._metrics, self._last = step, dict(metrics), time.monotonic()
        self._best = max(self._best, -math.inf if (score := self._keep.score(metrics)) is None else score)

    def wait(self) -> None:
        """Waits for the save under way, writes its manifest and deletes the steps that are not to be kept."""
        self._checkpointer.wait_until_finished()
        if self._pending is None:
            return
        if distributed.first():
            found = {"sha256": _checksums(self._directory / str(self._pending)), "time": self._clock(), "metrics": self._metrics}
            _write(self._manifest(self._pending), json.dumps(found, indent=1).encode())
            retire(self._directory, self._keep)
        self._pending = None

    def steps(self) -> list[int]:
        """Returns the steps that have a folder, ascending; they may be damaged."""
        return steps(self._directory)

    def restore(self, template: State) -> tuple[int, State] | None:
        """Restores the newest step whose checksums hold.

        Args:
            template: A pytree of arrays or `ShapeDtypeStruct`s (with shardings, of any mesh) of the same structure.

        Returns:
            (step, state), or None if no step is whole.

        Raises:
            UserError: If a whole step does not fit the template.
        """
        self.wait()
        step = distributed.from_first(self._newest_whole() if distributed.first() else None)
        if step is None:
            return None
        folder = self._directory / str(step)
        try:
            abstract = jax.tree.map(_abstract, template)
            return step, self._checkpointer.restore(folder, args=self._arguments.StandardRestore(abstract))
        except ValueError as error:
            line = str(error).strip().split("\n")[0]
            raise UserError(f"checkpoint {folder} does not fit this config ({line}); choose another --workdir") from error

    def restored(self, make: Callable[..., State], devices: Mesh, *arguments: Any) -> State:
        """The state with which a loop goes on.

        Args:
            make: (*arguments) -> the state at the first step; traceable.
            devices: The mesh; any, whatever the checkpoint was made on.
            *arguments: Trees of weights.

        Returns:
            The newest whole checkpoint's state, or what is made, laid out over the mesh; in buffers of its own.

        Raises:
            UserError: If the checkpoint does not fit.
        """
        start = jax.eval_shape(make, *arguments)
        where = meshes.shardings(start, devices)
        template = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), start, where)
        found = self.restore(template)
        return found[1] if found else meshes.build(make, devices, *arguments)

    def _newest_whole(self) -> int | None:
        known = manifests(self._directory)
        for step in reversed(self.steps()):
            folder = self._directory / str(step)
            if step in known and known[step]["sha256"] == _checksums(folder):
                return step
            print(f"checkpoint {folder} is damaged or unfinished; the one before it is used", flush=True)
        return None

    def _manifest(self, step: int) -> epath.Path:
        return self._directory / f"{step}{_MANIFEST}"


def place(directory: Path | epath.Path | str) -> epath.Path:
    """A folder, absolute, or a place in a bucket.

    Args:
        directory: Of either kind.

    Returns:
        A path that reads and writes both.

    Raises:
        UserError: If what reads buckets is not installed.
    """
    if "://" not in str(directory):
        return epath.Path(Path(directory).expanduser().absolute())
    try:
        found = epath.Path(directory)
        found.exists()
    except ImportError:
        raise UserError(
            f"config.runtime.checkpoints.directory: {directory} needs `pip install 'jaxdrl[gcs]'`, or a local folder"
        ) from None
    return found


def steps(directory: epath.Path) -> list[int]:
    """The steps that have a folder.

    Args:
        directory: Of checkpoints.

    Returns:
        Ascending.
    """
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def manifests(directory: epath.Path) -> dict[int, dict[str, Any]]:
    """What is known of the finished steps; unreadable manifests are left out.

    Args:
        directory: Of checkpoints.

    Returns:
        Step -> sha256 sums by file, time (seconds since 1970) and metrics, ascending.
    """
    found = {}
    for step in steps(directory):
        try:
            content = json.loads((directory / f"{step}{_MANIFEST}").read_text())
        except (FileNotFoundError, ValueError):
            continue
        if isinstance(content, dict) and content.keys() >= {"sha256", "time", "metrics"}:
            found[step] = content
    return found


def retire(directory: epath.Path, keep: Keep, last: int | None = None) -> None:
    """Deletes the steps that are not to be kept, torn ones among them.

    Args:
        directory: Of checkpoints.
        keep: Says which.
        last: In place of `keep.last`; 0 when the stage is finished.
    """
    known = manifests(directory)
    kept, since = set(list(known)[max(0, len(known) - (keep.last if last is None else last)) :]), -math.inf
    for step, found in known.items():
        if keep.every_hours and found["time"] - since >= 3600 * keep.every_hours:
            kept, since = kept | {step}, found["time"]
    scores = {step: score for step, found in known.items() if (score := keep.score(found["metrics"])) is not None}
    if scores:
        kept.add(max(scores, key=lambda step: (scores[step], -step)))
    for step in set(steps(directory)) - kept:
        (directory / f"{step}{_MANIFEST}").unlink(missing_ok=True)
        (directory / str(step)).rmtree()


def clear(folder: Path | epath.Path, keep: Keep) -> None:
    """Deletes what a finished stage needs no more: all but the checkpoints that are kept for good.

    Args:
        folder: Of the stage.
        keep: Says which are.
    """
    for directory in place(folder).glob("checkpoints*"):
        if not keep.every_hours and not keep.best:
            directory.rmtree()
            continue
        for inside in {path.parent for path in _files(directory) if path.name.endswith(_MANIFEST)}:
            retire(inside, keep, last=0)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _checksums(folder: epath.Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(folder)}


def _write(path: epath.Path, content: bytes) -> None:
    """Whole or not at all; so are the objects of a bucket by themselves."""
    if "://" in str(path):
        path.write_bytes(content)
    else:
        write_atomically(Path(path), content)
