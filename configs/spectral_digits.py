"""SpectralDiT's gate on handwritten digits, with Discriminator-Guided RL on top: do the two corrections add up?

Command:   jaxdrl run --config=configs/spectral_digits.py:timestep --workdir=runs/spectral_digits
All gates: python benchmarks/spectral.py --recipe=spectral_digits --seeds=0,1,2,3,4 --out=runs/spectral_digits
Hardware:  2 CPU cores, 4 GB of memory.
Data:      scikit-learn's 1797 digits (8x8, 10 classes), halved by a fixed seed; nothing is downloaded.
Source:    arXiv 2606.18765 (the gate), arXiv 2606.19162 (DRL). The generator is that of `drl_digits.py`, trained for a shorter time.
Results:   docs/spectral.md.

Variants:  `:none` (the baseline), `:timestep` (the paper's gate, and the default), `:timestep+label`, `:static`; `:tiny` and `:none,tiny` ...
           run every stage in under a minute, for tests.
"""

import ml_collections

from jaxdrl import config as jaxdrl_config
from jaxdrl import recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the recipe.

    Args:
        variant: A gate, "tiny", or both with a comma between them; see the head of the file.

    Returns:
        The config tree.
    """
    config, tiny = recipes.gated(recipes.small(jaxdrl_config.default()), variant)
    config.name = "spectral_digits"
    config.data.name = "digits"
    config.pretrain.update(from_scratch=True, steps=10000, decay_steps=2500, ema_decay=0.999, curve_every=2500)
    config.sampler.method = "euler"
    config.evaluate.update(controls=False, best_guidance=False)
    return recipes.tiny(config) if tiny else config
