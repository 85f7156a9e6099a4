"""Pre-LayerNorm transformer blocks as vision transformers have them: learned norms, q, k and v from one layer, optional extras."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdrl.backbones.attention import attend
from jaxdrl.backbones.layers import Mlp, dense, fused_heads
from jaxdrl.backbones.partition import own_tokens
from jaxdrl.backbones.rotary import SwiGLU, Table


def norm(eps: float, name: str, affine: bool = True) -> nn.LayerNorm:
    """A LayerNorm in float32 by the two-pass variance.

    Args:
        eps: Added to the variance.
        name: In the parameter tree.
        affine: Whether it has a scale and a bias.

    Returns:
        The layer.
    """
    return nn.LayerNorm(
        epsilon=eps, use_fast_variance=False, use_scale=affine, use_bias=affine, param_dtype=jnp.float32, name=name
    )


def rotate_halves(x: Float[Array, "... tokens head"], cos: Table, sin: Table) -> Float[Array, "... tokens head"]:
    """Turns channel i with channel i + head / 2 (DINOv3's pairing; `rotary.rotate` turns neighbours).

    Args:
        x: Queries or keys.
        cos: [tokens, head]; 1 where a token is not turned.
        sin: [tokens, head]; 0 there.

    Returns:
        Turned queries or keys.
    """
    first, second = jnp.split(x, 2, axis=-1)
    return (x * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)


class ViTAttention(nn.Module):
    """Multi-head attention, with rotary q and k if tables are given.

    Attributes:
        num_heads: Divides the width.
        qkv_bias: Whether q, k and v have a bias.
        dtype: Of the matmuls.
        attention: One of `attention.IMPLEMENTATIONS`.
        causal: See `attention.attend`.
    """

    num_heads: int
    qkv_bias: bool = True
    dtype: Any = jnp.float32
    attention: str = "einsum"
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], rotary: tuple[Table, Table] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Attends.

        Args:
            x: Tokens.
            rotary: cos and sin.

        Returns:
            Tokens.
        """
        q, k, v = fused_heads(x, self.num_heads, self.dtype, self.qkv_bias)
        if rotary is not None:
            q, k = rotate_halves(q, *rotary), rotate_halves(k, *rotary)
        return own_tokens(dense(x.shape[-1], self.dtype, "proj")(attend(q, k, v, self.dtype, self.attention, self.causal)))


class ViTBlock(nn.Module):
    """Attention and MLP with residuals, each scaled channel by channel if asked for (LayerScale).

    Attributes:
        num_heads: Attention heads.
        hidden: Of the MLP.
        eps: Of the norms.
        layer_scale: Whether residuals are scaled.
        dtype: Of the matmuls.
        attention: One of `attention.IMPLEMENTATIONS`.
        activation: Of the MLP, a name in `layers.ACTIVATIONS`.
        gated: The MLP is a SwiGLU instead.
        qkv_bias: Whether q, k and v have a bias.
        causal: See `attention.attend`.
    """

    num_heads: int
    hidden: int
    eps: float = 1e-6
    layer_scale: bool = False
    dtype: Any = jnp.float32
    attention: str = "einsum"
    activation: str = "gelu"
    gated: bool = False
    qkv_bias: bool = True
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], rotary: tuple[Table, Table] | None = None
    ) -> Float[Array, "batch tokens width"]:
        """Applies the block.

        Args:
            x: Tokens.
            rotary: See `ViTAttention`.

        Returns:
            Tokens.
        """
        attention = ViTAttention(self.num_heads, self.qkv_bias, self.dtype, self.attention, self.causal, name="attn")
        x = x + self._scaled(attention(norm(self.eps, "norm1")(x), rotary), "layer_scale1")
        mlp = (
            SwiGLU(self.hidden, self.dtype, name="mlp")
            if self.gated
            else Mlp(self.hidden, self.activation, self.dtype, name="mlp")
        )
        return x + self._scaled(mlp(norm(self.eps, "norm2")(x)), "layer_scale2")

    def _scaled(self, residual: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return residual
        return residual * self.param(name, nn.initializers.ones, (residual.shape[-1],), jnp.float32)
