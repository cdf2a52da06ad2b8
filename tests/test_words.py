"""Numbers for people."""

import math

import numpy as np
import pytest

from jaxpg import words


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.0123, "0.0123"),
        (0.5, "0.5"),
        (-0.98, "-0.98"),
        (9.876, "9.88"),
        (10.0, "10.0"),
        (-164.35000001, "-164.4"),
        (12_345.67, "12,345.7"),
        (np.float32(0.25), "0.25"),
        (math.nan, "none"),
        (-math.inf, "none"),
    ],
)
def test_a_score_has_a_decimal_or_three_digits(number, written):
    assert words.returned(number) == written


def test_shares_amounts_and_seeds():
    assert words.share(0.9961) == "99.6 %"
    assert [words.share(some / 4096) for some in (0, 1, 4095, 4096)] == [
        "0.0 %",
        "< 0.1 %",
        "> 99.9 %",
        "100.0 %",
    ]
    assert words.amount(37_120) == "37,120"
    assert words.amount(math.inf) == "not reached"
    assert [words.seeds(count) for count in (0, 1, 1_000)] == ["0 seeds", "1 seed", "1,000 seeds"]


def test_times():
    said = [words.duration(seconds) for seconds in (0.4, 8, 99.4, 99.6, 119.6, 187)]
    assert said == ["0 s", "8 s", "99 s", "1:40 min", "2:00 min", "3:07 min"]
    assert [words.duration(60 * minutes) for minutes in (99, 100, 119.9)] == [
        "99:00 min",
        "1:40 h",
        "2:00 h",
    ]


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (999.6, "1 k"),
        (2_107_945, "2.11 M"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (-999_999, "-1 M"),
        (9.999e8, "1 G"),
    ],
)
def test_what_rounds_up_to_a_thousand_has_the_next_letter(number, written):
    assert words.short(number) == written
