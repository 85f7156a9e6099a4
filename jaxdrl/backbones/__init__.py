"""Velocity networks by name, behind one convention: t = 0 noise, t = 1 data, velocity = data - noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.backbones import attention, ddt, dit, jit, spectral, stack

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_LATENT = {"sample_shape": (32, 32, 4), "num_classes": 1000}
Velocity = Callable[[PyTree, Float[Array, "..."], Float[Array, "..."], Int[Array, "..."]], Float[Array, "..."]]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A velocity network without its module system: pure functions of a parameter tree.

    Attributes:
        name: As given to `create`.
        family: "SiT", "DiT", "REPA", "JiT" or "DiTDH"; "own" of functions that a user wrote.
        fields: Sizes and options of the network, by name.
        init: key -> params, float32.
        velocity: (params, x [batch, h, w, c], t [batch], y [batch]) -> v, float32.
        predict: The network in its authors' own convention, same arguments: SiT's velocity, DiT's noise (and variance channels),
            REPA's and RAE's noise - data at t = 1 noise, JiT's clean image.
        aligned: REPA alone: as `velocity`, with the projected tokens for each encoder; None for others.
        gates: Networks with SpectralDiT's gate alone: (params, t [batch], y [batch]) -> [batch, depth, 2], g_low and g_high of each
            block; None for others.
        sample_shape: (h, w, c).
        num_classes: Classes without the null class.
    """

    name: str
    family: str
    fields: tuple[tuple[str, Any], ...]
    init: Callable[[Key[Array, ""]], PyTree]
    velocity: Velocity
    predict: Velocity
    aligned: Callable[..., tuple[Float[Array, "..."], list[Float[Array, "..."]]]] | None
    gates: Callable[[PyTree, Float[Array, "..."], Int[Array, "..."]], Float[Array, "batch depth 2"]] | None
    sample_shape: tuple[int, ...]
    num_classes: int

    @property
    def null_label(self) -> int:
        """The index of the null class."""
        return self.num_classes

    @property
    def num_params(self) -> int:
        """Parameters as the papers count them: the tree's, and the fixed position table, which is one in the authors' code."""
        shapes, fields, table = jax.eval_shape(self.init, jax.random.key(0)), dict(self.fields), 0
        if self.family != "own":
            table = self.sample_shape[0] * self.sample_shape[1] // fields["patch_size"] ** 2 * fields["width"]
        return table + sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def _published() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (family, fields) of every published size."""
    sized = lambda size: dict(zip(("width", "depth", "num_heads"), size, strict=True))  # noqa: E731
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for size, numbers in dit.SIZES.items():
        for patch in (2, 4, 8):
            fields = _LATENT | sized(numbers) | {"patch_size": patch}
            found[f"SiT-{size}/{patch}"] = ("SiT", fields)
            found[f"DiT-{size}/{patch}"] = ("DiT", fields | {"full_output": True})
    for size, depth in (("B", 4), ("L", 8), ("XL", 8)):
        fields = _LATENT | sized(dit.SIZES[size]) | {"patch_size": 2, "learn_sigma": False}
        found[f"REPA-SiT-{size}/2"] = ("REPA", fields | {"projector_dims": (768,), "projector_depth": depth})
    for size, (*numbers, bottleneck, start) in jit.SIZES.items():
        for patch in (16, 32, 64):
            fields = sized(numbers) | {"bottleneck": bottleneck, "context_start": start, "patch_size": patch}
            found[f"JiT-{size}/{patch}"] = ("JiT", fields | {"sample_shape": (16 * patch, 16 * patch, 3), "num_classes": 1000})
    for size, numbers in ddt.SIZES.items():
        fields = sized(numbers) | {"patch_size": 1, "sample_shape": (16, 16, 768), "num_classes": 1000}
        found[f"DiTDH-{size}"] = ("DiTDH", fields)
    return found


PUBLISHED = _published()
_MODULES: dict[str, Any] = {"SiT": dit.SiT, "DiT": dit.SiT, "REPA": dit.SiT, "JiT": jit.JiT, "DiTDH": ddt.DiTDH}
_FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "SiT": {},
    "DiT": {"full_output": True},
    "REPA": {"learn_sigma": False, "projector_dims": (768,)},
    "JiT": {},
    "DiTDH": {},
}


def names() -> list[str]:
    """Lists the names that `create` knows: the families, whose sizes must be given, and the published sizes."""
    return [*_MODULES, *PUBLISHED]


def create(name: str, **overrides: Any) -> Backbone:
    """Builds a backbone.

    Args:
        name: A published size such as "SiT-XL/2", or a family ("SiT", "DiT", "REPA", "JiT", "DiTDH") with at least sample_shape,
            num_classes, patch_size, width, depth and num_heads given.
        **overrides: Any field of the family's network (`dit.SiT`, `jit.JiT`, `ddt.DiTDH`); dtype as "float32" or "bfloat16". A
            family's projector_depth and context_start default to a third of the depth (projector_depth to 8 at most).

    Returns:
        The backbone. The same name and fields give the same object.

    Raises:
        ValueError: If the name or a field is unknown, or the sizes do not fit each other.
    """
    if name not in names():
        raise ValueError(f"backbone {name!r} is unknown; choose one of {', '.join(names())}")
    family, fields = PUBLISHED.get(name, (name, _FAMILY_FIELDS.get(name, {})))
    fields = (_LATENT if family in ("SiT", "DiT", "REPA") else {}) | fields | overrides
    module = _MODULES[family]
    known = {field for field in module.__dataclass_fields__ if field not in ("parent", "name")}
    needed = {"sample_shape", "num_classes", "patch_size", "width", "depth", "num_heads"} - set(fields)
    unknown = set(fields) - known
    if unknown or needed:
        raise ValueError(f"backbone {name!r}: unknown fields {sorted(unknown)}, missing fields {sorted(needed)}")
    # Where the published models have them: a third of the way up.
    third = fields["depth"] // 3
    if family == "REPA":
        fields.setdefault("projector_depth", max(1, min(8, third)))
    if family == "JiT":
        fields.setdefault("context_start", third)
    _check(fields)
    for key in ("sample_shape", "projector_dims"):
        if key in fields:
            fields[key] = tuple(fields[key])
    return _build(name, family, tuple(sorted(fields.items())))


def of_functions(
    name: str,
    init: Callable[[Key[Array, ""]], PyTree],
    velocity: Velocity,
    *,
    sample_shape: tuple[int, ...],
    num_classes: int,
    fields: tuple[tuple[str, Any], ...] = (),
) -> Backbone:
    """A backbone of two functions that somebody else wrote.

    Args:
        name: What it is called.
        init: key -> params, float32.
        velocity: (params, x [batch, h, w, c], t [batch], y [batch]) -> v, float32; y goes up to num_classes, the null class.
        sample_shape: (h, w, c).
        num_classes: Classes without the null class.
        fields: What it was made with, by name.

    Returns:
        The backbone.

    Raises:
        ValueError: If the velocity has another shape or type than x.
    """
    x, t, y = (
        jax.ShapeDtypeStruct((2, *sides), dtype) for sides, dtype in ((sample_shape, "float32"), ((), "float32"), ((), "int32"))
    )
    found = jax.eval_shape(velocity, jax.eval_shape(init, jax.random.key(0)), x, t, y)
    if getattr(found, "shape", None) != x.shape or found.dtype != x.dtype:
        raise ValueError(f"for x of {x.shape} float32 the velocity must be as large and float32; it is {_described(found)}")
    compiled = jax.jit(velocity, inline=True)
    return Backbone(
        name=name,
        family="own",
        fields=fields,
        init=init,
        velocity=compiled,
        predict=compiled,
        aligned=None,
        gates=None,
        sample_shape=tuple(sample_shape),
        num_classes=num_classes,
    )


def _described(found: Any) -> str:
    return f"{found.shape} {found.dtype}" if hasattr(found, "shape") else type(found).__name__


# The same sizes give the same object, so that functions compiled for a backbone are found again.
@lru_cache(maxsize=64)
def _build(name: str, family: str, items: tuple[tuple[str, Any], ...]) -> Backbone:
    fields = dict(items)
    module = _MODULES[family](**fields | {"dtype": _DTYPES[fields.get("dtype", "float32")]})
    shape = fields["sample_shape"]

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]

    def predict(params: PyTree, x: Any, t: Any, y: Any) -> Any:
        return module.apply({"params": params}, x, t, y)

    def reversed_time(params: PyTree, x: Any, t: Any, y: Any) -> Any:
        return -predict(params, x, 1 - t, y)

    def from_noise(params: PyTree, x: Any, t: Any, y: Any) -> Any:
        noise = lambda x, n: predict(params, x, n, y)[..., : shape[-1]]  # noqa: E731
        return dit.velocity_from_noise(noise, x, t)

    def from_image(params: PyTree, x: Any, t: Any, y: Any) -> Any:
        scale = fields.get("noise_scale", 1.0)
        return jit.velocity(predict(params, scale * x, t, y) / scale, x, t)

    def aligned(params: PyTree, x: Any, t: Any, y: Any) -> Any:
        value, projections = module.apply({"params": params}, x, 1 - t, y, aligned=True)
        return -value, projections

    def gates(params: PyTree, t: Any, y: Any) -> Any:
        theirs = {"DiT": lambda: dit.diffusion_time(t)[0], "REPA": lambda: 1 - t}.get(family, lambda: t)()
        return dit.gates(module, params, theirs, y)

    adapters = {"SiT": predict, "DiT": from_noise, "REPA": reversed_time, "JiT": from_image, "DiTDH": reversed_time}
    return Backbone(
        name=name,
        family=family,
        fields=items,
        # Called outside of a compiled function they are compiled as one program each; inside of one, nothing changes.
        init=init,
        velocity=jax.jit(adapters[family], inline=True),
        predict=jax.jit(predict, inline=True),
        aligned=jax.jit(aligned, inline=True) if family == "REPA" else None,
        gates=jax.jit(gates, inline=True) if fields.get("spectral", "none") != "none" else None,
        sample_shape=shape,
        num_classes=fields["num_classes"],
    )


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
    for key, known in (
        ("remat", tuple(stack.REMAT)),
        ("attention", attention.IMPLEMENTATIONS),
        ("numerics", ("original", "diffusers")),
        ("spectral", spectral.MODES),
    ):
        if key in fields and fields[key] not in known:
            raise ValueError(f"{key} must be one of {', '.join(known)}, got {fields[key]!r}")
    if fields.get("projector_dims") and fields.get("projector_depth", 8) > fields["depth"]:
        raise ValueError(f"projector_depth {fields.get('projector_depth', 8)} is more than the depth {fields['depth']}")
    if "context_start" in fields and not 0 <= fields["context_start"] < fields["depth"]:
        raise ValueError(f"context_start {fields['context_start']} must be the index of one of {fields['depth']} blocks")


__all__ = ["PUBLISHED", "Backbone", "Velocity", "create", "names", "of_functions"]
