"""SIGTERM, as schedulers and preempted machines send it: a run saves at its next step and ends; a second one ends it at once.

With several processes a signal to any of them stops all, at the same step: they ask each other at every step. (JAX's own
`reached_preemption_sync_point` would take SIGTERM away from Python, needs step numbers that rise over a whole process, and agrees on a
step that is yet to come, which a run of few and long steps may not have the time for.)
"""

import contextlib
import signal
import sys
from collections.abc import Iterator

import numpy as np

from jaxdrl.evaluation import hosts


class Stopping:
    """Whether a run has been asked to stop."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.signalled = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listens to SIGTERM, in the main thread.

        Yields:
            Nothing.
        """
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def requested(self) -> bool:
        """Asks all processes; every one of them must call it, at the same place of the program.

        Returns:
            Whether any was signalled.
        """
        return any(bool(flag) for flag in hosts.gather(np.array(self.signalled)))

    def _hear(self, number: int, frame: object) -> None:
        del number, frame
        self.signalled = True
        # Left to the system, a second signal ends the process even while it waits for a device or another host.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("jaxdrl: SIGTERM: saving at the next step (a second SIGTERM ends at once)", file=sys.stderr, flush=True)
