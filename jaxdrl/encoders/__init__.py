"""Feature networks by name: frozen after training, differentiable with respect to the image.

The small ones are trained here and take images of one shape. The published ones are converted from their authors' files, take
images of any size and bring their preprocessing with them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl.encoders import convnext, inception, small_convnet, small_vit, vit
from jaxdrl.encoders.preprocess import KERNELS, Preprocess
from jaxdrl.encoders.published import FAMILIES, PUBLISHED, Family
from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.encoders.text import SIZES as PUBLISHED_TEXT
from jaxdrl.encoders.text import TextEncoder, create_text

_SMALL: dict[str, Any] = {"small-vit": small_vit.SmallViT, "small-convnet": small_convnet.SmallConvNet}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_NETWORKS: dict[str, Any] = {"vit": vit.VisionTransformer, "convnext": convnext.ConvNeXt, "inception": inception.Inception}
_PREPROCESSING = ("resolution", "inner", "clip", "kernel", "antialias", "mean", "std")
_OPTIONS = (*_PREPROCESSING, "pooling", "dtype", "position_offset", "position_antialias")


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
            the small ones; of published ones what their network gives, such as "cls" and "registers".

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
        if self.name in PUBLISHED:
            usual = dict(create(self.name).fields)
            # What is said elsewhere, and what says how a network is computed, not what.
            known = (*_PREPROCESSING, "pooling", "dtype", "attention", "remat", "scan_layers")
            own = [f"{key}={value}" for key, value in self.fields if key not in known and usual.get(key) != value]
            described["options"] = ", ".join(own)
        if self.preprocess is None:
            return FeatureSpec(**described, size=(self.image_shape or (0,))[0])
        how = self.preprocess
        return FeatureSpec(
            **described,
            size=how.size[0],
            inner=how.inner[0] if how.inner else 0,
            resize=how.kernel,
            antialias=how.antialias,
            clip=how.clip,
            mean=how.mean,
            std=how.std,
        )


def create(name: str, **overrides: Any) -> Encoder:
    """Builds an encoder.

    Args:
        name: "small-vit" or "small-convnet" (image_shape, width, depth and feature_dim to be given), or one of `PUBLISHED`, such as
            "dinov2-large", "siglip2-large-patch16-256", "convnextv2-tiny" or "inception-v3-fid".
        **overrides: Fields of the network. Published ones also take resolution (a side, or height and width; multiples of the patch
            size), inner and clip (see `Preprocess`), kernel, antialias, mean, std, pooling, dtype ("float32" or "bfloat16"), and, where they are
            transformers, attention, remat, scan_layers, position_offset and position_antialias (see `vit.resample_positions`; both are
            read when weights are converted).

    Returns:
        The encoder.

    Raises:
        ValueError: If the name or a field is unknown, or the sizes do not fit each other.
    """
    if name in PUBLISHED:
        return _build(name, tuple(sorted((key, _hashable(value)) for key, value in overrides.items())))
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
    return Encoder(
        name=name,
        fields=fields,
        # Compiled where they are called by themselves; inside of a compiled function nothing changes.
        init=init,
        apply=jax.jit(apply, inline=True),
        image_shape=shape,
        feature_dim=dim,
        pooling=module.pooling,
    )


def of_functions(
    name: str,
    init: Callable[[Key[Array, ""]], PyTree],
    apply: Callable[[PyTree, Float[Array, "..."]], dict[str, Float[Array, "..."]]],
    *,
    image_shape: tuple[int, ...],
    fields: tuple[tuple[str, Any], ...] = (),
) -> Encoder:
    """An encoder of two functions that somebody else wrote.

    Args:
        name: What it is called.
        init: key -> params, float32.
        apply: (params, images [batch, h, w, c] in [-1, 1]) -> {"pooled": [batch, feature_dim], ...}, float32, differentiable in the
            images, preprocessing included; with "global" [batch, ...] if it is to be trained by `self_distillation` or `contrastive`.
        image_shape: (h, w, c) of the images.
        fields: What it was made with, by name.

    Returns:
        The encoder.

    Raises:
        ValueError: If there are no pooled features of one vector an image.
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    found = jax.eval_shape(apply, jax.eval_shape(init, jax.random.key(0)), images)
    pooled = found.get("pooled") if isinstance(found, dict) else None
    if pooled is None or pooled.ndim != 2 or len(pooled) != 2 or pooled.dtype != jnp.float32:
        shapes = (
            {key: f"{leaf.shape} {leaf.dtype}" for key, leaf in found.items()}
            if isinstance(found, dict)
            else type(found).__name__
        )
        raise ValueError(f'it must give a dict with "pooled", float32 [2, features] for 2 images; it gives {shapes}')
    height, width, channels = image_shape
    return Encoder(
        name=name,
        fields=fields,
        init=init,
        apply=jax.jit(apply, inline=True),
        image_shape=(height, width, channels),
        feature_dim=pooled.shape[-1],
        pooling="own",
    )


def sides(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a resolution.

    Args:
        resolution: A side, or both.

    Returns:
        (height, width).
    """
    return (resolution, resolution) if isinstance(resolution, int) else (resolution[0], resolution[1])


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


# The same fields give the same object: working out a large network's shapes takes seconds.
@lru_cache(maxsize=64)
def _build(name: str, overrides: tuple[tuple[str, Any], ...]) -> Encoder:
    family = FAMILIES[PUBLISHED[name][0]]
    network = _NETWORKS[family.network]
    default = {"pooling": next(iter(family.poolings)), "dtype": "float32"}
    options = {**default, **family.options, **family.fields, **PUBLISHED[name][1], **dict(overrides)}
    known = {field for field in network.__dataclass_fields__ if field not in ("parent", "name")}
    unknown = sorted(set(options) - known - set(_OPTIONS))
    if unknown:
        raise ValueError(f"encoder {name!r}: unknown fields {unknown}")
    _check(name, family, options)
    size = sides(options["resolution"])
    inner = sides(options["inner"]) if options.get("inner") else None
    clip = bool(options.get("clip"))
    how = Preprocess(size=size, inner=inner, clip=clip, **{key: options[key] for key in ("kernel", "antialias", "mean", "std")})
    sizes = {key: value for key, value in options.items() if key in known}
    module = network(**sizes | ({"dtype": _DTYPES[options["dtype"]]} if "dtype" in known else {}))
    parts = family.poolings[options["pooling"]]

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, *size, 3)))["params"]

    def apply(params, images):
        found: Any = module.apply({"params": params}, how(images))
        pooled = [found["patches"].mean(axis=1) if part == "mean" else found[part] for part in parts]
        return found | {"pooled": jnp.concatenate(pooled, axis=-1)}

    shapes = jax.eval_shape(lambda: apply(init(jax.random.key(0)), jnp.zeros((1, *size, 3))))
    return Encoder(
        name=name,
        fields=tuple(sorted(options.items())),
        init=init,
        apply=jax.jit(apply, inline=True),
        image_shape=None,
        feature_dim=shapes["pooled"].shape[-1],
        pooling=options["pooling"],
        preprocess=how,
    )


def _check(name: str, family: Family, options: dict[str, Any]) -> None:
    if options["pooling"] not in family.poolings:
        raise ValueError(f"encoder {name!r}: pooling must be one of {'; '.join(family.poolings)}, got {options['pooling']!r}")
    if options["dtype"] not in _DTYPES or (family.network == "inception" and options["dtype"] != "float32"):
        raise ValueError(f"encoder {name!r}: dtype must be float32 or, but for Inception, bfloat16, got {options['dtype']!r}")
    if options["kernel"] not in KERNELS:
        raise ValueError(f"encoder {name!r}: kernel must be one of {', '.join(KERNELS)}, got {options['kernel']!r}")
    size, patch = sides(options["resolution"]), options.get("patch_size", 1)
    # SigLIP's 384 pixels with patches of 14 leave a margin of 6 that its convolution does not reach.
    if PUBLISHED[name][0] != "siglip" and (size[0] % patch or size[1] % patch):
        raise ValueError(f"encoder {name!r}: resolution {size} is no multiple of the patch size {patch}")


__all__ = [
    "PUBLISHED",
    "PUBLISHED_TEXT",
    "Encoder",
    "FeatureSpec",
    "TextEncoder",
    "create",
    "create_text",
    "of_functions",
    "sides",
]
