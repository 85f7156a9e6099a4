"""Feature networks by name: frozen after training, differentiable with respect to the image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.encoders import small_convnet, small_vit
from jaxdrl.encoders.spec import FeatureSpec

_NETWORKS: dict[str, Any] = {"small-vit": small_vit.SmallViT, "small-convnet": small_convnet.SmallConvNet}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A feature network without its module system.

    Attributes:
        name: As given to `create`.
        init: key -> params, float32.
        apply: (params, images) -> {"pooled", "patches", "global"}.
        image_shape: (h, w, c).
        feature_dim: Of "pooled".
        pooling: What "pooled" is made of, in words.
    """

    name: str
    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[[PyTree, Float[Array, "..."]], dict[str, Float[Array, "..."]]]
    image_shape: tuple[int, int, int]
    feature_dim: int
    pooling: str

    def features(
        self, params: PyTree, images: Float[Array, "batch h w c"], resolution: int | None = None
    ) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            params: Weights.
            images: In [-1, 1], [batch, h, w, c].
            resolution: Side to resize to first; these networks take their own size only.

        Returns:
            "pooled" [batch, feature_dim], "patches" [batch, tokens, width] and "global", what self-supervised objectives train.

        Raises:
            ValueError: If the images or the resolution have another size than the network.
        """
        if tuple(images.shape[1:]) != self.image_shape or resolution not in (None, self.image_shape[0]):
            raise ValueError(f"{self.name} takes images of {self.image_shape}, got {tuple(images.shape[1:])} at {resolution}")
        return self.apply(params, images)

    def spec(self, fingerprint: str) -> FeatureSpec:
        """Describes the features, for statistics that are kept.

        Args:
            fingerprint: Of the weights.

        Returns:
            The specification.
        """
        return FeatureSpec(
            network=self.name, fingerprint=fingerprint, pooling=self.pooling, size=self.image_shape[0], dtype="float32"
        )


def create(name: str, **overrides: Any) -> Encoder:
    """Builds an encoder.

    Args:
        name: "small-vit" or "small-convnet".
        **overrides: image_shape, width, depth, feature_dim.

    Returns:
        The encoder.

    Raises:
        ValueError: If the name or a field is unknown, or the sizes do not fit each other.
    """
    if name not in _NETWORKS:
        raise ValueError(f"encoder {name!r} is unknown; choose one of {', '.join(_NETWORKS)}")
    network = _NETWORKS[name]
    unknown = set(overrides) - set(network.__dataclass_fields__)
    if unknown:
        raise ValueError(f"encoder {name!r}: unknown fields {sorted(unknown)}")
    module = network(**overrides)
    module.check()
    shape = tuple(module.image_shape)

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, *shape)))["params"]

    def apply(params, images):
        return module.apply({"params": params}, images)

    dim = jax.eval_shape(lambda: apply(init(jax.random.key(0)), jnp.zeros((1, *shape))))["pooled"].shape[-1]
    return Encoder(name=name, init=init, apply=apply, image_shape=shape, feature_dim=dim, pooling=module.pooling)


__all__ = ["Encoder", "FeatureSpec", "create"]
