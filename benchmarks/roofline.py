"""What bounds the training of `vpg`: arithmetic, memory, or random numbers?

    python -m benchmarks.roofline [--smoke] [--rounds 3]

What one environment step that is trained on needs, counted by hand and from the compiled update
(benchmarks/hlo.py), against what this machine can do in the same run: multiply-adds of a large
product, bytes to and from memory, threefry words (benchmarks/limits.py); all of its cores.
"""

import dataclasses
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import limits, measure, parts
from benchmarks.contenders import VPG
from benchmarks.measure import Case
from benchmarks.record import markdown
from benchmarks.throughput import flop_per_step
from jaxpg.words import short

WORDS_PER_STEP = 1.5  # an action's uniform; four for a reset, which are drawn once in 8 steps


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Count once; measure the limits and the update by turns."""
    (counted,) = measure.by_turns("roofline", [Case("count", {})], 1, cold=False)
    given = {"minimum_seconds": 0.1} if smoke else {}
    cases = [
        Case("multiply_add", {"size": 512} if smoke else {}),
        Case("memory", given),
        Case("threefry", given),
        Case("update", {"name": "update", "seconds": 0.1 if smoke else 3.0}),
    ]
    rows = measure.by_turns("roofline", cases, rounds, cold=not smoke)
    content = {
        "config": dataclasses.asdict(VPG),
        "by_hand": {"flop_per_step": flop_per_step(VPG), "words_per_step": WORDS_PER_STEP},
        "compiled": counted["repetitions"][0],
        "rows": rows,
    }
    return {**content, "table": table(content)}


def table(content: dict[str, Any]) -> str:
    """A line for each resource."""
    measured, speed = _rates(content), _rates(content)["update"]
    compiled, by_hand = content["compiled"], content["by_hand"]
    lines = []
    for name, resource, per_step in _needs(content):
        most = measured[resource] / per_step
        lines.append(
            [name, f"{per_step:,.1f}", f"{short(measured[resource])}/s", f"{short(most)}/s",
             f"{speed / most:.1%}"]
        )  # fmt: skip
    columns = ["resource", "a step needs", "this machine has", "so at most, steps", "used"]
    together = 1 / (
        by_hand["flop_per_step"] / measured["multiply_add"]
        + by_hand["words_per_step"] / measured["threefry"]
    )
    return (
        f"{markdown(columns, lines)}\n\n"
        f"Measured: {short(speed)} steps/s, {compiled['lanes']} lanes on every core. With nothing "
        f"but the multiply-adds and the random numbers, one after the other: {short(together)}/s. "
        f"A step of the compiled update also takes {compiled['arithmetic']:,.0f} other additions "
        f"and multiplications of floats, {compiled['slow']:.1f} exponentials, sines and roots, and "
        f"{compiled['integer']:,.0f} operations on integers, in "
        f"{compiled['kernels_per_update']:,.0f} kernels an update of all lanes."
    )


def draw(content: dict[str, Any], path: Path) -> None:
    """What each resource would allow, and what is reached."""
    figure, (axes,) = measure.figure(8, 2.6)
    measured = _rates(content)
    names, most = zip(
        *((name, [measured[resource] / need]) for name, resource, need in _needs(content)),
        strict=True,
    )
    speeds = next(row for row in content["rows"] if row["what"] == "update")["repetitions"]
    measure.bars(
        axes,
        [*(f"limit: {name}" for name in names), "measured"],
        [*most, [one["rate"] for one in speeds]],
        [False] * len(names) + [True],
    )
    axes.set_xlabel("environment steps trained on in a second (log scale)")
    figure.savefig(path)


def count() -> dict[str, float]:
    """What the compiled update does for one environment step."""
    measure.start_as_jaxpg()
    from benchmarks import hlo
    from jaxpg.population import devices, population

    lanes = population.default_lanes()
    part = parts.make("update", VPG, lanes)
    (compiled,) = devices.compile_on_each(part.function, part.arguments, devices.workers()[:1])
    steps = part.env_steps
    counts = hlo.count(compiled.as_text())
    by_step = {name: value / steps for name, value in counts._asdict().items()}
    analysis = compiled.cost_analysis()
    return {
        "lanes": lanes,
        "kernels_per_update": counts.kernels,
        **by_step,
        "xla_flops_loops_once": analysis["flops"] / steps,
        "xla_bytes_loops_once": analysis["bytes accessed"] / steps,
    }


def _needs(content: dict[str, Any]) -> list[tuple[str, str, float]]:
    """What a step needs of which measured resource."""
    compiled, by_hand = content["compiled"], content["by_hand"]
    return [
        ("multiply-adds, by hand", "multiply_add", by_hand["flop_per_step"]),
        ("multiply-adds and float arithmetic, compiled", "multiply_add",
         compiled["multiply_adds"] + compiled["arithmetic"]),
        ("random words, by hand", "threefry", by_hand["words_per_step"]),
        ("bytes between kernels, if none stayed in a cache", "memory", compiled["bytes"]),
    ]  # fmt: skip


def _rates(content: dict[str, Any]) -> dict[str, float]:
    """Medians by name."""
    return {
        row["what"]: median(one["rate"] for one in row["repetitions"]) for row in content["rows"]
    }


SCRIPT = measure.Script(
    name="roofline",
    doc=__doc__ or "",
    rounds=3,
    measures={
        "count": count,
        "multiply_add": limits.multiply_add,
        "memory": limits.memory,
        "threefry": limits.threefry,
        "update": parts.speed,
    },
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
