"""A small convolutional network, smooth everywhere: the judge's encoder in the self-contained recipes.

Stages of two 3 x 3 convolutions (the second halves the side), LayerNorm over channels and exact GELU; the last map is projected
to the feature. Convolutions are written as shifted slices and one matmul: on CPU that compiles and runs faster than XLA's
convolution at these sizes, and the numbers are the same.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdrl.backbones.layers import dense


class SmallConvNet(nn.Module):
    """The network.

    Attributes:
        image_shape: (h, w, c).
        width: Channels of the first stage, doubled in each further one.
        depth: Stages; each halves the side.
        feature_dim: Of the pooled feature.
    """

    image_shape: tuple[int, int, int]
    width: int = 24
    depth: int = 2
    feature_dim: int = 64

    @property
    def pooling(self) -> str:
        """What "pooled" is made of."""
        return "flattened map, linear, LayerNorm"

    def check(self) -> None:
        """Checks the sizes.

        Raises:
            ValueError: If the image cannot be halved `depth` times.
        """
        if self.image_shape[0] % 2**self.depth or self.image_shape[1] % 2**self.depth:
            raise ValueError(f"small-convnet: {self.image_shape[:2]} cannot be halved {self.depth} times")

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w c"]) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            images: In [-1, 1].

        Returns:
            "pooled", "patches" (the last map) and "global", the same as "pooled".
        """
        x = images
        for stage in range(self.depth):
            for index, stride in enumerate((1, 2)):
                x = dense(self.width * 2**stage, jnp.float32, f"conv_{stage}_{index}")(neighbourhoods(x, stride))
                x = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=f"norm_{stage}_{index}")(x)
                x = jax.nn.gelu(x, approximate=False)
        pooled = dense(self.feature_dim, jnp.float32, "projection")(x.reshape(x.shape[0], -1))
        pooled = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="norm")(pooled)
        return {"pooled": pooled, "patches": x.reshape(x.shape[0], -1, x.shape[-1]), "global": pooled}


def neighbourhoods(x: Float[Array, "batch h w c"], stride: int) -> Float[Array, "batch rows columns dim"]:
    """The 3 x 3 neighbourhood of every `stride`-th pixel, zero outside: a dense layer on it is a convolution.

    Args:
        x: Maps.
        stride: 1 or 2.

    Returns:
        The last axis is (row, column, channel).
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, axis=-1)
