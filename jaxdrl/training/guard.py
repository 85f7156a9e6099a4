"""Watches a run of RL for collapse and for drifting away, says so in plain words, and stops it."""

from collections.abc import Mapping, Sequence
from typing import Any


class Guard:
    """Counts refreshes in a row in which something is wrong."""

    def __init__(self, options: Any, history: Sequence[Mapping[str, float]] = ()) -> None:
        """Takes the limits, and what a resumed run has seen.

        Args:
            options: `config.posttrain.guard`.
            history: Metrics of the refreshes so far, in order. The first one's samples are the base's: they set what is normal.
        """
        self._options, self._normal, self._bad = options, None, 0
        for metrics in history:
            self.check(metrics)

    def check(self, metrics: Mapping[str, float]) -> str | None:
        """Looks at one refresh.

        Args:
            metrics: `sample_spread` and `control_energy`, if the method has them.

        Returns:
            What is wrong, or None.
        """
        spread, energy = metrics.get("sample_spread"), metrics["control_energy"]
        if self._normal is None:
            self._normal = spread
        wrong = None
        if spread is not None and self._normal and spread < self._options.spread * self._normal:
            wrong = (
                f"samples of one condition have become alike: their spread is {spread:.3g}, {100 * spread / self._normal:.0f} % of what it was "
                "(config.posttrain.guard.spread)"
            )
        elif 0 < self._options.energy < energy:
            wrong = f"the model is {energy:.3g} nats from the base (config.posttrain.guard.energy)"
        self._bad = self._bad + 1 if wrong else 0
        return wrong

    @property
    def stops(self) -> bool:
        """Whether the run is to end: `patience` bad refreshes in a row."""
        return self._bad >= self._options.patience
