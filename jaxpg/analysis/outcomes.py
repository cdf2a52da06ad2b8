"""What became of each seed of a run: its return, when it solved the task, whether it lost it again.

The *trailing return* after an update is the mean return of the last whole updates that hold at
least 100 episodes; where fewer have ended there is none. A seed that diverged has none from then on
either: it solves nothing more. It is not censored there, which would presume that it would have
done as the others did.

A seed that *failed* (it diverged, or finished no episode) has no score of its own. It counts with
the return that seeds had before training, or with the lowest final return if that is lower: a seed
of which nothing good is known never makes a run look better.
"""

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpg import words
from jaxpg.analysis.budget import Budget, budget, last_within, spent
from jaxpg.analysis.stats import SOLVED, TIME_LIMITS, Survival, kaplan_meier
from jaxpg.core.config import RECENT_EPISODES, Config
from jaxpg.population.evaluations import Evaluations
from jaxpg.population.settings import with_setting

if TYPE_CHECKING:
    from jaxpg.population.population import Population

FEWEST = 4  # updates in which episodes ended, of a seed of which is said whether it has learnt
LEVEL = 0.05  # of the tests whether a run has learnt
ROUNDING = 1e-5  # relative; what a return differs by less is the same
NORMALISATIONS = ("normalize_advantage", "normalize_obs", "normalize_reward")
RANKS = ("best", "median", "worst")


class Solving(NamedTuple):
    """Whether and when each of S seeds solved the task."""

    target: float  # return that counts as solved
    lost_below: float  # return that counts as lost: halfway from untrained to the target
    solved: np.ndarray  # bool [S], did not diverge, and its final return is at least the target
    ever: np.ndarray  # bool [S], some trailing return was at least the target
    time: np.ndarray  # [S], end of the first update where it was; the budget where it never was
    collapsed: np.ndarray  # bool [S], ever solved, and later some trailing return was lost
    judged: np.ndarray  # bool [S], 100 episodes have ended, or it failed; else nobody can say
    known: bool  # whether it is, what share of the seeds solves the task


class Learning(NamedTuple):
    """How the return rose over training."""

    first: float  # mean return in the first tenth of each seed's updates, over seeds
    last: float  # in the last tenth
    shown: bool  # whether that is more than chance
    constant: bool  # whether every update of both had the same return
    warning: str | None  # a sentence if nothing was learnt, as far as can be seen: what to try


class Outcomes(NamedTuple):
    """What became of S seeds."""

    final: np.ndarray  # [S], mean return of the last (up to) 100 episodes; NaN if none ended
    diverged: np.ndarray  # bool [S]; its final return is that of its last finite state
    floor: float  # what a seed that failed counts with; NaN if no episode of any seed ended
    solving: Solving | None  # None if nothing says what counts as solved
    recent_share: float  # of the median seed's updates, of which its final return is the mean

    @property
    def scores(self) -> np.ndarray:
        """What each seed counts with, [S]; empty if no episode of any seed ended."""
        if np.isnan(self.floor):
            return self.final[:0]
        return counted(self.final, self.diverged, self.floor)

    @property
    def all_failed(self) -> bool:
        """Whether every seed diverged or finished no episode: all scores are the floor."""
        return bool((self.diverged | np.isnan(self.final)).all())


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
    target = solved_at(config) if target is None else target
    if within is not None:
        population = until(config, population, within)
    final = np.asarray(population.final_return, float)
    diverged = population.frozen_at >= 0
    least, share = floor(population), _recent_share(population, cut=within is not None)
    if target is None:
        return Outcomes(final, diverged, least, None, share)
    trailing = trailing_return(*_returns(population))
    update = np.arange(trailing.shape[1])
    trailing[diverged[:, None] & (update >= population.frozen_at[:, None])] = np.nan
    solved = is_solved(population, target)
    reached = trailing >= target
    reached[:, -1] |= solved  # by its last 100 episodes, which begin within an update
    ever = reached.any(axis=1)
    first = np.where(ever, reached.argmax(axis=1), len(update) - 1)
    lost_below = min(target, (untrained_return(population) + target) / 2)
    lost = (trailing < lost_below) & (update > first[:, None])
    used = spent(config, population, within.unit if within else budget(config).unit)
    time = used[np.arange(len(first)), first].astype(float)
    watched = last_within(used, within) if within else used[:, -1]
    solving = Solving(
        target=target,
        lost_below=lost_below,
        solved=solved,
        ever=np.asarray(ever),
        time=np.where(ever, time, watched),
        collapsed=np.logical_and(ever, lost.any(axis=1)),
        judged=failed(population) | has_recent_episodes(population),
        known=is_known_who_solves(population),
    )
    return Outcomes(final, diverged, least, solving, share)


def _recent_share(population: "Population", cut: bool) -> float:
    """The share of its updates in which the last 100 episodes of the median seed ended; 0 where
    all have failed.

    Args:
      cut: whether an update counts whole, as in `until`, though its first episodes are not needed.
    """
    metrics = population.metrics
    some = ~failed(population)
    episodes = np.asarray(metrics.episodes)[some]
    later = np.cumsum(episodes[:, ::-1], axis=1)[:, ::-1] - episodes
    share = np.clip((RECENT_EPISODES - later) / np.maximum(episodes, 1), 0.0, 1.0)
    trained = np.asarray(metrics.env_steps)[some] > 0  # within what counts
    within = (np.ceil(share) if cut else share) * trained
    return float(np.median(within.sum(axis=1) / trained.sum(axis=1))) if some.any() else 0.0


def solved_at(config: Config) -> float | None:
    """The return that gymnasium calls solved; None where it says nothing, as of another time limit,
    with which a return means something else."""
    limit = config.max_episode_steps
    return SOLVED.get(config.env) if limit in (None, TIME_LIMITS.get(config.env)) else None


def is_solved(population: "Population", target: float) -> np.ndarray:
    """Whether each row ends at the target, as a mean of 100 episodes, bool [rows]: not if it
    diverged, or fewer have ended."""
    final = np.nan_to_num(np.asarray(population.final_return, float), nan=-np.inf)
    return has_recent_episodes(population) & (population.frozen_at < 0) & (final >= target)


def is_known_who_solves(population: "Population") -> bool:
    """Whether some seed has had the episodes for it; of seeds that all failed none does."""
    gone = failed(population)
    return bool((has_recent_episodes(population) & ~gone).any() or gone.all())


def failed(population: "Population") -> np.ndarray:
    """Whether each row has diverged or finished no episode, bool [rows]."""
    return (population.frozen_at >= 0) | np.isnan(np.asarray(population.final_return, float))


def has_recent_episodes(population: "Population") -> np.ndarray:
    """Whether as many episodes of each row have ended as solving is a mean of, bool [rows]."""
    return np.asarray(population.metrics.episodes).sum(axis=1) >= RECENT_EPISODES


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
        found[rows] = counted(final, diverged, least if np.isnan(own) else own)
    return found


def floor(population: "Population") -> float:
    """What a seed that failed counts with: the untrained return, or the lowest final one if lower.

    NaN if no episode ended.
    """
    final = np.asarray(population.final_return, float)
    if not (np.asarray(population.metrics.episodes) > 0).any():
        return float("nan")
    return min([untrained_return(population), *final[np.isfinite(final)].tolist()])


def lowest_floors(floors: Iterable[tuple[Hashable, float]]) -> dict[Hashable, float]:
    """Of each environment, what a seed that failed counts with: alike in all that act in it.

    Args:
      floors: pairs of an environment and a floor in it; NaN where no episode ended.
    """
    lowest: dict[Hashable, float] = {}
    for world, known in floors:
        if not np.isnan(known):
            lowest[world] = min(known, lowest.get(world, np.inf))
    return lowest


def counted(final: np.ndarray, diverged: np.ndarray, floor: float) -> np.ndarray:
    """The final return of each seed, or the floor of one that failed.

    Args:
      final: NaN if no episode ended, [S].
      diverged: bool [S].
    """
    return np.where(diverged | ~np.isfinite(final), floor, final)


def ranking(final: np.ndarray, diverged: np.ndarray) -> np.ndarray:
    """Seeds by final return, the best first; those that failed last, and equal ones in their order.

    Args:
      final: NaN if no episode ended, [S].
      diverged: bool [S].

    Returns:
      Indices [S].
    """
    return np.argsort(-counted(final, diverged, -np.inf), kind="stable")


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

    The final return of every row, cut or not, is then the mean of the last whole updates that hold
    at least 100 episodes, or of all if fewer have ended. Of evaluations that before training is
    left. Parameters are not carried along.
    """
    kept = spent(config, population, within.unit) <= within.amount
    metrics = population.metrics
    cut = {name: np.where(kept, x, np.zeros_like(x)) for name, x in metrics.named().items()}
    cut_metrics = metrics._replace(**cut)
    before = population.evaluations and Evaluations(*(x[..., :1] for x in population.evaluations))
    population = population._replace(metrics=cut_metrics, params={}, evaluations=before)
    episodes, returns = _returns(population)
    count, total = episodes.sum(axis=1), returns.sum(axis=1, dtype=np.float64)
    final = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    trailing = trailing_return(episodes, returns)[:, -1]
    cut_final = np.where(np.isnan(trailing), final, trailing)
    gone = population.frozen_at >= kept.sum(axis=1)
    return population._replace(
        final_return=cut_final,
        frozen_at=np.where(gone, -1, population.frozen_at),
        cause=np.where(gone, 0, population.cause),
    )


def select(population: "Population", rows: Any) -> "Population":
    """These rows of a population (an index of arrays). Parameters are not carried along."""
    metrics, seen = population.metrics, population.evaluations
    return population._replace(
        seeds=population.seeds[rows],
        setting=population.setting[rows],
        params={},
        metrics=metrics._replace(**{name: x[rows] for name, x in metrics.named().items()}),
        final_return=population.final_return[rows],
        frozen_at=population.frozen_at[rows],
        cause=population.cause[rows],
        evaluations=seen and Evaluations(seen.update, seen.greedy[rows], seen.sampled[rows]),
    )


def evaluated(population: "Population") -> Evaluations | None:
    """What each row counts with where it was evaluated, float64.

    One that has diverged by then counts with the mean of all of its setting before training (or
    with the untrained return, where they were trained before), or with the lowest at the end if
    that is lower; so does one whose return is no number. None if none was evaluated, or only with
    returns that are no numbers.
    """
    seen = population.evaluations
    if seen is None:
        return None
    diverged = population.frozen_at[:, None] >= 0
    gone = diverged & (seen.update > population.frozen_at[:, None])
    greedy, sampled = (np.where(gone, np.nan, x.astype(float)) for x in (seen.greedy, seen.sampled))
    for setting in np.unique(population.setting):
        rows = np.flatnonzero(population.setting == setting)
        before = _untrained_before(population, setting)
        for returns in (greedy, sampled):
            returns[rows] = _evaluations_counted(returns[rows], before)
    known = np.isfinite(greedy).all() and np.isfinite(sampled).all()
    return Evaluations(seen.update, greedy, sampled) if known else None


def all_gone(population: "Population", update: int) -> bool:
    """Whether every row had diverged when it was evaluated there: all count with one number."""
    frozen_at = np.asarray(population.frozen_at)
    return bool(((frozen_at >= 0) & (update > frozen_at)).all())


def _evaluations_counted(returns: np.ndarray, before: float | None) -> np.ndarray:
    """What is no number is what it counts with, [S, K]."""
    known = np.where(np.isfinite(returns), returns, np.nan)
    first, last = (x[np.isfinite(x)] for x in (known[:, 0], known[:, -1]))
    untrained = first.mean() if before is None and len(first) else before
    least = min([np.nan if untrained is None else untrained, *last.tolist()])
    return np.where(np.isnan(known), least, known)


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
        # The latest update since which there are enough.
        start = np.searchsorted(row, row[1:] - RECENT_EPISODES, side="right") - 1
        (enough,) = np.nonzero(start >= 0)
        before, after = start[enough], enough + 1
        trailing[i, enough] = (sums[after] - sums[before]) / (row[after] - row[before])
    return trailing


def untrained_return(population: "Population") -> float:
    """Mean return before training, as of `known_untrained_return`; 0 where that is not known."""
    return known_untrained_return(population) or 0.0


def known_untrained_return(population: "Population") -> float | None:
    """Mean return before training, over all seeds: of the sampled episodes of their evaluation
    there, or without one of the episodes of each seed's first update in which any ended.

    None if no episode ended at all. Of a run that started from another's policies in the same
    environment it is that one's.
    """
    before = {_untrained_before(population, x) for x in np.unique(population.setting)}
    if len(before) == 1 and (known_before := before.pop()) is not None:
        return known_before
    if population.evaluations is not None:
        sampled = population.evaluations.sampled[:, 0]
        known = sampled[np.isfinite(sampled)]
        if len(known):
            return float(known.mean(dtype=np.float64))
    episodes, returns = _returns(population)
    rows = np.flatnonzero((episodes > 0).any(axis=1))
    if not len(rows):
        return None
    first = (rows, np.argmax(episodes > 0, axis=1)[rows])
    return float(returns[first].sum(dtype=np.float64) / episodes[first].sum())


def _untrained_before(population: "Population", setting: int) -> float | None:
    """The untrained return of the run that this one started from, if a setting's environment is
    that one's."""
    what = population.manifest
    if what is None or what.start is None:
        return None
    here = words.world(with_setting(what.config, what.settings[setting])), what.env_sha256
    there = what.start.env, what.start.env_sha256
    return what.start.untrained if there == here else None


def learning(config: Config, population: "Population") -> Learning | None:
    """Whether the return has risen from the first tenth of training to the last.

    Of fixed steps only the updates count before which twice as many episodes as environments have
    ended: those that end first are the short ones.

    It has if all seeds together show it (a one-sided t-test of what each gained), or one of them
    alone does: by Welch's t-test of the mean returns of its updates, at LEVEL divided by the number
    of seeds, and if it gained twice what any seed lost, since policies that drift gain as often as
    they lose. Of runs that learn nothing about a tenth are taken for runs that do.

    Returns:
      None where no seed has updates enough in which episodes ended.
    """
    episodes, returns = _returns(population)
    early = 2 * config.num_envs if config.collect == "steps" else 0
    ended = [np.flatnonzero((row > 0) & (np.cumsum(row) - row >= early)) for row in episodes]
    ends = []  # of each seed: mean of the first and last tenth, error² of both, degrees of freedom
    for row, updates in enumerate(ended):
        if len(updates) < FEWEST:
            continue
        mean = returns[row, updates] / episodes[row, updates].astype(float)
        count = max(2, len(mean) // 10)
        parts = mean[:count], mean[-count:]
        one, other = (part.var(ddof=1) / count for part in parts)
        spread = (one + other) ** 2 / max(one**2 + other**2, np.finfo(float).tiny)
        ends.append((*(part.mean() for part in parts), one + other, spread * (count - 1)))
    if not ends:
        return None
    first, last, error, degrees = np.array(ends).T
    gained = last - first
    gained[np.abs(gained) < ROUNDING * np.maximum(np.abs(first), np.abs(last))] = 0.0
    alone = _chance(gained, error, degrees) < LEVEL / len(gained)
    shown = (alone & (gained > 2 * max(0.0, -gained.min()))).any()
    if len(gained) > 1:
        together = gained.mean(), gained.var(ddof=1) / len(gained), len(gained) - 1
        shown |= _chance(*together) < LEVEL
    constant = not (gained.any() or error.any())
    begun, reached, target = float(first.mean()), float(last.mean()), solved_at(config)
    warning = None
    if not shown and (target is None or min(begun, reached) < target):
        manifest = population.manifest
        anew = manifest is None or manifest.start is None
        what = "has learnt" if anew else "is better than what it started from"
        warning = (
            f"Nothing shows that it {what}: the mean return is {begun:.4g} in the first tenth of "
            f"training and {reached:.4g} in the last, {_advice(config, constant)}."
        )
    return Learning(begun, reached, bool(shown), constant, warning)


def _advice(config: Config, constant: bool) -> str:
    """What to try where nothing was learnt, and why."""
    if constant:
        return (
            "always the same, from which no gradient follows: try longer episodes "
            "(max_episode_steps), more exploration (ent_coef) or a reward that says more"
        )
    off = [name for name in NORMALISATIONS if not getattr(config, name)]
    others = ["other learning rates (a factor of 10 either way)", "a larger budget", *off]
    return (
        "and neither all seeds together nor one alone is above chance: try "
        f"{', '.join(others[:-1])} or {others[-1]}"
    )


def _chance(gained: Any, error: Any, degrees: Any) -> np.ndarray:
    """P-value of a one-sided t-test; `error` is the square of the standard error."""
    from scipy.stats import t

    with np.errstate(divide="ignore", invalid="ignore"):
        tested = t.sf(gained / np.sqrt(error), degrees)
    return np.where(np.greater(error, 0), tested, np.where(np.greater(gained, 0), 0.0, 1.0))


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
