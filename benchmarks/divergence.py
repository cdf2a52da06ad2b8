"""How long do two runs from one integer stay together, and what parts them?

    python -m benchmarks.divergence [--presets vpg …] [--seeds 2] [--updates 64] [--smoke]

For plain float32, plain float64 and the float32 grid: jaxpg beside torch_ref, and jaxpg beside
itself with XLA held to the instructions of another processor. Writes
benchmarks/results/divergence-cpu.json and docs/divergence.png (of the first preset), and prints a
table. Updates are counted from 0.
"""

import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import command_line
from benchmarks.record import markdown, write
from jaxpg.core.presets import PRESETS, preset
from jaxpg.proof.lockstep import Job, Record, traced

ARITHMETIC = ("float32", "float64", "float32_grid")
ISA = "SSE4_2"  # the lowest that XLA knows: no fused multiply-add, 2 float64 at a time
PAIRINGS: dict[str, dict[str, Any]] = {
    "jaxpg and torch_ref": {},
    f"jaxpg and jaxpg on {ISA}": {
        "packages": ("jaxpg", "jaxpg"),
        "environments": ({}, {"XLA_FLAGS": f"--xla_cpu_max_isa={ISA}"}),
    },
}
APART = 1e-3  # relative parameter difference at which two runs are no longer one
PICTURE = Path(__file__).parents[1] / "docs" / "divergence.png"


class Pair(NamedTuple):
    """Two runs of one seed."""

    preset: str
    arithmetic: str
    pairing: str
    seed: int
    first_action: int | None  # the first update in which any action differs; None: none does
    apart: int | None  # the first after which parameters differ by more than APART
    difference: list[float]  # ||params - params'|| / ||params'|| after each update


def main() -> None:
    """Measure, print, write and draw."""
    parser = command_line(__doc__)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=64)
    options = parser.parse_args()
    if options.smoke:
        options.presets, options.seeds, options.updates = ["vpg"], 1, 2
    pairs = []
    for pairing in PAIRINGS:
        for pair in _measure(pairing, options.presets, options.seeds, options.updates):
            pairs.append(pair)
    print(table := _table(pairs, options.updates))
    if not options.smoke:
        measured = {"torch": version("torch"), "updates": options.updates, "isa": ISA}
        content = {**measured, "table": table}
        write("divergence", {**content, "pairs": [pair._asdict() for pair in pairs]})
        draw([pair for pair in pairs if pair.preset == options.presets[0]])


def _measure(pairing: str, presets: list[str], seeds: int, updates: int) -> Iterator[Pair]:
    """Every preset, arithmetic and seed by one pair of processes."""
    jobs = {
        (name, arithmetic): Job(
            dataclasses.replace(preset(name), arithmetic=arithmetic), list(range(seeds)), updates
        )
        for name in presets
        for arithmetic in ARITHMETIC
    }
    with traced(list(jobs.values()), **PAIRINGS[pairing]) as (ours, theirs):
        for name, arithmetic in jobs:
            for seed in range(seeds):
                compared = [_compare(a, b) for a, b in zip(ours(seed), theirs(seed), strict=True)]
                actions, differences = zip(*compared, strict=True)
                yield Pair(
                    name,
                    arithmetic,
                    pairing,
                    seed,
                    _first(actions),
                    _first([difference > APART for difference in differences]),
                    list(differences),
                )


def _compare(a: Record, b: Record) -> tuple[bool, float]:
    """Whether an action differs, and by how much the parameters do."""
    names = [name for name in a if name.startswith("params:")]
    difference, norm = (
        np.sqrt(sum(np.sum(np.square(x, dtype=float)) for x in tensors))
        for tensors in ([a[n].astype(float) - b[n] for n in names], [b[n] for n in names])
    )
    return not np.array_equal(a["action"], b["action"]), float(difference / norm)


def _first(flags: Any) -> int | None:
    return next((i for i, flag in enumerate(flags) if flag), None)


def _table(pairs: list[Pair], updates: int) -> str:
    """The range over seeds for each preset, arithmetic and pairing."""
    lines = []
    for key in dict.fromkeys((p.preset, p.arithmetic, p.pairing) for p in pairs):
        mine = [p for p in pairs if (p.preset, p.arithmetic, p.pairing) == key]
        lines.append(
            [
                *key,
                str(len(mine)),
                _range([p.first_action for p in mine], updates),
                _range([p.apart for p in mine], updates),
                f"{max(max(p.difference) for p in mine):.0e}"
                if any(max(p.difference) for p in mine)
                else "0 (bits)",
            ]
        )
    columns = ["preset", "arithmetic", "runs", "seeds", "first update with another action",
               f"parameters {APART:g} apart after update", "largest difference"]  # fmt: skip
    return markdown(columns, lines)


def _range(values: list[int | None], updates: int) -> str:
    """'3 to 9', or that it did not happen within the updates."""
    happened = sorted(value for value in values if value is not None)
    never = f"not in {updates}"
    if not happened:
        return never
    shown = f"{happened[0]} to {happened[-1]}" if happened[0] < happened[-1] else f"{happened[0]}"
    return shown if len(happened) == len(values) else f"{shown}, or {never}"


def draw(pairs: list[Pair]) -> None:
    """Relative parameter difference against update, a line for each run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    colors = {"float32": "tab:orange", "float64": "tab:blue"}
    styles = dict(zip(PAIRINGS, ("-", "--"), strict=True))
    for pair in pairs:
        if not any(pair.difference):
            continue
        label = f"{pair.arithmetic}, {pair.pairing}" if pair.seed == 0 else None
        y = [difference or np.nan for difference in pair.difference]
        style = {"color": colors.get(pair.arithmetic, "tab:red"), "ls": styles[pair.pairing]}
        axes.plot(range(len(y)), y, lw=1.2, alpha=0.8, label=label, **style)
    equal = [p for p in pairs if p.arithmetic == "float32_grid" and not any(p.difference)]
    if equal:
        of = sum(p.arithmetic == "float32_grid" for p in pairs)
        note = f"float32 grid: exactly 0 at every update in {len(equal)} of {of} pairs of runs"
        axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", fontsize=9)
    axes.set(yscale="log", xlabel="update", ylabel="relative difference of the parameters")
    axes.set_title(f"{pairs[0].preset}: two runs from the same integer", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
