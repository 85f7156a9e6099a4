r"""One run as several processes on this machine, for trying and testing what a pod does.

    python launch/local_multiprocess.py --processes=2 --devices-per-process=4 -- jaxdrl run --config=configs/drl_digits.py:tiny --workdir=runs/two

Every process gets the command with `--config.runtime.distributed=127.0.0.1:PORT --config.runtime.num_processes=N
--config.runtime.process_index=I` behind it; PORT is one that is free, a new one after each restart. On the platform cpu its devices are simulated and
collectives go through gloo; on cuda the machine's GPUs are dealt out, `--devices-per-process` each. What a process prints is prefixed with [I].

The first process that ends with another exit code than 0 decides: the others are ended, and that code is the exit code (128 + the signal's
number after death by a signal). 75, a checkpoint was saved, and death by a signal start all again, `--restarts` times within `--window` seconds.
SIGTERM, SIGINT and SIGHUP are handed on as SIGTERM, and nothing is started again.
"""

import argparse
import contextlib
import dataclasses
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

INTERRUPTED = 75  # EX_TEMPFAIL: a checkpoint was saved, the same command goes on
_POLL = 0.1  # seconds; a signal that arrives while nothing ends is seen after so long


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is started, and how it ends."""

    command: tuple[str, ...]
    processes: int
    devices: int  # of each process
    platform: str  # cpu | cuda
    restarts: int
    window: float  # seconds
    grace: float  # seconds


def arguments(options: Options, index: int, port: int) -> list[str]:
    """Returns the command line of one process.

    Args:
        options: Of the launcher.
        index: Of the process, from 0.
        port: Of the coordinator, which is process 0.

    Returns:
        The command and the keys by which the process joins.
    """
    return [
        *options.command,
        f"--config.runtime.distributed=127.0.0.1:{port}",
        f"--config.runtime.num_processes={options.processes}",
        f"--config.runtime.process_index={index}",
    ]


def variables(options: Options, index: int, inherited: dict[str, str]) -> dict[str, str]:
    """Returns what a process's environment has besides the inherited one.

    Args:
        options: Of the launcher.
        index: Of the process, from 0.
        inherited: The launcher's environment: its XLA_FLAGS are kept, its CUDA_VISIBLE_DEVICES are the GPUs that are dealt out.

    Returns:
        Names and values.

    Raises:
        ValueError: If CUDA_VISIBLE_DEVICES names too few GPUs.
    """
    if options.platform == "cpu":
        flags = re.sub(r"--xla_force_host_platform_device_count=\S*", "", inherited.get("XLA_FLAGS", ""))
        return {
            "JAX_PLATFORMS": "cpu",
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": " ".join([*flags.split(), f"--xla_force_host_platform_device_count={options.devices}"]),
            "PYTHONUNBUFFERED": "1",
        }
    wanted = options.processes * options.devices
    named = inherited.get("CUDA_VISIBLE_DEVICES", "")
    present = named.split(",") if named else [str(number) for number in range(wanted)]
    if len(present) < wanted:
        raise ValueError(f"CUDA_VISIBLE_DEVICES names {len(present)} GPUs, {wanted} are needed")
    mine = present[index * options.devices : (index + 1) * options.devices]
    return {"CUDA_VISIBLE_DEVICES": ",".join(mine), "PYTHONUNBUFFERED": "1"}


class Group:
    """All processes of one attempt."""

    def __init__(self, options: Options) -> None:
        """Starts them.

        Args:
            options: Of the launcher.

        Raises:
            OSError: If the command cannot be started.
        """
        self._ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._reaping, self._alive = threading.Lock(), set[subprocess.Popen]()
        self._readers: list[threading.Thread] = []
        port, inherited = _free_port(), dict(os.environ)
        try:
            for index in range(options.processes):
                self._start(index, arguments(options, index, port), inherited | variables(options, index, inherited))
        except OSError:
            self.signal(signal.SIGKILL)
            raise

    def _start(self, index: int, command: list[str], environment: dict[str, str]) -> None:
        # A session of its own: Ctrl-C reaches the launcher alone, and a signal to the group reaches its workers too.
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with self._reaping:
            self._alive.add(child)
        self._readers.append(threading.Thread(target=_copy, args=(index, child), daemon=True))
        self._readers[-1].start()
        # A thread for each, so that the order in which they end is known.
        threading.Thread(target=self._wait, args=(index, child), daemon=True).start()

    def _wait(self, index: int, child: subprocess.Popen) -> None:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        # Not reaped yet, so its number is still its own: what it started and left behind ends with it, nobody else does.
        with self._reaping:
            _signal(child, signal.SIGKILL)
            code = child.wait()
            self._alive.discard(child)
        self._ended.put((index, code if code >= 0 else 128 - code))

    def next_ended(self, seconds: float) -> tuple[int, int] | None:
        """Returns index and exit code of the next process that has ended, or None.

        Args:
            seconds: To wait for one.
        """
        try:
            return self._ended.get(timeout=seconds)
        except queue.Empty:
            return None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all that live, and to what they started.

        Args:
            number: Of the signal.
        """
        with self._reaping:
            for child in self._alive:
                _signal(child, number)

    def close(self) -> None:
        """Ends whatever is left and waits until all output is printed."""
        self.signal(signal.SIGKILL)
        for reader in self._readers:
            reader.join(timeout=5.0)


def attempt(options: Options, told: threading.Event) -> int:
    """Starts all processes once and waits for their end.

    Args:
        options: Of the launcher.
        told: Set when the launcher was told to stop.

    Returns:
        The exit code that decides: 0, or that of the first process that ended otherwise.

    Raises:
        OSError: If the command cannot be started.
    """
    group = Group(options)
    left, decided, signals = options.processes, 0, []  # signals: (at which time, which), in order
    passed_on = False
    try:
        while left:
            if told.is_set() and not passed_on:
                passed_on = True
                group.signal(signal.SIGTERM)
            ended = group.next_ended(_POLL)
            if ended is not None:
                left -= 1
                if ended[1] and not decided:
                    decided = ended[1]
                    _say(f"process {ended[0]} ended with exit code {decided}")
                    signals = _ending(options, decided, time.monotonic())
            while signals and time.monotonic() >= signals[0][0]:
                group.signal(signals.pop(0)[1])
    finally:
        group.close()
    return decided


def run(options: Options, told: threading.Event) -> int:
    """Runs the command until it is done, fails, or was interrupted too often.

    Args:
        options: Of the launcher.
        told: Set when the launcher was told to stop.

    Returns:
        The exit code.

    Raises:
        OSError: If the command cannot be started.
    """
    moments: list[float] = []
    while True:
        code = attempt(options, told)
        if told.is_set() or not (code == INTERRUPTED or code > 128):
            return code
        now = time.monotonic()
        moments = [moment for moment in moments if now - moment < options.window]
        if len(moments) >= options.restarts:
            return code
        moments.append(now)
        _say(f"restart {len(moments)} of {options.restarts} within {options.window:g} s")


def _ending(options: Options, code: int, now: float) -> list[tuple[float, signal.Signals]]:
    """When the others are signalled: at once after a crash; after 75 they save a checkpoint, too, and end by themselves."""
    first = now + (options.grace if code == INTERRUPTED else 0.0)
    return [(first, signal.SIGTERM), (first + options.grace, signal.SIGKILL)]


def _copy(index: int, child: subprocess.Popen) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        sys.stdout.buffer.write(b"[%d] %s\n" % (index, line.rstrip(b"\n")))
        sys.stdout.buffer.flush()


def _signal(child: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _say(text: str) -> None:
    print(f"local_multiprocess: {text}", file=sys.stderr, flush=True)


def _parsed(given: Sequence[str]) -> tuple[Options, bool]:
    """Reads the command line; mistakes end the process with one line and exit code 2."""
    given = list(given)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices-per-process", type=int, default=1, help="simulated ones (cpu) or GPUs (cuda)")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--restarts", type=int, default=0, help="within --window")
    parser.add_argument("--window", type=float, default=3600.0, help="seconds")
    parser.add_argument(
        "--grace", type=float, default=30.0, help="seconds from SIGTERM to SIGKILL, for the others when one has died"
    )
    parser.add_argument("--dry-run", action="store_true", help="prints the command of every process")
    parser.usage = "local_multiprocess.py [options] -- COMMAND ..."
    read = parser.parse_args(given[:cut])
    options = Options(
        command=tuple(given[cut + 1 :]),
        processes=read.processes,
        devices=read.devices_per_process,
        platform=read.platform,
        restarts=read.restarts,
        window=read.window,
        grace=read.grace,
    )
    if not options.command:
        _fail("the command is missing; write it behind --")
    if options.processes < 1 or options.devices < 1:
        _fail("--processes and --devices-per-process must be at least 1")
    if options.restarts < 0 or options.window <= 0 or options.grace < 0:
        _fail("--restarts and --grace must not be negative, --window must be positive")
    try:
        variables(options, 0, dict(os.environ))
    except ValueError as error:
        _fail(str(error))
    return options, read.dry_run


def _fail(text: str) -> None:
    print(f"local_multiprocess: error: {text}", file=sys.stderr)
    raise SystemExit(2)


def main(given: Sequence[str] | None = None) -> int:
    """Runs the launcher.

    Args:
        given: The command line; None: that of the process.

    Returns:
        The exit code.
    """
    options, dry_run = _parsed(sys.argv[1:] if given is None else given)
    if dry_run:
        port = _free_port()
        for index in range(options.processes):
            found = variables(options, index, dict(os.environ))
            print(
                " ".join(f"{name}={shlex.quote(value)}" for name, value in found.items()),
                shlex.join(arguments(options, index, port)),
            )
        return 0
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: told.set())
    try:
        return run(options, told)
    except OSError as error:
        _fail(f"{options.command[0]}: {error.strerror or error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
