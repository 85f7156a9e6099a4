"""Where the frozen networks of post-training lie, and in what precision: KL reference, decoder, encoder, head and other rewards.

`config.mesh.frozen` is their layout: "like_trained" (over fsdp and tensor, by `sharding_rules.py`), "fsdp" (over fsdp alone) or "replicated"
(the most memory, and nothing is gathered).

`config.mesh.frozen_dtype` = "bfloat16" halves what they take, and changes no number: of a network that computes in bfloat16 the kernels,
which it rounds at every use, are kept rounded; all else stays float32, as does a network that computes in float32, whose numbers would
move. theta_base above all: rounded otherwise than theta it would be another model, from which theta would differ before the first step.
The base stays float32 under adapters too, since they are added to it, and it is what is exported.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import PyTree

from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.training import mesh, models, sharding_rules

LAYOUTS = ("like_trained", "fsdp", "replicated")
DTYPES = ("float32", "bfloat16")


def check(config: Config) -> None:
    """Refuses what cannot be done.

    Args:
        config: A run's config.

    Raises:
        UserError: If a value is unknown, or bfloat16 is asked for and no frozen network computes in it.
    """
    options = config.mesh
    for key, known in (("frozen", LAYOUTS), ("frozen_dtype", DTYPES)):
        if options[key] not in known:
            raise UserError(f"config.mesh.{key}: {options[key]!r} must be one of {', '.join(known)}")
    if options.frozen_dtype == "bfloat16" and not _halved(config):
        raise UserError(
            "config.mesh.frozen_dtype: bfloat16 is for frozen networks that compute in it, and none does; set config.backbone.dtype (without "
            "adapters), config.tokenizer.dtype or config.encoders.reward.dtype to bfloat16, or leave float32"
        )


def _halved(config: Config) -> list[str]:
    """The fields of `common.Frozen` whose kernels may be kept in bfloat16."""
    encoder = dict(models.encoder(config, "reward").fields).get("dtype", "float32")
    found = {
        "base": config.backbone.dtype if not config.posttrain.lora.rank else "float32",
        "tokenizer": getattr(models.tokenizer(config), "dtype", "float32"),
        "encoder": encoder,
    }
    return [name for name, dtype in found.items() if dtype == "bfloat16"]


def stored(config: Config, frozen: Any) -> Any:
    """Rounds what may be rounded.

    Args:
        config: A run's config.
        frozen: A `common.Frozen` of arrays or shapes.

    Returns:
        The same with some kernels in bfloat16.
    """
    check(config)
    if config.mesh.frozen_dtype == "float32":
        return frozen
    return frozen._replace(**{name: _rounded(getattr(frozen, name)) for name in _halved(config)})


def _rounded(tree: PyTree) -> PyTree:
    def rule(keys, leaf):
        if not sharding_rules.path_of(keys).endswith("/kernel"):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
        return leaf.astype(jnp.bfloat16)

    return jax.tree_util.tree_map_with_path(rule, tree)


def shardings(config: Config, frozen: Any, devices: Mesh | AbstractMesh) -> Any:
    """Where each leaf lies.

    Args:
        config: A run's config.
        frozen: From `stored`.
        devices: The mesh.

    Returns:
        The same structure with shardings.
    """
    cut = {"like_trained": ("fsdp", "tensor"), "fsdp": ("fsdp",), "replicated": ()}[config.mesh.frozen]
    return mesh.shardings(frozen, devices, cut)


def place(config: Config, frozen: Any, devices: Mesh) -> Any:
    """Rounds the frozen networks and copies them to the devices.

    Args:
        config: A run's config.
        frozen: A `common.Frozen` of arrays.
        devices: The mesh.

    Returns:
        What the step of a method reads.

    Raises:
        UserError: As `check` does.
    """
    frozen = stored(config, frozen)
    return jax.device_put(frozen, shardings(config, frozen, devices))
