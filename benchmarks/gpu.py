"""How fast do `vpg` and `ppo` train on a GPU? Measured where there is one, else predicted.

    python -m benchmarks.gpu [--smoke] [--rounds 5]

In both forms that a GPU can be given (jaxpg/fast/backend.py): `plain`, one vmap over all lanes, of
which XLA makes the kernels; and `fused`, in which the rollout, the networks and their gradients are
kernels of our own. First the two are compared: if parameters after two updates differ by more than
rounding, nothing is timed. Then, by turns in one process, the textbook's `jit(vmap(train))`
(benchmarks/baselines) and both forms of what `jaxpg train` runs; and last whole trainings of `vpg`.

A prediction takes the program as XLA compiles it for an H100 (benchmarks/h100.py, which needs jax's
CUDA plugin and no GPU). An update takes

    kernels × launch + bytes / bandwidth + operations / arithmetic

one after the other, though a GPU does some of it at the same time. Operations are those in XLA's
kernels, and the instructions in the loops of ours (cold branches too). Nothing is known of waiting
for memory, so this is a prediction of the order, not of the digit.
"""

import dataclasses
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import contenders, h100, measure, parts
from benchmarks.contenders import VPG
from benchmarks.measure import Case
from benchmarks.record import markdown, read
from jaxpg import words
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS
from jaxpg.words import short

LANES = {"vpg": (256, 1024, 4096, 16_384), "ppo": (1024, 4096)}
SMOKE = {"vpg": (256,)}
FORMS = ("plain", "fused")
TEXTBOOK = "textbook"
UPDATES = 16  # of a call that is timed
TRAINED = 4096  # seeds that are trained to the end
MOST = {  # by which parameters of the forms may differ
    "float64": 1e-10,
    "float32": 1e-3,
    "float32_grid": 0.0,
}


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Compare the forms; time and train on a GPU (the smoke: anywhere), predict without one."""
    found = measure.in_process("gpu", Case("difference", {}))
    for arithmetic, most in MOST.items():
        if not found[arithmetic] <= most:
            raise SystemExit(f"gpu: the forms differ by {found[arithmetic]:.1e} in {arithmetic}")
    is_measured = smoke or found["platform"] == "gpu"
    reason = "measured instead" if is_measured and not smoke else h100.missing()
    programs, speeds, trainings = [], [], []
    if not reason:
        cases = [
            Case("program", {"preset": preset, "form": form, "lanes": n})
            for preset, sizes in (SMOKE if smoke else LANES).items()
            for form in FORMS
            for n in sizes
        ]
        rows = measure.by_turns("gpu", cases, 1, cold=False)
        programs = [{**row["options"], **row["repetitions"][0]} for row in rows]
    if is_measured:
        forms, lanes = (FORMS[:1], {"vpg": [4]}) if smoke else (FORMS, LANES)
        options = {"forms": forms, "lanes": lanes, "rounds": rounds, "seconds": 0.3}
        speeds = measure.in_process("gpu", Case("speeds", options))["rows"]
    if is_measured and not smoke:
        cases = [Case("training", {"form": form, "seeds": TRAINED}) for form in FORMS]
        trainings = measure.by_turns("gpu", cases, 1, cold=False)
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
        "rows": speeds,
        "trainings": [{**row["options"], **row["repetitions"][0]} for row in trainings],
    }
    return {**content, "table": table(content)}


def predict(program: dict[str, Any]) -> dict[str, float]:
    """Seconds of one update, and what they go into."""
    launches = program["kernels"] * h100.LAUNCH_SECONDS
    memory = program["bytes"] / h100.BYTES_PER_SECOND
    arithmetic = program["flop"] / h100.FLOP_PER_SECOND
    arithmetic += program["instructions"] / h100.INSTRUCTIONS_PER_SECOND
    steps = program["lanes"] * PRESETS[program["preset"]].update_cost
    return {
        "launch_seconds": launches,
        "memory_seconds": memory,
        "arithmetic_seconds": arithmetic,
        "steps_per_second": steps / (launches + memory + arithmetic),
    }


def table(content: dict[str, Any]) -> str:
    """A line for each preset, form and number of lanes; what whole trainings took."""
    measured = {key_of(row): median(row["steps_per_second"]) for row in content["rows"]}
    predicted = {key_of(one): one for one in content["predicted"]}
    lines = []
    for case in sorted({*measured, *predicted}, key=_order):
        preset, form, lanes = case
        one, rate = predicted.get(case), measured.get(case)
        plain = measured.get((preset, TEXTBOOK, lanes))
        lines.append(
            [preset, form, f"{lanes:,}"]
            + ([short(rate), f"{rate / plain:.1f} x" if plain else ""] if rate else [])
            + (_parts(one) if one else [])
        )
    columns = ["preset", "form", "lanes"]
    columns += ["steps/s", "to the textbook"] if measured else []
    columns += ["kernels", "bytes a step", "launches", "memory", "arithmetic",
                "steps/s predicted"] if predicted else []  # fmt: skip
    text = markdown(columns, lines)
    for one in content["trainings"]:
        text += (
            f"\n\n`jaxpg train vpg --seeds {one['seeds']} --lanes {one['seeds']}` in the form "
            f"`{one['form']}`: "
            f"{one['wall_seconds']:.1f} s, compiling ({one['compile_seconds']:.0f} s) aside; "
            f"{words.share(one['solved'])} of the seeds solve the task."
        )
    difference = content["difference"]
    apart = ", ".join(f"{difference[name]:.0e} in {name}" for name in MOST)
    text += (
        f"\n\nParameters of the two forms after two updates differ by {apart} of their norm "
        f"({difference['how']})."
    )
    return text + (f" Not predicted: {content['not_compiled']}." if content["not_compiled"] else "")


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    """What a row is of: a preset, a form, so many lanes."""
    return row["preset"], row["form"], row["lanes"]


def _order(case: tuple[str, str, int]) -> tuple[int, int, int]:
    preset, form, lanes = case
    return (list(LANES).index(preset), [TEXTBOOK, *FORMS].index(form), lanes)


def _parts(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['kernels']:,.0f}",
        f"{one['bytes'] / one['lanes'] / PRESETS[one['preset']].update_cost:,.0f}",
        *(f"{one[f'{name}_seconds'] * 1e3:.2f} ms" for name in ("launch", "memory", "arithmetic")),
        short(one["steps_per_second"]),
    ]


def draw(content: dict[str, Any], path: Path) -> None:
    """Predicted and measured speed of `vpg` over lanes; what this run has not is of the record."""
    predicted, measured = (
        content[what] or (read("gpu", platform) or {}).get(what, [])
        for what, platform in (("predicted", "cpu"), ("rows", "gpu"))
    )
    figure, (axes,) = measure.figure(9, 3)
    colors = (measure.INK, measure.GREY, measure.BLUE)
    for form, color in zip((TEXTBOOK, *FORMS), colors, strict=True):
        expected = [one for one in predicted if key_of(one)[:2] == ("vpg", form)]
        if expected:
            axes.plot([one["lanes"] for one in expected],
                      [one["steps_per_second"] for one in expected],
                      "--", color=color, label=f"{form}, predicted for an H100")  # fmt: skip
        rows = [row for row in measured if key_of(row)[:2] == ("vpg", form)]
        if rows:
            speeds = [median(row["steps_per_second"]) for row in rows]
            axes.plot([row["lanes"] for row in rows], speeds, "o-", color=color, label=form)
    axes.margins(y=0.15)
    axes.set(xscale="log", yscale="log", xlabel="lanes", ylabel="environment steps/s")
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path)


def difference() -> dict[str, Any]:
    """How far the parameters of the two forms are apart after two updates of 20 steps, by dtype.

    Relative to their norm, in the leaf where that is largest.
    """
    measure.start_as_jaxpg()
    import jax
    import numpy as np

    from jaxpg.population import chunks

    is_gpu = jax.default_backend() == "gpu"
    how = f"on {jax.devices()[0].device_kind}" if is_gpu else "the kernels interpreted on a CPU"
    found: dict[str, Any] = {"platform": jax.default_backend(), "how": how}
    for arithmetic in MOST:
        config = dataclasses.replace(VPG, num_steps=20, arithmetic=arithmetic)
        results = []
        with chunks.own_jax(config):
            for form in FORMS:
                os.environ["JAXPG_FORM"] = form
                part = parts.make("update", config, 16 if is_gpu else 2)
                traced, state = part.arguments
                for _ in range(2):
                    state, _ = part.function(traced, state)
                results.append([np.asarray(x) for x in jax.tree.leaves(state.params)])
        apart = [np.linalg.norm(a - b) / np.linalg.norm(b) for b, a in zip(*results, strict=True)]
        found[arithmetic] = float(max(apart))
        print(f"{arithmetic}: {found[arithmetic]:.1e}", file=sys.stderr, flush=True)
    return found


def program(preset: str, form: str, lanes: int) -> dict[str, float]:
    """What one update does on an H100: kernels, bytes, operations, instructions of our kernels."""
    config = PRESETS[preset]
    os.environ["JAXPG_FORM"] = form
    from benchmarks import hlo

    def make() -> tuple[Any, tuple]:
        part = parts.make("update", config, lanes, compute=False)
        return part.function, part.arguments

    text, ptx = h100.compile_text(make)
    counts, turns = hlo.count(text), h100.turns(ptx)
    instructions = 0.0
    for name, times in hlo.custom_calls(text).items():  # each goes through all steps, row by row
        rows = int(name.rpartition("_")[2].partition("x")[0])
        instructions += times * turns[name] * lanes * config.update_cost / rows
    return {
        "kernels": counts.kernels,
        "bytes": counts.bytes,
        "flop": counts.multiply_adds + counts.arithmetic,
        "instructions": instructions,
    }


def speeds(
    forms: list[str], lanes: dict[str, list[int]], rounds: int, seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """Environment steps a second of the textbook and of the forms, by turns in this process."""
    measure.start_as_jaxpg()
    rows: list[dict[str, Any]] = []
    calls = []
    for preset, sizes in lanes.items():
        for number, form in itertools.product(sizes, (TEXTBOOK, *forms)):
            began = time.perf_counter()
            make = _textbook if form == TEXTBOOK else functools.partial(_jaxpg, form)
            call, memory_bytes = make(PRESETS[preset], number)
            call()  # the first one allocates
            row = {"preset": preset, "form": form, "lanes": number}
            row["compile_seconds"] = time.perf_counter() - began
            rows.append({**row, "program_bytes": memory_bytes, "steps_per_second": []})
            calls.append(call)
    for i in range(rounds):
        for one, call in zip(rows, calls, strict=True):
            done, began = 0, time.perf_counter()
            while not done or time.perf_counter() - began < seconds:
                call()
                done += one["lanes"] * PRESETS[one["preset"]].update_cost * UPDATES
            one["steps_per_second"].append(done / (time.perf_counter() - began))
            last = f"{key_of(one)}: {short(one['steps_per_second'][-1])} steps/s"
            print(f"round {i + 1} of {rounds}, {last}", file=sys.stderr, flush=True)
    return {"rows": rows}


def _textbook(config: Config, seeds: int) -> tuple[Callable[[], Any], int]:
    """A call that trains so many seeds for UPDATES, and the bytes that it takes."""
    import jax

    from benchmarks.baselines import textbook, textbook_ppo
    from jaxpg.population import memory

    keys = jax.random.split(jax.random.key(0), seeds)
    page = textbook_ppo if config.fit == "ppo" else textbook
    config = dataclasses.replace(config, total_steps=UPDATES * config.update_cost)
    train = jax.vmap(page.make_train(config))
    compiled = jax.jit(train).lower(keys).compile()
    return lambda: jax.block_until_ready(compiled(keys)), memory.of_program(compiled)


def _jaxpg(form: str, config: Config, lanes: int) -> tuple[Callable[[], Any], int]:
    """The same of what `jaxpg train` runs, which goes on where the last call has ended."""
    from jaxpg.population import chunks, memory, population

    os.environ["JAXPG_FORM"] = form
    (chunk,) = population.make_chunks(config, range(lanes), [{}], lanes)
    (program,) = chunks.compile_programs(chunk, UPDATES, 1)
    endless = chunks.advance(program, chunk, sys.maxsize, None)
    return lambda: next(endless), memory.of_program(program.advance)


def training(form: str, seeds: int) -> dict[str, Any]:
    """A whole `jaxpg train vpg` of so many seeds, all of them at once."""
    os.environ["JAXPG_FORM"] = form
    return contenders.jaxpg(seeds, VPG.num_updates, "--lanes", str(seeds))


SCRIPT = measure.Script(
    name="gpu",
    doc=__doc__ or "",
    rounds=5,
    measures={
        "difference": difference,
        "program": program,
        "speeds": speeds,
        "training": training,
    },
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
