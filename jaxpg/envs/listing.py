"""Which environments there are, suite by suite."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxpg import suites
from jaxpg.core.config import ConfigError, nearest
from jaxpg.core.env import check_spaces
from jaxpg.world import find

DEFAULT = "gymnax"  # whose environments have no prefix


class Listed(NamedTuple):
    """One environment, in words."""

    name: str
    observes: str
    acts: str
    time_limit: str
    refused: str | None  # why it cannot be trained; the others are empty then


def installed() -> list[str]:
    """The suites that are there."""
    return [DEFAULT, *filter(suites.is_installed, suites.SUITES)]


def listed(suite: str) -> Iterator[Listed]:
    """The environments of a suite.

    Raises:
      ConfigError: if there is no such suite, or it is not installed.
    """
    known = [DEFAULT, *suites.SUITES]
    if suite not in known:
        raise ConfigError(f"unknown suite {suite!r}{nearest(suite, known)}")
    return map(_described, _names(suite))


def _described(name: str) -> Listed:
    try:
        world = find(name)
        check_spaces(world)
    except ConfigError as error:
        return Listed(name, "", "", "", str(error).removeprefix(f"{name} "))
    steps = "none of its own" if world.time_limit is None else f"{int(world.time_limit):,}"
    return Listed(name, _words(world.obs_space), _words(world.action_space), steps, None)


def _names(suite: str) -> list[str]:
    if suite == DEFAULT:
        find("CartPole-v1")  # gymnax is imported its way, once
        import gymnax

        return list(gymnax.registered_envs)
    return [f"{suite}:{name}" for name in suites.adapter(suite).names()]


def _words(space: Any) -> str:
    """One of 4, or 10×10×4 numbers."""
    if hasattr(space, "n"):
        return f"one of {space.n}"
    if hasattr(space, "spaces"):
        return f"one each of {', '.join(str(one.n) for one in space.spaces)}"
    size = "×".join(map(str, space.shape)) or "1"
    return f"{size} number{'' if size == '1' else 's'}"
