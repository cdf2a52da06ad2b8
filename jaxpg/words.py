"""How numbers and counts are said to people."""


def seeds(count: int) -> str:
    """1 seed, 2 seeds, 4,096 seeds."""
    return "1 seed" if count == 1 else f"{count:,} seeds"


def returned(value: float) -> str:
    """A return: one decimal, or three digits where it is small."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """8 s, 3:07 min."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"
