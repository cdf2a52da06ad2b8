"""How numbers and counts are said to people, the same on a terminal, on a page and in a figure.

Each takes the number itself, not one that was rounded before: what is rounded twice may differ in
its last digit from what is rounded once.
"""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any


def seeds(count: int) -> str:
    """1 seed, 2 seeds, 4,096 seeds."""
    return "1 seed" if count == 1 else f"{count:,} seeds"


def returned(value: Any) -> str:
    """A return: one decimal, or three digits where it is small; "none" if it is no number.

    Args:
      value: Python's or numpy's.
    """
    if not math.isfinite(value):
        return "none"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value + 0.0:.3g}"


def share(value: float) -> str:
    """A share of seeds: 99.6 %; 100.0 % are all of them and 0.0 % none, else > 99.9 %, < 0.1 %."""
    if 0.9995 <= value < 1.0:
        return "> 99.9 %"
    return "< 0.1 %" if 0.0 < value < 0.0005 else f"{value:.1%}".replace("%", " %")


def short(number: float, digits: int = 3) -> str:
    """'2.11 M' for 2,107,945: so many digits, with a letter for the thousands."""
    rounded = float(f"{number:.{digits}g}")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= size:
            return f"{rounded / size:.{digits}g} {letter}"
    return f"{rounded:.{digits}g}"


def line(said: object) -> str:
    """What an error or another text says, in a line."""
    return " ".join(str(said).split())


def raised(error: BaseException) -> str:
    """What somebody else's code has raised, in a line: ValueError: no such axis."""
    return line(f"{type(error).__name__}: {error}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is not the same, 'name: old -> new' each; of names that both have."""
    both = [name for name in old if name in new]
    return [f"{name}: {old[name]!r} -> {new[name]!r}" for name in both if old[name] != new[name]]


def amount(value: float) -> str:
    """Environment steps or episodes: 37,120; infinite is beyond the budget."""
    return f"{value:,.0f}" if math.isfinite(value) else "not reached"


def parameters(
    values: Mapping[str, Any], varied: Collection[str] = (), prefix: str = "env."
) -> str:
    """An environment's parameters, as the command takes them: gravity=12.0 ramping=false.

    Args:
      varied: what is left out, as "env.gravity".
      prefix: of their names there; "option." of an algorithm's options.
    """
    left = [name for name in values if f"{prefix}{name}" not in varied]
    return " ".join(f"{name}={json.dumps(values[name])}" for name in left)


def environment(config: Any, varied: Collection[str] = ()) -> str:
    """CartPole-v1, or CartPole-v1 with gravity=12.0.

    Args:
      varied: what it has several values of and is said elsewhere, as "env.gravity".
    """
    own = parameters(config.env_params, varied)
    return f"{config.env} with {own}" if own else config.env


def world(config: Any) -> str:
    """`environment`, and in how many steps, where `max_episode_steps` says it."""
    limit = config.max_episode_steps
    return environment(config) + (f" in {limit:,} steps" if limit else "")


def duration(seconds: float) -> str:
    """8 s, 3:07 min, 2:05 h."""
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(round(seconds / 60), 60)
    return f"{minutes}:{rest:02} min" if minutes < 100 else f"{hours}:{left:02} h"
