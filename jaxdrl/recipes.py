"""What recipes in `configs/` share: sizes, the papers' settings, small forms, and what may follow the colon of `--config`."""

from pathlib import Path
from typing import Any

import ml_collections

from jaxdrl.config import Config
from jaxdrl.errors import UserError

# `backbones.spectral.MODES`, which would take a second to import.
GATES = ("none", "timestep", "timestep+label", "static")


def tiny(config: Config) -> Config:
    """Shrinks a recipe so that every stage runs in seconds on a laptop; what it computes stays the same.

    Args:
        config: A recipe; changed in place.

    Returns:
        The same config.
    """
    config.name += "_tiny"
    config.data.examples_per_class = 60
    for which in ("reward", "judge", "preference"):
        config.encoders[which].update(width=16, depth=1, feature_dim=16, steps=20, batch_size=20)
    config.backbone.update(width=16, depth=1, num_heads=2, frequency_dim=16, dtype="float32")
    config.pretrain.update(from_scratch=True, steps=60, batch_size=20, warmup_steps=5, curve_every=30, curve_samples=40)
    config.pretrain.decay_steps = min(config.pretrain.decay_steps, 30)
    config.pretrain.ema_decay = 0.9
    config.discriminator.update(width=16, batch_size=20, steps=40, buffer_batches=4, buffer_epochs=5, validate_every=10)
    config.discriminator.sampling_steps = config.preference.sampling_steps = 4
    config.preference.update(images=200, pairs=400, steps=20, batch_size=40)
    config.posttrain.update(
        num_timesteps=5, buffer_size=20, rollout_batch=10, batch_size=10, refreshes=3, epochs=2, warmup_steps=2
    )
    config.posttrain.group_size = 5
    config.posttrain.guard.update(every=2, samples=50, real=50)
    config.posttrain.nft.num_steps = config.posttrain.flow_grpo.num_steps = 4
    config.evaluate.update(num_samples=100, sampling_steps=4, batch_size=50, tilt_pool=2, guidance_samples=60)
    config.evaluate.update(guidance_scales=(1.5,), guidance_intervals=((0.0, 1.0),), bootstrap=4)
    config.evaluate.update(kernel_subsets=4, kernel_subset_size=30)
    return config


def small(config: Config) -> Config:
    """The sizes that the two embedded data sets share: 8 x 8 grey images, a generator of 12 000 parameters.

    lambda = 1 without R1 is the paper's theory setting; K = 40 with small offsets replaces K = 100 (see `flow/memoryless.py`).

    Args:
        config: A recipe; changed in place.

    Returns:
        The same config.
    """
    config.encoders.reward.update(width=48, depth=3, feature_dim=96, steps=2500, batch_size=64, learning_rate=2e-3)
    config.encoders.judge.update(width=24, depth=2, feature_dim=64, steps=1500, batch_size=64, learning_rate=2e-3)
    config.encoders.preference.update(width=32, depth=2, feature_dim=64, steps=1500, batch_size=64, learning_rate=2e-3)
    config.backbone.update(width=16, depth=2, num_heads=2, frequency_dim=64)
    config.pretrain.update(steps=100000, decay_steps=20000, batch_size=64, learning_rate=2e-3, ema_decay=0.9998)
    config.pretrain.update(curve_every=5000, curve_samples=2000)
    config.discriminator.update(width=64, learning_rate=1e-3, batch_size=256, steps=1600, buffer_batches=16)
    config.discriminator.update(buffer_epochs=10, validate_every=20, patience=15, sampling_steps=25)
    config.posttrain.update(reward_scale=1.0, num_timesteps=40, timestep_fraction=0.2, time_offset=0.01, noise_offset=0.0)
    config.posttrain.update(
        buffer_size=512, batch_size=128, refreshes=48, epochs=4, learning_rate=3e-4, warmup_steps=50, decay="cosine"
    )
    config.posttrain.update(grad_clip=1.0, ema_decay=0.99, rollout_batch=128)
    config.evaluate.update(num_samples=3000, batch_size=250, tilt_pool=3, guidance_samples=1000)
    return config


def policy_gradient(config: Config, algorithm: str) -> Config:
    """The sizes of a policy gradient on the digits: the base of `configs/drl_digits.py`, whose files are in the package.

    Args:
        config: A recipe; changed in place.
        algorithm: "nft" or "flow_grpo".

    Returns:
        The same config.
    """
    config = small(config)
    config.data.name, config.pretrain.steps, config.pretrain.shipped = "digits", 150000, "drl_digits"
    config.posttrain.update(algorithm=algorithm, refreshes=80, epochs=1, buffer_size=240, batch_size=240, group_size=24)
    config.posttrain.update(rollout_batch=0, learning_rate=3e-4, warmup_steps=5, decay="constant")
    config.evaluate.update(controls=False, best_guidance=False)
    return config


def published(config: Config) -> Config:
    """The paper's settings that its four published generators share (arXiv 2606.19162, App. H and I), on ImageNet at 256 pixels.

    lambda = 10 with R1 = 1e-5 is the paper's recommended default, lambda = 1 without R1 its theory setting. 3000 gradient steps, of
    which a refresh of the buffer gives `epochs * (buffer_size // batch_size)`.

    Args:
        config: A recipe; changed in place.

    Returns:
        The same config.
    """
    config.data.update(name="imagenet2012", image_shape=(256, 256, 3), num_classes=1000, validation_fraction=0.04)
    config.data.update(horizontal_flip=True, in_memory=False, workers=8)
    config.encoders.reward.update(name="dinov2-large", weights="models/dinov2-large")
    config.encoders.judge.update(name="dinov2-with-registers-large", weights="models/dinov2-with-registers-large")
    config.backbone.update(dtype="bfloat16", remat="full", scan_layers=True)
    for which in ("reward", "judge"):
        config.encoders[which].fields = ml_collections.ConfigDict({"scan_layers": True})  # or compiling takes twice as long
    config.discriminator.r1 = 1e-5
    config.posttrain.rollout_batch = 256
    config.evaluate.update(num_samples=50000, batch_size=256, tilt_pool=1, controls=False, to_uint8="truncate")
    config.evaluate.update(guidance_scales=tuple(1 + step / 4 for step in range(1, 9)), guidance_samples=10000)
    return config


def tiny_published(config: Config, backbone: dict[str, Any], image_side: int, tokenizer: dict[str, Any] | None = None) -> Config:
    """Shrinks a recipe for a published generator: the same networks in small, on drawn weights and generated images.

    Args:
        config: A recipe; changed in place.
        backbone: Fields of the generator.
        image_side: Of the images.
        tokenizer: Fields of the tokenizer, if it has weights.

    Returns:
        The same config.
    """
    config = tiny(config)
    config.data.update(name="synthetic", image_shape=(image_side, image_side, 3), num_classes=10, classes=())
    config.data.update(in_memory=True, workers=0)
    config.data.examples_per_class = 12
    config.pretrain.from_scratch = False
    for which in ("reward", "judge"):
        fields = {"width": 16, "depth": 1, "num_heads": 2, "resolution": 28, "scan_layers": True}
        config.encoders[which].weights = "random"
        config.encoders[which].fields = ml_collections.ConfigDict(fields)
    config.backbone.weights = "random"
    config.backbone.fields = ml_collections.ConfigDict(backbone)
    if tokenizer is not None:
        config.tokenizer.weights = "random"
        config.tokenizer.fields = ml_collections.ConfigDict(tokenizer)
    config.discriminator.update(steps=10, buffer_batches=1, buffer_epochs=10, validate_every=10)
    config.posttrain.update(refreshes=1, epochs=1, batch_size=8)  # 4 of 20 trajectories are left out
    config.posttrain.guard.samples = 20
    config.evaluate.update(num_samples=40, sampling_steps=3, batch_size=20, tilt_pool=1, best_guidance=False)
    return config


def start_from(config: Config, workdir: str) -> Config:
    """Makes another run's tuned model the base, and with it the KL reference.

    Args:
        config: A recipe; changed in place.
        workdir: Of a finished run, what followed the colon in `--config=path:workdir`; empty: the recipe's own base.

    Returns:
        The same config.

    Raises:
        UserError: If there is no run.
    """
    if workdir and not (Path(workdir) / "config.json").is_file():
        raise UserError(
            f"--config: variant {workdir!r} is unknown, and no workdir of a run; use no variant, :tiny, or :WORKDIR of a finished run"
        )
    config.backbone.weights = workdir or config.backbone.weights
    return config


def gated(config: Config, variant: str) -> tuple[Config, bool]:
    """Gives the generator SpectralDiT's gate, or none: the one thing in which runs of a spectral recipe differ.

    Args:
        config: A recipe; changed in place.
        variant: What followed the colon: a gate (none, timestep, timestep+label, static), "tiny", or both with a comma; without a gate the
            paper's, timestep.

    Returns:
        (the same config, whether the small form is asked for).

    Raises:
        UserError: If a word is neither.
    """
    words = [word for word in variant.split(",") if word]
    gates = [word for word in words if word in GATES]
    unknown = [word for word in words if word not in (*GATES, "tiny")]
    if unknown or len(gates) > 1:
        raise UserError(f"--config: variant {variant!r} is unknown; use one of {', '.join(GATES)}, or :tiny, or :GATE,tiny")
    config.backbone.update(spectral=gates[0] if gates else "timestep", gate_scale=1.0)
    return config, "tiny" in words


def check_variant(variant: str) -> None:
    """Refuses a variant that a recipe does not have.

    Args:
        variant: What followed the colon in `--config=path:variant`.

    Raises:
        UserError: If it is not empty.
    """
    if variant:
        raise UserError(f"--config: variant {variant!r} is unknown; use no variant, or :tiny")
