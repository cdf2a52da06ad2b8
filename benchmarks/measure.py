"""How every benchmark measures: cases by turns, each in a process of its own, and their medians."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.record import write
from jaxpg.words import short

DOCS = Path(__file__).parents[1] / "docs"
PATIENCE = 1800  # seconds
HANGS = 3  # of a case, after which its turns are left out
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
BLUE, GREY, INK = "#1f6fb4", "#9aa5b1", "#1f2933"


class HungError(SystemExit):
    """A measurement has not ended in the time that it was given."""


class Case(NamedTuple):
    """Something to measure: a function of the script, and what it is called with."""

    what: str
    options: dict[str, Any]


class Script(NamedTuple):
    """A benchmark."""

    name: str  # benchmarks.NAME, results/NAME-DEVICE.json, docs/NAME.png
    doc: str
    rounds: int  # unless --rounds says otherwise
    measures: dict[str, Callable[..., dict[str, Any]]]  # by name; each in a process of its own
    compare: Callable[[bool, int], dict[str, Any]]  # (smoke, rounds) -> record, with its "table"
    draw: Callable[[dict[str, Any], Path], None] = lambda content, path: None


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """What every benchmark can be told, beside what is its own.

    Args:
      doc: of the script.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw)
    parser.add_argument("--smoke", action="store_true", help="at most a minute; writes nothing")
    return parser


def run(script: Script) -> None:
    """Measure, print the table, write the record and its picture; a smoke run keeps neither."""
    parser = command_line(script.doc)
    parser.add_argument("--rounds", type=int, default=script.rounds, help="of measurements")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # a case, in its process
    options = parser.parse_args()
    if options.measure:
        what, given = options.measure
        print(json.dumps(script.measures[what](**json.loads(given))))
        return
    if options.smoke:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}".strip()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(directory) / "cache")
        content = script.compare(options.smoke, 1 if options.smoke else options.rounds)
        if options.smoke:
            script.draw(content, Path(directory) / "picture.png")
    if not options.smoke:
        write(script.name, content)
        script.draw(content, DOCS / f"{script.name}.png")
    print(content["table"])


def by_turns(
    name: str,
    cases: Sequence[Case],
    rounds: int,
    cold: bool = True,
    may_hang: Mapping[str, int] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Measure every case in turn, so that a busy minute does not hit one of them alone.

    Args:
      name: of the script.
      rounds: measurements of each.
      cold: whether a round that fills the compilation cache comes first; it is kept apart.
      may_hang: what is ended and begun again, rather than ending all, if it is not done after
        these seconds; left out after it was HANGS times.

    Returns:
      A row for each case: what and options; "cold"; "repetitions"; "hung", how many times.
    """
    rows = [{**one._asdict(), "cold": None, "repetitions": [], "hung": 0} for one in cases]
    for i in range(rounds + cold):
        print(f"round {i + 1 - cold} of {rounds}", file=sys.stderr, flush=True)
        for case, row in zip(cases, rows, strict=True):
            taken = None
            while taken is None and row["hung"] < HANGS:
                try:
                    taken = in_process(name, case, patience=may_hang.get(case.what, PATIENCE))
                except HungError as error:
                    if case.what not in may_hang:
                        raise
                    print(error, file=sys.stderr, flush=True)
                    row["hung"] += 1
            if cold and i == 0:
                row["cold"] = taken
            elif taken:
                row["repetitions"].append(taken)
    return rows


def in_process(
    name: str, case: Case, environment: dict[str, str] | None = None, patience: int = PATIENCE
) -> dict[str, Any]:
    """Measure one case in a process of its own; what that took in all is "process_seconds".

    Raises:
      HungError: it has not ended for so many seconds.
      SystemExit: it failed.
    """
    asked = ["--measure", case.what, json.dumps(case.options)]
    command = [sys.executable, "-m", f"benchmarks.{name}", *asked]
    env = {**os.environ, **(environment or {})}
    began = time.perf_counter()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, timeout=patience)
    except subprocess.TimeoutExpired:
        raise HungError(
            f"{name}: {case.what} {case.options} has not ended for {patience} s"
        ) from None
    process_seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{name}: {case.what} {case.options} ended with code {done.returncode}")
    return {"process_seconds": process_seconds, **json.loads(done.stdout.splitlines()[-1])}


def start_as_jaxpg() -> None:
    """Set jax up as the `jaxpg` command does; comes before the first use of jax."""
    from jaxpg.cli.machine import keep_compiled

    keep_compiled()


def predictions() -> list[Any]:
    """Where every `jaxpg.population.memory.Need` will be put that is predicted in this process."""
    from jaxpg.population import memory

    found, predict = [], memory.predict

    def remember(*arguments: Any, **options: Any) -> Any:
        found.append(predict(*arguments, **options))
        return found[-1]

    memory.predict = remember
    return found


def seconds(work: Callable[[], Any], repeats: int = 1) -> list[float]:
    """What each call takes, until its arrays are there."""
    import jax

    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(work())
        taken.append(time.perf_counter() - began)
    return taken


def rate_of_all_cores(
    function: Any, arguments: tuple, worth: float, minimum_seconds: float
) -> float:
    """What all cores (or devices) get done a second, each calling a function again and again.

    Args:
      function: from `jax.jit`.
      worth: how much a call gets done.
    """
    import jax

    from jaxpg.population import devices
    from jaxpg.population.bench import on_every_core

    workers = devices.workers()
    compiled = devices.compile_on_each(function, arguments, workers)
    placed = [jax.device_put(arguments, device) for device in workers]

    def work(i: int) -> float:
        jax.block_until_ready(compiled[i](*placed[i]))
        return worth

    on_every_core(work, 0.0)  # the first call allocates
    return on_every_core(work, minimum_seconds)


def figure(
    width: float = 8, height: float = 3.4, columns: int = 1, rows: int = 1
) -> tuple[Any, list[Any]]:
    """A figure and its axes, row by row."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = list(made.subplots(rows, columns, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.set_axisbelow(True)
        one.grid(color="#e4e7eb", linewidth=0.7)
    return made, axes


def bars(
    axes: Any,
    labels: list[str],
    taken: list[list[float]],
    highlight: list[bool],
    show: Callable[[float], str] | None = None,
) -> None:
    """Medians as bars from the top down, with their ranges, on a logarithmic axis."""
    for i, (measured, ours) in enumerate(zip(taken[::-1], highlight[::-1], strict=True)):
        middle = statistics.median(measured)
        axes.barh(i, middle, color=BLUE if ours else GREY)
        axes.plot([min(measured), max(measured)], [i, i], color="black", linewidth=1)
        axes.annotate(
            (show or short)(middle),
            (max(measured), i),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(labels)), labels[::-1])
    axes.set_xscale("log")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)
