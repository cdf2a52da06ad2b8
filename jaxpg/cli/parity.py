"""`jaxpg parity`: the certificate that both packages compute the same, level by level."""

import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxpg import files
from jaxpg.core.config import ConfigError, nearest

if TYPE_CHECKING:  # torch is an extra
    from jaxpg.proof.faults import Catch
    from jaxpg.proof.levels import Row

DESCRIPTION = """\
Hold jaxpg against its PyTorch twin, level by level, from the bits of the noise to whole runs in two
processes; then plant faults in the twin and see each of them caught. Exits with 1 if a level fails
or a fault passes. Levels: {levels}.

examples:
  jaxpg parity                                   the certificate
  jaxpg parity --full --json parity.json         more seeds and updates; written down
  jaxpg parity --level gradients faults          only these
  jaxpg parity record golden                     files to check a port to another framework with
"""
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
class Options:
    full: bool = False
    """More seeds, and longer runs."""
    smoke: bool = False
    """Some levels, and of each its first configuration, in seconds."""
    level: tuple[str, ...] = ()
    """Only these levels; `faults` is one of them."""
    seeds: int | None = None
    """Seeds of each configuration; default: 1, or 3 with --full (more where they cost nothing)."""
    json: Path | None = None
    """File for everything that is found, with commit, versions and device."""


def main(arguments: Sequence[str]) -> None:
    """Run the command; exits with 1 if a level fails or a fault is not caught.

    Raises:
      ConfigError: for options without a meaning, a path that cannot be written, or no torch.
    """
    if arguments[:1] == ["record"]:
        return _record(arguments[1:])
    options = _parse(arguments)
    _need_torch()
    import torch

    torch.set_num_threads(1)
    levels, catches = _certify(options)
    _print(levels, catches)
    passed = all(row.passed for row in levels) and all(catch.level for catch in catches)
    if options.json:
        document = _document(arguments, passed, levels, catches)
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        files.save(options.json, text + "\n")
    if not passed:
        sys.exit(1)


def _parse(arguments: Sequence[str]) -> Options:
    import tyro

    options = tyro.cli(
        Options,
        prog="jaxpg parity",
        description=DESCRIPTION.format(levels=", ".join(LEVELS)),
        args=arguments,
    )
    for name in options.level:
        if name not in LEVELS:
            raise ConfigError(f"unknown level {name!r}{nearest(name, LEVELS)}")
    if options.full and options.smoke:
        raise ConfigError("--full and --smoke exclude each other")
    if options.seeds is not None and options.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1; got {options.seeds}")
    files.check(options.json, "--json")
    return options


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "parity compares with PyTorch, which is not installed: pip install 'jaxpg[torch]'"
        )


def _certify(options: Options) -> tuple[list["Row"], list["Catch"]]:
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
    from jaxpg.proof.faults import examine

    catches = []
    for fault in faults:
        report(f"planting: {fault.description}")
        catches.append(examine(fault))
    return catches


def _print(levels: list["Row"], catches: list["Catch"]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    if levels:
        console.print(_level_table(levels))
    if catches:
        console.print(_fault_table(catches))
    failed = [row.level for row in levels if not row.passed]
    missed = [catch.fault for catch in catches if not catch.level]
    parts = [f"{len(levels)} levels: {'FAILED ' + ', '.join(failed) if failed else 'all equal'}"]
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
    from rich.table import Table

    table = Table("planted in torch_ref", "caught by", "where", "error", title="Planted faults")
    for catch in catches:
        caught = catch.level or "[bold red]NOTHING[/]"
        table.add_row(catch.description, caught, catch.where, _number(catch.error))
    return table


def _number(error: float) -> str:
    if not error:
        return "0 (bits)"
    return f"{error:.1e}" if math.isfinite(error) else ""


def _document(
    arguments: Sequence[str], passed: bool, levels: list["Row"], catches: list["Catch"]
) -> dict[str, Any]:
    """Everything found, and what it was found with."""
    import torch

    from jaxpg.population.provenance import commit, device, versions

    return {
        "command": " ".join(["jaxpg parity", *arguments]),
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


def _record(arguments: Sequence[str]) -> None:
    """`jaxpg parity record DIR`."""
    import tyro

    def parse(directory: tyro.conf.Positional[Path]) -> Path:
        """Write golden files, to check a port to another framework with; README.md explains them.

        Args:
          directory: new or empty.
        """
        return directory

    directory = tyro.cli(parse, prog="jaxpg parity record", args=arguments)
    _need_torch()
    from rich.console import Console

    from jaxpg.proof import golden

    golden.record(directory, report=Console(stderr=True).print)
    print(f"{directory}: {len(golden.CASES)} golden files, and README.md that explains them")
