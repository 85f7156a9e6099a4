"""RAE: a frozen DINOv2 as the encoder, a vision transformer as the decoder, patch tokens as latents.

Source: Zheng et al., arXiv 2510.11690; bytetriper/RAE src/stage1/{rae.py,encoders/dinov2.py,decoders/decoder.py}. With images in [-1, 1],

    f = patch tokens of DINOv2-with-registers on the resized, normalised image, last norm without scale and bias     (1)
    z = (f - mean) / sqrt(var + 1e-5),    mean and var for each place and channel                                  (2)
    x = decoder(z sqrt(var + 1e-5) + mean),    back from the encoder's normalisation                               (3)

While the decoder is trained, noise tau u e with u ~ U(0, 1) for each sample is added to f (tau = 0.8); nothing at inference. The
images are resized to the encoder's side by torch's bicubic interpolation without antialiasing (256 -> 224).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.backbones.layers import dense, sincos_2d, unpatchify
from jaxdrl.backbones.vit import ViTBlock, norm
from jaxdrl.encoders.preprocess import Preprocess
from jaxdrl.encoders.published import IMAGENET
from jaxdrl.encoders.vit import VisionTransformer

EPS = 1e-5


class RaeDecoder(nn.Module):
    """The decoder: a class token of its own, fixed positions, pre-norm blocks, one linear layer to pixels.

    Attributes:
        grid: (rows, columns) of latents.
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        hidden: Of the MLPs.
        patch_size: Pixels a latent's side.
        dtype: Of the matmuls.
    """

    grid: tuple[int, int]
    width: int
    depth: int
    num_heads: int
    hidden: int
    patch_size: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "batch tokens dim"]) -> Float[Array, "batch h w 3"]:
        """Decodes.

        Args:
            features: f of (1).

        Returns:
            float32 images in the encoder's normalisation.
        """
        x = dense(self.width, self.dtype, "decoder_embed")(features)
        token = self.param("trainable_cls_token", nn.initializers.zeros, (1, self.width), jnp.float32)
        x = jnp.concatenate(
            [jnp.broadcast_to(token[None], (len(x), 1, self.width)), x + sincos_2d(self.grid, self.width)], axis=1
        )
        for index in range(self.depth):
            x = ViTBlock(self.num_heads, self.hidden, 1e-12, False, self.dtype, name=f"decoder_layers_{index}")(x)
        x = dense(self.patch_size**2 * 3, self.dtype, "decoder_pred")(norm(1e-12, "decoder_norm")(x))
        return unpatchify(x[:, 1:].astype(jnp.float32), self.patch_size, self.grid)


@dataclass(frozen=True, kw_only=True)
class Rae:
    """The tokenizer as pure functions of a parameter tree {"encoder", "decoder", "mean", "var"}.

    Attributes:
        image_size: Side of an image.
        encoder_size: Side that the encoder sees, a multiple of 14.
        encoder: (width, depth, heads) of DINOv2.
        decoder: (width, depth, heads, hidden) of the decoder; the default is ViT-XL.
        encoder_patch: Pixels a token's side in the encoder.
        dtype: "float32" or "bfloat16", of the matmuls.
    """

    image_size: int = 256
    encoder_size: int = 224
    encoder: tuple[int, int, int] = (768, 12, 12)
    decoder: tuple[int, int, int, int] = (1152, 28, 16, 4096)
    encoder_patch: int = 14
    dtype: str = "float32"

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of latents."""
        side = self.encoder_size // self.encoder_patch
        return side, side

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of one latent.

        Args:
            image_shape: Must be (image_size, image_size, 3).

        Returns:
            (rows, columns, encoder width).

        Raises:
            ValueError: If the images have another size.
        """
        if tuple(image_shape) != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"this tokenizer takes images of {self.image_size} x {self.image_size} x 3, got {tuple(image_shape)}"
            )
        return (*self.grid, self.encoder[0])

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Draws weights (for tests; published ones are converted).

        Args:
            key: A key.

        Returns:
            Parameters, float32; mean 0 and var 1.
        """
        first, second = jax.random.split(key)
        shape = (*self.grid, self.encoder[0])
        images = jnp.zeros((1, self.encoder_size, self.encoder_size, 3))
        return {
            "encoder": self._encoder().init(first, images)["params"],
            "decoder": self._decoder().init(second, jnp.zeros((1, shape[0] * shape[1], shape[2])))["params"],
            "mean": jnp.zeros(shape),
            "var": jnp.ones(shape),
        }

    def features(self, params: PyTree, images: Float[Array, "batch h w 3"]) -> Float[Array, "batch tokens dim"]:
        """Patch tokens (1).

        Args:
            params: Weights.
            images: In [-1, 1].

        Returns:
            float32 [batch, tokens, dim].
        """
        size = (self.encoder_size, self.encoder_size)
        images = Preprocess(size=size, kernel="bicubic", antialias=False, mean=IMAGENET["mean"], std=IMAGENET["std"])(images)
        outputs: Any = self._encoder().apply({"params": params["encoder"]}, images)
        return outputs["patches"].astype(jnp.float32)

    def encode(
        self, params: PyTree, images: Float[Array, "batch h w 3"], key: Key[Array, ""] | None = None, noise: float = 0.0
    ) -> Float[Array, "batch rows columns dim"]:
        """Latents (2).

        Args:
            params: Weights.
            images: In [-1, 1].
            key: Draws the decoder training's noise; needed when `noise` > 0.
            noise: tau.

        Returns:
            float32 latents.

        Raises:
            ValueError: If noise is asked for without a key.
        """
        found = self.features(params, images)
        if noise > 0:
            if key is None:
                raise ValueError(f"noise {noise} needs a key")
            size_key, noise_key = jax.random.split(key)
            size = noise * jax.random.uniform(size_key, (len(found), 1, 1))
            found = found + size * jax.random.normal(noise_key, found.shape)
        grid = found.reshape(len(found), *self.grid, -1)
        return (grid - params["mean"]) / jnp.sqrt(params["var"] + EPS)

    def decode(self, params: PyTree, latents: Float[Array, "batch rows columns dim"]) -> Float[Array, "batch h w 3"]:
        """Images (3), differentiable.

        Args:
            params: Weights.
            latents: z.

        Returns:
            float32 images, about [-1, 1], not clipped.
        """
        found = latents * jnp.sqrt(params["var"] + EPS) + params["mean"]
        images: Any = self._decoder().apply({"params": params["decoder"]}, found.reshape(len(found), -1, found.shape[-1]))
        return 2 * (images * np.array(IMAGENET["std"], np.float32) + np.array(IMAGENET["mean"], np.float32)) - 1

    def _encoder(self) -> VisionTransformer:
        width, depth, heads = self.encoder
        fields = {"registers": 4, "layer_scale": True, "final_norm": "affine-free", "dtype": self._dtype()}
        return VisionTransformer(width, depth, heads, self.encoder_patch, **fields)

    def _decoder(self) -> RaeDecoder:
        width, depth, heads, hidden = self.decoder
        return RaeDecoder(self.grid, width, depth, heads, hidden, self.image_size // self.grid[0], self._dtype())

    def _dtype(self) -> Any:
        return jnp.bfloat16 if self.dtype == "bfloat16" else jnp.float32
