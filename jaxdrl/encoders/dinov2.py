"""DINOv2 with registers: the encoder of RAE.

Source: Oquab et al., arXiv 2304.07193; Darcet et al., arXiv 2309.16588 (registers); huggingface/transformers
modeling_dinov2_with_registers.py. Patches of 14 pixels; the class token first, registers after it and without positions; LayerScale;
exact GELU; LayerNorm with eps 1e-6 on all tokens at the end.

The position table belongs to one grid. Files have it for 37 x 37; `resample_positions` (bicubic with antialiasing, as this model's
code does; DINOv2 without registers differs) makes the one for another grid, once, when weights are converted.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdrl.backbones.layers import dense, patchify
from jaxdrl.backbones.vit import ViTBlock, norm

# width, depth, heads
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2(nn.Module):
    """The network.

    Attributes:
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        patch_size: Pixels a token's side.
        registers: Register tokens.
        final_affine: Whether the last norm has a scale and a bias; RAE takes them off.
        dtype: Of the matmuls.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int = 14
    registers: int = 4
    final_affine: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w 3"]) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            images: Normalised with `MEAN` and `STD`; the side is a multiple of the patch size.

        Returns:
            "pooled" (class token), "registers" and "patches" [batch, tokens, width], after the last norm.
        """
        x = dense(self.width, self.dtype, "patch_embed")(patchify(images, self.patch_size))
        small = nn.initializers.normal(0.02)
        token = self.param("cls_token", small, (1, self.width), jnp.float32)
        positions = self.param("positions", small, (1 + x.shape[1], self.width), jnp.float32)
        extra = self.param("register_tokens", small, (self.registers, self.width), jnp.float32)
        spread = lambda rows: jnp.broadcast_to(rows[None], (len(x), *rows.shape))  # noqa: E731
        x = jnp.concatenate([spread(token + positions[:1]), spread(extra), x + positions[1:]], axis=1)
        for index in range(self.depth):
            x = ViTBlock(self.num_heads, 4 * self.width, 1e-6, True, self.dtype, name=f"blocks_{index}")(x)
        x = norm(1e-6, "norm", self.final_affine)(x)
        return {"pooled": x[:, 0], "registers": x[:, 1 : 1 + self.registers], "patches": x[:, 1 + self.registers :]}


def resample_positions(table: Float[np.ndarray, "tokens width"], grid: tuple[int, int]) -> Float[np.ndarray, "tokens2 width"]:
    """Resamples the position table to another grid: bicubic (a = -0.5), antialiased.

    Args:
        table: Class token first, then a square grid in row-major order.
        grid: (rows, columns).

    Returns:
        The table for the grid.
    """
    side = round((len(table) - 1) ** 0.5)
    if (side, side) == tuple(grid):
        return table
    places = jnp.asarray(table[1:]).reshape(side, side, -1)
    resized = jax.image.resize(places, (*grid, table.shape[1]), "bicubic", antialias=True)
    return np.concatenate([table[:1], np.asarray(resized).reshape(-1, table.shape[1])])


def bicubic_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Torch's bicubic interpolation of one axis without antialiasing: a = -0.75, half-pixel centres, repeated edges.

    Args:
        source: Pixels before.
        target: Pixels after.

    Returns:
        The matrix; apply it to both axes.
    """
    a, matrix = -0.75, np.zeros((target, source))
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    for row, centre in enumerate(centres):
        first = int(np.floor(centre)) - 1
        for k in range(4):
            d = abs(centre - (first + k))
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[row, np.clip(first + k, 0, source - 1)] += near if d <= 1 else far if d < 2 else 0.0
    return matrix.astype(np.float32)
