"""What to change when a step does not fit, in the order in which it costs least; and the one line that says how it stands."""

import math

from jaxdrl.config import Config
from jaxdrl.planning.estimate import Plan

GIB = 2**30


def advise(config: Config, plan: Plan) -> list[str]:
    """Changes of the config, the cheapest first.

    Args:
        config: The planned config.
        plan: Its plan.

    Returns:
        Settings as `key=value`, each ready for the command line; empty where the step fits.
    """
    if plan.fits:
        return []
    options, found = config.posttrain, []
    ways, room = plan.mesh["data"] * plan.mesh["fsdp"], plan.memory_bytes
    if options.algorithm == "adjoint_matching":
        block = _divisor(math.gcd(options.batch_size, options.rollout_batch or options.buffer_size), ways)
        if options.shuffle_block == 1 and block > 1:
            found.append(f"config.posttrain.shuffle_block={block}")
    if plan.mesh["data"] > 1 and plan.state_bytes + plan.frozen_bytes + plan.kept_bytes > room / 4:
        found.append(f"config.mesh.fsdp={plan.mesh['fsdp'] * plan.mesh['data']}")
    if config.backbone.remat == "none":
        found.append("config.backbone.remat=full")
    if not config.backbone.scan_layers:
        found.append("config.backbone.scan_layers=true")
    together = options.rollout_batch or options.buffer_size
    if (options.reward_batch or together) > ways and together % ways == 0:
        found.append(f"config.posttrain.reward_batch={_smaller(options.reward_batch or together, ways, together)}")
    micro = _parts(options.batch_size, options.micro_batches, ways)
    if micro != options.micro_batches:
        found.append(f"config.posttrain.micro_batches={micro}")
    if together > ways and options.buffer_size % ways == 0 and together != _smaller(together, ways, options.buffer_size):
        found.append(f"config.posttrain.rollout_batch={_smaller(together, ways, options.buffer_size)}")
    if plan.buffer_bytes > room / 8 and options.buffer_memory == "device" and options.algorithm == "adjoint_matching":
        if options.buffer_dtype == "float32":
            found.append("config.posttrain.buffer_dtype=bfloat16")
        if options.shuffle_block % ways == 0 and options.shuffle_block > 1:
            # What is rolled out together is then one row, see training/methods/buffers.py.
            if together != options.shuffle_block:
                found = [one for one in found if "rollout_batch" not in one]
                found.append(f"config.posttrain.rollout_batch={options.shuffle_block}")
            found.append("config.posttrain.buffer_memory=pinned_host")
    return found


def _divisor(number: int, ways: int) -> int:
    """The smallest multiple of the devices that divides a number; 0 where there is none."""
    return next((n for n in range(ways, number + 1, ways) if number % n == 0), 0)


def _smaller(size: int, ways: int, whole: int) -> int:
    """At most a quarter, as it divides the whole and the devices divide it."""
    fitting = [n for n in range(ways, size + 1, ways) if whole % n == 0]
    return max((n for n in fitting if n <= max(size // 4, ways)), default=size)


def _parts(batch: int, now: int, ways: int) -> int:
    """More parts, each of which fills the devices; as they are where there are none."""
    fitting = [n for n in range(now + 1, batch + 1) if batch % n == 0 and (batch // n) % ways == 0]
    return next((n for n in fitting if n >= 3 * now), fitting[-1] if fitting else now)


def warnings(config: Config, plan: Plan) -> list[str]:
    """What fits, or not, but works against itself.

    Args:
        config: The planned config.
        plan: Its plan.

    Returns:
        Sentences.
    """
    options, ways, found = config.posttrain, plan.mesh["data"] * plan.mesh["fsdp"], []
    part = options.batch_size // options.micro_batches
    for size, name in ((part, "batch_size / micro_batches"), (options.rollout_batch or options.buffer_size, "rollout_batch")):
        if size % ways:
            found.append(
                f"config.posttrain.{name} ({size}) is no multiple of data x fsdp ({ways}): the compiler lays such a batch out as it likes, "
                "mostly whole on every chip; change it, or move chips to config.mesh.tensor"
            )
    if plan.link_seconds is not None and plan.chip_seconds is not None and plan.link_seconds > plan.chip_seconds:
        found.append(
            "the links are slower than the chips: fewer micro_batches, a larger rollout_batch, or a smaller config.mesh.fsdp gather less"
        )
    if plan.unknown_loops:
        found.append(f"{plan.unknown_loops} loops of unknown length were counted once: operations and bytes are too few")
    return found


def verdict(config: Config, plan: Plan) -> str:
    """The last line.

    Args:
        config: The planned config.
        plan: Its plan.

    Returns:
        Whether it fits, and either what it takes or what to set.
    """
    peak, room = plan.peak_bytes / GIB, plan.memory_bytes / GIB
    about = "about " if plan.estimated else ""
    if not plan.fits:
        changes = advise(config, plan)
        more = f"set {', '.join(changes)}" if changes else "take more chips, or chips with more memory"
        return f"does not fit: {about}{peak:.1f} of {room:.1f} GiB a chip; {more}"
    hours = plan.hours or 0.0
    return (
        f"fits: {about}{peak:.1f} of {room:.1f} GiB a chip, at least {_number(hours)} h on {plan.chips} chips "
        f"({_number(hours * plan.chips)} chip-hours)"
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2g}"
