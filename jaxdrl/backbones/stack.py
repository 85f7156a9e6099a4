"""A tower of equal blocks: unrolled or scanned, kept or computed again in the backward pass.

Unrolled, block i has its weights under "blocks_i". Scanned, blocks first .. last - 1 are one compiled block that runs again and again,
its weights stacked under "blocks_FIRST_LAST" (leading axis: the block): programs stay small, and the gradient of SiT-XL/2 compiles in
seconds. XLA's cost analysis counts a scanned block once, so operations are counted unrolled.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdrl.backbones.partition import lay_out

# What the forward pass keeps for the backward pass: everything; nothing within a block; results of all products; results of products
# with weights; those results, in the host's memory.
REMAT: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def rematerialised(block: type[nn.Module], policy: str, scan: bool) -> type[nn.Module]:
    """A block whose backward pass follows a policy.

    Args:
        block: A module.
        policy: A name in `REMAT`.
        scan: Whether the block is scanned, where XLA needs no barrier against undoing the policy.

    Returns:
        The module's class, the same for "none".
    """
    return block if policy == "none" else nn.remat(block, policy=REMAT[policy], prevent_cse=not scan)


def run_blocks(make: Callable[..., nn.Module], tokens: Any, conditions: Sequence[Any], blocks: range, scan: bool) -> Any:
    """Runs a stretch of a tower; call it inside a compact method.

    Args:
        make: name -> block; the block is called with (tokens, *conditions).
        tokens: What goes from block to block.
        conditions: What every block is given.
        blocks: Numbers of the blocks.
        scan: See above.

    Returns:
        Tokens.
    """
    if not scan or not len(blocks):
        for index in blocks:
            tokens = make(name=f"blocks_{index}")(lay_out(tokens, "batch", "tokens", None), *conditions)
        return tokens
    scanned = nn.scan(
        lambda block, tokens, conditions: (block(lay_out(tokens, "batch", "tokens", None), *conditions), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
        length=len(blocks),
    )
    return scanned(make(name=f"blocks_{blocks.start}_{blocks.stop}"), tokens, tuple(conditions))[0]


def members(path: str) -> list[str]:
    """The unrolled names of a leaf.

    Args:
        path: Of a leaf in the parameter tree, keys joined with "/".

    Returns:
        "blocks_3_5/x" -> ["blocks_3/x", "blocks_4/x"], also below other keys; any other path alone.
    """
    match = re.match(r"(|.*/)blocks_(\d+)_(\d+)/(.*)$", path)
    return [f"{match[1]}blocks_{i}/{match[4]}" for i in range(int(match[2]), int(match[3]))] if match else [path]


def block_params(params: Any, block: int) -> Any:
    """The weights of one block.

    Args:
        params: Of a tower, unrolled or scanned.
        block: Its number.

    Returns:
        The tree below "blocks_i" of the unrolled form.

    Raises:
        KeyError: If there is no such block.
    """
    if f"blocks_{block}" in params:
        return params[f"blocks_{block}"]
    for name, tree in params.items():
        match = re.fullmatch(r"blocks_(\d+)_(\d+)", name)
        if match and int(match[1]) <= block < int(match[2]):
            return jax.tree.map(lambda leaf, first=int(match[1]): leaf[block - first], tree)
    raise KeyError(f"blocks_{block}")


def stacked(params: Any, template: Any) -> Any:
    """Stacks the blocks of an unrolled tree as a scanned network has them.

    Args:
        params: Parameters of the unrolled network, or of the template's own form, which are returned as they are.
        template: Arrays or shapes of the wanted form.

    Returns:
        The parameters in the template's structure.
    """
    if set(params) == set(template):
        return params

    def pick(path: Sequence[Any], _: Any) -> Any:
        *parents, last = "/".join(str(key.key) for key in path).split("/")
        leaves = [_at(params, name) for name in members("/".join((*parents, last)))]
        return jnp.stack(leaves) if parents and parents[0] not in params else leaves[0]

    return jax.tree_util.tree_map_with_path(pick, template)


def _at(tree: Any, path: str) -> Any:
    for key in path.split("/"):
        tree = tree[key]
    return tree
