"""Beside open_clip and transformers themselves, with the published vocabulary. `pytest -m oracles`.

In an environment with the test extra, on a CPU:

    pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    pip install --no-deps torchvision==0.28.0 timm==1.0.31 open_clip_torch==2.32.0
    pip install transformers==5.23.0 ftfy
    pytest -m oracles
"""

import gzip
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdrl.rewards import preference
from jaxdrl.rewards.preference import prompts, tokens
from jaxdrl.weights import from_torch, to_torch
from tests.golden import preference_cases as cases

pytestmark = [pytest.mark.oracles, pytest.mark.filterwarnings("ignore")]
TEXTS = [
    "",
    "  Tab\tand\nline ",
    "it's 12345 o'clock!?",
    "Caf\u00e9 \u4f60\u597d \U0001f600 na\u00efve",
    "word " * 90,
    "a &amp; b",
]


@pytest.fixture(scope="module")
def open_clip():
    torch = pytest.importorskip("torch")
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ImportError:
        pytest.skip("torchvision is not installed; the module says how")
    yield pytest.importorskip("open_clip")


def test_tokens_of_the_published_vocabulary(open_clip):
    """All prompts of ImageNet and unusual texts, by open_clip and by transformers."""
    path = Path(open_clip.__file__).parent / tokens.OPENAI_FILE
    texts = [*prompts.prompts(prompts.class_names("imagenet")), *TEXTS]
    theirs = open_clip.tokenizer.SimpleTokenizer()(texts).numpy()
    ours = tokens.clip({path.name: path}, clean=tokens.clean_html)(texts, 77)
    np.testing.assert_array_equal(ours, theirs[:, : ours.shape[1]])
    transformers = pytest.importorskip("transformers")
    merges = tokens._merges(gzip.decompress(path.read_bytes()).decode())[: tokens._OPENAI_MERGES]
    tokenizer = transformers.CLIPTokenizer(vocab=tokens._openai_vocabulary(merges), merges=merges)
    theirs = tokenizer(texts, truncation=True, max_length=77)["input_ids"]
    for row, expected in zip(tokens.clip({path.name: path})(texts, 77), theirs, strict=True):
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert not row[len(expected) :].any()


def test_open_clips_model_loads_what_is_exported_and_scores_the_same(open_clip):
    import torch

    vision, text = cases.VISION, cases.TEXT
    network = open_clip.model.CLIP(
        vision["projection_dim"],
        {"image_size": cases.SIZE, "layers": 2, "width": vision["width"], "head_width": 8, "patch_size": 14, "mlp_ratio": 1.5},
        {"context_length": cases.LENGTH, "vocab_size": cases.VOCABULARY, "width": text["width"], "heads": 3, "layers": 2},
    ).eval()
    ids = np.array([[519, 7, 520, 0, 0], [519, 9, 4, 11, 520]], np.int32)
    state = {key: cases.draw(key, tuple(value.shape)) for key, value in network.state_dict().items()}
    model = preference.create("hpsv2", vision=vision, text=text, tokenizer=lambda prompts, length: ids)
    params = from_torch(model, state)
    network.load_state_dict({key: torch.tensor(value) for key, value in to_torch(model, params).items()}, strict=True)
    padded = torch.tensor(np.pad(ids, ((0, 0), (0, cases.LENGTH - 5)))).long()
    images = np.random.default_rng(0).uniform(-1, 1, (2, cases.SIZE, cases.SIZE, 3)).astype(np.float32)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2)).requires_grad_(True)
    how = [torch.tensor(values).view(1, 3, 1, 1) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)]
    image, row, _ = network((0.5 * (pixels + 1) - how[0]) / how[1], padded)
    theirs = (image * row).sum(dim=1)
    theirs.sum().backward()
    rows = model.text(params, ["", ""])
    ours, pullback = jax.vjp(jax.jit(lambda images: model.score(params, images, rows)), jnp.asarray(images))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4)
    gradient, expected = pullback(jnp.ones(2))[0], pixels.grad.numpy().transpose(0, 2, 3, 1)
    assert np.abs(gradient - expected).max() / np.abs(expected).max() < 1e-4
