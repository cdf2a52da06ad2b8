"""A race: contenders get seeds round by round, until it is decided which of them is better.

Whether a seed of one beats a seed of the other more often than not is asked after every round, and
the chance that alike ones are told apart anywhere stays below alpha (α). Three parts keep it:

    a round     All contenders train the same seeds. Were two of them alike, their scores of a seed
                could be swapped: what was seen is held against B swaps of the same scores, of the
                statistic |P - ½| / its standard error.
    the rounds  Each may spend α / K: of the B, those that are the most extreme in the first round
                are struck out, then those of the rest that are in the second, and so on. The
                p-value of a pair is the share that are struck out when it is.
    the pairs   Holm's: the level of a pair is α over the number of those that are not decided.

The first two are exact for any scores and any number of seeds: that what was seen is struck out has
the chance of any other of the B. Where contenders differ, but neither is better (P = ½), they hold
in the limit of many seeds, since the statistic is divided by its own standard error.

Source: group-sequential permutation tests of many contenders as in AdaStop, Mathieu et al. 2023
(arXiv:2306.10882), here with the statistic of Konietschke and Pauly 2012, EJS 6:1358-1372, for
pairs, and Holm's levels (Scandinavian Journal of Statistics 6:65-70, 1979), as Maurer and Bretz
2013, Statistics in Biopharmaceutical Research 5:311-320, show that they hold over rounds.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxpg.analysis.stats import Estimate

ALPHA = 0.05
SWAPS = 10_000  # at least
STRUCK = 10  # at least, in a round at the strictest level
BLOCK = 2**20  # scores that are swapped at once: what stays near the processor


class Plan(NamedTuple):
    """What is settled before a race."""

    contenders: int  # C
    rounds: tuple[int, ...]  # seeds that each has after each of K rounds, ascending
    alpha: float = ALPHA  # the chance of telling alike contenders apart, in (0, 1)
    swaps: int | None = None  # None for as many as the strictest level needs

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of contenders, as indices."""
        return list(itertools.combinations(range(self.contenders), 2))

    @property
    def num_swaps(self) -> int:
        """B."""
        strictest = self.alpha / len(self.pairs) / len(self.rounds)
        return self.swaps or max(SWAPS, math.ceil(STRUCK / strictest))


class Pair(NamedTuple):
    """Two contenders after a round."""

    one: int
    other: int
    seeds: int  # of each that were compared
    improvement: Estimate  # P(a seed of `one` beats one of `other`), and which P stay possible
    p_value: float  # over the rounds so far; not over the pairs
    better: int | None  # which of the two, once it is decided

    @property
    def worse(self) -> int | None:
        """Which of the two has lost."""
        return None if self.better is None else self.one + self.other - self.better


class Round(NamedTuple):
    """A race after a round."""

    seeds: int  # of each contender that was still in it
    pairs: tuple[Pair, ...]  # all, in the order of `Plan.pairs`
    running: tuple[int, ...]  # contenders that the next round is for; none at the end

    @property
    def unbeaten(self) -> list[int]:
        """The contenders that have lost to nobody."""
        beaten = {pair.worse for pair in self.pairs}
        return sorted({i for pair in self.pairs for i in pair[:2]} - beaten)


def rounds(first: int, most: int) -> tuple[int, ...]:
    """Seeds after each round: `most`, ¾ of it, ½, and so on, while they are at least `first`.

    Whatever the difference is, some round then comes soon after it can be seen.
    """
    halves = [most / 2**k for k in range(most.bit_length())]
    totals = {math.ceil(share * half) for half in halves for share in (1.0, 0.75)}
    return tuple(sorted(total for total in totals if total >= first))


def fewest_seeds(plan: Plan) -> int:
    """The fewest seeds with which anything can be decided: 2^(1-n) ≤ α / (pairs · K)."""
    return 1 + math.ceil(math.log2(len(plan.pairs) * len(plan.rounds) / plan.alpha))


def race(plan: Plan, scores: Sequence[np.ndarray]) -> list[Round]:
    """The rounds of a race, as far as the scores at hand go.

    A contender that has lost to another is out, and the next rounds are without it. The race ends
    when only one is left, or with the last round.

    Args:
      scores: of each contender, [n] each, in the order of their seeds, which are the same for all;
        -inf for a seed that failed. Those beyond a contender's last round are not looked at.

    Raises:
      ValueError: if there are scores of more or fewer contenders, or one is NaN or +inf.
    """
    scores = [np.asarray(x, float) for x in scores]
    if len(scores) != plan.contenders or any((np.isnan(x) | (x == np.inf)).any() for x in scores):
        raise ValueError(
            f"there must be scores of {plan.contenders} contenders, finite or -inf; got "
            f"{len(scores)} contenders, or a score that is NaN or +inf"
        )
    swapped = _swaps(plan)
    seen: dict[tuple[int, int], list[_Seen]] = {pair: [] for pair in plan.pairs}
    pairs = {pair: Pair(*pair, 0, Estimate(0.5, 0.0, 1.0), 1.0, None) for pair in plan.pairs}
    running = tuple(range(plan.contenders))
    found: list[Round] = []
    for seeds in plan.rounds:
        if not running or min(len(scores[i]) for i in running) < seeds:
            break
        tested = list(itertools.combinations(running, 2))
        for one, other in tested:
            now = _see(scores[one][:seeds], scores[other][:seeds], swapped[:seeds])
            seen[one, other].append(now)
            p_value = _p_value(seen[one, other], len(plan.rounds))
            possible = Estimate(now.improvement, 0.0, 1.0)
            pairs[one, other] = Pair(one, other, seeds, possible, p_value, None)
        pairs, levels = _decided(pairs, plan.alpha)
        for pair in tested:
            count = math.floor(levels[pair] * swapped.shape[1] / len(plan.rounds))
            width = _cuts([then.statistic for then in seen[pair]], count)[-1] * seen[pair][-1].error
            center = pairs[pair].improvement.value
            possible = Estimate(center, max(0.0, center - width), min(1.0, center + width))
            pairs[pair] = pairs[pair]._replace(improvement=possible)
        beaten = {pair.worse for pair in pairs.values()}
        running = tuple(i for i in running if i not in beaten)
        if len(running) < 2 or seeds == plan.rounds[-1]:
            running = ()
        found.append(Round(seeds, tuple(pairs.values()), running))
    return found


class _Seen(NamedTuple):
    """What a round saw of a pair."""

    statistic: np.ndarray  # |P - ½| / its standard error, of B swaps, the first as it is; [B]
    improvement: float  # P
    error: float


def _decided(
    pairs: dict[tuple[int, int], Pair], alpha: float
) -> tuple[dict[tuple[int, int], Pair], dict[tuple[int, int], float]]:
    """Holm's procedure: the pairs with what is decided now, and the level of each that was not."""
    pairs = dict(pairs)
    levels: dict[tuple[int, int], float] = {}
    left = sorted(
        (at for at in pairs if pairs[at].better is None), key=lambda at: pairs[at].p_value
    )
    while left:
        level = alpha / len(left)
        levels |= dict.fromkeys(left, level)
        first = left.pop(0)
        one, other, _, improvement, p_value, _ = pairs[first]
        if p_value > level:
            break
        pairs[first] = pairs[first]._replace(better=one if improvement.value > 0.5 else other)
    return pairs, levels


def _swaps(plan: Plan) -> np.ndarray:
    """Which seeds change sides in each of B swaps, of which the first changes none; [S, B]."""
    size = plan.rounds[-1], plan.num_swaps
    swapped = np.random.default_rng(0).integers(0, 2, size, dtype=bool)
    swapped[:, 0] = False
    return swapped


def _see(x: np.ndarray, y: np.ndarray, swapped: np.ndarray) -> _Seen:
    """P, its standard error and their ratio, of scores of the same seeds and of all their swaps.

        d_i = share of y that x_i beats - share of x that y_i beats,    ties a half
        P = ½ + mean(d) / 2,    error² = (var(d) + 1 / n) / n

    As of `stats.paired_improvement`.

    Args:
      x, y: [n].
      swapped: whether x_i and y_i change sides, bool [n, B].
    """
    n = len(x)
    both = np.concatenate([x, y])
    order = np.argsort(both)
    start, end = (np.searchsorted(both[order], both, side) for side in ("left", "right"))
    means, errors = np.empty(swapped.shape[1]), np.empty(swapped.shape[1])
    width = max(1, BLOCK // n)
    for first in range(0, swapped.shape[1], width):
        some = swapped[:, first : first + width]
        ours = np.concatenate([~some, some])[order]  # which of the ordered scores are x's, [2n, B]
        below = np.zeros((2 * n + 1, some.shape[1]), np.int32)
        np.cumsum(ours, axis=0, out=below[1:])
        # Twice how many of x are below each score, ties a half; and of both together.
        of_x, of_both = below[start] + below[end], start + end
        d = np.where(some, of_both[n:, None], of_both[:n, None]) - of_x[:n] - of_x[n:]
        d = d.astype(float) / (2 * n)
        mean = d.mean(axis=0)
        variance = (d * d).mean(axis=0) - mean * mean
        means[first : first + width] = mean
        errors[first : first + width] = np.sqrt((variance + 1 / n) / n)
    return _Seen(np.abs(means) / 2 / errors, 0.5 + float(means[0]) / 2, float(errors[0]))


def _p_value(seen: Sequence[_Seen], planned: int) -> float:
    """K · count / B for the smallest count that strikes out the first of B; 1 if none does.

    A larger count has lower cuts in every round, so that it strikes out all that a smaller one
    does. It is 1, too, where a round that strikes it out saw the other one ahead of who is now.

    Args:
      seen: of each round so far.
      planned: K, all rounds of the race.
    """
    statistics = [then.statistic for then in seen]
    swaps = len(statistics[0])
    low, high = 0, swaps // planned + 1  # strikes it out not, and does or is too many
    while high - low > 1:
        count = (low + high) // 2
        cuts = _cuts(statistics, count)
        if any(now[0] > cut for now, cut in zip(statistics, cuts, strict=True)):
            high = count
        else:
            low = count
    if high > swaps // planned:
        return 1.0
    cuts = _cuts(statistics, high)
    struck = next(then for then, cut in zip(seen, cuts, strict=True) if then.statistic[0] > cut)
    same = (struck.improvement > 0.5) == (seen[-1].improvement > 0.5)
    return min(1.0, planned * high / swaps) if same else 1.0


def _cuts(statistics: Sequence[np.ndarray], count: int) -> list[float]:
    """What is above is struck out in each round: at most `count` of those that are left."""
    left = np.full(len(statistics[0]), True)
    cuts = []
    for now in statistics:
        rest = now[left]
        place = len(rest) - count - 1
        cuts.append(float(np.partition(rest, place)[place]) if place >= 0 else -math.inf)
        left &= now <= cuts[-1]
    return cuts if count else [math.inf] * len(cuts)
