"""PyTorch state dicts <-> parameter trees, exact to the bit; see `layouts.py` for the tables.

torch is not needed: a state dict is a mapping from names to NumPy arrays, as safetensors files give it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import PyTree

from jaxdrl import backbones, encoders, tokenizers
from jaxdrl.backbones import Backbone
from jaxdrl.backbones.stack import members
from jaxdrl.encoders import Encoder, TextEncoder
from jaxdrl.encoders.vit import resample_positions
from jaxdrl.errors import UserError
from jaxdrl.rewards import preference
from jaxdrl.rewards.preference import RewardModel
from jaxdrl.tokenizers.rae import Rae
from jaxdrl.tokenizers.sd_vae import SdVae
from jaxdrl.weights import encoder_layouts, files, reward_layouts
from jaxdrl.weights.entries import TO_OURS, TO_THEIRS, Entry, Layout
from jaxdrl.weights.layouts import layout

Model: TypeAlias = Backbone | Encoder | TextEncoder | RewardModel | SdVae | Rae
_CONTAINERS = ("ema", "model_ema1", "model", "state_dict")
_FIXED_TOLERANCE = 1e-4


def from_torch(
    model: str | Model,
    state: Mapping[str, Any],
    *,
    weights: str = "ema",
    place: Callable[[np.ndarray], Any] = lambda leaf: leaf,
    **overrides: Any,
) -> PyTree:
    """Converts a state dict.

    Wrappers of the authors' training scripts are taken off ({"ema", "model", ...}, "net." and "module." prefixes), REPA's old
    block names are renamed, q, k, v apart are joined, and what `model_for` infers is inferred.

    Args:
        model: A published name, "sd-vae", or a backbone or autoencoder of any size.
        state: The file's content: names -> arrays (NumPy's, torch's, or read when asked for), or a checkpoint that contains
            such mappings.
        weights: Which mapping of a checkpoint: "ema" (also JiT's model_ema1) or "raw".
        place: Called with each converted tensor before the next one is read, for example to put it on a mesh.
        **overrides: Fields of a model that is given by name, as for `backbones.create`.

    Returns:
        Parameters for `model_for(model, state)`: float32 NumPy arrays, or what `place` made of them.

    Raises:
        UserError: Listing every missing, unexpected and misshapen tensor; or if `weights` is not in the checkpoint.
    """
    state = unwrap(state, weights)
    backbone = model_for(model, state, **overrides)
    plain = _unrolled(backbone)
    table = layout(plain, reward_layouts.style_of(plain, state) if isinstance(plain, RewardModel) else style_of(state))
    state = _renamed(state, backbone)
    problems = _differences(table, state, _shapes(plain))
    if problems:
        raise UserError(f"the weights do not fit {name_of(backbone)}: " + "; ".join(problems))
    entries = {entry.path: entry for entry in table.entries}

    def value(path: str) -> Any:
        parts = [_ours(entries[member], state) for member in members(path)]
        return place(parts[0] if members(path) == [path] else np.stack(parts))

    return _nested({path: value(path) for path in _shapes(backbone)})


def to_torch(model: str | Model, params: PyTree, *, style: str = "original", **overrides: Any) -> dict[str, np.ndarray]:
    """Converts parameters to the state dict that the authors' code loads with `strict=True`.

    Args:
        model: A published name, "sd-vae", or a backbone or autoencoder of any size.
        params: Its parameters.
        style: "original", or "diffusers" for DiT, or "transformers" or "openclip" for reward models with CLIP's two towers.
        **overrides: Fields of a model that is given by name, as for `backbones.create`.

    Returns:
        names -> float32 arrays, fixed tables included.

    Raises:
        UserError: If the parameters are not those of the model.
    """
    backbone = model_for(model, params, **overrides)
    table = layout(_unrolled(backbone), style)
    stored = files.named_leaves(files.match(jax.eval_shape(backbone.init, jax.random.key(0)), params, "the parameters"))
    named: dict[str, np.ndarray] = {}
    for path, leaf in stored.items():
        named |= {path: leaf} if members(path) == [path] else dict(zip(members(path), leaf, strict=True))
    state: dict[str, np.ndarray] = {}
    for entry in table.entries:
        value = np.asarray(TO_THEIRS[entry.kind](named[entry.path], entry.patch), order="C")
        parts = np.split(value, len(entry.keys)) if entry.split else [value] * len(entry.keys)
        state |= {key: np.asarray(part, order="C") for key, part in zip(entry.keys, parts, strict=True)}
    return state | {key: np.ascontiguousarray(value) for key, value in table.fixed.items()}


def model_for(model: str | Model, weights: Mapping[str, Any], **overrides: Any) -> Model:
    """The model that a set of weights belongs to.

    What published files of one name differ in is read from the weights: SiT's second half of output channels (`learn_sigma`), the
    number of classes, and the resolution, from the number of rows in the position table (square).

    Args:
        model: A published name, "sd-vae", or a model, which is returned as it is.
        weights: A state dict or a parameter tree.
        **overrides: Fields of a model that is given by name; they win over what is inferred.

    Returns:
        A backbone, an encoder, a reward model or an autoencoder.

    Raises:
        UserError: If the name or a field is unknown, or the fields do not fit each other.
    """
    if not isinstance(model, str):
        return model
    try:
        if model in tokenizers.PUBLISHED:
            return tokenizers.create_published(model, **overrides)
        if model in encoders.PUBLISHED:
            return encoders.create(model, **overrides)
        if model in encoders.PUBLISHED_TEXT:
            return encoders.create_text(model, **overrides)
        if model in preference.PUBLISHED:
            return preference.create(model, **overrides)
        if model in backbones.PUBLISHED:
            return backbones.create(model, **_inferred(model, weights) | overrides)
    except ValueError as error:
        raise UserError(f"{model}: {error}") from error
    rooms = (tokenizers.PUBLISHED, encoders.PUBLISHED, encoders.PUBLISHED_TEXT, preference.PUBLISHED, backbones.PUBLISHED)
    known = ", ".join(name for names in rooms for name in names)
    raise UserError(f"--model: {model!r} is unknown; choose one of {known}")


def _inferred(name: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a published network that its weights tell."""
    family, fields = backbones.PUBLISHED[name]
    height, _, channels = fields["sample_shape"]
    found: dict[str, Any] = {}
    labels = weights.get("y_embedder", weights.get("y_embedder.embedding_table.weight"))
    if hasattr(labels, "shape"):
        found["num_classes"] = int(labels.shape[0]) - 1
    places = weights.get("pos_embed")
    side = height if places is None else round(int(places.shape[1]) ** 0.5) * fields["patch_size"]
    if side != height:
        found["sample_shape"] = (side, side, channels)
    if family == "SiT":
        head = weights.get("final_linear", {}).get("bias", weights.get("final_layer.linear.bias"))
        found["learn_sigma"] = head is None or int(head.shape[0]) != channels * fields["patch_size"] ** 2
    return found


def _unrolled(model: Model) -> Model:
    """The model whose blocks are not scanned: files have them one by one."""
    if isinstance(model, RewardModel):
        return reward_layouts.unrolled(model)
    if not isinstance(model, Backbone | Encoder | TextEncoder) or not dict(model.fields).get("scan_layers"):
        return model
    creators: dict[type, Callable[..., Model]] = {Encoder: encoders.create, TextEncoder: encoders.create_text}
    create = creators.get(type(model), backbones.create)
    return create(model.name, **dict(model.fields) | {"scan_layers": False})


def name_of(model: Model) -> str:
    """What a model is called.

    Args:
        model: Any.

    Returns:
        Its name.
    """
    if isinstance(model, Backbone | Encoder | TextEncoder | RewardModel):
        return model.name
    return next(name for name, kind in tokenizers.PUBLISHED.items() if isinstance(model, kind))


def style_of(state: Mapping[str, Any]) -> str:
    """Says whether names are the authors' or diffusers'.

    Args:
        state: A state dict.

    Returns:
        "original" or "diffusers".
    """
    return "diffusers" if any(key.startswith("transformer_blocks.") for key in state) else "original"


class Renamed(Mapping[str, Any]):
    """A mapping under other names; a value is read when it is asked for."""

    def __init__(
        self,
        state: Mapping[str, Any],
        rename: Callable[[str], str],
        change: Callable[[str, Any], Any] = lambda name, value: value,
    ) -> None:
        """Renames.

        Args:
            state: Any mapping.
            rename: Old name -> new name.
            change: New name, value -> value as it is read.
        """
        self._state, self._change, self._old = state, change, {rename(key): key for key in state}

    def __getitem__(self, name: str) -> Any:
        """Reads a value."""
        return self._change(name, self._state[self._old[name]])

    def __iter__(self) -> Iterator[str]:
        """Goes through the new names."""
        return iter(self._old)

    def __len__(self) -> int:
        """How many values."""
        return len(self._old)


def unwrap(state: Mapping[str, Any], weights: str = "ema") -> Mapping[str, Any]:
    """Takes the wrappers off a checkpoint.

    Args:
        state: A state dict, or a training script's checkpoint that contains some.
        weights: "ema" or "raw".

    Returns:
        names -> arrays, without "module.", "_orig_mod." and "net." prefixes.

    Raises:
        UserError: If the checkpoint has no such weights.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f"--weights: {weights!r} must be ema or raw")
    containers = [name for name in _CONTAINERS if name in state and isinstance(state[name], Mapping)]
    if containers:
        wanted = [name for name in containers if ("ema" in name) == (weights == "ema")]
        if not wanted:
            raise UserError(f"the checkpoint has no {weights} weights; it has {', '.join(containers)}")
        state = state[wanted[0]]
    return Renamed(state, lambda key: re.sub(r"^((module|_orig_mod|net)\.)+", "", key))


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _renamed(state: Mapping[str, Any], backbone: Model) -> Mapping[str, Any]:
    """REPA's early files call the blocks after the projection decoder_blocks.j; old autoencoders name their attention otherwise."""
    if isinstance(backbone, SdVae):
        old = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
        return Renamed(state, lambda key: old.sub(lambda match: _OLD_ATTENTION[match[1]], key), _flat_attention)
    if isinstance(backbone, Rae):
        # Statistics are kept with or without an axis for the batch.
        flat = {name: _array(state[name])[0] for name in ("mean", "var") if name in state and len(state[name].shape) == 4}
        return _resampled({**state, **flat}, backbone.grid, True)
    if isinstance(backbone, TextEncoder):
        return state
    if isinstance(backbone, RewardModel):
        return reward_layouts.renamed(backbone, state, _array)
    if isinstance(backbone, Encoder):
        return encoder_layouts.renamed(backbone, state, _array)
    if backbone.family != "REPA":
        return state
    depth = dict(backbone.fields).get("projector_depth", 8)
    later = lambda match: f"blocks.{int(match[1]) + depth}."  # noqa: E731
    return Renamed(state, lambda key: re.sub(r"^decoder_blocks\.(\d+)\.", later, key))


def _resampled(state: Mapping[str, Any], grid: tuple[int, int], antialias: bool) -> Mapping[str, Any]:
    """DINOv2's file with its position table for another grid."""
    name = "embeddings.position_embeddings"
    if name not in state or state[name].shape[1] == 1 + grid[0] * grid[1]:
        return state
    return {**state, name: resample_positions(_array(state[name])[0], grid, antialias)[None]}


def _flat_attention(name: str, value: Any) -> Any:
    """The oldest autoencoders keep the attention's linear layers as 1 x 1 convolutions."""
    flat = ".attentions.0.to_" in name and name.endswith("weight") and len(value.shape) == 4
    return _array(value)[:, :, 0, 0] if flat else value


def _array(value: Any) -> np.ndarray:
    """float32 on the host, whatever it came as: NumPy's, torch's (bfloat16 too), or read from a file now."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu()
    return np.asarray(value, np.float32)


def _differences(table: Layout, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with a state dict, in words: empty when nothing is."""
    wanted = {key for entry in table.entries for key in entry.keys}
    missing = sorted(wanted - set(state))
    unexpected = sorted(key for key in set(state) - wanted - set(table.fixed) if not key.startswith(table.ignored))
    misshapen = []
    for entry in table.entries:
        if any(key not in state for key in entry.keys):
            continue
        expected = TO_THEIRS[entry.kind](np.broadcast_to(np.float32(0), shapes[entry.path]), entry.patch).shape
        if entry.split:
            expected = (expected[0] // len(entry.keys), *expected[1:])
        found = {key: tuple(state[key].shape) for key in entry.keys}
        misshapen += [f"{key} (is {shape}, must be {expected})" for key, shape in found.items() if shape != expected]
        if not entry.split and len(entry.keys) > 1 and not misshapen:
            first = _array(state[entry.keys[0]])
            misshapen += [f"{key} (differs from its copy)" for key in entry.keys if not np.array_equal(first, _array(state[key]))]
    for key, value in table.fixed.items():
        if key in state:
            found = _array(state[key])
            if found.shape != value.shape or np.abs(found - value).max() > _FIXED_TOLERANCE:
                misshapen.append(f"{key} (is not the table that follows from the sizes)")
    named = (("missing", missing), ("unexpected", unexpected), ("wrong", misshapen))
    return [f"{title}: {', '.join(names)}" for title, names in named if names]


def _ours(entry: Entry, state: Mapping[str, Any]) -> np.ndarray:
    keys = entry.keys if entry.split else entry.keys[:1]  # copies were compared before
    parts = [_array(state[key]) for key in keys]
    value = np.concatenate(parts) if entry.split else parts[0]
    return np.asarray(TO_OURS[entry.kind](value, entry.patch), order="C")


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    return {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
