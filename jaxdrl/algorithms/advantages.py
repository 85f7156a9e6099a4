r"""Advantages: how much better a sample is than the other samples of its prompt, for one reward or for K.

Sources: Liu et al., "Flow-GRPO", arXiv 2505.05470; "DiffusionNFT", arXiv 2509.16117; "MARBLE", arXiv 2605.06507; their codes'
`PerPromptStatTracker`. A group is what was sampled for one condition: a class or a prompt.

    A_ki = (R_ki - mean_{j in group(i)} R_kj) / (s_k + epsilon),                                            (1)
    s_k = the standard deviation of R_k over all samples ("global"), or over the sample's group ("group"),  (2)
    A_ki <- clip(A_ki, -limit, limit).                                                                      (3)

Standard deviations divide by the number of samples. Where papers and codes differ: Flow-GRPO prints the group's s and no epsilon,
MARBLE the group's s and an epsilon, DiffusionNFT leaves the normaliser open; the released configurations of all three take the
global s and epsilon = 1e-4, which is the default here. All codes clip at 5 in the loss and so do `nft` and `flow_grpo`; (3) is for
those who combine advantages before that.

A reward that is not finite for a sample is not defined for it: the advantage is NaN, and means and spreads leave the sample out.
A group whose rewards are all the same has advantages of exactly 0, whatever their size.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of (1) to (3); the defaults are those of the released codes.

    Attributes:
        spread: "global" or "group", (2).
        epsilon: At least 0. At 0 a spread of 0 gives advantages of 0.
        limit: Above 0, or None: (3) is left to the loss.
    """

    spread: str = "global"
    epsilon: float = 1e-4
    limit: float | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one is unknown or out of range.
        """
        if self.spread not in ("global", "group"):
            raise ValueError(f"spread must be global or group, got {self.spread!r}")
        if self.epsilon < 0:
            raise ValueError(f"epsilon must be at least 0, got {self.epsilon}")
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"limit must be None or above 0, got {self.limit}")


def group_advantages(
    rewards: Float[Array, "*k batch"], groups: Int[Array, " batch"], num_groups: int, settings: Settings | None = None
) -> tuple[Float[Array, "*k batch"], dict[str, Float[Array, "*k"]]]:
    """The advantages (1) to (3) within each group.

    Args:
        rewards: R: [batch], or [K, batch] for K rewards; an entry that is not finite: not defined for that sample.
        groups: The group of each sample, 0 .. num_groups - 1. *All* samples of a group belong into one call.
        num_groups: How many groups there may be; those without samples do no harm.
        settings: See `Settings`; None: the defaults.

    Returns:
        float32 advantages of the rewards' shape, NaN where the reward is not defined, and metrics, one value a reward:
        `reward_mean`, `reward_spread` (s over all samples), `group_spread` (root mean square of R - its group's mean),
        `zero_spread_share` (the share of groups, among those with the reward, whose rewards are all the same: they teach nothing)
        and `missing_share` (of samples).
    """
    settings = settings or Settings()
    if rewards.ndim == 2:
        return jax.vmap(lambda row: group_advantages(row, groups, num_groups, settings))(rewards)
    rewards = rewards.astype(jnp.float32)
    defined = jnp.isfinite(rewards)
    rewards = jnp.where(defined, rewards, 0.0)
    everything = jnp.zeros_like(groups)
    _, deviation, counts, constant = _deviations(rewards, defined, groups, num_groups)
    group_spread = jnp.sqrt(_means(deviation**2, defined, groups, num_groups)[groups])
    mean, global_deviation, total, _ = _deviations(rewards, defined, everything, 1)
    global_spread = jnp.sqrt(_means(global_deviation**2, defined, everything, 1)[0])
    spread = (global_spread if settings.spread == "global" else group_spread) + settings.epsilon
    advantages = jnp.where(spread > 0, deviation / jnp.where(spread > 0, spread, 1.0), 0.0)  # (1)
    if settings.limit is not None:
        advantages = jnp.clip(advantages, -settings.limit, settings.limit)  # (3)
    occupied = counts > 0
    metrics = {
        "reward_mean": mean[0],
        "reward_spread": global_spread,
        "group_spread": jnp.sqrt(_means(deviation**2, defined, everything, 1)[0]),
        "zero_spread_share": (constant & occupied).sum() / jnp.maximum(occupied.sum(), 1),
        "missing_share": 1 - total[0] / len(rewards),
    }
    return jnp.where(defined, advantages, jnp.nan), metrics


def _means(values, defined, groups, num_groups: int):
    """Means over the samples of each group that are defined; 0 for a group without any."""
    weight = defined.astype(jnp.float32)
    totals = jax.ops.segment_sum(weight * values, groups, num_groups)
    return totals / jnp.maximum(jax.ops.segment_sum(weight, groups, num_groups), 1.0)


def _deviations(rewards, defined, groups, num_groups: int):
    """Each group's mean, R - mean, the number of samples, and whether all of a group's rewards are the same.

    The largest reward of a group is taken off first, so that a constant group has deviations of exactly 0, and rewards that are
    large beside their spread lose no digits.
    """
    counts = jax.ops.segment_sum(defined.astype(jnp.float32), groups, num_groups)
    largest = jax.ops.segment_max(jnp.where(defined, rewards, -jnp.inf), groups, num_groups)
    largest = jnp.where(counts > 0, largest, 0.0)
    below = jnp.where(defined, rewards - largest[groups], 0.0)
    offsets = _means(below, defined, groups, num_groups)
    constant = jax.ops.segment_min(below, groups, num_groups) == 0
    return largest + offsets, jnp.where(defined, below - offsets[groups], 0.0), counts, constant
