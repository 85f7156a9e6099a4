"""The authors' own PyTorch networks, from clones of their repositories: willisma/SiT, facebookresearch/DiT, sihyun-yu/REPA,
LTH14/JiT and bytetriper/RAE in folders SiT, DiT, REPA, JiT and RAE. None of their code is part of this project."""

import functools
import importlib
import os
import sys
import types
from pathlib import Path

# family -> (folder on the path, module, class, published sizes of the module)
PLACES = {
    "SiT": ("SiT", "models", "SiT"),
    "DiT": ("DiT", "models", "DiT"),
    "REPA": ("REPA", "models.sit", "SiT"),
    "JiT": ("JiT", "model_jit", "JiT"),
    "DiTDH": ("RAE/src", "stage2.models.DDT", "DiTwDDTHead"),
}


def prepare():
    """Makes their modules importable on a machine without a GPU; returns torch."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import torch

    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self  # JiT puts its rotary tables on a GPU
    for module, name in (("transformers", "SwinModel"), ("regex", "B")):  # imported by RAE's file and not used
        stub = types.ModuleType(module)
        setattr(stub, name, None)
        sys.modules.setdefault(module, stub)
    return torch


def build(family: str, code: Path, arguments: dict):
    """One of their networks, in evaluation mode."""
    folder, module, cls = PLACES[family]
    for loaded in [key for key in sys.modules if key.split(".")[0] in ("models", "util", "stage2")]:
        del sys.modules[loaded]
    sys.path.insert(0, str(code / folder))
    try:
        loaded = importlib.import_module(module)
        if arguments.get("qk_norm"):
            import torch

            # What timm took by default when REPA was written; newer ones ask for it.
            loaded.Attention = functools.partial(loaded.Attention, norm_layer=torch.nn.LayerNorm)
        return getattr(loaded, cls)(**arguments).eval()
    finally:
        sys.path.pop(0)


def published(name: str, code: Path):
    """Their network of a published name, with the sizes of `backbones.PUBLISHED`, which the parameter counts confirm."""
    from jaxdrl import backbones

    family, fields = backbones.PUBLISHED[name]
    height, _, channels = fields["sample_shape"]
    common = {"input_size": height, "patch_size": fields["patch_size"], "in_channels": channels, "num_classes": 1000}
    sizes = {"hidden_size": fields["width"], "depth": fields["depth"], "num_heads": fields["num_heads"]}
    extra = {
        "SiT": {},
        "DiT": {},
        "REPA": {
            "decoder_hidden_size": fields["width"],
            "encoder_depth": fields.get("projector_depth"),
            "z_dims": [768],
            "fused_attn": False,
            "qk_norm": False,
        },
        "JiT": {
            "bottleneck_dim": fields.get("bottleneck"),
            "in_context_len": 32,
            "in_context_start": fields.get("context_start"),
        },
        "DiTDH": {
            "hidden_size": [fields["width"], 2048],
            "depth": [fields["depth"], 2],
            "num_heads": [fields["num_heads"], 16],
        },
    }
    return build(family, code, common | sizes | extra[family])
