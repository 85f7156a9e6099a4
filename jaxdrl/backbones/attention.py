"""softmax(q k^T / sqrt(head)) v, by the name of who computes it.

"einsum" is two products with a float32 softmax between, in (batch, head, token, channel) order, which XLA runs fastest on CPU and
which has derivatives of every order. "xla" is `jax.nn.dot_product_attention`, whose softmax XLA may fuse. "cudnn" is NVIDIA's flash
attention behind the same function: bfloat16 on a GPU, first derivatives only. "splash" is the flash attention of TPUs (`splash.py`), first
derivatives only too. "auto" takes cudnn where it can run, einsum elsewhere.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdrl.backbones import splash
from jaxdrl.backbones.partition import lay_out

IMPLEMENTATIONS = ("auto", "einsum", "xla", "cudnn", "splash")
Heads = Float[Array, "batch heads tokens head"]
Keys = Float[Array, "batch heads keys head"]


def attend(
    q: Heads,
    k: Keys,
    v: Keys,
    dtype: Any,
    implementation: str = "einsum",
    causal: bool = False,
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch tokens width"]:
    """Attends, and joins the heads again.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        dtype: Of the second product.
        implementation: One of `IMPLEMENTATIONS`.
        causal: Whether a query sees no key behind it.
        mask: Which keys are seen, at least one a row; None: all.

    Returns:
        Tokens.

    Raises:
        ValueError: If the implementation is unknown or cannot run here.
    """
    chosen = choose(implementation, dtype, _platform())
    q, k, v = (lay_out(x, "batch", "tensor", None, None) for x in (q, k, v))
    if chosen == "einsum":
        logits = jnp.einsum("bhid,bhjd->bhij", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        if causal:
            logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
        if mask is not None:
            logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
        out = jnp.einsum("bhij,bhjd->bhid", jax.nn.softmax(logits, axis=-1).astype(dtype), v).transpose(0, 2, 1, 3)
    elif chosen == "splash":
        q, k, v = (x.astype(dtype) for x in (q, k, v))
        out = splash.attention(q, k, v, causal, mask).transpose(0, 2, 1, 3)
    else:
        q, k, v = (x.astype(dtype).transpose(0, 2, 1, 3) for x in (q, k, v))
        seen = None if mask is None else mask[:, None, None]
        out = jax.nn.dot_product_attention(q, k, v, mask=seen, implementation=chosen, is_causal=causal)
    return lay_out(out, "batch", None, "tensor", None).reshape(*out.shape[:2], -1)


def _platform() -> str:
    """Of the mesh that is set: a program for TPUs can be compiled where there are none; otherwise of the devices here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose(implementation: str, dtype: Any, backend: str) -> Literal["einsum", "xla", "cudnn", "splash"]:
    """Which implementation a name stands for.

    Args:
        implementation: One of `IMPLEMENTATIONS`.
        dtype: Of the matmuls.
        backend: "cpu", "gpu" or "tpu".

    Returns:
        "einsum", "xla", "cudnn" or "splash".

    Raises:
        ValueError: If the name is unknown, or cudnn or splash is asked for where it cannot run.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    flash = backend == "gpu" and dtype == jnp.bfloat16
    if implementation == "auto":
        return "cudnn" if flash else "einsum"
    if implementation == "cudnn" and not flash:
        raise ValueError(
            f"attention='cudnn' needs an NVIDIA GPU and dtype='bfloat16', here are {backend} and {jnp.dtype(dtype).name}; use auto"
        )
    if implementation == "splash" and backend != "tpu":
        raise ValueError(f"attention='splash' needs a TPU, here is {backend}; use auto")
    return implementation  # pyright: ignore[reportReturnType]
