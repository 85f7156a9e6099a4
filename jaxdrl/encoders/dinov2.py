"""DINOv2, with and without registers: the encoder of DRL's reward (large, class token), of RAE and of REPA's targets.

Source: Oquab et al., arXiv 2304.07193; Darcet et al., arXiv 2309.16588 (registers); huggingface/transformers modeling_dinov2.py and
modeling_dinov2_with_registers.py. Patches of 14 pixels; the class token first, registers after it and without positions; LayerScale;
exact GELU; LayerNorm with eps 1e-6 on all tokens at the end.

The position table belongs to one grid. Files have it for 37 x 37; `resample_positions` makes the one for another grid, once, when
weights are converted. The two kinds differ in how: bicubic without antialiasing (a = -0.75), with registers antialiased (a = -0.5).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdrl.backbones.layers import dense, patchify
from jaxdrl.backbones.vit import ViTBlock, norm
from jaxdrl.encoders.preprocess import resize_matrix

# width, depth, heads
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2(nn.Module):
    """The network.

    Attributes:
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        patch_size: Pixels a token's side.
        registers: Register tokens, 0 or 4 in the published models.
        final_affine: Whether the last norm has a scale and a bias; RAE takes them off.
        dtype: Of the matmuls.
        attention: See `backbones.attention`; R1 needs second derivatives, which cudnn does not have.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int = 14
    registers: int = 4
    final_affine: bool = True
    dtype: Any = jnp.float32
    attention: str = "einsum"

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w 3"]) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            images: Normalised with `MEAN` and `STD`; the sides are multiples of the patch size.

        Returns:
            "cls" (class token), "registers" and "patches" [batch, tokens, width], after the last norm.
        """
        x = dense(self.width, self.dtype, "patch_embed")(patchify(images, self.patch_size))
        small = nn.initializers.normal(0.02)
        token = self.param("cls_token", small, (1, self.width), jnp.float32)
        positions = self.param("positions", small, (1 + x.shape[1], self.width), jnp.float32)
        spread = lambda rows: jnp.broadcast_to(rows[None], (len(x), *rows.shape))  # noqa: E731
        parts = [spread(token + positions[:1]), x + positions[1:]]
        if self.registers:
            parts.insert(1, spread(self.param("register_tokens", small, (self.registers, self.width), jnp.float32)))
        x = jnp.concatenate(parts, axis=1)
        for index in range(self.depth):
            block = ViTBlock(
                self.num_heads, 4 * self.width, 1e-6, True, self.dtype, attention=self.attention, name=f"blocks_{index}"
            )
            x = block(x)
        x = norm(1e-6, "norm", self.final_affine)(x).astype(jnp.float32)
        return {"cls": x[:, 0], "registers": x[:, 1 : 1 + self.registers], "patches": x[:, 1 + self.registers :]}


def resample_positions(
    table: Float[np.ndarray, "tokens width"], grid: tuple[int, int], antialias: bool = True
) -> Float[np.ndarray, "tokens2 width"]:
    """Resamples the position table to another grid, bicubic.

    Args:
        table: Class token first, then a square grid in row-major order.
        grid: (rows, columns).
        antialias: True as in the model with registers, False as in the one without.

    Returns:
        The table for the grid.
    """
    side = round((len(table) - 1) ** 0.5)
    if (side, side) == tuple(grid):
        return table
    rows, columns = (resize_matrix(side, size, "bicubic", antialias).astype(np.float64) for size in grid)
    places = np.einsum("ih,hwc,jw->ijc", rows, table[1:].reshape(side, side, -1), columns)
    return np.concatenate([table[:1], places.reshape(-1, table.shape[1]).astype(np.float32)])
