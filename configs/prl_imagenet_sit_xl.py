"""Preference RL on the published SiT-XL/2, ImageNet at 256 pixels: PickScore as the reward, on the base or on top of DRL.

Command:   jaxdrl run --config=configs/drl_imagenet_sit_xl.py --workdir=runs/sit_xl                              # DRL ...
           jaxdrl run --config=configs/prl_imagenet_sit_xl.py:runs/sit_xl --workdir=runs/sit_xl_prl              # ... + PRL
           jaxdrl run --config=configs/prl_imagenet_sit_xl.py --workdir=runs/sit_xl_base_prl                     # base + PRL
Before:    weights and data of drl_imagenet_sit_xl.py, and the reward models, once:
           jaxdrl convert --model=pickscore --from=model.safetensors --from=tokenizer.json --to=models/pickscore
                          (yuvalkirstain/PickScore_v1; tokenizer.json of laion/CLIP-ViT-H-14-laion2B-s32B-b79K)
           jaxdrl convert --model=hpsv2.1 --from=HPS_v2.1_compressed.pt --from=bpe_simple_vocab_16e6.txt.gz --to=models/hpsv2.1
                          (xswu/HPSv2; the vocabulary is in openai/CLIP)
           jaxdrl convert --model=imagereward --from=ImageReward.pt --from=vocab.txt --to=models/imagereward
                          (THUDM/ImageReward; vocab.txt of google-bert/bert-base-uncased)
           jaxdrl convert --model=aesthetic-v2.5 --from=model.safetensors --from=aesthetic_predictor_v2_5.pth --to=models/aesthetic-v2.5
                          (google/siglip-so400m-patch14-384; discus0434/aesthetic-predictor-v2-5)
           jaxdrl convert --model=clipscore --from=model.safetensors --from=tokenizer.json --to=models/clipscore
                          (openai/clip-vit-large-patch14)
Hardware:  as drl_imagenet_sit_xl.py, of which it takes 5/3 of the gradient steps; beside the generator there is PickScore's network of
           4 GB, and when measuring the others, 13 GB in all. Not run at full size here yet.
Source:    arXiv 2606.19162, App. I.3: the same stage with another reward, the DRL model as initial weights and KL reference, 5000 steps.
Reward:    PickScore of "a photo of a {class}", the classes' names shipped with the package. HPSv2.1, ImageReward, Aesthetic v2.5 and
           CLIPScore are measured beside it and not trained on, as are the drift statistics.

Variants:  `:WORKDIR` starts from that run's tuned model; `:tiny` runs every stage with the same networks in small, on drawn weights, for
           tests.
"""

from typing import Any

import ml_collections

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes

HELD_OUT = ("hpsv2.1", "imagereward", "aesthetic-v2.5", "clipscore")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: "", "tiny", or the workdir of a finished run of drl_imagenet_sit_xl.py.

    Returns:
        The config tree.
    """
    config = recipes.published(jaxdrl_config.default())
    config.name = "prl_imagenet_sit_xl"
    config.tokenizer.update(name="sd-vae", weights="models/sd-vae-ema")
    config.backbone.update(name="SiT-XL/2", weights="models/sit-xl")
    config.sampler.guidance_channels = 3
    config.posttrain.refreshes = 250  # of 20 gradient steps
    # lambda, where a sweep (0.3, 1, 3, 10 ...) begins, not its result: PickScore is 100 times a cosine, published scores lie between about
    # 19 and 23. The drift statistics and the held-out rewards say how far it can be raised.
    config.posttrain.reward_scale = 1.0
    config.posttrain.rewards = ml_collections.ConfigDict({"pickscore": {"weights": "models/pickscore"}})
    config.evaluate.rewards = _held_out({name: {"weights": f"models/{name}"} for name in HELD_OUT})
    if variant == "tiny":
        return _tiny(config)
    return recipes.start_from(config, variant)


def _tiny(config: Any) -> ml_collections.ConfigDict:
    """Two networks of CLIP and one of SigLIP, drawn; the generated images' classes have no names of their own."""
    sizes = {"width": 16, "depth": 2, "num_heads": 2}
    config = recipes.tiny_published(config, sizes, 16, {"widths": (8, 8, 8), "depth": 1, "groups": 4})
    tower = {"width": 16, "depth": 1, "num_heads": 2, "resolution": 28}
    text = {"width": 16, "depth": 1, "num_heads": 2, "projection_dim": 8, "vocabulary": 300, "length": 40}
    reads = {"weights": "random", "vision": tower | {"projection_dim": 8}, "text": text}
    reads["class_names"] = tuple(f"class {label}" for label in range(config.data.num_classes))
    config.posttrain.rewards = ml_collections.ConfigDict({"pickscore": reads})
    config.evaluate.rewards = _held_out({"aesthetic-v2.5": {"weights": "random", "vision": tower}, "clipscore": reads})
    return config


def _held_out(rewards: dict[str, dict]) -> ml_collections.ConfigDict:
    """Labels are parts of keys, so they have no dots."""
    return ml_collections.ConfigDict({name.replace(".", "_"): {"name": name, **fields} for name, fields in rewards.items()})
