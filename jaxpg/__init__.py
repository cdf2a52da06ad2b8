"""jaxpg: policy gradients you can trust at ten thousand seeds.

`from jaxpg import Config, key, train`. Names load on first use: `import jaxpg` alone imports no
jax, so that the command answers at once.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names below, for type checkers and editors
    from jaxpg.core.config import ConfigError as ConfigError
    from jaxpg.core.learner import init as init
    from jaxpg.core.learner import update as update
    from jaxpg.core.noise import key as key
    from jaxpg.core.noise import keys as keys
    from jaxpg.core.presets import preset as preset
    from jaxpg.core.types import Config as Config
    from jaxpg.envs.check import check_env as check_env
    from jaxpg.errors import RunError as RunError
    from jaxpg.fast import build as build
    from jaxpg.fast import train as train
    from jaxpg.population.policy import Policy as Policy
    from jaxpg.runs.load import Run as Run
    from jaxpg.runs.load import load as load
    from jaxpg.runs.python import train_grid as train_grid
    from jaxpg.runs.python import train_population as train_population

__version__ = version("jaxpg")

_HOME = {
    "Config": "core.types",  # where it is registered with jax
    "ConfigError": "core.config",
    "preset": "core.presets",
    "build": "fast",
    "init": "core.learner",
    "update": "core.learner",
    "key": "core.noise",
    "keys": "core.noise",
    "train": "fast",
    "train_population": "runs.python",
    "train_grid": "runs.python",
    "load": "runs.load",
    "Run": "runs.load",
    "RunError": "errors",
    "Policy": "population.policy",
    "check_env": "envs.check",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxpg' has no attribute {name!r}")
    return getattr(import_module(f"jaxpg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
