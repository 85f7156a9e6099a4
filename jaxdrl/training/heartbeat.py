"""Signs of life of every process, in `<workdir>/.heartbeat/`: a host that hangs or a process that failed is named, and nobody waits for ever.

A thread writes `PROCESS.json` (host, stage, step, time) and, where there are several processes, reads the others'. One whose file has not
changed for `config.runtime.heartbeat_seconds`, by the reader's own clock, is named in a line, and the reader ends with exit code 75, on
which launchers start all again from the last checkpoint. A process that ends by an error leaves it in its file, and the others end with it.
What is watched is whether the process lives, not whether it advances: compiling a large program takes longer than any sensible limit.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdrl.errors import Stopped, UserError

FOLDER = ".heartbeat"
LAST_TO_LEAVE = (
    2.0  # seconds that process 0 waits: without it the others' connections abort them before they can say why they end
)


class Heartbeat:
    """Where this process is; written while `beating`."""

    def __init__(self) -> None:
        """Nowhere yet."""
        self._stage, self._step, self._ended = "", 0, ""

    def at(self, stage: str, step: int) -> None:
        """Notes where the run is.

        Args:
            stage: Its name.
            step: Steps done.
        """
        self._stage, self._step = stage, step

    @contextlib.contextmanager
    def beating(
        self, workdir: Path, seconds: float, process: int = 0, processes: int = 1, leave: Callable[[int], Any] = os._exit
    ) -> Iterator[None]:
        """Writes and watches in a thread.

        Args:
            workdir: Of the run, which all processes see.
            seconds: Without a sign of life, after which a process is given up; 0: nothing is written or watched.
            process: Number of this one.
            processes: Of the run.
            leave: Ends this process with an exit code, from the thread.

        Yields:
            Nothing.
        """
        if seconds <= 0:
            yield
            return
        folder, done = workdir / FOLDER, threading.Event()
        folder.mkdir(exist_ok=True)
        watch = Watch([other for other in range(processes) if other != process], seconds)
        self._write(folder, process)
        thread = threading.Thread(target=self._beat, args=(folder, process, watch, seconds / 10, done, leave), daemon=True)
        thread.start()
        try:
            yield
            self._ended = "done"
        except Stopped:
            self._ended = "done"
            raise
        except BaseException as error:
            kind = "mistake" if isinstance(error, UserError) else "failure"
            self._ended = f"{kind}: {' '.join(str(error).split())[:500] or type(error).__name__}"
            raise
        finally:
            done.set()
            thread.join()
            self._write(folder, process)

    def _beat(self, folder: Path, process: int, watch: "Watch", every: float, done: threading.Event, leave) -> None:
        while not done.wait(min(every, 10.0)):
            self._write(folder, process)
            found = watch.look(read(folder), time.monotonic())
            if found is not None:
                code, line = found
                time.sleep(LAST_TO_LEAVE if process == 0 else 0.0)
                print(f"jaxdrl: {line} (exit code {code})", file=sys.stderr, flush=True)
                leave(code)
                return

    def _write(self, folder: Path, process: int) -> None:
        beat = {"host": socket.gethostname(), "pid": os.getpid(), "stage": self._stage, "step": self._step}
        content = json.dumps(beat | {"time": time.time(), "ended": self._ended})
        part = folder / f".{process}.part"
        # A full disk is found, and said, by those who write what is needed.
        with contextlib.suppress(OSError):
            part.write_text(content)
            part.replace(folder / f"{process}.json")


class Watch:
    """Tells from the files of other processes which of them has gone."""

    def __init__(self, others: list[int], seconds: float) -> None:
        """Knows of no sign of life yet.

        Args:
            others: Numbers of the other processes.
            seconds: As for `beating`.
        """
        self._seconds = seconds
        self._seen: dict[int, tuple[Any, float]] = {}
        self._others, self._before = others, None

    def look(self, beats: Mapping[int, Mapping[str, Any]], now: float) -> tuple[int, str] | None:
        """Compares with what was there before.

        Args:
            beats: From `read`.
            now: Monotonic, seconds.

        Returns:
            Exit code and line, if this process is to end.
        """
        if self._before is None:
            self._before = dict(beats)  # what an earlier run left says nothing of this one
        for other in self._others:
            beat = beats.get(other)
            if other not in self._seen or self._seen[other][0] != beat:
                self._seen[other] = (beat, now)
            silent = now - self._seen[other][1]
            if beat is None or beat == self._before.get(other):
                if silent > self._seconds:
                    return 75, f"process {other} has given no sign of life for {silent:.0f} s: {_where(beat)}; is its host up?"
                continue
            name = f"process {other} on {beat['host']}"
            if beat["ended"].startswith("mistake: "):
                return 2, f"{name} ended: {beat['ended'].removeprefix('mistake: ')}"
            if beat["ended"].startswith("failure: "):
                return 75, f"{name} failed ({beat['ended'].removeprefix('failure: ')}); its own output says more"
            if not beat["ended"] and silent > self._seconds:
                return 75, f"{name} has given no sign of life for {silent:.0f} s: {_where(beat)}; is that host up?"
        return None


def read(folder: Path) -> dict[int, dict[str, Any]]:
    """The last sign of life of every process.

    Args:
        folder: `<workdir>/.heartbeat`.

    Returns:
        Process -> host, pid, stage, step, time (seconds since 1970) and ended ("", "done", or why).
    """
    found = {}
    for path in folder.glob("[0-9]*.json"):
        with contextlib.suppress(OSError, ValueError):
            found[int(path.stem)] = json.loads(path.read_text())
    return found


def _where(beat: Mapping[str, Any] | None) -> str:
    if beat is None:
        return "it has never given one"
    return f"last seen on {beat['host']} in stage {beat['stage'] or '(none)'}, step {beat['step']}"
