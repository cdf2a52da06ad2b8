"""Evaluations while training: when policies act in fresh episodes, and what came of it.

Imports no jax.
"""

import numbers
from typing import TYPE_CHECKING, NamedTuple

from jaxpg.core.config import Config, ConfigError

if TYPE_CHECKING:
    import numpy as np

MODES = ("greedy", "sampled")  # how a policy acts: by its mode, or as it trains
EPISODES = 10  # of each mode, if nobody says how many
MOST_EPISODES = 100_000


class Evaluating(NamedTuple):
    """When policies are evaluated while they train, and in how many episodes."""

    every: int  # of the budget: environment steps, or episodes, per seed
    episodes: int  # M, greedy ones and as many sampled ones


class Evaluations(NamedTuple):
    """Mean returns over M fresh episodes, of S rows after K numbers of updates."""

    update: "np.ndarray"  # int32 [K], ascending; the first is 0, the last all
    greedy: "np.ndarray"  # [S, K]
    sampled: "np.ndarray"  # [S, K]


def asked(config: Config, every: int | None, episodes: int = EPISODES) -> Evaluating | None:
    """What `evaluate_every` and `evaluate_episodes` ask for; None for None.

    Raises:
      ConfigError: if they have no meaning for this config.
    """
    if every is None:
        if episodes != EPISODES:
            raise ConfigError(f"evaluate_episodes needs evaluate_every; got {episodes!r} alone")
        return None
    budget, cost = getattr(config, config.budget), config.update_cost
    for name, value, most in (
        ("evaluate_every", every, budget),
        ("evaluate_episodes", episodes, MOST_EPISODES),
    ):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not 1 <= value <= most:
            raise ConfigError(f"{name} must be an integer in [1, {most:,}]; got {value!r}")
    if every < cost:
        raise ConfigError(
            f"evaluate_every must be at least what an update takes, {cost:,} {config.unit}; got "
            f"{every:,}"
        )
    if budget % every:
        raise ConfigError(
            f"evaluate_every must divide {config.budget}, {budget:,}, so that the last evaluation "
            f"is of the end; got {every:,}"
        )
    return Evaluating(int(every), int(episodes))


def points(config: Config, every: int) -> list[int]:
    """Updates after which policies are evaluated: those that 0, 1, 2, … times so much pays for."""
    budget = getattr(config, config.budget)
    return [k * every // config.update_cost for k in range(budget // every + 1)]
