"""Whole training runs of jaxpg and torch_ref, equal to the bit from one integer.

    python -m benchmarks.certificate [--smoke]

Each seed of each case below runs in two processes, one for each package; two seeds at a time. A
seed takes minutes, so every result is written to benchmarks/results/certificate-cpu.json at once,
and a second start skips what is there of this very source. Prints a table; exit code 1 unless every
run is equal or parts at a straddle (docs/lockstep.md), and few do.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

from benchmarks.measure import command_line
from benchmarks.record import markdown, read, write
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS
from jaxpg.population.provenance import ROOT, commit, source_sha256
from jaxpg.proof.levels import CASES
from jaxpg.proof.lockstep import lockstep
from jaxpg.runs.manifests import parse_config

RECORDS = "trace.py"
FEW = 0.1  # of the runs may part at a straddle: more of them would be no coincidence


class Case(NamedTuple):
    """A config, and how much of it runs."""

    config: Config
    seeds: int
    updates: int | None  # None: to the end of training


def cases() -> dict[str, Case]:
    """The configs of `jaxpg parity`, of which `vpg` and `ppo` to the end of training.

    What takes many steps in an update, or backtracks, is on the coarser grid.
    """
    every = {name: Case(config, 1, 200) for name, config in CASES.items()}
    every["vpg"] = Case(dataclasses.replace(PRESETS["vpg"], total_steps=512_000), 20, None)
    every["ppo"] = Case(PRESETS["ppo"], 20, None)

    def on_grid(config: Config) -> Config:
        grid = "float32_grid" if config.fit == "gradient" else "float24_grid"
        return dataclasses.replace(config, arithmetic=grid)

    return {name: case._replace(config=on_grid(case.config)) for name, case in every.items()}


def main() -> None:
    """Run what is missing, write after each seed, print."""
    smoke = command_line(__doc__).parse_args().smoke
    chosen = {"vpg": cases()["vpg"]._replace(seeds=1, updates=3)} if smoke else cases()
    rows = [] if smoke else _written(chosen)
    done = {(row["case"], row["seed"]) for row in rows}
    missing = [
        (name, seed)
        for name, case in chosen.items()
        for seed in range(case.seeds)
        if (name, seed) not in done
    ]
    for row in _run(chosen, missing):
        rows.append(row)
        print(
            f"{len(rows)}/{len(done) + len(missing)}  {row['case']}, seed {row['seed']}: "
            f"{row['verdict']}, {row['env_steps']:,} steps, {row['seconds']} s",
            file=sys.stderr,
        )
        if not smoke:
            order = list(chosen)
            rows.sort(key=lambda row: (order.index(row["case"]), row["seed"]))
            write("certificate", _content(chosen, rows))
    print(_table(chosen, rows))
    sys.exit(not holds(rows))


def holds(rows: list[dict[str, Any]]) -> bool:
    """Whether every run is equal, or one of few that part at a straddle."""
    straddles = sum(row["verdict"] == "straddle" for row in rows)
    equal = sum(row["verdict"] == "equal" for row in rows)
    return equal + straddles == len(rows) and straddles <= FEW * len(rows)


def source() -> str:
    """Of all files that a run is computed by."""
    folders = [ROOT / name for name in ("torch_ref", "jaxpg/core", "jaxpg/fast")]
    found = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    found.append(ROOT / "jaxpg/world.py")
    return source_sha256(*(path for path in found if path.name != RECORDS))


def judge() -> str:
    """Of all files that record and compare runs."""
    recorders = (ROOT / "torch_ref" / RECORDS, ROOT / "jaxpg/core" / RECORDS)
    return source_sha256(*recorders, ROOT / "jaxpg/proof", ROOT / "jaxpg/parity.py")


def _run(chosen: dict[str, Case], missing: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """One row for each (case, seed), as they end; two pairs of processes at a time."""
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(_row, name, chosen[name], seed) for name, seed in missing]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # where one fails, the rows of the rest would be lost
            pool.shutdown(cancel_futures=True)


def _row(name: str, case: Case, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    made = {"commit": commit(), "source": source(), "judge": judge()}
    (result,) = lockstep(case.config, [seed], case.updates)
    return {
        "case": name,
        **result._asdict(),
        "split": None if result.split is None else str(result.split),
        "seconds": round(time.perf_counter() - began),
        **made,
    }


def _written(chosen: dict[str, Case]) -> list[dict[str, Any]]:
    """The rows of an earlier start whose case and source are still the same; where runs part, what
    has compared them must be, too."""
    record = read("certificate")
    if record is None:
        return []
    same = {name for name, case in chosen.items() if _is(case, record["cases"].get(name))}
    return [
        row
        for row in record["rows"]
        if row["case"] in same
        and row.get("source") == source()
        and (row["verdict"] == "equal" or row.get("judge") == judge())
    ]


def _is(case: Case, written: dict[str, Any] | None) -> bool:
    """Whether it is what an earlier version ran, which may not have had all fields."""
    if written is None:
        return False
    return (parse_config(written["config"]), written["updates"]) == (case.config, case.updates)


def _as_json(case: Case) -> dict[str, Any]:
    fields = {"config": dataclasses.asdict(case.config), "updates": case.updates}
    return json.loads(json.dumps(fields))


def _content(chosen: dict[str, Case], rows: list[dict[str, Any]]) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "torch": version("torch"),
        "cases": {name: _as_json(case) for name, case in chosen.items()},
        "table": _table(chosen, rows),
        "rows": rows,
    }


def _table(chosen: dict[str, Case], rows: list[dict[str, Any]]) -> str:
    """A line for each case; the hashes of its first seed."""
    columns = ["run", "seeds", "updates", "environment steps", "verdict", "worst gradient error",
               "SHA-256 of seed 0's actions", "… and parameters"]  # fmt: skip
    lines = []
    for name in chosen:
        mine = [row for row in rows if row["case"] == name]
        if not mine:
            continue
        verdicts = {v: sum(r["verdict"] == v for r in mine) for v in {r["verdict"] for r in mine}}
        first = mine[0]["sha256"]
        lines.append(
            [
                name,
                str(len(mine)),
                f"{sum(row['updates'] for row in mine):,}",
                f"{sum(row['env_steps'] for row in mine):,}",
                ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())),
                f"{max(row['gradient'] for row in mine):.0e}",
                *(_both(*first[tensors]) for tensors in ("actions", "params")),
            ]
        )
    return markdown(columns, lines)


def _both(ours: str, theirs: str) -> str:
    return f"{ours[:12]} on both sides" if ours == theirs else f"{ours[:12]} and {theirs[:12]}"


if __name__ == "__main__":
    main()
