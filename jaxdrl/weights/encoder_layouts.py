"""How published encoder files name and shape what our networks call otherwise.

Sources: huggingface/transformers (names on disk, which differ from those in memory since version 5), toshas/torch-fidelity for Inception.
A file may hold more than the encoder (a text tower, a decoder, a classifier): what the encoder does not use is ignored by prefix.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxdrl import encoders
from jaxdrl.encoders import Encoder, TextEncoder
from jaxdrl.encoders.published import PUBLISHED
from jaxdrl.encoders.vit import resample_positions
from jaxdrl.weights.entries import Entry, Layout, conv, linear, norm, vit_block

_SEPARATE = "attention.attention.query attention.attention.key attention.attention.value"
DINOV2 = {
    "qkv": _SEPARATE,
    "attn/proj": "attention.output.dense",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "mlp/w12": "mlp.weights_in",
    "mlp/w3": "mlp.weights_out",
    "norm1": "norm1",
    "norm2": "norm2",
}
_MAE = DINOV2 | {
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
_DINOV3 = {
    "qkv": "attention.q_proj attention.k_proj attention.v_proj",
    "attn/proj": "attention.o_proj",
    "mlp/fc1": "mlp.up_proj",
    "mlp/fc2": "mlp.down_proj",
    "mlp/w12": "mlp.gate_proj mlp.up_proj",
    "mlp/w3": "mlp.down_proj",
    "norm1": "norm1",
    "norm2": "norm2",
}
CLIP = {
    "qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attn/proj": "self_attn.out_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}
# Prefixes that files of whole models put before the encoder's names.
_PREFIXES = {
    "mae": "vit.",
    "convnext": "(convnext|convnextv2).",
    "dinov2": "(dinov2|dinov2_with_registers).",
    "dinov3": "dinov3_vit.",
}


def layout(encoder: Encoder) -> Layout:
    """The layout of an encoder's file.

    Args:
        encoder: A published one, of any size, its layers not scanned.

    Returns:
        The table.

    Raises:
        ValueError: If the encoder is trained here and has no such file.
    """
    if encoder.name not in PUBLISHED:
        raise ValueError(f"{encoder.name} is trained here; no file of its authors has it")
    tables: dict[str, Callable[[Mapping[str, Any]], Layout]] = {
        "dinov2": lambda fields: _layout(dinov2_body(fields) + norm("layernorm", "norm"), "embeddings.mask_token"),
        "dinov3": _dinov3,
        "mae": lambda fields: _layout(_mae(fields), "decoder", "mask_token", "classifier", "fc_norm"),
        "siglip": _siglip,
        "clip": _clip,
        "convnext": lambda fields: _convnext(fields, encoder),
        "inception": lambda fields: _inception(encoder),
    }
    return tables[PUBLISHED[encoder.name][0]](dict(encoder.fields))


def text_layout(encoder: TextEncoder) -> Layout:
    """The layout of CLIP's text tower in the file of the whole model, or in one of its own.

    Args:
        encoder: Of any size, its layers not scanned.

    Returns:
        The table.
    """
    entries = [
        Entry(key="text_model.embeddings.token_embedding.weight", path="tokens"),
        Entry(key="text_model.embeddings.position_embedding.weight", path="positions"),
        *norm("text_model.final_layer_norm", "norm"),
        Entry(key="text_projection.weight", path="projection/kernel", kind="linear"),
    ]
    for i in range(dict(encoder.fields)["depth"]):
        entries += vit_block(f"text_model.encoder.layers.{i}", f"blocks_{i}", CLIP)
    return _layout(entries, "vision_model", "visual_projection", "logit_scale", "text_model.embeddings.position_ids")


def renamed(encoder: Encoder, state: Mapping[str, Any], read: Callable[[Any], np.ndarray]) -> Mapping[str, Any]:
    """A file's content under the names of `layout`: prefixes off, positions for the encoder's grid.

    Args:
        encoder: What it belongs to.
        state: The file's content.
        read: Tensor -> float32 array.

    Returns:
        A mapping.
    """
    family, fields = PUBLISHED[encoder.name][0], dict(encoder.fields)
    prefix = re.compile("^" + _PREFIXES.get(family, "$").replace(".", r"\."))
    found = {prefix.sub("", key): value for key, value in state.items()}
    if family == "siglip" and not any(key.startswith("vision_model.") for key in found):
        found = {f"vision_model.{key}": value for key, value in found.items()}  # a file of the vision tower alone
    if family == "inception":
        return {key: value for key, value in found.items() if not key.endswith("num_batches_tracked")}
    places = {
        "dinov2": "embeddings.position_embeddings",
        "mae": "embeddings.position_embeddings",
        "siglip": "vision_model.embeddings.position_embedding.weight",
        "clip": "vision_model.embeddings.position_embedding.weight",
    }.get(family)
    if places not in found:
        return found
    height, width = (side // fields["patch_size"] for side in encoders.sides(fields["resolution"]))
    table, first = found[places], int(fields.get("class_token", True))
    batched = len(table.shape) == 3
    if table.shape[-2] == first + height * width:
        return found
    antialias = fields.get("position_antialias", family == "dinov2" and fields.get("registers", 0) > 0)
    rows = read(table)[0] if batched else read(table)
    resampled = resample_positions(rows, (height, width), antialias, bool(first), fields.get("position_offset", 0.0))
    return found | {places: resampled[None] if batched else resampled}


def _layout(entries: list[Entry], *ignored: str) -> Layout:
    return Layout(entries=tuple(entries), fixed={}, ignored=ignored)


def dinov2_body(fields: Mapping[str, Any], root: str = "") -> list[Entry]:
    """DINOv2 without its last norm.

    Args:
        fields: Of the network.
        root: Put before the paths.

    Returns:
        Entries.
    """
    entries = [
        Entry(key="embeddings.cls_token", path=f"{root}cls_token", kind="row"),
        Entry(key="embeddings.position_embeddings", path=f"{root}positions", kind="row"),
        *conv("embeddings.patch_embeddings.projection", f"{root}patch_embed", fields["patch_size"]),
    ]
    if fields.get("registers"):
        entries.append(Entry(key="embeddings.register_tokens", path=f"{root}register_tokens", kind="row"))
    for i in range(fields["depth"]):
        entries += vit_block(f"encoder.layer.{i}", f"{root}blocks_{i}", DINOV2, gated=fields.get("gated", False))
        entries += _layer_scale(f"encoder.layer.{i}", f"{root}blocks_{i}")
    return entries


def _layer_scale(key: str, path: str) -> list[Entry]:
    return [Entry(key=f"{key}.{name}.lambda1", path=f"{path}/{name}") for name in ("layer_scale1", "layer_scale2")]


def _dinov3(fields: Mapping[str, Any]) -> Layout:
    entries = [
        Entry(key="embeddings.cls_token", path="cls_token", kind="row"),
        Entry(key="embeddings.register_tokens", path="register_tokens", kind="row"),
        *conv("embeddings.patch_embeddings", "patch_embed", fields["patch_size"]),
        *norm("norm", "norm"),
    ]
    bias = "no key" if fields.get("qkv_bias", True) else "none"
    for i in range(fields["depth"]):
        entries += vit_block(f"layer.{i}", f"blocks_{i}", _DINOV3, gated=fields.get("gated", False), qkv_bias=bias)
        entries += _layer_scale(f"layer.{i}", f"blocks_{i}")
    return _layout(entries, "embeddings.mask_token")


def _mae(fields: Mapping[str, Any]) -> list[Entry]:
    entries = [
        Entry(key="embeddings.cls_token", path="cls_token", kind="row"),
        Entry(key="embeddings.position_embeddings", path="positions", kind="row"),
        *conv("embeddings.patch_embeddings.projection", "patch_embed", fields["patch_size"]),
        *norm("layernorm", "norm"),
    ]
    for i in range(fields["depth"]):
        entries += vit_block(f"encoder.layer.{i}", f"blocks_{i}", _MAE)
    return entries


def _siglip(fields: Mapping[str, Any]) -> Layout:
    root = "vision_model"
    entries = [
        Entry(key=f"{root}.embeddings.position_embedding.weight", path="positions"),
        *conv(f"{root}.embeddings.patch_embedding", "patch_embed", fields["patch_size"]),
        *norm(f"{root}.post_layernorm", "norm"),
        Entry(key=f"{root}.head.probe", path="head_probe", kind="row"),
        Entry(key=f"{root}.head.attention.in_proj_weight", path="head_qkv_kernel", kind="linear"),
        Entry(key=f"{root}.head.attention.in_proj_bias", path="head_qkv_bias"),
        *linear(f"{root}.head.attention.out_proj", "head_proj"),
        *norm(f"{root}.head.layernorm", "head_norm"),
        *linear(f"{root}.head.mlp.fc1", "head_mlp/fc1"),
        *linear(f"{root}.head.mlp.fc2", "head_mlp/fc2"),
    ]
    for i in range(fields["depth"]):
        entries += vit_block(f"{root}.encoder.layers.{i}", f"blocks_{i}", CLIP)
    return _layout(entries, "text_model", "logit_scale", "logit_bias", f"{root}.embeddings.position_ids")


def _clip(fields: Mapping[str, Any]) -> Layout:
    root = "vision_model"
    entries = [
        Entry(key=f"{root}.embeddings.class_embedding", path="cls_token", kind="first"),
        Entry(key=f"{root}.embeddings.position_embedding.weight", path="positions"),
        conv(f"{root}.embeddings.patch_embedding", "patch_embed", fields["patch_size"])[0],
        *norm(f"{root}.pre_layrnorm", "pre_norm"),  # their spelling
        *norm(f"{root}.post_layernorm", "norm"),
        Entry(key="visual_projection.weight", path="projection/kernel", kind="linear"),
    ]
    for i in range(fields["depth"]):
        entries += vit_block(f"{root}.encoder.layers.{i}", f"blocks_{i}", CLIP)
    return _layout(entries, "text_model", "text_projection", "logit_scale", f"{root}.embeddings.position_ids")


def _convnext(fields: Mapping[str, Any], encoder: Encoder) -> Layout:
    places = {"stem": "embeddings.patch_embeddings", "stem_norm": "embeddings.layernorm", "norm": "layernorm"}
    for stage in range(1, len(fields["widths"])):
        places[f"down_norm_{stage}"] = f"encoder.stages.{stage}.downsampling_layer.0"
        places[f"down_{stage}"] = f"encoder.stages.{stage}.downsampling_layer.1"
    for stage, depth in enumerate(fields["depths"]):
        places |= {f"stages_{stage}_{i}": f"encoder.stages.{stage}.layers.{i}" for i in range(depth)}
    entries = []
    for path, leaf in _leaves(encoder):
        top, *rest = path.split("/")
        key, name = ".".join((places[top], *rest[:-1])), rest[-1]
        if name == "layer_scale":
            entries.append(Entry(key=f"{places[top]}.layer_scale_parameter", path=path))
        elif "grn" in rest:
            entries.append(Entry(key=f"{key}.{name}", path=path, kind="vector4"))
        else:
            kind = "plain" if name != "kernel" else "conv" if len(leaf.shape) == 4 else "linear"
            entries.append(Entry(key=f"{key}.{'bias' if name == 'bias' else 'weight'}", path=path, kind=kind))
    return _layout(entries, "classifier")


def _inception(encoder: Encoder) -> Layout:
    names = {"conv/kernel": "conv.weight", "scale": "bn.weight", "bias": "bn.bias"}
    names |= {"mean": "bn.running_mean", "var": "bn.running_var"}
    entries = [Entry(key="fc.weight", path="fc", kind="linear"), Entry(key="fc.bias", path="fc_bias")]
    for path, _ in _leaves(encoder):
        top, _, rest = path.partition("/")
        if rest:
            module = re.sub(r"^(Mixed_..)_", r"\1.", top)  # Mixed_5b_branch1x1 is Mixed_5b.branch1x1 there
            entries.append(Entry(key=f"{module}.{names[rest]}", path=path, kind="conv" if rest == "conv/kernel" else "plain"))
    return _layout(entries, "AuxLogits")


def _leaves(encoder: Encoder) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(encoder.init, jax.random.key(0)))
    return [("/".join(str(key.key) for key in path), leaf) for path, leaf in leaves]
