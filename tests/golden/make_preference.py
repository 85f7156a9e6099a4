"""Writes `preference.npz`: scores and image gradients of published reward models, by their authors' own code, on the weights of `preference_cases`.

    python -m tests.golden.make_preference --code=DIR

DIR holds clones of tgxs002/HPSv2, NVlabs/DiffusionNFT, openai/CLIP and discus0434/aesthetic-predictor-v2-5 in folders of these names. Needs torch,
torchvision, transformers, ftfy and regex. None of that code is part of this project.
"""

import argparse
import gzip
import importlib
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

from tests.golden import preference_cases as cases


def main() -> None:
    """Runs every model in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", required=True, type=Path)
    code = parser.parse_args().code
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",):
        library.define(name)
        library.define(f"q{name}")
    results = {}
    for name, run in (
        ("pickscore", _pickscore),
        ("hpsv2.1", _hps),
        ("clipscore", _clipscore),
        ("aesthetic-v2", _aesthetic),
        ("aesthetic-v2.5", _siglip),
    ):
        results |= {f"{name}/{key}": value for key, value in run(code, torch).items()}
    np.savez_compressed(Path(__file__).parent / "preference.npz", **results)
    print({key: value.shape for key, value in results.items()})


def _vocabulary(folder: Path) -> Path:
    """The small vocabulary in all its published forms."""
    from jaxdrl.rewards.preference import tokens

    merges = [tuple(line.split()) for line in cases.MERGES]
    (folder / "vocab.json").write_text(json.dumps(tokens._openai_vocabulary(merges)))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *cases.MERGES, ""]))
    (folder / tokens.OPENAI_FILE).write_bytes(gzip.compress("\n".join(["version", *cases.MERGES]).encode()))
    return folder


def _draw(network, torch, name=lambda key: key) -> np.ndarray:
    """Draws every tensor; gives names and shapes in the file."""
    state = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
    drawn = {key: torch.tensor(cases.draw(name(key), tuple(value.shape))) for key, value in state.items()}
    network.load_state_dict(drawn, strict=False)
    network.eval()
    return np.array([f"{name(key)}:{','.join(map(str, value.shape))}" for key, value in state.items()])


def _results(torch, score, transform, published) -> dict[str, np.ndarray]:
    """`score` takes what the network takes; `transform` floats [b, 3, h, w] in [0, 1]; `published` PIL images."""
    from PIL import Image

    images = torch.tensor(cases.PICTURES.transpose(0, 3, 1, 2)).requires_grad_(True)
    found = score(transform(0.5 * (images + 1)))
    (found * torch.tensor([1.0, -0.7])).sum().backward()
    pixels = cases.bytes_of(cases.PICTURES)
    with torch.no_grad():
        through_bytes = score(published([Image.fromarray(image) for image in pixels]))
    gradient = images.grad.numpy().transpose(0, 2, 3, 1)
    return {"score": found.detach().numpy(), "gradient": gradient, "published": through_bytes.numpy()}


def _clip_model(torch, activation: str):
    import transformers

    vision, text = cases.VISION, cases.TEXT
    common = {"projection_dim": vision["projection_dim"], "hidden_act": activation}
    config = transformers.CLIPConfig(
        text_config=common
        | {"hidden_size": text["width"], "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
        | {"vocab_size": cases.VOCABULARY, "max_position_embeddings": cases.LENGTH, "eos_token_id": 2},
        vision_config=common
        | {"hidden_size": vision["width"], "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        | {"image_size": cases.SIZE, "patch_size": cases.PATCH},
        projection_dim=vision["projection_dim"],
    )
    return transformers.CLIPModel._from_config(config, attn_implementation="eager")


def _texts(torch, folder: Path):
    """Ids and mask by transformers' tokenizer."""
    import transformers

    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in cases.MERGES]
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
    return tokenizer(cases.PROMPTS, padding=True, truncation=True, max_length=cases.LENGTH, return_tensors="pt")


def _pickscore(code: Path, torch) -> dict[str, np.ndarray]:
    """The README's lines; transformers' processor."""
    import torchvision.transforms.v2.functional as F
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    network = _clip_model(torch, "gelu")
    names = _draw(network, torch)
    size = {"size": {"shortest_edge": cases.SIZE}, "crop_size": {"height": cases.SIZE, "width": cases.SIZE}}
    processor = CLIPImageProcessorPil(**size)
    with tempfile.TemporaryDirectory() as folder:
        texts = _texts(torch, _vocabulary(Path(folder)))
    text = network.get_text_features(**texts).pooler_output.detach()
    text = text / torch.norm(text, dim=-1, keepdim=True)

    def score(pixels):
        image = network.get_image_features(pixel_values=pixels).pooler_output
        image = image / torch.norm(image, dim=-1, keepdim=True)
        return network.logit_scale.exp() * (text[:2] @ image.T).diag()

    def transform(images):
        width = int(cases.SIZE * 57 / 40)
        images = F.resize(images, [cases.SIZE, width], F.InterpolationMode.BICUBIC, antialias=True)
        left = int((width - cases.SIZE) / 2.0)
        return F.normalize(images[..., left : left + cases.SIZE], processor.image_mean, processor.image_std)

    found = _results(torch, score, transform, lambda images: processor(images, return_tensors="pt").pixel_values)
    return found | {"names": names, "ids": texts.input_ids.numpy(), "text": text.numpy()}


def _hps_package(code: Path):
    """HPSv2's own open_clip without what surrounds it."""
    for name in ("hpsv2", "hpsv2.src", "hpsv2.src.open_clip"):
        package = types.ModuleType(name)
        package.__path__ = [str(code / "HPSv2" / name.replace(".", "/"))]
        sys.modules[name] = package
    return {part: importlib.import_module(f"hpsv2.src.open_clip.{part}") for part in ("model", "transform", "tokenizer")}


def _hps(code: Path, torch) -> dict[str, np.ndarray]:
    """img_score.py: HPSv2's own open_clip, its preprocessing and its tokenizer."""
    package = _hps_package(code)
    vision, text = cases.VISION, cases.TEXT
    network = package["model"].CLIP(
        vision["projection_dim"],
        {"image_size": cases.SIZE, "layers": 2, "width": vision["width"], "head_width": 8, "patch_size": cases.PATCH}
        | {"mlp_ratio": 1.5},
        {"context_length": cases.LENGTH, "vocab_size": cases.VOCABULARY, "width": text["width"], "heads": 3, "layers": 2},
    )
    names = _draw(network, torch)
    transform = package["transform"].image_transform(cases.SIZE, False, resize_longest_max=True)
    with tempfile.TemporaryDirectory() as folder:
        path = _vocabulary(Path(folder)) / "bpe_simple_vocab_16e6.txt.gz"
        package["tokenizer"]._tokenizer = package["tokenizer"].SimpleTokenizer(str(path))
    ids = package["tokenizer"].tokenize(cases.PROMPTS, cases.LENGTH)
    features = network.encode_text(ids, normalize=True).detach()

    def score(pixels):
        return (network.encode_image(pixels, normalize=True) @ features[:2].T).diagonal()

    later = transform.transforms[2:]

    def floats(images):
        for step in later:
            images = torch.stack([step(image) for image in images])
        return images

    found = _results(torch, score, floats, lambda images: torch.stack([transform(image) for image in images]))
    return found | {"names": names, "ids": ids.numpy(), "text": features.numpy()}


def _clipscore(code: Path, torch) -> dict[str, np.ndarray]:
    """DiffusionNFT's ClipScorer: its transform of floats in [0, 1]; 100 there is the scale of the published weights."""
    import torchvision.transforms.functional as F
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sys.path.insert(0, str(code / "DiffusionNFT" / "flow_grpo"))
    scorer = importlib.import_module("clip_scorer")
    sys.path.pop(0)
    network = _clip_model(torch, "quick_gelu")
    names = _draw(network, torch)
    size = {"size": {"shortest_edge": cases.SIZE}, "crop_size": {"height": cases.SIZE, "width": cases.SIZE}}
    transform = scorer.get_image_transform(CLIPImageProcessorPil(**size))
    with tempfile.TemporaryDirectory() as folder:
        texts = _texts(torch, _vocabulary(Path(folder)))
    first = {key: value[:2] for key, value in texts.items()}

    def score(pixels):
        return network(pixel_values=pixels, **first).logits_per_image.diagonal() / network.logit_scale.exp()

    found = _results(torch, score, transform, lambda images: torch.stack([transform(F.to_tensor(image)) for image in images]))
    return found | {"names": names}


def _aesthetic(code: Path, torch) -> dict[str, np.ndarray]:
    """simple_inference.py: openai/CLIP's preprocessing; its network by transformers; the head as it stands there."""
    import torchvision.transforms as T

    sys.path.insert(0, str(code / "CLIP"))
    transform = importlib.import_module("clip.clip")._transform(cases.SIZE)
    sys.path.pop(0)
    network = _clip_model(torch, "quick_gelu")
    names = _draw(network, torch)
    layers = torch.nn.Sequential(
        torch.nn.Linear(cases.VISION["projection_dim"], 1024), torch.nn.Dropout(0.2), torch.nn.Linear(1024, 128),
        torch.nn.Dropout(0.2), torch.nn.Linear(128, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 16), torch.nn.Linear(16, 1),
    )  # fmt: skip
    head = _draw(layers, torch, lambda key: f"layers.{key}")

    def score(pixels):
        image = network.get_image_features(pixel_values=pixels).pooler_output
        return layers(image / torch.linalg.vector_norm(image, dim=-1, keepdim=True))[:, 0]

    floats = T.Compose([step for step in transform.transforms if isinstance(step, T.Resize | T.CenterCrop | T.Normalize)])
    found = _results(torch, score, floats, lambda images: torch.stack([transform(image) for image in images]))
    return found | {"names": np.concatenate([names, head])}


def _siglip(code: Path, torch) -> dict[str, np.ndarray]:
    """AestheticPredictorV2_5Model itself; names as in google/siglip's file and in the predictor's."""
    import torchvision.transforms.v2.functional as F
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    sys.path.insert(0, str(code / "aesthetic-predictor-v2-5" / "src"))
    module = importlib.import_module("aesthetic_predictor_v2_5.siglip_v2_5")
    sys.path.pop(0)
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.SiglipVisionConfig(**sizes, image_size=cases.SIGLIP_SIZE, patch_size=cases.PATCH)
    network = module.AestheticPredictorV2_5Model(config)

    def on_disk(key):
        if key.startswith("layers."):
            return key.removeprefix("layers.")
        return key if key.startswith("vision_model.") else f"vision_model.{key}"

    names = _draw(network, torch, on_disk)
    side = cases.SIGLIP_SIZE
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})

    def floats(images):
        images = F.resize(images, [side, side], F.InterpolationMode.BICUBIC, antialias=True)
        return F.normalize(images, processor.image_mean, processor.image_std)

    def score(pixels):
        return network(pixel_values=pixels, return_dict=True).logits[:, 0]

    found = _results(torch, score, floats, lambda images: processor(images, return_tensors="pt").pixel_values)
    return found | {"names": names}


if __name__ == "__main__":
    main()
