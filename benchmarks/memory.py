"""Is a run's peak memory what `jaxpg train` says before it starts?

    python -m benchmarks.memory [--smoke] [--rounds 1]

Whole runs with tiny updates, since what grows with a run is its seeds and its updates. Measured is
the largest resident memory of the process, from its start to its end.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.measure import Case
from benchmarks.record import markdown
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS

SIZES = (("vpg", 64, 100), ("vpg", 1024, 50), ("vpg", 4096, 16), ("ppo", 4096, 195))
LANES = 64
SMALL = {  # preset -> the least that its update can be
    "vpg": {"num_envs": 1, "num_steps": 1, "value_steps": 1},
    "ppo": {"num_envs": 1, "num_steps": 8, "epochs": 1},  # 2 in each minibatch
}


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Every size in turn."""
    sizes = (("vpg", 2, 4),) if smoke else SIZES
    fields = ("preset", "seeds", "updates")
    cases = [Case("train", dict(zip(fields, size, strict=True))) for size in sizes]
    rows = measure.by_turns("memory", cases, rounds, cold=False)
    for row in rows:
        options = row["options"]
        row["config"] = dataclasses.asdict(small(options["preset"], options["updates"]))
    return {"lanes": LANES, "rows": rows, "table": table(rows)}


def small(preset: str, updates: int) -> Config:
    """The preset with the least of updates, so many of them."""
    sizes = SMALL[preset]
    total_steps = updates * sizes["num_envs"] * sizes["num_steps"]
    return dataclasses.replace(PRESETS[preset], **sizes, total_steps=total_steps)


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each size."""
    lines = []
    for row in rows:
        measured = max(one["peak_bytes"] for one in row["repetitions"])
        predicted = max(one["predicted_bytes"] for one in row["repetitions"])
        lines.append(
            [
                f"`{row['options']['preset']}`",
                f"{row['options']['seeds']:,}",
                f"{row['options']['updates']:,}",
                f"{predicted / 2**20:,.0f} MiB",
                f"{measured / 2**20:,.0f} MiB",
                f"{predicted / measured - 1:+.0%}",
            ]
        )
    return markdown(["preset", "seeds", "updates", "predicted", "measured", "difference"], lines)


def draw(content: dict[str, Any], path: Path) -> None:
    """Predicted over measured, and where the two are equal."""
    figure, (axes,) = measure.figure(4.5, 3.6)
    for row in content["rows"]:
        for one in row["repetitions"]:
            axes.plot(one["peak_bytes"] / 2**30, one["predicted_bytes"] / 2**30, "o",
                      color=measure.BLUE)  # fmt: skip
            text = "{preset}, {seeds:,} × {updates:,}".format(**row["options"])
            place = one["peak_bytes"] / 2**30, one["predicted_bytes"] / 2**30
            axes.annotate(text, place, (8, -6), textcoords="offset points", fontsize=8)
    largest = 1.5 * max(axes.get_xlim()[1], axes.get_ylim()[1])  # with room for what is said
    axes.plot([0, largest], [0, largest], color=measure.GREY, linewidth=1)
    axes.set(xlim=(0, largest), ylim=(0, largest), aspect="equal")
    axes.set(xlabel="measured peak (GiB)", ylabel="predicted before training (GiB)")
    figure.savefig(path)


def train(preset: str, seeds: int, updates: int) -> dict[str, int]:
    """A whole run in this process."""
    from jaxpg.cli.main import main
    from jaxpg.population import memory

    predicted = measure.predictions()
    config = small(preset, updates)
    options = [
        f"--{name.replace('_', '-')}={getattr(config, name)}"
        for name in (*SMALL[preset], "total_steps")
    ]
    with tempfile.TemporaryDirectory() as directory:
        size = ["--seeds", str(seeds), "--lanes", str(LANES)]
        main(["train", preset, *size, *options, "--out", f"{directory}/run"])
    return {"peak_bytes": memory.peak(), "predicted_bytes": predicted[-1].host}


SCRIPT = measure.Script(
    name="memory",
    doc=__doc__ or "",
    rounds=1,
    measures={"train": train},
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
