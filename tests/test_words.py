"""How numbers and counts are said."""

import pytest

from jaxpg.words import duration, returned, seeds


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.12345, "0.123"), (0.0, "0"), (-0.5, "-0.5"), (9.876, "9.88"), (-164.35, "-164.3"),
     (500.0, "500.0"), (12345.6, "12,345.6"), (float("nan"), "nan")],
)  # fmt: skip
def test_returns_of_0_to_1_keep_their_digits(value, said):
    assert returned(value) == said


def test_counts_and_times():
    assert [seeds(n) for n in (0, 1, 2, 4096)] == ["0 seeds", "1 seed", "2 seeds", "4,096 seeds"]
    assert [duration(s) for s in (0.4, 8, 99, 187)] == ["0 s", "8 s", "99 s", "3:07 min"]
