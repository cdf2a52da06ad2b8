"""The suites of environments beside gymnax: where each one's adapter is, and what it needs.

An adapter is a module of `jaxpg.envs`, imported by its name once somebody asks for one of its
environments, as brax:ant, and it has

    names() -> the names of its environments
    make(name) -> a gymnax Environment, and its parameters

so that whatever holds for gymnax's environments holds for them.
"""

import importlib
import importlib.util
import sys
from contextlib import redirect_stdout
from typing import Any, NamedTuple

from jaxpg import words
from jaxpg.core.config import ConfigError, nearest


class Suite(NamedTuple):
    """Environments that are called PREFIX:NAME."""

    adapter: str  # the module
    package: str  # what pip installs; its extra is called as the prefix
    says: str
    imports: str | None = None  # the module of the package, where it is not called as that


SUITES = {
    "brax": Suite("jaxpg.envs.brax", "brax", "continuous control on Brax's own physics"),
    "jumanji": Suite("jaxpg.envs.jumanji", "jumanji", "puzzles, packing and routing"),
    "craftax": Suite("jaxpg.envs.craftax", "craftax", "survival in a grid of blocks"),
    "navix": Suite("jaxpg.envs.navix", "navix", "MiniGrid's rooms, doors and keys"),
    "playground": Suite(
        "jaxpg.envs.playground",
        "playground",
        "the control suite and robots, on MJX",
        imports="mujoco_playground",
    ),
}


def has(name: str) -> bool:
    """Whether an environment is called as one of a suite is."""
    return name.partition(":")[0] in SUITES


def made(name: str) -> tuple[Any, Any]:
    """The gymnax environment called PREFIX:NAME, and its parameters.

    Raises:
      ConfigError: if its suite is not installed, or has none of that name, or cannot make it.
    """
    prefix, _, own = name.partition(":")
    suite = adapter(prefix)
    if own not in suite.names():
        names = [f"{prefix}:{x}" for x in suite.names()]
        raise ConfigError(f"unknown environment {name!r}{nearest(name, names)}")
    try:
        return suite.make(own)
    except Exception as error:  # whatever a suite's code raises, as for a file that it downloads
        raise ConfigError(f"{name} could not be made ({words.raised(error)})") from error


def adapter(prefix: str) -> Any:
    """The module of a suite's adapter.

    Raises:
      ConfigError: if what it adapts is not installed, or cannot be imported.
    """
    suite = SUITES[prefix]
    if not is_installed(prefix):
        raise ConfigError(f"{prefix} is not installed: pip install 'jaxpg[{prefix}]'")
    try:
        with redirect_stdout(sys.stderr):  # some print what else could be installed
            return importlib.import_module(suite.adapter)
    except Exception as error:  # whatever a suite's code raises
        raise ConfigError(f"{prefix} cannot be imported ({words.raised(error)})") from error


def is_installed(prefix: str) -> bool:
    """Whether the package that a suite's adapter imports is there."""
    suite = SUITES[prefix]
    return importlib.util.find_spec(suite.imports or suite.package) is not None
