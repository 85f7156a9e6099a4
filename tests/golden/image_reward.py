"""A small ImageReward, its drawn weights and inputs; and what the authors' own PyTorch code makes of them, in `image_reward.npz`.

    python -m tests.golden.image_reward --code=DIR [--published]

With --published both run at the published size and the largest relative errors are printed, for `docs/parity.md`; that takes 8 GB.
DIR holds a clone of THUDM/ImageReward. Needs torch, torchvision, timm and transformers. None of that code is part of this project.
"""

import argparse
import importlib
import json
import sys
import tempfile
import types
import warnings
from pathlib import Path

import numpy as np

from tests.golden import cases

FILE = Path(__file__).parent / "image_reward.npz"
SIDE = 32
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnoprstuvwy",
    *(f"##{c}" for c in "abcdefghiklmnoprstuvy"),
]
VOCABULARY += ["photo", "of", "cat", "tench", "hound", "red", "-", ",", ".", "é", "猫"]
VISION = {"width": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "resolution": SIDE}
TEXT = {"width": 24, "depth": 2, "num_heads": 3, "vocabulary": len(VOCABULARY) + 2, "length": 40}
# Words in pieces, capitals and accents, signs, a language without blanks, BLIP's own tokens, an unknown letter, more than fits.
PROMPTS = [
    "a photo of a cat",
    "Résumé of a RED hound, tench-like.",
    "猫 [ENC] of [DEC] xylophones",
    "a red cat, " * 12,
]
IMAGES = np.concatenate([cases.PICTURES[:, :40], 1.1 * cases.PICTURES[:, :7:-1, ::-1]])  # 40 x 48; the last two leave [-1, 1]


def draw(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """As `cases.draw`, matrices larger: scores differ by their images. BERT spells its norms LayerNorm."""
    return cases.draw(key.lower(), shape) * np.float32(2 if len(shape) > 1 and "mlp.layers" not in key else 1)


def write_vocabulary(folder: Path) -> Path:
    """Writes vocab.txt and returns its path."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Runs their model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", required=True, type=Path)
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if options.published:
            return print(_compare(options.code, Path(folder)))
        results = _run(options.code, Path(folder))
    np.savez_compressed(FILE, **results)
    print({key: value.shape for key, value in results.items()}, results["score"], results["published"])


def _run(code: Path, folder: Path) -> dict[str, np.ndarray]:
    import torch
    from PIL import Image

    network = theirs(code, folder, VISION, TEXT)
    state = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
    network.load_state_dict({key: torch.tensor(draw(key, tuple(value.shape))) for key, value in state.items()}, strict=False)
    network.eval()
    text = network.blip.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    images = torch.tensor(IMAGES.transpose(0, 3, 1, 2)).requires_grad_(True)
    seen = torch.nn.functional.interpolate(0.5 * (images + 1), size=(SIDE, 38), mode="bicubic", antialias=True)[..., 3:35]
    transforms = network.preprocess.transforms
    score = network.score_gard(text.input_ids, text.attention_mask, transforms[-1](seen))[:, 0]
    (score * torch.tensor(cases.cotangent(score.shape))).sum().backward()
    pixels = np.round(np.clip(0.5 * (IMAGES + 1), 0, 1) * 255).astype(np.uint8)
    published = [network.score(prompt, Image.fromarray(image)) for prompt, image in zip(PROMPTS, pixels, strict=True)]
    return {
        "ids": text.input_ids.numpy().astype(np.int32),
        "mask": text.attention_mask.numpy().astype(bool),
        "score": score.detach().numpy(),
        "gradient": images.grad.numpy().transpose(0, 2, 3, 1),
        "published": np.array(published, np.float32),
        "names": np.array([f"{key}:{','.join(map(str, value.shape))}" for key, value in network.state_dict().items()]),
    }


def _compare(code: Path, folder: Path) -> dict[str, float]:
    """Scores and image gradients of both, every learned tensor drawn."""
    import jax
    import jax.numpy as jnp
    import torch

    from jaxdrl.rewards.preference import image_reward
    from jaxdrl.weights import from_torch

    network = theirs(code, folder, image_reward.VISION, image_reward.TEXT).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.normal_(0, 0.05 if key.startswith("mlp.") else 0.02)
            parameter += float("norm" in key.lower() and key.endswith("weight"))
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    ids, weights = np.zeros((2, 35), np.int64), np.array([1.0, -0.7], np.float32)
    for row, count in zip(ids, (7, 35), strict=True):
        row[:count] = random.integers(1000, 30000, count)
    given = torch.tensor(images.transpose(0, 3, 1, 2)).requires_grad_(True)
    mask = torch.tensor((ids > 0).astype(np.int64))
    score = network.score_gard(torch.tensor(ids), mask, network.preprocess.transforms[-1](0.5 * (given + 1)))[:, 0]
    (score * torch.tensor(weights)).sum().backward()
    score, slope = score.detach().numpy(), given.grad.numpy().transpose(0, 2, 3, 1)
    state = network.state_dict()
    del network
    how = {"scan_layers": True}
    ours = image_reward.create(vision=how, text=how)
    params = from_torch(ours, state, place=jnp.asarray)
    del state

    def weighted(images, params):
        found = ours.score(params, images, jnp.asarray(ids, jnp.int32))
        return found @ weights, found

    with jax.default_matmul_precision("highest"):
        (_, found), gradient = jax.jit(jax.value_and_grad(weighted, has_aux=True))(jnp.asarray(images), params)
    pairs = {"score": (found, score), "gradient": (gradient, slope)}
    return {key: float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for key, (a, b) in pairs.items()}


def theirs(code: Path, folder: Path, vision: dict, text: dict):
    """Their ImageReward of any size; what newer versions of transformers and timm have dropped is put back."""
    import torch

    _torchvision(torch)
    import transformers
    from transformers import modeling_utils, pytorch_utils

    modeling_utils.apply_chunking_to_forward = pytorch_utils.apply_chunking_to_forward
    modeling_utils.prune_linear_layer = modeling_utils.find_pruneable_heads_and_indices = None
    base = modeling_utils.PreTrainedModel
    base.get_head_mask = lambda self, mask, layers: [None] * layers
    base.invert_attention_mask = lambda self, mask: (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        sys.modules.setdefault(name, types.ModuleType(name))
    wrapper = types.ModuleType("fairscale.nn.checkpoint.checkpoint_activations")
    wrapper.checkpoint_wrapper = None
    sys.modules[wrapper.__name__] = wrapper
    for name in ("ImageReward", "ImageReward.models"):  # their own import every other scorer
        package = types.ModuleType(name)
        package.__path__ = [str(code / "ImageReward" / name.replace(".", "/"))]
        sys.modules[name] = package
    blip = importlib.import_module("ImageReward.models.BLIP.blip")
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    module = importlib.import_module("ImageReward.ImageReward")
    base.init_weights = lambda self: None  # every weight is drawn
    vocabulary = write_vocabulary(folder)
    tokenizer = transformers.BertTokenizer
    tokenizer.additional_special_tokens_ids = property(lambda self: self.convert_tokens_to_ids(["[ENC]"]))
    blip.BertTokenizer = types.SimpleNamespace(from_pretrained=lambda _: tokenizer(str(vocabulary)))
    width = vision["width"]
    sizes = {"img_size": vision["resolution"], "patch_size": vision["patch_size"], "embed_dim": width}
    sizes |= {"depth": vision["depth"], "num_heads": vision["num_heads"]}
    pretrain.create_vit = lambda *_: (vit.VisionTransformer(**sizes), width)
    transform, mlp = module._transform, module.MLP
    module._transform, module.MLP = (lambda _: transform(vision["resolution"])), (lambda _: mlp(text["width"]))
    config = json.loads((code / "ImageReward" / "train/src/config/med_config.json").read_text())
    config |= {"hidden_size": text["width"], "intermediate_size": 4 * text["width"]}
    config |= {"num_hidden_layers": text["depth"], "num_attention_heads": text["num_heads"]}
    config |= {"vocab_size": text["vocabulary"], "max_position_embeddings": text["length"]}
    (folder / "med_config.json").write_text(json.dumps(config))
    return module.ImageReward(str(folder / "med_config.json"))


def _torchvision(torch) -> None:
    """Its wheel is built for CUDA: beside a CPU's torch the operators it looks for must be declared."""
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if __name__ == "__main__":
    main()
