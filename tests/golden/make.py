"""Writes `official.npz`: outputs and input gradients of the authors' own PyTorch code on the weights of `cases.py`.

    python -m tests.golden.make --code=DIR

DIR holds clones of willisma/SiT, facebookresearch/DiT, sihyun-yu/REPA, LTH14/JiT, bytetriper/RAE, lndezxn/SpectralDiT and toshas/torch-fidelity in
folders of these names. Needs torch, timm, diffusers and transformers. None of that code is part of this project.
"""

import argparse
import importlib
import sys
import types
from pathlib import Path

import numpy as np

from tests.golden import cases, official


def main() -> None:
    """Runs every case in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", required=True, type=Path)
    code = parser.parse_args().code
    import torch

    results = {f"sde/{key}": value for key, value in _sde(code, torch).items()}
    results |= {f"vae/{key}": value for key, value in _autoencoder(torch).items()}
    results |= {f"rae/{key}": value for key, value in _rae(code, torch).items()}
    results |= {f"diffusers/{key}": value for key, value in _diffusers(torch).items()}
    for name in cases.DINOV2:
        results |= {f"{name}/{key}": value for key, value in _dinov2(name, torch).items()}
    for name in cases.ENCODERS:
        results |= {f"{name}/{key}": value for key, value in _encoder(name, torch).items()}
    results |= {f"spectral/{key}": value for key, value in _spectral(code, torch).items()}
    results |= {f"text/{key}": value for key, value in _text(torch).items()}
    results |= {f"inception/{key}": value for key, value in _inception(code, torch).items()}
    official.prepare()
    for name in cases.CASES:
        results |= {f"{name}/{key}": value for key, value in _run(name, code, torch).items()}
    results["jit/guided"] = _jit_sampler(code, torch)
    for name in ("sit", "dit"):
        results[f"{name}/guided"] = _guided(name, code, torch)
    results |= {f"repa/{key}": value for key, value in _repa_samplers(code, torch).items()}
    np.savez_compressed(Path(__file__).parent / "official.npz", **results)
    print({key: value.shape for key, value in results.items() if not key.endswith("names")})


def _run(name: str, code: Path, torch) -> dict[str, np.ndarray]:
    network = _drawn(name, code, torch)
    state = network.state_dict()
    learned = _learned(network)
    x = torch.tensor(cases.inputs(name).transpose(0, 3, 1, 2)).requires_grad_(True)
    out = network(x, torch.tensor(cases.times(name)), torch.tensor(cases.LABELS).long())
    found: dict[str, np.ndarray] = {}
    if name.startswith("repa"):
        out, (projection,) = out
        found["projection"] = projection.detach().numpy()
    last = lambda value: value.detach().numpy().transpose(0, 2, 3, 1)  # noqa: E731
    (out * torch.tensor(cases.cotangent(last(out).shape).transpose(0, 3, 1, 2))).sum().backward()
    names = np.array([f"{key}:{','.join(map(str, value.shape))}:{int(key in learned)}" for key, value in state.items()])
    return found | {"out": last(out), "gradient": last(x.grad), "names": names}


def _sde(code: Path, torch) -> dict[str, np.ndarray]:
    """SiT's SDE sampler on a velocity in closed form, driven by our noise."""
    import jax

    from jaxdrl.flow import sde

    stub = types.ModuleType("torchdiffeq")
    stub.odeint = None
    sys.modules.setdefault("torchdiffeq", stub)
    sys.path.insert(0, str(code / "SiT"))
    transport = importlib.import_module("transport")
    sys.path.pop(0)
    found, drawn, original = {}, iter(()), torch.randn
    torch.randn = lambda size: next(drawn)
    for name, (method, form, last_step) in cases.SDE.items():
        noises = [sde.step_noise(jax.random.key(3), k, cases.SDE_START.shape) for k in range(cases.SDE_STEPS - 1)]
        drawn = iter([torch.tensor(np.asarray(noise)) for noise in noises])
        last = None if last_step == "none" else last_step.capitalize()
        theirs = "inccreasing-decreasing" if form == "increasing-decreasing" else form  # their spelling
        sampler = transport.Sampler(transport.create_transport()).sample_sde(
            sampling_method=method.capitalize(), diffusion_form=theirs, last_step=last, num_steps=cases.SDE_STEPS
        )
        found[name] = sampler(torch.tensor(cases.SDE_START), lambda x, t: torch.tanh(2 * x) - x * t[:, None])[-1].numpy()
    torch.randn = original
    return found


def _autoencoder(torch) -> dict[str, np.ndarray]:
    from diffusers import AutoencoderKL

    fields = cases.VAE
    levels = len(fields["widths"])
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=fields["widths"],
        layers_per_block=fields["depth"],
        norm_num_groups=fields["groups"],
    ).eval()
    state = {key: torch.tensor(cases.draw(key, tuple(value.shape))) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    images, latents = (torch.tensor(value.transpose(0, 3, 1, 2)) for value in (cases.IMAGES, cases.LATENTS))
    images.requires_grad_(True)
    latents.requires_grad_(True)
    last = lambda value: value.detach().numpy().transpose(0, 2, 3, 1)  # noqa: E731
    first = lambda value: torch.tensor(cases.cotangent(last(value).shape).transpose(0, 3, 1, 2))  # noqa: E731
    law, decoded = network.encode(images).latent_dist, network.decode(latents / 0.18215).sample
    (law.mean * first(law.mean)).sum().backward()
    (decoded * first(decoded)).sum().backward()
    gradients = {"gradient_images": last(images.grad), "gradient_latents": last(latents.grad)}
    names = np.array([f"{key}:{','.join(map(str, value.shape))}:1" for key, value in state.items()])
    return gradients | {"mean": last(law.mean), "std": last(law.std), "decoded": last(decoded), "names": names}


def _diffusers(torch) -> dict[str, np.ndarray]:
    """diffusers' own DiT, whose numbers differ from the original's on the same weights."""
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(**cases.DIFFUSERS).eval()
    state = {key: torch.tensor(cases.draw(key, tuple(value.shape))) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    x = torch.tensor(cases.inputs("dit").transpose(0, 3, 1, 2)).requires_grad_(True)
    out = network(x, torch.tensor(cases.STEPS), torch.tensor(cases.LABELS).long()).sample
    last = lambda value: value.detach().numpy().transpose(0, 2, 3, 1)  # noqa: E731
    (out * torch.tensor(cases.cotangent(last(out).shape).transpose(0, 3, 1, 2))).sum().backward()
    names = np.array([f"{key}:{','.join(map(str, value.shape))}:1" for key, value in state.items()])
    return {"out": last(out), "gradient": last(x.grad), "names": names}


def _on_disk(key: str) -> str:
    """transformers renames the attention in memory; files keep the old names."""
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}
    for memory, name in names.items():
        key = key.replace(f"attention.{memory}.", f"attention.{name}.")
    return key


def _dinov2(name: str, torch) -> dict[str, np.ndarray]:
    """transformers' DINOv2 behind torch's antialiased bicubic resize, with the position table of another, square grid."""
    import transformers

    from jaxdrl.encoders.published import IMAGENET

    sizes = cases.DINOV2_SIZES
    kind = "Dinov2WithRegisters" if cases.DINOV2[name] else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=sizes["width"], num_hidden_layers=sizes["depth"], num_attention_heads=sizes["num_heads"], image_size=70,
        patch_size=14,
    )  # fmt: skip
    network = getattr(transformers, f"{kind}Model")(config).eval()
    state = {key: torch.tensor(cases.draw(_on_disk(key), tuple(value.shape))) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    images = torch.tensor(cases.PICTURES.transpose(0, 3, 1, 2)).requires_grad_(True)
    seen = torch.nn.functional.interpolate(0.5 * (images + 1), size=cases.DINOV2_RESOLUTION, mode="bicubic", antialias=True)
    centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET.values())
    tokens = network((seen - centre) / spread).last_hidden_state
    (tokens * torch.tensor(cases.cotangent(tuple(tokens.shape)))).sum().backward()
    names = np.array([f"{_on_disk(key)}:{','.join(map(str, value.shape))}:1" for key, value in state.items()])
    gradient = images.grad.numpy().transpose(0, 2, 3, 1)
    return {"tokens": tokens.detach().numpy(), "gradient": gradient, "names": names}


def _encoder(name: str, torch) -> dict[str, np.ndarray]:
    """One of transformers' encoders, saved and read again for the names on disk; torch's resize before it."""
    import tempfile

    import transformers
    from safetensors.torch import load_file

    from jaxdrl import encoders

    kind, settings, fields = cases.ENCODERS[name]
    cls = getattr(transformers, kind)
    network = cls._from_config(cls.config_class(**settings), attn_implementation="eager").eval()
    learned = dict(network.named_parameters())
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        shapes = {key: tuple(value.shape) for key, value in load_file(f"{folder}/model.safetensors").items()}
        state = {key: torch.tensor(cases.draw(key, shape)) for key, shape in shapes.items()}
        if "embeddings.position_embeddings" in shapes and name.startswith("vit-mae"):
            assert not learned["embeddings.position_embeddings"].requires_grad
        from safetensors.torch import save_file

        save_file(state, f"{folder}/model.safetensors", metadata={"format": "pt"})
        network = cls.from_pretrained(folder, attn_implementation="eager").eval()
    how = encoders.create(name, **fields).preprocess
    images = torch.tensor(cases.PICTURES.transpose(0, 3, 1, 2)).requires_grad_(True)
    seen = torch.nn.functional.interpolate(0.5 * (images + 1), size=how.size, mode=how.kernel, antialias=how.antialias)
    centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (how.mean, how.std))
    options = {"interpolate_pos_encoding": True} if kind in ("SiglipVisionModel", "ViTMAEModel") or "CLIP" in kind else {}
    if kind == "ViTMAEModel":
        tokens = how.size[0] * how.size[1] // 16**2
        options["noise"] = torch.arange(tokens).float()[None].repeat(2, 1)
    out = network((seen - centre) / spread, **options)
    # CLIP's class token stands there before its norm, which is not a feature here.
    found = {"tokens": out.last_hidden_state[:, 1:] if "CLIP" in kind else out.last_hidden_state}
    pooled = getattr(out, "image_embeds", None) if "CLIP" in kind else getattr(out, "pooler_output", None)
    if pooled is not None and "ViT" not in kind and "Dino" not in kind:
        found["pooled"] = pooled
    total = sum((value * torch.tensor(cases.cotangent(tuple(value.shape)))).sum() for value in found.values())
    total.backward()
    names = np.array([f"{key}:{','.join(map(str, shape))}:1" for key, shape in shapes.items()])
    gradient = images.grad.numpy().transpose(0, 2, 3, 1)
    return {key: value.detach().numpy() for key, value in found.items()} | {"gradient": gradient, "names": names}


def _spectral(code: Path, torch) -> dict[str, np.ndarray]:
    """SpectralDiT's own block: its MLP residual before and after the gate."""
    sys.path.insert(0, str(code / "SpectralDiT" / "src"))
    for loaded in [key for key in sys.modules if key.split(".")[0] == "model"]:
        del sys.modules[loaded]
    blocks = importlib.import_module("model.blocks")
    sys.path.pop(0)
    gating = blocks.FreqResidualGatingConfig(enabled=True, gate_scale=0.2)
    block = blocks.AdaLNZeroBlock(16, 4, 4.0, gating)
    state = {key: torch.tensor(10 * cases.draw(key, tuple(value.shape))) for key, value in block.state_dict().items()}
    block.load_state_dict(state)
    x, condition = (torch.tensor(cases.cotangent(shape)) for shape in ((2, 16, 16), (2, 16)))
    with torch.no_grad():
        _, tensors = block(x, condition, return_debug_tensors=True, token_grid_size=4)
    return {"before": tensors.mlp_residual_pre_freq_gate.numpy(), "after": tensors.mlp_residual.numpy()}


def _text(torch) -> dict[str, np.ndarray]:
    """transformers' CLIP text tower, names on disk."""
    import transformers

    config = transformers.CLIPTextConfig(**cases.TEXT_SETTINGS)
    network = transformers.CLIPTextModelWithProjection._from_config(config, attn_implementation="eager").eval()
    state = {key: torch.tensor(cases.draw(key, tuple(value.shape))) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    out = network(torch.tensor(cases.IDS).long())
    names = np.array([f"{key}:{','.join(map(str, value.shape))}:1" for key, value in state.items()])
    return {"tokens": out.last_hidden_state.detach().numpy(), "projection": out.text_embeds.detach().numpy(), "names": names}


def inception_network(code: Path, torch):
    """torch-fidelity's network with drawn weights."""
    package = types.ModuleType("torch_fidelity")  # its own imports everything
    package.__path__ = [str(code / "torch-fidelity" / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    # Their constructor reads the published weights; the layers alone are wanted here.
    module.FeatureExtractorInceptionV3.load_state_dict = lambda self, *_, **__: None
    original, torch.load = torch.load, lambda *_, **__: {}
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=__file__).eval()
    torch.load = original
    state = {
        key: torch.tensor(cases.draw(key, tuple(value.shape))) if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    torch.nn.Module.load_state_dict(network, state)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def _inception(code: Path, torch) -> dict[str, np.ndarray]:
    """torch-fidelity's network behind its own TensorFlow-1 resize, on bytes."""
    from jaxdrl.encoders import preprocess

    network = inception_network(code, torch)
    resize = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    state = network.state_dict()
    images = torch.tensor((cases.PICTURES.transpose(0, 3, 1, 2) + 1) * 127.5)
    found = inception_outputs(network, (resize(images, size=(299, 299), align_corners=False) - 128) / 128)
    # A ReLU network's gradient jumps where a rounding error turns a unit off, so it is compared in float64, behind our own preprocessing.
    matrix = torch.tensor(preprocess.resize_matrix(48, 299, "tf1-bilinear")).double()
    images = torch.tensor(cases.PICTURES.transpose(0, 3, 1, 2)).double().requires_grad_(True)
    centre = float(np.float32(128 / 255))
    seen = (torch.einsum("ih,bchw,jw->bcij", matrix, 0.5 * (images + 1), matrix) - centre) / centre
    pool = inception_outputs(network.double(), seen)["pool"]
    (pool * torch.tensor(cases.cotangent(tuple(pool.shape)))).sum().backward()
    shapes = np.array([f"{key}:{','.join(map(str, value.shape))}:1" for key, value in state.items() if value.is_floating_point()])
    gradient = images.grad.numpy().transpose(0, 2, 3, 1)
    return {key: value.detach().numpy() for key, value in found.items()} | {"gradient": gradient, "names": shapes}


def inception_outputs(network, x) -> dict:
    """Pool, spatial features and logits, block by block."""
    names = "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 MaxPool_1 Conv2d_3b_1x1 Conv2d_4a_3x3 MaxPool_2 Mixed_5b Mixed_5c Mixed_5d Mixed_6a"
    for name in [*names.split(), "Mixed_6b", "Mixed_6c"]:
        x = getattr(network, name)(x)
    spatial = network.Mixed_6d.branch1x1(x)[:, :7].permute(0, 2, 3, 1).reshape(2, -1)
    for name in ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"):
        x = getattr(network, name)(x)
    pool = x.mean(dim=(2, 3))
    return {"pool": pool, "spatial": spatial, "logits": pool @ network.fc.weight.T}


def _jit_sampler(code: Path, torch) -> np.ndarray:
    """JiT's own guided Heun sampler on the small network."""
    network = _drawn("jit", code, torch)
    sys.path.insert(0, str(code / "JiT"))
    denoiser = importlib.import_module("denoiser").Denoiser
    sys.path.pop(0)
    settings = {"net": network, "t_eps": 5e-2, "num_classes": 10, "noise_scale": 1.0, "img_size": 16, "method": "heun"}
    settings |= {"steps": cases.GUIDED["steps"], "cfg_scale": cases.GUIDED["scale"], "cfg_interval": cases.GUIDED["interval"]}
    fake = types.SimpleNamespace(**settings)
    for name in ("_forward_sample", "_euler_step", "_heun_step"):
        setattr(fake, name, types.MethodType(getattr(denoiser, name), fake))
    original, torch.randn = torch.randn, lambda *_, **__: torch.tensor(cases.inputs("jit").transpose(0, 3, 1, 2))
    out = denoiser.generate(fake, torch.tensor(cases.LABELS[:3]).long())
    torch.randn = original
    return out.numpy().transpose(0, 2, 3, 1)


def _rae(code: Path, torch) -> dict[str, np.ndarray]:
    """RAE's encoder (from transformers, its last norm stripped as RAE does) and decoder, names as on disk."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    from jaxdrl.encoders.published import IMAGENET

    (width, depth, heads), (narrow, blocks, decoder_heads, hidden) = cases.RAE["encoder"], cases.RAE["decoder"]
    size = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "image_size": 70}
    encoder = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**size, patch_size=14, num_register_tokens=4)).eval()
    state = {key: torch.tensor(cases.draw(_on_disk(key), tuple(value.shape))) for key, value in encoder.state_dict().items()}
    encoder.load_state_dict(state)
    encoder.layernorm.elementwise_affine, encoder.layernorm.weight, encoder.layernorm.bias = False, None, None
    sys.path.insert(0, str(code / "RAE" / "src"))
    package = types.ModuleType("stage1")
    package.__path__ = [str(code / "RAE" / "src" / "stage1")]
    sys.modules["stage1"] = package
    decoders = importlib.import_module("stage1.decoders.decoder")
    settings = importlib.import_module("stage1.decoders.utils").ViTMAEConfig(
        hidden_size=width, decoder_hidden_size=narrow, decoder_num_hidden_layers=blocks, patch_size=16, image_size=48,
        decoder_num_attention_heads=decoder_heads, decoder_intermediate_size=hidden, num_channels=3, layer_norm_eps=1e-12,
    )  # fmt: skip
    sys.path.pop(0)
    decoder = decoders.GeneralDecoder(settings, num_patches=9).eval()
    learned = {key: value for key, value in decoder.state_dict().items() if key != "decoder_pos_embed"}
    drawn = {key: torch.tensor(cases.draw(key, tuple(value.shape))) for key, value in learned.items()}
    decoder.load_state_dict(drawn, strict=False)
    mean, var = (torch.tensor(cases.draw(key, (width, 3, 3))) for key in ("mean", "var"))
    var = var.abs() + 0.5
    found = _rae_outputs(encoder, decoder, mean, var, tuple(IMAGENET.values()), torch)
    shapes = {_on_disk(key): value.shape for key, value in state.items()} | {key: value.shape for key, value in drawn.items()}
    names = np.array([f"{key}:{','.join(map(str, shape))}:1" for key, shape in shapes.items()])
    return found | {"names": names}


def _rae_outputs(encoder, decoder, mean, var, statistics, torch) -> dict[str, np.ndarray]:
    """rae.py's encode and decode, line by line, with gradients."""
    centre, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    first = lambda value: torch.tensor(value.transpose(0, 3, 1, 2))  # noqa: E731
    last = lambda value: value.detach().numpy().transpose(0, 2, 3, 1)  # noqa: E731
    images, latents = first(cases.PICTURES).requires_grad_(True), first(cases.FEATURES).requires_grad_(True)
    seen = torch.nn.functional.interpolate(0.5 * (images + 1), size=(42, 42), mode="bicubic", align_corners=False)
    tokens = encoder((seen - centre) / spread).last_hidden_state[:, 5:]
    z = (tokens.transpose(1, 2).reshape(2, -1, 3, 3) - mean) / torch.sqrt(var + 1e-5)
    back = (latents * torch.sqrt(var + 1e-5) + mean).reshape(2, -1, 9).transpose(1, 2)
    pictures = 2 * (decoder.unpatchify(decoder(back, drop_cls_token=False).logits) * spread + centre) - 1
    for value in (z, pictures):
        (value * first(cases.cotangent(last(value).shape))).sum().backward()
    gradients = {"gradient_images": last(images.grad), "gradient_latents": last(latents.grad)}
    return gradients | {"latents": last(z), "pictures": last(pictures)}


def _guided(name: str, code: Path, torch) -> np.ndarray:
    """SiT's and DiT's own guidance: the first three channels."""
    network, x = _drawn(name, code, torch), torch.tensor(cases.inputs(name).transpose(0, 3, 1, 2))
    y = torch.cat([torch.tensor(cases.LABELS).long(), torch.full((3,), 10)])
    t = torch.tensor(cases.times(name)).repeat(2)
    with torch.no_grad():
        out = network.forward_with_cfg(torch.cat([x, x]), t, y, cases.GUIDED["scale"])
    return out[:3].numpy().transpose(0, 2, 3, 1)


def _repa_samplers(code: Path, torch) -> dict[str, np.ndarray]:
    """REPA's SDE and ODE samplers with guidance on an interval, driven by our noise."""
    import jax

    from jaxdrl.flow import sde

    network = _drawn("repa", code, torch)
    sys.path.insert(0, str(code / "REPA"))
    samplers = importlib.import_module("samplers")
    sys.path.pop(0)
    start = torch.tensor(cases.inputs("repa").transpose(0, 3, 1, 2))

    def model(x, t, y):
        return network(x, t, torch.where(y == 1000, 10, y))  # their null class is written out

    settings = {"cfg_scale": 1.8, "guidance_high": cases.REPA_HIGH, "num_steps": cases.REPA_STEPS}
    labels = torch.tensor(cases.LABELS[:3]).long()
    shape = cases.inputs("repa").shape
    noises = [np.asarray(sde.step_noise(jax.random.key(3), k, shape)) for k in range(cases.REPA_STEPS - 1)]
    drawn, original = iter([torch.tensor(noise.transpose(0, 3, 1, 2)).double() for noise in noises]), torch.randn_like
    torch.randn_like = lambda x: next(drawn)
    found = {"sde": samplers.euler_maruyama_sampler(model, start, labels, **settings)}
    torch.randn_like = original
    for heun in (False, True):
        # Their Heun step is guided, or not, by the time at its start; ours by the time of each evaluation. The same everywhere: high = 1.
        options = settings | ({"guidance_high": 1.0} if heun else {})
        found["heun" if heun else "euler"] = samplers.euler_sampler(model, start, labels, heun=heun, **options)
    return {key: value.detach().float().numpy().transpose(0, 2, 3, 1) for key, value in found.items()}


def _network(name: str, code: Path):
    family, _, arguments = cases.CASES[name]
    return official.build(family, code, arguments)


def _learned(network) -> set[str]:
    return {key for key, parameter in network.named_parameters() if parameter.requires_grad or key == "t_embedder.W"}


def _drawn(name: str, code: Path, torch):
    network = _network(name, code)
    learned, state = _learned(network), network.state_dict()
    network.load_state_dict(
        {key: torch.tensor(cases.draw(key, tuple(value.shape))) if key in learned else value for key, value in state.items()}
    )
    return network


if __name__ == "__main__":
    main()
