"""A plan as text."""

from collections.abc import Sequence

from jaxdrl.planning.chips import Slice
from jaxdrl.planning.estimate import Plan, versions

GIB = 2**30


def text(plan: Plan, where: Slice, warnings: Sequence[str]) -> str:
    """Writes a plan down.

    Args:
        plan: The plan.
        where: Its slice.
        warnings: Sentences that follow.

    Returns:
        Lines; the verdict is not among them.
    """
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    source = "estimated from a CPU program" if plan.estimated else "compiled for the chip"
    rows = [
        ("mesh", mesh),
        ("parameters", f"{plan.parameters / 1e6:.0f} M"),
        ("weights and optimizer", _memory(plan.state_bytes)),
        ("last good weights", _memory(plan.kept_bytes)),
        ("frozen networks", _memory(plan.frozen_bytes)),
        ("computed in between", f"{_memory(plan.temporary_bytes)}, of which trajectories {_memory(plan.buffer_bytes)}"),
        ("peak", f"{_memory(plan.peak_bytes)} of {_memory(plan.memory_bytes)}"),
    ]
    if plan.flops is not None and plan.moved_bytes is not None and plan.chip_seconds is not None:
        rows += _speed(plan, where)
    width = max(len(name) for name, _ in rows)
    head = f"{plan.recipe} on {plan.topology}, one chip and one refresh ({source}; {versions()}; {plan.compile_seconds:.0f} s)"
    return "\n".join([head, *(f"  {name:{width}}  {said}" for name, said in rows), *(f"  note: {said}" for said in warnings)])


def _speed(plan: Plan, where: Slice) -> list[tuple[str, str]]:
    chip_seconds, link_seconds, seconds = plan.chip_seconds or 0.0, plan.link_seconds or 0.0, plan.step_seconds or 0.0
    flops, moved, hours = plan.flops or 0.0, plan.moved_bytes or 0.0, plan.hours or 0.0
    links = [
        f"{kind} {plan.link_bytes[kind] / 1e9:.1f} GB in {plan.link_counts[kind]:.0f}"
        for kind in sorted(plan.link_bytes, key=lambda kind: -plan.link_bytes[kind])
    ]
    more = flops * plan.chips / plan.useful_flops
    return [
        ("operations", f"{flops / 1e12:.1f} TFLOP, {more:.2f} x what the method needs"),
        ("memory traffic", f"{moved / 1e9:.0f} GB" if not plan.estimated else f"{moved / 1e9:.0f} GB, on CPU: not used"),
        ("collectives", ", ".join(links) or "none"),
        ("chip", f"{chip_seconds:.1f} s, products alone {flops / where.chip.flops:.1f} s"),
        ("links", f"{link_seconds:.1f} s"),
        ("a refresh, at least", f"{seconds:.1f} s"),
        ("recipe, at least", f"{hours:.1f} h for {plan.refreshes} refreshes, {hours * plan.chips:.0f} chip-hours"),
    ]


def _memory(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
