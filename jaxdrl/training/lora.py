r"""Low-rank adapters (LoRA) for any network whose linear layers have a "kernel": two thin matrices a layer are trained instead of it.

Sources: Hu et al., "LoRA", arXiv 2106.09685. Settings: DiffusionNFT (arXiv 2509.16117), Flow-GRPO (2505.05470) and MARBLE (2605.06507)
as released: rank 32, alpha 64, every projection of the attention, PEFT's "gaussian" start. For a kernel W: in -> out,

    W' = W + (alpha / rank) A B,     A: in x rank,  B: rank x out                                  (1)
    A ~ N(0, 1 / rank^2),  B = 0                                                                   (2)

so that W' = W at the start. Biases are not adapted. With G the gradient of a loss by W', the chain rule of (1) is

    dA = (alpha / rank) G B^T,     dB = (alpha / rank) A^T G                                       (3)

The networks here make q, k and v by one kernel, where the papers adapt three: a fused kernel of p equal parts gets p pairs (A, B), one
for each part of its outputs, and (1) holds part by part. A scanned stack of blocks has its kernels stacked, and its adapters too:
A: [blocks, p, in, rank], B: [blocks, p, rank, out / p], without the first axis where nothing is scanned.

Networks are not changed. Merge, then call:

    adapters = lora.init(base, settings, key)
    velocity(lora.merge(base, adapters, settings), x, t, y)

A gradient by `adapters` goes to them alone. It passes through the gradient of each adapted kernel, so optimizer states shrink to the
adapters' size, and activations do not. Merge once outside a loop over time steps. What `merge` returns are ordinary parameters: sample
from them, evaluate them, export them by `weights.to_torch`. The KL reference of RL is `base` itself.
"""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.backbones.stack import members
from jaxdrl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which layers are adapted, and how.

    Attributes:
        rank: Columns of A. An adapter is smaller than its kernel only below in out / (in + out), half the width of a square one.
        alpha: Strength; A B is multiplied by alpha / rank.
        targets: Regular expressions. A linear layer whose path in the tree, such as "blocks_3/attn/qkv", contains a match of one of
            them is adapted; "" takes all. Layers of a scanned stack have their unrolled paths.
        fused: (regular expression, parts): layers that are several in one, equal parts of their outputs. The first match counts.
        start: Of A: "gaussian" (2), or "kaiming", U(-1 / sqrt(in), 1 / sqrt(in)), the original LoRA's and PEFT's default.
    """

    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = (r"attn/qkv$", r"attn/proj$")
    fused: tuple[tuple[str, int], ...] = ((r"attn/qkv$", 3),)
    start: str = "gaussian"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If one is out of range.
        """
        if not self.targets:
            raise UserError("lora: targets is empty; name at least one layer, such as attn/qkv$")
        if self.rank < 1 or self.alpha <= 0:
            raise UserError(f"lora: rank ({self.rank}) must be at least 1 and alpha ({self.alpha}) more than 0")
        if self.start not in ("gaussian", "kaiming"):
            raise UserError(f"lora: start must be gaussian or kaiming, got {self.start!r}")
        for pattern in (*self.targets, *(pattern for pattern, _ in self.fused)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"lora: {pattern!r} is no regular expression ({error})") from error

    @property
    def scale(self) -> float:
        """The factor alpha / rank of (1)."""
        return self.alpha / self.rank


def init(params: PyTree, settings: Settings, key: Key[Array, ""]) -> PyTree:
    """Makes adapters that change nothing yet.

    Args:
        params: Of the network, arrays or shapes: dicts of dicts, in which a linear layer is a dict with a "kernel" [in, out], or
            [blocks, in, out] in a scanned stack.
        settings: Which layers.
        key: A layer's A depends on it and on the layer's path alone, so that adapters of a scanned network are the stacked ones of the
            unrolled network.

    Returns:
        float32 {"a": A, "b": B} at the paths of the adapted layers.

    Raises:
        UserError: If a target matches no layer, or some blocks of a scanned stack and not the others, or the parts of a fused layer do
            not divide its outputs.
    """
    found = dict(_layers(params))
    names = [name for path in found for name in members(path)]
    for target in settings.targets:
        if not any(re.search(target, name) for name in names):
            known = ", ".join(sorted({re.sub(r"^blocks_\d+", "blocks_N", name) for name in names}))
            raise UserError(f"lora: the target {target!r} matches no linear layer of the network, which has {known}")
    adapters: dict[str, Any] = {}
    for path in (path for path in found if _is_target(path, settings)):
        *parents, last = path.split("/")
        node = adapters
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _pair(path, found[path], settings, key)
    return adapters


def merge(params: PyTree, adapters: PyTree, settings: Settings) -> PyTree:
    """Adds the adapters to the kernels, by (1).

    Args:
        params: Of the network.
        adapters: From `init` for this network, trained or not.
        settings: As given to `init`.

    Returns:
        Parameters for the same network; leaves without an adapter are the given ones.

    Raises:
        ValueError: If an adapter has no layer, or another shape than its layer.
    """
    return _merge(params, adapters, settings, "")


def count(adapters: PyTree) -> int:
    """How many numbers are trained.

    Args:
        adapters: Arrays or shapes.

    Returns:
        rank (p in + out), summed over adapted layers of p parts.
    """
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(adapters))


def _merge(params: PyTree, adapters: PyTree, settings: Settings, path: str) -> PyTree:
    unknown = set(adapters) - set(params)
    if unknown:
        raise ValueError(f"adapters for {sorted(path + name for name in unknown)}, which the network does not have")
    merged = dict(params)
    for name, adapter in adapters.items():
        layer = params[name]
        if isinstance(adapter.get("a", {}), Mapping):  # a folder of layers
            merged[name] = _merge(layer, adapter, settings, f"{path}{name}/")
            continue
        kernel, change = layer["kernel"], _change(jnp.asarray(adapter["a"]), jnp.asarray(adapter["b"]), settings.scale)
        if change.shape != kernel.shape:
            raise ValueError(f"the adapter of {path}{name} makes {change.shape}, its kernel is {kernel.shape}")
        merged[name] = {**layer, "kernel": kernel + change}
    return merged


def _change(
    a: Float[Array, "*blocks parts inputs rank"], b: Float[Array, "*blocks parts rank outputs"], scale: float
) -> Float[Array, "*blocks inputs all_outputs"]:
    """(alpha / rank) A B of (1); in full float32, since it is added to float32 weights."""
    product = jnp.einsum("...pir,...pro->...ipo", a, b, precision=jax.lax.Precision.HIGHEST)
    return scale * product.reshape(*product.shape[:-2], -1)


def _layers(params: PyTree, path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Path and kernel shape of every linear layer; convolutions are none."""
    for name, part in params.items():
        if not isinstance(part, Mapping):
            continue
        place = f"{path}{name}"
        stacked = members(place) != [place]
        if hasattr(part.get("kernel"), "shape") and len(part["kernel"].shape) == 2 + stacked:
            yield place, tuple(part["kernel"].shape)
        yield from _layers(part, f"{place}/")


def _is_target(path: str, settings: Settings) -> bool:
    matched = [any(re.search(target, name) for target in settings.targets) for name in members(path)]
    if any(matched) and not all(matched):
        raise UserError(
            f"lora: targets match some blocks of {path} and not all, which are one scanned layer; set scan_layers=False"
        )
    return all(matched)


def _pair(path: str, shape: tuple[int, ...], settings: Settings, key: Key[Array, ""]) -> dict[str, Float[Array, "..."]]:
    *blocks, inputs, outputs = shape
    parts = next((parts for pattern, parts in settings.fused if re.search(pattern, members(path)[0])), 1)
    if parts < 1 or outputs % parts:
        raise UserError(f"lora: {path} has {outputs} outputs, which are not {parts} equal parts; mend `fused`")

    def draw(name: str) -> Float[Array, "parts inputs rank"]:
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        size = (parts, inputs, settings.rank)
        if settings.start == "gaussian":
            return jax.random.normal(own, size, jnp.float32) / settings.rank
        return jax.random.uniform(own, size, jnp.float32, -1, 1) / np.sqrt(inputs)

    drawn = [draw(name) for name in members(path)]
    a = jnp.stack(drawn) if blocks else drawn[0]
    return {"a": a, "b": jnp.zeros((*blocks, parts, settings.rank, outputs // parts), jnp.float32)}
