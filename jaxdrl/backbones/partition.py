"""Where activations lie, said by the layers without knowing the mesh: a hint that holds inside `jit` under `jax.set_mesh`.

A mesh that is not set, or has one device, or other axes than "data", "fsdp" and "tensor", makes every hint nothing. An axis whose
size does not divide is left to the compiler; tokens that do not divide stay whole.

Over "tensor" two cuts take turns, as in Korthikanti et al., arXiv 2205.05198 §4.2.2 (sequence parallelism): within attention and MLP
heads and hidden channels are cut and every device sees all tokens; between them (residuals, norms, modulation, what remat keeps) tokens are
cut and every device sees all channels. The turn is a gather of tokens before the first layer, which follows from the two cuts, and
behind the second the sum over devices, of which each keeps its tokens: together as many bytes as a sum that all keep.
"""

from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

# What an axis of an activation is, and the mesh axes it lies over.
MEANINGS: dict[str, tuple[str, ...]] = {"batch": ("data", "fsdp"), "tensor": ("tensor",), "tokens": ("tensor",)}
_ANY = PartitionSpec.UNCONSTRAINED


def sizes() -> dict[str, int]:
    """The mesh that is set.

    Returns:
        Axis -> size of the axes that the compiler may use; empty without a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return {name: mesh.shape[name] for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}


def tensor_ways() -> int:
    """Over how many devices a layer is cut.

    Returns:
        The size of the axis "tensor", 1 without a mesh.
    """
    return sizes().get("tensor", 1)


def lay_out(x: jax.Array, *axes: str | None) -> jax.Array:
    """Says where an activation, and the gradient with respect to it, lies.

    Args:
        x: An activation; outside of `jit` it is left alone.
        *axes: A key of `MEANINGS` for each axis, "any" for the compiler's choice, None: not cut.

    Returns:
        The activation.
    """
    known = sizes()
    if max(known.values(), default=1) == 1 or not isinstance(x, jax.core.Tracer):
        return x
    return jax.lax.with_sharding_constraint(
        x, PartitionSpec(*(_entry(n, axis, known) for n, axis in zip(x.shape, axes, strict=True)))
    )


def _entry(length: int, axis: str | None, known: dict[str, int]) -> Any:
    if axis is None or axis == "any":
        return _ANY if axis else None
    names = tuple(name for name in MEANINGS[axis] if known.get(name, 1) > 1)
    ways = 1
    for name in names:
        ways *= known[name]
    if length % ways:
        return None if axis == "tokens" else _ANY
    return names or None


def own_tokens(x: jax.Array) -> jax.Array:
    """Behind the second layer of attention or MLP: every device keeps its share of the tokens. Nothing where "tensor" is 1.

    Args:
        x: [batch, tokens, width].

    Returns:
        The activation.
    """
    return lay_out(x, "batch", "tokens", None) if tensor_ways() > 1 else x


def over(length: int, axis: str, known: dict[str, int]) -> tuple[str, ...] | None:
    """Over which axes of the mesh an axis is cut by hand.

    Args:
        length: Of the axis.
        axis: A key of `MEANINGS`.
        known: From `sizes`.

    Returns:
        Their names; None where there are none, or the length does not divide.
    """
    found = _entry(length, axis, known)
    return None if found is _ANY else found
