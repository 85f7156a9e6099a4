"""The published encoders by name: sizes, preprocessing and what their pooled feature can be.

Sources: huggingface/transformers configurations and image processors of the models named here; the mean and standard deviation are of
images in [0, 1]. Published files name an encoder's tensors as `weights/encoder_layouts.py` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
# (byte - 128) / 128
BYTES = {"mean": (128 / 255,) * 3, "std": (128 / 255,) * 3}
_TOKENS = {"class token": ("cls",), "mean patch token": ("mean",), "class token, mean patch token": ("cls", "mean")}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the encoders of one kind share.

    Attributes:
        network: "vit", "convnext" or "inception".
        fields: Of the network.
        options: Preprocessing: resolution, kernel, antialias, mean, std.
        poolings: Name -> outputs that are put side by side ("mean": the mean of the patches); the first is the default.
    """

    network: str
    fields: Mapping[str, Any]
    options: Mapping[str, Any]
    poolings: Mapping[str, tuple[str, ...]]


_BICUBIC = {"kernel": "bicubic", "antialias": True}
FAMILIES = {
    "dinov2": Family(
        network="vit",
        fields={"patch_size": 14, "layer_scale": True},
        options={"resolution": 224, **_BICUBIC, **IMAGENET},
        poolings=_TOKENS,
    ),
    "dinov3": Family(
        network="vit",
        fields={"patch_size": 16, "layer_scale": True, "registers": 4, "positions": "rotary", "eps": 1e-5},
        options={"resolution": 224, **_BICUBIC, **IMAGENET},
        poolings=_TOKENS,
    ),
    "siglip": Family(
        network="vit",
        fields={"class_token": False, "activation": "gelu_tanh", "head": "map"},
        options={"resolution": 224, **_BICUBIC, **HALF},
        poolings={"attention pooling": ("pooled_map",), "mean patch token": ("mean",)},
    ),
    "clip": Family(
        network="vit",
        fields={
            "patch_bias": False,
            "pre_norm": True,
            "final_norm": "class",
            "head": "projection",
            "eps": 1e-5,
            "activation": "quick_gelu",
        },
        options={"resolution": 224, **_BICUBIC, **CLIP},
        poolings={"projection": ("projection",), **_TOKENS},
    ),
    "mae": Family(
        network="vit",
        fields={"eps": 1e-12},
        options={"resolution": 224, **_BICUBIC, **IMAGENET},
        poolings=_TOKENS,
    ),
    "convnext": Family(
        network="convnext",
        fields={"v2": False},
        options={"resolution": 224, **_BICUBIC, **IMAGENET},
        poolings={"mean, normalised": ("pooled_map",), "mean": ("mean",)},
    ),
    "inception": Family(
        network="inception",
        fields={},
        options={"resolution": 299, "kernel": "tf1-bilinear", "antialias": False, **BYTES},
        poolings={"pool": ("pool",), "spatial": ("spatial",), "logits": ("logits",)},
    ),
}


def _vit(width: int, depth: int, heads: int, **fields: Any) -> dict[str, Any]:
    return {"width": width, "depth": depth, "num_heads": heads, **fields}


S, B, L = _vit(384, 12, 6), _vit(768, 12, 12), _vit(1024, 24, 16)
H, GIANT = _vit(1280, 32, 16), _vit(1536, 40, 24, gated=True, hidden=4096)
SO400M = _vit(1152, 27, 16, hidden=4304, patch_size=14)


def _dino() -> dict[str, tuple[str, dict[str, Any]]]:
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for size, fields in (("small", S), ("base", B), ("large", L), ("giant", GIANT)):
        found[f"dinov2-{size}"] = ("dinov2", fields)
        found[f"dinov2-with-registers-{size}"] = ("dinov2", fields | {"registers": 4})
    found |= {
        "dinov3-vits16": ("dinov3", S),
        "dinov3-vits16plus": ("dinov3", S | {"gated": True, "hidden": 1536}),
        "dinov3-vitb16": ("dinov3", B),
        "dinov3-vitl16": ("dinov3", L),
        "dinov3-vith16plus": ("dinov3", _vit(1280, 32, 20, gated=True, hidden=5120)),
        "dinov3-vit7b16": ("dinov3", _vit(4096, 40, 32, gated=True, hidden=8192, qkv_bias=False)),
    }
    return found


def _contrastive() -> dict[str, tuple[str, dict[str, Any]]]:
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for patch, resolution, size, fields in (
        (16, 224, "base", B),
        (16, 256, "base", B),
        (16, 384, "base", B),
        (16, 512, "base", B),
        (16, 256, "large", L),
        (16, 384, "large", L),
    ):
        sizes = fields | {"patch_size": patch, "resolution": resolution}
        for version in ("siglip", "siglip2"):
            found[f"{version}-{size}-patch{patch}-{resolution}"] = ("siglip", sizes)
    found["siglip2-large-patch16-512"] = ("siglip", L | {"patch_size": 16, "resolution": 512})
    for resolution in (224, 384):
        for version in ("siglip", "siglip2"):
            found[f"{version}-so400m-patch14-{resolution}"] = ("siglip", SO400M | {"resolution": resolution})
    for resolution in (256, 384, 512):
        found[f"siglip2-so400m-patch16-{resolution}"] = ("siglip", SO400M | {"patch_size": 16, "resolution": resolution})
    gelu = {"activation": "gelu"}
    return found | {
        "clip-vit-base-patch32": ("clip", B | {"patch_size": 32, "projection_dim": 512}),
        "clip-vit-base-patch16": ("clip", B | {"patch_size": 16, "projection_dim": 512}),
        "clip-vit-large-patch14": ("clip", L | {"patch_size": 14, "projection_dim": 768}),
        "clip-vit-large-patch14-336": ("clip", L | {"patch_size": 14, "projection_dim": 768, "resolution": 336}),
        "openclip-vit-huge-patch14": ("clip", H | {"patch_size": 14, "projection_dim": 1024} | gelu),
        "openclip-vit-bigg-patch14": (
            "clip",
            _vit(1664, 48, 16, hidden=8192, patch_size=14, projection_dim=1280) | gelu,
        ),
        "vit-mae-base": ("mae", B | {"patch_size": 16}),
        "vit-mae-large": ("mae", L | {"patch_size": 16}),
        "vit-mae-huge": ("mae", H | {"patch_size": 14}),
    }


def _convolutional() -> dict[str, tuple[str, dict[str, Any]]]:
    def sizes(first: int, third: int, last: int = 3) -> dict[str, Any]:
        return {"widths": tuple(first * 2**i for i in range(4)), "depths": (last, last, third, last)}

    first = {
        "tiny": sizes(96, 9),
        "small": sizes(96, 27),
        "base": sizes(128, 27),
        "large": sizes(192, 27),
        "xlarge": sizes(256, 27),
    }
    second = {
        "atto": sizes(40, 6, 2),
        "femto": sizes(48, 6, 2),
        "pico": sizes(64, 6, 2),
        "nano": sizes(80, 8, 2),
        "tiny": sizes(96, 9),
        "base": sizes(128, 27),
        "large": sizes(192, 27),
        "huge": sizes(352, 27),
    }
    found = {f"convnext-{size}": ("convnext", fields) for size, fields in first.items()}
    found |= {f"convnextv2-{size}": ("convnext", fields | {"v2": True}) for size, fields in second.items()}
    return found | {"inception-v3-fid": ("inception", {})}


# name -> (family, fields and options that differ from the family's)
PUBLISHED = _dino() | _contrastive() | _convolutional()
