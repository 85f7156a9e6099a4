r"""Which axis of a weight lies over which axis of the mesh, by the weight's path.

Over "tensor" a layer is cut as Megatron-LM cuts it (Shoeybi et al., arXiv 1909.08053): what goes into heads or into the hidden layer of an
MLP by its outputs, what comes out of them by its inputs, so that a block sums twice over the axis and holds no whole weight. Over "fsdp"
lies the longest axis that is left. What is stacked by a scanned tower is cut within a block, never between blocks.

Rules look at the end of a path, so that one rule holds for a weight, its gradient, Adam's moments, the EMA, theta_old and theta_base.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

SMALLEST = 2**14  # elements (of one block of a scanned tower) below which a weight is cheaper to keep whole than to gather

# (pattern, axis over "tensor", counted from the end, equal layers side by side along it). The first that is found in a path holds. Each
# of the layers side by side must divide: XLA (jaxlib 0.10.2, CPU) gave wrong gradients where a device held parts of two.
RULES: tuple[tuple[str, int, int], ...] = (
    # Attention: q, k, v by heads; the projection by its inputs.
    (r"attn/qkv/(kernel|bias)$", -1, 3),
    (r"cross/kv/(kernel|bias)$", -1, 2),
    (r"cross/query/(kernel|bias)$", -1, 1),
    (r"(attn|cross)/proj/kernel$", -2, 1),
    # MLPs of two layers, SwiGLU, ConvNeXt's pointwise layers.
    (r"mlp/w12/(kernel|bias)$", -1, 2),
    (r"mlp/fc1/(kernel|bias)$", -1, 1),
    (r"mlp/(fc2|w3)/kernel$", -2, 1),
    (r"pwconv1/(kernel|bias)$", -1, 1),
    (r"pwconv2/kernel$", -2, 1),
    # Pairs of layers outside the blocks: time, REPA's projectors.
    (r"t_embedder_0/(kernel|bias)$", -1, 1),
    (r"t_embedder_2/kernel$", -2, 1),
    (r"projectors_\d+/0/(kernel|bias)$", -1, 1),
    (r"projectors_\d+/2/kernel$", -2, 1),
    # Modulations, which are added to whole rows: computed in parts, gathered (a row a sample).
    (r"adaLN_modulation/(kernel|bias)$", -1, 1),
    # Tables of vocabularies by rows.
    (r"(^|/)tokens$", -2, 1),
    # What no rule names (embeddings of patches and classes, convolutions, heads, adapters) lies over "fsdp" alone.
)


def path_of(keys: Sequence[Any]) -> str:
    """A leaf's path as the rules read it.

    Args:
        keys: As `jax.tree_util` gives them, of any kinds.

    Returns:
        Keys joined with "/".
    """
    return "/".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in keys)


def rule_of(path: str) -> tuple[int, int] | None:
    """Looks a path up.

    Args:
        path: From `path_of`.

    Returns:
        The axis over "tensor", counted from the end, and the number of layers side by side; None where there is no rule.
    """
    return next(((axis, parts) for pattern, axis, parts in RULES if re.search(pattern, path)), None)


def spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """Where one leaf lies.

    Args:
        path: From `path_of`.
        shape: Of the leaf.
        sizes: Of the mesh's axes "fsdp" and "tensor"; one that is absent has size 1.

    Returns:
        A spec with an entry an axis; an axis that does not divide is not cut, nor is a leaf of fewer than `SMALLEST` elements.
    """
    first = int(bool(re.search(r"(^|/)blocks_\d+_\d+/", path)) and len(shape) > 1)
    if np.prod(shape[first:], dtype=np.int64) < SMALLEST:
        return PartitionSpec()
    names: list[str | None] = [None] * len(shape)
    axis, parts = rule_of(path) or (0, 1)
    divides = lambda i, ways: shape[i] % (ways * (parts if i == len(shape) + axis else 1)) == 0  # noqa: E731
    ways = sizes.get("tensor", 1)
    if axis and ways > 1 and len(shape) + axis >= first and divides(len(shape) + axis, ways):
        names[axis] = "tensor"
    ways = sizes.get("fsdp", 1)
    free = [i for i in range(first, len(shape)) if names[i] is None and divides(i, ways)]
    if ways > 1 and free:
        names[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*names) if any(names) else PartitionSpec()


def specs(tree: Any, sizes: dict[str, int]) -> Any:
    """Where each leaf of a tree lies.

    Args:
        tree: Arrays or shapes.
        sizes: As in `spec`.

    Returns:
        The same structure with specs.
    """
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: spec(path_of(keys), tuple(leaf.shape), sizes), tree)
