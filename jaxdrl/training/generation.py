"""A run's own images: sampled in the generator's space with the config's solver, decoded, and used batch by batch."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32, PyTree, UInt8

from jaxdrl import data
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.evaluation import sampling
from jaxdrl.training import loading, models
from jaxdrl.training.batching import compiled


def solver(config: Config, num_steps: int) -> sampling.Solver:
    """Reads `config.sampler`.

    Args:
        config: A run's config.
        num_steps: Of the solver.

    Returns:
        The solver.

    Raises:
        UserError: If a value is out of range.
    """
    settings = config.sampler
    if settings.method not in ("heun", "euler"):
        raise UserError(f"config.sampler.method: {settings.method!r} must be heun or euler")
    if settings.time_shift <= 0 or not 0 < settings.time_end <= 1:
        raise UserError(
            f"config.sampler: time_shift ({settings.time_shift}) must be positive and time_end ({settings.time_end}) in (0, 1]"
        )
    return sampling.Solver(
        num_steps=num_steps,
        method=settings.method,
        time_shift=settings.time_shift,
        time_end=settings.time_end,
        guidance_channels=settings.guidance_channels or None,
    )


def decoder(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Loads the tokenizer once and binds its decoder.

    Args:
        config: A run's config.

    Returns:
        Latents -> float32 images, about [-1, 1], on the host, `config.tokenizer.batch_size` at a time.
    """
    if config.tokenizer.name == "pixels" and not dict(config.tokenizer.fields):
        return lambda latents: latents
    return compiled(models.tokenizer(config).decode, loading.load_tokenizer(config), config.tokenizer.batch_size)


def reconstruction(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Binds encoder and decoder of the tokenizer: images as the generator could make them.

    Args:
        config: A run's config.

    Returns:
        Images in [-1, 1] -> images; the same with pixels, or where `config.discriminator.reconstruct_real` is off.
    """
    if config.tokenizer.name == "pixels" or not config.discriminator.reconstruct_real:
        return lambda images: images
    network = models.tokenizer(config)
    through = lambda params, images: network.decode(params, network.encode(params, images))  # noqa: E731
    return compiled(through, loading.load_tokenizer(config), config.tokenizer.batch_size)


def generate(
    config: Config,
    params: PyTree,
    finish: Callable[[np.ndarray], Any],
    *,
    num: int,
    seed: int,
    num_steps: int,
    guidance: sampling.Guidance | None = None,
    first: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples and finishes a batch before the next is drawn, so that no more than one is in memory.

    Args:
        config: A run's config.
        params: Weights of the generator.
        finish: Latents of a batch -> what is kept of them, such as `decoder(config)` with `data.to_uint8`.
        num: How many.
        seed: Of the noise.
        num_steps: Of the solver.
        guidance: None is guidance-free.
        first: Number of the first sample.

    Returns:
        (what `finish` made, labels).
    """
    return sampling.sample(
        models.backbone(config),
        params,
        solver(config, num_steps),
        num=num,
        seed=seed,
        batch_size=config.evaluate.batch_size,
        guidance=guidance,
        finish=finish,
        first=first,
    )


class Samples:
    """A model's own images as an `ImageSource`: image i depends on the seed and on i, not on batches, devices or hosts."""

    def __init__(
        self,
        config: Config,
        params: PyTree,
        *,
        num: int,
        seed: int,
        num_steps: int,
        guidance: sampling.Guidance | None = None,
    ) -> None:
        """Prepares sampler and decoder.

        Args:
            config: A run's config.
            params: Weights of the generator.
            num: How many images.
            seed: Of the noise.
            num_steps: Of the solver.
            guidance: None is guidance-free.
        """
        self._config, self._num, self._rule = config, num, config.evaluate.to_uint8
        network, steps = models.backbone(config), solver(config, num_steps)
        self._sampler = lambda params: sampling.sampler(network, params, steps, seed=seed, guidance=guidance)
        self._draw, self._decode = self._sampler(params), decoder(config)

    def __len__(self) -> int:
        """How many."""
        return self._num

    def of(self, params: PyTree) -> "Samples":
        """The same noise and labels for other weights; nothing is compiled again.

        Args:
            params: Weights of the generator.

        Returns:
            A source that shares the decoder.
        """
        other = copy.copy(self)
        other._draw = self._sampler(params)
        return other

    def batches(
        self, start: int, stop: int, size: int
    ) -> Iterator[tuple[UInt8[np.ndarray, "batch h w c"], Int32[np.ndarray, " batch"]]]:
        """Images by their numbers, label i modulo the number of classes."""
        for first in range(start, stop, size):
            # Equally many every time, so that nothing is compiled again; what is beyond `number` is dropped.
            number, index = min(size, stop - first), np.arange(first, first + size, dtype=np.int32)
            images = data.to_uint8(self._decode(self._draw(index)), self._rule)
            yield images[:number], sampling.labels(number, self._config.data.num_classes, first)


def as_bytes(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Latents -> uint8 images by the rule of `config.evaluate.to_uint8`.

    Args:
        config: A run's config.

    Returns:
        A function for `generate`.
    """
    decode, rule = decoder(config), config.evaluate.to_uint8
    return lambda latents: data.to_uint8(decode(latents), rule)


def encode_batch(config: Config) -> Callable[..., jax.Array]:
    """The tokenizer's encoder as the generator's training uses it, inside jit.

    Args:
        config: A run's config.

    Returns:
        (params, images, key) -> latents.

    Raises:
        UserError: If `config.tokenizer.posterior` is unknown.
    """
    network, posterior = models.tokenizer(config), config.tokenizer.posterior
    if posterior not in ("sample", "mean"):
        raise UserError(f"config.tokenizer.posterior: {posterior!r} must be sample or mean")
    return lambda params, images, key: network.encode(params, images, key if posterior == "sample" else None)
