"""SpectralDiT's residual gate: low and high frequencies of a block's MLP residual, reweighted by time.

Source: "SpectralDiT", arXiv 2606.18765; lndezxn/SpectralDiT src/model/blocks.py at 3efa9f2 and later. With r the gated MLP residual on
the token grid, B the 5 x 5 binomial filter (outer product of [1, 4, 6, 4, 1] / 16, edges repeated), c the condition,

    low(r) = B * r,    high(r) = r - low(r)                                                   (1)
    (g_low, g_high) = s tanh(W2 silu(W1 c)),    W2 = 0 at the start                           (2)
    r <- r + g_low low(r) + g_high high(r)                                                    (3)

so that a fresh gate changes nothing. Three conditions: "timestep" (the time embedding alone, the authors' later default, s = 1),
"timestep+label" (their first version, s = 0.2) and "static" (two learned numbers in place of W2 silu(W1 c)).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdrl.backbones.layers import dense

MODES = ("none", "timestep", "timestep+label", "static")
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def low_pass(tokens: Float[Array, "batch tokens width"], grid: tuple[int, int]) -> Float[Array, "batch tokens width"]:
    """The binomial filter of (1), channel by channel.

    Args:
        tokens: On a row-major grid.
        grid: (rows, columns).

    Returns:
        Filtered tokens, float32.
    """
    batch, _, width = tokens.shape
    x = tokens.astype(jnp.float32).reshape(batch, *grid, width)
    for axis in (1, 2):
        padding = [(2, 2) if i == axis else (0, 0) for i in range(4)]
        padded, size = jnp.pad(x, padding, mode="edge"), x.shape[axis]
        x = sum(weight * jax.lax.slice_in_dim(padded, k, k + size, axis=axis) for k, weight in enumerate(_BINOMIAL))
    return jnp.asarray(x).reshape(batch, -1, width)


class SpectralGate(nn.Module):
    """The gate (2), (3).

    Attributes:
        mode: One of `MODES` but "none".
        grid: (rows, columns) of tokens.
        scale: s.
        dtype: Of the matmuls.
    """

    mode: str
    grid: tuple[int, int]
    scale: float = 1.0
    dtype: Any = jnp.float32

    def __call__(
        self,
        residual: Float[Array, "batch tokens width"],
        time: Float[Array, "batch width"],
        condition: Float[Array, "batch width"],
    ) -> Float[Array, "batch tokens width"]:
        """Reweights a residual.

        Args:
            residual: r.
            time: The time embedding.
            condition: Time plus label embedding.

        Returns:
            r of (3).
        """
        gates = self.gates(time, condition)
        low, high = gates[:, :1, None], gates[:, 1:, None]
        return residual + high * residual + (low - high) * low_pass(residual, self.grid)

    @nn.compact
    def gates(self, time: Float[Array, "batch width"], condition: Float[Array, "batch width"]) -> Float[Array, "batch 2"]:
        """The two numbers of (2).

        Args:
            time: The time embedding.
            condition: Time plus label embedding.

        Returns:
            g_low and g_high of each sample.
        """
        zeros = nn.initializers.zeros
        if self.mode == "static":
            logits = jnp.broadcast_to(self.param("logits", zeros, (2,), jnp.float32), (len(time), 2))
        else:
            chosen = time if self.mode == "timestep" else condition
            hidden = jax.nn.silu(dense(time.shape[-1] // 4, self.dtype, "0")(chosen))
            logits = dense(2, self.dtype, "2", zeros)(hidden).astype(jnp.float32)
        return self.scale * jnp.tanh(logits)
