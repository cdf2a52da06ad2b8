"""What a training run may spend, and what it has spent after each update."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxpg import words
from jaxpg.core.config import Config
from jaxpg.errors import RunError

if TYPE_CHECKING:
    from jaxpg.population.population import Population

STEPS = "environment steps"
NEAR = 1 / 50


class Budget(NamedTuple):
    """What each seed may spend."""

    amount: int
    unit: str  # environment steps, or episodes

    @property
    def said(self) -> str:
        """For people."""
        return f"{words.amount(self.amount)} {self.unit}"


def budget(config: Config) -> Budget:
    """What a config gives to each seed; a remainder that pays for no update is left unspent."""
    return Budget(getattr(config, config.budget), config.unit)


def taken(config: Config) -> Budget:
    """What each seed takes of its budget: all, but for a fiftieth; less where one more of its
    updates would be too much."""
    own, updates = budget(config), config.num_updates * config.update_cost
    return own if own.amount - updates <= NEAR * own.amount else own._replace(amount=updates)


def spent(config: Config, population: "Population", unit: str) -> np.ndarray:
    """What each seed has spent after each update.

    Args:
      unit: the budget's own, or STEPS, which every run has counted.

    Returns:
      Integers [S, U]. In another unit than the budget's, a seed that has diverged spends no more.

    Raises:
      ValueError: if episodes are asked of a run whose budget is in steps.
    """
    if unit == config.unit:
        updates = np.arange(1, config.num_updates + 1)
        return np.broadcast_to(updates * config.update_cost, population.metrics.env_steps.shape)
    if unit != STEPS:
        raise ValueError(f"a run with a budget in {STEPS} is not measured in {unit}")
    return np.cumsum(population.metrics.env_steps, axis=1, dtype=np.int64)


def last_within(used: np.ndarray, within: Budget) -> np.ndarray:
    """What each seed had spent by its last whole update within a budget, [S]; 0 if that pays for
    none.

    Args:
      used: as of `spent`, in its unit, [S, U].
    """
    return np.where(used <= within.amount, used, 0).max(axis=1)


def alike(one: Config, other: Config) -> bool:
    """Whether the seeds of two configs have the same to spend, and spend it but for a fiftieth:
    what is left of a budget pays for no update."""
    ours, theirs = (config.num_updates * config.update_cost for config in (one, other))
    return budget(one) == budget(other) and abs(ours - theirs) <= NEAR * max(ours, theirs)


def smallest(runs: Sequence[tuple[Config, "Population"]]) -> Budget | None:
    """What every seed of these runs has spent, if they differ in that; None if they do not.

    In environment steps where budgets are in different units; of a run in episodes it is then what
    its cheapest seed took (of those that diverged none).

    Raises:
      RunError: if one update of a seed costs more than that.
    """
    first, *others = (config for config, _ in runs)
    if all(alike(first, other) for other in others):
        return None
    within = _smallest(runs)
    for config, population in runs:
        paid = config.update_cost
        if within.unit != config.unit:
            paid = int(population.metrics.env_steps[_healthy(population), 0].max())
        if paid > within.amount:
            raise RunError(
                f"there is nothing to compare after {within.amount:,} {within.unit}, the smallest "
                f"budget: an update of {config.env} with {config.num_envs} environments takes "
                f"{paid:,}; compare runs with like budgets"
            )
    return within


def _smallest(runs: Sequence[tuple[Config, "Population"]]) -> Budget:
    budgets = [Budget(config.num_updates * config.update_cost, config.unit) for config, _ in runs]
    if len({one.unit for one in budgets}) == 1:
        return min(budgets)
    amounts = []
    for config, population in runs:
        used = spent(config, population, STEPS)[_healthy(population), -1]
        amounts.append(int(used.min()))
    return Budget(min(amounts), STEPS)


def _healthy(population: "Population") -> np.ndarray:
    """Whether each row has not diverged, bool [S]; all of them, if all have."""
    healthy = np.asarray(population.frozen_at) < 0
    return healthy if healthy.any() else ~healthy
