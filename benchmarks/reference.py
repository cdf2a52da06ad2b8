"""What do the presets reach, beside what others have published?

    python -m benchmarks.reference [--smoke] [--seeds 256]

Trains seeds 0 … N-1, which were never used for tuning (10000 and above were): for each environment
its own preset, and 64 seeds of the others as they are with the same budget (of Brax and MinAtar 16
seeds, and one preset alone). Then every seed's policy acts in 20 more episodes, greedily. Every row
is written to benchmarks/results/reference-cpu.json as soon as it is done, and a second call goes on
after the last. Draws the pictures of docs/results.md. Needs the extra `bench`, for Brax.
"""

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from benchmarks import trained
from benchmarks.measure import BLUE, DOCS, GREY, INK, command_line, figure, start_as_jaxpg
from benchmarks.record import markdown
from jaxpg import words
from jaxpg.analysis.curves import curve_points
from jaxpg.analysis.measures import as_json, measure
from jaxpg.analysis.outcomes import outcomes
from jaxpg.analysis.stats import estimate, iqm, iqm_band
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS
from jaxpg.words import short

SEEDS, EPISODES = 256, 20
SEEDS_OF_OTHERS = 64  # of a preset that was not tuned for the environment


class Task(NamedTuple):
    """An environment, and what is known of it."""

    preset: str  # that was tuned for it
    published: float | None  # the best score, the mean return of an episode; None: we know of none
    whose: str
    seeds: int | None = None  # that two cores can pay for; None: as many as are asked for
    changes: Mapping[str, Any] = MappingProxyType({})  # of the preset


MOST = "the most there is"
SCALED = {"normalize_obs": True, "normalize_reward": True}
TASKS = {
    "CartPole-v1": Task("ppo", 500.0, "rl-zoo's A2C, PPO and TRPO"),
    "Acrobot-v1": Task("ppo-acrobot", -73.5, "rl-zoo's PPO"),
    "MountainCar-v0": Task("ppo-mountain-car", -107.3, "rl-zoo's TRPO"),
    "Pendulum-v1": Task("ppo-pendulum", -130.0, "gymnax-blines"),
    "MountainCarContinuous-v0": Task("ppo-mountain-car-continuous", 92.5, "rl-zoo's TRPO"),
    "Catch-bsuite": Task("ppo", 1.0, MOST),
    "DeepSea-bsuite": Task("ppo-deep-sea", 0.99, MOST),
    "brax:inverted_pendulum": Task("ppo", 1000.0, MOST, 16, {"total_steps": 200_000}),
    "brax:inverted_double_pendulum": Task(
        "ppo", 9360.0, MOST, 16, {**SCALED, "total_steps": 500_000}
    ),
    "Asterix-MinAtar": Task("ppo-minatar", 15.0, "gymnax-blines", 16),
    "Breakout-MinAtar": Task("ppo-minatar-mlp", 28.0, "gymnax-blines", 16),
    "Freeway-MinAtar": Task("ppo-minatar", 58.0, "gymnax-blines", 16),
    "Seaquest-MinAtar": Task("ppo-minatar-mlp", None, "", 16, {"total_steps": 1_000_000}),
    "SpaceInvaders-MinAtar": Task("ppo-minatar-mlp", 131.0, "gymnax-blines", 16),
}
PICTURES = {
    "results.png": list(TASKS)[:5],
    "results-boards.png": [env for env in TASKS if env.endswith(("bsuite", "MinAtar"))],
    "results-brax.png": [env for env in TASKS if env.startswith("brax:")],
}
OTHERS = {  # -> its colour, and its dashes, by which who sees no colours tells them apart
    "ppo": ("#c2571a", "-"),
    "vpg": (GREY, (0, (5, 2))),
    "trpo": ("#5a8f3c", (0, (1, 1.2))),
    "a2c": ("#8e6bb0", (0, (5, 1.5, 1, 1.5))),
}


def main() -> None:
    """Train what is missing, then print and draw."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each environment's own preset")
    options = parser.parse_args()
    if options.smoke:
        config = dataclasses.replace(PRESETS["vpg"], env="Acrobot-v1", total_steps=16 * 1024)
        labels = {"env": config.env, "preset": "vpg", "seeds": 4}
        labels |= {"config": dataclasses.asdict(config)}
        row = {**labels, **reached(config, seeds=4, episodes=2)}
        print(table([row]))
        with tempfile.TemporaryDirectory() as directory:
            draw([row], Path(directory))
        return
    start_as_jaxpg()
    rows = trained.rows("reference", cases(options.seeds), reached, {}, table, ("seeds",))
    print(table(rows))
    draw(rows, DOCS)


def cases(seeds: int) -> list[tuple[dict[str, Any], Config]]:
    """For each environment its own preset; then the others."""
    own = [
        (
            {"env": env, "preset": task.preset, "seeds": min(seeds, task.seeds or seeds)},
            dataclasses.replace(PRESETS[task.preset], env=env, **task.changes),
        )
        for env, task in TASKS.items()
    ]
    others = [
        (
            {"env": env, "preset": name, "seeds": min(seeds, SEEDS_OF_OTHERS)},
            dataclasses.replace(
                PRESETS[name], env=env, total_steps=PRESETS[task.preset].total_steps
            ),
        )
        for name in OTHERS
        for env, task in TASKS.items()
        if name != task.preset and task.seeds is None
    ]
    return own + others


def reached(config: Config, seeds: int, episodes: int = EPISODES) -> dict[str, Any]:
    """Train the seeds, and say in numbers what they reached, and on the way to it."""
    from jaxpg.policies.evaluate import in_gymnax
    from jaxpg.population.population import default_lanes, enough_lanes
    from jaxpg.runs.load import load
    from jaxpg.runs.python import train_population

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        lanes = min(default_lanes(), enough_lanes(seeds, workers=2))
        population = train_population(config, range(seeds), lanes=lanes, out=out)
        greedy = in_gymnax(load(out), list(range(seeds)), episodes, "greedy")
    found = outcomes(config, population)
    steps, returns = curve_points(config, population)
    begun = np.isfinite(returns).all(axis=0)  # an episode of every seed has ended
    steps, returns = np.asarray(steps)[begun], returns[:, begun]
    low, high = iqm_band(returns)
    return {
        "measures": {what: as_json(one) for what, one in measure(found).items()},
        "worst": float(found.scores.min()),
        "greedy": estimate(iqm, [greedy.returns.mean(axis=1)])._asdict(),
        "curve": {
            "steps": steps.tolist(),
            "iqm": np.round(iqm(returns), 2).tolist(),
            "low": np.round(low, 2).tolist(),
            "high": np.round(high, 2).tolist(),
        },
        "env_steps": int(population.metrics.env_steps.sum(dtype="int64")),
        "seconds": round(time.perf_counter() - began, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each environment and preset."""
    columns = ["environment", "preset", "while training, IQM (95 %)", "mean", "greedy, IQM (95 %)",
               "worst seed", "solved", "best published", "steps of a seed", "seeds",
               "steps/s"]  # fmt: skip
    order = list(TASKS)
    return markdown(
        columns, [_line(row) for row in sorted(rows, key=lambda row: order.index(row["env"]))]
    )


def _line(row: dict[str, Any]) -> list[str]:
    found, task = row["measures"], TASKS[row["env"]]
    solved, own = found["solved"], row["preset"] == task.preset
    return [
        row["env"],
        f"`{' '.join([row['preset'], *(_flags(task) if own else ())])}`",
        _interval(found["iqm"], "value", "ci95_low", "ci95_high"),
        words.returned(found["mean"]["value"]),
        _interval(row["greedy"], "value", "low", "high"),
        words.returned(row["worst"]),
        words.share(solved["value"]) if solved else "",
        f"{task.published:g} ({task.whose})" if own and task.published is not None else "",
        f"{row['config']['total_steps']:,}",
        str(row["seeds"]),
        short(row["env_steps"] / row["seconds"]),
    ]


def _flags(task: Task) -> list[str]:
    """What a task switches on in its preset, as options."""
    return [f"--{name.replace('_', '-')}" for name, x in task.changes.items() if x is True]


def _interval(found: dict[str, float], *keys: str) -> str:
    value, low, high = (words.returned(found[key]) for key in keys)
    return f"{value} ({low} to {high})"


def draw(rows: list[dict[str, Any]], directory: Path) -> None:
    """Return over steps, a panel for each environment that has a row; the best published score as
    a line."""
    for name, environments in PICTURES.items():
        of_each = {env: [row for row in rows if row["env"] == env] for env in environments}
        shown = {env: of_it for env, of_it in of_each.items() if of_it}
        if not shown:
            continue
        columns = min(len(shown), 3)
        rows_of_panels = -(-len(shown) // columns)
        made, panels = figure(3.2 * columns, 0.4 + 2.7 * rows_of_panels, columns, rows_of_panels)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        panels = panels[: len(shown)]
        for axes, (env, of_it) in zip(panels, shown.items(), strict=True):
            _draw_one(axes, TASKS[env], of_it)
            axes.set_title(env, loc="left", fontsize=10)
            axes.xaxis.set_major_formatter(lambda steps, _: short(steps))
        made.supxlabel("environment steps of a seed", fontsize=10)
        made.supylabel("return, IQM over the seeds", fontsize=10)
        named = {}
        for axes in panels:
            named |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        made.legend(
            named.values(), named, loc="outside upper center", ncols=len(named), frameon=False
        )
        made.savefig(directory / name)


def _draw_one(axes: Any, task: Task, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        own, curve = row["preset"] == task.preset, row["curve"]
        color, dash = (BLUE, "-") if own else OTHERS[row["preset"]]
        look = {"color": color, "linestyle": dash, "linewidth": 1 + own}
        label = "jaxpg, its own preset" if own else row["preset"]
        axes.plot(curve["steps"], curve["iqm"], label=label, **look)
        band = (curve["low"], curve["high"])
        axes.fill_between(curve["steps"], *band, color=color, alpha=0.2, linewidth=0)
    if task.published is not None:
        label, dash = (MOST, "--") if task.whose == MOST else ("best published", ":")
        axes.axhline(task.published, color=INK, linestyle=dash, linewidth=1, label=label)


if __name__ == "__main__":
    main()
