"""Preference RL on handwritten digits: a reward learnt from synthetic choices, on the base or on top of DRL.

Command:   jaxdrl run --config=configs/prl_digits.py --workdir=runs/prl                                     # base + PRL
           jaxdrl run --config=configs/drl_digits.py --workdir=runs/first                                   # DRL ...
           jaxdrl run --config=configs/prl_digits.py:runs/first --workdir=runs/drl_prl                      # ... + PRL
Hardware:  2 CPU cores, 4 GB of memory.
Data:      as drl_digits.py, and its shipped base and encoders.
Source:    arXiv 2606.19162, App. I.3: the same stage with another reward, the DRL model as initial weights and KL reference.
Reward:    a Bradley-Terry model of people who like wide, symmetric strokes (`training/preference.py`), on an encoder of its own. What they
           like, and the drift statistics of grey images, are measured beside it and not trained on.
Sweep:     --config.posttrain.reward_scale=0.3, 1, 3 ... is lambda; benchmarks/preference_rl.py draws held-out reward against drift.
Results:   docs/preference_rl.md: held-out reward +.33, +.90, +2.5 standard deviations at lambda .3, 1, 3; brightness drifts half as far.

Variants:  `:WORKDIR` starts from that run's tuned model; `:tiny` runs every stage in under a minute, for tests.
"""

import ml_collections

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: "", "tiny", or the workdir of a finished run.

    Returns:
        The config tree.
    """
    config = recipes.small(jaxdrl_config.default())
    config.name = "prl_digits"
    config.data.name, config.pretrain.steps, config.pretrain.shipped = "digits", 150000, "drl_digits"
    config.preference.utility = ml_collections.ConfigDict({"stroke_width": 1.0, "symmetry": 1.0})
    config.posttrain.rewards = ml_collections.ConfigDict({"bradley_terry": {}})
    config.evaluate.rewards = ml_collections.ConfigDict(
        {name: {} for name in ("stroke_width", "symmetry", "brightness", "contrast", "whiteness", "sharpness")}
    )
    config.evaluate.update(controls=False, best_guidance=False)
    if variant == "tiny":
        return recipes.tiny(config)
    return recipes.start_from(config, variant)
