"""What a run computes, counted in floating-point operations, so that controls get the same budget.

Counts come from the lowered program of one forward pass, so they do not depend on the machine or its clock. A gradient with
respect to the input alone costs one more forward pass, a gradient with respect to the weights as well costs two.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdrl import backbones
from jaxdrl.config import Config
from jaxdrl.flow import ode
from jaxdrl.training import models


def forward_flops(function: Callable, *arguments) -> float:
    """Counts the operations of one call.

    Args:
        function: A traceable function without loops.
        *arguments: Arrays or `ShapeDtypeStruct`s.

    Returns:
        Floating-point operations.
    """
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    return float(analysis["flops"]) if analysis else 0.0


def generator_flops(config: Config) -> float:
    """Operations of one velocity evaluation of one sample.

    Args:
        config: A run's config.

    Returns:
        Floating-point operations.
    """
    network = models.backbone(config)
    if network.family != "own":
        # XLA counts a scanned block once, and cuDNN's attention not at all.
        plain = {"scan_layers": False, "remat": "none", "attention": "einsum"}
        network = backbones.create(network.name, **dict(network.fields) | plain)
    params = jax.eval_shape(network.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((8, *network.sample_shape), jnp.float32)
    t, y = jax.ShapeDtypeStruct((8,), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    return forward_flops(network.velocity, params, x, t, y) / 8


def encoder_flops(config: Config) -> float:
    """Operations of one pass of the reward encoder over one image.

    Args:
        config: A run's config.

    Returns:
        Floating-point operations.
    """
    network = models.encoder(config, "reward")
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((8, *config.data.image_shape), jnp.float32)
    return forward_flops(lambda params, images: network.features(params, images)["pooled"], params, images) / 8


def decoder_flops(config: Config) -> float:
    """Operations of decoding one latent; 0 with pixels.

    Args:
        config: A run's config.

    Returns:
        Floating-point operations.
    """
    network = models.tokenizer(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    latents = jax.ShapeDtypeStruct((2, *network.latent_shape(tuple(config.data.image_shape))), jnp.float32)
    return forward_flops(network.decode, params, latents) / 2


def posttrain_flops(config: Config) -> float:
    """Operations of the whole posttrain stage: rollouts, reward gradients, adjoints and updates.

    Args:
        config: A run's config.

    Returns:
        Floating-point operations.
    """
    return config.posttrain.refreshes * sum(refresh_flops(config).values())


def refresh_flops(config: Config) -> dict[str, float]:
    """Operations of one refresh, by phase.

    Args:
        config: A run's config.

    Returns:
        Phase of `training/phases.py` -> floating-point operations of all samples.
    """
    settings = config.posttrain
    if settings.algorithm != "adjoint_matching":
        return _policy_flops(config)
    subset = math.ceil(settings.timestep_fraction * settings.num_timesteps)
    count = len(dict(settings.rewards)) if settings.balance.rule == "marble" else 1
    # An adjoint is one pullback a step, through one evaluation of the base for all; the norms of the outlier mask are one forward pass.
    adjoints = (1 + count) * settings.num_timesteps + 1
    forwards = 2 if settings.micro_batches > 1 else 1
    updates = float(forwards + 2 * _backward_passes(config)) * settings.epochs * subset
    return _by_phase(config, rollout=settings.num_timesteps, adjoint=adjoints, update=updates, rewards=1 + count)


def _by_phase(config: Config, *, rollout: int, adjoint: int, update: float, rewards: int) -> dict[str, float]:
    """Of how many passes of a generator, and of decoder and encoder, a sample takes."""
    size, forward = config.posttrain.buffer_size, generator_flops(config)
    passes = {"rollout": rollout, "adjoint": adjoint, "update": update}
    seen = {"decode": decoder_flops(config), "encode": encoder_flops(config)}
    found = {name: size * count * forward for name, count in passes.items()}
    return found | {name: size * rewards * flops for name, flops in seen.items()}


def _backward_passes(config: Config) -> float:
    """Of a gradient step, on average: MARBLE's exact Gram matrix takes one for each reward and one for the control cost."""
    settings, balance = config.posttrain, config.posttrain.balance
    every = {"exact": 1, "amortised": balance.solve_every}.get(balance.gram) if balance.rule == "marble" else None
    return 1.0 if every is None else 1 + len(dict(settings.rewards)) / every


def _policy_flops(config: Config) -> dict[str, float]:
    """Rollouts, rewards and updates of a policy gradient; a full MARBLE solve's further backward passes are not counted."""
    settings = config.posttrain
    if settings.algorithm == "nft":
        rollout, trained, others = (
            ode.evaluations(settings.nft.num_steps, settings.nft.method),
            max(1, settings.nft.num_steps - 1),
            2,
        )
        trained = settings.nft.times_per_sample or (1 if settings.nft.times == "uniform" else trained)
    else:
        steps = settings.flow_grpo.num_steps
        rollout, trained, others = steps, settings.flow_grpo.window or max(1, steps - 1), 1
    return _by_phase(config, rollout=rollout, adjoint=0, update=float((3 + others) * settings.epochs * trained), rewards=1)


def discriminator_flops(config: Config, steps: int, fakes: int, encoded: int) -> float:
    """Operations of a discriminator stage.

    Args:
        config: A run's config.
        steps: Gradient steps; they pass the encoder only for R1.
        fakes: Images sampled from the base model.
        encoded: Images, real and fake, whose features were computed.

    Returns:
        Floating-point operations (the head itself is negligible and not counted).
    """
    settings = config.discriminator
    evaluations = ode.evaluations(settings.sampling_steps, config.sampler.method)
    sampling = fakes * (evaluations * generator_flops(config) + decoder_flops(config))
    penalised = steps * settings.batch_size if settings.r1 > 0 else 0
    # R1 needs the image gradient (2 passes) and the derivative of that by the head (2 more).
    return sampling + (encoded + 4 * penalised) * encoder_flops(config)


def pretrain_steps(config: Config, flops: float) -> int:
    """How many pretraining steps the same number of operations buys, rounded up.

    Args:
        config: A run's config.
        flops: A budget.

    Returns:
        Gradient steps.
    """
    return math.ceil(flops / (3 * config.pretrain.batch_size * generator_flops(config)))
