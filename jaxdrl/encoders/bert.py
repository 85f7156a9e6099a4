r"""BERT that looks at an image: BLIP's image-grounded text encoder, what ImageReward reads a prompt with.

Sources: Devlin et al., BERT, arXiv 1810.04805; Li et al., BLIP, arXiv 2201.12086 (cross-attention between self-attention and MLP);
salesforce/BLIP models/med.py in its mode "multimodal". With words w, positions p and image tokens V,

    h_0 = LN(E[w] + p)                                    no segment embeddings                              (1)
    a   = LN(h + SelfAttention(h))                        every token sees every word, no padding          (2)
    c   = LN(a + CrossAttention(a, V))                    keys and values are linear in V                    (3)
    h'  = LN(c + W_2 gelu(W_1 c))                         exact GELU                                         (4)

The norms come last (post-norm), all with eps 1e-12; the last block's h' is the output.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdrl.backbones.attention import attend
from jaxdrl.backbones.layers import Fused, Mlp, dense, fused_heads
from jaxdrl.backbones.stack import rematerialised, run_blocks
from jaxdrl.backbones.vit import norm

_EPS = 1e-12
_small = nn.initializers.normal(0.02)


class CrossAttention(nn.Module):
    """Attention of one sequence to another.

    Attributes:
        num_heads: Divides the width.
        dtype: Of the matmuls.
        attention: One of `attention.IMPLEMENTATIONS`.
    """

    num_heads: int
    dtype: Any = jnp.float32
    attention: str = "einsum"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], context: Float[Array, "batch keys width2"]
    ) -> Float[Array, "batch tokens width"]:
        """Attends.

        Args:
            x: Where the queries come from.
            context: Where the keys and the values come from.

        Returns:
            Tokens.
        """
        width = x.shape[-1]
        q = dense(width, self.dtype, "query")(x)
        both = Fused(2, width, self.dtype, name="kv")(context)
        k, v = both[..., 0, :], both[..., 1, :]
        q, k, v = (part.reshape(*part.shape[:2], self.num_heads, -1).swapaxes(1, 2) for part in (q, k, v))
        return dense(width, self.dtype, "proj")(attend(q, k, v, self.dtype, self.attention))


class SelfAttention(nn.Module):
    """Attention of the text to itself, padding unseen.

    Attributes:
        num_heads: Divides the width.
        dtype: Of the matmuls.
        attention: One of `attention.IMPLEMENTATIONS`.
    """

    num_heads: int
    dtype: Any = jnp.float32
    attention: str = "einsum"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"]
    ) -> Float[Array, "batch tokens width"]:
        """Attends.

        Args:
            x: Tokens.
            mask: Which of them are text.

        Returns:
            Tokens.
        """
        q, k, v = fused_heads(x, self.num_heads, self.dtype)
        return dense(x.shape[-1], self.dtype, "proj")(attend(q, k, v, self.dtype, self.attention, mask=mask))


class BertBlock(nn.Module):
    """Equations (2) to (4).

    Attributes:
        num_heads: Attention heads.
        hidden: Of the MLP.
        dtype: Of the matmuls; norms and softmax stay float32.
        attention: One of `attention.IMPLEMENTATIONS`.
    """

    num_heads: int
    hidden: int
    dtype: Any = jnp.float32
    attention: str = "einsum"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "batch tokens"],
        image: Float[Array, "batch places width2"],
    ) -> Float[Array, "batch tokens width"]:
        """Applies the block.

        Args:
            x: Tokens.
            mask: Which of them are text.
            image: Image tokens.

        Returns:
            Tokens.
        """
        how = (self.num_heads, self.dtype, self.attention)
        x = norm(_EPS, "attn_norm")(x + SelfAttention(*how, name="attn")(x, mask))  # (2)
        x = norm(_EPS, "cross_norm")(x + CrossAttention(*how, name="cross")(x, image))  # (3)
        return norm(_EPS, "mlp_norm")(x + Mlp(self.hidden, "gelu", self.dtype, name="mlp")(x))  # (4)


class ImageGroundedTextEncoder(nn.Module):
    """The network.

    Attributes:
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        hidden: Of the MLPs; 0: four times the width.
        vocabulary: Rows of the token table.
        length: Rows of the position table.
        dtype: Of the matmuls; norms and softmax stay float32.
        attention: One of `attention.IMPLEMENTATIONS`.
        remat: What the backward pass computes again, a name in `stack.REMAT`.
        scan_layers: See `backbones/stack.py`.
    """

    width: int
    depth: int
    num_heads: int
    hidden: int = 0
    vocabulary: int = 30524
    length: int = 512
    dtype: Any = jnp.float32
    attention: str = "einsum"
    remat: str = "none"
    scan_layers: bool = False

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch tokens"], mask: Bool[Array, "batch tokens"], image: Float[Array, "batch places width2"]
    ) -> Float[Array, "batch tokens width"]:
        """Encodes text in the sight of an image.

        Args:
            ids: Tokens, at most `length` a text.
            mask: Which of them are text, the first at least; what stands at the others has no effect on these.
            image: Image tokens.

        Returns:
            float32 tokens.
        """
        table = self.param("tokens", _small, (self.vocabulary, self.width), jnp.float32)
        places = self.param("positions", _small, (self.length, self.width), jnp.float32)
        x = norm(_EPS, "norm")(jnp.take(table, ids, axis=0) + places[: ids.shape[1]])  # (1)
        block = partial(
            rematerialised(BertBlock, self.remat, self.scan_layers),
            *(self.num_heads, self.hidden or 4 * self.width, self.dtype, self.attention),
        )
        return run_blocks(block, x, (mask, image), range(self.depth), self.scan_layers).astype(jnp.float32)
