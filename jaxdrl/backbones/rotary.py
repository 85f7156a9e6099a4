"""Layers of the transformers with rotary positions (JiT, RAE's DiT^DH): RMSNorm, SwiGLU, and attention that rotates q and k."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdrl.backbones.attention import attend
from jaxdrl.backbones.layers import Fused, dense, fused_heads
from jaxdrl.backbones.partition import own_tokens

# cos or sin; NumPy's until a rematerialised block turns it into an argument.
Table = Float[Array, "tokens head"] | Float[np.ndarray, "tokens head"]


def rotary_2d(grid: tuple[int, int], head_dim: int, prefix: int = 0, theta: float = 10000.0) -> tuple[np.ndarray, np.ndarray]:
    """Tables of the two-dimensional rotary embedding: the first half of a head turns with the row, the second with the column.

    Frequencies are theta^(-2 i / (head_dim / 2)), each for two neighbouring channels; positions are whole numbers. Source:
    LTH14/JiT and bytetriper/RAE, VisionRotaryEmbeddingFast.

    Args:
        grid: (rows, columns) of tokens.
        head_dim: Channels of a head, a multiple of 4.
        prefix: Tokens in front of the grid that are not turned.
        theta: Base of the frequencies.

    Returns:
        cos and sin, float32 [prefix + rows * columns, head_dim].
    """
    dim = head_dim // 2
    frequencies = np.repeat(1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)), 2).astype(np.float32)
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [position.reshape(-1, 1).astype(np.float32) * frequencies for position in (rows, columns)]
    angle = np.concatenate([np.zeros((prefix, head_dim), np.float32), np.concatenate(angles, axis=1)])
    return np.cos(angle), np.sin(angle)


def rotate(x: Float[Array, "... tokens head"], cos: Table, sin: Table) -> Float[Array, "... tokens head"]:
    """Turns neighbouring pairs of channels: (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
        x: Queries or keys.
        cos: From `rotary_2d`.
        sin: From `rotary_2d`.

    Returns:
        Turned queries or keys, in x's dtype.
    """
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return (x * cos + turned * sin).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight, in float32.

    Attributes:
        eps: Added to the mean square.
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Normalises the last axis.

        Args:
            x: Activations.

        Returns:
            float32 activations.
        """
        weight = self.param("weight", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * weight


class SwiGLU(nn.Module):
    """silu(x1) x2 of one fused layer, then a second layer.

    Attributes:
        hidden: Width between.
        dtype: Of the matmuls.
    """

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Applies the two layers.

        Args:
            x: Tokens.

        Returns:
            Tokens.
        """
        both = Fused(2, self.hidden, self.dtype, name="w12")(x)
        gate, value = both[..., 0, :], both[..., 1, :]
        return own_tokens(dense(x.shape[-1], self.dtype, "w3")(jax.nn.silu(gate) * value))


class RotaryAttention(nn.Module):
    """Multi-head attention with rotary q and k, normalised before if asked for; softmax in float32.

    Attributes:
        num_heads: Divides the width.
        qk_norm: Whether q and k pass an RMSNorm of their own, as in JiT.
        dtype: Of the matmuls.
        attention: One of `attention.IMPLEMENTATIONS`.
    """

    num_heads: int
    qk_norm: bool = False
    dtype: Any = jnp.float32
    attention: str = "einsum"

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"], rotary: tuple[Table, Table]) -> Float[Array, "batch tokens width"]:
        """Attends.

        Args:
            x: Tokens.
            rotary: cos and sin, [tokens, width / num_heads].

        Returns:
            Tokens.
        """
        q, k, v = fused_heads(x, self.num_heads, self.dtype)
        if self.qk_norm:
            q, k = RMSNorm(name="q_norm")(q).astype(self.dtype), RMSNorm(name="k_norm")(k).astype(self.dtype)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        return own_tokens(dense(x.shape[-1], self.dtype, "proj")(attend(q, k, v, self.dtype, self.attention)))


class RotaryBlock(nn.Module):
    """RMSNorm, rotary attention and SwiGLU, modulated and gated by a condition for the sample or for each token (adaLN-Zero).

    Attributes:
        num_heads: Of the attention.
        hidden: Of the SwiGLU.
        qk_norm: See `RotaryAttention`.
        dtype: Of the matmuls.
        attention: See `RotaryAttention`.
    """

    num_heads: int
    hidden: int
    qk_norm: bool = False
    dtype: Any = jnp.float32
    attention: str = "einsum"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        c: Float[Array, "batch #tokens width"],
        rotary: tuple[Table, Table],
    ) -> Float[Array, "batch tokens width"]:
        """Applies the block.

        Args:
            x: Tokens.
            c: The condition, one row a sample or one a token, before its SiLU.
            rotary: See `RotaryAttention`.

        Returns:
            Tokens.
        """
        width = x.shape[-1]
        modulation = dense(6 * width, self.dtype, "adaLN_modulation", nn.initializers.zeros)(jax.nn.silu(c))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)
        h = RMSNorm(name="norm1")(x) * (1 + scale_a) + shift_a
        attention = RotaryAttention(self.num_heads, self.qk_norm, self.dtype, self.attention, name="attn")
        x = x + gate_a * attention(h, rotary)
        h = RMSNorm(name="norm2")(x) * (1 + scale_m) + shift_m
        return x + gate_m * SwiGLU(self.hidden, self.dtype, name="mlp")(h)


class RotaryHead(nn.Module):
    """The last layer: RMSNorm, modulation, linear.

    Attributes:
        features: Outputs a token.
        dtype: Of the matmuls.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], c: Float[Array, "batch #tokens width"]
    ) -> Float[Array, "batch tokens features"]:
        """Applies the layer.

        Args:
            x: Tokens.
            c: The condition, before its SiLU.

        Returns:
            float32 outputs.
        """
        zeros = nn.initializers.zeros
        modulation = dense(2 * x.shape[-1], self.dtype, "adaLN_modulation", zeros)(jax.nn.silu(c))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        x = RMSNorm(name="norm_final")(x) * (1 + scale) + shift
        return dense(self.features, self.dtype, "linear", zeros)(x).astype(jnp.float32)
