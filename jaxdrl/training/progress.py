"""One progress line: rewritten on a terminal, a plain line now and then in a log file."""

import sys
import time
from collections.abc import Callable
from typing import Any


class Progress:
    """Says stage, step, rate, time left and a few numbers."""

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        unit: str = "step",
        start: int = 0,
        seconds: float | int = 10.0,
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
            stage: What is shown first.
            total: Steps at the end.
            unit: What a step is called.
            start: Steps that were done before (a resumed stage); they do not count in the rate.
            seconds: Between two lines in a log; a terminal is refreshed five times a second.
            stream: Where to write, by default stdout.
            clock: For tests.
        """
        self._stage, self._total, self._unit, self._start = stage, total, unit, start
        self._stream = stream or sys.stdout
        self._tty = self._stream.isatty()
        self._every = 0.2 if self._tty else seconds
        self._clock, self._began = clock, clock()
        self._last = self._began - (self._every if self._tty else 0.0)

    def update(self, step: int, **shown: float | int) -> None:
        """Shows a step, if it is time to or if it is the last.

        Args:
            step: Steps done.
            **shown: Numbers to show behind.
        """
        now = self._clock()
        done = step >= self._total
        if not done and now - self._last < self._every:
            return
        self._last = now
        rate = (step - self._start) / max(now - self._began, 1e-9)
        left = _duration((self._total - step) / rate) if rate > 0 else "?"
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        width = len(str(self._total))
        line = f"{self._stage:<15} {step:>{width}}/{self._total}  {rate:.3g} {self._unit}/s  {left} left  {numbers}".rstrip()
        self._stream.write(f"\r\x1b[2K{line}" + ("\n" if done else "") if self._tty else line + "\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    """75 -> "1m15s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
