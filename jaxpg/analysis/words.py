"""Numbers for people, the same on a terminal, on a page and in a figure.

Each takes the number itself, not one that was rounded before: what is rounded twice may differ in
its last digit from what is rounded once.
"""

import math
from typing import Any


def score(number: Any) -> str:
    """A return: one decimal, or three digits where it is small; "none" if it is no number.

    Args:
      number: Python's or numpy's.
    """
    if not math.isfinite(number):
        return "none"
    return f"{number:,.1f}" if abs(number) >= 10 else f"{number + 0.0:.3g}"


def share(number: float) -> str:
    """A share of seeds, as a percentage."""
    return f"{number:.1%}".replace("%", " %")


def amount(number: float) -> str:
    """Environment steps or episodes; infinite is beyond the budget."""
    return f"{number:,.0f}" if math.isfinite(number) else "not reached"


def seeds(count: int) -> str:
    """So many seeds."""
    return "1 seed" if count == 1 else f"{count:,} seeds"
