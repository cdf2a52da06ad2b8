"""How much memory a run will take at its peak, known once its program is compiled.

A chunk's memory does not depend on the number of seeds. What grows with them is on the host: at the
end every lane's last state, its metrics and the results made of them are there together. Importing
this imports no jax.
"""

import math
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxpg.errors import DoesNotFit
from jaxpg.population import cgroups

SAVING_COPIES = 3  # of a chunk's metrics: by segment, joined, and as the bytes of a checkpoint
METRICS_COPIES = 3  # of all: as loaded, joined along updates, and along seeds
WRITING = 60 * 2**20  # bytes that statistics and picture take, and their libraries
LINE = 15_000  # and what they take for a seed; both above what benchmarks/memory.py measured
ARRAYS = 20_000  # what a chunk's hundred arrays take beside their content; benchmarks/scaling.py


class Need(NamedTuple):
    """Bytes at the peak."""

    device: int  # on each device; 0 on a CPU, whose memory is the host's
    training: int  # more than this process has now, while it trains
    results: int  # more than this process has now, while it writes the results
    host: int  # of this process, in all


def predict(
    programs: Sequence[Any],
    lane: Any,
    num_chunks: int,
    numbers: int,
    writes: bool,
    elsewhere: int = 0,
) -> Need:
    """What training will take.

    Args:
      programs: from `chunks.compile_programs`, of this process.
      lane: the shapes and dtypes of a chunk's lanes, from `chunks.lane_shapes`.
      num_chunks: that will be trained.
      numbers: that a row reports: its metrics in all updates, and its evaluations.
      writes: whether the results become files and a picture.
      elsewhere: chunks that other processes train at once, and this one saves.
    """
    recent = lane.state.recent_returns.rows
    num_lanes, float_bytes = recent.shape[0], recent.dtype.itemsize
    state, params = _bytes(lane), _bytes(lane.state.params)
    on_cpu = all(program.device.platform == "cpu" for program in programs)
    device = 0
    if programs:
        program = programs[0]
        device = max(map(of_program, (program.start, program.advance)))
        if program.evaluate is not None:  # it is given parameters alone; all else stays there
            beside = 0 if on_cpu else state - params
            device = max(device, of_program(program.evaluate) + beside)
    workers = min(len(programs) + elsewhere, num_chunks)
    history = num_lanes * numbers * float_bytes
    training = workers * (state + SAVING_COPIES * history + (device if on_cpu else 0))
    results = num_chunks * (state + METRICS_COPIES * history + params + ARRAYS)
    if writes:
        results += WRITING + num_chunks * (2 * params + num_lanes * LINE)
    host = max(peak(), resident() + max(training, results))  # compiling may have taken more
    return Need(0 if on_cpu else device, training, results, host)


def check(need: Need, lanes: int, devices: Sequence[Any]) -> str:
    """One line on what will be taken, and what there is.

    Args:
      need: from `predict`, for L = `lanes`.
      devices: on which the lanes are trained.

    Raises:
      DoesNotFit: if it is more than there is.
    """
    more, free = max(need.training, need.results), available()
    line = f"memory: {size(need.host)} at the peak, {size(more)} more than now"
    if free is not None:
        line += f"; {size(free)} are available"
        if need.training > free:
            raise _above(need.training, free, lanes, "training takes {}")
        if need.results > free:
            raise DoesNotFit(
                f"the results will take {size(need.results)} of memory and {size(free)} are "
                "available: train fewer seeds at once, and join the runs with jaxpg merge on a "
                "machine that holds them all"
            )
    if need.device:
        rooms = [room for room in map(_room, devices) if room is not None]
        line += f"; {size(need.device)} on each device"
        if rooms:
            line += f", which has {size(min(rooms))}"
            if need.device > min(rooms):
                raise _above(need.device, min(rooms), lanes, "the device must hold {}")
    return line


def with_lanes_that_fit(
    lanes: int | None,
    attempt: Callable[[int | None], Any],
    others: Callable[[DoesNotFit], None] = lambda problem: None,
) -> Any:
    """`attempt(lanes)`; if nobody chose them and they have no room, with as many as have.

    Args:
      lanes: None if nobody chose them.
      others: called with what did not fit, before others are tried.

    Raises:
      DoesNotFit: if no number of lanes fits, or those that somebody chose do not.
    """
    chosen = lanes is not None
    while True:
        try:
            return attempt(lanes)
        except DoesNotFit as problem:
            if chosen or problem.lanes is None:
                raise
            lanes = problem.lanes
            others(problem)


def no_room(lanes: int, said: str) -> DoesNotFit:
    """What a compiler says that runs out of a device's memory; with half of them it may not."""
    problem = f"with {lanes} lanes the program does not fit into the device ({said})"
    return _too_many_lanes(problem, lanes // 2, "may")


def ran_out(lanes: int, said: str) -> DoesNotFit:
    """What becomes of a training that had room when it began; what it saved stays."""
    return DoesNotFit(
        f"a device ran out of memory while {lanes} lanes trained ({said}): free it of what else "
        f"holds it and go on, or begin anew with --lanes {max(2, lanes // 2)}"
    )


def size(number: float) -> str:
    """Bytes for a person."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def of_program(compiled: Any) -> int:
    """What a compiled function holds while it runs; what it is given and gives back too."""
    used = compiled.memory_analysis()
    if used is None:  # a backend need not know
        return 0
    whole = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    return whole - used.alias_size_in_bytes


def available() -> int | None:
    """Bytes that this process can still have: the machine's, or its control group's; or None."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None  # not Linux
    fields = dict(line.split(":") for line in lines)
    return min([1024 * int(fields["MemAvailable"].split()[0]), *_rooms()])


def peak() -> int:
    """The most bytes of this process that were in memory at once until now."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _rooms() -> Iterator[int]:
    """What the limits of this process's control groups leave, where they are set."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }
    for version, group in cgroups.groups("memory"):
        limit, usage = names[version]
        try:
            most = (group / limit).read_text().strip()
            used = int((group / usage).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # the root has no limit
        if most != "max":
            yield int(most) - used + int(stat.get("inactive_file", 0))


def _room(device: Any) -> int | None:
    """Bytes that are left on a device; None if it does not say."""
    stats = device.memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in (stats or {}) else None


def _above(need: int, room: int, lanes: int, what: str) -> DoesNotFit:
    problem = f"with {lanes} lanes {what.format(size(need))}, and there is room for {size(room)}"
    fewer = int(0.9 * lanes * room / need)  # a tenth is kept for what does not shrink with them
    return _too_many_lanes(problem, fewer, "would")


def _too_many_lanes(problem: str, fewer: int, would: str) -> DoesNotFit:
    if fewer < 2:
        return DoesNotFit(f"{problem}: fewer environments or steps {would} fit")
    return DoesNotFit(f"{problem}: --lanes {fewer} {would} fit", fewer)


def _bytes(tree: Any) -> int:
    import jax

    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
