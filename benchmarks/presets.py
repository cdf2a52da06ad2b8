"""What does each preset reach on CartPole-v1, and with how few steps?

    python -m benchmarks.presets [--smoke]

Trains every preset but the article's on seeds 0 to 255, which were never used for tuning (10000 and
above were), and some of them with a smaller budget. Every row is written to
benchmarks/results/presets-cpu.json as soon as it is done, and a second call goes on after the last.
"""

import dataclasses
import time
from typing import Any

from benchmarks import trained
from benchmarks.measure import command_line, start_as_jaxpg
from benchmarks.record import markdown
from jaxpg import words
from jaxpg.analysis.measures import as_json, measure
from jaxpg.analysis.outcomes import outcomes
from jaxpg.core.config import Config
from jaxpg.core.presets import PRESETS

SEEDS = 256
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("vpg", {}),
    ("vpg", {"total_steps": 200_000}),
    ("ppo", {}),
    ("ppo", {"total_steps": 80_000}),
    ("ppo", {"total_steps": 60_000, "epochs": 12}),
    ("ppo-penalty", {}),
    ("ppo-penalty", {"total_steps": 80_000}),
    ("a2c", {}),
    ("trpo", {}),
    ("trpo", {"max_kl": 0.01}),
    ("npg", {}),
    ("actor-critic", {}),
    ("reinforce", {}),
    ("rloo", {}),
    ("grpo", {}),
)


def main() -> None:
    """Train what is missing, then print."""
    if command_line(__doc__).parse_args().smoke:
        changed = {"total_steps": 16 * 1024}
        config = dataclasses.replace(PRESETS["vpg"], **changed)
        print(table([{"preset": "vpg", "changed": changed, **measured(config, 4)}]))
        return
    start_as_jaxpg()
    wanted = [
        ({"preset": name, "changed": changed}, dataclasses.replace(PRESETS[name], **changed))
        for name, changed in CASES
    ]
    print(table(trained.rows("presets", wanted, measured, {"seeds": SEEDS}, table)))


def measured(config: Config, seeds: int = SEEDS) -> dict[str, Any]:
    """Train the seeds, and say in numbers what they reached."""
    from jaxpg.runs.python import train_population

    began = time.perf_counter()
    population = train_population(config, range(seeds))
    reached = outcomes(config, population)
    return {
        "measures": {what: as_json(found) for what, found in measure(reached).items()},
        "worst": float(reached.scores.min()),
        "env_steps": int(population.metrics.env_steps.sum(dtype="int64")),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each case."""
    columns = ["preset", "budget of a seed", "end solved", "final return, IQM (95 %)", "worst",
               "median to solve", "collapse"]  # fmt: skip
    return markdown(columns, [_line(one) for one in rows])


def _line(one: dict[str, Any]) -> list[str]:
    config: Config = dataclasses.replace(PRESETS[one["preset"]], **one["changed"])
    others = [f"`{name}={x:g}`" for name, x in one["changed"].items() if name != config.budget]
    found = one["measures"]
    iqm, time, lost = (found[name] for name in ("iqm", "time_to_solve", "collapse"))
    interval = f"({words.returned(iqm['ci95_low'])} to {words.returned(iqm['ci95_high'])})"
    when = time and time["value"]
    return [
        " ".join([f"`{one['preset']}`", *others]),
        f"{getattr(config, config.budget):,} {config.unit.removeprefix('environment ')}",
        words.share(found["solved"]["value"]),
        f"{words.returned(iqm['value'])} {interval}",
        words.returned(one["worst"]),
        words.amount(when) if when is not None else "not reached",
        words.share(lost["value"]) if lost else "",
    ]


if __name__ == "__main__":
    main()
