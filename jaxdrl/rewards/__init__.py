"""Rewards, all with one signature: `reward(images, condition) -> [batch]`; by name and several at a time in `combine.py`."""

from jaxdrl.rewards.combine import Reward, create, evaluator, names, stack

__all__ = ["Reward", "create", "evaluator", "names", "stack"]
