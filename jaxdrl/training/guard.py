"""Watches a run of RL for collapse, for a reward that is gamed and for drifting away, says so in plain words, and stops it."""

from collections.abc import Mapping, Sequence
from typing import Any

_KEYS = "config.posttrain.guard"


class Guard:
    """Counts refreshes in a row in which something is wrong."""

    def __init__(self, options: Any, history: Sequence[Mapping[str, Any]] = (), base: Mapping[str, float] | None = None) -> None:
        """Takes the limits, and what a resumed run has seen.

        Args:
            options: `config.posttrain.guard`.
            history: Metrics of the refreshes so far, in order. The first one's samples are the base's: they set what is normal.
            base: What `HeldOut` measures of the base; None: held-out images are not looked at.
        """
        self._options, self._base = options, base
        self._normal: dict[str, float] = {}
        self._bad, self._suspicious = 0, False
        self.wrong: str | None = None
        for metrics in history:
            self.check(metrics)

    def due(self, refresh: int, last: bool) -> bool:
        """Whether the model is to be measured on held-out images.

        Args:
            refresh: Number of the refresh, from 1.
            last: Whether it is the last.

        Returns:
            At every `every`-th refresh and the last; and at each one after a measurement that was bad, until one is good.
        """
        return self._base is not None and (last or self._suspicious or refresh % self._options.every == 0)

    def check(self, metrics: Mapping[str, Any]) -> str | None:
        """Looks at one refresh.

        Args:
            metrics: `control_energy` and `reward_mean`; `sample_spread` and, of each reward, `group_spread`, `missing_share` and
                `reward_not_finite`, if the method has them; what `HeldOut` measured, where it was due.

        Returns:
            What is wrong, or None.
        """
        for name, value in metrics.items():
            # A reward that was masked in the first refresh has no spread there.
            if name in ("sample_spread", "reward_mean") or (name.startswith("group_spread/") and value > 0):
                self._normal.setdefault(name, value)
        found = [*self._spreads(metrics), *self._energy(metrics), *self._not_finite(metrics)]
        if self._base is not None and "held_out_coverage" in metrics:
            held_out = self._held_out(metrics, self._base)
            self._suspicious = bool(held_out)
            found += held_out
        self.wrong = "; ".join(found) or None
        self._bad = self._bad + 1 if found else 0
        return self.wrong

    @property
    def stops(self) -> bool:
        """Whether the run is to end: `patience` bad refreshes in a row."""
        return self._bad >= self._options.patience

    def _spreads(self, metrics: Mapping[str, Any]) -> list[str]:
        found, normal = [], self._normal
        spread = metrics.get("sample_spread")
        if spread is not None and spread < self._options.spread * normal["sample_spread"]:
            share = 100 * spread / normal["sample_spread"]
            found.append(
                f"samples of one condition have become alike: their spread is {spread:.3g}, {share:.0f} % of what it was ({_KEYS}.spread)"
            )
        for name in (name for name in normal if name.startswith("group_spread/")):
            reward = name.removeprefix("group_spread/")
            spread = metrics.get(name, normal[name])
            if metrics.get(f"missing_share/{reward}", 0.0) < 1 and spread < self._options.reward_spread * normal[name]:
                found.append(
                    f"the reward {reward} hardly tells samples of one condition apart any more: its spread is {spread:.3g}, "
                    f"{100 * spread / normal[name]:.0f} % of what it was ({_KEYS}.reward_spread)"
                )
        return found

    def _energy(self, metrics: Mapping[str, Any]) -> list[str]:
        energy = metrics["control_energy"]
        too_far = 0 < self._options.energy < energy
        return [f"the model is {energy:.3g} nats from the base ({_KEYS}.energy)"] if too_far else []

    def _not_finite(self, metrics: Mapping[str, Any]) -> list[str]:
        prefix = "reward_not_finite/"
        lost = [name.removeprefix(prefix) for name, value in metrics.items() if name.startswith(prefix) and value >= 1]
        return [f"the reward {name} is finite for no image" for name in lost]

    def _held_out(self, metrics: Mapping[str, Any], base: Mapping[str, float]) -> list[str]:
        found = []
        before, now = base["held_out_coverage"], metrics["held_out_coverage"]
        if 0 < self._options.coverage < before - now:
            first, reward = (part.get("reward_mean", 0.0) for part in (self._normal, metrics))
            fell = f"coverage of held-out images has fallen from {before:.2f} to {now:.2f} ({_KEYS}.coverage)"
            hacked = f"reward hacking: the reward has risen from {first:.3g} to {reward:.3g} while {fell}"
            found.append(hacked if reward > first else fell)
        prefix, limit = "held_out_drift/", self._options.drift
        far = [(name.removeprefix(prefix), value) for name, value in metrics.items() if name.startswith(prefix)]
        far = [f"{name} by {value:+.2g}" for name, value in far if 0 < limit < abs(value)]
        if far:
            found.append(f"the images have drifted from the base's, in its standard deviations: {', '.join(far)} ({_KEYS}.drift)")
        return found
