r"""One refresh of Discriminator-Guided RL, phase by phase: images a second, MFU, and the hours of the whole stage from measured steps.

    python benchmarks/drl_step.py                                                     # a small SiT, any machine: ratios
    python benchmarks/drl_step.py --size=full --dtype=bfloat16 --set=posttrain.micro_batches=32 --set=posttrain.reward_batch=16
    python benchmarks/drl_step.py --size=full --compile                               # nothing is computed: how long compiling takes

A refresh is a rollout of K steps, the reward's gradient, an adjoint of K steps, and `epochs` passes of updates. Each is the library's own function,
compiled by itself at the recipe's sizes, and called a few times; a refresh is their sum, which `--whole` compares with the fused step. Weights are
drawn. Operations are those that the method needs (`training/compute.py`): what remat or the outlier mask compute twice counts as time only.
"""

import argparse
import ast
import functools
import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdrl.algorithms import adjoint_matching
from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.flow.memoryless import Schedule, lean_adjoint, rollout
from jaxdrl.rewards import discriminator
from jaxdrl.training import compute, frozen_weights, loading, mesh, models, state, telemetry
from jaxdrl.training.methods import adjoint, common

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a refresh.

    Attributes:
        name: For the table.
        call: Runs it once and waits.
        count: How often a refresh does what one call does; a fraction where a call has fewer steps.
        flops: That the method needs of one call.
    """

    name: str
    call: Callable[[], Any]
    count: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Of one call, over rounds.

    Attributes:
        walls: Seconds of each round.
        cpus: CPU seconds of this process in each round, all threads.
    """

    walls: tuple[float, ...]
    cpus: tuple[float, ...]

    @property
    def wall(self) -> float:
        """The median."""
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        """The median."""
        return statistics.median(self.cpus)


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=str(ROOT / "configs" / "drl_imagenet_sit_xl.py"))
    parser.add_argument(
        "--size", default="small", choices=("small", "full"), help="small: the recipe's networks, shrunk for CPUs"
    )
    parser.add_argument("--dtype", default="", choices=("", "float32", "bfloat16"), help="of all matmuls; empty: the recipe's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the config, such as posttrain.num_timesteps=50"
    )
    parser.add_argument("--steps", default=4, type=int, help="of a timed rollout or adjoint, at most K")
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--whole", action="store_true", help="also the fused step: a whole refresh a round")
    parser.add_argument("--compile", action="store_true", help="only compile the fused step, and again from the persistent cache")
    options = parser.parse_args()
    if min(options.rounds, options.steps - 1) < 1:
        parser.error("--rounds must be at least 1 and --steps at least 2")
    try:
        config = configured(options.recipe, options.size, options.dtype, options.set)
        if options.compile:
            print(compiling(config))
            return
        if jax.device_count() > 1:
            raise UserError(f"one device is measured, here are {jax.device_count()}; show one, as with CUDA_VISIBLE_DEVICES=0")
        measure(config, options.steps, options.rounds, options.whole)
    except UserError as error:
        parser.error(str(error))


def configured(recipe: str, size: str, dtype: str, changes: Sequence[str]) -> Config:
    """A recipe, on drawn weights.

    Args:
        recipe: A file, with or without a colon and a variant.
        size: "small" or "full".
        dtype: Of all matmuls; empty: the recipe's.
        changes: KEY=VALUE.

    Returns:
        The config.

    Raises:
        UserError: If there is no such file or key, a value is of another type, or the recipe is not for Adjoint Matching.
    """
    path, _, variant = recipe.partition(":")
    if not Path(path).is_file():
        raise UserError(f"--recipe: {path} is not a file; give a recipe of configs/")
    spec: Any = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    if config.posttrain.algorithm != "adjoint_matching" or list(dict(config.posttrain.rewards)) != ["discriminator"]:
        raise UserError(f"--recipe: {path} is not Adjoint Matching on the discriminator alone, which is what this measures")
    parts = [config.backbone, config.encoders.reward, config.tokenizer]
    for part in parts:
        part.weights = models.RANDOM
    if size == "small":
        shrink(config)
    for part in parts if dtype else ():
        part.dtype = dtype
    for change in changes:
        key, _, value = change.partition("=")
        *parents, last = key.split(".")
        try:
            node = functools.reduce(lambda node, name: node[name], parents, config)
            node[last] = _parsed(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"--set: {change!r}: {error}; write KEY=VALUE with a key of jaxdrl/config.py") from error
    return config


def shrink(config: Config) -> None:
    """The recipe's networks, phases and shares, small enough for a CPU.

    Args:
        config: A recipe for latents of an autoencoder or for pixels; changed in place.
    """
    config.data.update(image_shape=(64, 64, 3), num_classes=10)
    config.backbone.update(remat="none", dtype="float32")
    config.backbone.fields = {"width": 128, "depth": 4, "num_heads": 4}
    config.encoders.reward.fields = {"width": 48, "depth": 3, "num_heads": 3, "resolution": 56}
    if config.tokenizer.name == "sd-vae":
        config.tokenizer.fields = {"widths": (8, 16, 16, 16), "depth": 1, "groups": 8}
    config.posttrain.update(num_timesteps=10, buffer_size=16, rollout_batch=16, batch_size=8, epochs=5)


def measure(config: Config, steps: int, rounds: int, whole: bool) -> None:
    """Times every phase and prints the tables.

    Args:
        config: From `configured`.
        steps: Of a timed rollout or adjoint, at most K.
        rounds: Of all phases in turn.
        whole: Whether the fused step is timed too.
    """
    settings, options = adjoint.settings_from(config), config.posttrain
    frozen = frozen_networks(config)
    phases = refresh_phases(config, settings, frozen, min(steps, options.num_timesteps))
    product = Phase(name="product of matrices", **_product(config.backbone.dtype), count=0)
    timings = in_turn([phase.call for phase in (*phases, product)], rounds)
    device, peak = jax.devices()[0], telemetry.peak_flops(jax.devices()[0].device_kind)
    network = dict(models.backbone(config).fields)
    sizes = ", ".join(f"{key} {network[key]}" for key in ("width", "depth", "patch_size", "sample_shape"))
    print(f"{time.strftime('%Y-%m-%d')}, {device.device_kind}, jax {jax.__version__}; {network['dtype']}, {sizes}\n")
    print("\n".join(table(phases, timings[:-1], options.buffer_size, product.flops / timings[-1].wall, peak)))
    predicted = sum(phase.count * timing.wall for phase, timing in zip(phases, timings, strict=False))
    print(f"\nrefresh: {predicted:.3g} s, {options.buffer_size / predicted:.3g} images/s by its phases")
    if whole:
        fused = in_turn([fused_step(config, settings, frozen)], rounds)[0]
        print(
            f"fused step: {fused.wall:.3g} s ({min(fused.walls):.3g} to {max(fused.walls):.3g}), {fused.wall / predicted:.2f} of its phases' sum"
        )
    if peak:
        hours = options.refreshes * predicted / 3600
        print(f"whole stage, {options.refreshes} refreshes on one {device.device_kind}: {hours:.1f} hours, by extrapolation")
        print(f"at the peak it would take {compute.posttrain_flops(_once(config)) / peak / 3600:.1f} hours")


def frozen_networks(config: Config) -> common.Frozen:
    """Everything that a refresh reads, drawn.

    Args:
        config: A run's config.

    Returns:
        Arrays on the device.
    """
    return common.Frozen(*(loading.drawn(init, seed) for seed, init in enumerate(_initialisers(config))))


def _initialisers(config: Config) -> Sequence[Callable[[Any], Any]]:
    """Of base, tokenizer, encoder and head."""
    encoder = models.encoder(config, "reward")
    images = jax.ShapeDtypeStruct((1, *config.data.image_shape), jnp.float32)
    pooled = jax.eval_shape(lambda key, x: encoder.features(encoder.init(key), x)["pooled"], jax.random.key(0), images)
    head = lambda key: discriminator.init(key, pooled.shape[-1], config.data.num_classes, width=config.discriminator.width)  # noqa: E731
    return models.backbone(config).init, models.tokenizer(config).init, encoder.init, head


def refresh_phases(config: Config, settings: adjoint.Settings, frozen: common.Frozen, steps: int) -> list[Phase]:
    """What a refresh is made of, compiled and warm.

    Args:
        config: A run's config.
        settings: From `adjoint.settings_from`.
        frozen: From `frozen_networks`.
        steps: Of a timed rollout or adjoint.

    Returns:
        The phases; operations times counts are `compute.posttrain_flops` of one refresh.
    """
    options, network, forward = config.posttrain, models.backbone(config), compute.generator_flops(config)
    together = options.rollout_batch or options.buffer_size
    chunks, short, rng = options.buffer_size // together, Schedule(num_steps=steps), np.random.default_rng(0)
    noise = jnp.asarray(rng.standard_normal((together, *network.sample_shape), np.float32))
    labels = jnp.arange(together, dtype=jnp.int32) % network.num_classes
    roll = jax.jit(lambda params, x, y, key: rollout(lambda x, t: network.velocity(params, x, t, y), x, key, short)[0])
    back = jax.jit(lambda params, x, a, y: lean_adjoint(lambda x, t: network.velocity(params, x, t, y), x, a, short))
    states, reward = roll(frozen.base, noise, labels, jax.random.key(0)), jax.jit(reward_gradient(config))
    calls = {
        "rollout": (lambda: roll(frozen.base, noise, labels, jax.random.key(0)), options.num_timesteps / steps, steps * forward),
        "reward gradient": (
            lambda: reward(frozen, noise, labels),
            1,
            2 * (compute.encoder_flops(config) + compute.decoder_flops(config)),
        ),
        # The first velocity of all is one forward pass more.
        "adjoint": (
            lambda: back(frozen.base, states, noise, labels),
            (2 * options.num_timesteps + 1) / (2 * steps + 1),
            (2 * steps + 1) * forward,
        ),
    }
    collected = [
        Phase(name=name, call=_waiting(call), count=chunks * count, flops=together * flops)
        for name, (call, count, flops) in calls.items()
    ]
    return collected + _update_phases(config, settings, frozen, 3 * forward * adjoint_matching.subset_size(settings))


def reward_gradient(config: Config) -> Callable[..., jax.Array]:
    """Decoder, encoder and logit, differentiated as `adjoint_matching.collect` does it.

    Args:
        config: A run's config.

    Returns:
        (frozen, samples, labels) -> gradients.
    """
    tokenizer, size = models.tokenizer(config), config.posttrain.reward_batch

    def gradient(frozen, x, y):
        reward = common.rewards(config, frozen)[0]
        score = lambda x, y: reward(tokenizer.decode(frozen.tokenizer, x), y)  # noqa: E731
        values, pullback = jax.vjp(lambda x: common.in_parts(score, x, y, size), x)
        return pullback(jnp.ones_like(values))[0]

    return gradient


def _update_phases(config: Config, settings: adjoint.Settings, frozen: common.Frozen, flops: float) -> list[Phase]:
    """The gradient of one micro-batch, the norms for its mask where there are several, and the optimizer."""
    options, network, (optimizer, _) = config.posttrain, models.backbone(config), common.optimizer(config)
    parts, rng = options.micro_batches, np.random.default_rng(1)
    size, updates = options.batch_size // parts, options.epochs * (options.buffer_size // options.batch_size)
    shape = (size, options.num_timesteps, *network.sample_shape)
    drawn = lambda: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
    batch = adjoint_matching.Buffer(
        drawn().astype(options.buffer_dtype), drawn(), jnp.arange(size, dtype=jnp.int32) % network.num_classes
    )
    key, threshold = jax.random.key(1), jnp.zeros(())
    loss = lambda params, batch: adjoint_matching.loss(network.velocity, params, batch, key, threshold, settings)[0]  # noqa: E731
    norms = jax.jit(lambda params, batch: adjoint_matching.trajectory_losses(network.velocity, params, batch, key, settings)[0])
    gradient = jax.jit(jax.grad(loss))
    apply = jax.jit(lambda model, grads: state.apply_gradients(model, grads, optimizer, options.ema_decay), donate_argnums=0)
    # Its own copy of the weights: the state is donated, the base is not.
    held = [state.create(jax.tree.map(jnp.array, frozen.base), optimizer, options.ema_decay)]

    def step():
        held[0] = apply(held[0], frozen.base)
        return held[0]

    phases = [
        Phase(name="gradient", call=_waiting(lambda: gradient(frozen.base, batch)), count=updates * parts, flops=size * flops)
    ]
    if parts > 1:
        phases.append(
            Phase(name="norms for the mask", call=_waiting(lambda: norms(frozen.base, batch)), count=updates * parts, flops=0)
        )
    return [*phases, Phase(name="optimizer", call=_waiting(step), count=updates, flops=0)]


def fused_step(config: Config, settings: adjoint.Settings, frozen: common.Frozen) -> Callable[[], Any]:
    """The compiled step of the posttrain stage, warm.

    Args:
        config: A run's config.
        settings: From `adjoint.settings_from`.
        frozen: From `frozen_networks`.

    Returns:
        A call is one refresh.
    """
    devices = mesh.create_mesh()
    # Laid out as the stage does it: otherwise the second call, with the first one's result, is compiled again.
    held = [mesh.place(adjoint.initial_state(config, frozen.base), devices)]
    step, frozen = adjoint.compile_step(config, settings, devices), frozen_weights.place(config, frozen, devices)

    def refresh():
        with jax.set_mesh(devices):
            held[0], metrics = step(held[0], frozen, jax.random.key(0))
        return metrics

    return _waiting(refresh)


def in_turn(calls: Sequence[Callable[[], Any]], rounds: int) -> list[Timing]:
    """Times calls that take turns, after one of each that is not timed.

    Args:
        calls: Without arguments; they wait for what they started.
        rounds: How many.

    Returns:
        One timing a call.
    """
    for call in calls:
        call()
    taken: list[list[tuple[float, float]]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [Timing(walls=tuple(wall for wall, _ in times), cpus=tuple(cpu for _, cpu in times)) for times in taken]


def table(phases: Sequence[Phase], timings: Sequence[Timing], images: int, product: float, peak: float | None) -> list[str]:
    """The phases as Markdown.

    Args:
        phases: From `refresh_phases`.
        timings: One a phase.
        images: Trajectories of a refresh.
        product: FLOP/s of a large product of matrices here.
        peak: From `telemetry.peak_flops`.

    Returns:
        Lines.
    """
    total = sum(phase.count * timing.wall for phase, timing in zip(phases, timings, strict=True))
    lines = [
        "| phase | a call, s (fastest to slowest) | CPU s | share of a refresh | images/s | of a product's speed | MFU |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase, timing in zip(phases, timings, strict=True):
        seconds, speed = phase.count * timing.wall, phase.flops / timing.wall
        cells = (
            phase.name,
            f"{timing.wall:.3g} ({min(timing.walls):.3g} to {max(timing.walls):.3g})",
            f"{timing.cpu:.3g}",
            f"{100 * seconds / total:.0f} %",
            f"{images / seconds:.3g}",
            f"{speed / product:.2f}" if speed else "",
            f"{100 * speed / peak:.1f} %" if peak and speed else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    needed = sum(phase.count * phase.flops for phase in phases) / total
    share = f"{100 * needed / peak:.1f} %" if peak else ""
    return [*lines, f"| all | | | 100 % | {images / total:.3g} | {needed / product:.2f} | {share} |"]


def compiling(config: Config) -> str:
    """Compiles the fused step in two new processes that share a persistent cache.

    Args:
        config: From `configured`.

    Returns:
        A line with both starts.
    """
    with tempfile.TemporaryDirectory() as cache:
        spawn, starts = multiprocessing.get_context("spawn"), []
        for _ in range(2):
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                starts.append(pool.submit(start, config.to_dict(), cache).result())
    told = "; ".join(
        f"{name} start " + ", ".join(f"{part} {value:.1f} s" for part, value in seconds.items())
        for name, seconds in zip(("first", "second"), starts, strict=True)
    )
    return f"{config.backbone.name}, fused step on {jax.default_backend()}: {told}"


def start(fields: Mapping[str, Any], cache: str) -> dict[str, float]:
    """From shapes to an executable, in this process.

    Args:
        fields: A config.
        cache: Folder of the persistent cache.

    Returns:
        Seconds: wall and CPU time in all, and wall time of tracing, lowering and compiling.
    """
    import ml_collections

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config: Any = ml_collections.ConfigDict(fields)
    settings, devices = adjoint.settings_from(config), mesh.create_mesh()
    frozen = common.Frozen(*(jax.eval_shape(init, jax.random.key(0)) for init in _initialisers(config)))
    current = jax.eval_shape(lambda base: adjoint.initial_state(config, base), frozen.base)
    times, began = [time.perf_counter()], time.process_time()
    with jax.set_mesh(devices):
        traced = adjoint.compile_step(config, settings, devices).trace(current, frozen, jax.random.key(0))  # pyright: ignore[reportFunctionMemberAccess]
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        lowered.compile()
    times.append(time.perf_counter())
    parts = dict(zip(("tracing", "lowering", "compiling"), np.diff(times).tolist(), strict=True))
    return {"wall": sum(parts.values()), "CPU": time.process_time() - began} | parts


def _waiting(call: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(call())


def _product(dtype: str, side: int = 2048) -> dict[str, Any]:
    """A large product of matrices: what the device reaches on its best day."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32), dtype)
    multiply = jax.jit(jnp.matmul)
    return {"call": _waiting(lambda: multiply(a, a)), "flops": 2.0 * side**3}


def _once(config: Config) -> Config:
    """The config with no pass that only saves memory, whose operations are those that the method needs."""
    found: Any = config.copy_and_resolve_references()
    found.posttrain.micro_batches = 1
    return found


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


if __name__ == "__main__":
    main()
