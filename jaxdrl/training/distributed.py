"""Several processes of one run: how they find each other, who writes, and how they stay together.

Every process runs the same program on the same mesh. Process 0 alone holds the workdir's lock and writes config, metrics, weights and
results; what another decision hangs on (is this file there? is it time to save?) is asked of process 0 and told to all, since two processes
that went different ways would wait for each other for ever. The workdir must be one folder that all see.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdrl.errors import Lost, Stopped, UserError
from jaxdrl.evaluation import hosts
from jaxdrl.evaluation.local_devices import local_mesh
from jaxdrl.training.heartbeat import LAST_TO_LEAVE
from jaxdrl.weights import files

Result = TypeVar("Result")
_PATIENCE = 120.0  # seconds within which a file of process 0 must be seen: network file systems remember for a while that it was not there


# What the backends say where another process is gone: gloo, the coordination service, accelerators' collectives.
_SIGNS = ("Gloo", "gloo", "Connection closed by peer", "Connection reset", "UNAVAILABLE", "coordination service", "heartbeat")


def initialise(options: Any) -> None:
    """Connects this process to the others; before anything is computed.

    Args:
        options: `config.runtime`: distributed ("off", "auto" or "HOST:PORT"), num_processes and process_index.

    Raises:
        UserError: If they do not fit each other, or no connection is made.
    """
    where, count, index = options.distributed, options.num_processes, options.process_index
    host, _, port = where.rpartition(":")
    if where in ("off", "auto"):
        if (count, index) != (-1, -1):
            raise UserError(
                f"config.runtime.distributed is {where!r}: num_processes ({count}) and process_index ({index}) are for HOST:PORT; unset them"
            )
    elif not host or not port.isdigit():
        raise UserError(f"config.runtime.distributed: {where!r} must be off, auto or HOST:PORT of process 0")
    elif not 0 <= index < count:
        raise UserError(
            f"config.runtime.distributed: HOST:PORT needs num_processes ({count}) and a process_index ({index}) from 0 to num_processes - 1"
        )
    if where == "off" or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `stopping.py`
    # Those who have lost another process name it by their heartbeats (`heartbeat.py`) before JAX ends them.
    patience = max(100, int(2 * options.heartbeat_seconds))
    given = {} if where == "auto" else {"coordinator_address": where, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=patience)
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().split("\n")[0]
        hint = "give HOST:PORT, num_processes and process_index" if where == "auto" else "are all processes started?"
        raise UserError(f"config.runtime.distributed={where}: the processes did not find each other ({line}); {hint}") from error


def first() -> bool:
    """Whether this is process 0, which writes."""
    return jax.process_index() == 0


def from_first(value: Any) -> Any:
    """What process 0 says; all must call it.

    Args:
        value: Anything that JSON can carry; of the other processes it is not looked at.

    Returns:
        Process 0's value.
    """
    if jax.process_count() == 1:
        return value
    return json.loads(hosts.texts(json.dumps(value) if first() else "")[0])


def in_turn(call: Callable[[], Result], *, among: int | None = None) -> Result | None:
    """Calls in one process after the other, so that the later ones find what the first one made; all must call it.

    Args:
        call: Must not compute on a mesh of several processes.
        among: How many processes call, from process 0 on; None: all.

    Returns:
        What this process's call gave, None where it made none.

    Raises:
        UserError: In every process, if one raised it; or Stopped.
    """
    result, count = None, jax.process_count()
    for index in range(count if among is None else among):
        said = ""
        if index == jax.process_index():
            try:
                result = call()
            except (UserError, Stopped) as error:
                if count == 1:
                    raise
                said = f"{type(error).__name__} {error}"
        kind, _, line = hosts.texts(said)[index].partition(" ")
        if kind:
            raise {"UserError": UserError, "Stopped": Stopped}[kind](line)
    return result


def on_first(call: Callable[[], Result]) -> Result | None:
    """`in_turn` with process 0 alone."""
    return in_turn(call, among=1)


def save_tree(path: Path, tree: PyTree) -> None:
    """Writes weights once, for all to read.

    Args:
        path: As for `files.save_tree`.
        tree: Arrays that this process can read whole.
    """
    if first():
        files.save_tree(path, tree)
    wait_for(path)


def wait_for(path: Path, seconds: float = _PATIENCE) -> None:
    """Waits until every process sees what process 0 has written.

    Args:
        path: A file.
        seconds: At most.

    Raises:
        UserError: If a process does not see it: the folder is not shared.
    """
    if jax.process_count() == 1:
        return
    from_first(None)
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    blind = [index for index, seen in enumerate(hosts.gather(np.array(path.exists()))) if not seen]
    if blind:
        raise UserError(
            f"process {', '.join(map(str, blind))} does not see {path}, which process 0 wrote; --workdir must be a folder that all hosts share"
        )


def check_shared(workdir: Path) -> None:
    """Finds out whether all processes see one folder, before anything is computed.

    Args:
        workdir: Of the run.

    Raises:
        UserError: If not.
    """
    if jax.process_count() == 1:
        return
    token = from_first(os.urandom(8).hex())
    path = workdir / f".shared-{token}"
    if first():
        path.touch()
    try:
        wait_for(path, seconds=30.0)
    finally:
        if first():
            path.unlink(missing_ok=True)


def alone():
    """A context in which a process computes on its own devices, and not together with the others; weights must be loaded in it too."""
    return contextlib.nullcontext() if jax.process_count() == 1 else jax.set_mesh(local_mesh())


def shared_out(make: Callable[[int, int], tuple[np.ndarray, ...]], count: int) -> tuple[np.ndarray, ...]:
    """Each process makes a stretch of the rows, on its own devices; all get all of them.

    Args:
        make: (first row, how many) -> arrays of so many rows.
        count: Of all rows.

    Returns:
        The arrays, whole.
    """
    index, processes = jax.process_index(), jax.process_count()
    if processes == 1 or count < processes:
        return make(0, count)
    start, stop = (count * part // processes for part in (index, index + 1))
    with alone():
        mine = make(start, stop - start)
    return tuple(hosts.concatenate(np.asarray(part)) for part in mine)


@contextlib.contextmanager
def lost_contact() -> Iterator[None]:
    """Turns the failure of a collective, since another process is gone, into what launchers start again on.

    Yields:
        Nothing.

    Raises:
        Lost: In place of the backend's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        line = " ".join(str(error).split())
        if jax.process_count() == 1 or not any(sign in line for sign in _SIGNS):
            raise
        raise Lost(f"contact with another process was lost ({line[:200]})") from error


def leave(code: int) -> None:
    """Ends this process of several at once: at a usual exit JAX would wait for the others for minutes, and then abort.

    Args:
        code: The exit code; nothing is done for 0, or in a run of one process.
    """
    if code and jax.distributed.is_initialized() and jax.process_count() > 1:
        # Without process 0 the others' connections abort them before they can say why they end.
        time.sleep(LAST_TO_LEAVE if first() else 0.0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
