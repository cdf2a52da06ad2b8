"""How fast a config trains on this machine, with how many lanes, in how much memory.

Each number of lanes is compiled once and then timed by turns with the others; every core (or every
device) trains lanes of its own, as in `jaxpg train`, but nothing is saved. Beside it the
textbook's `jit(vmap(train))`, where there is a checkout that holds it and the config is one that it
can train.
"""

import dataclasses
import importlib.util
import json
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import jax

from jaxpg.core.config import Config, of_json
from jaxpg.core.rules import validate
from jaxpg.errors import DoesNotFit
from jaxpg.fast import backend
from jaxpg.population import chunks, devices, memory, population, provenance
from jaxpg.population.chunks import Chunk, Program

TEXTBOOK = Path(__file__).parents[2] / "benchmarks" / "baselines" / "textbook.py"
TEXTBOOK_SEEDS, TEXTBOOK_UPDATES = 64, 5
PATIENCE = 30  # seconds that the textbook's loop may take, and as many for each of a measurement
TRIED = (8, 16, 32, 64)  # lanes, where the backend is a CPU
TRIED_ON_DEVICE = (256, 1024, 4096)


def measure(
    config: Config,
    lanes: Sequence[int],
    rounds: int,
    seconds: float,
    note: Callable[[str], None],
    textbook: bool = True,
) -> dict[str, Any]:
    """Speed, compile time and memory with each number of lanes, and of the textbook's loop.

    Args:
      config: what to train.
      lanes: numbers of lanes, >= 2 each; none for those of the backend's that fit.
      rounds: measurements of each.
      seconds: that a measurement takes about.
      note: called with a sentence on what is being done.
      textbook: whether its loop is measured too, where it can be.

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
    reason = _why_no_textbook(config) if textbook else "it was left out"
    found: dict[str, Any] = {"seeds": TEXTBOOK_SEEDS, "compile_seconds": [], "steps_per_second": []}
    with ExitStack() as stack:
        if reason is None:
            ask = stack.enter_context(_textbook_process(config, PATIENCE * (1 + seconds)))
            note("compiling the textbook's loop")
            reason = ask(found)
        for i in range(rounds):
            for row, (programs, chunk) in zip(rows, runs, strict=True):
                note(f"round {i + 1} of {rounds}: {row['lanes']} lanes")
                row["steps_per_second"].append(_speed(programs, chunk, seconds))
            if reason is None:
                note(f"round {i + 1} of {rounds}: the textbook's loop")
                reason = ask(found)
    return {
        "command": shlex.join(["jaxpg", *sys.argv[1:]]),
        "commit": provenance.commit(),
        "versions": provenance.versions(config.env),
        "device": provenance.device(),
        "config": dataclasses.asdict(config),
        "budget": config.total_steps if config.collect == "steps" else None,  # steps of a seed
        "rows": rows,
        "textbook": None if reason else found,
        "no_textbook": reason,
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
    """A line for each number of lanes, one for the textbook, and what follows from them."""
    plain = measured["textbook"] and median(measured["textbook"]["steps_per_second"])
    lines = [["lanes", "steps/s", "range", "to the textbook", "compiling", "memory a worker"]]
    for row in measured["rows"]:
        speed = row["steps_per_second"]
        ratio = f"{median(speed) / plain:.1f} x" if plain else ""
        lines.append(
            [
                str(row["lanes"]),
                f"{median(speed):,.0f}",
                f"{min(speed):,.0f} to {max(speed):,.0f}",
                ratio,
                f"{row['compile_seconds']:.1f} s",
                memory.size(row["program_bytes"]),
            ]
        )
    if plain:
        speed = measured["textbook"]["steps_per_second"]
        compiling = max(measured["textbook"]["compile_seconds"])
        lines.append(["textbook", f"{plain:,.0f}", f"{min(speed):,.0f} to {max(speed):,.0f}",
                      "1.0 x", f"{compiling:.1f} s", ""])  # fmt: skip
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
    if measured["no_textbook"]:
        text += f"\nwithout the textbook's loop: {measured['no_textbook']}"
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


def _why_no_textbook(config: Config) -> str | None:
    if not TEXTBOOK.exists():
        return "it is in the repository (benchmarks/baselines/textbook.py), not in the package"
    return _textbook().unsupported(config)


def _textbook() -> Any:
    spec = importlib.util.spec_from_file_location("jaxpg_textbook", TEXTBOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _textbook_process(
    config: Config, patience: float
) -> Iterator[Callable[[dict[str, Any]], str | None]]:
    """The textbook's loop in a process of its own: compiled when first asked, then run once each.

    Args:
      patience: seconds after which it is given up.

    Returns:
      What asks it: adds what it has measured to lists by name; a sentence if there is nothing.
    """
    fields = json.dumps(dataclasses.asdict(config))
    command = [sys.executable, "-m", "jaxpg.population.bench", fields]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8") as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def ask(found: dict[str, Any]) -> str | None:
            with suppress(BrokenPipeError):  # it has ended, and says no line
                print(file=questions, flush=True)
            if not select.select([answers], [], [], patience)[0]:
                return f"it took more than {patience:.0f} s; a larger --seconds waits for longer"
            line = answers.readline()
            if not line:
                return "its process has ended"
            for name, value in json.loads(line).items():
                found[name].append(value)
            return None

        try:
            yield ask
        finally:
            process.kill()


def _serve_textbook(fields: dict[str, Any]) -> None:
    """What that process does."""
    steps = fields["num_envs"] * fields["num_steps"] * TEXTBOOK_UPDATES
    train = _textbook().make_train(validate(of_json({**fields, "total_steps": steps})))
    keys = jax.random.split(jax.random.key(0), TEXTBOOK_SEEDS)
    sys.stdin.readline()
    began = time.perf_counter()
    compiled = jax.jit(jax.vmap(train)).lower(keys).compile()
    print(json.dumps({"compile_seconds": time.perf_counter() - began}), flush=True)
    while sys.stdin.readline():
        began = time.perf_counter()
        jax.block_until_ready(compiled(keys))
        rate = TEXTBOOK_SEEDS * steps / (time.perf_counter() - began)
        print(json.dumps({"steps_per_second": rate}), flush=True)


if __name__ == "__main__":
    _serve_textbook(json.loads(sys.argv[1]))
