"""What do the presets reach on classic control, beside what others have published?

    python -m benchmarks.reference [--smoke] [--seeds 256]

Trains seeds 0 … N-1, which were never used for tuning (10000 and above were): for each environment
its own preset, and with the same budget presets as they are. Then every seed's policy acts in 20
more episodes, greedily. Every row is written to benchmarks/results/reference-cpu.json as soon as it
is done, and a second call goes on after the last. Draws docs/results.png.
"""

import argparse
import dataclasses
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import trained
from benchmarks.measure import BLUE, DOCS, GREY, INK, figure, short, start_as_jaxpg
from benchmarks.record import markdown
from jaxpg import words
from jaxpg.analysis.curves import curve_points
from jaxpg.analysis.measures import as_json, measure
from jaxpg.analysis.outcomes import outcomes
from jaxpg.analysis.stats import estimate, iqm, iqm_band
from jaxpg.core.config import PRESETS, Config

SEEDS, EPISODES = 256, 20


class Task(NamedTuple):
    """An environment, and what is known of it."""

    preset: str  # that was tuned for it
    published: float  # the best score, the mean return of an episode
    whose: str


TASKS = {
    "CartPole-v1": Task("ppo", 500.0, "rl-zoo's A2C, PPO and TRPO"),
    "Acrobot-v1": Task("ppo-acrobot", -73.5, "rl-zoo's PPO"),
    "MountainCar-v0": Task("ppo-mountain-car", -107.3, "rl-zoo's TRPO"),
    "Pendulum-v1": Task("ppo-pendulum", -130.0, "gymnax-blines"),
    "MountainCarContinuous-v0": Task("ppo-mountain-car-continuous", 92.5, "rl-zoo's TRPO"),
}
OTHERS = {"ppo": "#c2571a", "vpg": GREY, "trpo": "#5a8f3c", "a2c": "#8e6bb0"}  # -> its colour


def main() -> None:
    """Train what is missing, then print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a minute; writes nothing")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each preset")
    options = parser.parse_args()
    if options.smoke:
        config = dataclasses.replace(PRESETS["vpg"], env="Acrobot-v1", total_steps=16 * 1024)
        labels = {"env": config.env, "preset": "vpg", "config": dataclasses.asdict(config)}
        row = {**labels, **reached(config, seeds=4, episodes=2)}
        print(table([row]))
        with tempfile.TemporaryDirectory() as directory:
            draw([row], Path(directory) / "picture.png")
        return
    start_as_jaxpg()
    train = partial(reached, seeds=options.seeds)
    rows = trained.rows("reference", cases(), train, {"seeds": options.seeds}, table)
    print(table(rows))
    draw(rows, DOCS / "results.png")


def cases() -> list[tuple[dict[str, str], Config]]:
    """For each environment its own preset; then the others."""
    own = [
        ({"env": env, "preset": task.preset}, PRESETS[task.preset]) for env, task in TASKS.items()
    ]
    others = [
        (
            {"env": env, "preset": name},
            dataclasses.replace(
                PRESETS[name], env=env, total_steps=PRESETS[task.preset].total_steps
            ),
        )
        for name in OTHERS
        for env, task in TASKS.items()
        if name != task.preset
    ]
    return own + others


def reached(config: Config, seeds: int, episodes: int = EPISODES) -> dict[str, Any]:
    """Train the seeds, and say in numbers what they reached, and on the way to it."""
    from jaxpg.policies.evaluate import in_gymnax
    from jaxpg.runs.load import load
    from jaxpg.runs.python import train_population

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        population = train_population(config, range(seeds), out=out)
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
    columns = ["environment", "preset", "steps of a seed", "while training, IQM (95 %)",
               "greedy, IQM (95 %)", "worst seed", "solved", "best published"]  # fmt: skip
    order = list(TASKS)
    return markdown(
        columns, [_line(row) for row in sorted(rows, key=lambda row: order.index(row["env"]))]
    )


def _line(row: dict[str, Any]) -> list[str]:
    found, task = row["measures"], TASKS[row["env"]]
    solved = found["solved"]
    return [
        row["env"],
        f"`{row['preset']}`",
        f"{row['config']['total_steps']:,}",
        _interval(found["iqm"], "value", "ci95_low", "ci95_high"),
        _interval(row["greedy"], "value", "low", "high"),
        words.returned(row["worst"]),
        words.share(solved["value"]) if solved else "",
        f"{task.published:g} ({task.whose})" if row["preset"] == task.preset else "",
    ]


def _interval(found: dict[str, float], *keys: str) -> str:
    value, low, high = (words.returned(found[key]) for key in keys)
    return f"{value} ({low} to {high})"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Return over steps, a panel for each environment; the best published score as a line."""
    made, panels = figure(15, 3.4, len(TASKS))
    for axes, (env, task) in zip(panels, TASKS.items(), strict=True):
        for row in (row for row in rows if row["env"] == env):
            own, curve = row["preset"] == task.preset, row["curve"]
            color, label = (BLUE, "its own") if own else (OTHERS[row["preset"]], row["preset"])
            axes.plot(curve["steps"], curve["iqm"], color=color, linewidth=1 + own, label=label)
            band = (curve["low"], curve["high"])
            axes.fill_between(curve["steps"], *band, color=color, alpha=0.2, linewidth=0)
        axes.axhline(task.published, color=INK, linestyle=":", linewidth=1, label="published")
        axes.set_title(env, loc="left", fontsize=10)
        axes.xaxis.set_major_formatter(lambda steps, _: short(steps))
        axes.set_xlabel("environment steps of a seed")
    panels[0].set_ylabel("return, IQM over the seeds")
    named = {}
    for axes in panels:
        named |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    made.legend(named.values(), named, loc="outside upper center", ncols=len(named), frameon=False)
    made.savefig(path)


if __name__ == "__main__":
    main()
