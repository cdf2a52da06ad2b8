"""Curves over training: returns and metrics, averaged into as many points as a picture shows."""

from typing import TYPE_CHECKING

import numpy as np

from jaxpg.analysis.outcomes import per_update
from jaxpg.core.config import Config

if TYPE_CHECKING:
    from jaxpg.population.population import Population

POINTS = 100  # of a curve; updates are averaged into so many


def curve_points(config: Config, population: "Population") -> tuple[np.ndarray, np.ndarray]:
    """Where the curve's points lie, and each seed's return there.

    A seed's point is the mean return of the episodes that ended since the point before; where
    none did, it keeps its last value.

    Returns:
      Environment steps or episodes per seed, [P]; returns [S, P], NaN before a seed's first
      episode has ended.
    """
    edges = _edges(config.num_updates)
    count = np.add.reduceat(np.asarray(population.metrics.episodes), edges[:-1], axis=1)
    returned = np.asarray(population.metrics.return_sum)
    total = np.add.reduceat(returned, edges[:-1], axis=1, dtype=np.float64)
    returns = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    for i in range(1, returns.shape[1]):
        returns[:, i] = np.where(np.isnan(returns[:, i]), returns[:, i - 1], returns[:, i])
    return edges[1:] * per_update(config), returns


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
    return edges[1:] * per_update(config), np.stack(columns, axis=1)


def unit(config: Config) -> str:
    """What a run's budget is counted in."""
    return "environment steps" if config.collect == "steps" else "episodes"


def _edges(updates: int) -> np.ndarray:
    return np.unique(np.linspace(0, updates, min(POINTS, updates) + 1).round().astype(int))
