"""SpectralDiT's gate on 32x32 colour patches of natural images, whose spectrum falls as real pictures' do: no gate against three.

Command:   jaxdrl pretrain --config=configs/spectral_patches.py:timestep --workdir=runs/spectral_patches
All gates: python benchmarks/spectral.py --recipe=spectral_patches --seeds=0,1,2,3,4 --out=runs/spectral_patches
Hardware:  2 CPU cores, 4 GB of memory.
Data:      crops of ten pictures that ship inside scikit-image and scikit-learn, class = picture, train and test from disjoint strips;
           licences in `jaxdrl/data/patches.py`.
Source:    arXiv 2606.18765: flow matching, Euler sampling, no guidance; a SiT of this size instead of its DiT with 10 million parameters.
Results:   docs/spectral.md.

Variants:  `:none` (the baseline), `:timestep` (the paper's gate, and the default), `:timestep+label`, `:static`; `:tiny` and `:none,tiny` ...
           run every stage in about a minute on a CPU, for tests.
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
    config.name = "spectral_patches"
    config.data.update(name="patches", image_shape=(32, 32, 3), examples_per_class=1000)
    config.encoders.reward.update(width=48, depth=2, feature_dim=96, patch_size=4, steps=1000)
    config.encoders.judge.update(width=24, depth=3, feature_dim=64, steps=1500)
    config.backbone.update(patch_size=4, width=48, depth=3, num_heads=3)
    config.pretrain.update(from_scratch=True, steps=5000, decay_steps=1500, batch_size=32, learning_rate=2e-3, warmup_steps=100)
    config.pretrain.update(ema_decay=0.998, curve_every=2500, curve_samples=500)
    config.sampler.method = "euler"
    config.evaluate.update(num_samples=2000, max_real=2000, sampling_steps=25, controls=False, best_guidance=False)
    if tiny:
        config = recipes.tiny(config)
        config.encoders.reward.patch_size = config.backbone.patch_size = 8
    return config
