"""Chips and the slices of them that a run can be planned for.

Peaks are dense bfloat16, memory and links are a chip's. TPUs: "TPU v5e", "v5p", "v6e" in Google Cloud's system architecture pages, and
`jax.experimental.pallas.tpu.get_tpu_info_for_chip`, with which the tests compare; links in one direction, all of a chip together, from
"How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus): 4.5e10 bytes/s a link on v5e, 9e10 on v5p and v6e, four links (2D) or six (3D).
GPUs: NVIDIA's data sheets of H100 SXM, H200 SXM and A100 SXM 80 GB; NVLink in one direction.
"""

import math
import re
from dataclasses import dataclass

from jaxdrl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator.

    Attributes:
        name: As in `--topology`.
        flops: Peak, operations a second in bfloat16.
        memory: Bytes of HBM that a program may use; of TPUs a little less than there are.
        bandwidth: Of that, bytes a second.
        links: Bytes a second that leave a chip for its neighbours.
        dimensions: Of a slice's torus; 0: GPUs in one machine.
        host: Chips that one host serves, in a slice of several hosts.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: float
    dimensions: int
    host: int


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(name="v5e", flops=197e12, memory=15.75 * 2**30, bandwidth=819e9, links=1.8e11, dimensions=2, host=4),
        Chip(name="v5p", flops=459e12, memory=95.74 * 2**30, bandwidth=2765e9, links=5.4e11, dimensions=3, host=4),
        Chip(name="v6e", flops=918e12, memory=31.25 * 2**30, bandwidth=1640e9, links=3.6e11, dimensions=2, host=4),
        Chip(name="a100", flops=312e12, memory=80e9, bandwidth=2039e9, links=3e11, dimensions=0, host=8),
        Chip(name="h100", flops=989e12, memory=80e9, bandwidth=3350e9, links=4.5e11, dimensions=0, host=8),
        Chip(name="h200", flops=989e12, memory=141e9, bandwidth=4800e9, links=4.5e11, dimensions=0, host=8),
    )
}


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips that are booked together.

    Attributes:
        name: As given, such as "v5e:4x4" or "h200:8".
        chip: Which.
        count: How many.
    """

    name: str
    chip: Chip
    count: int

    @property
    def compiles(self) -> bool:
        """Whether the compiler of these chips runs on a machine that has none: TPUs' does."""
        return self.chip.dimensions > 0


def parse(name: str) -> Slice:
    """Reads the name of a slice.

    Args:
        name: CHIP:SIDExSIDE[xSIDE] for TPUs, CHIP:COUNT for GPUs in one machine.

    Returns:
        The slice.

    Raises:
        UserError: If the chip is unknown, or the sides do not fit it.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    chip = CHIPS.get(found[1]) if found else None
    if found is None or chip is None:
        raise UserError(
            f"--topology: {name!r} is unknown; write CHIP:SIDES, such as v5e:4x4, v5p:2x4x4 or h200:8 ({', '.join(CHIPS)})"
        )
    sides = [int(side) for side in found[2].split("x")]
    count = math.prod(sides)
    if len(sides) != max(chip.dimensions, 1) or count < 1 or (not chip.dimensions and count > chip.host):
        shape = f"{chip.dimensions} sides, such as {chip.name}:{'x'.join('4' * chip.dimensions)}"
        raise UserError(f"--topology: {name!r}: {chip.name} has {shape if chip.dimensions else f'1 to {chip.host} in a machine'}")
    return Slice(name=name, chip=chip, count=count)
