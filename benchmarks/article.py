"""What does the article's script learn, literally and corrected, and at which learning rates?

    python -m benchmarks.article [--smoke] [--seeds N] [--lanes L]

Trains seeds 0 … N-1 of each `article*` preset at several learning rates of the policy, with the
rest as in the preset. Every rate is written to benchmarks/results/article-cpu.json as soon as
it is done, and a second call goes on after the last. Then it draws docs/article-rates.png and
docs/article-curves.png, and fills in the figures of docs/article.md.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import trained
from benchmarks.measure import command_line
from benchmarks.record import commits, fill, markdown, read
from jaxpg import words
from jaxpg.analysis.stats import SOLVED
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS

SEEDS = 256  # per preset and rate: 1,024 of `article` and of `article-corrected`
RATES = {
    "article": (1e-7, 3e-7, 1e-6, 3e-6),
    "article-text": (2e-7,),
    "article-corrected": (3e-5, 1e-4, 3e-4, 1e-3),
}
WINDOW = 100  # episodes that the article averages over
SOLVED_AT = SOLVED["CartPole-v1"]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "article.md"
INK, ACCENT, MUTED, SECOND = "#1f2933", "#0b6e99", "#7b8794", "#c2571a"
COLUMNS = [
    "preset",
    "learning rate",
    "best average: median (5–95 %)",
    "last average: median (5–95 %)",
    "ever solved",
    "collapsed",
]


def main() -> None:
    """Train what is missing, then print, draw and fill in the page."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="per preset and rate")
    parser.add_argument("--lanes", type=int, default=128, help="seeds that a core trains at once")
    options = parser.parse_args()
    if options.smoke:
        config = dataclasses.replace(PRESETS["article"], total_episodes=120)
        print(_table([{"preset": "article", **measure(config, 4, lanes=2)}]))
        return
    wanted = [
        ({"preset": name}, dataclasses.replace(PRESETS[name], learning_rate=rate))
        for name, rates in RATES.items()
        for rate in rates
    ]

    def train(config: Config) -> dict[str, Any]:
        return measure(config, options.seeds, options.lanes)

    common = {"seeds": options.seeds, "lanes": options.lanes}
    cells = trained.rows("article", wanted, train, common, _table)
    print(_table(cells))
    draw_rates(cells, DOCS / "article-rates.png")
    draw_curves(cells, DOCS / "article-curves.png")
    record = read("article")
    assert record is not None, "the page is of a CPU's cells"
    fill_page(PAGE, record)


def measure(config: Config, seeds: int, lanes: int) -> dict[str, Any]:
    """Train the seeds and say what became of their 100-episode averages.

    Args:
      config: one episode per update.
      seeds: how many, from 0.
      lanes: seeds that are trained at once.
    """
    from jaxpg.fast.blocks import STEPS
    from jaxpg.runs.python import train_population

    began = time.perf_counter()
    population = train_population(config, range(seeds), lanes=lanes, segments=20)
    returns = population.metrics.return_sum.astype(np.float64)  # [S, episodes]
    sums = np.cumsum(np.pad(returns, ((0, 0), (1, 0))), axis=1)
    average = (sums[:, WINDOW:] - sums[:, :-WINDOW]) / WINDOW
    best, last = average.max(axis=1), average[:, -1]
    solved = best >= SOLVED_AT
    points = np.linspace(0, average.shape[1] - 1, 80).astype(int)
    length = population.metrics.env_steps
    longest = np.concatenate(
        [
            np.broadcast_to(part.max(axis=0), part.shape)
            for part in np.split(length, range(lanes, seeds, lanes))
        ]
    )
    return {
        "learning_rate": config.learning_rate,
        "best": np.round(best, 1).tolist(),
        "last": np.round(last, 1).tolist(),
        "solved": float(solved.mean()),
        "collapsed": float((last < best / 2).mean()),
        "solved_then_collapsed": float((last < best / 2)[solved].mean()) if solved.any() else None,
        "curve_episodes": (points + WINDOW).tolist(),
        "curve": np.round(np.quantile(average[:, points], QUANTILES, axis=0), 1).tolist(),
        "env_steps": int(length.sum(dtype=np.int64)),
        "useful_if_padded": float(length.mean() / 500),
        "useful_rollout": float(length.sum() / longest.sum()),
        "useful_gradient": float(length.sum() / (-(-length // STEPS) * STEPS).sum()),
        "diverged": int((population.frozen_at >= 0).sum()),
        "seconds": round(time.perf_counter() - began, 1),
    }


def draw_rates(cells: list[dict[str, Any]], path: Path) -> None:
    """Best and last 100-episode average of every seed against the learning rate."""
    figure, panels = _panels()
    for axes, (name, rates) in zip(panels, RATES.items(), strict=True):
        for i, rate in enumerate(rates):
            cell = _cell(cells, name, rate)
            for offset, kind, color in ((-0.17, "best", ACCENT), (0.17, "last", SECOND)):
                scores = np.sort(cell[kind])
                spread = np.linspace(-0.13, 0.13, len(scores))
                jitter = np.random.default_rng(0).permutation(spread)
                axes.plot(i + offset + jitter, scores, ".", ms=3, color=color, alpha=0.4, mew=0)
                median = np.median(scores)
                ends = (i + offset - 0.15, i + offset + 0.15)
                axes.plot(ends, (median, median), color=color, lw=2.5, label=kind if not i else "")
        own = PRESETS[name].learning_rate
        labels = [f"{rate:g}" + ("\n(preset)" if rate == own else "") for rate in rates]
        axes.set_xticks(range(len(rates)), labels)
        middle = (len(rates) - 1) / 2
        axes.set_xlim(middle - 2, middle + 2)
        axes.set_xlabel("learning rate of the policy", color=INK)
    panels[0].legend(frameon=False, loc="upper right")
    figure.suptitle(
        "100-episode average: each point is a seed, each bar a median", color=INK, fontsize=11
    )
    figure.savefig(path)


def draw_curves(cells: list[dict[str, Any]], path: Path) -> None:
    """The 100-episode average over training at each preset's own rate."""
    figure, panels = _panels()
    for axes, name in zip(panels, RATES, strict=True):
        cell = _cell(cells, name, PRESETS[name].learning_rate)
        low, quarter, median, upper, high = cell["curve"]
        episodes = cell["curve_episodes"]
        axes.fill_between(episodes, low, high, color=ACCENT, alpha=0.15, lw=0, label="5–95 %")
        axes.fill_between(episodes, quarter, upper, color=ACCENT, alpha=0.35, lw=0, label="25–75 %")
        axes.plot(episodes, median, color=ACCENT, lw=2, label="median")
        axes.set_xlabel("episodes", color=INK)
    panels[0].legend(frameon=False, loc="upper left")
    figure.suptitle("At each preset's own learning rates", color=INK, fontsize=11)
    figure.savefig(path)


def fill_page(page: Path, record: dict[str, Any]) -> None:
    """Put the table and its origin between the page's markers."""
    from jaxpg.fast.blocks import STEPS

    versions, device = record["versions"], record["device"]
    cells = record["rows"]
    padded = [cell["useful_if_padded"] for cell in cells]
    rollout = [cell["useful_rollout"] for cell in cells]
    gradient = [cell["useful_gradient"] for cell in cells]
    parts = {
        "table": f"{_table(cells)}\n\n`{record['command']}`, {commits(record)}, jax "
        f"{versions['jax']}, {device['count']} CPU cores: {record['seeds']} seeds in each row, "
        f"{sum(cell['env_steps'] for cell in cells) / 1e6:,.0f} million environment steps in "
        f"{sum(cell['seconds'] for cell in cells) / 60:.0f} minutes.",
        "padding": f"Padded to 500 steps, {_range(padded)} of the work would be useful. As it is, "
        f"{_range(rollout)} of the rollout's steps are (it ends with the longest episode of the "
        f"seeds that run together), and {_range(gradient)} of the rows that gradients are computed "
        f"on (each seed's own episode, in blocks of {STEPS}).",
    }
    page.write_text(fill(page.read_text(), parts))


def _table(cells: list[dict[str, Any]]) -> str:
    rows = []
    for cell in cells:
        rate = f"{cell['learning_rate']:g}"
        own = cell["learning_rate"] == PRESETS[cell["preset"]].learning_rate
        scores = [_spread(cell[kind]) for kind in ("best", "last")]
        fractions = [words.share(cell[name]) for name in ("solved", "collapsed")]
        rows.append([cell["preset"], f"**{rate}**" if own else rate, *scores, *fractions])
    return markdown(COLUMNS, rows)


def _spread(scores: list[float]) -> str:
    low, middle, high = np.quantile(scores, (0.05, 0.5, 0.95))
    return f"{middle:.0f} ({low:.0f}–{high:.0f})"


def _range(fractions: list[float]) -> str:
    return f"{min(fractions):.0%} to {max(fractions):.0%}"


def _cell(cells: list[dict[str, Any]], name: str, rate: float) -> dict[str, Any]:
    return next(c for c in cells if (c["preset"], c["learning_rate"]) == (name, rate))


def _panels() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(RATES), sharey=True)
    for axes, name in zip(panels, RATES, strict=True):
        axes.set_title(name, loc="left", color=INK, fontsize=11)
        axes.axhline(SOLVED_AT, color=MUTED, lw=1, ls=(0, (4, 3)))
        axes.set_ylim(0, 510)
        axes.grid(axis="y", color="#e4e7eb", lw=0.7)
        axes.tick_params(colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("average return of 100 episodes", color=INK)
    return figure, panels


if __name__ == "__main__":
    main()
