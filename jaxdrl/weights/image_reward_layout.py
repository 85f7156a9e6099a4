"""How ImageReward's published file names what our network calls otherwise.

Source: THUDM/ImageReward ImageReward.py, models/BLIP/vit.py and med.py. Beside the reward the file has BLIP's two projections for
contrastive training, which no score uses.
"""

from collections.abc import Mapping
from typing import Any

from jaxdrl.weights.entries import Entry, Layout, conv, linear, norm, vit_block

_VISION, _TEXT = "blip.visual_encoder", "blip.text_encoder"
_TIMM = {
    "qkv": "attn.qkv",
    "attn/proj": "attn.proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
}
# Dropout takes the numbers between.
_HEAD = (0, 2, 4, 6, 7)


def layout(vision: Mapping[str, Any], text: Mapping[str, Any]) -> Layout:
    """The layout of the file.

    Args:
        vision: Fields of the vision transformer, blocks not scanned.
        text: Fields of the text encoder, likewise.

    Returns:
        The table.
    """
    entries = [
        Entry(key=f"{_VISION}.cls_token", path="vision/cls_token", kind="row"),
        Entry(key=f"{_VISION}.pos_embed", path="vision/positions", kind="row"),
        *conv(f"{_VISION}.patch_embed.proj", "vision/patch_embed", vision["patch_size"]),
        *norm(f"{_VISION}.norm", "vision/norm"),
        Entry(key=f"{_TEXT}.embeddings.word_embeddings.weight", path="text/tokens"),
        Entry(key=f"{_TEXT}.embeddings.position_embeddings.weight", path="text/positions"),
        *norm(f"{_TEXT}.embeddings.LayerNorm", "text/norm"),
    ]
    for i in range(vision["depth"]):
        entries += vit_block(f"{_VISION}.blocks.{i}", f"vision/blocks_{i}", _TIMM)
    for i in range(text["depth"]):
        entries += _bert_block(f"{_TEXT}.encoder.layer.{i}", f"text/blocks_{i}")
    for ours, theirs in enumerate(_HEAD):
        entries += linear(f"mlp.layers.{theirs}", f"head_{ours}")
    ignored = ("blip.vision_proj.", "blip.text_proj.", f"{_TEXT}.embeddings.position_ids")
    return Layout(entries=tuple(entries), fixed={}, ignored=ignored)


def _bert_block(key: str, path: str) -> list[Entry]:
    own, other = f"{key}.attention", f"{key}.crossattention"
    return [
        *linear(" ".join(f"{own}.self.{part}" for part in ("query", "key", "value")), f"{path}/attn/qkv"),
        *linear(f"{own}.output.dense", f"{path}/attn/proj"),
        *norm(f"{own}.output.LayerNorm", f"{path}/attn_norm"),
        *linear(f"{other}.self.query", f"{path}/cross/query"),
        *linear(f"{other}.self.key {other}.self.value", f"{path}/cross/kv"),
        *linear(f"{other}.output.dense", f"{path}/cross/proj"),
        *norm(f"{other}.output.LayerNorm", f"{path}/cross_norm"),
        *linear(f"{key}.intermediate.dense", f"{path}/mlp/fc1"),
        *linear(f"{key}.output.dense", f"{path}/mlp/fc2"),
        *norm(f"{key}.output.LayerNorm", f"{path}/mlp_norm"),
    ]
