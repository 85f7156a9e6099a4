r"""ImageReward: how well an image follows its prompt, and how much people like it.

Sources: Xu et al., ImageReward, arXiv 2304.05977; THUDM/ImageReward ImageReward.py, models/BLIP; Li et al., BLIP, arXiv 2201.12086. For
an image x in [-1, 1] and a prompt of words w, padded to 35 tokens,

    u = (crop(resize((x + 1) / 2)) - m) / s               shorter side to 224, bicubic; centre crop; CLIP's m, s   (1)
    V = ViT(u)                                            197 x 1024: class token and patches, normalised          (2)
    H = BERT([CLS] w_1 ... w_n [SEP], V)                  encoders/bert.py, 12 x 768                               (3)
    r = A_5 A_4 A_3 A_2 A_1 H_0                           768-1024-128-64-16-1, affine maps, nothing between      (4)
    score = (r - 0.16717362830052426) / 1.0333394966054072                                                         (5)

BLIP's retrieval model replaces [CLS] by its token [ENC]; ImageReward's `score`, `inference_rank` and `score_gard` do not. The published
weights are of `ImageReward.pt`, the vocabulary is bert-base-uncased's `vocab.txt`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxdrl.backbones.layers import dense
from jaxdrl.encoders.bert import ImageGroundedTextEncoder
from jaxdrl.encoders.preprocess import Preprocess
from jaxdrl.encoders.published import CLIP
from jaxdrl.encoders.vit import VisionTransformer
from jaxdrl.errors import UserError
from jaxdrl.rewards.preference import fitting
from jaxdrl.rewards.preference.model import Images, RewardModel, Scores, checked
from jaxdrl.rewards.preference.tokens import Tokenize

NAME = "imagereward"
LENGTH = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_HOW = {"dtype": "float32", "attention": "einsum", "remat": "none", "scan_layers": False}
VISION = {"width": 1024, "depth": 24, "num_heads": 16, "patch_size": 16, "resolution": 224, **_HOW}
TEXT = {"width": 768, "depth": 12, "num_heads": 12, "vocabulary": 30524, "length": 512, **_HOW}


class ImageReward(nn.Module):
    """Equations (2) to (5), on preprocessed images.

    Attributes:
        vision: Fields of `VisionTransformer`.
        text: Fields of `ImageGroundedTextEncoder`.
        head: Outputs of the maps of (4).
    """

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    head: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w 3"], ids: Int[Array, "batch tokens"]) -> Scores:
        """Scores images.

        Args:
            images: From (1).
            ids: Tokens of the prompts; zeros at the end are padding.

        Returns:
            float32 scores.
        """
        seen = VisionTransformer(**self.vision, name="vision")(images)
        tokens = jnp.concatenate([seen["cls"][:, None], seen["patches"]], axis=1)  # (2)
        mask = jnp.cumsum(ids[:, ::-1] != 0, axis=1)[:, ::-1] > 0
        reward = ImageGroundedTextEncoder(**self.text, name="text")(ids, mask, tokens)[:, 0]  # (3)
        for index, width in enumerate(self.head):
            reward = dense(width, jnp.float32, f"head_{index}")(reward)  # (4)
        return (reward[:, 0] - MEAN) / STD  # (5)


def create(
    *,
    tokenizer: Tokenize | None = None,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    head: Sequence[int] = (1024, 128, 64, 16, 1),
) -> RewardModel:
    """Builds ImageReward.

    Args:
        tokenizer: From `wordpiece.blip`; without one, `text` of the model raises.
        vision: What differs from `VISION`: fields of the vision transformer, dtype as "float32" or "bfloat16", and resolution.
        text: What differs from `TEXT`: fields of the text encoder, dtype likewise.
        head: Outputs of A_1 ... A_5.

    Returns:
        The model. Its rows of text are tokens, [prompts, 35]: words meet the network together with the image.

    Raises:
        ValueError: If a field is unknown, or the fields do not fit each other.
    """
    sizes, reads, head = _fields("vision", VISION, vision), _fields("text", TEXT, text), tuple(head)
    if len(head) != 5 or head[-1] != 1:
        raise ValueError(f"head must be five numbers of outputs, the last of them 1, got {head}")
    side = sizes["resolution"]
    if side % sizes["patch_size"]:
        raise ValueError(f"resolution {side} is no multiple of the patch size {sizes['patch_size']}")
    tower = {key: value for key, value in sizes.items() if key != "resolution"}
    dtypes = [{"dtype": _DTYPES[fields["dtype"]]} for fields in (sizes, reads)]
    module = ImageReward(vision=tower | dtypes[0], text=reads | dtypes[1], head=head)
    how = Preprocess(size=(side, side), mean=CLIP["mean"], std=CLIP["std"])

    def init(key: Key[Array, ""]) -> PyTree:
        return module.init(key, jnp.zeros((1, side, side, 3)), jnp.ones((1, 2), jnp.int32))["params"]

    def rows(params: PyTree, prompts: Sequence[str]) -> Int[Array, "prompts length"]:
        if tokenizer is None:
            raise UserError(f"{NAME} reads text, and has no vocabulary: convert it again with one more --from")
        ids, known = tokenizer(prompts, LENGTH), len(params["text"]["tokens"])
        if ids.max() >= known:
            raise UserError(
                f"{NAME}: the vocabulary has the token {ids.max()}, the network knows {known}; they do not belong together"
            )
        return jnp.asarray(ids)

    def judge(params: PyTree, images: Images, ids: Int[Array, "batch tokens"]) -> Any:
        return module.apply({"params": params}, how(images), ids)

    def score(params: PyTree, images: Images, text: Any) -> Scores:
        _check_rows(text, reads["length"])
        return judge(params, fitting.fit(checked(NAME, images, text), how, "crop-rounded"), text)

    def as_published(params: PyTree, images: Images, text: Any) -> Scores:
        _check_rows(text, reads["length"])
        return judge(params, fitting.published(checked(NAME, images, text), how, "crop-rounded", True), text)

    fields = (("head", head), ("text", reads), ("vision", sizes))
    return RewardModel(name=NAME, fields=fields, init=init, text=rows, score=score, as_published=as_published)


def _check_rows(ids: Any, length: int) -> None:
    if ids is None or ids.ndim != 2 or not 0 < ids.shape[1] <= length:
        found = "none" if ids is None else tuple(ids.shape)
        raise UserError(f"{NAME} takes a row of at most {length} tokens an image, from text(params, prompts); got {found}")


def _fields(tower: str, published: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A tower's fields, checked."""
    fields = {**published, **(given or {})}
    unknown = sorted(set(fields) - set(published))
    if unknown:
        raise ValueError(f"{tower}: unknown fields {unknown}; there are {', '.join(published)}")
    if fields["dtype"] not in _DTYPES:
        raise ValueError(f"{tower}: dtype must be float32 or bfloat16, got {fields['dtype']!r}")
    if fields["width"] % fields["num_heads"]:
        raise ValueError(f"{tower}: width {fields['width']} is no multiple of num_heads {fields['num_heads']}")
    if tower == "text" and fields["length"] < LENGTH:
        raise ValueError(f"text: length {fields['length']} is less than a prompt's {LENGTH} tokens")
    return fields
