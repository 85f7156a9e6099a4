"""Feature spaces by name, as the papers that report distances in them define them.

| space | network and input |
|---|---|
| inception | FID's Inception, 2048 pooled features; TensorFlow 1's resize, (byte - 128) / 128: ADM, torch-fidelity |
| inception-spatial | ADM's sFID: the first 7 channels of Mixed_6d's 1 x 1 branch, [height, width, channel] order |
| inception-logits | 1008 logits without bias: Inception Score |
| inception-pytorch-fid | as pytorch-fid: half-pixel bilinear, not antialiased, 2 x - 1 |
| inception-clean-fid | as clean-fid's "clean": antialiased bicubic of floats, cut to the bytes' range, (byte - 128) / 128 |
| dinov2, dinov3, siglip, clip, mae, convnext | the encoder's default preprocessing and pooled feature: dgm-eval's and EDM2's FD-DINOv2 (224 pixels, class token), the DRL paper's (arXiv 2606.19162) L models |
| cmmd | CLIP ViT-L/14-336's projection |
| fdr-... | FD-Loss's six, see `ratio.py` |

Weights come from folders that `jaxdrl convert` made: a space needs the folder of its network.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdrl import encoders
from jaxdrl.encoders.published import HALF
from jaxdrl.encoders.spec import FeatureSpec
from jaxdrl.errors import UserError
from jaxdrl.evaluation import drift, spectrum
from jaxdrl.evaluation.collect import Network, Space
from jaxdrl.weights import files, model_directory

RANDOM = "random"  # in place of a folder: weights drawn by a fixed seed, to try things out


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A published space.

    Attributes:
        encoder: Published name.
        fields: Preprocessing and network options that differ from the encoder's own.
        converted: Fields that the weights must have been converted with, because they are in the position table; None: any will do.
        output: Of the encoder's features.
        pooling: That gives this output, for the specification; empty: the encoder's default.
    """

    encoder: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    converted: Mapping[str, Any] | None = field(default_factory=dict)
    output: str = "pooled"
    pooling: str = ""


_INCEPTION = "inception-v3-fid"
_BFLOAT = {"dtype": "bfloat16"}
_TIMM_PADDED = {"resolution": 266, "position_antialias": True}
DEFINITIONS = {
    "inception": Definition(encoder=_INCEPTION, output="pool", pooling="pool"),
    "inception-spatial": Definition(encoder=_INCEPTION, output="spatial", pooling="spatial"),
    "inception-logits": Definition(encoder=_INCEPTION, output="logits", pooling="logits"),
    "inception-pytorch-fid": Definition(
        encoder=_INCEPTION, fields={"kernel": "bilinear", "antialias": False, **HALF}, output="pool", pooling="pool"
    ),
    "inception-clean-fid": Definition(
        encoder=_INCEPTION, fields={"kernel": "bicubic", "antialias": True, "clip": True}, output="pool", pooling="pool"
    ),
    "dinov2": Definition(encoder="dinov2-large"),
    "dinov3": Definition(encoder="dinov3-vitl16"),
    "siglip": Definition(encoder="siglip-large-patch16-256"),
    "clip": Definition(encoder="clip-vit-large-patch14"),
    "mae": Definition(encoder="vit-mae-large"),
    "convnext": Definition(encoder="convnextv2-base"),
    "cmmd": Definition(encoder="clip-vit-large-patch14-336"),
    "fdr-inception": Definition(encoder=_INCEPTION, fields=HALF, output="pool", pooling="pool"),
    "fdr-convnext": Definition(encoder="convnextv2-base", fields={"pooling": "mean", **_BFLOAT}),
    "fdr-dinov2": Definition(encoder="dinov2-large", fields={"inner": 256, **_BFLOAT}, converted=_TIMM_PADDED),
    "fdr-mae": Definition(encoder="vit-mae-large", fields={"eps": 1e-6, **_BFLOAT}),
    "fdr-siglip2": Definition(
        encoder="siglip2-so400m-patch16-256", fields=_BFLOAT, converted={"resolution": 224, "position_antialias": True}
    ),
    "fdr-clip": Definition(
        encoder="clip-vit-large-patch14",
        fields={"inner": 256, "activation": "gelu", "pooling": "class token", **_BFLOAT},
        converted=_TIMM_PADDED,
    ),
}


class Weights:
    """Folders of converted encoders, read when a space first needs one."""

    def __init__(self, folders: Sequence[str]) -> None:
        """Looks into the folders.

        Args:
            folders: That `jaxdrl convert` made; or `RANDOM` alone.

        Raises:
            UserError: If a folder holds no encoder.
        """
        self._random = list(folders) == [RANDOM]
        self._folders: list[tuple[Path, str, dict[str, Any]]] = []
        for folder in () if self._random else folders:
            name, fields = model_directory.describe(Path(folder))
            if name not in encoders.PUBLISHED:
                raise UserError(f"--weights: {folder} holds {name}, which is no encoder")
            self._folders.append((Path(folder), name, fields))

    def find(self, encoder: str, converted: Mapping[str, Any] | None, space: str) -> tuple[dict[str, Any], Any, str]:
        """Loads an encoder's weights.

        Args:
            encoder: Published name.
            converted: Fields that the weights must have, besides the published resolution; None: any will do.
            space: That needs it, for the error.

        Returns:
            (stored fields, parameters, fingerprint).

        Raises:
            UserError: If no folder holds it.
        """
        if self._random:
            return dict(converted or {}), *_drawn(encoder, tuple(sorted((converted or {}).items())))
        native = dict(encoders.create(encoder).fields)
        for folder, name, fields in self._folders:
            wanted = {"resolution": native["resolution"], "position_antialias": None, **(converted or {})}
            fits = converted is None or all(fields.get(key) == value for key, value in wanted.items())
            if name == encoder and fits:
                return fields, *_read(folder)
        options = "".join(f" --set {key}={value}" for key, value in (converted or {}).items())
        raise UserError(
            f"--weights: {space} needs the weights of {encoder}; make a folder with `jaxdrl convert --model={encoder}{options} --from=FILE "
            f"--to=DIR` and name it"
        )


@lru_cache(maxsize=4)
def _read(folder: Path) -> tuple[Any, str]:
    params = model_directory.load(folder)[1]
    return params, files.fingerprint(params)


@lru_cache(maxsize=4)
def _drawn(encoder: str, fields: tuple[tuple[str, Any], ...]) -> tuple[Any, str]:
    template = jax.eval_shape(encoders.create(encoder, **dict(fields)).init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if str(path[-1].key) in ("scale", "var"):
            return jnp.ones(leaf.shape, leaf.dtype)
        fan = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * (2 / fan) ** 0.5 * (leaf.ndim > 1))

    return jax.tree_util.tree_map_with_path(draw, template), RANDOM


def published(names: Sequence[str], weights: Weights) -> list[Space]:
    """Spaces of `DEFINITIONS`, or the default feature of any published encoder by its name; those that can share a pass do.

    Args:
        names: Of spaces or encoders.
        weights: Where their weights are.

    Returns:
        One space a name, in order.

    Raises:
        UserError: If a name is unknown or weights are missing.
    """
    networks: dict[Any, tuple[Network, encoders.Encoder, str]] = {}
    found = []
    for name in names:
        if name not in DEFINITIONS and name not in encoders.PUBLISHED:
            raise UserError(f"--encoder: {name!r} is unknown; choose one of {', '.join([*DEFINITIONS, *encoders.PUBLISHED])}")
        definition = DEFINITIONS.get(name) or Definition(encoder=name, converted=None)
        key = (definition.encoder, repr(sorted(definition.fields.items())), repr(definition.converted))
        if key not in networks:
            stored, params, fingerprint = weights.find(definition.encoder, definition.converted, name)
            encoder = encoders.create(definition.encoder, **stored | dict(definition.fields))
            networks[key] = (Network(params=params, apply=_features(encoder)), encoder, fingerprint)
        network, encoder, fingerprint = networks[key]
        spec = encoder.spec(fingerprint)
        if definition.pooling:
            spec = dataclasses.replace(spec, pooling=definition.pooling)
        found.append(Space(name=name, spec=spec, network=network, output=definition.output))
    return found


@lru_cache(maxsize=16)
def _features(encoder: encoders.Encoder):
    return lambda params, images, labels: encoder.features(params, images)


def image_statistics(name: str) -> Space:
    """Spaces that need no network.

    Args:
        name: "spectrum" (radial power), "drift" (five statistics of colour and light) or "pixels" (thumbnails).

    Returns:
        The space.
    """
    spec = FeatureSpec(network=name, fingerprint="", pooling="", size=THUMBNAIL if name == "pixels" else 0)
    return Space(name=name, spec=spec, network=_STATISTICS[name], output=name)


THUMBNAIL = 16


def thumbnails(images: jax.Array) -> jax.Array:
    """Pixels as features; large images are averaged over squares: a covariance of 3072 dimensions takes minutes.

    Args:
        images: [batch, h, w, c].

    Returns:
        float32 [batch, pixels], of a side of about `THUMBNAIL` where the sides divide.
    """
    batch, height, width, channels = images.shape
    factor = max(1, height // THUMBNAIL)
    if factor > 1 and height % factor == 0 and width % factor == 0:
        images = images.reshape(batch, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))
    return images.reshape(batch, -1)


def _drift(params, images, labels):
    colour = jnp.broadcast_to(images, (*images.shape[:3], 3))
    return {"drift": jnp.stack(list(drift.statistics(colour).values()), axis=1)}


_STATISTICS = {
    "spectrum": Network(params=(), apply=lambda params, images, labels: {"spectrum": spectrum.radial_power(images)}),
    "drift": Network(params=(), apply=_drift),
    "pixels": Network(params=(), apply=lambda params, images, labels: {"pixels": thumbnails(images)}),
}
