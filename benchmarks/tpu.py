"""What does `jaxpg train` take on a TPU, and with how many lanes? Compiled for one, not run on one.

    pip install --no-deps --target tpu LIBTPU
    PYTHONPATH=tpu python -m benchmarks.tpu [--smoke]

XLA compiles for a TPU that is only described, if it finds Google's libtpu. LIBTPU is what the extra
`tpu` of jax asks for, libtpu==0.0.42.* beside jax 0.10.2. It is put into a folder of its own, since
a jax that sees it looks for a TPU at every start.

Every preset's program, the one that a worker runs, is compiled for each kind of chip. The compiler
says what memory it takes, and of each kernel the cycles that it expects; a loop's are counted as
often as it runs. That is its own estimate, by which it chooses how to compute, and no measurement:
it says which number of lanes makes a step cheap, not how long a step takes. A row is written as
soon as it is there, and a second call goes on after the last.
"""

import dataclasses
import os
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import hlo, measure, trained
from benchmarks.measure import Case
from benchmarks.record import markdown
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS
from jaxpg.population.population import LANES


class Chip(NamedTuple):
    """A kind of TPU."""

    topology: str  # as jax calls four of them
    memory: int  # bytes of one


CHIPS = {"v5e": Chip("v5e:2x2", 16 * 2**30), "v6e": Chip("v6e:2x2", 32 * 2**30)}
TRIED = {"vpg": (128, 256, 512, 1024), "ppo": (256, 512, 1024)}  # numbers of lanes
ON = "v5e"  # the chip for which they are tried
ENOUGH = 1.1  # cycles of a step, to those with the best number of lanes
ROW = ("preset", "chip", "lanes")  # by which a row is known
SLOW = ("gather", "scatter", "sort")  # what a TPU has no unit for
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def missing() -> str | None:
    """Why nothing can be compiled for one here, in a line; or None."""
    return None if find_spec("libtpu") else "libtpu is not installed; benchmarks/tpu.py says how"


def compare(smoke: bool, rounds: int) -> dict[str, Any]:
    """Compile every preset for every chip, and some with more lanes and fewer."""
    reason = missing()
    if reason and not smoke:
        raise SystemExit(f"tpu: {reason}")
    asked = [(preset, ON, lanes) for preset, sizes in TRIED.items() for lanes in sizes]
    asked += [(preset, chip, LANES["tpu"]) for chip in CHIPS for preset in PRESETS]
    wanted = [(dict(zip(ROW, one, strict=True)), PRESETS[one[0]]) for one in dict.fromkeys(asked)]
    common = {"lanes": LANES["tpu"], "libtpu": None if reason else version("libtpu")}
    if smoke:
        first = [] if reason else wanted[:1]
        rows = [{**labels, **compile_one(config, **labels)} for labels, config in first]
    else:
        rows = trained.rows("tpu", wanted, compile_one, common, table, ROW)
    return {**common, "rows": rows, "table": table(rows)}


def compile_one(_: Config, **labels: Any) -> dict[str, Any]:
    """`program` of what a row is known by, in a process of its own."""
    return measure.in_process("tpu", Case("program", labels))


def table(found: list[dict[str, Any]]) -> str:
    """A line for each preset, with as many lanes as it gets; a line for each number of lanes."""
    rows, usual = {tuple(row[name] for name in ROW): row for row in found}, LANES["tpu"]
    lines = []
    for preset in PRESETS:
        of_chips = [rows.get((preset, chip, usual)) for chip in CHIPS]
        slow = next((row["slow"] for row in of_chips if row), {})
        said = ", ".join(f"{number} × {name}" for name, number in slow.items() if number)
        lines.append([f"`{preset}`", *map(_memory, of_chips), said])
    kinds = [f"{name}, of {chip.memory / 2**30:.0f} GiB" for name, chip in CHIPS.items()]
    presets = markdown([f"{usual} lanes", *kinds, "in its program"], lines)
    lines = []
    for number in sorted({number for sizes in TRIED.values() for number in sizes}):
        of_presets = [rows.get((preset, ON, number)) for preset in TRIED]
        cells = [cell for row in of_presets for cell in (_cycles(row), _memory(row))]
        lines.append([f"{number:,}", *cells])
    columns = [f"`{preset}`: {what}" for preset in TRIED for what in ("cycles a step", "memory")]
    return f"{presets}\n\n{markdown([f'lanes, {ON}', *columns], lines)}"


def enough(rows: list[dict[str, Any]]) -> int:
    """The fewest lanes with which a step of each tried preset takes hardly more than at best."""
    good = []
    for preset in TRIED:
        of_it = [row for row in rows if row["preset"] == preset and row["chip"] == ON]
        most = ENOUGH * min(map(_of_a_step, of_it))
        good.append({row["lanes"] for row in of_it if _of_a_step(row) <= most})
    return min(set.intersection(*good))


def _of_a_step(row: dict[str, Any]) -> float:
    """Cycles that the compiler expects an environment step to take, of all that is done for it."""
    return row["cycles"] / row["lanes"] / PRESETS[row["preset"]].update_cost


def _cycles(row: dict[str, Any] | None) -> str:
    return f"{_of_a_step(row):.0f}" if row else ""


def _memory(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    fits = row["program_bytes"] is not None
    return f"{row['program_bytes'] / 2**20:,.0f} MiB" if fits else "does not fit"


def draw(content: dict[str, Any], path: Path) -> None:
    """Cycles of a step over lanes."""
    figure, (axes,) = measure.figure(4.5, 2.8)
    for preset, color in zip(TRIED, (measure.BLUE, measure.INK), strict=True):
        rows = [row for row in content["rows"] if row["preset"] == preset and row["chip"] == ON]
        rows.sort(key=lambda row: row["lanes"])
        costs = [_of_a_step(row) for row in rows]
        axes.plot([row["lanes"] for row in rows], costs, "o-", color=color, label=preset)
    axes.set_xscale("symlog", base=2, linthresh=64)  # "log" fails where nothing was compiled
    sizes = sorted({number for tried in TRIED.values() for number in tried})
    axes.set_xticks(sizes, [f"{number:,}" for number in sizes])
    axes.set_ylim(0)
    axes.set(xlabel="lanes", ylabel="cycles a step, estimated")
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path)


def program(preset: str, chip: str, lanes: int, arithmetic: str = "float32") -> dict[str, Any]:
    """What a worker's program takes on a chip: bytes, slow operations, cycles of an update; None
    of one that does not fit."""
    from jaxpg.errors import DoesNotFit

    try:
        start, advance = compiled(preset, chip, lanes, arithmetic)
    except DoesNotFit:
        return {"start_bytes": None, "program_bytes": None, "slow": {}, "cycles": None}
    from jaxpg.population import memory

    text = advance.as_text()
    kinds = re.findall(rf" ({'|'.join(SLOW)})\(", text)
    return {
        "start_bytes": memory.of_program(start),
        "program_bytes": memory.of_program(advance),
        "slow": {name: kinds.count(name) for name in SLOW},
        "cycles": cycles(text),
    }


def compiled(preset: str, chip: str, lanes: int, arithmetic: str = "float32") -> tuple[Any, Any]:
    """`start` and `advance` of a worker that is such a chip; to be called before jax is used."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is nobody to ask about a TPU
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nor one that two processes may not share
    os.environ["JAXPG_FORM"] = "plain"  # what jaxpg takes where there is one
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # what is no program comes here
    from jaxpg.population import chunks, devices
    from jaxpg.runs import planning

    described = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology)
    config = dataclasses.replace(PRESETS[preset], arithmetic=arithmetic)
    planned = planning.plan(preset, config, range(lanes), lanes)
    with mock.patch.object(devices, "workers", return_value=described.devices[:1]):
        (worker,) = chunks.compile_programs(planning.make_chunks(planned)[0], planned.segment)
    return worker.start, worker.advance


def cycles(text: str) -> float:
    """What the compiler expects an update to take; a loop whose end it does not know counts once.

    Args:
      text: of the optimized `advance`, a loop over as many updates as it is told.
    """
    found = list(hlo.parsed(text))
    computations = {name: lines for name, _, lines in found}
    (entry,) = (lines for _, is_entry, lines in found if is_entry)

    def of(name: str) -> float:
        total = 0.0
        for one in computations[name]:
            expected = CYCLES.search(one.line)
            total += int(expected[1]) if expected else 0
            if one.op == "while":
                turns = _turns(computations[_called(one, "condition")])
                total += turns * of(_called(one, "body"))
        return total

    (updates,) = (one for one in entry if one.op == "while")
    return of(_called(updates, "body"))


def _turns(condition: list[hlo.Instruction]) -> int:
    """How often a loop runs that counts from 0 to a constant; 1 for others."""
    ends = [re.match(r"constant\((\d+)\)", one.line) for one in condition if one.op == "constant"]
    counts = any("direction=LT" in one.line for one in condition if one.op == "compare")
    return int(ends[0][1]) if len(ends) == 1 and ends[0] and counts else 1


def _called(loop: hlo.Instruction, what: str) -> str:
    found = re.search(rf"\b{what}=%([\w.\-]+)", loop.line)
    assert found is not None, loop.line
    return found[1]


SCRIPT = measure.Script(
    name="tpu",
    doc=__doc__ or "",
    rounds=1,
    measures={"program": program},
    compare=compare,
    draw=draw,
)

if __name__ == "__main__":
    measure.run(SCRIPT)
