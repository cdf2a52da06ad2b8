"""Each statistic against a closed form, scipy, enumeration, or a simulation of what it promises."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxpg.analysis import stats
from jaxpg.analysis.stats import (
    estimate,
    estimate_over_seeds,
    improvement,
    iqm,
    iqm_band,
    iqm_of_all,
    kaplan_meier,
    mean_iqm,
    median_time,
    optimality_gap,
    paired_improvement,
    performance_profile,
    proportion,
    seeds_needed,
)


def test_iqm_is_the_mean_of_the_middle_half():
    # Of 1 … 8 the middle half is 3, 4, 5, 6, whose mean is 4.5; outliers do not matter.
    assert iqm(np.array([8, 1, 7, 2, 3, 6, 4, 5.0])) == 4.5
    assert iqm(np.array([1e9, 1, 7, 2, 3, 6, 4, 5.0])) == 4.5


def test_iqm_is_taken_over_seeds_column_by_column():
    x = np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_allclose(iqm(x), [iqm(column) for column in x.T])


@pytest.mark.parametrize("unknown", [[], [0, 0, 0, 0, 10, 10, np.nan, np.nan], [1.0, -np.inf]])
@pytest.mark.parametrize(
    "statistic",
    {
        "iqm": iqm,
        "optimality_gap": lambda x: optimality_gap(x, 10.0),
        "iqm_band": iqm_band,
        "mean": lambda x: estimate(np.mean, [np.arange(3.0), x]),
        "performance_profile": lambda x: performance_profile(x, np.array([5.0])),
        "improvement": lambda x: improvement([x], [np.arange(8.0)]),
        "improvement, of the other": lambda x: improvement([np.arange(8.0)], [x]),
        "seeds_needed": lambda x: seeds_needed(x, np.arange(8.0)),
        "seeds_needed, of the other": lambda x: seeds_needed(np.arange(8.0), x),
        "paired_improvement": lambda x: paired_improvement(x, np.arange(float(len(x)))),
        "mean_iqm": lambda x: over_settings(x[:, None]),
        "kaplan_meier": lambda x: kaplan_meier(x, np.ones(len(x), bool)),
    }.values(),
)
def test_scores_that_are_not_known_are_refused(statistic, unknown):
    """The IQM of these two NaN and six scores was 5: as if both were better than all the others."""
    with pytest.raises(ValueError, match=r"must be finite numbers, at least one; got .*scores\)$"):
        statistic(np.array(unknown, float))


def mostly_solved(rng, shape):
    """Three seeds in ten fail, as runs do: a quarter of a sample at each end may all be alike."""
    return np.where(rng.random(shape) < 0.3, 30.0 + rng.normal(size=shape), 480.0)


def mostly_perfect(rng, shape):
    return np.where(rng.random(shape) < 0.28, rng.uniform(100.0, 500.0, shape), 500.0)


@pytest.mark.parametrize(
    "scores", [lambda rng, shape: rng.normal(size=shape), mostly_solved, mostly_perfect]
)
def test_the_band_holds_the_truth_as_often_as_it_says(scores):
    """95 % of 400 intervals, give or take: fewer than 90 % has a chance of 1e-5."""
    rng = np.random.default_rng(1)
    truth = iqm(scores(rng, 1_000_000))
    low, high = iqm_band(scores(rng, (40, 400)))  # 400 experiments of 40 seeds
    covered = np.mean((low <= truth) & (high >= truth))
    assert 0.9 < covered < 1.0


def test_the_interval_of_equal_scores_is_a_point():
    equal = np.full(10, 500.0)
    assert [*iqm_band(equal), *estimate(iqm, [equal])[1:]] == [500.0] * 4
    assert iqm_band(np.array([3.0])) == (3.0, 3.0)  # and the band of one seed is its curve


def test_the_band_is_the_interval_of_each_point():
    x = np.random.default_rng(2).exponential(size=(48, 3))
    low, high = iqm_band(x)
    wanted = np.array([estimate(iqm, [point])[1:] for point in x.T])
    np.testing.assert_allclose(np.array([low, high]).T, wanted, rtol=0.03)  # of other resamples


def test_the_band_stays_within_the_scores():
    low, high = iqm_band(np.array([0.0, 500.0, 500.0]))
    assert (low, high) == (0.0, 500.0)


def test_optimality_gap_counts_what_is_missing_and_no_surplus():
    # Short of 10 by 0, 4 and 0 (12 is no credit): 4 / 3.
    assert optimality_gap(np.array([10.0, 6.0, 12.0]), 10.0) == pytest.approx(4 / 3)


def test_estimate_of_a_mean_has_the_width_of_its_standard_error():
    x = np.random.default_rng(3).normal(size=30)
    ours = estimate(np.mean, [x])
    assert ours.value == pytest.approx(x.mean())
    # The percentile interval of a mean is close to mean ± 1.96 s / √n (s with ddof 0).
    width = 1.96 * x.std() / math.sqrt(30)
    assert ours.low == pytest.approx(x.mean() - width, abs=0.1 * width)
    assert ours.high == pytest.approx(x.mean() + width, abs=0.1 * width)


def test_a_stratified_bootstrap_leaves_the_differences_between_strata_alone():
    """Two tasks 1,000 apart: the error of the mean is that within tasks, here of 80 seeds."""
    rng = np.random.default_rng(4)
    strata = [rng.normal(size=40), 1_000 + rng.normal(size=40)]
    ours = estimate(np.mean, strata)
    assert ours.high - ours.low == pytest.approx(2 * 1.96 / math.sqrt(80), rel=0.25)
    unstratified = estimate(np.mean, [np.concatenate(strata)])
    assert unstratified.high - unstratified.low > 100


def test_of_few_equal_scores_there_is_no_interval():
    """Seven of which three in ten fail are all perfect in 8 % of cases: "500 to 500" would be."""
    value, *ends = estimate(iqm, [np.full(7, 500.0)])
    assert value == 500.0
    assert np.isnan(ends).all()
    assert estimate(iqm, [np.full(8, 500.0)]) == (500.0,) * 3


def over_settings(scores):
    return estimate_over_seeds(mean_iqm, scores)


def test_an_interval_over_settings_is_of_seeds_that_they_share():
    """20 settings with a correlation of 0.6: resampled apart, 42 % of intervals had the truth."""
    rng, held = np.random.default_rng(16), 0
    for _ in range(200):
        scores = math.sqrt(0.6) * rng.normal(size=(32, 1)) + math.sqrt(0.4) * rng.normal(
            size=(32, 20)
        )
        _, low, high = estimate_over_seeds(iqm_of_all, scores)
        held += low <= 0.0 <= high
    assert held / 200 > 0.86


def test_the_mean_over_settings_is_of_seeds_that_they_share():
    x = np.random.default_rng(11).normal(size=(24, 1))
    of_one = estimate(iqm, [x[:, 0]])
    np.testing.assert_allclose(over_settings(x), of_one, rtol=1e-12)
    # Three times the same is no more certain; what turns round says nothing of the mean.
    np.testing.assert_allclose(over_settings(np.hstack([x, x, x])), of_one, rtol=1e-12)
    np.testing.assert_allclose(over_settings(np.hstack([x, -x])), 0.0, atol=1e-12)
    assert np.isnan(over_settings(x[:1])[1:]).all()
    assert np.isnan(over_settings(np.full((5, 3), 500.0))[1:]).all()  # of five seeds


def test_a_stratum_of_one_seed_is_kept_and_not_resampled():
    ours = estimate(np.mean, [np.array([3.0]), np.ones(8)])
    assert ours == (pytest.approx(11 / 9),) * 3
    for alone in ([np.array([3.0])], [np.array([2.0]), np.array([4.0])]):  # nothing to resample
        value, *ends = estimate(np.mean, alone)
        assert value == 3.0
        assert np.isnan(ends).all()


@pytest.mark.parametrize("statistic", [iqm, np.median, np.mean])
def test_stratified_intervals_hold_the_truth_as_often_as_they_say(statistic, monkeypatch):
    """Symmetric scores about 0 and 10, so that every one of these is 5 in truth."""
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(150):
        strata = [rng.normal(size=30), 10 + rng.normal(size=30)]
        if statistic is np.median:  # of two tasks it lies in the gap: one task instead
            strata = [5 + rng.normal(size=60)]
        low, high = estimate(statistic, strata)[1:]
        hits.append(low <= 5 <= high)
    assert 0.87 < np.mean(hits) <= 1.0  # 0.95 ± 4.5 standard errors


def test_proportion_is_wilsons_and_never_certain():
    # Wilson of k = n: low = 1 / (1 + z²/n).
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    assert proportion(64, 64) == (1.0, pytest.approx(1 / (1 + z2 / 64)), pytest.approx(1.0))
    center, half = (
        (0.3 + z2 / 20) / (1 + z2 / 10),
        math.sqrt(z2 * (0.021 + z2 / 400)) / (1 + z2 / 10),
    )
    assert proportion(3, 10) == (0.3, pytest.approx(center - half), pytest.approx(center + half))
    with pytest.raises(ValueError, match="at least one seed"):
        proportion(0, 0)


def test_profile_counts_seeds_at_or_above_each_level():
    scores = np.array([1.0, 2.0, 2.0, -1.0])
    profile = performance_profile(scores, np.array([0.0, 2.0, 2.5]))
    assert [at.value for at in profile] == [0.75, 0.5, 0.0]
    assert profile[1] == proportion(2, 4)


def enumerated(x, y) -> float:
    pairs = list(itertools.product(x, y))
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("sizes", [(5, 7), (12, 3)])
def test_improvement_is_that_of_all_pairs_ties_a_half(sizes):
    rng = np.random.default_rng(6)
    x, y = (rng.integers(0, 4, size).astype(float) for size in sizes)
    ours = improvement([x], [y])
    assert ours.value == pytest.approx(enumerated(x, y))
    u = scipy_stats.mannwhitneyu(x, y).statistic
    assert ours.value == pytest.approx(u / (sizes[0] * sizes[1]))
    back = improvement([y], [x])
    assert back.value == pytest.approx(1 - ours.value)
    assert ours.low <= ours.value <= ours.high


def test_improvement_over_strata_is_the_mean_and_compares_within_them_only():
    rng = np.random.default_rng(7)
    x = [rng.normal(size=6), rng.normal(size=4) + 100]
    y = [rng.normal(size=5), rng.normal(size=8) + 100]
    wanted = np.mean([enumerated(a, b) for a, b in zip(x, y, strict=True)])
    assert improvement(x, y).value == pytest.approx(wanted)
    with pytest.raises(ValueError, match="the same strata"):
        improvement(x, y[:1])


def test_improvement_that_is_complete_has_the_interval_of_disjoint_pairs():
    x, y = np.arange(10.0, 14.0), np.arange(6.0)
    ours = improvement([x], [y])
    # Were P less than 0.025^(1/4), four of four disjoint pairs would be won in less than 2.5 %.
    assert ours == (1.0, pytest.approx(0.025 ** (1 / 4)), 1.0)
    assert improvement([y], [x]) == (0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 4)))
    assert improvement([x[:1]], [np.array([10.0])]) == (0.5, 0.0, 1.0)


def test_seeds_that_are_all_equal_do_not_say_that_others_would_be():
    """Four of four disjoint pairs are ties; of others 1 - 0.025^(1/4) may be won, or lost."""
    equal = np.full(4, 500.0)
    may_differ = 1 - 0.025 ** (1 / 4)
    wanted = (0.5, pytest.approx(0.5 - may_differ / 2), pytest.approx(0.5 + may_differ / 2))
    assert improvement([equal], [equal]) == wanted


DRAWS = {  # (x, y, P(X > Y) + ½ P(X = Y))
    "normal": (
        lambda rng: rng.normal(0.5, 1, 30),
        lambda rng: rng.normal(0, 1, 40),
        scipy_stats.norm.cdf(0.5 / math.sqrt(2)),
    ),
    "one of two ends against the middle": (
        lambda rng: rng.integers(0, 2, 40) * 500.0,
        lambda rng: rng.normal(250, 1, 20),
        0.5,
    ),
    "ties": (
        lambda rng: np.minimum(rng.integers(0, 6, 40), 3.0),  # 0, 1, 2 with 1/6 each, 3 with 1/2
        lambda rng: rng.integers(0, 4, 40).astype(float),
        # P(X > Y) = (0 + 1 + 2) / 24 + 3/8 = 1/2; P(X = Y) = 1/4.
        0.625,
    ),
}


@pytest.mark.parametrize("case", DRAWS)
def test_improvements_interval_holds_the_truth_as_often_as_it_says(case, monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 400)
    draw_x, draw_y, truth = DRAWS[case]
    rng = np.random.default_rng(8)
    hits = []
    for _ in range(150):
        low, high = improvement([draw_x(rng)], [draw_y(rng)])[1:]
        hits.append(low <= truth <= high)
    assert 0.87 < np.mean(hits) <= 1.0


PILOTS = {
    "shifted": lambda rng: (rng.normal(0, 1, 400), rng.normal(0.8, 1, 400)),
    "ties at the top": lambda rng: (
        np.minimum(rng.normal(450, 60, 400), 500),
        np.minimum(rng.normal(490, 60, 400), 500),
    ),
    "one collapses at times": lambda rng: (
        np.where(rng.random(400) < 0.3, 20.0, rng.normal(490, 5, 400)),
        rng.normal(489.5, 1, 400),
    ),
}


def correlated(rng, shape, shift):
    """Scores of the same seeds, ρ = 0.8."""
    common, *own = rng.normal(size=(3, *shape))
    x, y = (math.sqrt(0.8) * common + math.sqrt(0.2) * z for z in own)
    return x + shift, y


def test_a_paired_improvement_by_hand():
    # 3 beats 2 and 0, and 1 beats 0: P = 3/4. d = 1 - ½ and ½ - 0: var(d) = 0, error² = ½ / 2. So
    # both ends are beyond 12.7 · ½. Of six that beat all others error = 1/6, and t is 2.5706.
    assert paired_improvement(np.array([3.0, 1]), np.array([2.0, 0])) == (0.75, 0.0, 1.0)
    better = np.arange(6.0)
    found = paired_improvement(better + 10, better)
    assert found == (1.0, pytest.approx(1 - 2.570582 / 6), 1.0)
    assert paired_improvement(better[:5] + 10, better[:5]).low < 0.5
    assert paired_improvement(better, better + 10) == (0.0, 0.0, pytest.approx(1 - found.low))
    assert paired_improvement(better[:1], better[:1] + 1) == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="scores of the same seeds; got 6 and 5"):
        paired_improvement(better, better[:5])


@pytest.mark.parametrize("draw", [correlated, lambda rng, shape, shift: [
    np.where(x < -0.5, 20.0, 500.0) for x in correlated(rng, shape, shift)]],
    ids=["normal", "failing"])  # fmt: skip
@pytest.mark.parametrize("seeds", [5, 16, 40])
def test_a_paired_interval_holds_the_truth_as_often_as_it_says(draw, seeds):
    """At least 95 % of 400: fewer than 91.5 % has a chance of 1e-3."""
    rng = np.random.default_rng(12)
    x, y = draw(rng, (200_000,), 0.5)
    truth = stats._placements(x, y).mean()
    held = [
        low <= truth <= high
        for _, low, high in (paired_improvement(*draw(rng, (seeds,), 0.5)) for _ in range(400))
    ]
    assert np.mean(held) > 0.915


def test_shared_luck_is_not_taken_for_a_difference():
    """Half a deviation between 32 seeds that share most of what moves them."""
    rng = np.random.default_rng(13)
    pairs = [correlated(rng, (32,), 0.5) for _ in range(100)]
    paired = np.mean([paired_improvement(x, y).low > 0.5 for x, y in pairs])
    apart = np.mean([improvement([x], [y]).low > 0.5 for x, y in pairs])
    assert paired > apart + 0.2
    equal = [correlated(rng, (32,), 0.0) for _ in range(400)]
    told = np.mean([not (low <= 0.5 <= high) for _, low, high in
                    (paired_improvement(x, y) for x, y in equal)])  # fmt: skip
    assert told < 0.09


@pytest.mark.parametrize("shift", [0.3, 0.5, 0.8])
def test_so_many_paired_seeds_tell_the_two_apart_as_often_as_promised(shift):
    rng = np.random.default_rng(14)
    x, y = correlated(rng, (4_000,), shift)
    seeds = seeds_needed(x, y, paired=True)
    drawn = rng.integers(len(x), size=(400, seeds))
    told = [paired_improvement(x[some], y[some]).low > 0.5 for some in drawn]
    assert 0.74 < np.mean(told) < 0.98
    assert seeds < seeds_needed(x, y)
    assert seeds_needed(x, x, paired=True) is None


@pytest.mark.parametrize("pilot", PILOTS)
def test_so_many_seeds_tell_the_two_apart_as_often_as_promised(pilot):
    x, y = PILOTS[pilot](np.random.default_rng(9))
    seeds = seeds_needed(x, y, power=0.8)
    assert seeds is not None
    rng = np.random.default_rng(10)
    draws = (rng.choice(part, (1_000, seeds)) for part in (x, y))
    test = scipy_stats.mannwhitneyu(*draws, axis=1, method="asymptotic")
    assert np.mean(test.pvalue < 0.05) == pytest.approx(0.8, abs=0.06)


def test_seeds_needed_at_the_ends():
    same = np.arange(10.0)
    assert seeds_needed(same, same) is None
    # Complete separation: with five of each the interval begins at 0.025^(1/5) < ½, with six above.
    assert seeds_needed(same, same + 100) == 6
    # Without ties and with equal spreads it is nearly Noether's (z + z)² / (6 (P - ½)²).
    quantiles = scipy_stats.norm.ppf((np.arange(2_000) + 0.5) / 2_000)
    p = scipy_stats.norm.cdf(0.3 / math.sqrt(2))
    noether = (scipy_stats.norm.ppf([0.975, 0.8]).sum()) ** 2 / (6 * (p - 0.5) ** 2)
    assert seeds_needed(quantiles, quantiles + 0.3) == pytest.approx(noether, rel=0.02)


def test_seeds_needed_of_tied_scores_by_hand():
    # 0 or 1, with 1 in 5 of 10 and 8 of 10: P = 0.65. Shares of the ties 0.35 and 0.65, so
    # σ₀² = (1 - 0.35³ - 0.65³) / 6 = 0.11375; σ₁² = 0.0625 + 0.04; ((1.95996 · 0.33727 +
    # 0.84162 · 0.32016) / 0.15)² = 38.5. Without the ties it would be 51.
    assert seeds_needed(np.repeat([0.0, 1], [5, 5]), np.repeat([0.0, 1], [2, 8])) == 39


def test_kaplan_meier_by_hand():
    # At 1 one of five (4/5). At 2 one is censored. At 3 one of the three left (8/15), at 4 one of
    # two (4/15); at 5 the last is censored.
    curve = kaplan_meier(np.arange(1.0, 6), np.array([True, False, True, True, False]))
    assert curve.time.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(curve.share, [1, 4 / 5, 4 / 5, 8 / 15, 4 / 15, 4 / 15])
    # Greenwood at 3: S² (1/20 + 1/6); on the scale of log(-log S).
    error = 1.959964 * math.sqrt(1 / 20 + 1 / 6) / math.log(8 / 15)
    wanted = sorted((8 / 15) ** math.exp(sign * error) for sign in (1, -1))
    np.testing.assert_allclose([curve.low[3], curve.high[3]], wanted, rtol=1e-5)
    assert median_time(curve)[0] == 4.0


def test_kaplan_meier_where_none_or_all_have_happened():
    none = kaplan_meier(np.full(10, 5.0), np.zeros(10, bool))
    # None of ten: Clopper and Pearson's bound for "none of ten has happened" is 0.025^(1/10).
    assert none.share.tolist() == [1.0, 1.0]
    for at in (0, 1):
        assert (none.low[at], none.high[at]) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert median_time(none) == (math.inf,) * 3
    every = kaplan_meier(np.full(10, 5.0), np.ones(10, bool))
    assert (every.share[1], every.low[1]) == (0.0, 0.0)
    assert every.high[1] == pytest.approx(1 - 0.025 ** (1 / 10))
    # Of two, whose median may be anywhere before the first: 0.025^(1/2) is less than ½.
    assert median_time(kaplan_meier(np.array([300.0, 400.0]), np.ones(2, bool))).low == 0.0


def test_the_band_only_falls_and_ends_no_wider_than_before():
    time = np.random.default_rng(13).exponential(size=40)
    curve = kaplan_meier(time, np.ones(40, bool))
    assert curve.share[-1] == curve.low[-1] == 0.0
    assert curve.high[-1] == curve.high[-2] < 0.2
    assert (np.diff(curve.high) <= 0).all()
    assert (np.diff(curve.low) <= 0).all()
    assert (curve.low <= curve.share).all()
    assert (curve.share <= curve.high).all()


def test_without_censoring_it_is_the_share_of_seeds():
    time = np.random.default_rng(11).exponential(size=50)
    curve = kaplan_meier(time, np.ones(50, bool))
    np.testing.assert_allclose(curve.share, [(time > t).mean() for t in curve.time], atol=1e-12)


def test_the_median_times_interval_holds_the_truth_as_often_as_it_says():
    """Exponential times (median log 2), a third of them censored by an exponential of half rate."""
    rng = np.random.default_rng(12)
    hits = []
    for _ in range(300):
        time, watched = rng.exponential(1, 40), rng.exponential(2, 40)
        _, low, high = median_time(kaplan_meier(np.minimum(time, watched), time <= watched))
        hits.append(low <= math.log(2) <= high)
    assert 0.89 < np.mean(hits) <= 1.0


def test_the_documented_example_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
    exec("".join(re.findall(r"```python\n(.*?)```", text, flags=re.S)), {})
    one, two, paired, needed, raced = capsys.readouterr().out.splitlines()
    # The middle three of five: 477, 498, 500 of a. a beats b in 18 of 25 pairs and ties twice.
    assert one.startswith("Estimate(value=491.66")
    assert two.startswith("Estimate(value=0.76,")
    assert paired.startswith("Estimate(value=0.76,")
    assert int(needed) > 4
    seeds, better, p_value = raced.split()
    assert (int(seeds) < 128, better, float(p_value) <= 0.05) == (True, "0", True)


def test_few_seeds_are_told_apart_no_oftener_than_by_chance():
    """Every order of alike scores, of x and y: ½ is not in the interval in 5 % of them at most."""
    for n, m in ((3, 3), (3, 6), (5, 5), (2, 12), (6, 6)):
        missed, ways = 0, list(itertools.combinations(range(n + m), n))
        for ours in ways[:: max(1, len(ways) // 250)]:
            x = np.array(ours, float)
            y = np.array([i for i in range(n + m) if i not in ours], float)
            found = improvement([x], [y])
            missed += not found.low <= 0.5 <= found.high
        assert missed <= 0.06 * len(ways[:: max(1, len(ways) // 250)]), (n, m)


def test_whoever_wins_more_is_no_less_sure():
    """Three against three: all wins tell them not apart, and eight of nine do not either."""
    most = improvement([np.array([320.0, 340, 350])], [np.array([300.0, 310, 330])])
    every = improvement([np.array([331.0, 340, 350])], [np.array([300.0, 310, 330])])
    assert (most.value, every.value) == (pytest.approx(8 / 9), 1.0)
    assert most.low <= every.low == pytest.approx(0.025 ** (1 / 3))
    sure = improvement([np.arange(8.0) + 5], [np.arange(8.0)])  # 8 seeds, of which 5 beat all
    assert sure.low > 0.5


def test_with_few_seeds_a_permutation_test_must_agree():
    """Eight against eight with U = 49 of 64, of which the exact p is 0.083: a bootstrap alone says
    0.516 to 0.953."""
    x = np.array([12.0, 14, 11, 7, 9, 4, 5, 15])
    y = np.array([3.0, 0, 10, 1, 8, 13, 6, 2])
    assert scipy_stats.mannwhitneyu(x, y, method="exact").pvalue == pytest.approx(0.083, abs=1e-3)
    found, turned = improvement([x], [y]), improvement([y], [x])
    assert (found.value, found.low) == (49 / 64, 0.5)
    assert (turned.value, turned.high) == (15 / 64, 0.5)


@pytest.mark.parametrize(("seeds", "share"), [(2, 1 / 2), (3, 3 / 4), (5, 9 / 10), (16, 0.95)])
def test_with_few_seeds_the_iqms_interval_covers_as_seldom_as_the_page_says(seeds, share):
    """Of two scores it is from one to the other: 0 lies between them in half of all cases."""
    rng, covered = np.random.default_rng(seeds), 0
    for _ in range(300):
        _, low, high = estimate(iqm, [rng.normal(size=seeds)])
        covered += low <= 0 <= high
    assert covered / 300 == pytest.approx(share, abs=0.06)
