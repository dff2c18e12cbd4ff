"""What a compiled program moves: collectives by link, and bytes of device memory, loop bodies as often as they run.

Read from the text of the optimised program, since the compiler's own cost analysis counts a loop's body once. Start at
`traffic`.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["Collective", "Traffic", "traffic"]

_BITS = {
    "pred": 8, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32,
    "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
}  # fmt: skip
_SHAPE = re.compile(r"\b(pred|bf16|f8e\w+|[sufc]\d+)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
"""Bytes that a device sends for each byte of the result, with n devices in a ring."""
_MOVES_NOTHING = frozenset(
    ("tuple", "get-tuple-element", "parameter", "constant", "bitcast", "while", "conditional", "call", "iota",
     "partition-id")
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one link."""

    kind: str
    link: str
    """"ici" within a slice or host, "dcn" between them."""
    group: int
    """Devices that take part."""
    runs: int
    """A step."""
    sent_bytes: float
    """A device and step."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a device moves in one run of a program."""

    collectives: tuple[Collective, ...]
    hbm_bytes: float
    """Operands and results of everything that is not fused away; about 20 % of doubt."""

    def sent(self, link: str) -> float:
        return sum(item.sent_bytes for item in self.collectives if item.link == link)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    kind: str
    arguments: str
    line: str


def traffic(text: str, num_devices: int, near: int) -> Traffic:
    """Reads a compiled program.

    Args:
        text: From `compiled.as_text()`.
        num_devices: In all.
        near: Devices of a slice (TPU) or host (GPU), numbered one after another.
    """
    programs = _computations(text)
    runs: collections.Counter[tuple[str, str, int]] = collections.Counter()
    sent: dict[tuple[str, str, int], float] = collections.defaultdict(float)
    hbm = 0.0
    for times, trips, shapes, item in _walk(programs, "ENTRY", 1, 0):
        found = _collective(item, num_devices, near)
        if found is not None:
            key, out_bytes = found
            runs[key] += times
            sent[key] += times * out_bytes
        hbm += times * _moved(item, shapes, trips)
    collectives = tuple(Collective(*key, runs=runs[key], sent_bytes=sent[key]) for key in sorted(runs))
    return Traffic(collectives=collectives, hbm_bytes=hbm)


def _arrays(text: str) -> list[tuple[float, str, bool]]:
    """(bytes, dimensions, whether on the chip) of each array type in a text."""
    found = []
    for kind, dimensions, layout in _SHAPE.findall(text):
        count = math.prod(map(int, dimensions.split(","))) if dimensions else 1
        found.append((count * _BITS.get(kind, 8) / 8, dimensions, "S(" in (layout or "")))
    return found


def _computations(text: str) -> dict[str, list[_Instruction]]:
    found: dict[str, list[_Instruction]] = {}
    name = ""
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head and "=" not in line.split("(")[0]:
            name = head[2]
            found[name] = []
            if head[1]:
                found["ENTRY"] = found[name]
        elif name and (match := _INSTRUCTION.match(line)):
            found[name].append(_Instruction(match[1], match[2], match[3], match[4], line))
    return found


def _walk(
    programs: dict[str, list[_Instruction]], name: str, times: int, trips: int
) -> Iterator[tuple[int, int, dict[str, str], _Instruction]]:
    """Yields how often an instruction runs, the trips of the loop around it, shapes by name, and the instruction."""
    shapes = {item.name: item.shape for item in programs[name]}
    for item in programs[name]:
        yield times, trips, shapes, item
        if item.kind == "while":
            count = _trip_count(programs, item.line)
            yield from _walk(programs, _named("body", item.line), times * count, count)
        elif item.kind in ("call", "conditional", "async-start"):
            for called in re.findall(r"(?:to_apply|calls|\w+_computation)=%?([\w.-]+)", item.line):
                if called in programs:
                    yield from _walk(programs, called, times, trips)
        elif item.kind == "fusion" and "all-reduce-scatter" in item.line:
            yield from _walk(programs, _named("calls", item.line), times, trips)


def _named(field: str, line: str) -> str:
    match = re.search(rf"{field}=%?([\w.-]+)", line)
    assert match is not None, line[:200]
    return match[1]


def _trip_count(programs: dict[str, list[_Instruction]], line: str) -> int:
    known = re.search(r"known_trip_count\D+(\d+)", line)
    if known:
        return int(known[1])
    condition = programs[_named("condition", line)]
    constants = [int(number) for item in condition for number in re.findall(r"constant\((\d+)\)", item.line)]
    return max(constants, default=1)


def _collective(item: _Instruction, num_devices: int, near: int) -> tuple[tuple[str, str, int], float] | None:
    kind = item.kind.removesuffix("-start")
    if kind in _SENT:
        members = _members(item.line, num_devices)
        shapes = _arrays(item.shape)
        if item.kind.endswith("-start") and kind != "all-reduce":
            shapes = shapes[len(shapes) // 2 :]  # an asynchronous start carries its inputs too
        link = "dcn" if len({member // near for member in members}) > 1 else "ici"
        out_bytes = sum(size for size, _, _ in shapes)
        return (kind, link, len(members)), out_bytes * _SENT[kind](len(members))
    if item.kind == "send" and "xla_megascale" in item.line:  # slices talk through host transfers
        target = re.search(r'megascale_target="\{([\d,]+)\}', item.line)
        transfer = re.search(r'transfer_type="(\w+)"', item.line)
        slices = len(target[1].split(",")) if target else 2
        name = transfer[1].lower().replace("_", "-") if transfer else "transfer"
        factor = 2 * (slices - 1) / slices if name == "all-reduce" else 1.0
        return (name, "dcn", slices), factor * sum(size for size, dims, _ in _arrays(item.shape) if dims)
    return None


def _members(line: str, num_devices: int) -> Sequence[int]:
    """Device numbers of the first group; the text has three ways to write them."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return [int(number) for number in match[1].split(",")]
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return _iota(match[3], match[4]).reshape(int(match[1]), int(match[2]))[0].tolist()
    pattern = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}"
    if match := re.search(pattern, line):
        axes = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])]
        kept = [place for place, (name, _) in enumerate(axes) if name in re.findall(r"'(\w+)'", match[4])]
        ids = _iota(match[2] or str(math.prod(size for _, size in axes)), match[3])
        ids = ids.reshape([size for _, size in axes])
        ids = ids.transpose([place for place in range(len(axes)) if place not in kept] + kept)
        return ids.reshape(-1, math.prod(axes[place][1] for place in kept))[0].tolist()
    return list(range(num_devices))


def _iota(dimensions: str, order: str | None) -> np.ndarray:
    sizes = [int(size) for size in dimensions.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(place) for place in order.split(",")]) if order else ids


def _moved(item: _Instruction, shapes: dict[str, str], trips: int) -> float:
    """Bytes of device memory that an instruction reads and writes."""
    if item.kind in _MOVES_NOTHING or item.kind.endswith(("-done", "-update")):
        return 0.0

    def size(text: str) -> float:
        # of an array that is stacked over the loop's trips, one trip touches one slice
        return sum(
            size / trips if trips and dims.startswith(f"{trips},") else size
            for size, dims, on_chip in _arrays(text)
            if not on_chip
        )

    read = sum(size(shapes.get(name, "")) for name in re.findall(r"%([\w.-]+)", item.arguments.split("), ")[0]))
    return read + (0.0 if item.kind.endswith("-start") else size(item.shape))
