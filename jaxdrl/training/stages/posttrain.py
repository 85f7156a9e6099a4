"""Stage 5: the generator tuned by KL-regularised RL, on the discriminator's logit (DRL, stage 2) or on any other rewards.

`config.posttrain.algorithm` chooses the method (`training/methods/`). One call of its compiled step is one refresh: rollouts and rewards, then
passes of minibatch updates over them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.training import (
    bad_steps,
    compute,
    distributed,
    frozen_weights,
    guard,
    held_out,
    loading,
    mesh,
    methods,
    models,
    phases,
    reward_weights,
    telemetry,
)
from jaxdrl.training.checkpoints import Checkpoints
from jaxdrl.training.context import Run
from jaxdrl.training.methods import common, scoring
from jaxdrl.training.metrics import read_metrics
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_key

name = "posttrain"


class Saved(NamedTuple):
    """What a checkpoint holds, so that a run which is killed and then stopped keeps the weights that it would have kept.

    Attributes:
        state: Of the method.
        good: The last tuned weights with which nothing was wrong.
        good_refresh: After which refresh; 0: the base.
    """

    state: Any
    good: PyTree
    good_refresh: Int[Array, ""]


def run(run: Run) -> dict:
    """Tunes the base; writes `model.safetensors` (the EMA if there is one).

    Args:
        run: The run, with pretrain and discriminator finished.

    Returns:
        refreshes, which refresh's weights are kept, gradient steps, what the guard measured of the base and the operations spent.

    Raises:
        UserError: If the algorithm is unknown, a setting is out of range, a metric is not finite, or rewards fail; then the same
            command goes on from where it stopped.
    """
    config, options = run.config, run.config.posttrain
    held_out.check(config)
    method = methods.of(config)
    settings = method.settings_from(config)
    base = loading.load_model(config, run.workdir, "base")
    encoder, head = loading.load_encoder(config, run.workdir, "reward"), loading.load_discriminator(run.workdir)
    frozen = common.Frozen(base, loading.load_tokenizer(config), encoder, head, reward_weights.load(run))
    frozen = frozen_weights.place(config, frozen, run.mesh)
    step_fn = method.compile_step(config, settings, run.mesh)
    others = held_out.HeldOut(run, name, base) if options.guard.every else None
    method_parts = _Parts(method, step_fn, frozen, others)
    with run.checkpoints(name, "checkpoints") as checkpoints:
        while True:
            try:
                saved, refresh, watch = _refreshes(run, _restored(checkpoints, base, run), method_parts, checkpoints)
            except bad_steps.GoBack:
                continue
            checkpoints.wait()
            break
    stopped = _said(refresh, int(saved.good_refresh), watch)
    weights = mesh.on_this_process(method.weights(config, saved.good, frozen), run.mesh)
    distributed.save_tree(run.workdir / name / "model.safetensors", jax.device_get(weights))
    return {
        "refreshes": refresh,
        "kept_refresh": int(saved.good_refresh),
        "stopped": stopped,
        "held_out_base": others.base if others else {},
        "gradient_steps": method.gradient_steps(saved.state),
        "flops": compute.posttrain_flops(config),
        "parameters": models.backbone(config).num_params,
    }


class _Parts(NamedTuple):
    """Of the loop: the method, its compiled step, what that reads, and what looks at held-out images."""

    method: Any
    step_fn: Callable[..., Any]
    frozen: common.Frozen
    others: held_out.HeldOut | None


def _refreshes(run: Run, saved: Saved, parts: _Parts, checkpoints: Checkpoints) -> tuple[Saved, int, guard.Guard]:
    """Tunes to the end, or until the guard stops it; returns the last state, how many refreshes it has had, and the guard."""
    config, options, (method, step_fn, frozen, others) = run.config, run.config.posttrain, parts
    writer, key, refresh = run.writer.for_stage(name), stage_key(config.seed, name), int(saved.state.refresh)
    writer.resume(refresh)
    bad = bad_steps.BadSteps(run, name, refresh)
    seen = distributed.from_first([line for line in read_metrics(run.workdir) if line["stage"] == name])
    watch = guard.Guard(options.guard, seen, others and others.base)
    progress = Progress(name, options.refreshes, unit="refresh", start=refresh, seconds=config.runtime.progress_seconds)
    meter = telemetry.Meter(options.buffer_size, _flops(config))
    while refresh < options.refreshes and not watch.stops:
        drawn = bad.key(key)
        before = _copy(saved.state) if bad.policy == "skip" else saved.state  # which the step donates
        try:
            current, measured = step_fn(saved.state, frozen, drawn)
        except scoring.RewardsFailed:
            writer.flush()
            if refresh not in checkpoints.steps():
                checkpoints.save(refresh, saved)
            raise
        metrics = scalars(jax.device_get(measured))
        machine = meter.step()
        refresh += 1
        machine |= _phases(run, run.at(name, refresh), step_fn, (current, frozen, drawn))
        if _skipped(bad, refresh, metrics, drawn):
            saved = saved._replace(state=before._replace(refresh=before.refresh + 1))
            checkpoints.after(refresh, saved, run.stopping, flush=writer.flush)
            continue
        _check_rewards(metrics, refresh)
        tuned = method.trained(config, current)
        if others is not None and watch.due(refresh, last=refresh == options.refreshes):
            metrics |= others.measure(method.weights(config, tuned, frozen))
        writer.write_scalars(refresh, metrics)
        writer.write_machine(refresh, machine)
        wrong = watch.check(metrics)
        if wrong is not None:
            print(f"{name}: warning at refresh {refresh}: {wrong}", flush=True)
        # Where held-out images are looked at, what has not been looked at is not known to be good.
        if wrong is None and (others is None or "held_out_coverage" in metrics):
            saved = Saved(current, _copy(tuned), mesh.place(jnp.int32(refresh), run.mesh))
        else:
            saved = saved._replace(state=current)
        checkpoints.after(refresh, saved, run.stopping, metrics=metrics, flush=writer.flush)
        progress.update(refresh, reward=metrics["reward_mean"], kl=metrics["control_energy"])
    return saved, refresh, watch


def _phases(run: Run, trace: Path | None, step_fn: Callable[..., Any], arguments: tuple) -> dict[str, float]:
    """Where a trace has just ended: how long the phases of its steps took."""
    if trace is None or run.profile is None:
        return {}
    flops, peak = compute.refresh_flops(run.config), telemetry.peak_flops(jax.devices()[0].device_kind)
    found = phases.measured(trace, step_fn, arguments, run.profile.count, flops, peak)
    if found:
        print(f"{name}: a step's phases: {phases.line(found)}", flush=True)
    return found


def _flops(config: Config) -> float | None:
    """Operations of a refresh; counted where a chip's share of its peak can be said, since counting takes seconds."""
    known = telemetry.peak_flops(jax.devices()[0].device_kind) is not None
    return compute.posttrain_flops(config) / config.posttrain.refreshes if known else None


def _skipped(bad: bad_steps.BadSteps, refresh: int, metrics: dict[str, float], key) -> bool:
    """Whether a refresh was bad and does not count; a good one counts for the median."""
    watched = [metrics[metric] for metric in ("loss", "policy_loss", "reward_mean") if metric in metrics]
    norm = metrics.get("gradient_norm", 0.0)
    wrong = bad.judge(sum(watched), norm)
    if not wrong:
        bad.seen(norm)
        return False
    bad.found(refresh, wrong, metrics, {"key": jax.random.key_data(key), "refresh": refresh - 1})
    return True


# A copy, since the state is donated to the next step.
_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _restored(checkpoints: Checkpoints, base: PyTree, run: Run) -> Saved:
    """The newest checkpoint, or the start, laid out over the devices."""
    method = methods.of(run.config)

    def start(base: PyTree) -> Saved:
        current = method.initial_state(run.config, base)
        return Saved(current, method.trained(run.config, current), jnp.int32(0))

    return checkpoints.restored(start, run.mesh, base)


def _said(refresh: int, kept: int, watch: guard.Guard) -> str:
    """Why the run ended early, if it did; says which weights are kept where they are not the last."""
    where = (
        f"after refresh {kept}, the last with which nothing was found wrong" if kept else "of the base: no refresh was found good"
    )
    stopped = f"stopped at refresh {refresh}: {watch.wrong}; the weights kept are those {where}" if watch.stops else ""
    if stopped or kept != refresh:
        print(f"{name}: {stopped or f'the weights kept are those {where}'}", flush=True)
    return stopped


def scalars(metrics: dict) -> dict[str, float]:
    """Flattens vectors over time into four means a name (`adjoint_norm_t0.00` .. `adjoint_norm_t0.75`).

    Args:
        metrics: Scalars and vectors of length K, on the host.

    Returns:
        name -> number.
    """
    flat = {}
    for metric, value in metrics.items():
        if value.ndim == 0:
            flat[metric] = float(value)
            continue
        for quarter in range(4):
            part = value[len(value) * quarter // 4 : len(value) * (quarter + 1) // 4]
            flat[f"{metric}_t{quarter / 4:.2f}"] = float(part.mean()) if len(part) else float("nan")
    return flat


def _check_rewards(metrics: dict[str, float], refresh: int) -> None:
    prefix = "reward_not_finite/"
    lost = {metric.removeprefix(prefix) for metric, value in metrics.items() if metric.startswith(prefix) and value >= 1}
    if lost and all(value >= 1 for metric, value in metrics.items() if metric.startswith("missing_share/")):
        raise UserError(
            f"posttrain: no reward has a finite value at refresh {refresh} ({', '.join(sorted(lost))}); mend the reward or lower "
            "config.posttrain.learning_rate (the last checkpoint is kept)"
        )
