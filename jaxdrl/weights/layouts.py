"""How the authors' PyTorch files name and shape what our networks call otherwise: a table a family.

Sources: willisma/SiT, facebookresearch/DiT, sihyun-yu/REPA, LTH14/JiT, bytetriper/RAE (module definitions), huggingface/diffusers
scripts/convert_dit_to_diffusers.py and AutoencoderKL. Every entry is a bijection, so a file that was read can be written again bit for bit.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxdrl.backbones import Backbone
from jaxdrl.backbones.layers import sincos_2d
from jaxdrl.backbones.rotary import rotary_2d
from jaxdrl.encoders import Encoder, TextEncoder
from jaxdrl.rewards.preference import RewardModel
from jaxdrl.tokenizers.rae import Rae
from jaxdrl.tokenizers.sd_vae import SdVae
from jaxdrl.weights import encoder_layouts, reward_layouts
from jaxdrl.weights.encoder_layouts import DINOV2, dinov2_body
from jaxdrl.weights.entries import Entry, Kind, Layout, conv, linear, norm, vit_block


def layout(backbone: Backbone | Encoder | TextEncoder | RewardModel | SdVae | Rae, style: str = "original") -> Layout:
    """The layout of a model's file.

    Args:
        backbone: From `backbones.create`, without `scan_layers`; or the autoencoder.
        style: "original" (the authors' own), or "diffusers" for DiT, or those of `reward_layouts`. The autoencoder's own is diffusers'.

    Returns:
        The table.

    Raises:
        ValueError: If the family has no such layout, or an option has no place in it.
    """
    if isinstance(backbone, SdVae):
        return _autoencoder(backbone)
    if isinstance(backbone, Rae):
        return _rae(backbone)
    if isinstance(backbone, Encoder):
        return encoder_layouts.layout(backbone)
    if isinstance(backbone, TextEncoder):
        return encoder_layouts.text_layout(backbone)
    if isinstance(backbone, RewardModel):
        return reward_layouts.layout(backbone, style)
    fields = dict(backbone.fields)
    if style == "diffusers" and backbone.family == "DiT":
        return _diffusers(fields)
    if style != "original":
        raise ValueError(
            f"{backbone.name} has no layout {style!r}; choose original" + (" or diffusers" * (backbone.family == "DiT"))
        )
    if backbone.family in ("SiT", "DiT", "REPA"):
        return _transformer(fields)
    return _jit(fields) if backbone.family == "JiT" else _ddt(fields)


def _conditions() -> list[Entry]:
    return [
        *linear("t_embedder.mlp.0", "t_embedder_0"),
        *linear("t_embedder.mlp.2", "t_embedder_2"),
        Entry(key="y_embedder.embedding_table.weight", path="y_embedder"),
    ]


def _positions(fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    grid = tuple(size // fields["patch_size"] for size in fields["sample_shape"][:2])
    return {"pos_embed": sincos_2d((grid[0], grid[1]), fields["width"])[None]}


def _transformer(fields: Mapping[str, Any]) -> Layout:
    """SiT, DiT and REPA; SpectralDiT's gates under the names of its repository."""
    entries = [*conv("x_embedder.proj", "x_embedder", fields["patch_size"]), *_conditions()]
    for i in range(fields["depth"]):
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            entries += linear(f"blocks.{i}.{part}", f"blocks_{i}/{part.replace('.', '/')}")
        for part in ("q_norm", "k_norm") if fields.get("qk_norm") else ():
            entries += norm(f"blocks.{i}.attn.{part}", f"blocks_{i}/attn/{part}")
        entries += linear(f"blocks.{i}.adaLN_modulation.1", f"blocks_{i}/adaLN_modulation")
        if fields.get("spectral", "none") == "static":
            entries.append(Entry(key=f"blocks.{i}.freq_gate", path=f"blocks_{i}/freq_gate/logits"))
        elif fields.get("spectral", "none") != "none":
            for part in ("0", "2"):
                entries += linear(f"blocks.{i}.freq_gate.{part}", f"blocks_{i}/freq_gate/{part}")
    for j in range(len(fields.get("projector_dims", ()))):
        for part in ("0", "2", "4"):
            entries += linear(f"projectors.{j}.{part}", f"projectors_{j}/{part}")
    entries += linear("final_layer.adaLN_modulation.1", "final_adaLN_modulation")
    entries += linear("final_layer.linear", "final_linear")
    return Layout(entries=tuple(entries), fixed=_positions(fields))


def _rotary_block(key: str, path: str, qk_norm: bool) -> list[Entry]:
    entries = []
    for part in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"):
        entries += linear(f"{key}.{part}", f"{path}/{part.replace('.', '/')}")
    entries += linear(f"{key}.adaLN_modulation.1", f"{path}/adaLN_modulation")
    norms = ("norm1", "norm2", *(("attn.q_norm", "attn.k_norm") if qk_norm else ()))
    return entries + [Entry(key=f"{key}.{norm}.weight", path=f"{path}/{norm.replace('.', '/')}/weight") for norm in norms]


def _rotary_head() -> list[Entry]:
    return [
        Entry(key="final_layer.norm_final.weight", path="final_layer/norm_final/weight"),
        *linear("final_layer.linear", "final_layer/linear"),
        *linear("final_layer.adaLN_modulation.1", "final_layer/adaLN_modulation"),
    ]


def _jit(fields: Mapping[str, Any]) -> Layout:
    proj1 = Entry(key="x_embedder.proj1.weight", path="x_embedder_proj1/kernel", kind="patches", patch=fields["patch_size"])
    entries = [
        *_conditions(),
        Entry(key="in_context_posemb", path="in_context_posemb", kind="row"),
        proj1,
        *conv("x_embedder.proj2", "x_embedder_proj2", 1),
        *_rotary_head(),
    ]
    for i in range(fields["depth"]):
        entries += _rotary_block(f"blocks.{i}", f"blocks_{i}", True)
    return Layout(entries=tuple(entries), fixed=_positions(fields))


def _ddt(fields: Mapping[str, Any]) -> Layout:
    patch, head_width, head_depth = fields["patch_size"], fields.get("head_width", 2048), fields.get("head_depth", 2)
    entries = [
        *_conditions(),
        Entry(key="t_embedder.W", path="t_embedder_W"),
        *conv("s_embedder.proj", "s_embedder", patch),
        *conv("x_embedder.proj", "x_embedder", patch),
        *_rotary_head(),
    ]
    if head_width != fields["width"]:
        entries += linear("s_projector", "s_projector")
    for i in range(fields["depth"] + head_depth):
        entries += _rotary_block(f"blocks.{i}", f"blocks_{i}", False)
    fixed = _positions(fields)
    grid = (fields["sample_shape"][0] // patch, fields["sample_shape"][1] // patch)
    heads = {"enc": fields["width"] // fields["num_heads"], "dec": head_width // fields.get("head_num_heads", 16)}
    for tower, head_dim in heads.items():
        cos, sin = rotary_2d(grid, head_dim)
        fixed |= {f"{tower}_feat_rope.freqs_cos": cos, f"{tower}_feat_rope.freqs_sin": sin}
    return Layout(entries=tuple(entries), fixed=fixed)


def _diffusers(fields: Mapping[str, Any]) -> Layout:
    """DiT as diffusers' DiTTransformer2DModel keeps it: q, k, v apart, the condition's weights repeated in every block."""
    blocks = range(fields["depth"])

    def repeated(suffix: str) -> tuple[str, ...]:
        return tuple(f"transformer_blocks.{i}.norm1.emb.{suffix}" for i in blocks)

    entries = [
        *conv("pos_embed.proj", "x_embedder", fields["patch_size"]),
        Entry(key=repeated("class_embedder.embedding_table.weight"), path="y_embedder"),
    ]
    for theirs, ours in (("timestep_embedder.linear_1", "t_embedder_0"), ("timestep_embedder.linear_2", "t_embedder_2")):
        entries.append(Entry(key=repeated(f"{theirs}.weight"), path=f"{ours}/kernel", kind="linear"))
        entries.append(Entry(key=repeated(f"{theirs}.bias"), path=f"{ours}/bias"))
    for i in blocks:
        theirs, ours = f"transformer_blocks.{i}", f"blocks_{i}"
        weights, biases = (tuple(f"{theirs}.attn1.to_{name}.{part}" for name in "qkv") for part in ("weight", "bias"))
        entries.append(Entry(key=weights, path=f"{ours}/attn/qkv/kernel", kind="linear", split=True))
        entries.append(Entry(key=biases, path=f"{ours}/attn/qkv/bias", split=True))
        entries += linear(f"{theirs}.attn1.to_out.0", f"{ours}/attn/proj")
        entries += linear(f"{theirs}.ff.net.0.proj", f"{ours}/mlp/fc1") + linear(f"{theirs}.ff.net.2", f"{ours}/mlp/fc2")
        entries += linear(f"{theirs}.norm1.linear", f"{ours}/adaLN_modulation")
    entries += linear("proj_out_1", "final_adaLN_modulation") + linear("proj_out_2", "final_linear")
    return Layout(entries=tuple(entries), fixed={})


def _autoencoder(vae: SdVae) -> Layout:
    """Our tree has diffusers' names: "_0" stands for ".0", a kernel and a norm's scale for their weight."""
    template = jax.eval_shape(vae.init, jax.random.key(0))
    entries = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(template)[0]:
        *modules, name = (str(key.key) for key in path)
        key = ".".join(re.sub(r"_(\d+)$", r".\1", module) for module in modules)
        kind: Kind = "plain" if name != "kernel" else "conv" if leaf.ndim == 4 else "linear"
        entries.append(Entry(key=f"{key}.{'bias' if name == 'bias' else 'weight'}", path="/".join((*modules, name)), kind=kind))
    return Layout(entries=tuple(entries), fixed={})


def _rae(rae: Rae) -> Layout:
    """Three files in one: the encoder as transformers keeps it on disk, the authors' decoder, and their statistics (stat.pt)."""
    body = {"depth": rae.encoder[1], "patch_size": rae.encoder_patch, "registers": 4}
    decoder = DINOV2 | {"mlp/fc1": "intermediate.dense", "mlp/fc2": "output.dense"}
    decoder |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    entries = [
        *dinov2_body(body, "encoder/"),
        Entry(key="trainable_cls_token", path="decoder/trainable_cls_token", kind="row"),
        *linear("decoder_embed", "decoder/decoder_embed"),
        *norm("decoder_norm", "decoder/decoder_norm"),
        *linear("decoder_pred", "decoder/decoder_pred"),
        Entry(key="mean", path="mean", kind="channels_first"),
        Entry(key="var", path="var", kind="channels_first"),
    ]
    for i in range(rae.decoder[1]):
        entries += vit_block(f"decoder_layers.{i}", f"decoder/decoder_layers_{i}", decoder)
    places = sincos_2d(rae.grid, rae.decoder[0])
    fixed = {"decoder_pos_embed": np.concatenate([np.zeros_like(places[:1]), places])[None]}
    return Layout(entries=tuple(entries), fixed=fixed, ignored=("embeddings.mask_token", "layernorm."))
