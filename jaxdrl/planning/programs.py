"""The train step of post-training, compiled for devices that need not be here: shapes in place of weights, the same code and layouts.

What comes back is what the compiler says: memory a device, and the program's text, which `hlo.py` counts.
"""

import importlib.util
import os
import re
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxdrl.config import Config
from jaxdrl.errors import UserError
from jaxdrl.planning.chips import Slice
from jaxdrl.rewards import discriminator
from jaxdrl.rewards.preference import PUBLISHED
from jaxdrl.training import frozen_weights, mesh, methods, models
from jaxdrl.training.methods import common

OURS = ("class_confidence", "bradley_terry")  # rewards whose weights a run makes itself, of shapes that its data decide


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Of the step, as shapes with shardings.

    Attributes:
        state: What is trained, and its optimizer.
        frozen: What is only read.
        key: Of the stage.
        kept: The copy of the last good weights that the stage holds beside the state.
    """

    state: PyTree
    frozen: PyTree
    key: Any
    kept: PyTree


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled step.

    Attributes:
        held: Bytes a device of what the step is given and gives back, and of the program itself.
        temporary: Bytes a device of what it computes in between, at its fullest.
        text: Of the compiled program of one device; empty where it was refused.
        refused: Whether the compiler gave up for want of memory.
        seconds: That tracing and compiling took.
    """

    held: float
    temporary: float
    text: str
    refused: bool
    seconds: float


def sizes_only(config: Config) -> Config:
    """A config whose weights need not be here: folders that do not exist become "random", which has the published shapes.

    Args:
        config: A run's config.

    Returns:
        A copy.

    Raises:
        UserError: If networks are trained by the run itself and nothing says that they exist.
    """
    config = config.copy_and_resolve_references()
    for part in (config.backbone, config.tokenizer, *(config.encoders[which] for which in ("reward", "preference"))):
        if part.weights and not os.path.isdir(part.weights):
            part.weights = models.RANDOM
    return config


def devices_of(where: Slice) -> list[jax.Device]:
    """The devices to compile for: of a TPU topology, or simulated ones for GPUs.

    Args:
        where: The slice.

    Returns:
        As many as it has chips.

    Raises:
        UserError: If TPUs' compiler is not installed, or has no such topology.
    """
    if not where.compiles:
        found = jax.devices("cpu")
        if len(found) < where.count:
            raise UserError(
                f"--topology: {where.name} is simulated by {where.count} CPU devices, here are {len(found)}: JAX has started already; "
                "plan in a process of its own"
            )
        return found[: where.count]
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology: {where.name} needs the TPU compiler; pip install 'jaxdrl[plan]' (no TPU is needed)")
    # Nothing here talks to a chip: no metadata server is asked, and others on this machine may compile too.
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }
    settings |= {"TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost"}  # or it warns; the topology decides
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(where.name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology: the TPU compiler refuses {where.name}: {str(error).splitlines()[0]}") from error


def arguments(config: Config, devices: Mesh) -> Arguments:
    """Shapes of what the step takes; no array is made.

    Args:
        config: From `sizes_only`.
        devices: The mesh.

    Returns:
        The arguments.

    Raises:
        UserError: If a setting is out of range, or a reward is not traced.
    """
    method, key = methods.of(config), jax.random.key(0)
    base = jax.eval_shape(models.backbone(config).init, key)
    encoder = models.encoder(config, "reward")
    settings = config.discriminator
    head = jax.eval_shape(
        lambda key: discriminator.init(
            key, encoder.feature_dim, config.data.num_classes, width=settings.width, head=settings.head
        ),
        key,
    )
    shapes = jax.eval_shape(models.tokenizer(config).init, key), jax.eval_shape(encoder.init, key), head
    frozen = frozen_weights.stored(config, common.Frozen(base, *shapes, _rewards(config, key)))
    state = jax.eval_shape(lambda base: method.initial_state(config, base), base)
    state = _placed(state, mesh.shardings(state, devices))
    return Arguments(
        state=state,
        frozen=_placed(frozen, frozen_weights.shardings(config, frozen, devices)),
        key=jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(devices, PartitionSpec())),
        kept=method.trained(config, state),
    )


def _rewards(config: Config, key: Any) -> dict[str, PyTree]:
    """Weights of rewards that have their own."""
    found = {}
    for label, given in dict(config.posttrain.rewards).items():
        name, given = given.get("name", label), dict(given)
        if name in OURS:
            raise UserError(
                f"config.posttrain.rewards.{label}: a run fits {name} first, so its step cannot be planned without one; leave it out"
            )
        if name in PUBLISHED:
            if given.get("weights") and not os.path.isdir(given["weights"]):
                given["weights"] = models.RANDOM
            model, _ = models.reward_model(name, given)
            params = jax.eval_shape(model.init, key)
            text = model.text and jax.eval_shape(model.text, params, ("a",) * config.data.num_classes)
            found[label] = {"params": params, "text": text}
    return found


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, shardings)


def bytes_a_device(tree: PyTree) -> float:
    """What a device holds of a tree.

    Args:
        tree: Shapes with shardings.

    Returns:
        Bytes.
    """
    held = lambda leaf: np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64) * leaf.dtype.itemsize  # noqa: E731
    return float(sum(held(leaf) for leaf in jax.tree.leaves(tree)))


def compile_step(config: Config, devices: Mesh, given: Arguments) -> Program:
    """Compiles one step: a whole refresh.

    Args:
        config: From `sizes_only`.
        devices: The mesh.
        given: From `arguments`.

    Returns:
        The program, or the compiler's refusal where it finds no room.

    Raises:
        UserError: If the method's step is not one program.
    """
    method = methods.of(config)
    began = time.monotonic()
    with jax.set_mesh(devices):
        step = method.compile_step(config, method.settings_from(config), devices)
        if not hasattr(step, "lower"):
            raise UserError(
                "config.posttrain.rewards: a reward on the host cannot be planned; leave it out, or plan the traced ones alone"
            )
        lowered = step.trace(given.state, given.frozen, given.key).lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            temporary = _asked(str(error))
            if temporary is None:
                raise
            held = bytes_a_device((given.state, given.frozen))
            return Program(held=held, temporary=temporary, text="", refused=True, seconds=time.monotonic() - began)
    found = compiled.memory_analysis()
    held = (
        found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes + found.generated_code_size_in_bytes
    )
    seconds = time.monotonic() - began
    return Program(
        held=float(held), temporary=float(found.temp_size_in_bytes), text=compiled.as_text() or "", refused=False, seconds=seconds
    )


def _asked(said: str) -> float | None:
    """Bytes that the compiler wanted for what it computes, where it found no room: both of libtpu's ways to say so."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available", said) or re.search(r"Used ([\d.]+)([KMGT]) of", said)
    return float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2]))) if found else None
