"""How do speed and memory change with seeds, environments, steps, hidden units and observations?

    python -m benchmarks.scaling [--smoke] [--rounds 2]

`train_population` of `vpg` with one thing changed at a time; larger sizes do fewer updates. What is
timed is training alone; memory is the process's peak, with all results gathered, beside what
`jaxpg.population.memory` predicts before training starts.
"""

import dataclasses
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measure
from benchmarks.contenders import VPG
from benchmarks.measure import Case
from benchmarks.record import markdown
from jaxpg.words import short

SEEDS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
VARIED = {  # with 64 seeds
    "num_envs": (1, 32, 128),
    "num_steps": (32, 512, 2048),
    "hidden_sizes": ((16,), (128,), (256,)),
}
SEEN = {  # by the networks, with 64 seeds, too
    "50 numbers (Catch)": {"env": "Catch-bsuite"},
    "400 numbers (Breakout)": {"env": "Breakout-MinAtar"},
    "10 × 10 × 4 (Breakout)": {"env": "Breakout-MinAtar", "conv_features": (16,)},
}
STEPS = 2**23  # environment steps that a measurement takes about; at least two updates
LENGTH = 2  # updates that a call of the program does: the same program for any number of seeds
AXES = {
    "seeds": "seeds",
    "num_envs": "environments a seed",
    "num_steps": "steps an update",
    "hidden_sizes": "hidden units",
}
OBSERVATION = "observation"  # whose sizes have no axis


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Every size in turn."""
    steps = 2**14 if smoke else STEPS
    sizes: list[tuple[str, Any]] = [("seeds", size) for size in ((1, 32) if smoke else SEEDS)]
    if not smoke:
        sizes += [(name, size) for name, chosen in VARIED.items() for size in chosen]
    cases = [Case("population", {"name": name, "size": size, "steps": steps})
             for name, size in sizes]  # fmt: skip
    cases += [Case("population", {"name": OBSERVATION, "size": size, "steps": steps // 16})
              for size in list(SEEN)[: 1 if smoke else None]]  # fmt: skip
    rows = measure.by_turns("scaling", cases, rounds, cold=False)
    content = {"config": dataclasses.asdict(VPG), "rows": rows}
    return {**content, "table": table(content)}


def table(content: dict[str, Any]) -> str:
    """A line for each size."""
    lines = []
    for row in content["rows"]:
        measured, options = row["repetitions"], row["options"]
        memory = max(one["peak_bytes"] for one in measured)
        predicted = max(one["predicted_bytes"] for one in measured)
        lines.append(
            [
                AXES.get(options["name"], OBSERVATION),
                options["size"] if options["name"] == OBSERVATION else f"{_size(options):,}",
                str(measured[0]["updates"]),
                f"{median(one['wall_seconds'] for one in measured):.1f} s",
                short(_speed(row)),
                f"{1e6 / _speed(row):.2f} µs",
                f"{memory / 2**20:,.0f} MiB",
                f"{predicted / 2**20:,.0f} MiB",
            ]
        )
    columns = ["varied", "to", "updates", "training", "steps/s", "a step", "peak memory",
               "as predicted"]  # fmt: skip
    return f"{markdown(columns, lines)}\n\n{_where_it_ends(content['rows'])}"


def draw(content: dict[str, Any], path: Path) -> None:
    """Speed over each of the four sizes; then memory over seeds, measured and predicted."""
    figure, axes = measure.figure(13, 2.8, 5)
    ours = {"num_envs": VPG.num_envs, "num_steps": VPG.num_steps,
            "hidden_sizes": VPG.hidden_sizes[0], "seeds": 0}  # fmt: skip
    rows = content["rows"]
    base = [row for row in rows if row["options"] | {"steps": 0} ==
            {"name": "seeds", "size": 64, "steps": 0}]  # fmt: skip
    for one, (name, label) in zip(axes, AXES.items(), strict=False):
        mine = [(_size(row["options"]), _speed(row))
                for row in rows if row["options"]["name"] == name]  # fmt: skip
        mine += [(ours[name], _speed(row)) for row in base if name != "seeds"]
        if mine:
            one.plot(*zip(*sorted(mine), strict=True), "o-", color=measure.BLUE)
            ticks = [size for size, _ in sorted(mine)]
            every = 1 if len(ticks) <= 5 else 4
            one.set_xscale("log")
            one.set_xticks(ticks[::every], [f"{size:,}" for size in ticks[::every]])
            one.set_xticks([], minor=True)
        one.set(xlabel=label, ylim=(0, 1.1 * max(map(_speed, rows))))
        one.yaxis.set_major_formatter(lambda value, _: short(value))
    axes[0].set_ylabel("environment steps trained on\nin a second")
    seeds = [row for row in rows if row["options"]["name"] == "seeds"]
    for key, style in (("peak_bytes", "o-"), ("predicted_bytes", "--")):
        memory = [max(one[key] for one in row["repetitions"]) / 2**30 for row in seeds]
        label = {"peak_bytes": "measured", "predicted_bytes": "predicted"}[key]
        colour = measure.BLUE if key == "peak_bytes" else measure.INK
        axes[4].plot([row["options"]["size"] for row in seeds], memory, style, color=colour,
                     label=label)  # fmt: skip
    axes[4].set(xscale="log", xlabel="seeds", ylabel="peak memory (GiB)")
    axes[4].set_ylim(0, 1.1 * axes[4].get_ylim()[1])
    axes[4].legend(frameon=False)
    figure.savefig(path)


def population(name: str, size: Any, steps: int) -> dict[str, Any]:
    """One size, in this process alone, whose memory is measured."""
    measure.start_as_jaxpg()
    from jaxpg.population import devices, memory
    from jaxpg.runs.python import train_population

    seeds = size if name == "seeds" else 64
    config = VPG
    if name != "seeds":
        value = tuple(size) if isinstance(size, list) else size
        changed: dict[str, Any] = SEEN[size] if name == OBSERVATION else {name: value}
        config = dataclasses.replace(VPG, **changed)
    an_update = config.num_envs * config.num_steps
    updates = max(LENGTH, min(VPG.num_updates, steps // (an_update * seeds)) // LENGTH * LENGTH)
    config = dataclasses.replace(config, total_steps=updates * an_update)
    predicted = measure.predictions()
    made = train_population(config, range(seeds), segments=updates // LENGTH)
    return {
        "updates": updates,
        "env_steps": int(made.metrics.env_steps.sum(dtype="int64")),
        "lanes": made.lanes,
        "workers": len(devices.workers()),
        "wall_seconds": made.wall_seconds,
        "compile_seconds": made.compile_seconds,
        "peak_bytes": memory.peak(),
        "predicted_bytes": predicted[-1].host,
    }


def _where_it_ends(rows: list[dict[str, Any]]) -> str:
    """From how many seeds on there is nothing to be gained from more."""
    by_seeds = {row["options"]["size"]: row for row in rows if row["options"]["name"] == "seeds"}
    speeds = {seeds: _speed(row) for seeds, row in by_seeds.items()}
    best = max(speeds.values())
    enough = min(seeds for seeds, speed in speeds.items() if speed >= 0.9 * best)
    most = max(by_seeds)
    last = by_seeds[most]["repetitions"][0]
    return (
        f"{enough:,} seeds are enough to come within a tenth of its best, {short(best)} steps/s: "
        f"{last['lanes']} lanes on each of {last['workers']} workers are full with "
        f"{last['lanes'] * last['workers']} seeds, and what is not full is padding. {most:,} seeds "
        f"have {speeds[most] / best:.0%} of the best: they do {last['updates']} updates each, "
        "which weigh little beside what a chunk takes to begin and to be gathered."
    )


def _size(options: dict[str, Any]) -> int:
    """Hidden layers have one width each."""
    size = options["size"]
    return size[0] if isinstance(size, list | tuple) else size


def _speed(row: dict[str, Any]) -> float:
    return median(one["env_steps"] / one["wall_seconds"] for one in row["repetitions"])


SCRIPT = measure.Script(
    name="scaling",
    doc=__doc__ or "",
    rounds=2,
    measures={"population": population},
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
