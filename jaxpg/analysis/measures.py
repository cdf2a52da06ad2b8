"""A run in a dozen numbers with their intervals, for tables, pages and JSON."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxpg import words
from jaxpg.analysis.outcomes import Outcomes
from jaxpg.analysis.stats import (
    Estimate,
    estimate,
    iqm,
    kaplan_meier,
    median_time,
    optimality_gap,
    proportion,
)


class Measure(NamedTuple):
    """One of the numbers, for people."""

    label: str
    kind: str  # return, share or budget: how it is written
    says: str  # what it says, in half a sentence


MEASURES = {
    "iqm": Measure("IQM", "return", "mean of the middle half of the seeds' final returns"),
    "median": Measure("median", "return", "half of the seeds end with at least so much"),
    "mean": Measure("mean", "return", "of all seeds' final returns"),
    "optimality_gap": Measure(
        "optimality gap", "return", "by how much seeds fall short of the solved return, on average"
    ),
    "solved": Measure("solved at the end", "share", "of all seeds, diverged and silent ones too"),
    "ever_solved": Measure("ever solved", "share", "reached the solved return over 100 episodes"),
    "collapse": Measure(
        "collapse",
        "share",
        "of those that ever solved it, later fell below halfway from untrained to solved",
    ),
    "time_to_solve": Measure(
        "median time to solve", "budget", "until half of the seeds have (Kaplan-Meier)"
    ),
}


def digest(strata: Sequence[Outcomes]) -> dict[str, Estimate | None]:
    """Every measure of a run; None where there is nothing to measure.

    Args:
      strata: of each setting of the run; of most runs one.
    """
    scores = [some.scores for some in strata if len(some.scores)]
    solving = [some.solving for some in strata if some.solving is not None]
    found: dict[str, Estimate | None] = dict.fromkeys(MEASURES)
    if scores:
        located: dict[str, Callable[..., np.ndarray]] = {
            "iqm": iqm,
            "median": np.median,
            "mean": np.mean,
        }
        if solving:
            located["optimality_gap"] = partial(optimality_gap, target=solving[0].target)
        found |= {name: estimate(statistic, scores) for name, statistic in located.items()}
    if solving:
        solved = np.concatenate([x.solved for x in solving])
        ever = np.concatenate([x.ever for x in solving])
        time = np.concatenate([x.time for x in solving])
        lost = np.concatenate([x.collapsed for x in solving])
        found["solved"] = proportion(int(solved.sum()), len(solved))
        found["ever_solved"] = proportion(int(ever.sum()), len(ever))
        found["collapse"] = proportion(int(lost.sum()), int(ever.sum())) if ever.any() else None
        found["time_to_solve"] = median_time(kaplan_meier(time, ever))
    return found


def as_json(found: Estimate | None) -> dict[str, float | None] | None:
    """For JSON, which knows no infinity: null stands for "not within the budget"."""
    if found is None:
        return None
    names = ("value", "ci95_low", "ci95_high")
    return {name: x if math.isfinite(x) else None for name, x in zip(names, found, strict=True)}


def write(number: float, kind: str) -> str:
    """A number for people."""
    if kind == "share":
        return f"{number:.1%}".replace("%", " %")
    if kind == "budget":
        return f"{number:,.0f}" if math.isfinite(number) else "not reached"
    return words.returned(number)


def write_interval(found: Estimate, kind: str) -> str:
    """Its interval for people; empty if all of it is beyond the budget."""
    if math.isinf(found.low):
        return ""
    if math.isinf(found.high):
        return f"from {write(found.low, kind)}"
    return f"{write(found.low, kind)} to {write(found.high, kind)}"


def remarks(strata: Sequence[Outcomes]) -> list[str]:
    """What a reader must know of seeds that are not as the others; nothing if there are none."""
    diverged = int(sum(some.diverged.sum() for some in strata))
    silent = int(sum(np.isnan(some.final).sum() for some in strata))
    lines = []
    if diverged:
        lines.append(
            f"{words.seeds(diverged)} diverged: counted with the return of the last finite state, "
            "and as not solved"
        )
    if silent:
        lines.append(
            f"{words.seeds(silent)} finished no episode: without a return, and counted as not "
            "solved"
        )
    return lines
