"""IQM and its bootstrap interval."""

import numpy as np

from jaxpg.stats import iqm, iqm_interval


def test_iqm_is_the_mean_of_the_middle_half():
    # Of 1 … 8 the middle half is 3, 4, 5, 6, whose mean is 4.5; outliers do not matter.
    assert iqm(np.array([8, 1, 7, 2, 3, 6, 4, 5.0])) == 4.5
    assert iqm(np.array([1e9, 1, 7, 2, 3, 6, 4, 5.0])) == 4.5


def test_iqm_is_taken_over_seeds_column_by_column():
    x = np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_allclose(iqm(x), [iqm(column) for column in x.T])


def test_interval_holds_the_truth_as_often_as_it_says():
    """95 % of 200 intervals, give or take: fewer than 85 % has a chance of 1e-8."""
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(40, 200))  # 200 experiments of 40 seeds; the true IQM is 0
    low, high = iqm_interval(samples)
    covered = np.mean((low <= 0) & (high >= 0))
    assert 0.85 < covered < 1.0


def test_interval_of_equal_scores_and_of_one_seed_is_a_point():
    for scores in (np.full(10, 500.0), np.array([3.0])):
        low, high = iqm_interval(scores)
        assert low == high == scores[0]
