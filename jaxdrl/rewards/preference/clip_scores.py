r"""PickScore, HPSv2, HPSv2.1 and CLIPScore: how near CLIP's embedding of an image is to that of its prompt.

Sources: PickScore, arXiv 2305.01569, yuvalkirstain/PickScore (README); HPSv2, arXiv 2306.09341, tgxs002/HPSv2 hpsv2/img_score.py; CLIPScore as
the rewards of DiffusionNFT, arXiv 2509.16117, compute it (NVlabs/DiffusionNFT flow_grpo/clip_scorer.py). With the image's embedding f and the
text's g, both projections of CLIP's towers,

    c(x, y) = <f, g> / (|f| |g|)                          (1)
    PickScore = exp(s) c,    s learned, exp(s) = 100      (2)
    HPSv2, HPSv2.1 = c, without the scale                   (3)
    CLIPScore = c                                         (4)

| name | network | images | resize of the published pipeline |
|---|---|---|---|
| pickscore | ViT-H/14, fine-tuned | shorter side to 224, middle cut out (transformers) | PIL, bicubic, of bytes |
| hpsv2, hpsv2.1 | ViT-H/14, fine-tuned | longer side to 224, black around | torchvision, bicubic, of floats |
| clipscore | OpenAI's ViT-L/14 | shorter side to 224, middle cut out (torchvision) | torchvision, bilinear, of floats |

Flow-GRPO and DiffusionNFT divide PickScore by 26, for numbers near 1: `scale=1 / 26` of `rewards.create`. Hessel et al.'s CLIPScore, arXiv
2104.08718, is 2.5 max(c, 0), of ViT-B/32 and "A photo depicts ...". HPSv2's resize had no antialiasing before torchvision 0.17
(`--set 'vision={"antialias": false}'`), and its authors ran the network in half precision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl import encoders
from jaxdrl.errors import UserError
from jaxdrl.rewards.preference import fitting
from jaxdrl.rewards.preference.model import Images, RewardModel, Scores, checked
from jaxdrl.rewards.preference.tokens import Tokenize

_ROWS = 64  # texts encoded at a time


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the models of this file differ in.

    Attributes:
        network: Name of the vision tower; its text tower has "-text" behind it.
        mode: See `fitting`.
        pil: See `fitting.published`.
        scaled: Whether (2) or (1) is the score.
        vision: Fields of the vision tower that differ.
    """

    network: str
    mode: fitting.Mode
    pil: bool
    scaled: bool = False
    vision: Mapping[str, Any] = field(default_factory=dict)


_HPS = Published(network="openclip-vit-huge-patch14", mode="pad", pil=False)
MODELS = {
    "pickscore": Published(network="openclip-vit-huge-patch14", mode="crop", pil=True, scaled=True),
    "hpsv2": _HPS,
    "hpsv2.1": _HPS,
    "clipscore": Published(network="clip-vit-large-patch14", mode="crop-rounded", pil=False, vision={"kernel": "bilinear"}),
}


def create(
    name: str,
    *,
    tokenizer: Tokenize | None = None,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> RewardModel:
    """Builds a model.

    Args:
        name: One of `MODELS`.
        tokenizer: From `tokens.clip`; without one, `text` of the model raises.
        vision: Fields of the vision tower that differ, as for `encoders.create`.
        text: Fields of the text tower that differ, as for `encoders.create_text`.

    Returns:
        The model; its parameters are {"image", "text", "logit_scale"}, its rows of text are normalised embeddings.

    Raises:
        ValueError: If a field is unknown, or the towers' projections differ.
    """
    published = MODELS[name]
    image_tower = encoders.create(published.network, **{**published.vision, **(vision or {})})
    text_tower = encoders.create_text(f"{published.network}-text", **(text or {}))
    sizes = [dict(tower.fields) for tower in (image_tower, text_tower)]
    if sizes[0]["projection_dim"] != sizes[1]["projection_dim"]:
        raise ValueError(f"the towers' projection_dim differ: {sizes[0]['projection_dim']} and {sizes[1]['projection_dim']}")
    how = image_tower.preprocess
    assert how is not None

    def init(key: Key[Array, ""]) -> PyTree:
        keys = jax.random.split(key)
        towers = {"image": image_tower.init(keys[0]), "text": text_tower.init(keys[1])}
        return towers | {"logit_scale": jnp.asarray(np.log(1 / 0.07), jnp.float32)}

    @jax.jit
    def embed(params: PyTree, ids: Array) -> Float[Array, "prompts dim"]:
        one = lambda row: text_tower.features(params["text"], row[None])["projection"][0]  # noqa: E731
        return normalised(jax.lax.map(one, ids, batch_size=min(_ROWS, len(ids))))

    def rows(params: PyTree, prompts: Sequence[str]) -> Float[Array, "prompts dim"]:
        if tokenizer is None:
            raise UserError(f"{name} reads text, and has no vocabulary: convert it again with one more --from")
        ids, known = tokenizer(prompts, text_tower.length), len(params["text"]["tokens"])
        if ids.max() >= known:
            raise UserError(
                f"{name}: the vocabulary has the token {ids.max()}, the network knows {known}; they do not belong together"
            )
        # Once for a run, so as exactly as the hardware can.
        with jax.default_matmul_precision("highest"):
            return embed(params, jnp.asarray(ids))

    def compare(params: PyTree, images: Images, text: Float[Array, "batch dim"]) -> Scores:
        embedding = image_tower.features(params["image"], images)["projection"]
        cosine = jnp.sum(normalised(embedding) * text, axis=-1)  # (1)
        return jnp.exp(params["logit_scale"]) * cosine if published.scaled else cosine  # (2), (3), (4)

    def score(params: PyTree, images: Images, text: Float[Array, "batch dim"]) -> Scores:
        return compare(params, fitting.fit(checked(name, images, text), how, published.mode), text)

    def as_published(params: PyTree, images: Images, text: Float[Array, "batch dim"]) -> Scores:
        fitted = fitting.published(checked(name, images, text), how, published.mode, published.pil)
        return compare(params, fitted, text)

    fields = (("text", sizes[1]), ("vision", sizes[0]))
    return RewardModel(name=name, fields=fields, init=init, text=rows, score=score, as_published=as_published)


def normalised(values: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    """Scales vectors to length 1.

    Args:
        values: Not zero.

    Returns:
        float32 vectors of the same directions.
    """
    return values / jnp.linalg.norm(values, axis=-1, keepdims=True)
