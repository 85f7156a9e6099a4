"""What a compiled program does, counted from its text: operations, bytes of memory and bytes between chips, with loops multiplied out.

XLA's own cost analysis counts the body of a loop once (jax 0.10.2), so the text is read: every computation that is executed is walked from
the entry, a loop's as often as it runs. The text is one device's part.

- Operations are those of products (`dot`, `convolution`, on TPUs one and the same), 2 m n k; what else is computed is not counted.
- Bytes are what each fusion reads and writes, after XLA's rules: a slice counts as what it takes, an update as what it puts, and what the TPU
  compiler keeps in the chip's own memory (spaces other than 0, `S(1)`) as nothing. On CPU programs the fusions are not a GPU's.
- A collective counts the bytes that leave a device when it goes round a ring of n: (n - 1) / n of the whole of what is gathered or
  scattered, twice that for an all-reduce. One that the TPU compiler spreads over several fusions, so that they hide it (a chain from
  "AsyncCollectiveStart" to "AsyncCollectiveDone"), stands in each of them and counts in the first; what they hand on is not moved.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

WIDTHS = {"pred": 1.0, "s4": 0.5, "u4": 0.5, "token": 0.0, "opaque": 0.0}
FREE = {
    *(
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "iota",
        "while",
    ),
    *("conditional", "call", "copy-done", "slice-done", "async-done", "async-update", "opt-barrier", "domain"),
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line.

    Attributes:
        name: Of the result.
        shape: Its text.
        op: Opcode.
        operands: Names.
        rest: Attributes, as text.
    """

    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str

    def attribute(self, name: str) -> str:
        """An attribute up to the next blank or comma; empty where there is none."""
        found = re.search(rf"\b{name}=%?([^\s,]+)", self.rest)
        return found[1] if found else ""


@dataclass(kw_only=True)
class Computation:
    """A named block.

    Attributes:
        name: Its name.
        instructions: By name, in order.
        root: Name of the result.
    """

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads a result."""
        found: dict[str, list[Instruction]] = {}
        for line in self.instructions.values():
            for name in line.operands:
                found.setdefault(name, []).append(line)
        return found

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        return {int(line.rest or 0): line for line in self.instructions.values() if line.op == "parameter"}


@dataclass(kw_only=True)
class Cost:
    """Of one run of a program on one device.

    Attributes:
        flops: Operations of products.
        memory: Bytes read and written.
        chip_seconds: Sum over instructions of what is slower, their products or their bytes.
        link_bytes: Kind of a collective -> bytes that leave the device.
        link_counts: Kind -> how many.
        unknown_loops: Loops of unknown length, counted once.
    """

    flops: float = 0.0
    memory: float = 0.0
    chip_seconds: float = 0.0
    link_bytes: dict[str, float] = field(default_factory=dict)
    link_counts: dict[str, float] = field(default_factory=dict)
    unknown_loops: int = 0


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Reads a program.

    Args:
        text: From `compiled.as_text()`.

    Returns:
        Computations by name, and the name of the entry.

    Raises:
        ValueError: If there is no entry.
    """
    found, entry, current = {}, "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = found[head[2]] = Computation(name=head[2])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _LINE.match(line)):
            instruction = _instruction(match[2], line[match.end() :])
            current.instructions[match[2]] = instruction
            current.root = match[2] if match[1] else current.root
    if not entry:
        raise ValueError("the text of the program has no ENTRY")
    return found, entry


def _instruction(name: str, text: str) -> Instruction:
    shape, text = _balanced(text) if text.startswith("(") else (text.split(" ", 1)[0], text.split(" ", 1)[1])
    op, _, inner = text.strip().partition("(")
    inside, rest = _balanced("(" + inner)
    if op in ("parameter", "constant"):
        return Instruction(name=name, shape=shape, op=op, operands=(), rest=inside[1:-1])
    names = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name=name, shape=shape, op=op, operands=names, rest=rest)


def _balanced(text: str) -> tuple[str, str]:
    """Splits behind the parenthesis that closes the first one."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def dimensions(shape: str) -> tuple[int, ...]:
    """Of the first array in a shape.

    Args:
        shape: Such as "bf16[6,128]{1,0:T(8,128)S(1)}".

    Returns:
        Lengths.
    """
    found = _SHAPE.search(shape)
    return tuple(int(n) for n in found[2].split(",") if n) if found else ()


def size(shape: str, *, everywhere: bool = False) -> float:
    """Bytes of a shape.

    Args:
        shape: An array's, or a tuple's of any depth.
        everywhere: Whether what lies in a chip's own memory counts too.

    Returns:
        Bytes in the device's main memory.
    """
    found = (
        _width(kind) * math.prod(int(n) for n in lengths.split(",") if n)
        for kind, lengths, layout in _SHAPE.findall(shape)
        if everywhere or not re.search(r"S\([1-9]", layout)
    )
    return sum(found, 0.0)


def _width(kind: str) -> float:
    bits = re.search(r"\d+", kind)
    return WIDTHS[kind] if kind in WIDTHS else int(bits[0]) / 8 if bits else 0.0


def cost(text: str, *, flops: float, bandwidth: float, devices: int) -> Cost:
    """Counts a program.

    Args:
        text: From `compiled.as_text()`.
        flops: A device's operations a second.
        bandwidth: Of its memory, bytes a second.
        devices: How many the program is cut over: of collectives that do not say.

    Returns:
        The cost of one run on one device.
    """
    computations, entry = parse(text)
    total = Cost()
    for where, times in _executed(computations, entry, total):
        for line in where.instructions.values():
            products = _products(computations, where, line)
            moved = _moved(computations, where, line)
            total.flops += times * products
            total.memory += times * moved
            total.chip_seconds += times * max(products / flops, moved / bandwidth)
            for kind, sent in _sent(computations, where, line, devices):
                total.link_bytes[kind] = total.link_bytes.get(kind, 0.0) + times * sent
                total.link_counts[kind] = total.link_counts.get(kind, 0.0) + times
    return total


def _executed(computations: dict[str, Computation], entry: str, total: Cost) -> Iterator[tuple[Computation, float]]:
    """Computations that run, fusions' insides not among them, and how often."""
    waiting = [(entry, 1.0)]
    while waiting:
        name, times = waiting.pop()
        where = computations[name]
        yield where, times
        for line in where.instructions.values():
            if line.op == "while":
                trips = trip_count(computations, where, line)
                total.unknown_loops += trips is None
                waiting.append((line.attribute("body"), times * (1 if trips is None else trips)))
            elif line.op == "call":
                waiting.append((line.attribute("to_apply"), times))
            elif line.op == "conditional":
                # Of the branches one runs: the longest text, to be on the safe side.
                named = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
                given = (
                    re.findall(r"%([\w.\-]+)", named[1])
                    if named
                    else [line.attribute(f"{w}_computation") for w in ("true", "false")]
                )
                waiting.append((max(given, key=lambda name: len(computations[name].instructions)), times))
            elif line.op == "async-start":
                waiting.append((line.attribute("calls"), times))


def trip_count(computations: dict[str, Computation], where: Computation, line: Instruction) -> int | None:
    """How often a loop runs.

    Args:
        computations: Of the program.
        where: The computation that holds the loop.
        line: The `while`.

    Returns:
        What XLA knows; otherwise what the condition `counter < constant` says, with the counter's first value and step; None where
        the condition is another.
    """
    known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', line.rest)
    if known:
        return int(known[1])
    condition = computations[line.attribute("condition")]
    limits = [int(c.rest) for c in condition.instructions.values() if c.op == "constant" and re.match(r"[su]\d+\[\]", c.shape)]
    counters = {c.attribute("index") for c in condition.instructions.values() if c.op == "get-tuple-element"}
    compared = any("direction=LT" in c.rest or c.op == "fusion" for c in condition.instructions.values())
    if len(limits) != 1 or len(counters) != 1 or not compared:
        return None
    index = int(counters.pop())
    first = _constant(where, _entry(where, line.operands[0], index)) or 0
    body = computations[line.attribute("body")]
    step = _step(body, _entry(body, body.root, index))
    return max(0, -(-(limits[0] - first) // step))


def _entry(where: Computation, name: str, index: int) -> str:
    """The name that a tuple has at a place; empty where it is no tuple."""
    line = where.instructions.get(name)
    return line.operands[index] if line is not None and line.op == "tuple" else ""


def _constant(where: Computation, name: str) -> int | None:
    line = where.instructions.get(name)
    while line is not None and line.op in ("copy", "bitcast"):
        line = where.instructions.get(line.operands[0])
    return int(line.rest) if line is not None and line.op == "constant" and re.fullmatch(r"-?\d+", line.rest) else None


def _step(body: Computation, name: str) -> int:
    """By how much the counter grows: 1 in every loop that JAX writes, more where the compiler unrolled it."""
    line = body.instructions.get(name)
    found = [_constant(body, operand) for operand in line.operands] if line is not None and line.op == "add" else []
    return next((value for value in found if value), 1)


def _products(computations: dict[str, Computation], where: Computation, line: Instruction) -> float:
    """Operations of an instruction and of what it fuses."""
    if line.op == "dot":
        taken = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
        left = dimensions(where.instructions[line.operands[0]].shape)
        depth = math.prod(left[int(n)] for n in taken[1].split(",") if n) if taken else 1
        return 2.0 * math.prod(dimensions(line.shape)) * depth
    if line.op == "convolution":
        return _convolution(where, line)
    if line.op == "fusion":
        inside = computations[line.attribute("calls")]
        return sum((_products(computations, inside, part) for part in inside.instructions.values()), 0.0)
    return 0.0


def _convolution(where: Computation, line: Instruction) -> float:
    """2 x outputs x inputs of each that are there: padding and dilation are not, with which TPUs write batched products."""
    left, right, out = re.split("_|->", line.attribute("dim_labels"))
    lengths = [dimensions(where.instructions[name].shape) for name in line.operands[:2]] + [dimensions(line.shape)]
    at = lambda which, labels, label: lengths[which][labels.index(label)]  # noqa: E731
    count = 2.0 * at(2, out, "b") * at(2, out, "f") * at(1, right, "i")
    window = re.search(r"window=\{([^}]*)\}", line.rest)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    for label in filter(str.isdigit, left):
        n = int(label)  # the window's axes go by number, whatever their order in the operands
        one = lambda key, usual: int((options[key].split("x")[n]) if key in options else usual)  # noqa: B023, E731
        low = int(options["pad"].split("x")[n].split("_")[0]) if "pad" in options else 0
        count *= _valid(
            *(at(0, left, label), at(1, right, label), at(2, out, label)),
            *(one("stride", 1), low, one("lhs_dilate", 1), one("rhs_dilate", 1)),
        )
    return count


def _valid(length: int, kernel: int, outputs: int, stride: int, low: int, spread: int, kernel_spread: int) -> int:
    """Pairs of an output and a place of the kernel that meet an input, along one axis."""
    if kernel == spread == outputs and stride == spread - 1 and low == 0 and kernel_spread == 1:
        return outputs  # a batch: output i meets input i
    found = 0
    for k in range(kernel):
        start = k * kernel_spread - low
        if spread == 1:
            first = max(0, -(start // stride)) if start < 0 else 0
            last = min(outputs - 1, (length - 1 - start) // stride)
            found += max(0, last - first + 1)
        else:
            places = (start + i * stride for i in range(outputs))
            found += sum(0 <= place <= (length - 1) * spread and place % spread == 0 for place in places)
    return found


def _moved(computations: dict[str, Computation], where: Computation, line: Instruction) -> float:
    """Bytes that an instruction reads and writes."""
    if line.op in FREE or line.op.startswith(COLLECTIVES):
        return 0.0
    read = lambda i: size(where.instructions[line.operands[i]].shape) if i < len(line.operands) else 0.0  # noqa: E731
    if line.op in ("dynamic-slice", "slice", "gather"):
        return 2 * size(line.shape)
    if line.op == "dynamic-update-slice":
        return 2 * read(1)
    if line.op == "scatter":
        return 3 * read(2)
    if line.op == "copy-start":
        return size(line.shape)
    if line.op.endswith("-start"):
        return size(line.shape.rsplit("), ", 1)[-1], everywhere=True)
    if line.op != "fusion":
        return size(line.shape) + sum(read(i) for i in range(len(line.operands)))
    inside = computations[line.attribute("calls")]
    return sum(_read(computations, inside, i) for i in range(len(line.operands))) + _written(inside, inside.root)


def _read(computations: dict[str, Computation], inside: Computation, number: int) -> float:
    """Bytes that a fused computation reads of an operand."""
    if number not in inside.parameters:
        return 0.0
    line = inside.parameters[number]
    whole = size(line.shape)
    return min(
        whole, sum((_read_by(computations, inside, line.name, user, whole) for user in inside.users.get(line.name, ())), 0.0)
    )


def _read_by(computations, inside: Computation, name: str, user: Instruction, whole: float) -> float:
    if user.op in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
        return size(user.shape, everywhere=True)
    if user.op == "dynamic-update-slice" and user.operands[0] == name:
        return 0.0
    if user.op == "tuple" or user.op.startswith(COLLECTIVES) or _in_chain(user):  # handed on, or sent
        return 0.0
    if user.op == "bitcast":
        return sum((_read_by(computations, inside, user.name, other, whole) for other in inside.users.get(user.name, ())), 0.0)
    if user.op == "fusion":
        called = computations[user.attribute("calls")]
        return sum((_read(computations, called, i) for i, operand in enumerate(user.operands) if operand == name), 0.0)
    return whole


def _written(inside: Computation, name: str) -> float:
    line = inside.instructions[name]
    if line.op == "tuple":
        return sum((_written(inside, part) for part in line.operands), 0.0)
    if line.op == "parameter" or line.op.startswith(COLLECTIVES) or _in_chain(line):
        return 0.0
    if line.op == "bitcast" and inside.instructions[line.operands[0]].op == "dynamic-update-slice":
        return _written(inside, line.operands[0])
    if line.op == "dynamic-update-slice":
        return 0.0 if size(line.shape) == 0 else size(inside.instructions[line.operands[1]].shape, everywhere=True)
    return size(line.shape)


def _sent(computations, where: Computation, line: Instruction, devices: int) -> list[tuple[str, float]]:
    """Collectives of an instruction and of what it fuses: kind and bytes that leave the device."""
    if line.op == "fusion":
        inside = computations[line.attribute("calls")]
        found = [pair for part in inside.instructions.values() for pair in _sent(computations, inside, part, devices)]
        # What the TPU compiler calls so sums and keeps a part: half of an all-reduce.
        if inside.name.startswith("all-reduce-scatter"):
            return [("reduce-scatter", sent / 2) for _, sent in found]
        return found
    kind = line.op.removesuffix("-start")
    if kind not in COLLECTIVES or ("chain_id=" in line.rest and not _starts_chain(where, line)):
        return []
    held = sum(size(where.instructions[name].shape, everywhere=True) for name in line.operands)
    ways = group_size(line.rest, devices)
    if kind == "collective-permute":
        return [(kind, held)]
    whole = held * ways if kind == "all-gather" else held
    return [(kind, (2 if kind == "all-reduce" else 1) * whole * (ways - 1) / ways)]


def _starts_chain(where: Computation, line: Instruction) -> bool:
    return any(_in_chain(user) and "AsyncCollectiveStart" in user.rest for user in where.users.get(line.name, ()))


def _in_chain(line: Instruction) -> bool:
    return line.op == "custom-call" and "AsyncCollective" in line.rest


def group_size(attributes: str, devices: int) -> int:
    """How many devices a collective joins.

    Args:
        attributes: Text behind the operands.
        devices: All; where nothing is said.

    Returns:
        Devices of a group.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota[2])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return devices
