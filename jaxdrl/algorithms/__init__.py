"""One file a paper: each opens with its equations and has a `loss`, and a `collect` where it learns from its own samples."""

from types import MappingProxyType

# What a post-training algorithm needs of its rollouts, equal to the module's own NEEDS; kept here so that a config can be refused
# when it is read, before anything heavy is imported. "trajectories": every state of an SDE (for flow_grpo with log-probabilities,
# for adjoint_matching with a differentiable reward). "samples": clean samples alone, of any sampler.
NEEDS = MappingProxyType({"adjoint_matching": "trajectories", "flow_grpo": "trajectories", "nft": "samples"})


def needs(algorithm: str) -> str:
    """What an algorithm needs of its rollouts.

    Args:
        algorithm: A module of this package that learns from its own samples.

    Returns:
        "trajectories" (coupled: rollouts must be those of its SDE) or "samples" (decoupled: any sampler will do).

    Raises:
        ValueError: If there is no such algorithm.
    """
    if algorithm not in NEEDS:
        raise ValueError(f"{algorithm!r} is unknown; it must be one of {', '.join(NEEDS)}")
    return NEEDS[algorithm]
