"""From a program's cost to hours: the roofline of chips and links, the buffer, and the whole of a plan.

    chip seconds = sum over instructions of max(operations / peak, bytes / bandwidth)            (1)
    link seconds = bytes that leave a chip / what its links carry in one direction               (2)
    step seconds = max((1), (2))        links work while the chip computes                       (3)

(3) is a floor: no instruction is faster, most are slower. Williams et al., Roofline, CACM 2009.
"""

import re
from dataclasses import asdict, dataclass

import jax
from jax.sharding import Mesh

from jaxdrl.config import Config
from jaxdrl.planning import hlo, programs
from jaxdrl.planning.chips import Slice
from jaxdrl.training import compute, models


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe needs on a slice. Bytes, operations and seconds are of one chip and one refresh.

    Attributes:
        recipe: `config.name`.
        topology: Name of the slice.
        chips: How many.
        mesh: Axis -> size.
        parameters: Of the generator, whole.
        state_bytes: Trained weights and optimizer.
        frozen_bytes: KL reference, tokenizer, encoder, rewards.
        kept_bytes: The last good weights, beside the state.
        buffer_bytes: Trajectories, within `temporary_bytes`.
        temporary_bytes: What the step computes, at its fullest.
        peak_bytes: All of it.
        memory_bytes: What the chip has.
        estimated: Whether memory and links are those of a CPU program in place of the chip's own.
        flops: Operations of products; None where the compiler gave up.
        moved_bytes: Read from and written to memory.
        link_bytes: Kind of collective -> bytes that leave a chip.
        link_counts: Kind -> how many.
        chip_seconds: (1).
        link_seconds: (2).
        unknown_loops: Loops that were counted once.
        refreshes: Of the recipe.
        useful_flops: What `training/compute.py` counts for a refresh, all chips: nothing is computed twice in it.
        compile_seconds: Of this plan.
    """

    recipe: str
    topology: str
    chips: int
    mesh: dict[str, int]
    parameters: int
    state_bytes: float
    frozen_bytes: float
    kept_bytes: float
    buffer_bytes: float
    temporary_bytes: float
    peak_bytes: float
    memory_bytes: float
    estimated: bool
    flops: float | None
    moved_bytes: float | None
    link_bytes: dict[str, float]
    link_counts: dict[str, float]
    chip_seconds: float | None
    link_seconds: float | None
    unknown_loops: int
    refreshes: int
    useful_flops: float
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether a chip has room."""
        return self.peak_bytes <= self.memory_bytes

    @property
    def step_seconds(self) -> float | None:
        """(3)."""
        return None if self.chip_seconds is None or self.link_seconds is None else max(self.chip_seconds, self.link_seconds)

    @property
    def hours(self) -> float | None:
        """Of all refreshes at (3)."""
        return None if self.step_seconds is None else self.step_seconds * self.refreshes / 3600

    def to_dict(self) -> dict:
        """All of it, for machines.

        Returns:
            Fields and what follows from them.
        """
        hours = self.hours
        return asdict(self) | {
            "fits": self.fits,
            "step_seconds": self.step_seconds,
            "hours": hours,
            "chip_hours": None if hours is None else hours * self.chips,
        }


def plan(config: Config, where: Slice, devices: Mesh) -> Plan:
    """Compiles a recipe's step for a slice, and counts it.

    Args:
        config: From `programs.sizes_only`.
        where: The slice.
        devices: A mesh over its devices, or over simulated ones.

    Returns:
        The plan.

    Raises:
        UserError: If the config cannot be planned.
    """
    given = programs.arguments(config, devices)
    program = programs.compile_step(config, devices, given)
    counted = hlo.Cost()
    if not program.refused:
        counted = hlo.cost(program.text, flops=where.chip.flops, bandwidth=where.chip.bandwidth, devices=where.count)
    kept = programs.bytes_a_device(given.kept)
    known = not program.refused
    useful = compute.posttrain_flops(config) / max(config.posttrain.refreshes, 1)
    return Plan(
        recipe=config.name,
        topology=where.name,
        chips=where.count,
        mesh=dict(devices.shape),
        parameters=models.backbone(config).num_params,
        state_bytes=programs.bytes_a_device(given.state),
        frozen_bytes=programs.bytes_a_device(given.frozen),
        kept_bytes=kept,
        buffer_bytes=buffer_bytes(config) / (devices.shape["data"] * devices.shape["fsdp"]),
        temporary_bytes=program.temporary,
        peak_bytes=program.held + program.temporary + kept,
        memory_bytes=where.chip.memory,
        estimated=not where.compiles,
        flops=counted.flops if known else None,
        moved_bytes=counted.memory if known else None,
        link_bytes=counted.link_bytes,
        link_counts=counted.link_counts,
        chip_seconds=_chip_seconds(counted, where, useful) if known else None,
        link_seconds=sum(counted.link_bytes.values()) / where.chip.links if known else None,
        unknown_loops=counted.unknown_loops,
        refreshes=config.posttrain.refreshes,
        useful_flops=useful,
        compile_seconds=program.seconds,
    )


def _chip_seconds(counted: hlo.Cost, where: Slice, useful: float) -> float:
    """(1); of products alone where the text is not the chip's own, whose fusions are others."""
    return counted.chip_seconds if where.compiles else max(counted.flops, useful / where.count) / where.chip.flops


def buffer_bytes(config: Config) -> float:
    """What the trajectories of one refresh take, on all devices together; 0 for policy gradients, who keep a tenth of it or less.

    Args:
        config: A run's config.

    Returns:
        Bytes on the devices.
    """
    options = config.posttrain
    if options.algorithm != "adjoint_matching" or options.buffer_memory == "pinned_host":
        return 0.0
    sample = 1.0
    for length in models.backbone(config).sample_shape:
        sample *= length
    wide = 4 + (2 if options.buffer_dtype == "bfloat16" else 4)
    return options.buffer_size * options.num_timesteps * sample * wide


def versions() -> str:
    """Of what a plan depends on.

    Returns:
        Such as "jax 0.10.2, libtpu 0.0.52".
    """
    import importlib.metadata

    found = [f"jax {jax.__version__}"]
    for package in ("libtpu",):
        try:
            found.append(f"{package} {re.sub('[+].*', '', importlib.metadata.version(package))}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
