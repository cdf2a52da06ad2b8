"""What became of each seed of a run: its return, when it solved the task, whether it lost it again.

The *trailing return* after an update is the mean return of the last whole updates that hold at
least 100 episodes; where fewer have ended there is none. A seed that diverged has none from then on
either: it solves nothing more. It is not censored there, which would presume that it would have
done as the others did.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpg.analysis.stats import SOLVED, Survival, kaplan_meier
from jaxpg.core.config import Config

if TYPE_CHECKING:
    from jaxpg.population.population import Population

EPISODES = 100  # that a return is a mean of


class Solving(NamedTuple):
    """Whether and when each of S seeds solved the task."""

    target: float  # return that counts as solved
    lost_below: float  # return that counts as lost: halfway from untrained to the target
    solved: np.ndarray  # bool [S], did not diverge, and its final return is at least the target
    ever: np.ndarray  # bool [S], some trailing return was at least the target
    time: np.ndarray  # [S], end of the first update where it was; the budget where it never was
    collapsed: (
        np.ndarray
    )  # bool [S], ever solved, and some later trailing return was below the line


class Outcomes(NamedTuple):
    """What became of S seeds."""

    final: np.ndarray  # [S], mean return of the last (up to) 100 episodes; NaN if none ended
    diverged: np.ndarray  # bool [S]; its final return is that of its last finite state
    solving: Solving | None  # None if nothing says what counts as solved

    @property
    def scores(self) -> np.ndarray:
        """The final returns that exist."""
        return self.final[~np.isnan(self.final)]


def outcomes(config: Config, population: "Population", target: float | None = None) -> Outcomes:
    """What became of each seed.

    Args:
      target: return that counts as solved; None takes the environment's own, if it has one.
    """
    target = SOLVED.get(config.env) if target is None else target
    final = np.asarray(population.final_return, float)
    diverged = population.frozen_at >= 0
    if target is None:
        return Outcomes(final, diverged, None)
    trailing = trailing_return(*_returns(population))
    update = np.arange(trailing.shape[1])
    trailing[diverged[:, None] & (update >= population.frozen_at[:, None])] = np.nan
    reached = trailing >= target
    ever = reached.any(axis=1)
    first = np.where(ever, reached.argmax(axis=1), len(update) - 1)
    lost_below = min(target, (untrained_return(population) + target) / 2)
    lost = (trailing < lost_below) & (update > first[:, None])
    solving = Solving(
        target=target,
        lost_below=lost_below,
        solved=~diverged & (np.nan_to_num(final, nan=-np.inf) >= target),
        ever=np.asarray(ever),
        time=(first + 1.0) * per_update(config),
        collapsed=np.logical_and(ever, lost.any(axis=1)),
    )
    return Outcomes(final, diverged, solving)


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


def per_update(config: Config) -> int:
    """Environment steps, or episodes, that an update takes of a seed's budget."""
    return config.num_envs * (config.num_steps if config.collect == "steps" else 1)


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
