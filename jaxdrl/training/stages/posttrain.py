"""Stage 5: the generator tuned by KL-regularised RL, on the discriminator's logit (DRL, stage 2) or on any other rewards.

`config.posttrain.algorithm` chooses the method (`training/methods/`). One call of its compiled step is one refresh: rollouts and rewards, then
passes of minibatch updates over them.
"""

import time

import jax
import jax.numpy as jnp

from jaxdrl.errors import UserError
from jaxdrl.training import compute, guard, loading, mesh, methods, models
from jaxdrl.training.checkpoints import Checkpoints
from jaxdrl.training.context import Run
from jaxdrl.training.methods import common
from jaxdrl.training.metrics import read_metrics
from jaxdrl.training.progress import Progress
from jaxdrl.training.randomness import stage_key
from jaxdrl.weights import files

name = "posttrain"


def run(run: Run) -> dict:
    """Tunes the base; writes `model.safetensors` (the EMA if there is one).

    Args:
        run: The run, with pretrain and discriminator finished.

    Returns:
        refreshes, gradient steps, the last refresh's metrics and the operations spent.

    Raises:
        UserError: If the algorithm is unknown, or the buffer is smaller than a batch.
    """
    config, options = run.config, run.config.posttrain
    method = methods.of(config)
    settings = method.settings_from(config)
    base = loading.load_model(config, run.workdir, "base")
    reward = (loading.load_encoder(config, run.workdir, "reward"), loading.load_discriminator(run.workdir))
    frozen = mesh.place(common.Frozen(base, loading.load_tokenizer(config), *reward), run.mesh)
    step_fn = method.compile_step(config, settings, run.mesh)
    writer, key, metrics = run.writer.for_stage(name), stage_key(config.seed, name), {}
    start = method.initial_state(config, base)
    with Checkpoints(run.workdir / name / "checkpoints", config.runtime.checkpoint_seconds) as checkpoints:
        restored = checkpoints.restore(start)
        current = restored[1] if restored else mesh.place(start, run.mesh)
        refresh = int(current.refresh)
        writer.resume(refresh)
        watch = guard.Guard(options.guard, [line for line in read_metrics(run.workdir) if line["stage"] == name])
        good, stopped = _copy(method.trained(config, current)), ""
        progress = Progress(name, options.refreshes, unit="refresh", start=refresh, seconds=config.runtime.progress_seconds)
        while refresh < options.refreshes:
            began = time.monotonic()
            current, measured = step_fn(current, frozen, key)
            metrics = scalars(jax.device_get(measured))
            metrics["images_per_second"] = options.buffer_size / (time.monotonic() - began)
            refresh += 1
            _check_finite(metrics, refresh)
            writer.write_scalars(refresh, metrics)
            checkpoints.save_when_due(refresh, current, flush=writer.flush)
            progress.update(refresh, reward=metrics["reward_mean"], kl=metrics["control_energy"])
            wrong = watch.check(metrics)
            if wrong is None:
                good = _copy(method.trained(config, current))
            else:
                print(f"{name}: warning at refresh {refresh}: {wrong}", flush=True)
            if watch.stops:
                stopped = (
                    f"stopped at refresh {refresh}: {wrong}; the weights kept are those of the last refresh without a warning"
                )
                print(f"{name}: {stopped}", flush=True)
                break
        checkpoints.wait()
    files.save_tree(run.workdir / name / "model.safetensors", jax.device_get(method.weights(config, good, frozen)))
    return {
        "refreshes": refresh,
        "stopped": stopped,
        "gradient_steps": method.gradient_steps(current),
        "flops": compute.posttrain_flops(config),
        "parameters": models.backbone(config).num_params,
    }


# A copy, since the state is donated to the next step.
_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


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


def _check_finite(metrics: dict[str, float], refresh: int) -> None:
    watched = [metric for metric in ("loss", "policy_loss", "reward_mean") if metric in metrics]
    bad = [metric for metric in watched if metrics[metric] - metrics[metric] != 0]
    if bad:
        raise UserError(
            f"posttrain: {', '.join(bad)} is not finite at refresh {refresh}; "
            "lower config.posttrain.learning_rate or config.posttrain.reward_scale (the last checkpoint is kept)"
        )
