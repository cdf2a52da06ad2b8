"""How fast will `vpg` train on a GPU? Measured where there is one, predicted where there is none.

    python -m benchmarks.gpu [--smoke] [--rounds 5]

In both forms that a GPU can be given (jaxpg/backend.py): `plain`, one vmap over all lanes, of which
XLA makes the kernels; and `fused`, in which the rollout, the networks and their gradients are
kernels of our own. First the two are compared, in float64 and in float32: if parameters after two
updates differ by more than rounding, nothing is timed.

A prediction takes the program as XLA compiles it for an H100 (benchmarks/h100.py, which needs jax's
CUDA plugin and no GPU). An update takes

    kernels × launch + bytes / bandwidth + operations / arithmetic

one after the other, though a GPU does some of it at the same time. Operations are those in XLA's
kernels, and the instructions in the loops of ours (cold branches too). Nothing is known of waiting
for memory, so this is a prediction of the order, not of the digit. Where a GPU is found the same
update is timed at each number of lanes, and stands beside it.
"""

import dataclasses
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import h100, measure, parts
from benchmarks.contenders import STEPS_PER_UPDATE, VPG
from benchmarks.measure import Case, short
from benchmarks.record import markdown

LANES = (256, 1024, 4096, 16_384)
FORMS = ("plain", "fused")
MOST = {"float64": 1e-10, "float32": 1e-3}  # by which parameters of the forms may differ


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Compare the forms, compile, predict, and time where a GPU is found (the smoke: anywhere)."""
    cases = [Case("difference", {"arithmetic": arithmetic}) for arithmetic in MOST]
    rows = measure.by_turns("gpu", cases, 1, cold=False)
    found = {row["options"]["arithmetic"]: row["repetitions"][0] for row in rows}
    for arithmetic, one in found.items():
        if not one["relative"] < MOST[arithmetic]:
            raise SystemExit(f"gpu: the forms differ by {one['relative']:.1e} in {arithmetic}")
    reason = h100.missing()
    programs, timed = [], []
    if not reason:
        sizes = LANES[:1] if smoke else LANES
        cases = [Case("program", {"form": form, "lanes": n}) for form in FORMS for n in sizes]
        rows = measure.by_turns("gpu", cases, 1, cold=False)
        programs = [{**row["options"], **row["repetitions"][0]} for row in rows]
    if smoke or found["float32"]["platform"] == "gpu":
        options = {"seconds": 0.1 if smoke else 2.0}
        run = [("plain", 4)] if smoke else [(form, n) for form in FORMS for n in LANES]
        cases = [Case("update", {"form": form, "lanes": n, **options}) for form, n in run]
        timed = measure.by_turns("gpu", cases, rounds, cold=True)
    content = {
        "config": dataclasses.asdict(VPG),
        "assumed": {
            "launch_seconds": h100.LAUNCH_SECONDS,
            "bytes_per_second": h100.BYTES_PER_SECOND,
            "flop_per_second": h100.FLOP_PER_SECOND,
            "instructions_per_second": h100.INSTRUCTIONS_PER_SECOND,
        },
        "difference": found,
        "not_compiled": reason,
        "predicted": [{**one, **predict(one)} for one in programs],
        "rows": timed,
    }
    return {**content, "table": table(content)}


def predict(program: dict[str, Any]) -> dict[str, float]:
    """Seconds of one update, and what they go into."""
    launches = program["kernels"] * h100.LAUNCH_SECONDS
    memory = program["bytes"] / h100.BYTES_PER_SECOND
    arithmetic = program["flop"] / h100.FLOP_PER_SECOND
    arithmetic += program["instructions"] / h100.INSTRUCTIONS_PER_SECOND
    return {
        "launch_seconds": launches,
        "memory_seconds": memory,
        "arithmetic_seconds": arithmetic,
        "steps_per_second": program["lanes"] * STEPS_PER_UPDATE / (launches + memory + arithmetic),
    }


def table(content: dict[str, Any]) -> str:
    """A line for each form and number of lanes."""
    measured = {
        (row["options"]["form"], row["options"]["lanes"]): median(
            one["rate"] for one in row["repetitions"]
        )
        for row in content["rows"]
    }
    predicted = {(one["form"], one["lanes"]): one for one in content["predicted"]}
    lines = []
    for key in sorted({*measured, *predicted}, key=lambda key: (FORMS.index(key[0]), key[1])):
        one, rate = predicted.get(key), measured.get(key)
        lines.append([key[0], f"{key[1]:,}", *(_parts(one) if one else ["not compiled"] * 6),
                      short(rate) if rate else "no GPU here"])  # fmt: skip
    columns = ["form", "lanes", "kernels", "bytes a step", "launches", "memory", "arithmetic",
               "steps/s predicted", "measured"]  # fmt: skip
    note = (
        f" Not compiled for an H100: {content['not_compiled']}." if content["not_compiled"] else ""
    )
    difference = content["difference"]
    apart = " and ".join(f"{one['relative']:.0e} in {name}" for name, one in difference.items())
    return (
        f"{markdown(columns, lines)}\n\nParameters of the two forms after two updates differ by "
        f"{apart} of their norm ({difference['float32']['how']}).{note}"
    )


def _parts(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['kernels']:,.0f}",
        f"{one['bytes'] / one['lanes'] / STEPS_PER_UPDATE:,.0f}",
        *(f"{one[f'{name}_seconds'] * 1e3:.2f} ms" for name in ("launch", "memory", "arithmetic")),
        short(one["steps_per_second"]),
    ]


def draw(content: dict[str, Any], path: Path) -> None:
    """Predicted, and where there is a GPU measured, speed over lanes."""
    figure, (axes,) = measure.figure(6, 3)
    for form, color in zip(FORMS, (measure.GREY, measure.BLUE), strict=True):
        expected = [one for one in content["predicted"] if one["form"] == form]
        axes.plot([one["lanes"] for one in expected], [one["steps_per_second"] for one in expected],
                  "--", color=color, label=f"{form}, predicted for an H100")  # fmt: skip
        rows = [row for row in content["rows"] if row["options"]["form"] == form]
        speeds = [median(one["rate"] for one in row["repetitions"]) for row in rows]
        axes.plot([row["options"]["lanes"] for row in rows], speeds, "o", color=color,
                  label=f"{form}, measured" if rows else None)  # fmt: skip
    axes.axhline(1e9, color=measure.INK, linewidth=1)
    axes.annotate("goal", (LANES[0], 1e9), (0, 4), textcoords="offset points", color=measure.INK)
    axes.margins(y=0.15)
    axes.set(xscale="log", yscale="log", xlabel="lanes", ylabel="environment steps/s")
    axes.legend(frameon=False)
    figure.savefig(path)


def difference(arithmetic: str) -> dict[str, Any]:
    """How far the parameters of the two forms are apart after two updates of 20 steps, 2 lanes.

    Relative to their norm, in the leaf where that is largest.
    """
    measure.start_as_jaxpg()
    import jax
    import numpy as np

    from jaxpg import chunks

    is_gpu = jax.default_backend() == "gpu"
    config = dataclasses.replace(VPG, num_steps=20, arithmetic=arithmetic)
    results = []
    with chunks.word_size(config):
        for form in FORMS:
            os.environ["JAXPG_FORM"] = form
            part = parts.make("update", config, 2)
            traced, state = part.arguments
            for _ in range(2):
                state, _ = part.function(traced, state)
            results.append([np.asarray(x) for x in jax.tree.leaves(state.params)])
    apart = [np.linalg.norm(a - b) / np.linalg.norm(b) for b, a in zip(*results, strict=True)]
    how = f"on {jax.devices()[0].device_kind}" if is_gpu else "the kernels interpreted on a CPU"
    return {"relative": float(max(apart)), "platform": jax.default_backend(), "how": how}


def program(form: str, lanes: int) -> dict[str, float]:
    """What one update does on an H100: kernels, bytes, operations, instructions of our kernels."""
    os.environ["JAXPG_FORM"] = form
    from benchmarks import hlo

    def make() -> tuple[Any, tuple]:
        part = parts.make("update", VPG, lanes, compute=False)
        return part.function, part.arguments

    text, ptx = h100.compile_text(make)
    counts, turns = hlo.count(text), h100.turns(ptx)
    instructions = 0.0
    for name, times in hlo.custom_calls(text).items():  # each goes through all steps, row by row
        rows = int(name.rpartition("_")[2].partition("x")[0])
        instructions += times * turns[name] * lanes * STEPS_PER_UPDATE / rows
    return {
        "kernels": counts.kernels,
        "bytes": counts.bytes,
        "flop": counts.multiply_adds + counts.arithmetic,
        "instructions": instructions,
    }


def update(form: str, lanes: int, seconds: float) -> dict[str, float]:
    """Environment steps a second of `update` on this GPU."""
    os.environ["JAXPG_FORM"] = form
    measure.start_as_jaxpg()
    part = parts.make("update", VPG, lanes)
    rate = measure.rate_of_all_cores(part.function, part.arguments, part.env_steps, seconds)
    memory = part.function.lower(*part.arguments).compile().memory_analysis()
    print(f"{form}, {lanes} lanes: {short(rate)} steps/s", file=sys.stderr)
    return {"rate": rate, "temporary_bytes": memory.temp_size_in_bytes}


SCRIPT = measure.Script(
    name="gpu",
    doc=__doc__ or "",
    rounds=5,
    measures={"difference": difference, "program": program, "update": update},
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
