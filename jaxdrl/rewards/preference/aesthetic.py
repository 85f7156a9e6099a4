r"""Aesthetic scores of an image alone: LAION's predictor v2 and Aesthetic Predictor v2.5.

Sources: christophschuhmann/improved-aesthetic-predictor simple_inference.py, of which Flow-GRPO (arXiv 2505.05470, flow_grpo/aesthetic_scorer.py)
uses the weights sac+logos+ava1-l14-linearMSE; discus0434/aesthetic-predictor-v2-5 siglip_v2_5.py. With the embedding f of an image,

    score = L_5 L_4 L_3 L_2 L_1 (f / |f|),    L_i z = W_i z + b_i,    of 1024, 128, 64, 16 and 1 outputs        (1)

There are no activations between the layers (dropout in training alone), so (1) is affine in f / |f|; the layers are kept as published.

| name | f | images | resize of the published pipeline |
|---|---|---|---|
| aesthetic-v2 | projection of OpenAI's CLIP ViT-L/14 | shorter side to 224, middle cut out (torchvision) | PIL, bicubic, of bytes |
| aesthetic-v2.5 | attention pooling of SigLIP so400m/14 | 384 x 384, the shape not kept | PIL, bicubic, of bytes |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxdrl import encoders
from jaxdrl.rewards.preference import fitting
from jaxdrl.rewards.preference.clip_scores import normalised
from jaxdrl.rewards.preference.model import Images, RewardModel, Scores, checked


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the models of this file differ in.

    Attributes:
        network: Name of the encoder.
        output: Which of its outputs is f.
        mode: See `fitting`.
    """

    network: str
    output: str
    mode: fitting.Mode


MODELS = {
    "aesthetic-v2": Published(network="clip-vit-large-patch14", output="projection", mode="crop-rounded"),
    "aesthetic-v2.5": Published(network="siglip-so400m-patch14-384", output="pooled_map", mode="squash"),
}


def create(name: str, *, vision: Mapping[str, Any] | None = None, head: Sequence[int] = (1024, 128, 64, 16, 1)) -> RewardModel:
    """Builds a model.

    Args:
        name: One of `MODELS`.
        vision: Fields of the encoder that differ, as for `encoders.create`.
        head: Outputs of L_1 ... L_5.

    Returns:
        The model; its parameters are {"image", "head"}. It reads no text.

    Raises:
        ValueError: If a field is unknown, or the head has not five layers of which the last has one output.
    """
    head = tuple(head)
    if len(head) != 5 or head[-1] != 1:
        raise ValueError(f"head must be five numbers of outputs, the last of them 1, got {head}")
    published = MODELS[name]
    encoder = encoders.create(published.network, **(vision or {}))
    sizes, how = dict(encoder.fields), encoder.preprocess
    assert how is not None

    def init(key: Key[Array, ""]) -> PyTree:
        keys = jax.random.split(key, 1 + len(head))
        inputs = (sizes["projection_dim"] if published.output == "projection" else sizes["width"], *head)
        layers = {
            f"layer_{i}": {
                "kernel": jax.random.normal(keys[1 + i], (inputs[i], head[i]), jnp.float32) / inputs[i] ** 0.5,
                "bias": jnp.zeros(head[i], jnp.float32),
            }
            for i in range(len(head))
        }
        return {"image": encoder.init(keys[0]), "head": layers}

    def judge(params: PyTree, images: Images) -> Scores:
        values = normalised(encoder.features(params["image"], images)[published.output])
        for i in range(len(head)):  # (1)
            values = _linear(params["head"][f"layer_{i}"], values)
        return values[:, 0]

    def score(params: PyTree, images: Images, text: None = None) -> Scores:
        return judge(params, fitting.fit(checked(name, images), how, published.mode))

    def as_published(params: PyTree, images: Images, text: None = None) -> Scores:
        return judge(params, fitting.published(checked(name, images), how, published.mode, True))

    fields = (("head", head), ("vision", sizes))
    return RewardModel(name=name, fields=fields, init=init, text=None, score=score, as_published=as_published)


def _linear(layer: PyTree, values: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
    return jnp.matmul(values, layer["kernel"], precision=jax.lax.Precision.HIGHEST) + layer["bias"]
