"""What became of each seed of a run: its return, when it solved the task, whether it lost it again.

The *trailing return* after an update is the mean return of the last whole updates that hold at
least 100 episodes; where fewer have ended there is none. A seed that diverged has none from then on
either: it solves nothing more. It is not censored there, which would presume that it would have
done as the others did.

A seed that *failed* (it diverged, or finished no episode) has no score of its own. It counts with
the return that seeds had before training, or with the lowest final return if that is lower: a seed
of which nothing good is known never makes a run look better.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpg.analysis.budget import Budget, budget, spent
from jaxpg.analysis.stats import SOLVED, Survival, kaplan_meier
from jaxpg.core.config import Config

if TYPE_CHECKING:
    from jaxpg.population.population import Population

EPISODES = 100  # that a return is a mean of
RANKS = ("best", "median", "worst")


class Solving(NamedTuple):
    """Whether and when each of S seeds solved the task."""

    target: float  # return that counts as solved
    lost_below: float  # return that counts as lost: halfway from untrained to the target
    solved: np.ndarray  # bool [S], did not diverge, and its final return is at least the target
    ever: np.ndarray  # bool [S], some trailing return was at least the target
    time: np.ndarray  # [S], end of the first update where it was; the budget where it never was
    collapsed: np.ndarray  # bool [S], ever solved, and later some trailing return was lost


class Outcomes(NamedTuple):
    """What became of S seeds."""

    final: np.ndarray  # [S], mean return of the last (up to) 100 episodes; NaN if none ended
    diverged: np.ndarray  # bool [S]; its final return is that of its last finite state
    floor: float  # what a seed that failed counts with; NaN if no episode of any seed ended
    solving: Solving | None  # None if nothing says what counts as solved

    @property
    def scores(self) -> np.ndarray:
        """What each seed counts with, [S]; empty if no episode of any seed ended."""
        return self.final[:0] if np.isnan(self.floor) else _counted(*self[:3])


def outcomes(
    config: Config,
    population: "Population",
    target: float | None = None,
    within: Budget | None = None,
) -> Outcomes:
    """What became of each seed.

    Args:
      population: rows of one setting.
      target: return that counts as solved; None takes the environment's own, if it has one.
      within: the part of the training that counts; None for all of it.
    """
    target = SOLVED.get(config.env) if target is None else target
    if within is not None:
        population = until(config, population, within)
    final = np.asarray(population.final_return, float)
    diverged = population.frozen_at >= 0
    least = floor(population)
    if target is None:
        return Outcomes(final, diverged, least, None)
    trailing = trailing_return(*_returns(population))
    update = np.arange(trailing.shape[1])
    trailing[diverged[:, None] & (update >= population.frozen_at[:, None])] = np.nan
    reached = trailing >= target
    ever = reached.any(axis=1)
    first = np.where(ever, reached.argmax(axis=1), len(update) - 1)
    lost_below = min(target, (untrained_return(population) + target) / 2)
    lost = (trailing < lost_below) & (update > first[:, None])
    used = spent(config, population, within.unit if within else budget(config).unit)
    time = used[np.arange(len(first)), first].astype(float)
    solving = Solving(
        target=target,
        lost_below=lost_below,
        solved=~diverged & (np.nan_to_num(final, nan=-np.inf) >= target),
        ever=np.asarray(ever),
        time=np.where(ever, time, within.amount) if within else time,
        collapsed=np.logical_and(ever, lost.any(axis=1)),
    )
    return Outcomes(final, diverged, least, solving)


def scores(population: "Population") -> np.ndarray:
    """What each row counts with in statistics: its final return, or the floor if it failed.

    Returns:
      [rows], float64. The floor is that of a row's setting, or of all if no episode ended in that
      one; NaN if none ended at all.
    """
    found, least = np.empty(len(population.seeds)), floor(population)
    for setting in np.unique(population.setting):
        rows = np.flatnonzero(population.setting == setting)
        part = select(population, rows)
        own = floor(part)
        final, diverged = np.asarray(part.final_return, float), part.frozen_at >= 0
        found[rows] = _counted(final, diverged, least if np.isnan(own) else own)
    return found


def floor(population: "Population") -> float:
    """What a seed that failed counts with: the untrained return, or the lowest final one if lower.

    NaN if no episode ended.
    """
    final = np.asarray(population.final_return, float)
    if not (np.asarray(population.metrics.episodes) > 0).any():
        return float("nan")
    return min([untrained_return(population), *final[np.isfinite(final)].tolist()])


def ranking(final: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Seeds by final return, the best first; those that failed last, and equal ones in their order.

    Args:
      final: NaN if no episode ended, [S].
      diverged: bool [S].

    Returns:
      Indices [S].
    """
    return np.argsort(-_counted(final, diverged, -np.inf), kind="stable")


def typical(final: np.ndarray, diverged: np.ndarray) -> dict[str, int]:
    """The best, the median and the worst seed: the first, the middle and the last in the ranking.

    Three different seeds, if there are three. Of two in the middle the lower one. There is no best
    one if all have failed.

    Args: as of `ranking`.

    Returns:
      Index by name.
    """
    order = ranking(final, diverged)
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    healthy = bool((~diverged & np.isfinite(final)).any())
    return {rank: int(order[places[rank]]) for rank in RANKS if healthy or rank != "best"}


def until(config: Config, population: "Population", within: Budget) -> "Population":
    """The rows as they were after the updates that a smaller budget pays for.

    The final return of a row that is cut is the mean of the last whole updates that hold at least
    100 episodes, or of all if fewer have ended. Parameters are not carried along.
    """
    kept = spent(config, population, within.unit) <= within.amount
    metrics = population.metrics
    cut = {name: np.where(kept, x, np.zeros_like(x)) for name, x in metrics._asdict().items()}
    population = population._replace(metrics=metrics._replace(**cut), params={})
    episodes, returns = _returns(population)
    count, total = episodes.sum(axis=1), returns.sum(axis=1, dtype=np.float64)
    final = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    trailing = trailing_return(episodes, returns)[:, -1]
    cut_final = np.where(np.isnan(trailing), final, trailing)
    gone = population.frozen_at >= kept.sum(axis=1)
    return population._replace(
        final_return=np.where(kept.all(axis=1), population.final_return, cut_final),
        frozen_at=np.where(gone, -1, population.frozen_at),
        cause=np.where(gone, 0, population.cause),
    )


def select(population: "Population", rows: np.ndarray) -> "Population":
    """These rows of a population, as those of one setting. Parameters are not carried along."""
    metrics = population.metrics
    return population._replace(
        seeds=population.seeds[rows],
        setting=population.setting[rows],
        params={},
        metrics=metrics._replace(**{name: x[rows] for name, x in metrics._asdict().items()}),
        final_return=population.final_return[rows],
        frozen_at=population.frozen_at[rows],
        cause=population.cause[rows],
    )


def trailing_return(episodes: np.ndarray, return_sum: np.ndarray) -> np.ndarray:
    """Mean return of the last whole updates that hold at least 100 episodes.

    Args:
      episodes: how many ended in each update, [S, U].
      return_sum: the sum of their returns, [S, U].

    Returns:
      [S, U]; NaN where fewer than 100 have ended yet.
    """
    count = np.pad(np.cumsum(episodes, axis=1, dtype=np.int64), ((0, 0), (1, 0)))
    total = np.pad(np.cumsum(return_sum, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    trailing = np.full(episodes.shape, np.nan)
    for i, (row, sums) in enumerate(zip(count, total, strict=True)):
        start = np.searchsorted(row, row[1:] - EPISODES, side="right") - 1  # the latest enough
        (enough,) = np.nonzero(start >= 0)
        before, after = start[enough], enough + 1
        trailing[i, enough] = (sums[after] - sums[before]) / (row[after] - row[before])
    return trailing


def untrained_return(population: "Population") -> float:
    """Mean return of the episodes of each seed's first update in which any ended, over all seeds.

    0 if no episode ended at all.
    """
    episodes, returns = _returns(population)
    rows = np.flatnonzero((episodes > 0).any(axis=1))
    first = (rows, np.argmax(episodes > 0, axis=1)[rows])
    return float(returns[first].sum(dtype=np.float64) / max(1, episodes[first].sum()))


def time_to_solve(solving: Solving) -> Survival:
    """The share of seeds that have not solved the task yet.

    Seeds that never did are censored at the budget; where all have the same, the estimate is
    simply the share of the seeds.
    """
    return kaplan_meier(solving.time, solving.ever)


def _returns(population: "Population") -> tuple[np.ndarray, np.ndarray]:
    """How many episodes ended in each update, and the sum of their returns; [S, U] each."""
    metrics = population.metrics
    return np.asarray(metrics.episodes), np.asarray(metrics.return_sum)


def _counted(final: np.ndarray, diverged: np.ndarray, floor: float) -> np.ndarray:
    return np.where(diverged | ~np.isfinite(final), floor, final)
