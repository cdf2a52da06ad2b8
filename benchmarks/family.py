"""How wide is the range of step sizes that works, and how often does a solved seed collapse?

    python -m benchmarks.family [--smoke] [--seeds 160]

The article's two complaints about policy gradients, asked of the members that came after. Trains
seeds 0 … N-1 of each preset, with its own budget, at multiples of its step size (the policy's
learning rate; for TRPO the bound on KL), all else as in the preset. Every cell is written to
benchmarks/results/family-cpu.json as soon as it is done, and a second call goes on after the last.
Then it draws docs/family.png and fills in the table of docs/article.md, with `article-corrected`
beside them, of which benchmarks.article has trained as many.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import trained
from benchmarks.measure import DOCS, command_line, figure, start_as_jaxpg
from benchmarks.record import commits, fill, markdown, read
from jaxpg import words
from jaxpg.analysis.outcomes import trailing_return
from jaxpg.analysis.stats import SOLVED
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS

SEEDS = 160  # in each cell, so 1,120 of each member
MEMBERS = {  # preset -> the field that says how far a step goes
    "vpg": "learning_rate",
    "ppo": "learning_rate",
    "trpo": "max_kl",
    "npg": "learning_rate",
}
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WORKS = 0.95  # share of the seeds that must end solved where a step size works
SOLVED_AT = SOLVED["CartPole-v1"]
OUTCOMES = {  # key -> what it is called, and its colour
    "ends_solved": ("ends solved", "#0b6e99"),
    "slipped": ("solved once, ends below", "#9cc9de"),
    "collapsed": ("solved once, ends below half of its best", "#c2571a"),
    "never": ("never solved", "#d5dae0"),
}
PAGE = DOCS / "article.md"


def main() -> None:
    """Train what is missing, then print, draw and fill in the page."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="in each cell")
    options = parser.parse_args()
    if options.smoke:
        config = dataclasses.replace(PRESETS["vpg"], total_steps=16 * 1024)
        print(table([{"preset": "vpg", "factor": 1.0, **measure(config, 4)}]))
        return
    start_as_jaxpg()
    wanted = [
        ({"preset": preset, "factor": factor}, _stepping(preset, field, factor))
        for preset, field in MEMBERS.items()
        for factor in FACTORS
    ]

    def train(config: Config) -> dict[str, Any]:
        return measure(config, options.seeds)

    rows = trained.rows("family", wanted, train, {"seeds": options.seeds}, table)
    before = of_the_article()
    print(table(before + rows))
    draw(before + rows, DOCS / "family.png")
    record = read("family")
    assert record is not None, "the page is of a CPU's cells"
    PAGE.write_text(fill(PAGE.read_text(), {"family": page_part(before, record)}))


def measure(config: Config, seeds: int) -> dict[str, Any]:
    """Train the seeds, and say what became of them."""
    from jaxpg.runs.python import train_population

    began = time.perf_counter()
    population = train_population(config, range(seeds))
    counted = (np.asarray(population.metrics.episodes), np.asarray(population.metrics.return_sum))
    trailing = np.nan_to_num(trailing_return(*counted), nan=-np.inf)
    diverged = population.frozen_at >= 0
    return {
        **shares(trailing.max(axis=1), np.where(diverged, -np.inf, trailing[:, -1])),
        "diverged": int(diverged.sum()),
        "env_steps": int(np.asarray(population.metrics.env_steps).sum(dtype=np.int64)),
        "seconds": round(time.perf_counter() - began, 1),
    }


def shares(best: np.ndarray, last: np.ndarray) -> dict[str, float]:
    """What became of the seeds, as shares that add up to 1, by the names in OUTCOMES.

    Args:
      best, last: of each seed's average return over 100 episodes, [S].
    """
    ever, solved = best >= SOLVED_AT, last >= SOLVED_AT
    lost = ever & (last < best / 2)
    return {
        "ends_solved": float(solved.mean()),
        "slipped": float((ever & ~solved & ~lost).mean()),
        "collapsed": float(lost.mean()),
        "never": float((~ever).mean()),
    }


def of_the_article() -> list[dict[str, Any]]:
    """The cells of `article-corrected`, from the record of benchmarks.article."""
    name = "article-corrected"
    record = read("article")
    assert record is not None, "benchmarks.article comes before this"
    own = PRESETS[name].learning_rate
    return [
        {
            "preset": name,
            "factor": float(f"{row['learning_rate'] / own:.1g}"),
            "config": row["config"],
            **shares(np.array(row["best"]), np.array(row["last"])),
        }
        for row in record["rows"]
        if row["preset"] == name
    ]


def page_part(before: list[dict[str, Any]], record: dict[str, Any]) -> str:
    """The table, and where it comes from."""
    rows = record["rows"]
    return (
        f"{table(before + rows)}\n\n`{record['command']}`, {commits(record)}, jax "
        f"{record['versions']['jax']}, {record['device']['count']} CPU cores "
        f"({record['processor']}): {record['seeds']} seeds in each cell, "
        f"{len(rows) * record['seeds']:,} in all and "
        f"{sum(row['env_steps'] for row in rows) / 1e6:,.0f} million environment steps; the "
        "first line is of the table above.\n\n"
        "![What became of the seeds at each step size](family.png)"
    )


def table(cells: list[dict[str, Any]]) -> str:
    """A line for each member: the share that ends solved at each step size, and what collapses."""
    factors = sorted({cell["factor"] for cell in cells})
    columns = ["preset", *(f"× {factor:g}" for factor in factors), "works", "collapse"]
    lines = []
    for preset in dict.fromkeys(cell["preset"] for cell in cells):
        mine = {cell["factor"]: cell for cell in cells if cell["preset"] == preset}
        solved = [words.share(mine[x]["ends_solved"]) if x in mine else "" for x in factors]
        lines.append([preset, *solved, _working(mine), _collapse(mine)])
    return markdown(columns, lines)


def _working(cells: dict[float, dict[str, Any]]) -> str:
    """The longest row of step sizes at which nearly all seeds end solved."""
    best: list[float] = []
    row: list[float] = []
    for factor in sorted(cells):
        row = [*row, factor] if cells[factor]["ends_solved"] >= WORKS else []
        best = max(best, row, key=len)
    if not best:
        return "nowhere"
    return f"× {best[0]:g} to × {best[-1]:g}" if len(best) > 1 else f"× {best[0]:g}"


def _collapse(cells: dict[float, dict[str, Any]]) -> str:
    """The share that collapsed of those that ever solved it, at any of the step sizes.

    (The cells have equally many seeds.)
    """
    ever = sum(1.0 - cell["never"] for cell in cells.values())
    lost = sum(cell["collapsed"] for cell in cells.values())
    return words.share(lost / ever) if ever else ""


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """What became of the seeds, a panel for each member and a bar for each step size."""
    presets = list(dict.fromkeys(cell["preset"] for cell in cells))
    made, panels = figure(13, 3.6, len(presets))
    for axes, preset in zip(panels, presets, strict=True):
        field = MEMBERS.get(preset, "learning_rate")
        mine = sorted((c for c in cells if c["preset"] == preset), key=lambda cell: cell["factor"])
        below = np.zeros(len(mine))
        for key, (label, color) in OUTCOMES.items():
            percent = np.array([100 * cell[key] for cell in mine])
            axes.bar(range(len(mine)), percent, 0.8, below, color=color, label=label)
            below += percent
        axes.set_xticks(
            range(len(mine)), [f"{cell['config'][field]:.2g}" for cell in mine], rotation=60
        )
        own = [i for i, cell in enumerate(mine) if cell["factor"] == 1.0]
        for i in own:
            axes.get_xticklabels()[i].set_fontweight("bold")
        axes.set_title(preset, loc="left", fontsize=11)
        axes.set_xlabel(field.replace("_", " "))
        axes.set_ylim(0, 100)
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("% of the seeds")
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper center", ncols=len(OUTCOMES), frameon=False)
    made.savefig(path)


def _stepping(preset: str, field: str, factor: float) -> Config:
    """The preset with so many times its step size."""
    config = PRESETS[preset]
    return dataclasses.replace(config, **{field: factor * getattr(config, field)})


if __name__ == "__main__":
    main()
