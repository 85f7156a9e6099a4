"""Rewards, all with one signature: `reward(images, condition) -> [batch]`."""
