"""How long each phase of a step takes on a chip, and its share of the peak: from a trace, since a step is one compiled program.

The trace names the operations that ran, the program's text says in which `jax.named_scope` each was written, whatever differentiation, loops
and the compiler made of it. An operation belongs to the innermost phase of its path, and to "other" where there is none: optimizer
states that are moved, draws, metrics. Loops and calls are not counted, what runs in them is. A program from the persistent compilation cache
has the names with which it was compiled first.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdrl.planning import hlo

NAMES = ("rollout", "decode", "encode", "reward", "adjoint", "update")
OTHER = "other"
_HOLDERS = ("while", "call", "conditional", "async-start", "async-done")
_NAME = re.compile(rf"\b({'|'.join(NAMES)})\b")


def of_operations(text: str) -> dict[str, str]:
    """The phase of each operation of a program.

    Args:
        text: From `compiled.as_text()`.

    Returns:
        Name of the operation -> one of `NAMES`, or `OTHER`; what holds other operations is left out.
    """
    computations, _ = hlo.parse(text)
    found = {}
    for computation in computations.values():
        for line in computation.instructions.values():
            if line.op not in _HOLDERS:
                path = re.search(r'op_name="([^"]*)"', line.rest)
                named = _NAME.findall(path[1]) if path else []
                found[line.name] = named[-1] if named else OTHER
    return found


class Operation(NamedTuple):
    """Something that a chip did.

    Attributes:
        phase: One of `NAMES`, or `OTHER`.
        start: When it began, seconds on the trace's clock.
        seconds: How long it took.
    """

    phase: str
    start: float
    seconds: float


def operations(trace: Path, text: str) -> list[Operation]:
    """What a program did on this process's first chip.

    Args:
        trace: A folder that `jax.profiler` wrote; of several traces the newest counts.
        text: Of the program; what other programs did meanwhile does not count.

    Returns:
        By start; empty where the trace names none of the program's operations.
    """
    files = sorted(trace.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        return []
    phase, module = of_operations(text), re.match(r"HloModule ([^\s,]+)", text)
    events = _events(jax.profiler.ProfileData.from_file(str(files[-1])), module[1] if module else "")
    return sorted((Operation(phase[name], *when) for name, *when in events if name in phase), key=lambda done: done.start)


def seconds(done: Sequence[Operation]) -> dict[str, float]:
    """Time of each phase.

    Args:
        done: From `operations`.

    Returns:
        Phase -> seconds of its operations, side by side or not.
    """
    found: dict[str, float] = {}
    for one in done:
        found[one.phase] = found.get(one.phase, 0.0) + one.seconds
    return found


def spans(done: Sequence[Operation]) -> list[Operation]:
    """One span a phase: from its first operation to its last before another phase begins.

    Args:
        done: From `operations`.

    Returns:
        By start; what is of no phase lies within a span or between two.
    """
    found: list[Operation] = []
    for one in done:
        if one.phase == OTHER:
            continue
        if found and found[-1].phase == one.phase:
            last = found.pop()
            end = max(last.start + last.seconds, one.start + one.seconds)
            one = Operation(one.phase, last.start, end - last.start)
        found.append(one)
    return found


def write(path: Path, done: Sequence[Operation]) -> None:
    """Writes spans for ui.perfetto.dev and chrome://tracing.

    Args:
        path: Such as `phases.json.gz`.
        done: From `spans`.
    """
    events = [{"ph": "X", "name": one.phase, "ts": 1e6 * one.start, "dur": 1e6 * one.seconds, "pid": 0, "tid": 0} for one in done]
    named = {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "phases of a step"}}
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [named, *events]}).encode()))


def _events(data: Any, module: str) -> Iterator[tuple[str, float, float]]:
    """(operation, start, seconds) of a program on the first chip: a TPU's line of operations, a GPU's streams, a CPU's threads for device 0."""
    planes = {plane.name: plane for plane in data.planes}
    chips = sorted(name for name in planes if name.startswith("/device:") and name.endswith(":0"))
    given = planes.get(chips[0] if chips else "/host:CPU")
    lines = list(given.lines) if given is not None else []
    # A TPU's operations do not say of which program they are; the line of programs says when each ran.
    ran = [
        (event.start_ns, event.start_ns + event.duration_ns)
        for line in lines
        if line.name == "XLA Modules"
        for event in line.events
        if event.name.split("(")[0] == module
    ]
    for line in [line for line in lines if line.name == "XLA Ops"] or lines:
        for event in line.events:
            stats = dict(event.stats)
            inside = any(begin <= event.start_ns < end for begin, end in ran)
            if stats.get("device_ordinal", 0) == 0 and (stats["hlo_module"] == module if "hlo_module" in stats else inside):
                name = str(stats.get("hlo_op") or event.name).split(" = ")[0].removeprefix("%")
                yield name, event.start_ns * 1e-9, event.duration_ns * 1e-9


def measured(
    trace: Path, step: Callable[..., Any], arguments: tuple, steps: int, flops: Mapping[str, float], peak: float | None
) -> dict[str, float]:
    """What a trace says of the phases of a step; writes `phases.json.gz` beside it.

    Args:
        trace: The folder.
        step: The jitted step that was traced.
        arguments: It was called with arrays such as these.
        steps: How many calls were traced.
        flops: Phase -> operations of a step, all chips together.
        peak: A chip's operations a second; None where it is not known.

    Returns:
        `phase_seconds/NAME` of one step, and `phase_mfu/NAME` where the peak is known; empty where the step is not one program.
    """
    if not hasattr(step, "lower"):
        return {}
    # Compiled already: the same arguments find the same program.
    text = step.lower(*arguments).compile().as_text() or ""  # type: ignore[attr-defined]
    done = operations(trace, text)
    write(trace / "phases.json.gz", spans(done))
    times = {name: time / steps for name, time in seconds(done).items()}
    found = {f"phase_seconds/{name}": times[name] for name in (*NAMES, OTHER) if name in times}
    for name, time in times.items():
        if peak and time and flops.get(name):
            found[f"phase_mfu/{name}"] = flops[name] / time / jax.device_count() / peak
    return found


def line(found: Mapping[str, float]) -> str:
    """One line for people.

    Args:
        found: From `measured`.

    Returns:
        Such as "rollout 1.2 s (40 %, MFU 35 %), update 1.8 s (60 %)".
    """
    times = {key.partition("/")[2]: value for key, value in found.items() if key.startswith("phase_seconds/")}
    whole = sum(times.values()) or 1.0
    shares = {name: f", MFU {100 * found[f'phase_mfu/{name}']:.0f} %" if f"phase_mfu/{name}" in found else "" for name in times}
    return ", ".join(f"{name} {time:.3g} s ({100 * time / whole:.0f} %{shares[name]})" for name, time in times.items())
