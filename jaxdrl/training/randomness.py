"""Stateless randomness: every draw is a function of the seed, a purpose and a step, so a resumed run repeats itself."""

import zlib

import jax
from jaxtyping import Array, Key


def stage_seed(seed: int, purpose: str) -> int:
    """A 31-bit seed for one purpose of one run.

    Args:
        seed: `config.seed`.
        purpose: Any name; another name gives an unrelated seed.

    Returns:
        An integer in [0, 2^31).
    """
    return zlib.crc32(f"{seed}/{purpose}".encode()) & 0x7FFFFFFF


def stage_key(seed: int, purpose: str) -> Key[Array, ""]:
    """A key for one purpose of one run; fold the step in before use.

    Args:
        seed: `config.seed`.
        purpose: Any name.

    Returns:
        A typed key.
    """
    return jax.random.fold_in(jax.random.key(seed), stage_seed(0, purpose))
