"""Splash attention, the flash attention of TPUs (jax.experimental.pallas), in this project's shapes, alone or over a mesh.

The kernel wants whole tiles: tokens are padded to a multiple of 128, and padded keys belong to another segment, which no query sees; channels
are padded with zeros. It has first derivatives only.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxdrl.backbones import partition

_TILE = 128


def attention(
    q: Float[Array, "batch heads tokens head"],
    k: Float[Array, "batch heads keys head"],
    v: Float[Array, "batch heads keys head"],
    causal: bool = False,
    mask: Bool[Array, "batch keys"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "batch heads tokens head"]:
    """softmax(q k^T / sqrt(head)) v without the matrix of logits, which stay float32.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        causal: Whether a query sees no key behind it; there are as many keys as queries then.
        mask: Which keys are seen; None: all.
        interpret: Runs the kernel's text on any device, for tests.

    Returns:
        What the queries see, in their dtype.
    """
    seen = jnp.ones((len(k), k.shape[2]), bool) if mask is None else mask
    run = partial(_padded, causal=causal, interpret=interpret)
    known = partition.sizes()
    if max(known.values(), default=1) == 1:
        return run(q, k, v, seen)
    # A kernel is not cut by the compiler: every device runs it on its samples and heads.
    batch, heads = partition.over(len(q), "batch", known), partition.over(q.shape[1], "tensor", known)
    spec = PartitionSpec(batch, heads)
    return jax.shard_map(run, in_specs=(spec, spec, spec, PartitionSpec(batch)), out_specs=spec, check_vma=False)(q, k, v, seen)


def _padded(q, k, v, seen, *, causal: bool, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens, width = q.shape[2:]
    q = (q.astype(jnp.float32) * width**-0.5).astype(q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % _TILE), (0, -width % _TILE))) for x in (q, k, v))
    segments = splash.SegmentIds(
        q=jnp.ones((len(q), q.shape[2]), jnp.int32),
        kv=jnp.pad(seen, ((0, 0), (0, k.shape[2] - seen.shape[1]))).astype(jnp.int32),
    )
    shape = (q.shape[2], k.shape[2])
    one = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha_single_device(splash.MultiHeadMask([one] * q.shape[1]), interpret=interpret)
    out: jax.Array = jax.vmap(kernel)(q, k, v, segments)  # pyright: ignore[reportAssignmentType]
    return out[:, :, :tokens, :width]
