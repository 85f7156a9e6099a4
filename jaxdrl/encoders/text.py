"""CLIP's text encoder: what preference rewards compare an image with.

Source: Radford et al., arXiv 2103.00020; huggingface/transformers modeling_clip.py (CLIPTextModelWithProjection). Token and position
embeddings, causal pre-norm blocks, a norm on all tokens; the feature is the token at the end of the text, the largest id of the
vocabulary, and its projection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.backbones.stack import rematerialised, run_blocks
from jaxdrl.backbones.vit import ViTBlock, norm

# The text towers of the vision encoders of the same names: width, depth, heads, projection.
SIZES: dict[str, tuple[int, int, int, int, str]] = {
    "clip-vit-base-patch32-text": (512, 12, 8, 512, "quick_gelu"),
    "clip-vit-base-patch16-text": (512, 12, 8, 512, "quick_gelu"),
    "clip-vit-large-patch14-text": (768, 12, 12, 768, "quick_gelu"),
    "openclip-vit-huge-patch14-text": (1024, 24, 16, 1024, "gelu"),
    "openclip-vit-bigg-patch14-text": (1280, 32, 20, 1280, "gelu"),
}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class TextTransformer(nn.Module):
    """The network.

    Attributes:
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        projection_dim: Of the projection.
        hidden: Of the MLPs; 0: four times the width.
        vocabulary: Rows of the token table.
        length: Rows of the position table.
        activation: Of the MLPs.
        dtype: Of the matmuls.
        remat: What the backward pass computes again, a name in `stack.REMAT`.
        scan_layers: See `backbones/stack.py`.
    """

    width: int
    depth: int
    num_heads: int
    projection_dim: int
    hidden: int = 0
    vocabulary: int = 49408
    length: int = 77
    activation: str = "quick_gelu"
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False

    @nn.compact
    def __call__(self, ids: Int[Array, "batch length"]) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            ids: Tokens; what follows the end of the text is not seen by it.

        Returns:
            float32 "tokens" [batch, length, width], "pooled" [batch, width] and "projection" [batch, projection_dim].
        """
        small = nn.initializers.normal(0.02)
        table = self.param("tokens", small, (self.vocabulary, self.width), jnp.float32)
        places = self.param("positions", small, (self.length, self.width), jnp.float32)
        x = jnp.take(table, ids, axis=0) + places[: ids.shape[1]]
        block = partial(
            rematerialised(ViTBlock, self.remat, self.scan_layers),
            *(self.num_heads, self.hidden or 4 * self.width, 1e-5, False, self.dtype, "einsum", self.activation),
            causal=True,
        )
        x = run_blocks(block, x, (), range(self.depth), self.scan_layers)
        x = norm(1e-5, "norm")(x).astype(jnp.float32)
        pooled = jnp.take_along_axis(x, ids.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        make = nn.Dense(self.projection_dim, use_bias=False, dtype=self.dtype, param_dtype=jnp.float32, name="projection")
        return {"tokens": x, "pooled": pooled, "projection": make(pooled).astype(jnp.float32)}


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A text encoder without its module system.

    Attributes:
        name: As given to `create_text`.
        fields: Sizes and options, by name.
        init: key -> params, float32.
        features: (params, ids [batch, length]) -> "tokens", "pooled" and "projection".
        length: Tokens at most.
    """

    name: str
    fields: tuple[tuple[str, Any], ...]
    init: Callable[[Key[Array, ""]], PyTree]
    features: Callable[[PyTree, Int[Array, "batch length"]], dict[str, Float[Array, "..."]]]
    length: int


def create_text(name: str, **overrides: Any) -> TextEncoder:
    """Builds a text encoder.

    Args:
        name: One of `SIZES`.
        **overrides: Fields of `TextTransformer`; dtype as "float32" or "bfloat16".

    Returns:
        The encoder.

    Raises:
        ValueError: If the name or a field is unknown.
    """
    if name not in SIZES:
        raise ValueError(f"text encoder {name!r} is unknown; choose one of {', '.join(SIZES)}")
    keys = ("width", "depth", "num_heads", "projection_dim", "activation")
    fields = {**dict(zip(keys, SIZES[name], strict=True)), "dtype": "float32", **overrides}
    unknown = sorted(set(fields) - set(TextTransformer.__dataclass_fields__))
    if unknown or fields["dtype"] not in _DTYPES:
        raise ValueError(f"text encoder {name!r}: unknown fields {unknown} or dtype {fields['dtype']!r}")
    module = TextTransformer(**fields | {"dtype": _DTYPES[fields["dtype"]]})

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, module.length), jnp.int32))["params"]

    def features(params: PyTree, ids: Any) -> Any:
        return module.apply({"params": params}, ids)

    items = tuple(sorted(fields.items()))
    return TextEncoder(name=name, fields=items, init=init, features=features, length=module.length)
