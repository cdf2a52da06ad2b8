"""`jaxpg parity`: the certificate that both packages compute the same, level by level."""

import dataclasses
import importlib.util
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import arg

from jaxpg import files
from jaxpg.cli import machine
from jaxpg.cli.arguments import Directory, File
from jaxpg.core.config import ConfigError, nearest
from jaxpg.report import terminal

if TYPE_CHECKING:  # torch is an extra
    from jaxpg.proof.faults import Catch
    from jaxpg.proof.levels import Row

LEVELS = (
    "noise",
    "parameters",
    "distributions",
    "optimizer",
    "gradients",
    "gradients-float32",
    "updates",
    "free-run",
    "free-run-float32",
    "lockstep",
    "faults",
)


class Effort(NamedTuple):
    """How much is compared."""

    draws: int  # seeds for the levels that take no time
    seeds: int  # for the others
    updates: int  # of a lockstep run


EFFORTS = {"smoke": Effort(1, 1, 3), "usual": Effort(10, 1, 25), "full": Effort(100, 3, 50)}
CHEAP = ("noise", "parameters", "distributions", "optimizer")
SMOKE = (*CHEAP, "gradients", "lockstep")


@dataclasses.dataclass(frozen=True)
class Parity:
    """Hold jaxpg against its PyTorch twin, and see planted faults caught.

    Level by level, from the bits of the noise to whole runs in two processes. Exits with 1 if a
    level fails or a fault passes.
    """

    full: bool = False
    """More seeds, and longer runs."""
    smoke: bool = False
    """Some levels, and of each its first configuration, in seconds."""
    level: Annotated[
        tuple[str, ...],
        arg(
            metavar="LEVEL",
            help=f"Only some of these: {', '.join(LEVELS)}.",
            help_behavior_hint="",
        ),
    ] = ()
    seeds: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Seeds of each configuration; default: 1, or 3 with --full (more where they cost nothing)."""
    json: File = None
    """For everything that is found, with commit, versions and device."""


def parity(options: Parity) -> None:
    """jaxpg parity; exits with 1 if a level fails or a fault is not caught.

    Raises:
      ConfigError: for options without a meaning, or without torch.
      RunError: for a path that cannot be written.
    """
    for name in options.level:
        if name not in LEVELS:
            raise ConfigError(f"unknown level {name!r}{nearest(name, LEVELS)}")
    if options.full and options.smoke:
        raise ConfigError("--full and --smoke exclude each other")
    if options.seeds is not None and options.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1; got {options.seeds}")
    files.check(options.json, "--json")
    _prepare()
    import torch

    torch.set_num_threads(1)
    levels, catches = _certify(options)
    passed = all(row.passed for row in levels) and all(catch.level for catch in catches)
    if options.json:
        files.save(options.json, files.as_json(_document(passed, levels, catches)))
    _print(levels, catches)
    if not passed:
        sys.exit(1)


@dataclasses.dataclass(frozen=True)
class Record:
    """Write golden files, to check a port to another framework with; in minutes.

    Their README.md explains them.
    """

    dir: Directory
    """New or empty."""
    only: Annotated[tuple[str, ...], arg(metavar="LABEL", help_behavior_hint="")] = ()
    """Only some configurations, as vpg or ppo; all of them if not given."""


def record(options: Record) -> None:
    """jaxpg parity record."""
    _prepare()
    from rich.console import Console

    from jaxpg.proof import golden

    for label in options.only:
        if label not in golden.CASES:
            raise ConfigError(f"unknown configuration {label!r}{nearest(label, golden.CASES)}")
    cases = {label: golden.CASES[label] for label in options.only or golden.CASES}
    golden.record(options.dir, cases, report=Console(stderr=True).print)
    print(f"{options.dir}: {len(cases)} golden files, and README.md that explains them")


def _prepare() -> None:
    """A process that compares with PyTorch, on the CPU and in 64 bits where it is asked for."""
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "parity compares with PyTorch, which is not installed: pip install 'jaxpg[torch]'"
        )
    machine.keep_compiled()
    os.environ.update(JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")


def _certify(options: Parity) -> tuple[list["Row"], list["Catch"]]:
    """The levels in this process, whole runs in two others at the same time; then the faults."""
    from rich.console import Console

    from jaxpg.proof import faults, levels

    console = Console(stderr=True)
    effort = EFFORTS["smoke" if options.smoke else "full" if options.full else "usual"]
    wanted = options.level or (SMOKE if options.smoke else LEVELS)

    def chosen(cases: Any) -> Any:
        return dict(list(cases.items())[:1]) if options.smoke else cases

    def seeds(name: str) -> list[int]:
        return list(range(options.seeds or (effort.draws if name in CHEAP else effort.seeds)))

    def done(row: "Row") -> "Row":
        console.print(f"{row.level}: {'passed' if row.passed else 'FAILED'} ({row.seconds:.0f} s)")
        return row

    with ThreadPoolExecutor(1) as pool, console.status("starting") as status:
        if "lockstep" in wanted:
            runs = pool.submit(
                levels.measure_lockstep, chosen(levels.CASES), seeds("lockstep"), effort.updates
            )
        rows = [
            done(levels.measure(level, chosen(level.cases), seeds(level.name), status.update))
            for level in levels.LEVELS
            if level.name in wanted and level.name != "lockstep"
        ]
        catches = _plant(faults.FAULTS, status.update) if "faults" in wanted else []
        if "lockstep" in wanted:
            status.update("lockstep: waiting for two processes")
            rows.append(done(runs.result()))
    return rows, catches


def _plant(faults: Sequence[Any], report: Callable[[str], None]) -> list["Catch"]:
    from rich.markup import escape

    from jaxpg.proof.faults import examine

    catches = []
    for fault in faults:
        report(f"planting: {escape(fault.description)}")
        catches.append(examine(fault))
    return catches


def _print(levels: list["Row"], catches: list["Catch"]) -> None:
    console = terminal.console()
    if levels:
        console.print(_level_table(levels))
    if catches:
        console.print(_fault_table(catches))
    failed = [row.level for row in levels if not row.passed]
    missed = [catch.fault for catch in catches if not catch.level]
    held = f"{len(levels)} of {len(LEVELS) - 1} levels"  # all but the faults
    parts = [f"{held}: {'FAILED ' + ', '.join(failed) if failed else 'all equal'}"]
    if catches:
        said = f"NOT CAUGHT {', '.join(missed)}" if missed else "all caught"
        parts.append(f"{len(catches)} planted faults: {said}")
    console.print("; ".join(parts))


def _level_table(levels: list["Row"]) -> Any:
    from rich.table import Table

    headings = ("level", "compared", "configurations × seeds", "worst leaf", "error", "tolerance")
    table = Table(*headings, "verdict", title="jaxpg against torch_ref")
    for row in levels:
        table.add_row(
            row.level,
            row.compares,
            f"{row.configurations} × {row.seeds}",
            row.worst,
            _number(row.error),
            _number(row.tolerance),
            "[green]equal[/]" if row.passed else "[bold red]DIFFERENT[/]",
        )
    return table


def _fault_table(catches: list["Catch"]) -> Any:
    from rich.markup import escape  # of [height, width]
    from rich.table import Table

    table = Table("planted in torch_ref", "caught by", "where", "error", title="Planted faults")
    for catch in catches:
        caught = catch.level or "[bold red]NOTHING[/]"
        table.add_row(escape(catch.description), caught, escape(catch.where), _number(catch.error))
    return table


def _number(error: float) -> str:
    if not error:
        return "0 (bits)"
    return f"{error:.1e}" if math.isfinite(error) else ""


def _document(passed: bool, levels: list["Row"], catches: list["Catch"]) -> dict[str, Any]:
    """Everything found, and what it was found with."""
    import torch

    from jaxpg.population.provenance import commit, device, versions

    return {
        "command": shlex.join(["jaxpg", *sys.argv[1:]]),
        "commit": commit(),
        "versions": {**versions(), "torch": torch.__version__},
        "device": device(),
        "passed": passed,
        "levels": [_jsonable(row) for row in levels],
        "faults": [_jsonable(catch) for catch in catches],
    }


def _jsonable(row: Any) -> dict[str, Any]:
    """JSON has no infinity: null."""
    pairs = row._asdict().items()
    return {k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in pairs}
