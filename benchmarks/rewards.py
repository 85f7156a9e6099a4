r"""Published reward models: scores and image gradients a second, beside their PyTorch originals.

    python benchmarks/rewards.py [--names=pickscore,imagereward] [--size=small|published] [--batch=4] [--rounds=5]

The originals are transformers' modules with the authors' heads: CLIPModel, SiglipVisionModel, and BlipVisionModel with BlipTextModel (BERT
with cross-attention) for ImageReward, with the attention that transformers chooses. Both sides have the same random weights and get the same
images of the network's own resolution, so nothing is resized; prompts are encoded before, but for ImageReward, whose text meets the image.
jax and torch take turns on the same cores, and the median of the rounds is shown. Scores and gradients are compared first.
"""

import argparse
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

TOWER = {"width": 192, "depth": 4, "num_heads": 3, "resolution": 112}
SMALL = {
    "clip": {
        "vision": TOWER | {"projection_dim": 128},
        "text": {"width": 128, "depth": 2, "num_heads": 2, "projection_dim": 128, "vocabulary": 600},
    },
    "aesthetic-v2": {"vision": TOWER | {"projection_dim": 128}},
    "aesthetic-v2.5": {"vision": TOWER},
    "imagereward": {"vision": TOWER, "text": {"width": 128, "depth": 2, "num_heads": 2, "vocabulary": 600, "length": 40}},
}
HEADS = {"aesthetic-v2": "layers", "aesthetic-v2.5": "layers.scoring_head", "imagereward": "mlp.layers"}


def main() -> None:
    """Times every model and prints a table."""
    from jaxdrl.rewards import preference

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default=",".join(preference.PUBLISHED), type=lambda text: text.split(","))
    parser.add_argument("--size", default="small", choices=("small", "published"))
    parser.add_argument("--batch", default=4, type=int)
    parser.add_argument("--rounds", default=5, type=int)
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(preference.PUBLISHED)):
        parser.error(f"--names: {', '.join(unknown)} is unknown; choose from {', '.join(preference.PUBLISHED)}")
    if min(options.batch, options.rounds) < 1:
        parser.error("--batch and --rounds must be at least 1")
    print("| reward | pass | jax images/s | torch images/s | jax / torch |\n|---|---|---|---|---|", flush=True)
    for name in options.names:
        try:
            rows = measure(name, options)
        except ImportError as error:
            print(f"{name} is skipped, there is no original: {error}", file=sys.stderr, flush=True)
            continue
        for what, ours, rival in rows:
            print(f"| {name} | {what} | {ours:.2f} | {rival:.2f} | {ours / rival:.2f} |", flush=True)


def measure(name: str, options: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Times one model.

    Args:
        name: A published name.
        options: The command line.

    Returns:
        (pass, jax images a second, torch images a second).

    Raises:
        ImportError: If the original cannot be imported.
    """
    import jax
    import jax.numpy as jnp
    import torch

    from benchmarks.encoders import in_turn
    from jaxdrl.rewards import preference
    from jaxdrl.weights import from_torch

    kind = name if name in SMALL else "clip"
    model = preference.create(name, **(SMALL[kind] if options.size == "small" else {}))
    torch.manual_seed(0)
    original = ORIGINALS[kind](model, torch)
    params = from_torch(model, original.state(), place=jnp.asarray)
    rng = np.random.default_rng(0)
    side = dict(model.fields)["vision"]["resolution"]
    images = rng.uniform(-1, 1, (options.batch, side, side, 3)).astype(np.float32)
    ids, text = original.texts(rng, options.batch), None
    if model.text is not None:
        model = preference.create(name, **dict(model.fields), tokenizer=lambda prompts, length: ids)
        write: Any = model.text
        text = write(params, [""] * options.batch)
    judge = original.judge(ids)
    score = jax.jit(model.score)
    gradient = jax.jit(jax.grad(lambda images, params, text: model.score(params, images, text).sum()))
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))

    def torch_score():
        with torch.no_grad():
            return judge(pixels).numpy()

    def torch_gradient():
        leaf = pixels.clone().requires_grad_(True)
        return torch.autograd.grad(judge(leaf).sum(), leaf)[0].numpy().transpose(0, 2, 3, 1)

    pairs = {
        "score": (lambda: np.asarray(score(params, images, text)), torch_score),
        "image gradient": (lambda: np.asarray(gradient(images, params, text)), torch_gradient),
    }
    for what, calls in pairs.items():
        found, expected = (call() for call in calls)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        if not error <= 1e-3:
            raise SystemExit(f"{name}: {what} differs by {error:.1e}")
    return [(what, *(options.batch / seconds for seconds in in_turn(calls, options.rounds))) for what, calls in pairs.items()]


class Original(ABC):
    """A model in PyTorch; weights are drawn as soon as its modules are there.

    Attributes:
        modules: Prefix of the names in the authors' file -> module.
    """

    modules: dict[str, Any]

    def __init__(self, model: Any, torch: Any) -> None:
        """Builds the modules, as large as the model.

        Args:
            model: Ours.
            torch: The library.
        """
        fields = dict(model.fields)
        self._name, self._torch = model.name, torch
        self._vision: Any = fields["vision"]
        self._text: Any = fields.get("text")
        self._head = None
        if "head" in fields:
            widths = (self.embedding(), *fields["head"])
            layers = [torch.nn.Linear(widths[i], widths[i + 1]) for i in range(len(widths) - 1)]
            self._head = torch.nn.Sequential(*layers)
        self.modules = self.build()
        for key, parameter in (pair for module in self.modules.values() for pair in module.named_parameters()):
            parameter.data.normal_(0.0, 0.02)
            parameter.data += float("norm" in key.lower() and key.endswith("weight"))
        for parameter in self._head.parameters() if self._head else ():
            parameter.data.normal_(0.0, 0.05)

    def sizes(self, tower: dict[str, Any]) -> dict[str, Any]:
        """Transformers' names of a tower's sizes."""
        found = {"hidden_size": tower["width"], "num_hidden_layers": tower["depth"], "num_attention_heads": tower["num_heads"]}
        found["intermediate_size"] = tower.get("hidden") or 4 * tower["width"]
        seen = {"image_size": "resolution", "patch_size": "patch_size"}
        return found | {theirs: tower[ours] for theirs, ours in seen.items() if ours in tower}

    def seen(self, images: Any) -> Any:
        """What the network takes, of images in [-1, 1]."""
        from jaxdrl.encoders.published import CLIP

        mean, std = (self._vision.get(key, CLIP[key]) for key in ("mean", "std"))
        shaped = lambda values: self._torch.tensor(values)[:, None, None]  # noqa: E731
        return (0.5 * (images + 1) - shaped(mean)) / shaped(std)

    def state(self) -> dict[str, np.ndarray]:
        """Names in the authors' file -> arrays."""
        found = {
            self.renamed(prefix + key): value
            for prefix, module in self.modules.items()
            for key, value in module.state_dict().items()
        }
        if self._head is not None:
            from jaxdrl.weights import image_reward_layout, reward_layouts

            places = image_reward_layout._HEAD if self._name == "imagereward" else reward_layouts._HEADS[self._name][1]
            for layer, place in zip(self._head, places, strict=True):
                found |= {f"{HEADS[self._name]}.{place}.{key}": value for key, value in layer.state_dict().items()}
        return {key: value.numpy() for key, value in found.items() if value.is_floating_point()}

    def renamed(self, key: str) -> str:
        """Transformers' name as the authors' file has it."""
        return key

    def texts(self, rng: np.random.Generator, batch: int) -> np.ndarray | None:
        """Ids of drawn prompts, or None."""
        return None

    @abstractmethod
    def embedding(self) -> int:
        """Width of what the head takes."""

    @abstractmethod
    def build(self) -> dict[str, Any]:
        """The modules."""

    @abstractmethod
    def judge(self, ids: np.ndarray | None) -> Callable[[Any], Any]:
        """Images [batch, 3, h, w] in [-1, 1] -> scores."""


class Clip(Original):
    """CLIPModel: the cosine, PickScore's with its scale; or LAION's head on the image's embedding."""

    def embedding(self) -> int:
        """See `Original`."""
        return self._vision["projection_dim"]

    def build(self) -> dict[str, Any]:
        """See `Original`."""
        import transformers

        vision, text = self._vision, self._text or {"width": 64, "depth": 1, "num_heads": 1}
        common = {"projection_dim": vision["projection_dim"], "hidden_act": vision["activation"]}
        # The oldest rule of CLIP: the text's feature is that of the largest id.
        words = {
            "vocab_size": text.get("vocabulary", 49408),
            "max_position_embeddings": text.get("length", 77),
            "eos_token_id": 2,
        }
        self._vocabulary = words["vocab_size"]
        config = transformers.CLIPConfig(
            text_config=common | self.sizes(text) | words,
            vision_config=common | self.sizes(vision),
            projection_dim=vision["projection_dim"],
        )
        return {"": transformers.CLIPModel(config).eval()}

    def texts(self, rng: np.random.Generator, batch: int) -> np.ndarray | None:
        """See `Original`."""
        if self._text is None:
            return None
        ids = rng.integers(1, self._vocabulary - 2, (batch, 10)).astype(np.int32)
        ids[:, -1] = self._vocabulary - 1
        return ids

    def judge(self, ids: np.ndarray | None) -> Callable[[Any], Any]:
        """See `Original`."""
        torch, network, head = self._torch, self.modules[""], self._head
        unit = torch.nn.functional.normalize
        image = lambda images: unit(network.get_image_features(pixel_values=self.seen(images)).pooler_output)  # noqa: E731
        if head is not None:
            return lambda images: head(image(images))[:, 0]
        with torch.no_grad():
            text = unit(network.get_text_features(input_ids=torch.tensor(ids, dtype=torch.long)).pooler_output)
            scale = network.logit_scale.exp() if self._name == "pickscore" else 1.0
        return lambda images: scale * (image(images) * text).sum(dim=-1)


class Siglip(Original):
    """SiglipVisionModel and the head of Aesthetic v2.5."""

    def embedding(self) -> int:
        """See `Original`."""
        return self._vision["width"]

    def build(self) -> dict[str, Any]:
        """See `Original`."""
        import transformers

        config = transformers.SiglipVisionConfig(**self.sizes(self._vision))
        return {"": transformers.SiglipVisionModel(config).eval()}

    def renamed(self, key: str) -> str:
        """See `Original`."""
        return f"vision_model.{key.removeprefix('vision_model.')}"

    def judge(self, ids: np.ndarray | None) -> Callable[[Any], Any]:
        """See `Original`."""
        network, head, unit = self.modules[""], self._head, self._torch.nn.functional.normalize
        assert head is not None
        return lambda images: head(unit(network(pixel_values=self.seen(images)).pooler_output))[:, 0]


class Blip(Original):
    """BLIP's towers in transformers, and ImageReward's head."""

    NAMES = (
        ("visual.embeddings.class_embedding", "visual.cls_token"),
        ("visual.embeddings.position_embedding", "visual.pos_embed"),
        ("visual.embeddings.patch_embedding", "visual.patch_embed.proj"),
        ("visual.post_layernorm", "visual.norm"),
        ("visual.encoder.layers.", "visual.blocks."),
        (".self_attn.projection", ".attn.proj"),
        (".self_attn.qkv", ".attn.qkv"),
        (".layer_norm", ".norm"),
        ("visual.", "blip.visual_encoder."),
        ("text.", "blip.text_encoder."),
    )

    def embedding(self) -> int:
        """See `Original`."""
        return self._text["width"]

    def build(self) -> dict[str, Any]:
        """See `Original`."""
        from transformers.models.blip import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        text = self._text
        words = {
            "vocab_size": text["vocabulary"],
            "max_position_embeddings": text["length"],
            "pad_token_id": 0,
            "bos_token_id": 1,
        }
        config = BlipTextConfig(**self.sizes(text), **words, encoder_hidden_size=self._vision["width"], is_decoder=True)
        vision = BlipVisionModel(BlipVisionConfig(**self.sizes(self._vision), layer_norm_eps=1e-6))
        return {"visual.": vision.eval(), "text.": BlipTextModel(config, add_pooling_layer=False).eval()}

    def renamed(self, key: str) -> str:
        """See `Original`."""
        for theirs, authors in self.NAMES:
            if not key.startswith("blip."):
                key = key.replace(theirs, authors, 1)
        return key

    def texts(self, rng: np.random.Generator, batch: int) -> np.ndarray | None:
        """See `Original`."""
        ids = np.zeros((batch, 35), np.int32)
        ids[:, :10] = rng.integers(1, self._text["vocabulary"], (batch, 10))
        return ids

    def judge(self, ids: np.ndarray | None) -> Callable[[Any], Any]:
        """See `Original`."""
        from jaxdrl.rewards.preference.image_reward import MEAN, STD

        assert ids is not None and self._head is not None
        vision, text, head = *self.modules.values(), self._head
        words = {
            "input_ids": self._torch.tensor(ids, dtype=self._torch.long),
            "attention_mask": self._torch.tensor(ids > 0).long(),
        }

        def score(images: Any) -> Any:
            seen = vision(pixel_values=self.seen(images)).last_hidden_state
            hidden = text(**words, encoder_hidden_states=seen, is_decoder=False, use_cache=False).last_hidden_state
            return (head(hidden[:, 0])[:, 0] - MEAN) / STD

        return score


ORIGINALS = {"clip": Clip, "aesthetic-v2": Clip, "aesthetic-v2.5": Siglip, "imagereward": Blip}


if __name__ == "__main__":
    main()
