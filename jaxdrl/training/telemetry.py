"""What the machine does while a run computes: time of a step, images a second, share of the peak, memory, chip-hours; and traces.

None of it is repeated by a resumed run, so it goes to `<workdir>/machine.jsonl` and not to `metrics.jsonl`; to TensorBoard and Weights & Biases
too, where these are asked for. One compiled program is one step, so a host sees no phases of it: they are measured from a trace (`phases.py`).
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxdrl.errors import UserError
from jaxdrl.planning.chips import CHIPS

# By what `jax.Device.device_kind` says; those that runs are planned for are in `planning/chips.py`, the others' peaks are from the makers' data sheets.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "A100": CHIPS["a100"].flops,
    "H100": CHIPS["h100"].flops,
    "H100 PCIe": 756e12,
    "H200": CHIPS["h200"].flops,
    "B200": 2250e12,
    "L4": 121e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def peak_flops(kind: str) -> float | None:
    """Peak of a chip in bfloat16.

    Args:
        kind: `jax.Device.device_kind`, such as "TPU v5 lite" or "NVIDIA H200".

    Returns:
        Operations a second; None where it is not known, as for CPUs.
    """
    words = set(kind.replace("-", " ").replace("v5p", "v5").split())
    fitting = [name for name in _PEAKS if set(name.split()) <= words]
    return _PEAKS[max(fitting, key=len)] if fitting else None


def memory() -> dict[str, float]:
    """The fullest device of this process.

    Returns:
        `memory_gib` in use and `peak_memory_gib` since the process began; empty where the backend does not say, as on CPUs.
    """
    found = [stats for stats in (device.memory_stats() for device in jax.local_devices()) if stats]
    names = {"memory_gib": "bytes_in_use", "peak_memory_gib": "peak_bytes_in_use"}
    return {name: max(stats.get(key, 0) for stats in found) / 2**30 for name, key in names.items()} if found else {}


class Meter:
    """Times the steps of a stage."""

    def __init__(self, images: int, flops: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts the clock.

        Args:
            images: Of a step, all devices together.
            flops: Of a step, all devices together; None: not known.
            clock: For tests.
        """
        self._images, self._flops, self._clock = images, flops, clock
        self._before, self._waited, self._hours = clock(), 0.0, 0.0

    def input(self, read: Callable[[], Any]) -> Any:
        """Calls what waits for data, and counts its time.

        Args:
            read: Such as `lambda: next(stream)`.

        Returns:
            What it returns.
        """
        began = self._clock()
        result = read()
        self._waited += self._clock() - began
        return result

    def step(self, count: int = 1) -> dict[str, float]:
        """Ends a step, or several that one program took; its results must be there.

        Args:
            count: Of steps.

        Returns:
            step_seconds, images_per_second and the same a chip, input_wait (share of the time), chip_hours (of this process's life), mfu where
            the peak is known and `memory`.
        """
        now, chips = self._clock(), jax.device_count()
        seconds = max(now - self._before, 1e-9)
        self._hours += seconds * chips / 3600
        found = {
            "step_seconds": seconds / count,
            "images_per_second": count * self._images / seconds,
            "images_per_second_per_chip": count * self._images / seconds / chips,
            "input_wait": self._waited / seconds,
            "chip_hours": self._hours,
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak and self._flops:
            found["mfu"] = count * self._flops / seconds / chips / peak
        self._before, self._waited = now, 0.0
        return found | memory()


class ProfileWindow:
    """A trace of a few steps, in `<workdir>/profile`: for TensorBoard's profiler, and `perfetto_trace.json.gz` for ui.perfetto.dev."""

    def __init__(self, workdir: Path, options: Any) -> None:
        """Reads `config.runtime.profile`.

        Args:
            workdir: Of the run.
            options: stage ("": none), first (the step behind which the trace begins) and count.

        Raises:
            UserError: If a number is out of range.
        """
        if options.stage and (options.first < 0 or options.count < 1):
            raise UserError(
                f"config.runtime.profile: first ({options.first}) must be at least 0 and count ({options.count}) at least 1"
            )
        self._folder, self._stage = workdir / "profile", options.stage
        self._first, self.count, self._ends = options.first, options.count, 0

    def at(self, stage: str, step: int) -> Path | None:
        """Begins or ends the trace, where it is time to.

        Args:
            stage: The stage's name.
            step: How many of its steps are done.

        Returns:
            The trace's folder, where it ends here.
        """
        if self._ends and step >= self._ends:
            self.close()
            return self._folder
        if stage == self._stage and not self._ends and step >= self._first:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._ends = step + self.count
        return None

    def close(self) -> None:
        """Ends a trace that is under way; there is one trace a process."""
        if self._ends:
            jax.profiler.stop_trace()
            print(f"{self._stage}: a trace is in {self._folder}", flush=True)
            self._stage, self._ends = "", 0
