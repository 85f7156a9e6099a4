r"""The next rollout while rewards on the host are computed (`config.posttrain.host.overlap`), for policy gradients.

Without it a refresh n rolls out the sampling policy pi_n, waits for the host, and learns: the accelerator idles meanwhile. With it the
rollout of refresh n + 1 is dispatched before the host is asked for the rewards of refresh n, so

    refresh n learns from samples of pi_(n-1), and refresh 0 from pi_0:    pi_(max(n - 1, 0)),                       (1)
    seconds a refresh = max(roll, score) + learn          instead of          roll + score + learn.                 (2)

What that means to the methods:

- DiffusionNFT (arXiv 2509.16117) improves the policy that sampled, with any other network trained, so nothing is approximated: v_old of
  `algorithms/nft.py` (2) is pi_(n-1)'s too. It is DiffusionNFT whose old policy follows one iteration later than its schedule (6).
- Flow-GRPO (arXiv 2505.05470): the buffer holds the log-probabilities of the policy that sampled, so the ratio (3) of
  `algorithms/flow_grpo.py` is the right one, and so is its clipping. But it is not 1 when a refresh begins: with a clip range as small as
  the published one some samples are beyond it from the start and teach nothing (`clipped_share` says how many). Widen
  `flow_grpo.clip_range`, or take fewer steps a refresh, where that is much.

A run stays a function of its config: the state holds the weights of pi_(n-1) (`State.behind`), so that a rollout under way is never
saved: one that is resumed rolls it out again, from the same weights and the same key, to the bit. The last refresh rolls nothing more out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.rewards.combine import Reward
from jaxdrl.training.methods import scoring


def check(config: Config, rewards: list[Reward]) -> None:
    """Refuses to overlap with nothing.

    Args:
        config: A run's config.
        rewards: All of them.

    Raises:
        UserError: If none is on the host.
    """
    if config.posttrain.host.overlap and all(reward.traced for reward in rewards):
        raise UserError(
            "config.posttrain.host.overlap: every reward is traced, so there is none on the host to wait for; set it to False"
        )


class Overlapped:
    """The step of a policy gradient: (state, frozen, key) -> (state, metrics), with the next rollout under way."""

    def __init__(self, roll: Callable[..., Any], learn: Callable[..., Any], host: scoring.HostRewards, refreshes: int) -> None:
        """Starts nothing yet.

        Args:
            roll: Compiled: (weights of the sampling policy, refresh, frozen, key) -> what `learn` takes.
            learn: Compiled: (state, frozen, rolled, key, scored) -> (state, metrics); the state is donated.
            host: Scores images.
            refreshes: Of the run.
        """
        self._roll, self._learn, self._host, self._refreshes = roll, learn, host, refreshes
        # The counter of the state to which the rollout belongs, and the rollout.
        self._counter: Any = None
        self._rolled: Any = None

    def __call__(self, current: Any, frozen: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        """One refresh.

        Args:
            current: The state that the last call gave, whose rollout is under way; or any other, which is rolled out first.
            frozen: What never changes.
            key: Of the stage.

        Returns:
            The next state and metrics.

        Raises:
            scoring.RewardsFailed: With the state as it was.
        """
        if self._counter is not current.refresh:
            self._counter, self._rolled = current.refresh, self._roll(current.behind, current.refresh, frozen, key)
        rolled, following = self._rolled, None
        number = int(current.refresh) + 1
        if number < self._refreshes:
            following = self._roll(current.model.old, current.refresh + 1, frozen, key)  # (1)
        scored, errors = self._host.score(rolled.images, rolled.labels)
        self._host.judge(errors, np.asarray(current.failing), number)
        after, metrics = self._learn(current, frozen, rolled, key, scored)
        self._counter, self._rolled = (None, None) if following is None else (after.refresh, following)
        return after, metrics
