"""How the files of published reward models name and shape their tensors.

Sources: huggingface/transformers CLIPModel and SiglipModel (names on disk), mlfoundations/open_clip model.py and transformer.py, whose names HPSv2
and openai/CLIP have too; christophschuhmann/improved-aesthetic-predictor (layers.N of an nn.Sequential with dropout between) and
discus0434/aesthetic-predictor-v2-5 (scoring_head.N in its file, layers.scoring_head.N in the module). A model may come in several files, the
encoder's and the head's; what a model does not use of them, such as a text tower, is passed over.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxdrl import encoders
from jaxdrl.encoders import Encoder, TextEncoder
from jaxdrl.rewards import preference
from jaxdrl.rewards.preference import RewardModel, aesthetic, clip_scores, image_reward
from jaxdrl.weights import encoder_layouts, image_reward_layout
from jaxdrl.weights.entries import Entry, Layout, conv, linear, norm

STYLES = ("transformers", "openclip")
# Places of the linear layers in the authors' nn.Sequential.
_HEADS = {"aesthetic-v2": ("layers", (0, 2, 4, 6, 7)), "aesthetic-v2.5": ("layers.scoring_head", (0, 2, 4, 6, 8))}


def layout(model: RewardModel, style: str = "original") -> Layout:
    """The layout of a reward model's files, put together.

    Args:
        model: Of any size, its layers not scanned.
        style: "transformers", "openclip", or "original": that in which the authors publish the model.

    Returns:
        The table.

    Raises:
        ValueError: If the model has no such layout.
    """
    if model.name == image_reward.NAME:
        if style != "original":
            raise ValueError(f"{model.name} has no layout {style!r}; choose original")
        fields = dict(model.fields)
        return image_reward_layout.layout(fields["vision"], fields["text"])
    if model.name in aesthetic.MODELS:
        if style not in ("original", "transformers"):
            raise ValueError(f"{model.name} has no layout {style!r}; choose original")
        return _aesthetic(model)
    if model.name not in clip_scores.MODELS or style not in ("original", *STYLES):
        raise ValueError(f"{model.name} has no layout {style!r}; choose original, {' or '.join(STYLES)}")
    if style == "original":
        style = "openclip" if model.name.startswith("hpsv2") else "transformers"
    vision, text = _towers(model)
    return _openclip(dict(vision.fields), dict(text.fields)) if style == "openclip" else _transformers(vision, text)


def style_of(model: RewardModel, state: Mapping[str, Any]) -> str:
    """Says in which layout files are.

    Args:
        model: What they belong to.
        state: Their content.

    Returns:
        A style of `layout`.
    """
    if model.name not in clip_scores.MODELS:
        return "original"
    if any(key.startswith("visual.") for key in state):
        return "openclip"
    return "transformers" if any(key.startswith("vision_model.") for key in state) else "original"


def renamed(model: RewardModel, state: Mapping[str, Any], read: Callable[[Any], np.ndarray]) -> Mapping[str, Any]:
    """Files' content under the names of `layout`: prefixes off or on, positions for the encoder's grid.

    Args:
        model: What they belong to.
        state: Their content.
        read: Tensor -> float32 array.

    Returns:
        A mapping.
    """
    if model.name == image_reward.NAME:
        return state
    vision, _ = _towers(model)
    if model.name not in aesthetic.MODELS:
        return state if style_of(model, state) == "openclip" else encoder_layouts.renamed(vision, state, read)
    found = {re.sub(r"^scoring_head\.", "layers.scoring_head.", key): value for key, value in state.items()}
    head = {key: value for key, value in found.items() if key.startswith("layers.")}
    rest = {key: value for key, value in found.items() if key not in head}
    return {**encoder_layouts.renamed(vision, rest, read), **head}


def unrolled(model: RewardModel) -> RewardModel:
    """The model whose blocks are not scanned: files have them one by one.

    Args:
        model: Any.

    Returns:
        The model, or that of the same fields without `scan_layers`.
    """
    fields = {key: value | {"scan_layers": False} if _scanned(value) else value for key, value in model.fields}
    return preference.create(model.name, **fields) if any(_scanned(value) for _, value in model.fields) else model


def _scanned(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("scan_layers"))


def _towers(model: RewardModel) -> tuple[Encoder, Any]:
    fields = dict(model.fields)
    if model.name in aesthetic.MODELS:
        return encoders.create(aesthetic.MODELS[model.name].network, **fields["vision"]), None
    network = clip_scores.MODELS[model.name].network
    return encoders.create(network, **fields["vision"]), encoders.create_text(f"{network}-text", **fields["text"])


def _below(entries: tuple[Entry, ...], root: str) -> list[Entry]:
    return [replace(entry, path=f"{root}/{entry.path}") for entry in entries]


def _transformers(vision: Encoder, text: TextEncoder) -> Layout:
    entries = _below(encoder_layouts.layout(vision).entries, "image")
    entries += _below(encoder_layouts.text_layout(text).entries, "text")
    entries.append(Entry(key="logit_scale", path="logit_scale"))
    ignored = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
    return Layout(entries=tuple(entries), fixed={}, ignored=ignored)


def _openclip(vision: Mapping[str, Any], text: Mapping[str, Any]) -> Layout:
    entries = [
        Entry(key="visual.class_embedding", path="image/cls_token", kind="first"),
        Entry(key="visual.positional_embedding", path="image/positions"),
        conv("visual.conv1", "image/patch_embed", vision["patch_size"])[0],
        *norm("visual.ln_pre", "image/pre_norm"),
        *norm("visual.ln_post", "image/norm"),
        Entry(key="visual.proj", path="image/projection/kernel"),
        Entry(key="token_embedding.weight", path="text/tokens"),
        Entry(key="positional_embedding", path="text/positions"),
        *norm("ln_final", "text/norm"),
        Entry(key="text_projection", path="text/projection/kernel"),
        Entry(key="logit_scale", path="logit_scale"),
    ]
    for key, path, depth in (("visual.", "image", vision["depth"]), ("", "text", text["depth"])):
        for i in range(depth):
            entries += _openclip_block(f"{key}transformer.resblocks.{i}", f"{path}/blocks_{i}")
    # Files of openai/CLIP also say their sizes.
    ignored = ("attn_mask", "input_resolution", "context_length", "vocab_size")
    return Layout(entries=tuple(entries), fixed={}, ignored=ignored)


def _openclip_block(key: str, path: str) -> list[Entry]:
    """q, k and v in one tensor."""
    return [
        Entry(key=f"{key}.attn.in_proj_weight", path=f"{path}/attn/qkv/kernel", kind="linear"),
        Entry(key=f"{key}.attn.in_proj_bias", path=f"{path}/attn/qkv/bias"),
        *linear(f"{key}.attn.out_proj", f"{path}/attn/proj"),
        *linear(f"{key}.mlp.c_fc", f"{path}/mlp/fc1"),
        *linear(f"{key}.mlp.c_proj", f"{path}/mlp/fc2"),
        *norm(f"{key}.ln_1", f"{path}/norm1"),
        *norm(f"{key}.ln_2", f"{path}/norm2"),
    ]


def _aesthetic(model: RewardModel) -> Layout:
    table, (root, places) = encoder_layouts.layout(_towers(model)[0]), _HEADS[model.name]
    entries = _below(table.entries, "image")
    for i, place in enumerate(places):
        entries += linear(f"{root}.{place}", f"head/layer_{i}")
    return Layout(entries=tuple(entries), fixed={}, ignored=table.ignored)
