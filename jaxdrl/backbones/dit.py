r"""The diffusion transformer with adaLN-Zero, as SiT, DiT and REPA use it, with SpectralDiT's gate as an option.

Sources: Ma et al., "SiT", arXiv 2401.08740, willisma/SiT models.py (the forward pass, the initialisation and the sizes); Peebles and
Xie, "DiT", arXiv 2212.09748, facebookresearch/DiT models.py; Yu et al., "REPA", arXiv 2410.06940, sihyun-yu/REPA models/sit.py.

One network, three conventions. This project's is SiT's: t = 0 noise, the output is data - noise, t enters the embedding raw.

REPA (t = 1 noise, noise - data):   v(x, t) = - v_REPA(x, 1 - t)                                                (1)

DiT predicts the noise of a diffusion with 1000 steps and a_n = prod_{i <= n} (1 - beta_i), beta from 1e-4 to 2e-2:
x_n = sqrt(a_n) x_0 + sqrt(1 - a_n) e. At equal ratio of signal to noise, x' = x_t / s with s^2 = t^2 + (1 - t)^2 is such a sample:

    sqrt(a_n / (1 - a_n)) = t / (1 - t),    n interpolated between steps, t cut to the range of the diffusion   (2)
    e = eps(x', n),    x_0 = (x' - sqrt(1 - a_n) e) / sqrt(a_n),    v(x_t, t) = x_0 - e                         (3)
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdrl.backbones.layers import (
    Attention,
    Mlp,
    dense,
    embed_time,
    layer_norm,
    patchify,
    sincos_2d,
    small_normal,
    timestep_embedding,
    unpatchify,
    xavier,
)
from jaxdrl.backbones.spectral import SpectralGate
from jaxdrl.backbones.stack import block_params, rematerialised, run_blocks

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
zeros = nn.initializers.zeros


class Block(nn.Module):
    """A transformer block whose norms are modulated and whose residuals are gated by the condition (adaLN-Zero).

    Attributes:
        num_heads: Of the attention.
        mlp_ratio: Hidden width over width.
        dtype: Of the matmuls.
        spectral: See `spectral.SpectralGate`; "none" leaves the gate out.
        gate_scale: Of the gate.
        grid: (rows, columns) of tokens, for the gate.
        qk_norm: See `layers.Attention`.
        attention: One of `attention.IMPLEMENTATIONS`.
        mlp_norm_eps: Of the norm before the MLP.
    """

    num_heads: int
    mlp_ratio: float
    dtype: Any = jnp.float32
    spectral: str = "none"
    gate_scale: float = 1.0
    grid: tuple[int, int] = (0, 0)
    qk_norm: bool = False
    attention: str = "einsum"
    mlp_norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], c: Float[Array, "batch width"], time: Float[Array, "batch width"]
    ) -> Float[Array, "..."]:
        """Applies the block.

        Args:
            x: Tokens.
            c: Time plus label embedding, before its SiLU.
            time: The time embedding alone, for the gate.

        Returns:
            Tokens.
        """
        width = x.shape[-1]
        modulation = dense(6 * width, self.dtype, "adaLN_modulation", zeros)(jax.nn.silu(c))[:, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)
        h = layer_norm(x) * (1 + scale_a) + shift_a
        x = x + gate_a * Attention(self.num_heads, self.dtype, self.qk_norm, self.attention, name="attn")(h)
        h = layer_norm(x, self.mlp_norm_eps) * (1 + scale_m) + shift_m
        residual = gate_m * Mlp(int(width * self.mlp_ratio), "gelu_tanh", self.dtype, name="mlp")(h)
        if self.spectral != "none":
            gate = SpectralGate(self.spectral, self.grid, self.gate_scale, self.dtype, name="freq_gate")
            residual = gate(residual, time, c)
        return x + residual


class Projector(nn.Module):
    """REPA's head from tokens to an encoder's features: three linear layers with SiLU between.

    Attributes:
        features: Outputs.
        hidden: Width between.
        dtype: Of the matmuls.
    """

    features: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens features"]:
        """Applies the head.

        Args:
            x: Tokens.

        Returns:
            Predicted features.
        """
        for index, size in ((0, self.hidden), (2, self.hidden)):
            x = jax.nn.silu(dense(size, self.dtype, str(index))(x))
        return dense(self.features, self.dtype, "4")(x)


class SiT(nn.Module):
    """The network: patches, blocks, a modulated linear head.

    Attributes:
        sample_shape: (height, width, channels) of a sample.
        num_classes: Without the null class, which is one more row of the label table.
        patch_size: Pixels a token's side.
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width over width.
        frequency_dim: Of the time features (256 in the paper).
        learn_sigma: The head has twice the channels, of which the first half is the prediction, as in the published weights.
        full_output: With `learn_sigma`, return all channels (DiT's variance beside its noise).
        spectral: "none", "timestep", "timestep+label" or "static": SpectralDiT's gate on every block's MLP residual.
        gate_scale: Of that gate.
        projector_dims: REPA: feature sizes of the encoders that tokens are aligned with; empty for none.
        projector_depth: REPA: the block after which they are.
        projector_hidden: REPA: width of the projectors.
        qk_norm: Whether q and k are normalised, an option of REPA's code that is off in its published weights.
        numerics: "original", or "diffusers": DiTTransformer2DModel differs from DiT in the time features (frequencies are
            exp(-ln(1e4) i / 127)) and in the eps of the norm before the MLP (1e-5).
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
    mlp_ratio: float = 4.0
    frequency_dim: int = 256
    learn_sigma: bool = True
    full_output: bool = False
    spectral: str = "none"
    gate_scale: float = 1.0
    projector_dims: tuple[int, ...] = ()
    projector_depth: int = 8
    projector_hidden: int = 2048
    qk_norm: bool = False
    numerics: str = "original"
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w c"], t: Float[Array, " batch"], y: Int[Array, " batch"], aligned: bool = False
    ) -> Any:
        """Evaluates the network in its authors' convention.

        Args:
            x: Noisy samples.
            t: Times as the authors count them.
            y: Classes; `num_classes` is the null class.
            aligned: Whether REPA's projections are returned too.

        Returns:
            float32 prediction, [batch, h, w, c]; with `aligned`, (prediction, one [batch, tokens, dim] an encoder).
        """
        h, w, channels = self.sample_shape
        grid = (h // self.patch_size, w // self.patch_size)
        make = partial(dense, dtype=self.dtype)
        tokens = make(self.width, name="x_embedder")(patchify(x, self.patch_size))
        tokens = tokens + sincos_2d(grid, self.width)
        time = embed_time(timestep_embedding(t, self.frequency_dim, float(self._diffusers())), self.width, self.dtype)
        table = self.param("y_embedder", small_normal, (self.num_classes + 1, self.width), jnp.float32)
        c = time + jnp.asarray(table)[y]
        tokens, projections = self._blocks(tokens, c, time, grid)
        modulation = make(2 * self.width, name="final_adaLN_modulation", kernel_init=zeros)(jax.nn.silu(c))[:, None]
        shift, scale = jnp.split(modulation, 2, axis=-1)
        out_channels = channels * (2 if self.learn_sigma else 1)
        tokens = layer_norm(tokens) * (1 + scale) + shift
        tokens = make(self.patch_size**2 * out_channels, name="final_linear", kernel_init=zeros)(tokens)
        out = unpatchify(tokens.astype(jnp.float32), self.patch_size, grid)
        out = out if self.full_output else out[..., :channels]
        return (out, projections) if aligned else out

    def _diffusers(self) -> bool:
        return self.numerics == "diffusers"

    def _blocks(self, tokens, c, time, grid):
        """Applies all blocks; returns tokens and REPA's projections."""
        eps = 1e-5 if self._diffusers() else 1e-6
        make = partial(
            rematerialised(Block, self.remat, self.scan_layers),
            *(self.num_heads, self.mlp_ratio, self.dtype, self.spectral, self.gate_scale, grid),
            *(self.qk_norm, self.attention, eps),
        )
        split = self.projector_depth if self.projector_dims else self.depth
        tokens = run_blocks(make, tokens, (c, time), range(split), self.scan_layers)
        projections = [
            Projector(dim, self.projector_hidden, self.dtype, name=f"projectors_{i}")(tokens).astype(jnp.float32)
            for i, dim in enumerate(self.projector_dims)
        ]
        return run_blocks(make, tokens, (c, time), range(split, self.depth), self.scan_layers), projections


class _Time(nn.Module):
    """The time embedding alone, under the names that it has in `SiT`."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Float[Array, "batch dim"]) -> Float[Array, "batch width"]:
        return embed_time(features, self.width, self.dtype)


def gates(network: SiT, params: Any, t: Float[Array, " batch"], y: Int[Array, " batch"]) -> Float[Array, "batch depth 2"]:
    """SpectralDiT's gates of every block: they hang on time and class, not on the sample.

    Args:
        network: With `spectral` other than "none".
        params: Its parameters, unrolled or scanned.
        t: Times as the network's authors count them.
        y: Classes.

    Returns:
        g_low and g_high.
    """
    features = timestep_embedding(t, network.frequency_dim, float(network.numerics == "diffusers"))
    time = _Time(network.width, network.dtype).apply({"params": params}, features)
    gate = SpectralGate(network.spectral, (0, 0), network.gate_scale, network.dtype)
    table: Any = jnp.asarray(params["y_embedder"])
    condition, found = time + table[y], []
    for block in range(network.depth):
        weights = block_params(params, block)["freq_gate"]
        found.append(gate.apply({"params": weights}, time, condition, method="gates"))
    return jnp.stack(found, axis=1)


def diffusion_time(t: Float[Array, " batch"]) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """The step n and a_n of DiT's diffusion at time t, by (2).

    Args:
        t: Times in [0, 1]; 0 is noise.

    Returns:
        n in [0, 999], not rounded, and a_n.
    """
    betas = np.linspace(1e-4, 2e-2, 1000, dtype=np.float64)
    alphas = np.cumprod(1 - betas)
    log_ratio = 0.5 * np.log(alphas / (1 - alphas))  # falls with n
    edge = 1 / (1 + np.exp(-log_ratio))
    cut = jnp.clip(t.astype(jnp.float32), float(edge[-1]), float(edge[0]))
    wanted = jnp.log(cut / (1 - cut))
    table = jnp.asarray(log_ratio[::-1], jnp.float32)
    n = jnp.interp(wanted, table, jnp.arange(999.0, -1.0, -1.0))
    return n, jax.nn.sigmoid(2 * wanted)


def velocity_from_noise(predict: Any, x: Float[Array, "batch h w c"], t: Float[Array, " batch"]) -> Float[Array, "batch h w c"]:
    """The velocity (3) of a network that predicts noise.

    Args:
        predict: (x', n) -> e.
        x: x_t on the linear path.
        t: Times.

    Returns:
        data - noise.
    """
    n, alpha = (value[:, None, None, None] for value in diffusion_time(t))
    time = t.astype(jnp.float32)[:, None, None, None]
    scaled = x / jnp.sqrt(time**2 + (1 - time) ** 2)
    noise = predict(scaled, n[:, 0, 0, 0])
    return (scaled - jnp.sqrt(1 - alpha) * noise) / jnp.sqrt(alpha) - noise


__all__ = ["SIZES", "Block", "Projector", "SiT", "diffusion_time", "gates", "velocity_from_noise", "xavier"]
