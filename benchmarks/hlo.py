"""What a compiled program does, counted from its HLO text: kernels, operations, bytes.

XLA's own cost analysis counts the body of a loop once. This counts it as often as it runs, where
XLA knows that (`known_trip_count`), and once where it does not. A kernel is a fusion, or any other
instruction that computes or moves data; its bytes are those of its operands and of its result, but
of what it slices or updates in place only the slice. Traffic to memory is at most that: what stays
in a cache is counted too.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"pred": 1, "s8": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
NAME = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
ARITHMETIC = {"add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs"}
SLOW = {"exponential", "log", "cosine", "sine", "tanh", "sqrt", "rsqrt", "power", "logistic",
        "exponential-minus-one", "log-plus-one", "erf"}  # fmt: skip
BITWISE = {"xor", "or", "and", "not", "shift-left", "shift-right-logical"}


class Counts(NamedTuple):
    """Of one run of a program or computation."""

    kernels: float = 0.0
    bytes: float = 0.0  # to and from kernels
    multiply_adds: float = 0.0  # operations of dots, two for each pair
    arithmetic: float = 0.0  # other additions, multiplications … of floats
    slow: float = 0.0  # exponentials, roots …
    integer: float = 0.0  # operations on integers, as in random numbers

    def __add__(self, other: tuple) -> "Counts":
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, number: float) -> "Counts":
        """So many runs."""
        return Counts(*(number * x for x in self))


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    shape: str
    op: str
    operands: list[str]
    line: str


def count(text: str) -> Counts:
    """What one run of a program does.

    Args:
      text: of an optimized module, as `compiled.as_text()` gives it.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    for name, is_entry, instructions in parsed(text):
        computations[name] = instructions
        entry = name if is_entry else entry
    return _of_computation(entry, computations)


def custom_calls(text: str) -> Counter[str]:
    """How often each kernel that is called by name runs, in one run of a program."""
    found = list(parsed(text))
    computations = {name: instructions for name, _, instructions in found}
    (entry,) = (name for name, is_entry, _ in found if is_entry)

    def within(name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for one in computations[name]:
            trips = TRIPS.search(one.line) if one.op == "while" else None
            for other in CALLED.findall(one.line) if one.op in ("while", "call") else []:
                for kernel, times in within(other).items():
                    total[kernel] += times * (int(trips[1]) if trips else 1)
            named = re.search(r'\bname = "(\w+)"', one.line) if one.op == "custom-call" else None
            if named:
                total[named[1]] += 1
        return total

    return within(entry)


def parsed(text: str) -> Iterator[tuple[str, bool, list[Instruction]]]:
    """Name, whether it is the entry, and instructions of each computation."""
    name, is_entry, instructions = "", False, []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name, is_entry, instructions = NAME.findall(line)[0], line.startswith("ENTRY"), []
        elif line.startswith("}"):
            yield name, is_entry, instructions
        elif line.startswith(" ") and " = " in line and name:
            instructions.append(_instruction(line))


def _of_computation(name: str, computations: dict[str, list[Instruction]]) -> Counts:
    total = Counts()
    shapes = {one.name: one.shape for one in computations[name]}
    for one in computations[name]:
        called = CALLED.findall(one.line)
        if one.op == "while":
            trips = TRIPS.search(one.line)
            inside = [_of_computation(other, computations) for other in called]
            total += sum(inside, Counts()).times(int(trips[1]) if trips else 1)
        elif one.op == "call":
            total += _of_computation(called[0], computations)
        elif one.op == "conditional":
            branches = NAME.findall(one.line.split("branch_computations={")[-1].split("}")[0])
            branches = [other for other in branches if other in computations] or called
            total += max((_of_computation(other, computations) for other in branches), key=sum)
        elif one.op == "fusion":
            inside = computations[called[0]]
            total += _operations(inside, computations)._replace(
                kernels=1, bytes=_fusion_bytes(one, inside)
            )
        elif one.op not in FREE:
            read = [_bytes(shapes[operand]) for operand in one.operands]
            total += _operations([one], computations, shapes)._replace(
                kernels=1, bytes=_moved(one, read, shapes)
            )
    return total


def _operations(
    instructions: list[Instruction],
    computations: dict[str, list[Instruction]],
    shapes: dict[str, str] | None = None,
) -> Counts:
    """Operations alone, of a kernel's instructions."""
    shapes = shapes or {one.name: one.shape for one in instructions}
    total = Counts()
    for one in instructions:
        size = _elements(one.shape)
        floating = one.shape.startswith(("f", "(f"))
        if one.op == "dot":
            dimensions = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.line)
            lhs = _dimensions(shapes[one.operands[0]])
            contracted = (
                math.prod(lhs[int(i)] for i in dimensions[1].split(",")) if dimensions else 1
            )
            total += Counts(multiply_adds=2 * size * contracted)
        elif one.op in ("reduce", "reduce-window"):
            total += Counts(arithmetic=_elements(shapes[one.operands[0]]))
        elif one.op == "fusion":
            (called,) = CALLED.findall(one.line)
            total += _operations(computations[called], computations)
        elif one.op in ARITHMETIC:
            total += Counts(arithmetic=size) if floating else Counts(integer=size)
        elif one.op in SLOW:
            total += Counts(slow=size)
        elif one.op in BITWISE and not one.shape.startswith("pred"):
            total += Counts(integer=size)
    return total


def _fusion_bytes(fusion: Instruction, inside: list[Instruction]) -> float:
    """Of a fusion's operands and result; of what it slices or updates in place only the slice."""
    within = {one.name: one.shape for one in inside}
    total = 0.0
    for one in inside:
        if one.op != "parameter":
            continue
        uses = [use for use in inside if one.name in use.operands]
        if uses and all(_slices(use, one.name) for use in uses):
            total += sum(_bytes(use.shape) for use in uses if use.op != "dynamic-update-slice")
        else:
            total += _bytes(one.shape)
    updates = [one for one in inside if one.op == "dynamic-update-slice"]
    written = _bytes(fusion.shape)
    for update in updates:
        written += _bytes(within[update.operands[1]]) - _bytes(update.shape)
    return total + max(written, 0)


def _slices(use: Instruction, name: str) -> bool:
    """Whether this instruction takes only a part of its first operand."""
    return use.op in ("dynamic-slice", "dynamic-update-slice", "gather") and use.operands[0] == name


def _moved(one: Instruction, read: list[int], shapes: dict[str, str]) -> float:
    if one.op in ("dynamic-slice", "gather", "broadcast"):
        return 2.0 * _bytes(one.shape)
    if one.op == "dynamic-update-slice":
        return 2.0 * _bytes(shapes[one.operands[1]])
    return float(sum(read) + _bytes(one.shape))


def _instruction(line: str) -> Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].strip()
    start = rest.index("(")
    op, operands = rest[:start], rest[start : _closing(rest, start)]
    return Instruction(name.lstrip("%"), shape, op, NAME.findall(operands), rest)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def _dimensions(shape: str) -> list[int]:
    found = ARRAY.search(shape)
    return [int(x) for x in found[2].split(",") if x] if found else []


def _elements(shape: str) -> int:
    return sum(math.prod(int(x) for x in dims.split(",") if x) for _, dims in ARRAY.findall(shape))


def _bytes(shape: str) -> int:
    return sum(
        SIZES[kind] * math.prod(int(x) for x in dims.split(",") if x)
        for kind, dims in ARRAY.findall(shape)
        if kind in SIZES
    )
