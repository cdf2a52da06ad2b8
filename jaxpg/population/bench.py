"""How fast a config trains on this machine, with how many lanes, in how much memory.

Each number of lanes is compiled once and then timed by turns with the others; every core (or every
device) trains lanes of its own, as in `jaxpg train`, but nothing is saved.
"""

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from jaxpg.core.config import Config
from jaxpg.errors import DoesNotFit
from jaxpg.fast import backend
from jaxpg.population import chunks, devices, memory, population, provenance
from jaxpg.population.chunks import Chunk, Program

TRIED = (8, 16, 32, 64)  # lanes, where the backend is a CPU
TRIED_ON_DEVICE = (256, 1024, 4096)


def measure(
    config: Config,
    lanes: Sequence[int],
    rounds: int,
    seconds: float,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Speed, compile time and memory with each number of lanes.

    Args:
      config: what to train.
      lanes: numbers of lanes, >= 2 each; none for those of the backend's that fit.
      rounds: measurements of each.
      seconds: that a measurement takes about.
      note: called with a sentence on what is being done.

    Returns:
      What `table` shows and --json writes.

    Raises:
      ConfigError: if the config or the lanes have no meaning, or memory has no room for them.
    """
    rows: list[dict[str, Any]] = []
    runs = []
    usual = TRIED if backend.devices()[0].platform == "cpu" else TRIED_ON_DEVICE
    for number in [population.checked_lanes(number) for number in lanes or usual]:
        note(f"compiling {number} lanes")
        try:
            row, programs, chunk = _compiled(config, number)
        except DoesNotFit as problem:
            if lanes or not rows:
                raise
            note(str(problem))
            break
        rows.append(row)
        runs.append((programs, chunk))
    for i in range(rounds):
        for row, (programs, chunk) in zip(rows, runs, strict=True):
            note(f"round {i + 1} of {rounds}: {row['lanes']} lanes")
            row["steps_per_second"].append(_speed(programs, chunk, seconds))
    return {
        "command": shlex.join(["jaxpg", *sys.argv[1:]]),
        "commit": provenance.commit(),
        "versions": provenance.versions(config.env),
        "device": provenance.device(),
        "config": dataclasses.asdict(config),
        "budget": config.total_steps if config.collect == "steps" else None,  # steps of a seed
        "rows": rows,
    }


def _compiled(config: Config, lanes: int) -> tuple[dict[str, Any], list[Program], Chunk]:
    """The row of so many lanes, nothing measured yet, and what is to be measured.

    Raises:
      DoesNotFit: if memory has no room for them.
    """
    (chunk,) = population.make_chunks(config, range(lanes), [{}], lanes)
    began = time.perf_counter()
    programs = chunks.compile_programs(chunk, min(10, config.num_updates))
    seconds = time.perf_counter() - began
    at_once = [chunk] * len(programs)
    shapes = chunks.lane_shapes(chunk)
    chunks.check_memory(programs, shapes, at_once, config.num_updates, writes=False)
    a_worker = max(map(memory.of_program, (programs[0].start, programs[0].advance)))
    row = {"lanes": lanes, "compile_seconds": seconds, "program_bytes": a_worker}
    return {**row, "steps_per_second": []}, programs, chunk


def table(measured: dict[str, Any]) -> str:
    """A line for each number of lanes, and what follows from them."""
    lines = [["lanes", "steps/s", "range", "compiling", "memory a worker"]]
    for row in measured["rows"]:
        speed = row["steps_per_second"]
        lines.append(
            [
                str(row["lanes"]),
                f"{median(speed):,.0f}",
                f"{min(speed):,.0f} to {max(speed):,.0f}",
                f"{row['compile_seconds']:.1f} s",
                memory.size(row["program_bytes"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    best = max(measured["rows"], key=lambda row: median(row["steps_per_second"]))
    text += f"\n\nfastest: --lanes {best['lanes']}"
    if measured["budget"] is not None:
        per_seed = measured["budget"] / median(best["steps_per_second"])
        text += f"; with them the whole budget takes {per_seed:.3g} s a seed"
    return text


def on_every_core(work: Callable[[int], float], minimum_seconds: float) -> float:
    """How much is done a second by all workers, each working again and again.

    Args:
      work: given the number of its worker; returns how much it has done, once it is done.
    """
    workers = len(devices.workers())
    end = time.perf_counter() + minimum_seconds

    def turn(worker: int) -> float:
        done, began = 0.0, time.perf_counter()
        while time.perf_counter() < end or not done:
            done += work(worker)
        return done / (time.perf_counter() - began)

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(turn, range(workers)))


def _speed(programs: Sequence[Program], chunk: Chunk, seconds: float) -> float:
    """Environment steps a second, by every worker together."""
    endless = [chunks.advance(program, chunk, sys.maxsize, None) for program in programs]

    def work(worker: int) -> float:
        return float(next(endless[worker]).history[-1].env_steps.sum())

    on_every_core(work, 0.0)  # the first call allocates
    return on_every_core(work, seconds)
