"""DiT^DH: RAE's diffusion transformer with a wide, shallow head, on high-dimensional latents.

Source: Zheng et al., "Diffusion Transformers with Representation Autoencoders", arXiv 2510.11690; bytetriper/RAE
src/stage2/models/DDT.py (DiTwDDTHead) at a4d18c4. A deep tower of `width` gives each token a condition; a head of `head_width` and
`head_depth` blocks, conditioned token by token, makes the velocity. Details that a port can miss:

- c = silu(t + y), and every block takes the SiLU of c once more;
- the head's condition is silu(t + s), with the tower's tokens s and the time embedding t before any activation;
- the tower alone has position embeddings; both have rotary ones; tower and head embed the latent each for itself;
- the time features are [sin, cos] of 2 pi t W, with a fixed random W that belongs to the weights.

Its own convention is t = 1 noise and noise - data. Here, as everywhere in this project, t = 0 is noise and the velocity is data - noise:

    v(x, t) = - v_RAE(x, 1 - t)                                              (1)
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdrl.backbones.layers import dense, embed_time, patchify, sincos_2d, small_normal, unpatchify
from jaxdrl.backbones.rotary import RotaryBlock, RotaryHead, rotary_2d
from jaxdrl.backbones.stack import rematerialised, run_blocks

# width, depth, heads of the tower. The head has width 2048, depth 2, 16 heads.
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


class DiTDH(nn.Module):
    """The network in its authors' convention: noise - data at t = 1 noise.

    Attributes:
        sample_shape: (height, width, channels) of a latent.
        num_classes: Without the null class, which is one more row of the label table.
        patch_size: Latent pixels a token's side (1 in the published models).
        width: Channels of the tower.
        depth: Blocks of the tower.
        num_heads: Of the tower.
        head_width: Channels of the head.
        head_depth: Blocks of the head.
        head_num_heads: Of the head.
        mlp_ratio: The SwiGLU's hidden width is two thirds of this times the width.
        frequency_dim: Twice the number of time frequencies.
        dtype: Of the matmuls; weights, norms, softmax and output stay float32.
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
    head_width: int = 2048
    head_depth: int = 2
    head_num_heads: int = 16
    mlp_ratio: float = 4.0
    frequency_dim: int = 512
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w c"], t: Float[Array, " batch"], y: Int[Array, " batch"]
    ) -> Float[Array, "batch h w c"]:
        """Evaluates the network.

        Args:
            x: Noisy latents.
            t: The authors' times: 1 is noise.
            y: Classes; `num_classes` is the null class.

        Returns:
            float32 noise - data.
        """
        h, w, channels = self.sample_shape
        grid = (h // self.patch_size, w // self.patch_size)
        make = partial(dense, dtype=self.dtype)
        patches = patchify(x, self.patch_size)
        table = self.param("y_embedder", small_normal, (self.num_classes + 1, self.width), jnp.float32)
        frequencies = self.param("t_embedder_W", nn.initializers.normal(1.0), (self.frequency_dim // 2,), jnp.float32)
        angle = 2 * jnp.pi * t.astype(jnp.float32)[:, None] * jax.lax.stop_gradient(frequencies)
        time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        time = embed_time(time, self.width, self.dtype)[:, None]
        c = jax.nn.silu(time + jnp.asarray(table)[y][:, None])
        block = rematerialised(RotaryBlock, self.remat, self.scan_layers)

        def blocks(heads: int, width: int):
            return partial(block, heads, int(2 / 3 * int(width * self.mlp_ratio)), False, self.dtype, self.attention)

        s = make(self.width, name="s_embedder")(patches) + sincos_2d(grid, self.width)
        rotary = rotary_2d(grid, self.width // self.num_heads)
        s = run_blocks(blocks(self.num_heads, self.width), s, (c, rotary), range(self.depth), self.scan_layers)
        s = jax.nn.silu(time + s)
        if self.head_width != self.width:
            s = make(self.head_width, name="s_projector")(s)
        tokens = make(self.head_width, name="x_embedder")(patches)
        rotary = rotary_2d(grid, self.head_width // self.head_num_heads)
        head = range(self.depth, self.depth + self.head_depth)
        tokens = run_blocks(blocks(self.head_num_heads, self.head_width), tokens, (s, rotary), head, self.scan_layers)
        out = RotaryHead(self.patch_size**2 * channels, self.dtype, name="final_layer")(tokens, s)
        return unpatchify(out, self.patch_size, grid)
