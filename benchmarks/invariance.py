"""Does a seed's result depend on the seeds beside it, in a textbook's loop and in jaxpg?

    python -m benchmarks.invariance [--smoke]

Puts benchmarks/baselines/textbook.py, under `jit(vmap(train))`, and `train_population` through
`jaxpg.proof.invariance`, with the preset `vpg`. Writes benchmarks/results/invariance-cpu.json and
docs/invariance.png.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import vpg
from benchmarks.measure import DOCS, command_line, figure, start_as_jaxpg
from benchmarks.record import markdown, write
from jaxpg.proof.invariance import Arrangement, invariance

SEEDS, UPDATES = 26, 300
NAMES = {"textbook": "textbook `jit(vmap(train))`", "jaxpg": "`jaxpg.train_population`"}


def main() -> None:
    """Measure, print, write and draw."""
    smoke = command_line(__doc__).parse_args().smoke
    start_as_jaxpg()
    seeds, updates = (4, 3) if smoke else (SEEDS, UPDATES)
    loops = {"textbook": _textbook, "jaxpg": _jaxpg}
    found = {
        name: invariance(make(updates), range(seeds)).arrangements for name, make in loops.items()
    }
    rows = [
        {"loop": name, **one._asdict(), "parted": one.parted.tolist()}
        for name, arrangements in found.items()
        for one in arrangements
    ]
    print(table(found))
    if not smoke:
        content = {"updates": updates, "table": table(found), "rows": rows}
        write("invariance", content)
        draw(found["textbook"], updates, DOCS / "invariance.png")


def _textbook(updates: int) -> Any:
    """seeds -> what its loop returns of every update."""
    import jax

    from benchmarks.baselines.textbook import make_train

    train = jax.jit(jax.vmap(make_train(vpg(updates))))

    def run(seeds: Sequence[int]) -> dict[str, Any]:
        _, episodes, return_sum = train(jax.vmap(jax.random.key)(np.array(seeds)))
        return {"episodes": episodes, "return_sum": return_sum}

    return run


def _jaxpg(updates: int) -> Any:
    """The same of the population's rows: all their metrics."""
    from jaxpg.runs.python import train_population

    def run(seeds: Sequence[int]) -> dict[str, Any]:
        return train_population(vpg(updates), seeds, lanes=16).metrics.named()

    return run


def table(found: dict[str, tuple[Arrangement, ...]]) -> str:
    """A line for each loop and arrangement."""
    columns = ["", "the same seeds", "differ", "from update", "by, at most"]
    lines = []
    for name, arrangements in found.items():
        for one in arrangements:
            began = one.parted[one.parted >= 0]
            first = f"{began.min()} to {began.max()}" if one.differ else ""
            by = f"{one.difference:.0%} of the largest return" if one.differ else ""
            differ = f"{one.differ} of {len(one.seeds)}" if one.differ else "none"
            lines.append([NAMES[name], one.name, differ, first, by])
    return markdown(columns, lines)


def draw(arrangements: Sequence[Arrangement], updates: int, path: Path) -> None:
    """The share of seeds that are not what they were, over training."""
    made, (axes,) = figure(8, 3.4)
    at = np.arange(updates + 1)
    lines: dict[tuple[float, ...], list[str]] = {}  # those that are one have one label
    for one in arrangements:
        parted = np.where(one.parted < 0, updates + 1, one.parted)
        share = tuple(100 * float((parted < update).mean()) for update in at)
        lines.setdefault(share, []).append(one.name)
    for share, names in lines.items():
        axes.step(at, share, where="post", label=", ".join(names), lw=1.6)
    axes.set(xlabel="update", ylabel="% of seeds with other returns", ylim=(-3, 103))
    axes.set_title("jit(vmap(train)), the same seeds once more:", loc="left")
    axes.legend(frameon=False, loc="center right")
    made.savefig(path)


if __name__ == "__main__":
    main()
