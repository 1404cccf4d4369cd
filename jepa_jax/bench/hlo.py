"""Read from the text of a compiled program what its devices send each other in one execution.

XLA's own cost analysis counts the body of a loop once and does not look at networks.
"""

import collections
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "send")
# Bytes that a device sends by the ring algorithm, as a multiple of the whole value, for a group of n.
_SHARES = {
    "all-gather": lambda n: (n - 1) / n, "reduce-scatter": lambda n: (n - 1) / n, "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n, "collective-permute": lambda n: 1.0, "send": lambda n: 1.0,
}
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_MESH = re.compile(r"replica_groups=mesh\[(?P<axes>[^\]]*)\](?:, device_ids=\(\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))? "
                   r"\{(?P<along>[^}]*)\}")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`; "send" goes to another slice, through the hosts.
      bytes_sent: by one device, in all executions of one run of the program.
      executions: of one run.
      group_size: devices that take part together.
      across_slices: goes over the network between slices.
    """

    kind: str
    bytes_sent: float
    executions: int
    group_size: int
    across_slices: bool


class _Instruction(NamedTuple):
    name: str
    type: str  # of the result, without the opcode
    opcode: str
    operands: tuple[str, ...]
    attributes: str


def collectives(text, slice_of=None):
    """List the collectives of a compiled program.

    Args:
      text: of the optimised HLO module, as `jax.stages.Compiled.as_text` gives it.
      slice_of: function of a device's number in the program -> number of its slice; None for one slice.

    Returns:
      List of `Collective`.

    Raises:
      ValueError: if a loop with a collective in it runs an unknown number of times, or groups are written in a way
        that is not known here.
    """
    program = _Program(text)
    found = []
    program.walk(program.entry, 1, found)
    return [_measure(program, one, times, devices=program.devices, slice_of=slice_of or (lambda _: 0)) for one, times in found]


def summarize(found):
    """Add up: `{kind: {"ici_bytes": ..., "dcn_bytes": ..., "executions": ...}}`, kinds that do not occur left out."""
    totals = collections.defaultdict(lambda: {"ici_bytes": 0.0, "dcn_bytes": 0.0, "executions": 0})
    for one in found:
        entry = totals[one.kind]
        entry["dcn_bytes" if one.across_slices else "ici_bytes"] += one.bytes_sent
        entry["executions"] += one.executions
    return {kind: totals[kind] for kind in KINDS if kind in totals}


def array_bytes(text):
    """Add up the bytes of the arrays that a type such as `(f32[8,128], u32[])` holds."""
    return sum(math.prod(map(int, filter(None, dims.replace("<=", "").split(",")))) * _bits(dtype) / 8
               for dtype, dims in _ARRAY.findall(re.sub(r"\{[^}]*\}|/\*.*?\*/", "", text)))


def _bits(dtype):
    if dtype in _BITS:
        return _BITS[dtype]
    # bf16, f32, s4, u8, f8e4m3fn: the first number is the width.
    return int(re.search(r"[0-9]+", dtype)[0])


class _Program:
    """The computations of a module by name, each a dict of instructions by name."""

    def __init__(self, text):
        self.computations, self.entry = {}, None
        header = text.partition("\n")[0]
        counts = [int(number) for number in re.findall(r"(?:replica_count|num_partitions)=(\d+)", header)]
        self.devices = math.prod(counts)
        current = None
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                current = self.computations.setdefault(match[1], {})
                if line.startswith("ENTRY"):
                    self.entry = match[1]
            elif current is not None and (match := _INSTRUCTION.match(line)):
                current[match[1]] = _parse(match[1], match[2])
        if self.entry is None:
            raise ValueError("this is not the text of an HLO module: it has no ENTRY")

    def walk(self, name, times, found):
        """Append (`_Instruction`, number of executions) of every collective that a computation leads to."""
        split = set()
        for one in self.computations[name].values():
            kind = one.opcode.removesuffix("-start")
            called = re.search(r"\b(?:calls|to_apply)=%?([\w.\-]+)", one.attributes)
            if one.opcode == "while":
                self._walk_loop(name, one, times, found)
            elif one.opcode == "conditional":
                # Not known which: each counts, so the sum is too large rather than too small.
                for branch in _NAME.findall("".join(re.findall(r"(?:branch_computations|true_computation|false_computation)=([^=]*)", one.attributes))):
                    if branch in self.computations:
                        self.walk(branch, times, found)
            elif one.opcode in ("fusion", "call", "async-start") and called:
                inside = []
                self.walk(called[1], times, inside)
                found += self._of_fusion(one, called[1], inside, split)
            elif kind in KINDS and (kind != "send" or "is_host_transfer=true" in one.attributes):
                found.append((one, times))

    def _of_fusion(self, caller, called, inside, split):
        """Return the collectives of a fusion that are not parts of one that was counted before in the same computation."""
        if called.startswith("all-reduce-scatter"):
            # The TPU's fused reduce-scatter is written as an all-reduce of which each device keeps its part.
            return [(one._replace(opcode="reduce-scatter-fusion"), times) for one, times in inside]
        if not (called.startswith("async_collective_fusion") or caller.name.startswith("async-collective")):
            return inside
        # One collective that runs beside other work appears in all fusions that it runs through.
        fresh = []
        for one, times in inside:
            key = (one.opcode, _attribute(one, r"channel_id=(\d+)"), array_bytes(one.type))
            if key not in split:
                fresh.append((one, times))
            split.add(key)
        return fresh

    def _walk_loop(self, name, loop, times, found):
        body = re.search(r"\bbody=%?([\w.\-]+)", loop.attributes)[1]
        inside = []
        self.walk(body, 1, inside)
        if inside:
            trips = self.trip_count(name, loop)
            found += [(one, times * trips * count) for one, count in inside]

    def trip_count(self, name, loop):
        """Return how often a loop runs: as XLA says, or from its condition, which must be `counter < constant`.

        Raises:
          ValueError: if it cannot be told.
        """
        if known := re.search(r"known_trip_count\\?\"?:\s*\{\\?\"?n\\?\"?:\s*\\?\"?(\d+)", loop.attributes):
            return int(known[1])
        condition = self.computations[re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)[1]]
        tests = [one for one in condition.values() if one.opcode == "compare" and "direction=LT" in one.attributes]
        if len(tests) == 1:
            sides = [condition.get(operand) for operand in tests[0].operands]
            if all(sides) and sides[1].opcode == "constant" and sides[0].opcode == "get-tuple-element":
                start = self._start(name, loop, int(_attribute(sides[0], r"index=(\d+)")))
                return _constant(sides[1]) - start
        raise ValueError(f"loop {loop.name} holds collectives, and how often it runs cannot be told from its condition")

    def _start(self, name, loop, index):
        """Return the first value of a loop's counter; 0 where it is not written as a constant, as in every scan."""
        here = self.computations[name]
        value = here.get(loop.operands[0])
        if value is not None and value.opcode == "tuple":
            value = here.get(value.operands[index])
        while value is not None and value.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
            value = here.get(value.operands[0])
        return _constant(value) if value is not None and value.opcode == "constant" else 0


def _parse(name, rest):
    opcode = _OPCODE.search(re.sub(r"\{[^}]*\}", lambda match: " " * len(match[0]), rest))
    if not opcode:
        return _Instruction(name, rest, "", (), "")
    inside, depth, at = rest[opcode.end() :], 1, 0
    for at, letter in enumerate(inside):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            break
    operands = tuple(_NAME.findall(inside[:at])) if opcode[1] != "constant" else (inside[:at],)
    return _Instruction(name, rest[: opcode.start()], opcode[1], operands, inside[at + 1 :])


def _attribute(one, pattern):
    match = re.search(pattern, one.attributes)
    return match[1] if match else None


def _constant(one):
    return int(one.operands[0])


def _measure(program, one, times, *, devices, slice_of):
    kind = one.opcode.removesuffix("-start").removesuffix("-fusion")
    size = array_bytes(one.type)
    groups = _groups(one, devices)
    if one.opcode in ("all-gather-start", "collective-permute-start", "send"):
        # The result also names the operand; of a permute's and a send's, the first part is the value.
        parts = [array_bytes(part) for part in re.findall(r"[a-z]+[0-9]*[a-z0-9]*\[[0-9,]*\]", re.sub(r"\{[^}]*\}|/\*.*?\*/", "", one.type))]
        size = max(parts) if kind == "all-gather" else parts[0]
    members = len(groups[0]) if groups else 1
    if kind == "reduce-scatter" and not one.opcode.endswith("-fusion"):
        # The result is a part of the value.
        size *= members
    across = one.opcode == "send" or any(len({slice_of(device) for device in group}) > 1 for group in groups)
    return Collective(kind, times * size * _SHARES[kind](max(members, 1)), times, members, across)


def _groups(one, devices):
    """Return the groups of devices that work together, as lists of numbers."""
    text = one.attributes
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
        return [_numbers(pair) for pair in re.findall(r"\{([\d,]*)\}", pairs[1])]
    if one.opcode == "send" or "replica_groups={}" in text:
        return [list(range(max(devices, 1)))]
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", listed[1])]
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota_groups(int(iota[2]), _numbers(iota[3]), _numbers(iota[4] or ""))
    if mesh := _MESH.search(text):
        return _mesh_groups(mesh["axes"], mesh["dims"], mesh["order"], mesh["along"])
    raise ValueError(f"collective {one.name}: its groups of devices are written in an unknown way: {text[:200]}")


def _numbers(text):
    return [int(number) for number in text.split(",") if number]


def _iota_groups(size, dims, order):
    """Number the devices of a grid, turn its axes, and cut it into groups of a size."""
    devices = np.arange(math.prod(dims)).reshape(dims)
    return (devices.transpose(order) if order else devices).reshape(-1, size).tolist()


def _mesh_groups(axes, dims, order, along):
    """Groups along some axes of a named mesh, or along a part of an axis, written `'name':(devices before it)size`."""
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    devices = np.arange(math.prod(axes.values()))
    if dims:
        grid = devices.reshape(_numbers(dims))
        devices = (grid.transpose(_numbers(order)) if order else grid).reshape(-1)
    wanted = {name: (int(before or 1), int(size) if size else axes[name])
              for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", along)}
    # Every axis in three: before, along and after the wanted part of it.
    parts = [(before, size, total // (before * size)) for name, total in axes.items() for before, size in [wanted.get(name, (1, 1))]]
    devices = devices.reshape([size for part in parts for size in part])
    inside = list(range(1, devices.ndim, 3))
    outside = [axis for axis in range(devices.ndim) if axis not in inside]
    return devices.transpose(outside + inside).reshape(-1, math.prod(size for _, size, _ in parts)).tolist()
