"""Pre-LayerNorm transformer blocks as vision transformers have them: learned norms, exact GELU, q, k, v with bias."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdrl.backbones.layers import Attention, Mlp


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


class ViTBlock(nn.Module):
    """Attention and MLP with residuals, each scaled channel by channel if asked for (LayerScale).

    Attributes:
        num_heads: Attention heads.
        hidden: Of the MLP.
        eps: Of the norms.
        layer_scale: Whether residuals are scaled.
        dtype: Of the matmuls.
        attention: One of `attention.IMPLEMENTATIONS`.
    """

    num_heads: int
    hidden: int
    eps: float = 1e-6
    layer_scale: bool = False
    dtype: Any = jnp.float32
    attention: str = "einsum"

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Applies the block.

        Args:
            x: Tokens.

        Returns:
            Tokens.
        """
        residual = Attention(self.num_heads, self.dtype, attention=self.attention, name="attn")(norm(self.eps, "norm1")(x))
        x = x + self._scaled(residual, "layer_scale1")
        residual = Mlp(self.hidden, False, self.dtype, name="mlp")(norm(self.eps, "norm2")(x))
        return x + self._scaled(residual, "layer_scale2")

    def _scaled(self, residual: jax.Array, name: str) -> jax.Array:
        if not self.layer_scale:
            return residual
        return residual * self.param(name, nn.initializers.ones, (residual.shape[-1],), jnp.float32)
