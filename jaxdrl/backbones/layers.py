"""Layers shared by the transformer backbones and the small encoders."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdrl.backbones.attention import Heads, attend
from jaxdrl.backbones.partition import lay_out, own_tokens, tensor_ways

xavier = nn.initializers.xavier_uniform()
small_normal = nn.initializers.normal(0.02)


def sincos_2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """SiT's fixed position embedding: the first half of the channels encodes the column, the second the row.

    Args:
        grid: (rows, columns) of tokens.
        width: Channels, a multiple of 4.

    Returns:
        float32 [rows * columns, width], computed in float64. Source: willisma/SiT models.py, get_2d_sincos_pos_embed.
    """
    omega = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")

    def encode(position: np.ndarray) -> np.ndarray:
        angle = position.reshape(-1, 1).astype(np.float64) * omega
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    return np.concatenate([encode(columns), encode(rows)], axis=1).astype(np.float32)


def timestep_embedding(t: Float[Array, " batch"], dim: int, shift: float = 0.0) -> Float[Array, "batch dim"]:
    """SiT's time features, [cos, sin] of t exp(-ln(1e4) i / (dim / 2 - shift)), of the raw t in [0, 1].

    Args:
        t: Times.
        dim: Even.
        shift: 0; diffusers has 1.

    Returns:
        float32 features.
    """
    half = dim // 2
    frequencies = jnp.exp(-np.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angle = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def patchify(x: Float[Array, "batch h w c"], patch: int) -> Float[Array, "batch tokens dim"]:
    """Cuts images into row-major tokens whose last axis is (row in patch, column in patch, channel).

    Args:
        x: Images.
        patch: Divides height and width.

    Returns:
        Tokens.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(x: Float[Array, "batch tokens dim"], patch: int, grid: tuple[int, int]) -> Float[Array, "batch h w c"]:
    """The inverse of `patchify`.

    Args:
        x: Tokens.
        patch: As given to `patchify`.
        grid: (rows, columns) of tokens.

    Returns:
        Images.
    """
    b, _, dim = x.shape
    c = dim // patch**2
    x = x.reshape(b, *grid, patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, grid[0] * patch, grid[1] * patch, c)


def dense(features: int, dtype: Any, name: str, kernel_init: Callable = xavier) -> nn.Dense:
    """A linear layer with float32 weights whose product is computed in `dtype`.

    Args:
        features: Outputs.
        dtype: float32 or bfloat16.
        name: In the parameter tree.
        kernel_init: Xavier uniform by default; the bias starts at 0.

    Returns:
        The layer.
    """
    return nn.Dense(features, dtype=dtype, param_dtype=jnp.float32, kernel_init=kernel_init, name=name)


def layer_norm(x: Float[Array, "..."], eps: float = 1e-6) -> Float[Array, "..."]:
    """LayerNorm over the last axis without scale or bias, in float32 and by the two-pass variance.

    Args:
        x: Activations.
        eps: Added to the variance.

    Returns:
        float32 activations.
    """
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


class Fused(nn.Module):
    """Equal linear layers side by side in one, which computes them together.

    Cut over the mesh's axis "tensor", each device computes its share of each, where the columns of the one layer in equal shares would
    give a device all of one layer and nothing of the next.

    Attributes:
        parts: How many.
        features: Outputs of one.
        dtype: Of the matmul.
        use_bias: Whether there is one.
    """

    parts: int
    features: int
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens parts features"]:
        """Applies all layers.

        Args:
            x: Tokens.

        Returns:
            One row of outputs a layer.
        """
        outputs = self.parts * self.features
        kernel = self.param("kernel", xavier, (x.shape[-1], outputs), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (outputs,), jnp.float32) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if tensor_ways() > 1 and self.features % tensor_ways() == 0:
            kernel = lay_out(kernel.reshape(-1, self.parts, self.features), "any", None, "tensor")
            y = jnp.einsum("bnc,cpf->bnpf", x, kernel)
            y = y if bias is None else y + bias.reshape(self.parts, self.features)
            return lay_out(y, "batch", None, None, "tensor")
        y = x @ kernel
        y = y if bias is None else y + bias
        return y.reshape(*y.shape[:-1], self.parts, self.features)


def fused_heads(
    x: Float[Array, "batch tokens width"], num_heads: int, dtype: Any, bias: bool = True
) -> tuple[Heads, Heads, Heads]:
    """q, k and v by one linear layer "qkv" of the module that calls this.

    Args:
        x: Tokens.
        num_heads: Divides the width.
        dtype: Of the matmul.
        bias: Whether the layer has one.

    Returns:
        q, k, v.
    """
    qkv = Fused(3, x.shape[-1], dtype, bias, name="qkv")(x)
    q, k, v = qkv.reshape(*x.shape[:2], 3, num_heads, -1).transpose(2, 0, 3, 1, 4)
    return q, k, v


def embed_time(features: Float[Array, "batch dim"], width: int, dtype: Any) -> Float[Array, "batch width"]:
    """Linear, SiLU, linear: "t_embedder_0" and "t_embedder_2" of the module that calls this.

    Args:
        features: Of the time.
        width: Outputs.
        dtype: Of the matmuls.

    Returns:
        The time embedding.
    """
    hidden = jax.nn.silu(dense(width, dtype, "t_embedder_0", small_normal)(features))
    return dense(width, dtype, "t_embedder_2", small_normal)(hidden)


class Attention(nn.Module):
    """timm's multi-head attention: fused qkv with bias, softmax in float32, output projection with bias.

    Attributes:
        num_heads: Divides the width.
        dtype: Of the matmuls.
        qk_norm: Whether q and k pass a LayerNorm of their own (scale and bias over a head's channels, eps 1e-5).
        attention: One of `attention.IMPLEMENTATIONS`.
    """

    num_heads: int
    dtype: Any = jnp.float32
    qk_norm: bool = False
    attention: str = "einsum"

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Attends.

        Args:
            x: Tokens.

        Returns:
            Tokens.
        """
        q, k, v = fused_heads(x, self.num_heads, self.dtype)
        if self.qk_norm:
            norm = lambda name: nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float32, name=name)  # noqa: E731
            q, k = norm("q_norm")(q).astype(self.dtype), norm("k_norm")(k).astype(self.dtype)
        return own_tokens(dense(x.shape[-1], self.dtype, "proj")(attend(q, k, v, self.dtype, self.attention)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
    """fc1, an activation, fc2.

    Attributes:
        hidden: Width between.
        activation: "gelu_tanh" (SiT), "gelu" (ViT, exact) or "quick_gelu" (OpenAI's CLIP).
        dtype: Of the matmuls.
    """

    hidden: int
    activation: str = "gelu_tanh"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Applies the two layers.

        Args:
            x: Tokens.

        Returns:
            Tokens.
        """
        hidden = lay_out(dense(self.hidden, self.dtype, "fc1")(x), "batch", None, "tensor")
        hidden = ACTIVATIONS[self.activation](hidden)
        return own_tokens(dense(x.shape[-1], self.dtype, "fc2")(hidden))
