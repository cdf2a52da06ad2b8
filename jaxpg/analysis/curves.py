"""What is seen over training, point by point: each seed's return, and a metric's spread."""

from typing import TYPE_CHECKING

import numpy as np

from jaxpg.analysis.budget import spent
from jaxpg.analysis.outcomes import floor
from jaxpg.core.config import Config

if TYPE_CHECKING:
    from jaxpg.population.population import Population

POINTS = 100  # points of a curve; updates are averaged into so many


def curve_points(
    config: Config,
    population: "Population",
    unit: str | None = None,
    least: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Where the curve's points lie, and the return that each seed counts with there.

    A seed's point is the mean return of the episodes that ended since the point before; where
    none did, it keeps its last value. A seed that diverged counts as in the statistics from then
    on, and one that never finishes an episode from the start (`outcomes.floor`).

    Args:
      population: rows of one setting, or of several that count as one.
      unit: what is counted along the curve: the budget's own (None), or budget.STEPS. The curve
        ends where the first healthy seed has spent its budget.
      least: what a seed that failed counts with; None takes the population's own floor.

    Returns:
      What each seed has spent, [P]; returns [S, P], NaN before a seed's first episode has ended.
    """
    edges = _edges(config.num_updates)
    count = np.add.reduceat(np.asarray(population.metrics.episodes), edges[:-1], axis=1)
    returned = np.asarray(population.metrics.return_sum)
    total = np.add.reduceat(returned, edges[:-1], axis=1, dtype=np.float64)
    returns = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    for i in range(1, returns.shape[1]):
        returns[:, i] = np.where(np.isnan(returns[:, i]), returns[:, i - 1], returns[:, i])
    frozen_at = population.frozen_at[:, None]
    gone = (frozen_at >= 0) & (edges[1:] > frozen_at)
    silent = ~np.isfinite(returns).any(axis=1, keepdims=True)
    returns = np.where(gone | silent, floor(population) if least is None else least, returns)
    if unit in (None, config.unit):
        return edges[1:] * config.update_cost, returns
    used = spent(config, population, unit)
    end = used[:, -1][population.frozen_at < 0].min(initial=used.max())
    amount = np.linspace(0, end, len(edges))[1:]
    return amount, _held(used[:, edges[1:] - 1], returns, amount)


def metric_points(config: Config, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A metric's means over as many updates as a curve's point stands for.

    Args:
      values: [S, U], NaN once a seed has diverged.

    Returns:
      Environment steps or episodes per seed, [P]; the 10th, 50th and 90th percentile over the
      seeds that have not diverged by then, [3, P], NaN where none is left.
    """
    edges = _edges(config.num_updates)
    total = np.add.reduceat(values, edges[:-1], axis=1, dtype=np.float64)
    ordered = np.sort(total / np.diff(edges), axis=0)  # NaN last
    left = np.isfinite(ordered).sum(axis=0)
    columns = [
        np.percentile(ordered[:count, i], [10, 50, 90]) if count else np.full(3, np.nan)
        for i, count in enumerate(left)
    ]
    return edges[1:] * config.update_cost, np.stack(columns, axis=1)


def _held(used: np.ndarray, returns: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Each seed's return at these amounts: that of its last point up to there.

    Args:
      used: what each seed had spent at its points, [S, P], ascending.
      returns: [S, P].
      amount: [Q].

    Returns:
      [S, Q]; NaN before a seed's first point.
    """
    found = np.full((len(used), len(amount)), np.nan)
    for row, at, values in zip(found, used, returns, strict=True):
        last = np.searchsorted(at, amount, side="right") - 1
        row[last >= 0] = values[last[last >= 0]]
    return found


def _edges(updates: int) -> np.ndarray:
    return np.unique(np.linspace(0, updates, min(POINTS, updates) + 1).round().astype(int))
