"""SiT: the diffusion transformer with adaLN-Zero, trained by flow matching.

Source: Ma et al., "SiT", arXiv 2401.08740; willisma/SiT models.py (the forward pass, the initialisation and the sizes).
Its convention is this project's: t = 0 noise, the output is data - noise, t enters the embedding raw.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdrl.backbones.layers import (
    Attention,
    Mlp,
    dense,
    layer_norm,
    patchify,
    sincos_2d,
    timestep_embedding,
    unpatchify,
    xavier,
)

small_normal = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros


class Block(nn.Module):
    """A transformer block whose norms are modulated and whose residuals are gated by the condition (adaLN-Zero).

    Attributes:
        num_heads: Of the attention.
        mlp_ratio: Hidden width over width.
        dtype: Of the matmuls.
    """

    num_heads: int
    mlp_ratio: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], c: Float[Array, "batch width"]) -> Float[Array, "..."]:
        """Applies the block.

        Args:
            x: Tokens.
            c: Time plus label embedding, before its SiLU.

        Returns:
            Tokens.
        """
        width = x.shape[-1]
        modulation = dense(6 * width, self.dtype, "adaLN_modulation", zeros)(jax.nn.silu(c))[:, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)
        h = layer_norm(x) * (1 + scale_a) + shift_a
        x = x + gate_a * Attention(self.num_heads, self.dtype, name="attn")(h)
        h = layer_norm(x) * (1 + scale_m) + shift_m
        return x + gate_m * Mlp(int(width * self.mlp_ratio), True, self.dtype, name="mlp")(h)


class SiT(nn.Module):
    """The network: patches, blocks, a modulated linear head.

    Attributes:
        sample_shape: (height, width, channels) of a sample.
        num_classes: Without the null class, which is one more row of the label table.
        patch_size: Pixels a token's side.
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width over width.
        frequency_dim: Of the time features (256 in the paper).
        learn_sigma: The head has twice the channels, of which the first half is the velocity, as in the published weights.
        dtype: Of the matmuls; weights, norms, softmax and output stay float32.
        remat: "none", or "full": blocks are computed again in the backward pass.
        scan_layers: One compiled block run `depth` times, its weights stacked under "blocks" (leading axis: the block): the
            gradient of SiT-XL/2 compiles in 4 s instead of 25 s on CPU. False: unrolled, block i under "blocks_i". XLA's cost
            analysis counts a scanned block once, so count operations unrolled.
    """

    sample_shape: tuple[int, int, int]
    num_classes: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    frequency_dim: int = 256
    learn_sigma: bool = True
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w c"], t: Float[Array, " batch"], y: Int[Array, " batch"]
    ) -> Float[Array, "batch h w c"]:
        """Evaluates the velocity.

        Args:
            x: Noisy samples.
            t: Times in [0, 1].
            y: Classes; `num_classes` is the null class.

        Returns:
            float32 velocity.
        """
        h, w, channels = self.sample_shape
        grid = (h // self.patch_size, w // self.patch_size)
        make = partial(dense, dtype=self.dtype)
        tokens = make(self.width, name="x_embedder")(patchify(x, self.patch_size))
        tokens = tokens + sincos_2d(grid, self.width)
        time = timestep_embedding(t, self.frequency_dim)
        time = jax.nn.silu(make(self.width, name="t_embedder_0", kernel_init=small_normal)(time))
        time = make(self.width, name="t_embedder_2", kernel_init=small_normal)(time)
        table = self.param("y_embedder", small_normal, (self.num_classes + 1, self.width), jnp.float32)
        c = time + table[y]
        block = nn.remat(Block) if self.remat == "full" else Block
        if self.scan_layers:
            scanned = nn.scan(
                lambda block, tokens, c: (block(tokens, c), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
                length=self.depth,
            )
            tokens, _ = scanned(block(self.num_heads, self.mlp_ratio, self.dtype, name="blocks"), tokens, c)
        else:
            for index in range(self.depth):
                tokens = block(self.num_heads, self.mlp_ratio, self.dtype, name=f"blocks_{index}")(tokens, c)
        modulation = make(2 * self.width, name="final_adaLN_modulation", kernel_init=zeros)(jax.nn.silu(c))[:, None]
        shift, scale = jnp.split(modulation, 2, axis=-1)
        out_channels = channels * (2 if self.learn_sigma else 1)
        tokens = layer_norm(tokens) * (1 + scale) + shift
        tokens = make(self.patch_size**2 * out_channels, name="final_linear", kernel_init=zeros)(tokens)
        out = unpatchify(tokens.astype(jnp.float32), self.patch_size, grid)
        return out[..., :channels]


__all__ = ["Block", "SiT", "xavier"]
