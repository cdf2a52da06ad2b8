"""How long does it take until 95 % of 256 seeds solve CartPole?

    python -m benchmarks.time_to_solve [--smoke] [--rounds 1]

Each contender trains the preset `vpg` for its whole budget, from the start of its process to the
last seed's end, compiling and imports included; solved is a mean return of at least 475 over the
last episodes, 100 of them at least. Who trains one seed at a time would need hours: its time is
extrapolated from the speed of a few updates, on all cores at once, and the table says so. torch_ref
is bit-equal to jaxpg, so it solves as many; how many Stable-Baselines3 solves is not measured.
"""

import dataclasses
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import contenders, measure
from benchmarks.contenders import NAMES, VPG
from benchmarks.measure import Case
from benchmarks.record import markdown
from jaxpg import words

SEEDS, WANTED = 256, 0.95
WHOLE = ("jaxpg", "textbook")
BY_SEED = ("torch_ref", "sb3")  # one seed a process


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Whole runs of those that are fast enough, and a few updates of the others."""
    missing = contenders.absent()
    whole = {"seeds": 4, "updates": 3} if smoke else {"seeds": SEEDS, "updates": VPG.num_updates}
    few = {"updates": 1 if smoke else 16}
    cases = [Case(name, whole) for name in WHOLE]
    cases += [
        Case("on_every_core", {"name": name, **few}) for name in BY_SEED if name not in missing
    ]
    rows = measure.by_turns("time_to_solve", cases, rounds, cold=False)
    for row in rows:
        row["seconds"] = [_seconds(row, one) for one in row["repetitions"]]
        solved = [one["solved"] for one in row["repetitions"] if "solved" in one]
        row["solved"] = min(solved) if solved else None
        assert smoke or row["solved"] is None or row["solved"] >= WANTED, row
    content = {"config": dataclasses.asdict(VPG), "left_out": missing, "rows": rows}
    return {**content, "table": table(content)}


def table(content: dict[str, Any]) -> str:
    """A line for each contender."""
    ours = median(content["rows"][0]["seconds"])
    lines = []
    for row in content["rows"]:
        taken = median(row["seconds"])
        lines.append(
            [
                _name(row),
                words.duration(taken),
                f"{taken / ours:,.1f} x",
                _solved(row),
                "measured" if _whole(row) else _extrapolated(row),
            ]
        )
    columns = ["", f"{SEEDS} seeds", "of jaxpg's time", "seeds that solve it", ""]
    left_out = [content["left_out"][name] for name in BY_SEED if name in content["left_out"]]
    return "\n\n".join([markdown(columns, lines), *(f"Left out: {why}." for why in left_out)])


def draw(content: dict[str, Any], path: Path) -> None:
    """Bars on a logarithmic axis."""
    rows = content["rows"]
    figure, (axes,) = measure.figure(8, 2.2)
    labels = [
        _name(row).replace("`", "") + ("" if _whole(row) else " (extrapolated)") for row in rows
    ]
    bars = [row["seconds"] for row in rows]
    measure.bars(axes, labels, bars, [row["what"] == "jaxpg" for row in rows], words.duration)
    axes.set_xlabel(f"seconds until {SEEDS} seeds of CartPole are trained (log scale)")
    figure.savefig(path)


def on_every_core(name: str, updates: int) -> dict[str, Any]:
    """One seed on each core at the same time; the slowest counts."""
    from concurrent.futures import ThreadPoolExecutor

    from jaxpg.population.devices import cpu_count

    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def turn(_: int) -> dict[str, Any]:
        return measure.in_process(
            "time_to_solve", Case(name, {"seeds": 1, "updates": updates}), one_thread
        )

    with ThreadPoolExecutor(cpu_count()) as pool:
        taken = list(pool.map(turn, range(cpu_count())))
    return {"wall_seconds": max(one["wall_seconds"] for one in taken), "cores": len(taken)}


def _seconds(row: dict[str, Any], measured: dict[str, Any]) -> float:
    """Until all seeds are trained; of a contender that was only begun, at the speed it had."""
    if _whole(row):
        return measured["process_seconds"]
    an_update = measured["wall_seconds"] / row["options"]["updates"]
    return an_update * VPG.num_updates * SEEDS / measured["cores"]


def _whole(row: dict[str, Any]) -> bool:
    return row["what"] in WHOLE


def _name(row: dict[str, Any]) -> str:
    return NAMES[row["what"] if _whole(row) else row["options"]["name"]]


def _solved(row: dict[str, Any]) -> str:
    if row["solved"] is not None:
        return words.share(row["solved"])
    return "as jaxpg's" if row["options"]["name"] == "torch_ref" else "not measured"


def _extrapolated(row: dict[str, Any]) -> str:
    cores = row["repetitions"][0]["cores"]
    return f"extrapolated from {row['options']['updates']} updates of {cores} seeds at a time"


SCRIPT = measure.Script(
    name="time_to_solve",
    doc=__doc__ or "",
    rounds=1,
    measures={**contenders.MEASURES, "on_every_core": on_every_core},
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
