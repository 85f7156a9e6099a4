"""ConvNeXt and ConvNeXt V2.

Sources: Liu et al., arXiv 2201.03545; Woo et al., V2, arXiv 2301.00808; huggingface/transformers modeling_convnext.py and
modeling_convnextv2.py. A 4 x 4 stem; blocks of a 7 x 7 depthwise convolution, LayerNorm, two linear layers with exact GELU between, and a
residual; 2 x 2 convolutions between the stages. V1 scales the residual channel by channel; V2 normalises between the linear layers,

    G_c = |x_c| over all places,    x <- w (x G / (mean_c G + 1e-6)) + b + x                       (1)

The pooled feature is the mean over all places, normalised once more (eps 1e-12 where all other norms have 1e-6).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdrl.backbones.layers import dense
from jaxdrl.backbones.vit import norm


class GlobalResponseNorm(nn.Module):
    """The layer (1) of V2."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Applies the layer, in float32.

        Args:
            x: Maps.

        Returns:
            Maps.
        """
        weight = self.param("weight", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        # The square root has no derivative at 0: a map that is zero everywhere stays at G = 0 and passes no gradient.
        squares = jnp.sum(x * x, axis=(1, 2), keepdims=True)
        positive = squares > 0
        size = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
        return weight * (x * size / (size.mean(axis=-1, keepdims=True) + 1e-6)) + bias + x


class Block(nn.Module):
    """One residual block.

    Attributes:
        v2: Which version.
        dtype: Of the convolutions and matmuls.
    """

    v2: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Applies the block.

        Args:
            x: Maps.

        Returns:
            Maps.
        """
        width = x.shape[-1]
        depthwise = nn.Conv(
            width,
            (7, 7),
            padding=3,
            feature_group_count=width,
            dtype=self.dtype,
            param_dtype=jnp.float32,
            name="dwconv",
        )
        h = norm(1e-6, "layernorm")(depthwise(x))
        h = jax.nn.gelu(dense(4 * width, self.dtype, "pwconv1")(h), approximate=False)
        if self.v2:
            h = GlobalResponseNorm(name="grn")(h)
        h = dense(width, self.dtype, "pwconv2")(h)
        if not self.v2:
            h = h * self.param("layer_scale", nn.initializers.constant(1e-6), (width,), jnp.float32)
        return x + h


class ConvNeXt(nn.Module):
    """The network, on preprocessed images.

    Attributes:
        widths: Channels of the four stages.
        depths: Blocks of the four stages.
        v2: Which version.
        dtype: Of the convolutions and matmuls; norms stay float32.
        remat: "none", or "full": blocks are computed again in the backward pass.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    v2: bool = False
    dtype: Any = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w 3"]) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            images: Preprocessed; the sides are at least 32.

        Returns:
            float32 "pooled_map" [batch, width] and "patches", the last map [batch, places, width].
        """
        block = nn.remat(Block) if self.remat == "full" else Block
        x = self._conv(self.widths[0], 4, "stem")(images)
        x = norm(1e-6, "stem_norm")(x)
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if stage:
                x = self._conv(width, 2, f"down_{stage}")(norm(1e-6, f"down_norm_{stage}")(x))
            for index in range(depth):
                x = block(self.v2, self.dtype, name=f"stages_{stage}_{index}")(x)
        x = x.astype(jnp.float32)
        pooled = norm(1e-12, "norm")(x.mean(axis=(1, 2)))
        return {"pooled_map": pooled.astype(jnp.float32), "patches": x.reshape(len(x), -1, x.shape[-1])}

    def _conv(self, width: int, size: int, name: str) -> nn.Conv:
        return nn.Conv(width, (size, size), (size, size), padding="VALID", dtype=self.dtype, param_dtype=jnp.float32, name=name)
