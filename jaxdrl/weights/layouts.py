"""How the authors' PyTorch files name and shape what our networks call otherwise: a table a family.

Sources: willisma/SiT, facebookresearch/DiT, sihyun-yu/REPA, LTH14/JiT, bytetriper/RAE (module definitions), huggingface/diffusers
scripts/convert_dit_to_diffusers.py and AutoencoderKL. Every entry is a bijection, so a file that was read can be written again bit for bit.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from jaxdrl.backbones import Backbone
from jaxdrl.backbones.layers import sincos_2d
from jaxdrl.backbones.rotary import rotary_2d
from jaxdrl.encoders import Encoder
from jaxdrl.tokenizers.rae import Rae
from jaxdrl.tokenizers.sd_vae import SdVae

Kind = Literal["plain", "linear", "patches", "conv", "row", "channels_first"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a file and its place in the parameter tree.

    Attributes:
        key: Its name in the file; several when a file repeats it (diffusers) or splits it in equal parts (`split`).
        path: Keys of the parameter tree, joined with "/".
        kind: "plain": as it is; "linear": [out, in] <-> [in, out]; "patches": convolution [out, in, p, p] <-> [p p in, out];
            "conv": [out, in, h, w] <-> [h, w, in, out]; "row": [1, n, d] <-> [n, d];
            "channels_first": [c, h, w] <-> [h, w, c].
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
        ignored: What a file may have and inference does not use.
    """

    entries: tuple[Entry, ...]
    fixed: Mapping[str, np.ndarray]
    ignored: tuple[str, ...] = ()


def layout(backbone: Backbone | Encoder | SdVae | Rae, style: str = "original") -> Layout:
    """The layout of a model's file.

    Args:
        backbone: From `backbones.create`, without `scan_layers`; or the autoencoder.
        style: "original" (the authors' own), or "diffusers" for DiT. The autoencoder's own is diffusers'.

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
        return _dinov2(dict(backbone.fields))
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


def _linear(key: str, path: str) -> list[Entry]:
    return [
        Entry(key=f"{key}.weight", path=f"{path}/kernel", kind="linear"),
        Entry(key=f"{key}.bias", path=f"{path}/bias"),
    ]


def _conv(key: str, path: str, patch: int) -> list[Entry]:
    return [
        Entry(key=f"{key}.weight", path=f"{path}/kernel", kind="patches", patch=patch),
        Entry(key=f"{key}.bias", path=f"{path}/bias"),
    ]


def _conditions() -> list[Entry]:
    return [
        *_linear("t_embedder.mlp.0", "t_embedder_0"),
        *_linear("t_embedder.mlp.2", "t_embedder_2"),
        Entry(key="y_embedder.embedding_table.weight", path="y_embedder"),
    ]


def _positions(fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    grid = tuple(size // fields["patch_size"] for size in fields["sample_shape"][:2])
    return {"pos_embed": sincos_2d((grid[0], grid[1]), fields["width"])[None]}


def _transformer(fields: Mapping[str, Any]) -> Layout:
    """SiT, DiT and REPA; SpectralDiT's gates under the names of its repository."""
    entries = [*_conv("x_embedder.proj", "x_embedder", fields["patch_size"]), *_conditions()]
    for i in range(fields["depth"]):
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            entries += _linear(f"blocks.{i}.{part}", f"blocks_{i}/{part.replace('.', '/')}")
        for part in ("q_norm", "k_norm") if fields.get("qk_norm") else ():
            entries += _norm(f"blocks.{i}.attn.{part}", f"blocks_{i}/attn/{part}")
        entries += _linear(f"blocks.{i}.adaLN_modulation.1", f"blocks_{i}/adaLN_modulation")
        if fields.get("spectral", "none") == "static":
            entries.append(Entry(key=f"blocks.{i}.freq_gate", path=f"blocks_{i}/freq_gate/logits"))
        elif fields.get("spectral", "none") != "none":
            for part in ("0", "2"):
                entries += _linear(f"blocks.{i}.freq_gate.{part}", f"blocks_{i}/freq_gate/{part}")
    for j in range(len(fields.get("projector_dims", ()))):
        for part in ("0", "2", "4"):
            entries += _linear(f"projectors.{j}.{part}", f"projectors_{j}/{part}")
    entries += _linear("final_layer.adaLN_modulation.1", "final_adaLN_modulation")
    entries += _linear("final_layer.linear", "final_linear")
    return Layout(entries=tuple(entries), fixed=_positions(fields))


def _rotary_block(key: str, path: str, qk_norm: bool) -> list[Entry]:
    entries = []
    for part in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"):
        entries += _linear(f"{key}.{part}", f"{path}/{part.replace('.', '/')}")
    entries += _linear(f"{key}.adaLN_modulation.1", f"{path}/adaLN_modulation")
    norms = ("norm1", "norm2", *(("attn.q_norm", "attn.k_norm") if qk_norm else ()))
    return entries + [Entry(key=f"{key}.{norm}.weight", path=f"{path}/{norm.replace('.', '/')}/weight") for norm in norms]


def _rotary_head() -> list[Entry]:
    return [
        Entry(key="final_layer.norm_final.weight", path="final_layer/norm_final/weight"),
        *_linear("final_layer.linear", "final_layer/linear"),
        *_linear("final_layer.adaLN_modulation.1", "final_layer/adaLN_modulation"),
    ]


def _jit(fields: Mapping[str, Any]) -> Layout:
    proj1 = Entry(key="x_embedder.proj1.weight", path="x_embedder_proj1/kernel", kind="patches", patch=fields["patch_size"])
    entries = [
        *_conditions(),
        Entry(key="in_context_posemb", path="in_context_posemb", kind="row"),
        proj1,
        *_conv("x_embedder.proj2", "x_embedder_proj2", 1),
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
        *_conv("s_embedder.proj", "s_embedder", patch),
        *_conv("x_embedder.proj", "x_embedder", patch),
        *_rotary_head(),
    ]
    if head_width != fields["width"]:
        entries += _linear("s_projector", "s_projector")
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
        *_conv("pos_embed.proj", "x_embedder", fields["patch_size"]),
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
        entries += _linear(f"{theirs}.attn1.to_out.0", f"{ours}/attn/proj")
        entries += _linear(f"{theirs}.ff.net.0.proj", f"{ours}/mlp/fc1") + _linear(f"{theirs}.ff.net.2", f"{ours}/mlp/fc2")
        entries += _linear(f"{theirs}.norm1.linear", f"{ours}/adaLN_modulation")
    entries += _linear("proj_out_1", "final_adaLN_modulation") + _linear("proj_out_2", "final_linear")
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


def _vit_block(key: str, path: str, names: Mapping[str, str]) -> list[Entry]:
    """`names` says what the file calls qkv (three names), proj, fc1, fc2, norm1 and norm2."""
    weights, biases = (tuple(f"{key}.{name}.{part}" for name in names["qkv"].split()) for part in ("weight", "bias"))
    entries = [
        Entry(key=weights, path=f"{path}/attn/qkv/kernel", kind="linear", split=True),
        Entry(key=biases, path=f"{path}/attn/qkv/bias", split=True),
    ]
    for ours in ("attn/proj", "mlp/fc1", "mlp/fc2"):
        entries += _linear(f"{key}.{names[ours]}", f"{path}/{ours}")
    for ours in ("norm1", "norm2"):
        entries += _norm(f"{key}.{names[ours]}", f"{path}/{ours}")
    return entries


def _norm(key: str, path: str) -> list[Entry]:
    return [Entry(key=f"{key}.weight", path=f"{path}/scale"), Entry(key=f"{key}.bias", path=f"{path}/bias")]


_DINOV2 = {
    "qkv": "attention.attention.query attention.attention.key attention.attention.value",
    "attn/proj": "attention.output.dense",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
}


def _dinov2_body(depth: int, patch: int, registers: int, root: str = "") -> list[Entry]:
    """DINOv2 as transformers keeps it on disk, without its last norm."""
    entries = [
        Entry(key="embeddings.cls_token", path=f"{root}cls_token", kind="row"),
        Entry(key="embeddings.position_embeddings", path=f"{root}positions", kind="row"),
        *_conv("embeddings.patch_embeddings.projection", f"{root}patch_embed", patch),
    ]
    if registers:
        entries.append(Entry(key="embeddings.register_tokens", path=f"{root}register_tokens", kind="row"))
    for i in range(depth):
        entries += _vit_block(f"encoder.layer.{i}", f"{root}blocks_{i}", _DINOV2)
        for name in ("layer_scale1", "layer_scale2"):
            entries.append(Entry(key=f"encoder.layer.{i}.{name}.lambda1", path=f"{root}blocks_{i}/{name}"))
    return entries


def _dinov2(fields: Mapping[str, Any]) -> Layout:
    body = _dinov2_body(fields["depth"], fields.get("patch_size", 14), fields["registers"])
    return Layout(entries=(*body, *_norm("layernorm", "norm")), fixed={}, ignored=("embeddings.mask_token",))


def _rae(rae: Rae) -> Layout:
    """Three files in one: the encoder as transformers keeps it on disk, the authors' decoder, and their statistics (stat.pt)."""
    decoder = _DINOV2 | {"mlp/fc1": "intermediate.dense", "mlp/fc2": "output.dense"}
    decoder |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    entries = [
        *_dinov2_body(rae.encoder[1], rae.encoder_patch, 4, "encoder/"),
        Entry(key="trainable_cls_token", path="decoder/trainable_cls_token", kind="row"),
        *_linear("decoder_embed", "decoder/decoder_embed"),
        *_norm("decoder_norm", "decoder/decoder_norm"),
        *_linear("decoder_pred", "decoder/decoder_pred"),
        Entry(key="mean", path="mean", kind="channels_first"),
        Entry(key="var", path="var", kind="channels_first"),
    ]
    for i in range(rae.decoder[1]):
        entries += _vit_block(f"decoder_layers.{i}", f"decoder/decoder_layers_{i}", decoder)
    places = sincos_2d(rae.grid, rae.decoder[0])
    fixed = {"decoder_pos_embed": np.concatenate([np.zeros_like(places[:1]), places])[None]}
    return Layout(entries=tuple(entries), fixed=fixed, ignored=("embeddings.mask_token", "layernorm.weight", "layernorm.bias"))


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
    "channels_first": lambda value, _: value.transpose(1, 2, 0),
}
TO_THEIRS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "plain": lambda value, _: value,
    "linear": lambda value, _: value.T,
    "patches": _patches_to_theirs,
    "conv": lambda value, _: value.transpose(3, 2, 0, 1),
    "row": lambda value, _: value[None],
    "channels_first": lambda value, _: value.transpose(2, 0, 1),
}
