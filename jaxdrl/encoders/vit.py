r"""One vision transformer for DINOv2, DINOv3, SigLIP, SigLIP2, CLIP and MAE; what they differ in is data (`published.py`).

Sources: Oquab et al., DINOv2, arXiv 2304.07193; Darcet et al., registers, arXiv 2309.16588; Simeoni et al., DINOv3, arXiv 2508.10104;
Zhai et al., SigLIP, arXiv 2303.15343; Tschannen et al., SigLIP 2, arXiv 2502.14786; Radford et al., CLIP, arXiv 2103.00020; He et al.,
MAE, arXiv 2111.06377; huggingface/transformers modeling files of the same names.

Tokens are [class token, registers, patches]; learned positions are added to the class token and the patches, never to registers.
The position table belongs to one grid and is resampled once, when weights are converted (`resample_positions`). DINOv3 has no table: with
patch centres c in (-1, 1) an axis and head / 4 frequencies, the patch tokens' q and k turn by

    angle = 2 pi c theta^(-4 i / head),    theta = 100,    first the row's angles, then the column's                  (1)

SigLIP has no class token: a learned probe attends to all tokens ("map" head). CLIP normalises before the blocks too, and after them
the class token alone.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdrl.backbones.attention import attend
from jaxdrl.backbones.layers import Mlp, dense, patchify
from jaxdrl.backbones.stack import rematerialised, run_blocks
from jaxdrl.backbones.vit import ViTBlock, norm
from jaxdrl.encoders.preprocess import resize_matrix

_small = nn.initializers.normal(0.02)


class VisionTransformer(nn.Module):
    """The network, on preprocessed images.

    Attributes:
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        patch_size: Pixels a token's side.
        hidden: Of the MLPs; 0: four times the width.
        class_token: Whether there is one.
        registers: Register tokens.
        positions: "learned" or "rotary".
        patch_bias: Whether the patch embedding has a bias.
        pre_norm: Whether tokens are normalised before the blocks (CLIP).
        final_norm: "all" tokens, "affine-free" (all, without scale and bias: RAE) or "class" (the class token alone: CLIP).
        head: "none", "map" (SigLIP) or "projection" (CLIP).
        projection_dim: Of the projection.
        eps: Of the norms.
        layer_scale: See `ViTBlock`.
        activation: See `ViTBlock`.
        gated: See `ViTBlock`.
        qkv_bias: See `ViTBlock`.
        dtype: Of the matmuls; norms and softmax stay float32.
        attention: See `backbones.attention`; R1 needs second derivatives, which cudnn does not have.
        remat: What the backward pass computes again, a name in `stack.REMAT`.
        scan_layers: See `backbones/stack.py`.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int
    hidden: int = 0
    class_token: bool = True
    registers: int = 0
    positions: str = "learned"
    patch_bias: bool = True
    pre_norm: bool = False
    final_norm: str = "all"
    head: str = "none"
    projection_dim: int = 0
    eps: float = 1e-6
    layer_scale: bool = False
    activation: str = "gelu"
    gated: bool = False
    qkv_bias: bool = True
    dtype: Any = jnp.float32
    attention: str = "einsum"
    remat: str = "none"
    scan_layers: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w 3"]) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            images: Preprocessed; what does not fill a patch at the right and at the bottom is not seen.

        Returns:
            float32 "patches" [batch, tokens, width] and, where the network has them, "cls", "registers", "pooled_map" (SigLIP's
            attention pooling) and "projection" (CLIP's image embedding, not normalised).
        """
        grid = (images.shape[1] // self.patch_size, images.shape[2] // self.patch_size)
        x, rotary = self._tokens(images), self._rotary(grid)
        if self.pre_norm:
            x = norm(self.eps, "pre_norm")(x)
        hidden = self.hidden or 4 * self.width
        block = partial(
            rematerialised(ViTBlock, self.remat, self.scan_layers),
            *(self.num_heads, hidden, self.eps, self.layer_scale, self.dtype, self.attention, self.activation),
            *(self.gated, self.qkv_bias),
        )
        x = run_blocks(block, x, (rotary,), range(self.depth), self.scan_layers)
        first = int(self.class_token)
        if self.final_norm != "class":
            x = norm(self.eps, "norm", self.final_norm == "all")(x)
        x = x.astype(jnp.float32)
        found = {"registers": x[:, first : first + self.registers], "patches": x[:, first + self.registers :]}
        if self.class_token:
            found["cls"] = x[:, 0] if self.final_norm != "class" else norm(self.eps, "norm")(x[:, 0]).astype(jnp.float32)
        if self.head == "map":
            found["pooled_map"] = self._attention_pooling(x, hidden)
        if self.head == "projection":
            make = nn.Dense(self.projection_dim, use_bias=False, dtype=self.dtype, param_dtype=jnp.float32, name="projection")
            found["projection"] = make(found["cls"]).astype(jnp.float32)
        return found

    def _tokens(self, images):
        """Embeds patches, adds positions, puts class token and registers in front."""
        embed = nn.Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, param_dtype=jnp.float32, name="patch_embed")
        rows, columns = (side // self.patch_size * self.patch_size for side in images.shape[1:3])
        x = embed(patchify(images[:, :rows, :columns], self.patch_size))
        first = int(self.class_token)
        learned = self.positions == "learned"
        table = self.param("positions", _small, (first + x.shape[1], self.width), jnp.float32) if learned else None
        x = x if table is None else x + table[first:]
        spread = lambda rows: jnp.broadcast_to(rows[None], (len(x), *rows.shape))  # noqa: E731
        front = []
        if self.class_token:
            token = self.param("cls_token", _small, (1, self.width), jnp.float32)
            front.append(spread(token if table is None else token + table[:1]))
        if self.registers:
            front.append(spread(self.param("register_tokens", _small, (self.registers, self.width), jnp.float32)))
        return jnp.concatenate([*front, x], axis=1)

    def _rotary(self, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
        """Cos and sin of (1); class token and registers are not turned."""
        if self.positions != "rotary":
            return None
        head, theta = self.width // self.num_heads, np.float32(100.0)
        frequencies = 1 / theta ** np.arange(0, 1, 4 / head, dtype=np.float32)
        centres = [(np.arange(size, dtype=np.float32) + 0.5) / np.float32(size) * 2 - 1 for size in grid]
        rows, columns = np.meshgrid(*centres, indexing="ij")
        angle = np.concatenate([2 * np.pi * axis.reshape(-1, 1) * frequencies for axis in (rows, columns)], axis=1)
        angle = np.tile(angle, 2).astype(np.float32)
        angle = np.concatenate([np.zeros((int(self.class_token) + self.registers, head), np.float32), angle])
        return np.cos(angle), np.sin(angle)

    def _attention_pooling(self, x, hidden: int):
        """A learned probe attends to all tokens; an MLP with a residual follows."""
        probe = self.param("head_probe", _small, (1, self.width), jnp.float32)
        kernel = self.param("head_qkv_kernel", _small, (self.width, 3 * self.width), jnp.float32).astype(self.dtype)
        bias = self.param("head_qkv_bias", nn.initializers.zeros, (3 * self.width,), jnp.float32).astype(self.dtype)
        parts = [slice(i * self.width, (i + 1) * self.width) for i in range(3)]
        probes = jnp.broadcast_to(probe[None], (len(x), 1, self.width))
        sources = [values.astype(self.dtype) for values in (probes, x, x)]
        project = [value @ kernel[:, part] + bias[part] for value, part in zip(sources, parts, strict=True)]
        q, k, v = (value.reshape(len(x), -1, self.num_heads, self.width // self.num_heads).swapaxes(1, 2) for value in project)
        pooled = dense(self.width, self.dtype, "head_proj")(attend(q, k, v, self.dtype, self.attention))
        normed = norm(self.eps, "head_norm")(pooled)
        pooled = pooled + Mlp(hidden, self.activation, self.dtype, name="head_mlp")(normed)
        return pooled[:, 0].astype(jnp.float32)


def resample_positions(
    table: Float[np.ndarray, "tokens width"],
    grid: tuple[int, int],
    antialias: bool = True,
    class_token: bool = True,
    offset: float = 0.0,
) -> Float[np.ndarray, "tokens2 width"]:
    """Resamples a position table to another grid, bicubic.

    Args:
        table: Class token first if there is one, then a square grid in row-major order.
        grid: (rows, columns).
        antialias: True as in DINOv2 with registers (a = -0.5), False as in all others (a = -0.75).
        class_token: Whether the first row is the class token's.
        offset: 0.1 in DINOv2's own code (torch.hub, dgm-eval), which scales by (size + 0.1) / side; 0 in transformers.

    Returns:
        The table for the grid.
    """
    first = int(class_token)
    side = round((len(table) - first) ** 0.5)
    if (side, side) == tuple(grid):
        return table
    scales = [None if offset == 0 else side / (size + offset) for size in grid]
    rows, columns = (
        resize_matrix(side, size, "bicubic", antialias, scale).astype(np.float64)
        for size, scale in zip(grid, scales, strict=True)
    )
    places = np.einsum("ih,hwc,jw->ijc", rows, table[first:].reshape(side, side, -1), columns)
    return np.concatenate([table[:first], places.reshape(-1, table.shape[1]).astype(np.float32)])
