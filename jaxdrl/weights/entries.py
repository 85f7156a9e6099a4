"""One tensor of an authors' file and its place in our parameter tree, and the shapes that differ between them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["plain", "linear", "patches", "conv", "row", "first", "vector4", "no_key", "channels_first"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file and its place in the parameter tree.

    Attributes:
        key: Its name in the file; several when a file repeats it (diffusers) or splits it in equal parts (`split`).
        path: Keys of the parameter tree, joined with "/".
        kind: "plain": as it is; "linear": [out, in] <-> [in, out]; "patches": convolution [out, in, p, p] <-> [p p in, out];
            "conv": [out, in, h, w] <-> [h, w, in, out]; "row": [1, n, d] <-> [n, d]; "first": [d] <-> [1, d];
            "vector4": [1, 1, 1, d] <-> [d]; "no_key": biases of q and v <-> of q, k and v, where k's is 0 (it shifts all logits of a
            query alike, so it has no effect); "channels_first": [c, h, w] <-> [h, w, c].
        patch: p of "patches".
        split: Whether the keys are equal parts along the file's first axis (q, k, v); otherwise they are copies.
    """

    key: str | tuple[str, ...]
    path: str
    kind: Kind = "plain"
    patch: int = 1
    split: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """All names in the file."""
        return (self.key,) if isinstance(self.key, str) else self.key


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All tensors of a file.

    Attributes:
        entries: What is learned.
        fixed: What follows from the sizes: name -> value. Written on export; on import it may be missing, and must agree if not.
        ignored: Beginnings of names that a file may have and inference does not use.
    """

    entries: tuple[Entry, ...]
    fixed: Mapping[str, np.ndarray]
    ignored: tuple[str, ...] = ()


def linear(key: str, path: str) -> list[Entry]:
    """Weight and bias of a linear layer.

    Args:
        key: Of the layer in the file; several in parts, as for `Entry`, are separated by blanks.
        path: Of the layer in the tree.

    Returns:
        Entries.
    """
    weights, biases = (tuple(f"{name}.{part}" for name in key.split()) for part in ("weight", "bias"))
    split = len(weights) > 1
    return [
        Entry(key=weights, path=f"{path}/kernel", kind="linear", split=split),
        Entry(key=biases, path=f"{path}/bias", split=split),
    ]


def conv(key: str, path: str, patch: int) -> list[Entry]:
    """Weight and bias of a patch embedding.

    Args:
        key: Of the layer in the file.
        path: Of the layer in the tree.
        patch: Side of a patch.

    Returns:
        Entries.
    """
    return [
        Entry(key=f"{key}.weight", path=f"{path}/kernel", kind="patches", patch=patch),
        Entry(key=f"{key}.bias", path=f"{path}/bias"),
    ]


def norm(key: str, path: str) -> list[Entry]:
    """Scale and bias of a norm.

    Args:
        key: Of the layer in the file.
        path: Of the layer in the tree.

    Returns:
        Entries.
    """
    return [Entry(key=f"{key}.weight", path=f"{path}/scale"), Entry(key=f"{key}.bias", path=f"{path}/bias")]


def vit_block(
    key: str, path: str, names: Mapping[str, str], *, gated: bool = False, qkv_bias: Literal["all", "no key", "none"] = "all"
) -> list[Entry]:
    """A `ViTBlock` without its LayerScale.

    Args:
        key: Of the block in the file.
        path: Of the block in the tree.
        names: What the file calls qkv (three names), attn/proj, mlp/fc1, mlp/fc2 (or mlp/w12 and mlp/w3), norm1 and norm2.
        gated: Whether the MLP is a SwiGLU.
        qkv_bias: Which of q, k and v have a bias in the file.

    Returns:
        Entries.
    """
    full = lambda name: " ".join(f"{key}.{part}" for part in names[name].split())  # noqa: E731
    weight, bias = linear(full("qkv"), f"{path}/attn/qkv")
    entries = [weight]
    if qkv_bias == "all":
        entries.append(bias)
    elif qkv_bias == "no key":
        entries.append(Entry(key=(bias.keys[0], bias.keys[2]), path=bias.path, kind="no_key", split=True))
    for ours in ("attn/proj", *(("mlp/w12", "mlp/w3") if gated else ("mlp/fc1", "mlp/fc2"))):
        entries += linear(full(ours), f"{path}/{ours}")
    return [*entries, *norm(full("norm1"), f"{path}/norm1"), *norm(full("norm2"), f"{path}/norm2")]


def _patches_to_ours(value: np.ndarray, patch: int) -> np.ndarray:
    out, channels = value.shape[:2]
    return value.transpose(2, 3, 1, 0).reshape(patch * patch * channels, out)


def _patches_to_theirs(value: np.ndarray, patch: int) -> np.ndarray:
    rows, out = value.shape
    return value.reshape(patch, patch, rows // patch**2, out).transpose(3, 2, 0, 1)


TO_OURS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "plain": lambda value, _: value,
    "linear": lambda value, _: value.T,
    "patches": _patches_to_ours,
    "conv": lambda value, _: value.transpose(2, 3, 1, 0),
    "row": lambda value, _: value[0],
    "first": lambda value, _: value[None],
    "vector4": lambda value, _: value[0, 0, 0],
    "no_key": lambda value, _: np.insert(value, [len(value) // 2] * (len(value) // 2), 0.0),
    "channels_first": lambda value, _: value.transpose(1, 2, 0),
}
TO_THEIRS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "plain": lambda value, _: value,
    "linear": lambda value, _: value.T,
    "patches": _patches_to_theirs,
    "conv": lambda value, _: value.transpose(3, 2, 0, 1),
    "row": lambda value, _: value[None],
    "first": lambda value, _: value[0],
    "vector4": lambda value, _: value[None, None, None],
    "no_key": lambda value, _: np.concatenate([value[: len(value) // 3], value[2 * len(value) // 3 :]]),
    "channels_first": lambda value, _: value.transpose(2, 0, 1),
}
