"""JiT ("just image transformer"): predicts the clean image from pixels with large patches; seen here as a velocity.

Source: Li and He, "Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720; LTH14/JiT model_jit.py, denoiser.py
and util/model_util.py at cbc743a. Its convention is this project's: t = 0 noise, raw t in the embedding. With the network's image x'
and z = t x + (1 - t) e,

    v = (x' - z) / max(1 - t, t_eps),     t_eps = 0.05                       (1)

At 512 and 1024 pixels the authors' noise is s = 2 and 4 times as large: z = t x + (1 - t) s e. Then z / s is on the linear path of the
data x / s, which is how it is seen here (`noise_scale` of the network, `scale` of the tokenizer "pixels"):

    v(z / s, t) = ((x' / s) - (z / s)) / max(1 - t, t_eps)                   (2)

A bottleneck embeds patches, RMSNorm and SwiGLU take the places of LayerNorm and GELU, q and k are normalised and turned (rotary), and
from block `context_start` on `context_length` class tokens stand in front of the image's; they are cut off before the last layer.
The authors drop activations in the middle half of JiT-H and JiT-G while they pretrain; nothing is dropped here.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdrl.backbones.layers import dense, embed_time, patchify, sincos_2d, small_normal, timestep_embedding, unpatchify
from jaxdrl.backbones.rotary import RotaryBlock, RotaryHead, rotary_2d
from jaxdrl.backbones.stack import rematerialised, run_blocks

# width, depth, heads, bottleneck, context_start
SIZES = {
    "B": (768, 12, 12, 128, 4),
    "L": (1024, 24, 16, 128, 8),
    "H": (1280, 32, 16, 256, 10),
    "G": (1664, 40, 16, 256, 10),
}
T_EPS = 0.05


class JiT(nn.Module):
    """The network, from noisy pixels to clean pixels.

    Attributes:
        sample_shape: (height, width, channels).
        num_classes: Without the null class, which is one more row of the label table.
        patch_size: Pixels a token's side.
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        bottleneck: Channels between the two halves of the patch embedding.
        context_start: The block before which the class tokens are put in.
        context_length: How many class tokens.
        mlp_ratio: The SwiGLU's hidden width is two thirds of this times the width.
        frequency_dim: Of the time features.
        noise_scale: s of (2); read by `backbones.create`, whose samples are then z / s.
        dtype: Of the matmuls; weights, norms, logits and output stay float32.
        remat: What the backward pass computes again, a name in `stack.REMAT`.
        scan_layers: See `stack.py`.
        attention: One of `attention.IMPLEMENTATIONS`.
    """

    sample_shape: tuple[int, int, int]
    num_classes: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    bottleneck: int = 128
    context_start: int = 4
    context_length: int = 32
    mlp_ratio: float = 4.0
    frequency_dim: int = 256
    noise_scale: float = 1.0
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w c"], t: Float[Array, " batch"], y: Int[Array, " batch"]
    ) -> Float[Array, "batch h w c"]:
        """Predicts the clean image.

        Args:
            x: Noisy images.
            t: Times in [0, 1].
            y: Classes; `num_classes` is the null class.

        Returns:
            float32 images, not clipped.
        """
        h, w, channels = self.sample_shape
        grid, head_dim = (h // self.patch_size, w // self.patch_size), self.width // self.num_heads
        make = partial(dense, dtype=self.dtype)
        table = self.param("y_embedder", small_normal, (self.num_classes + 1, self.width), jnp.float32)
        positions = self.param("in_context_posemb", small_normal, (self.context_length, self.width), jnp.float32)
        label = jnp.asarray(table)[y]
        c = (embed_time(timestep_embedding(t, self.frequency_dim), self.width, self.dtype) + label)[:, None]
        squeezed = nn.Dense(self.bottleneck, use_bias=False, dtype=self.dtype, param_dtype=jnp.float32, name="x_embedder_proj1")
        tokens = make(self.width, name="x_embedder_proj2")(squeezed(patchify(x, self.patch_size)))
        tokens = tokens + sincos_2d(grid, self.width)
        block = rematerialised(RotaryBlock, self.remat, self.scan_layers)
        hidden = int(int(self.width * self.mlp_ratio) * 2 / 3)
        blocks = partial(block, self.num_heads, hidden, True, self.dtype, self.attention)
        start = self.context_start if self.context_length > 0 else self.depth
        tokens = run_blocks(blocks, tokens, (c, rotary_2d(grid, head_dim)), range(start), self.scan_layers)
        if start < self.depth:
            context = jnp.broadcast_to(label[:, None], (len(x), self.context_length, self.width)) + positions
            tokens = jnp.concatenate([context, tokens], axis=1)
            rotary = rotary_2d(grid, head_dim, prefix=self.context_length)
            tokens = run_blocks(blocks, tokens, (c, rotary), range(start, self.depth), self.scan_layers)
        tokens = tokens[:, -grid[0] * grid[1] :]
        out = RotaryHead(self.patch_size**2 * channels, self.dtype, name="final_layer")(tokens, c)
        return unpatchify(out, self.patch_size, grid)


def velocity(
    image: Float[Array, "batch h w c"], z: Float[Array, "batch h w c"], t: Float[Array, " batch"]
) -> Float[Array, "batch h w c"]:
    """The velocity (1) of a predicted image.

    Args:
        image: x', the network's output.
        z: The noisy image that it was computed from.
        t: Times.

    Returns:
        data - noise.
    """
    return (image - z) / jnp.maximum(1 - t, T_EPS)[:, None, None, None]
