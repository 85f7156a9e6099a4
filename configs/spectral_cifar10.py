"""SpectralDiT on CIFAR-10 at patch size 1, with the settings of its code: no gate against three.

Command:   jaxdrl pretrain --config=configs/spectral_cifar10.py:timestep --workdir=runs/spectral_cifar10
All gates: python benchmarks/spectral.py --recipe=spectral_cifar10 --seeds=0,1,2,3,4 --out=runs/spectral_cifar10
Before:    pip install -e '.[tfds,cuda]' and `tfds build cifar10 --file_format=array_record` (or config.data.directory). For the paper's FID
           jaxdrl convert --model=inception-v3-fid --from=pt_inception-2015-12-05-6726825d.pth --to=models/inception, and afterwards
           jaxdrl evaluate --workdir=runs/spectral_cifar10 --model=base --num=10000 --metrics=fid,prdc,spectrum --encoder=inception
                           --weights=models/inception --reference=split:test
Hardware:  one GPU with 40 GB; hours and distances have not been measured yet.
Expected:  FID 20.78 without the gate, 19.71 with `:timestep`; recall .559 and .576; spectrum gap .205 and .161 (the paper's abstract, five seeds).
Source:    arXiv 2606.18765; lndezxn/SpectralDiT configs/cifar10_dit_small.yaml: width 192, 8 blocks, 4 heads, 400 000 steps of 256 images, Adam
           (.9, .99), rate 1e-4 after 5000 steps, clip 1, EMA .9999, label dropout .1, Euler with 50 steps, no guidance, no flip.
Different: a SiT (no RMSNorm of q and k, sines of columns before those of rows, its initialisation), and the rate stays constant for 340 000
           steps and falls to 0 over 60 000, where theirs follows a cosine to 1e-5.

Variants:  `:none` (the baseline), `:timestep` (the paper's gate, and the default), `:timestep+label`, `:static`; `:tiny` and `:none,tiny` ...
           run every stage on generated data of CIFAR-10's shape in about a minute, for tests.
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
    config, tiny = recipes.gated(jaxdrl_config.default(), variant)
    config.name = "spectral_cifar10"
    config.data.update(name="cifar10", image_shape=(32, 32, 3))
    for which in ("reward", "judge"):
        config.encoders[which].update(width=192, depth=6, feature_dim=192, patch_size=4, steps=20000, batch_size=512)
    config.backbone.update(patch_size=1, width=192, depth=8, num_heads=4, frequency_dim=256, dtype="bfloat16")
    config.pretrain.update(from_scratch=True, steps=340000, decay_steps=60000, batch_size=256, learning_rate=1e-4)
    config.pretrain.update(
        warmup_steps=5000, adam_b2=0.99, grad_clip=1.0, ema_decay=0.9999, curve_every=20000, curve_samples=10000
    )
    config.sampler.method = "euler"
    config.discriminator.r1 = 1e-5
    config.evaluate.update(num_samples=10000, sampling_steps=50, batch_size=500, tilt_pool=2, controls=False, best_guidance=False)
    if tiny:
        config = recipes.tiny(config)
        config.data.name = "synthetic"
        config.encoders.reward.patch_size = config.backbone.patch_size = 8
    return config
