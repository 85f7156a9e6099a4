"""A small vision transformer, smooth everywhere: the reward's encoder in the self-contained recipes.

The shape of DINOv2's (arXiv 2304.07193) in small: class token, learned positions, pre-LayerNorm blocks with exact GELU, a final
LayerNorm. The pooled feature is the class token, or the class token beside the mean of the patch tokens, as in DINOv2's linear
evaluation: self-distillation makes the class token blind to what its views change, and patch tokens see more.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdrl.backbones.layers import Attention, Mlp, dense, patchify


class SmallViT(nn.Module):
    """The network.

    Attributes:
        image_shape: (h, w, c).
        width: Channels.
        depth: Blocks.
        feature_dim: `width` for the class token alone, or `2 * width` with the mean of the patch tokens.
        patch_size: Pixels a token's side.
        num_heads: Attention heads.
    """

    image_shape: tuple[int, int, int]
    width: int = 48
    depth: int = 3
    feature_dim: int = 48
    patch_size: int = 2
    num_heads: int = 2

    @property
    def pooling(self) -> str:
        """What "pooled" is made of."""
        return "class token" if self.feature_dim == self.width else "class token, mean patch token"

    def check(self) -> None:
        """Checks the sizes.

        Raises:
            ValueError: If they do not fit each other.
        """
        if self.feature_dim not in (self.width, 2 * self.width):
            raise ValueError(f"small-vit: feature_dim ({self.feature_dim}) must be width or twice width ({self.width})")
        if self.image_shape[0] % self.patch_size or self.image_shape[1] % self.patch_size:
            raise ValueError(f"small-vit: patch_size {self.patch_size} does not divide {self.image_shape[:2]}")
        if self.width % self.num_heads:
            raise ValueError(f"small-vit: num_heads {self.num_heads} does not divide width {self.width}")

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            images: In [-1, 1].

        Returns:
            "pooled", "patches", and "global": the class token, which objectives train.
        """
        x = dense(self.width, jnp.float32, "patch_embedding")(patchify(images, self.patch_size))
        normal = nn.initializers.normal(0.02)
        token = self.param("class_token", normal, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positions", normal, (1, x.shape[1], self.width))
        norm = lambda name: nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)  # noqa: E731
        for index in range(self.depth):
            x = x + Attention(self.num_heads, name=f"attention_{index}")(norm(f"norm1_{index}")(x))
            x = x + Mlp(4 * self.width, "gelu", name=f"mlp_{index}")(norm(f"norm2_{index}")(x))
        x = norm("norm")(x)
        token, patches = x[:, 0], x[:, 1:]
        both = jnp.concatenate([token, patches.mean(axis=1)], axis=-1)
        return {"pooled": both[:, : self.feature_dim], "patches": patches, "global": token}
