"""Velocity networks by name, behind one convention: t = 0 noise, t = 1 data, velocity = data - noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.backbones import dit

_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A velocity network without its module system: pure functions of a parameter tree.

    Attributes:
        name: As given to `create`.
        init: key -> params, float32.
        velocity: (params, x [batch, h, w, c], t [batch], y [batch]) -> v, float32.
        sample_shape: (h, w, c).
        num_classes: Classes without the null class.
    """

    name: str
    init: Callable[[Key[Array, ""]], PyTree]
    velocity: Callable[[PyTree, Float[Array, "..."], Float[Array, "..."], Int[Array, "..."]], Float[Array, "..."]]
    sample_shape: tuple[int, ...]
    num_classes: int

    @property
    def null_label(self) -> int:
        """The index of the null class."""
        return self.num_classes

    @property
    def num_params(self) -> int:
        """Trainable parameters; SiT's published counts include its fixed position table, tokens x width more."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def names() -> list[str]:
    """Lists the names that `create` knows."""
    return ["SiT", *(f"SiT-{size}/{patch}" for size in _SIZES for patch in (2, 4, 8))]


def create(name: str, **overrides: Any) -> Backbone:
    """Builds a backbone.

    Args:
        name: A published size such as "SiT-XL/2", or "SiT" with patch_size, width, depth and num_heads given.
        **overrides: Any field of `dit.SiT`; dtype as "float32" or "bfloat16". Published sizes default to sample_shape
            (32, 32, 4) and 1000 classes.

    Returns:
        The backbone.

    Raises:
        ValueError: If the name or a field is unknown, or the sizes do not fit each other.
    """
    if name not in names():
        raise ValueError(f"backbone {name!r} is unknown; choose one of {', '.join(names())}")
    fields: dict[str, Any] = {"sample_shape": (32, 32, 4), "num_classes": 1000}
    if name != "SiT":
        size, patch = name.removeprefix("SiT-").split("/")
        fields |= dict(zip(("width", "depth", "num_heads"), _SIZES[size], strict=True)) | {"patch_size": int(patch)}
    fields |= overrides
    known = {field for field in dit.SiT.__dataclass_fields__ if field not in ("parent", "name")}
    unknown, needed = set(fields) - known, {"patch_size", "width", "depth", "num_heads"} - set(fields)
    if unknown or needed:
        raise ValueError(f"backbone {name!r}: unknown fields {sorted(unknown)}, missing fields {sorted(needed)}")
    _check(fields)
    fields["sample_shape"] = tuple(fields["sample_shape"])
    return _build(name, tuple(sorted(fields.items())))


# The same sizes give the same object, so that functions compiled for a backbone are found again.
@lru_cache(maxsize=64)
def _build(name: str, items: tuple[tuple[str, Any], ...]) -> Backbone:
    fields = dict(items)
    module = dit.SiT(**fields | {"dtype": _DTYPES[fields.get("dtype", "float32")]})
    shape = fields["sample_shape"]

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]

    def velocity(params: PyTree, x: Any, t: Any, y: Any) -> Any:
        return module.apply({"params": params}, x, t, y)

    return Backbone(name=name, init=init, velocity=velocity, sample_shape=shape, num_classes=fields["num_classes"])


def _check(fields: dict[str, Any]) -> None:
    height, width, _ = fields["sample_shape"]
    if height % fields["patch_size"] or width % fields["patch_size"]:
        raise ValueError(f"patch_size {fields['patch_size']} does not divide the sample's {height} x {width}")
    if fields["width"] % fields["num_heads"] or fields["width"] % 4:
        raise ValueError(f"width {fields['width']} must be a multiple of 4 and of num_heads ({fields['num_heads']})")
    if fields.get("frequency_dim", 256) % 2:
        raise ValueError(f"frequency_dim must be even, got {fields['frequency_dim']}")
    if fields.get("dtype", "float32") not in _DTYPES:
        raise ValueError(f"dtype must be float32 or bfloat16, got {fields['dtype']!r}")
    if fields.get("remat", "none") not in ("none", "full"):
        raise ValueError(f"remat must be none or full, got {fields['remat']!r}")


__all__ = ["Backbone", "create", "names"]
