"""Stable Diffusion's autoencoder: 8 x 8 pixels to one latent pixel of 4 channels, and back.

Source: huggingface/diffusers models/autoencoders/autoencoder_kl.py, vae.py (AutoencoderKL of stabilityai/sd-vae-ft-ema and -mse);
Rombach et al., arXiv 2112.10752. The encoder gives a Gaussian for each latent pixel,

    mean, log variance = quant_conv(encoder(x)),    z = s (mean + std e),    s = 0.18215                   (1)
    x = decoder(post_quant_conv(z / s))                                                                    (2)

SiT, DiT and REPA train on samples of (1), SpectralDiT on its mean. Images are in [-1, 1]; the log variance is clipped to [-30, 20].
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

SCALE = 0.18215


def _norm(groups: int, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=1e-6, use_fast_variance=False, name=name)


def _conv(features: int, dtype: Any, name: str, size: int = 3) -> nn.Conv:
    padding = size // 2
    return nn.Conv(features, (size, size), padding=padding, dtype=dtype, param_dtype=jnp.float32, name=name)


class Resnet(nn.Module):
    """Two normalised convolutions and a residual, through a 1 x 1 convolution where the channels change.

    Attributes:
        features: Channels out.
        groups: Of the norms.
        dtype: Of the convolutions.
    """

    features: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w d"]:
        """Applies the block."""
        h = _conv(self.features, self.dtype, "conv1")(jax.nn.silu(_norm(self.groups, "norm1")(x)))
        h = _conv(self.features, self.dtype, "conv2")(jax.nn.silu(_norm(self.groups, "norm2")(h)))
        if x.shape[-1] != self.features:
            x = _conv(self.features, self.dtype, "conv_shortcut", 1)(x)
        return x + h


class SpatialAttention(nn.Module):
    """One head of attention over all places, in the middle of both halves.

    Attributes:
        groups: Of the norm.
        dtype: Of the matmuls.
    """

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Applies the block."""
        b, height, width, c = x.shape
        tokens = _norm(self.groups, "group_norm")(x).reshape(b, height * width, c)
        make = partial(nn.Dense, c, dtype=self.dtype, param_dtype=jnp.float32)
        q, k, v = (make(name=f"to_{name}")(tokens) for name in "qkv")
        logits = jnp.einsum("bid,bjd->bij", q, k).astype(jnp.float32) * c**-0.5
        out = jnp.einsum("bij,bjd->bid", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
        return x + make(name="to_out_0")(out).reshape(x.shape)


class Middle(nn.Module):
    """Resnet, attention, resnet.

    Attributes:
        groups: Of the norms.
        dtype: Of the matmuls.
    """

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        """Applies the blocks."""
        x = Resnet(x.shape[-1], self.groups, self.dtype, name="resnets_0")(x)
        x = SpatialAttention(self.groups, self.dtype, name="attentions_0")(x)
        return Resnet(x.shape[-1], self.groups, self.dtype, name="resnets_1")(x)


class Resample(nn.Module):
    """Halves or doubles height and width with one convolution.

    Attributes:
        up: Double (nearest neighbour first), or halve (padded at the bottom and the right only).
        dtype: Of the convolution.
    """

    up: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
        """Applies the layer."""
        if self.up:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            return _conv(x.shape[-1], self.dtype, "conv")(x)
        make = partial(nn.Conv, strides=2, padding=((0, 1), (0, 1)), dtype=self.dtype, param_dtype=jnp.float32)
        return make(x.shape[-1], (3, 3), name="conv")(x)


class Level(nn.Module):
    """The resnets of one resolution, and the way to the next.

    Attributes:
        features: Channels.
        depth: Resnets.
        resample: "up", "down" or "" at the end.
        groups: Of the norms.
        dtype: Of the convolutions.
    """

    features: int
    depth: int
    resample: str
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 d"]:
        """Applies the blocks."""
        for index in range(self.depth):
            x = Resnet(self.features, self.groups, self.dtype, name=f"resnets_{index}")(x)
        if self.resample:
            x = Resample(self.resample == "up", self.dtype, name=f"{self.resample}samplers_0")(x)
        return x


class Half(nn.Module):
    """The encoder or the decoder.

    Attributes:
        up: Whether it is the decoder.
        outputs: Channels out.
        widths: Channels of the levels, from pixels to latents.
        depth: Resnets a level of the encoder; the decoder has one more.
        groups: Of the norms.
        dtype: Of the convolutions.
    """

    up: bool
    outputs: int
    widths: tuple[int, ...]
    depth: int
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 d"]:
        """Applies the network."""
        widths = self.widths[::-1] if self.up else self.widths
        kind, depth = ("up", self.depth + 1) if self.up else ("down", self.depth)
        x = _conv(widths[0], self.dtype, "conv_in")(x)
        if self.up:
            x = Middle(self.groups, self.dtype, name="mid_block")(x)
        for index, width in enumerate(widths):
            resample = kind if index < len(widths) - 1 else ""
            x = Level(width, depth, resample, self.groups, self.dtype, name=f"{kind}_blocks_{index}")(x)
        if not self.up:
            x = Middle(self.groups, self.dtype, name="mid_block")(x)
        x = jax.nn.silu(_norm(self.groups, "conv_norm_out")(x))
        return _conv(self.outputs, self.dtype, "conv_out")(x)


@dataclass(frozen=True, kw_only=True)
class SdVae:
    """The autoencoder as pure functions of a parameter tree {"encoder", "quant_conv", "post_quant_conv", "decoder"}.

    Attributes:
        widths: Channels of the levels.
        depth: Resnets a level of the encoder.
        latent_channels: Of a latent.
        image_channels: Of an image.
        groups: Of the norms.
        dtype: "float32" or "bfloat16", of convolutions and matmuls.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    groups: int = 32
    dtype: str = "float32"

    @property
    def factor(self) -> int:
        """Pixels a latent pixel's side."""
        return 2 ** (len(self.widths) - 1)

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of one latent.

        Args:
            image_shape: (height, width, channels).

        Returns:
            (height / 8, width / 8, 4) at the published sizes.

        Raises:
            ValueError: If the factor does not divide height and width.
        """
        height, width, _ = image_shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"the tokenizer halves {len(self.widths) - 1} times; {height} x {width} is no multiple of {self.factor}"
            )
        return height // self.factor, width // self.factor, self.latent_channels

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Draws weights (for tests; published ones are converted).

        Args:
            key: A key.

        Returns:
            Parameters, float32.
        """
        keys, modules = jax.random.split(key, 4), self._modules()
        side = 2 * self.factor
        latent = (1, 2, 2, self.latent_channels)
        shapes = {
            "encoder": (1, side, side, self.image_channels),
            "quant_conv": (*latent[:3], 2 * self.latent_channels),
            "post_quant_conv": latent,
            "decoder": latent,
        }
        drawn = zip(keys, shapes.items(), strict=True)
        return {name: modules[name].init(k, jnp.zeros(shape))["params"] for k, (name, shape) in drawn}

    def moments(
        self, params: PyTree, images: Float[Array, "batch h w c"]
    ) -> tuple[Float[Array, "batch h2 w2 d"], Float[Array, "batch h2 w2 d"]]:
        """Mean and standard deviation of (1), before scaling.

        Args:
            params: Weights.
            images: In [-1, 1].

        Returns:
            float32 mean and std.
        """
        modules = self._modules()
        hidden = modules["encoder"].apply({"params": params["encoder"]}, images)
        both = modules["quant_conv"].apply({"params": params["quant_conv"]}, hidden).astype(jnp.float32)
        mean, log_variance = jnp.split(both, 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30, 20))

    def encode(
        self, params: PyTree, images: Float[Array, "batch h w c"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch h2 w2 d"]:
        """Latents (1).

        Args:
            params: Weights.
            images: In [-1, 1].
            key: Draws e; None gives the mean (which is the mode as well).

        Returns:
            float32 latents, scaled.
        """
        mean, std = self.moments(params, images)
        noise = 0.0 if key is None else std * jax.random.normal(key, mean.shape)
        return SCALE * (mean + noise)

    def decode(self, params: PyTree, latents: Float[Array, "batch h w d"], batch_size: int = 0) -> Float[Array, "batch h2 w2 c"]:
        """Images (2), differentiable.

        Args:
            params: Weights.
            latents: Scaled latents.
            batch_size: Latents decoded at a time, one part after the other, to bound memory; 0: all at once.

        Returns:
            float32 images, not clipped.
        """
        modules = self._modules()

        def decode(part):
            hidden = modules["post_quant_conv"].apply({"params": params["post_quant_conv"]}, part / SCALE)
            return modules["decoder"].apply({"params": params["decoder"]}, hidden).astype(jnp.float32)

        if batch_size in (0, len(latents)):
            return decode(latents)
        return jax.lax.map(lambda latent: decode(latent[None])[0], latents, batch_size=batch_size)

    def _modules(self) -> dict[str, nn.Module]:
        dtype = jnp.bfloat16 if self.dtype == "bfloat16" else jnp.float32
        common = {"widths": self.widths, "depth": self.depth, "groups": self.groups, "dtype": dtype}
        return {
            "encoder": Half(up=False, outputs=2 * self.latent_channels, **common),
            "quant_conv": nn.Conv(2 * self.latent_channels, (1, 1), dtype=dtype, param_dtype=jnp.float32),
            "post_quant_conv": nn.Conv(self.latent_channels, (1, 1), dtype=dtype, param_dtype=jnp.float32),
            "decoder": Half(up=True, outputs=self.image_channels, **common),
        }
