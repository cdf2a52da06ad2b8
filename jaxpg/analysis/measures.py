"""A run in a dozen numbers with their intervals, for tables, pages and JSON."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpg import words
from jaxpg.analysis.outcomes import Outcomes, all_gone, evaluated, time_to_solve
from jaxpg.analysis.stats import (
    Estimate,
    estimate,
    estimate_over_seeds,
    iqm,
    iqm_of_all,
    median_time,
    optimality_gap,
    proportion,
)
from jaxpg.core.config import RECENT_EPISODES
from jaxpg.population.evaluations import MODES

if TYPE_CHECKING:
    from jaxpg.population.population import Population


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

COVERED = ((2, "half"), (3, "three quarters"), (15, "nine tenths"))  # at most so many seeds
LONG = 0.25  # of the training, for the episodes that a final return is the mean of


def measure(outcomes: Outcomes) -> dict[str, Estimate | None]:
    """Every measure of a run; None where there is nothing to measure."""
    found: dict[str, Estimate | None] = dict.fromkeys(MEASURES)
    solving = outcomes.solving
    if len(outcomes.scores):
        located: dict[str, Callable[..., np.ndarray]] = {
            "iqm": iqm,
            "median": np.median,
            "mean": np.mean,
        }
        if solving is not None:
            located["optimality_gap"] = partial(optimality_gap, target=solving.target)
        found |= {
            name: estimate(statistic, [outcomes.scores]) for name, statistic in located.items()
        }
        for name in located:
            one = found[name]
            fragile = name in ("mean", "optimality_gap")  # one seed that failed would move it
            if one is not None and (outcomes.all_failed or (fragile and one.low == one.high)):
                found[name] = one._replace(low=math.nan, high=math.nan)
    if solving is not None and solving.known:
        solved, ever, lost = (
            int(x.sum()) for x in (solving.solved, solving.ever, solving.collapsed)
        )
        found["solved"] = proportion(solved, len(solving.solved))
        found["ever_solved"] = proportion(ever, len(solving.ever))
        found["collapse"] = proportion(lost, ever) if ever else None
        found["time_to_solve"] = median_time(time_to_solve(solving))
    return found


def last_evaluation(population: "Population") -> dict[str, Estimate]:
    """The IQM of what each row counts with in the last evaluation, by mode; empty without any."""
    seen = evaluated(population)
    if seen is None:
        return {}
    found = {mode: estimate(iqm, [getattr(seen, mode)[:, -1]]) for mode in MODES}
    if not all_gone(population, seen.update[-1]):
        return found
    return {mode: one._replace(low=math.nan, high=math.nan) for mode, one in found.items()}


def spread(scores: np.ndarray, setting: np.ndarray | None = None) -> dict[str, float | None]:
    """The numbers of summary.json's "final_return", not rounded; of one seed without an interval.

    Args:
      scores: of at least one seed, [S]; or, of several settings, of all seeds in each of them, in
        the same order.
      setting: of each score, where there are several.
    """
    settings = np.zeros(len(scores)) if setting is None else setting
    by_seed = np.stack([scores[settings == i] for i in np.unique(settings)], axis=1)
    middle = estimate_over_seeds(iqm_of_all, by_seed)
    return {
        "iqm": middle.value,
        **interval(middle),
        "min": float(scores.min()),
        "median": float(np.median(scores)),
        "max": float(scores.max()),
    }


def as_json(found: Estimate | None) -> dict[str, float | None] | None:
    """For JSON, which knows no infinity: null stands for "not within the budget", or none."""
    return None if found is None else {"value": _finite(found.value), **interval(found)}


def interval(found: Estimate) -> dict[str, float | None]:
    """The ends of its interval, for JSON."""
    return {"ci95_low": _finite(found.low), "ci95_high": _finite(found.high)}


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def write(number: float, kind: str) -> str:
    """A number for people."""
    return {"return": words.returned, "share": words.share, "budget": words.amount}[kind](number)


def write_interval(found: Estimate, kind: str) -> str:
    """Its interval for people; empty if there is none, or it says nothing, or all of it is beyond
    the budget."""
    if not math.isfinite(found.low) or (math.isinf(found.high) and found.low <= 0):
        return ""
    if math.isinf(found.high):
        return f"from {write(found.low, kind)}"
    return f"{write(found.low, kind)} to {write(found.high, kind)}"


def remarks(outcomes: Outcomes) -> list[str]:
    """What a reader must know of seeds that are not as the others, and of their number."""
    known = math.isfinite(outcomes.floor)
    floor = (
        f"with a return of {words.returned(outcomes.floor)}, no better than before training, and "
    )
    counted = f"counted {floor if known else ''}as not solved"
    if not known and outcomes.solving is None:
        counted = "there is no return of theirs"
    lines = []
    for count, what in (
        (outcomes.diverged.sum(), "diverged"),
        ((np.isnan(outcomes.final) & ~outcomes.diverged).sum(), "finished no episode"),
    ):
        if count:
            lines.append(f"{words.seeds(int(count))} {what}: {counted}")
    solving = outcomes.solving
    if solving is not None and (short := int((~solving.judged).sum())):
        says = "they count as not solved" if solving.known else "so nobody can say who does"
        lines.append(
            f"{words.seeds(short)} ended fewer than the {RECENT_EPISODES} episodes that solving is "
            f"a mean of: {says}"
        )
    lines += of_long_memory(outcomes)
    return lines if outcomes.all_failed else [*lines, *of_few(len(outcomes.scores))]


def of_long_memory(outcomes: Outcomes) -> list[str]:
    """That final returns are of much of the training, if they are."""
    if outcomes.recent_share <= LONG:
        return []
    return [
        f"the last {RECENT_EPISODES} episodes, of which a final return is the mean, are "
        f"{words.share(outcomes.recent_share)} of the training: it says little of the policies at "
        "its end, of which --evaluate-every does"
    ]


def of_few(seeds: int) -> list[str]:
    """How far an interval of so few seeds is to be believed; nothing of enough seeds, or of one,
    which has none."""
    covered = next((share for most, share in COVERED if seeds <= most), None)
    if seeds < 2 or covered is None:
        return []
    return [
        f"of {words.seeds(seeds)} an interval is too narrow: those of the IQM cover the truth in "
        f"about {covered} of all cases, in fewer if seeds fail, and not in 95 %"
    ]
