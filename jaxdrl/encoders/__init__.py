"""Feature networks by name: frozen after training, differentiable with respect to the image.

The small ones are trained here and take images of one shape. The published ones are converted from their authors' files, take
images of any size and bring their preprocessing with them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.encoders import dinov2, small_convnet, small_vit
from jaxdrl.encoders.preprocess import Preprocess
from jaxdrl.encoders.spec import FeatureSpec

_SMALL: dict[str, Any] = {"small-vit": small_vit.SmallViT, "small-convnet": small_convnet.SmallConvNet}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_POOLINGS = ("class token", "mean patch token", "class token, mean patch token")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A feature network without its module system.

    Attributes:
        name: As given to `create`.
        fields: Sizes and options, by name.
        init: key -> params, float32.
        apply: (params, images in [-1, 1]) -> {"pooled", "patches", ...}, preprocessing included.
        image_shape: (h, w, c) that images must have; None: any height and width.
        feature_dim: Of "pooled".
        pooling: What "pooled" is made of, in words.
        preprocess: What happens to images first; None: nothing.
    """

    name: str
    fields: tuple[tuple[str, Any], ...]
    init: Callable[[Key[Array, ""]], PyTree]
    apply: Callable[[PyTree, Float[Array, "..."]], dict[str, Float[Array, "..."]]]
    image_shape: tuple[int, int, int] | None
    feature_dim: int
    pooling: str
    preprocess: Preprocess | None = None

    def features(
        self, params: PyTree, images: Float[Array, "batch h w c"], resolution: int | None = None
    ) -> dict[str, Float[Array, "..."]]:
        """Computes features.

        Args:
            params: Weights.
            images: In [-1, 1], [batch, h, w, c].
            resolution: Side that the network works at; its position table has one, so this may only repeat it.

        Returns:
            "pooled" [batch, feature_dim] and "patches" [batch, tokens, width]; "global", what self-supervised objectives train, of
            the small ones; "cls" and "registers" of DINOv2.

        Raises:
            ValueError: If the images or the resolution have another size than the network.
        """
        native = (self.preprocess.size if self.preprocess else self.image_shape or (0,))[0]
        wrong = self.image_shape is not None and tuple(images.shape[1:]) != self.image_shape
        if wrong or resolution not in (None, native):
            raise ValueError(
                f"{self.name} takes images of {self.image_shape or 'any size'} at resolution {native}, got {tuple(images.shape[1:])} "
                f"at {resolution}; encoders.create(..., resolution=...) makes one for another resolution"
            )
        return self.apply(params, images)

    def spec(self, fingerprint: str) -> FeatureSpec:
        """Describes the features, for statistics that are kept.

        Args:
            fingerprint: Of the weights.

        Returns:
            The specification.
        """
        described: dict[str, Any] = {"network": self.name, "fingerprint": fingerprint, "pooling": self.pooling}
        described["dtype"] = str(dict(self.fields).get("dtype", "float32"))
        if self.preprocess is None:
            return FeatureSpec(**described, size=(self.image_shape or (0,))[0])
        how = self.preprocess
        return FeatureSpec(**described, size=how.size[0], resize=how.kernel, antialias=how.antialias, mean=how.mean, std=how.std)


def _published() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for size, numbers in dinov2.SIZES.items():
        fields = dict(zip(("width", "depth", "num_heads"), numbers, strict=True))
        found[f"dinov2-{size}"] = fields | {"registers": 0}
        found[f"dinov2-with-registers-{size}"] = fields | {"registers": 4}
    return found


PUBLISHED = _published()


def create(name: str, **overrides: Any) -> Encoder:
    """Builds an encoder.

    Args:
        name: "small-vit" or "small-convnet" (image_shape, width, depth and feature_dim to be given), or a published name: "dinov2-S"
            or "dinov2-with-registers-S" with S small, base or large.
        **overrides: Fields of the network. Published ones take resolution (224; a side, or height and width; multiples of the patch size), kernel ("bicubic"),
            antialias (True), pooling ("class token", "mean patch token" or both), dtype and attention too.

    Returns:
        The encoder.

    Raises:
        ValueError: If the name or a field is unknown, or the sizes do not fit each other.
    """
    if name in PUBLISHED:
        return _dinov2(name, PUBLISHED[name] | overrides)
    if name not in _SMALL:
        raise ValueError(f"encoder {name!r} is unknown; choose one of {', '.join([*_SMALL, *PUBLISHED])}")
    network = _SMALL[name]
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
    fields = tuple(sorted(overrides.items()))
    return Encoder(name=name, fields=fields, init=init, apply=apply, image_shape=shape, feature_dim=dim, pooling=module.pooling)


def sides(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a resolution.

    Args:
        resolution: A side, or both.

    Returns:
        (height, width).
    """
    return (resolution, resolution) if isinstance(resolution, int) else (resolution[0], resolution[1])


def _dinov2(name: str, fields: dict[str, Any]) -> Encoder:
    options = {"resolution": 224, "kernel": "bicubic", "antialias": True, "pooling": _POOLINGS[0], "dtype": "float32"} | fields
    sizes = {key: value for key, value in options.items() if key in dinov2.DinoV2.__dataclass_fields__}
    unknown = set(options) - set(sizes) - {"resolution", "kernel", "antialias", "pooling"}
    if unknown:
        raise ValueError(f"encoder {name!r}: unknown fields {sorted(unknown)}")
    if options["pooling"] not in _POOLINGS or options["dtype"] not in _DTYPES:
        raise ValueError(
            f"encoder {name!r}: pooling must be one of {'; '.join(_POOLINGS)}, and dtype one of {', '.join(_DTYPES)}"
        )
    module = dinov2.DinoV2(**sizes | {"dtype": _DTYPES[options["dtype"]]})
    size = sides(options["resolution"])
    if size[0] % module.patch_size or size[1] % module.patch_size:
        raise ValueError(f"encoder {name!r}: resolution {size} is no multiple of the patch size {module.patch_size}")
    how = Preprocess(size=size, kernel=options["kernel"], antialias=options["antialias"], mean=dinov2.MEAN, std=dinov2.STD)
    parts = options["pooling"].split(", ")

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, *size, 3)))["params"]

    def apply(params, images):
        found: Any = module.apply({"params": params}, how(images))
        pooled = [found["cls"] if part == "class token" else found["patches"].mean(axis=1) for part in parts]
        return found | {"pooled": jnp.concatenate(pooled, axis=-1)}

    return Encoder(
        name=name,
        fields=tuple(sorted(options.items())),
        init=init,
        apply=apply,
        image_shape=None,
        feature_dim=module.width * len(parts),
        pooling=options["pooling"],
        preprocess=how,
    )


__all__ = ["PUBLISHED", "Encoder", "FeatureSpec", "create"]
