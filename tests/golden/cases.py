"""Small configurations of the published families, their drawn weights and inputs: shared by `make.py` and the tests."""

import zlib

import numpy as np

# name -> (family, fields of `backbones.create`, arguments of the authors' class)
_LATENT = {"sample_shape": (8, 8, 4), "num_classes": 10, "patch_size": 2, "width": 32, "depth": 3, "num_heads": 4}
_TORCH_LATENT = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 32,
    "depth": 3,
    "num_heads": 4,
    "num_classes": 10,
}
CASES = {
    "sit": ("SiT", _LATENT, _TORCH_LATENT),
    "dit": ("DiT", _LATENT, _TORCH_LATENT),
    "repa": (
        "REPA",
        _LATENT | {"projector_dims": (12,), "projector_depth": 2, "projector_hidden": 20},
        _TORCH_LATENT
        | {"decoder_hidden_size": 32, "encoder_depth": 2, "z_dims": [12], "projector_dim": 20}
        | {"fused_attn": False, "qk_norm": False},
    ),
    "repa_qknorm": (
        "REPA",
        _LATENT | {"projector_dims": (12,), "projector_depth": 2, "projector_hidden": 20, "qk_norm": True},
        _TORCH_LATENT
        | {"decoder_hidden_size": 32, "encoder_depth": 2, "z_dims": [12], "projector_dim": 20}
        | {"fused_attn": False, "qk_norm": True},
    ),
    "jit": (
        "JiT",
        {"sample_shape": (16, 16, 3), "num_classes": 10, "patch_size": 4, "width": 32, "depth": 4, "num_heads": 4}
        | {"bottleneck": 12, "context_length": 5, "context_start": 2},
        {"input_size": 16, "patch_size": 4, "in_channels": 3, "hidden_size": 32, "depth": 4, "num_heads": 4, "num_classes": 10}
        | {"bottleneck_dim": 12, "in_context_len": 5, "in_context_start": 2},
    ),
    "ditdh": (
        "DiTDH",
        {"sample_shape": (4, 4, 12), "num_classes": 10, "patch_size": 1, "width": 32, "depth": 3, "num_heads": 4}
        | {"head_width": 48, "head_num_heads": 2},
        {"input_size": 4, "patch_size": 1, "in_channels": 12, "hidden_size": [32, 48], "depth": [3, 2], "num_heads": [4, 2]}
        | {"num_classes": 10},
    ),
}
# name -> (method, form of the diffusion, closing step)
SDE = {
    "sigma": ("euler", "sigma", "mean"),
    "euler": ("euler", "decreasing", "euler"),
    "decreasing": ("euler", "decreasing", "tweedie"),
    "increasing": ("heun", "increasing-decreasing", "mean"),
    "heun": ("heun", "sigma", "tweedie"),
}
SDE_STEPS = 12
SDE_START = np.random.default_rng(9).standard_normal((4, 3)).astype(np.float32)
# diffusers' DiTTransformer2DModel of the sizes of "dit".
DIFFUSERS = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3}
DIFFUSERS |= {"sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10}
# name -> registers; height and width that the encoder sees, from a table for 5 x 5 patches.
DINOV2 = {"dinov2-base": 0, "dinov2-with-registers-base": 4}
DINOV2_SIZES = {"width": 32, "depth": 2, "num_heads": 4}
DINOV2_RESOLUTION = (42, 28)
VAE = {"widths": (8, 16, 16), "depth": 1, "groups": 4}
GUIDED = {"steps": 7, "scale": 2.9, "interval": (0.1, 0.8)}
REPA_STEPS, REPA_HIGH = 8, 0.5  # one time of REPA's ODE grid lies on the edge of the interval
RAE = {"image_size": 48, "encoder_size": 42, "encoder": (32, 2, 4), "decoder": (24, 2, 3, 40)}
PICTURES = np.random.default_rng(4).uniform(-1, 1, (2, 48, 48, 3)).astype(np.float32)
FEATURES = np.random.default_rng(8).standard_normal((2, 3, 3, 32)).astype(np.float32)
IMAGES = np.random.default_rng(5).standard_normal((2, 8, 12, 3)).astype(np.float32)
LATENTS = np.random.default_rng(6).standard_normal((2, 4, 6, 4)).astype(np.float32)
LABELS = np.array([0, 5, 10], np.int32)  # 10 is the null class
TIMES = np.array([0.0, 0.37, 0.93], np.float32)
STEPS = np.array([0.0, 371.0, 999.0], np.float32)  # DiT's


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that depend on the name alone; norms around 1, everything else around 0, nothing left at its initial value."""
    values = 0.12 * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if ".norm1.emb." in key:  # diffusers repeats the condition's weights in every block
        return draw(key.split(".norm1.emb.")[1], shape)
    around_one = ("norm" in key and key.endswith("weight") and len(shape) == 1) or key.endswith(
        ("lambda1", "layer_scale_parameter", "bn.weight")
    )
    if key.startswith(("Conv2d_", "Mixed_")) and key.endswith("conv.weight"):
        values = values * 12 / np.prod(shape[1:]) ** 0.5  # Inception has no residuals to keep its scale
    if key.endswith("running_var"):
        values = np.abs(values) + 0.5
    return (values + around_one).astype(np.float32)


def times(name: str) -> np.ndarray:
    """In the authors' convention."""
    return STEPS if name == "dit" else TIMES


def inputs(name: str) -> np.ndarray:
    """[3, h, w, c], different in every place."""
    shape = CASES[name][1]["sample_shape"]
    return np.random.default_rng(7).standard_normal((3, *shape)).astype(np.float32)


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """What the output is multiplied by before its gradient is taken."""
    return np.random.default_rng(11).standard_normal(shape).astype(np.float32)


# Published encoders in small: name -> (class of transformers, its configuration, fields of `encoders.create`).
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_OURS = {"width": 32, "depth": 2, "num_heads": 4, "resolution": (42, 28)}
_CLIP = _SMALL | {"intermediate_size": 48, "patch_size": 14, "image_size": 70, "projection_dim": 20}
_CONV = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
ENCODERS = {
    "dinov2-giant": ("Dinov2Model", _SMALL | {"use_swiglu_ffn": True, "image_size": 70}, _OURS | {"hidden": 88}),
    "dinov3-vitb16": (
        "DINOv3ViTModel",
        _SMALL | {"intermediate_size": 128, "num_register_tokens": 4, "image_size": 64},
        _OURS | {"resolution": (48, 32)},
    ),
    "dinov3-vits16plus": (
        "DINOv3ViTModel",
        _SMALL
        | {"intermediate_size": 40, "num_register_tokens": 4, "image_size": 64, "use_gated_mlp": True, "hidden_act": "silu"},
        _OURS | {"resolution": (48, 32), "hidden": 40},
    ),
    "siglip-so400m-patch14-224": (
        "SiglipVisionModel",
        _SMALL | {"intermediate_size": 48, "patch_size": 14, "image_size": 70},
        _OURS | {"hidden": 48, "resolution": (45, 30)},  # a margin that the patches do not reach
    ),
    "clip-vit-large-patch14": ("CLIPVisionModelWithProjection", _CLIP, _OURS | {"hidden": 48, "projection_dim": 20}),
    "openclip-vit-huge-patch14": (
        "CLIPVisionModelWithProjection",
        _CLIP | {"hidden_act": "gelu"},
        _OURS | {"hidden": 48, "projection_dim": 20},
    ),
    "vit-mae-base": (
        "ViTMAEModel",
        _SMALL | {"intermediate_size": 128, "patch_size": 16, "image_size": 80, "mask_ratio": 0.0},
        _OURS | {"resolution": (48, 32)},
    ),
    "convnext-tiny": ("ConvNextModel", _CONV, {"widths": (8, 12, 16, 24), "depths": (1, 1, 2, 1), "resolution": (64, 96)}),
    "convnextv2-atto": ("ConvNextV2Model", _CONV, {"widths": (8, 12, 16, 24), "depths": (1, 1, 2, 1), "resolution": (64, 96)}),
}

# CLIP's text tower in small; 99 is the end of the text.
TEXT_SETTINGS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT_SETTINGS |= {"vocab_size": 100, "max_position_embeddings": 12, "projection_dim": 20, "eos_token_id": 99}
TEXT = {"width": 32, "depth": 2, "num_heads": 4, "projection_dim": 20, "hidden": 48, "vocabulary": 100, "length": 12}
IDS = np.array([[98, 5, 17, 99, 0, 0, 0, 0, 0], [98, 41, 2, 63, 7, 7, 30, 11, 99]], np.int32)
