"""How long does it take until training starts: cold, and with the compilation cache?

    python -m benchmarks.compile [--smoke] [--rounds 3]

`jaxpg train vpg` in an empty cache and then in the one that this has filled: what compiling takes,
and the time from the command to the first update that is saved. Beside it the textbook's
`jit(vmap(train))`, and how long `jaxpg --help` takes to answer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import contenders, measure
from benchmarks.measure import Case
from benchmarks.record import markdown

NAMES = {"jaxpg": "`jaxpg train vpg`", "textbook": contenders.NAMES["textbook"]}
SEEDS, UPDATES = 32, 50
GOALS = {"help": 0.5, "warm": 5.0, "cold": 20.0}  # seconds, of jaxpg


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Every contender in an empty cache and again in that cache; each round has a new one."""
    seeds, updates = (4, 2) if smoke else (SEEDS, UPDATES)
    cases = [Case("help", {})]
    for name in ("jaxpg",) if smoke else NAMES:
        cases.append(Case(name, {"seeds": seeds, "updates": updates}))
    rows = measure.by_turns("compile", cases, rounds, cold=False)
    content = {"seeds": seeds, "updates": updates, "goals_seconds": GOALS, "rows": rows}
    return {**content, "table": table(content)}


def table(content: dict[str, Any]) -> str:
    """A line for each contender and cache."""
    lines = []
    for row in content["rows"]:
        taken = row["repetitions"]
        if row["what"] == "help":
            lines.append(["`jaxpg --help`", "", "", _shown([one["seconds"] for one in taken])])
            continue
        for cache in ("cold", "warm"):
            lines.append(
                [
                    NAMES[row["what"]],
                    cache,
                    _shown([one[cache]["compile_seconds"] for one in taken]),
                    _shown([one[cache]["first_seconds"] for one in taken]),
                ]
            )
    columns = ["", "cache", "compiling", "from the command to the first update, or the answer"]
    return markdown(columns, lines)


def draw(content: dict[str, Any], path: Path) -> None:
    """Stacked bars: compiling, and all the rest until the first update."""
    figure, (axes,) = measure.figure(8, 2.4)
    labels = []
    for row in content["rows"]:
        if row["what"] == "help":
            continue
        for cache in ("cold", "warm"):
            measured = [one[cache] for one in row["repetitions"]]
            compiling = median(one["compile_seconds"] for one in measured)
            first = median(one["first_seconds"] for one in measured)
            place = -len(labels)
            axes.barh(place, first - compiling, color=measure.GREY)
            axes.barh(place, compiling, left=first - compiling, color=measure.BLUE)
            axes.annotate(f"{first:.1f} s", (first, place), (6, 0), textcoords="offset points",
                          va="center")  # fmt: skip
            labels.append(f"{NAMES[row['what']].replace('`', '')}, {cache}")
    axes.set_yticks([-i for i in range(len(labels))], labels)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.1)
    axes.set_xlabel("seconds until the first update (blue: tracing and compiling)")
    figure.savefig(path)


def answer() -> dict[str, float]:
    """`jaxpg --help`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jaxpg", "--help"], check=True, capture_output=True)
    return {"seconds": time.perf_counter() - began}


def jaxpg(seeds: int, updates: int) -> dict[str, dict[str, float]]:
    """`jaxpg train`, cold and warm; its first line of progress comes after an update is saved."""
    return _cold_and_warm(lambda: _first_line(seeds, updates))


def textbook(seeds: int, updates: int) -> dict[str, dict[str, float]]:
    """The textbook's loop has no updates to be seen: the time until it could do the first."""

    def start() -> dict[str, float]:
        began = time.perf_counter()
        case = Case("textbook_once", {"seeds": seeds, "updates": updates})
        measured = measure.in_process("compile", case)
        first = time.perf_counter() - began - measured["wall_seconds"]
        return {"compile_seconds": measured["compile_seconds"], "first_seconds": first}

    return _cold_and_warm(start)


def _cold_and_warm(start: Any) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        return {"cold": start(), "warm": start()}


def _first_line(seeds: int, updates: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        budget = ["--seeds", str(seeds), "--total-steps", str(contenders.budget(updates))]
        command = [sys.executable, "-m", "jaxpg", "train", "vpg", *budget, "--out", str(out)]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=sys.stderr)
        first = None
        while process.poll() is None:
            log = out / "progress.jsonl"
            if first is None and log.exists() and log.stat().st_size:
                first = time.perf_counter() - began
            time.sleep(0.01)
        if process.returncode or first is None:
            raise SystemExit(f"jaxpg train ended with code {process.returncode}")
        summary = json.loads((out / "summary.json").read_text())
    return {"compile_seconds": summary["compile_seconds"], "first_seconds": first}


def _shown(taken: list[float]) -> str:
    """A median, and the range."""
    whole = f"{median(taken):.2f} s"
    return whole if len(taken) == 1 else f"{whole} ({min(taken):.2f} to {max(taken):.2f})"


SCRIPT = measure.Script(
    name="compile",
    doc=__doc__ or "",
    rounds=3,
    measures={
        "help": answer,
        "jaxpg": jaxpg,
        "textbook": textbook,
        "textbook_once": contenders.textbook,
    },
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
