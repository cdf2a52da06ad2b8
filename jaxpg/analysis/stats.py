"""Statistics over seeds: location, proportions, two runs compared. numpy and scipy only.

A score is one number per seed. *Strata* are several 1-D arrays of scores, one for each task or
setting: a bootstrap resamples each of them on its own, and a statistic is that of all together.
The same data always give the same interval: the resamples are drawn from a fixed key.

A score that is not known has no place in any of them: sorted as a number, NaN would be the best.
All raise ValueError for scores that are not finite; `outcomes.scores` says what a seed counts with
that has none of its own.
"""

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # whose stats it imports when they are first used: not before training

RESAMPLES = 2_000
CONFIDENCE = 0.95
FEW = 20  # seeds of either side, with fewer of which a bootstrap misses ½ too often
MOST_NEEDED = 10**9  # seeds
ALIKE = 8  # seeds, with fewer of which equal scores do not say that others are equal, too
SOLVED = {  # the mean return of 100 episodes that gymnasium calls solved
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
}
TIME_LIMITS = {  # with which that is said
    "CartPole-v1": 500,
    "Acrobot-v1": 500,
    "MountainCar-v0": 200,
    "MountainCarContinuous-v0": 999,
}

Strata = Sequence[np.ndarray]


class Estimate(NamedTuple):
    """A number and its confidence interval."""

    value: float
    low: float
    high: float


def iqm(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean: the mean of the middle half.

    Args:
      x: one score per seed along `axis`.

    Source: Agarwal et al. 2021, Deep RL at the edge of the statistical precipice
    (arXiv:2108.13264).
    """
    x = np.moveaxis(_finite(x), axis, 0)  # not scipy's trim_mean, which progress would wait for
    cut = len(x) // 4
    return np.partition(x, (cut, len(x) - cut - 1), axis=0)[cut : len(x) - cut].mean(axis=0)


def optimality_gap(x: np.ndarray, target: float, axis: int = 0) -> np.ndarray:
    """By how much scores fall short of a target, on average: mean of max(0, target - x).

    Scores beyond the target do not make up for others; 0 if all have reached it. In the unit of
    the scores.

    Source: Agarwal et al. 2021 (arXiv:2108.13264), there for scores normalised to target 1.
    """
    return np.maximum(0.0, target - _finite(x)).mean(axis=axis)


def iqm_band(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval that `estimate` has of an IQM, at every point of a curve.

    A resample's IQM is a sum of the ordered scores, each as often as its rank was drawn and not cut
    off. So one matrix of weights serves all points.

    Args:
      x: scores, [S, ...].

    Returns:
      Low and high, [...] each; both are the IQM itself for a single seed.
    """
    x = _finite(x)
    size, cut = len(x), len(x) // 4
    ordered = np.sort(x, axis=0)
    rng, found, batch = np.random.default_rng(0), [], _batch(size)
    for first in range(0, RESAMPLES, batch):
        drawn = rng.integers(size, size=(min(batch, RESAMPLES - first), size))
        kept = np.sort(drawn, axis=1)[:, cut : size - cut]
        times = np.stack([np.bincount(ranks, minlength=size) for ranks in kept])
        found.append(np.tensordot(times / kept.shape[1], ordered, 1))
    beyond = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(found), [beyond, 1 - beyond], axis=0)
    return np.maximum(low, ordered[0]), np.minimum(high, ordered[-1])  # weights are rounded


def estimate(statistic: Callable[..., np.ndarray], strata: Strata) -> Estimate:
    """A statistic of all scores, with its stratified percentile-bootstrap interval.

    Args:
      statistic: of scores along `axis`, as `iqm`, `np.median` and `np.mean` are.
      strata: scores of each stratum, at least one in all. One of a single score is not resampled.

    Returns:
      Without an interval (NaN) where no stratum has two scores, for one seed says nothing of
      others; or where it would be a point, of fewer than ALIKE that can be resampled.

    Source: Efron and Tibshirani 1993, ch. 13; stratified as in Agarwal et al. 2021.
    """
    strata = [_finite(x) for x in strata]
    value = float(statistic(np.concatenate(strata), axis=0))
    fixed = np.concatenate([x for x in strata if len(x) == 1] or [np.empty(0)])
    sampled = [x for x in strata if len(x) > 1]
    if not sampled:
        return Estimate(value, math.nan, math.nan)

    def pooled(*parts: np.ndarray, axis: int) -> np.ndarray:
        constant = np.broadcast_to(fixed, (*parts[0].shape[:-1], len(fixed)))
        return statistic(np.concatenate([*parts, constant], axis=-1), axis=-1)

    return _with_interval(value, sampled, pooled, sum(map(len, strata)))


def estimate_over_seeds(
    statistic: Callable[[np.ndarray], np.ndarray], scores: np.ndarray
) -> Estimate:
    """A statistic of the scores of seeds in several settings, with its interval as of `estimate`.

    Seeds are resampled, each with its scores in all settings: they share its noise, so that an
    interval of settings that are resampled apart would be too narrow.

    Args:
      statistic: of scores [..., S, M].
      scores: [S, M], of S seeds in M settings.
    """
    scores = _finite(scores)
    value = float(statistic(scores))
    if len(scores) == 1:
        return Estimate(value, math.nan, math.nan)

    def resampled(seeds: np.ndarray, axis: int) -> np.ndarray:
        return statistic(scores[seeds])

    return _with_interval(value, [np.arange(len(scores))], resampled, scores.size)


def mean_iqm(scores: np.ndarray) -> np.ndarray:
    """The mean over settings of their IQMs.

    Args:
      scores: [..., S, M], of S seeds in M settings.
    """
    return iqm(scores, axis=-2).mean(axis=-1)


def iqm_of_all(scores: np.ndarray) -> np.ndarray:
    """The IQM of all scores together.

    Args:
      scores: [..., S, M], of S seeds in M settings.
    """
    return iqm(scores.reshape(*scores.shape[:-2], -1), axis=-1)


def proportion(successes: int, of: int) -> Estimate:
    """A share of seeds with Wilson's score interval.

    Not bootstrapped: resamples of 64 successes in 64 are all alike, and the interval would claim
    certainty. Over strata of equal size, count all together; the interval is then on the safe
    side, since p(1 - p) of the mean share is at least the mean of p(1 - p).

    Source: Wilson 1927, JASA 22:209-212; Brown, Cai and DasGupta 2001 on why not Wald's.
    """
    if of < 1:
        raise ValueError("a proportion needs at least one seed")
    interval = scipy.stats.binomtest(successes, of).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / of, float(interval.low), float(interval.high))


def performance_profile(scores: np.ndarray, levels: np.ndarray) -> list[Estimate]:
    """The share of seeds whose score is at least each level.

    Args:
      scores: [S].
      levels: [L].

    Returns:
      L shares, each with its interval.

    Source: Dolan and Moré 2002 (10.1007/s101070100263); as run-score distributions in Agarwal et
    al. 2021. Intervals are Wilson's, level by level.
    """
    counts = (_finite(scores)[None] >= levels[:, None]).sum(axis=1)
    return [proportion(int(count), len(scores)) for count in counts]


def improvement(x: Strata, y: Strata) -> Estimate:
    """Probability of improvement: that a seed of x beats one of y, P(X > Y) + ½ P(X = Y).

    The mean over strata of the Mann-Whitney U statistic over the number of pairs. Its interval is
    a stratified percentile bootstrap. Where every seed of one side beats every one of the other,
    resamples are all alike, and the far end is that of k = (strata · fewest seeds) disjoint pairs
    which all agree: ((1 - 0.95) / 2)^(1 / k). Where all scores are equal, k such pairs are ties, of
    others some may be none. With few seeds it has ½ in it unless a permutation test rejects ½, too.

    Args:
      x, y: scores of each stratum, in the same order of strata; each at least one.

    Source: Agarwal et al. 2021; Mann and Whitney 1947; Clopper and Pearson 1934 for the end.
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must have the same strata; got {len(x)} and {len(y)}")
    x, y = ([_finite(part) for part in strata] for strata in (x, y))
    # What counts is the order alone, so scores are replaced by their rank among the distinct ones.
    ranks = [
        np.unique(np.concatenate(pair), return_inverse=True) for pair in zip(x, y, strict=True)
    ]
    distinct = [len(values) for values, _ in ranks]
    xs = [rank[: len(a)] for (_, rank), a in zip(ranks, x, strict=True)]
    ys = [rank[len(a) :] for (_, rank), a in zip(ranks, x, strict=True)]

    def mean_share(*parts: np.ndarray, axis: int) -> np.ndarray:
        shares = [
            _win_share(a, b, count)
            for a, b, count in zip(parts[: len(xs)], parts[len(xs) :], distinct, strict=True)
        ]
        return np.mean(shares, axis=0)

    value = float(mean_share(*(part[None] for part in [*xs, *ys]), axis=-1)[0])
    fewest = min(len(part) for part in [*xs, *ys])
    pairs = len(x) * fewest
    end = ((1 - CONFIDENCE) / 2) ** (1 / pairs)
    if value in (0.0, 1.0):
        return Estimate(value, end if value else 0.0, 1.0 if value else 1.0 - end)
    if pairs == len(x):  # a stratum of one seed: nothing to resample
        return Estimate(value, 0.0, 1.0)
    if max(distinct) == 1:
        return Estimate(value, end / 2, 1.0 - end / 2)
    low, high = _bootstrap([*xs, *ys], mean_share, sum(map(len, [*xs, *ys])))
    low, high = (min(low, end), high) if value > 0.5 else (low, max(high, 1.0 - end))
    if fewest < FEW and _by_chance(xs, ys, mean_share, abs(value - 0.5)) > 1 - CONFIDENCE:
        low, high = min(low, 0.5), max(high, 0.5)
    return Estimate(value, low, high)


def paired_improvement(x: np.ndarray, y: np.ndarray, alpha: float = 1 - CONFIDENCE) -> Estimate:
    """`improvement` where both trained the same seeds: x_i and y_i are of one seed.

        d_i = share of y that x_i beats - share of x that y_i beats,    ties a half
        P = ½ + mean(d) / 2,    error² = (var(d) + 1 / n) / n

    The interval is P ± t · error, of Student's t with n - 1 degrees of freedom. Seeds share noise,
    and first parameters: what makes x_i and y_i both good does not make d_i vary. Where all of x
    beat all of y, var(d) is 0; were one score of x below all of y, it would be about 1 / n.

    Args:
      x, y: scores, [n], at least one.
      alpha: the chance that the interval has not the truth in it, in (0, 1).

    Source: Konietschke and Pauly 2012, EJS 6:1358-1372; the 1 / n is ours.
    """
    x, y = _finite(x), _finite(y)
    if len(x) != len(y):
        raise ValueError(f"x and y must be scores of the same seeds; got {len(x)} and {len(y)}")
    n, d = len(x), _placements(x, y) - _placements(y, x)
    value = 0.5 + float(d.mean()) / 2
    if n == 1:
        return Estimate(value, 0.0, 1.0)
    error = math.sqrt((d.var() + 1 / n) / n)
    width = scipy.stats.t.ppf(1 - alpha / 2, n - 1) * error
    return Estimate(value, float(max(0.0, value - width)), float(min(1.0, value + width)))


def seeds_needed(
    x: np.ndarray,
    y: np.ndarray,
    power: float = 0.8,
    alpha: float = 0.05,
    *,
    paired: bool = False,
) -> int | None:
    """Seeds per run with which a two-sided test of P = ½ would tell these two apart.

    Were the distributions those of the seeds at hand, the test on n seeds of each would reject
    "no difference" at level alpha with this probability. Normal approximation of Mann and
    Whitney's test, and of that of `paired_improvement`:

        n = ((z_{1-alpha/2} σ₀ + z_power σ₁) / (P - ½))²
        P - ½ = t √((σ₁² + 1 / n) / n) + z_power σ₁ / √n    (paired)

    P is the probability of improvement, σ₁² its variance per seed as it is, and σ₀² were there no
    difference: (1 - Σ t³) / 6 (t: the share of each tied value). At least so many that ½ can be
    missed at all: 2 · ½ⁿ ≤ alpha.

    Args:
      paired: whether x_i and y_i are of one seed, and will be, [n] both.

    Returns:
      n; None if P is ½, so that no number suffices.

    Source: Noether 1987, JASA 82:645-647, with σ₁ ≠ σ₀ and ties as in Zhao, Rahardja and Qu 2008,
    Statistics in Medicine 27:462-468.
    """
    x, y = _finite(x), _finite(y)
    place_x, place_y = _placements(x, y), _placements(y, x)
    effect = abs(place_x.mean() - 0.5)
    if effect * len(x) * len(y) < 0.25:  # less than half a pair: ½ but for rounding
        return None
    z_alpha, z_power = scipy.stats.norm.ppf([1 - alpha / 2, power])
    fewest = math.ceil(1 - math.log2(alpha))
    if paired:
        variance = (place_x - place_y).var()

        def is_enough(n: int) -> bool:
            width = scipy.stats.t.ppf(1 - alpha / 2, n - 1) * math.sqrt((variance + 1 / n) / n)
            return effect >= width + z_power * math.sqrt(variance / n)

        return fewest + bisect_left(range(fewest, MOST_NEEDED), True, key=is_enough)
    both = np.concatenate([x, y])
    weight = np.concatenate([np.full(len(x), 0.5 / len(x)), np.full(len(y), 0.5 / len(y))])
    _, rank = np.unique(both, return_inverse=True)
    null_variance = (1.0 - (np.bincount(rank, weight) ** 3).sum()) / 6.0
    variance = place_x.var() + place_y.var()
    root = (z_alpha * math.sqrt(null_variance) + z_power * math.sqrt(variance)) / effect
    return max(fewest, math.ceil(max(root, 0.0) ** 2))


class Survival(NamedTuple):
    """Share of seeds to which something has not happened yet, at 0 and after each of some times."""

    time: np.ndarray  # [P], ascending
    share: np.ndarray  # [P]
    low: np.ndarray  # [P]
    high: np.ndarray  # [P]


def kaplan_meier(time: np.ndarray, happened: np.ndarray) -> Survival:
    """Kaplan and Meier's estimate of P(T > t), with log(-log) intervals by Greenwood's formula.

    Where the estimate is 0 or 1 that formula has no value. While it is 1, or where it falls to 0 at
    once, the interval is Clopper and Pearson's for the seeds that were watched so long; where it
    has come down to 0, its upper end is the one before.

    Args:
      time: when it happened, or until when it had not, > 0, [S]; at least one.
      happened: False where it had not when watching ended (censored on the right), bool [S].

    Source: Kaplan and Meier 1958, JASA 53:457-481; Kalbfleisch and Prentice 2002, §1.4.
    """
    time = _finite(time)
    censored = scipy.stats.CensoredData.right_censored(time, ~happened)
    curve = scipy.stats.ecdf(censored).sf
    with warnings.catch_warnings():  # said of the two ends, which are filled in below
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)
        interval = curve.confidence_interval(CONFIDENCE, method="log-log")
    low, high = interval.low.probabilities.copy(), interval.high.probabilities.copy()
    for i in np.flatnonzero(~np.isfinite(low)):
        if i and curve.probabilities[i] == 0 and curve.probabilities[i - 1] < 1:
            low[i], high[i] = 0.0, high[i - 1]  # the share never grows
            continue
        watched = int((time >= curve.quantiles[i]).sum())
        exact = scipy.stats.binomtest(round(curve.probabilities[i]) * watched, watched)
        low[i], high[i] = exact.proportion_ci(CONFIDENCE, method="exact")
    start = (0.0, 1.0, ((1 - CONFIDENCE) / 2) ** (1 / len(time)), 1.0)
    found = (curve.quantiles, curve.probabilities, low, high)
    return Survival(*(np.concatenate([[x], rest]) for x, rest in zip(start, found, strict=True)))


def median_time(curve: Survival) -> Estimate:
    """When it has happened to half of the seeds: the first time with a share of at most ½.

    The ends of the interval are those times for the band's two edges. What is not reached within
    the data is infinite.

    Source: Brookmeyer and Crowley 1982, Biometrics 38:29-41.
    """

    def first(share: np.ndarray) -> float:
        reached = np.flatnonzero(share <= 0.5)
        return float(curve.time[reached[0]]) if len(reached) else math.inf

    return Estimate(first(curve.share), first(curve.low), first(curve.high))


def _finite(x: np.ndarray) -> np.ndarray:
    """The scores as float64.

    Raises:
      ValueError: if there are none, or some are not finite.
    """
    x = np.asarray(x, float)
    unknown = x.size - int(np.isfinite(x).sum())
    if unknown or not x.size:
        got = f"{unknown} of {x.size} that are not" if x.size else "none"
        raise ValueError(
            f"scores and times must be finite numbers, at least one; got {got} (what a seed counts "
            "with that diverged or finished no episode: jaxpg.analysis.outcomes.scores)"
        )
    return x


def _with_interval(
    value: float, samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], size: int
) -> Estimate:
    low, high = _bootstrap(samples, statistic, size)
    if low == high and sum(map(len, samples)) < ALIKE:
        low = high = math.nan
    return Estimate(value, low, high)


def _bootstrap(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], size: int
) -> tuple[float, float]:
    """Percentile interval; every sample is resampled on its own, to `size` numbers in all."""
    result = scipy.stats.bootstrap(
        samples,
        statistic,
        axis=-1,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(size),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _by_chance(xs: Strata, ys: Strata, share: Callable[..., np.ndarray], far: float) -> float:
    """The chance that P is at least so far from ½ where it does not matter which scores of a
    stratum are of which side: of RESAMPLES random exchanges, and the scores as they are."""
    rng = np.random.default_rng(0)
    both = [np.concatenate(pair) for pair in zip(xs, ys, strict=True)]
    batch, as_far = _batch(sum(map(len, both))), 1
    for first in range(0, RESAMPLES, batch):
        count = min(batch, RESAMPLES - first)
        mixed = [rng.permuted(np.tile(scores, (count, 1)), axis=1) for scores in both]
        sides = [one[:, : len(x)] for one, x in zip(mixed, xs, strict=True)]
        others = [one[:, len(x) :] for one, x in zip(mixed, xs, strict=True)]
        as_far += int((np.abs(share(*sides, *others, axis=-1) - 0.5) >= far - 1e-12).sum())
    return as_far / (RESAMPLES + 1)


def _batch(size: int) -> int:
    """Resamples at a time: at most 80 MB of them."""
    return max(1, min(100, 10**7 // size))


def _placements(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each score in x the share of y that it beats, ties a half."""
    ordered = np.sort(y)
    below, up_to = (np.searchsorted(ordered, x, side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(y))


def _win_share(x: np.ndarray, y: np.ndarray, distinct: int) -> np.ndarray:
    """The share of pairs in which x is larger, ties a half.

    Args:
      x, y: integers in [0, distinct), [B, n] and [B, m].

    Returns:
      [B].
    """
    rows = np.arange(len(x))[:, None] * distinct
    size = len(x) * distinct
    of_x, of_y = (
        np.bincount((rows + part.astype(int)).ravel(), minlength=size).reshape(-1, distinct)
        for part in (x, y)
    )
    beaten = np.cumsum(of_y, axis=1) - 0.5 * of_y
    return (of_x * beaten).sum(axis=1) / (x.shape[1] * y.shape[1])
