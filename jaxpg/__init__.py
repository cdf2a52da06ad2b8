"""jaxpg: policy gradients you can trust at ten thousand seeds.

`from jaxpg import Config, key, train`. Names load on first use: `import jaxpg` alone imports no
jax, so that the command answers at once.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names below, for type checkers and editors
    from jaxpg.algorithms import build as build
    from jaxpg.config import ConfigError as ConfigError
    from jaxpg.config import preset as preset
    from jaxpg.learner import init as init
    from jaxpg.learner import update as update
    from jaxpg.loading import Run as Run
    from jaxpg.loading import load as load
    from jaxpg.noise import key as key
    from jaxpg.noise import keys as keys
    from jaxpg.policy import Policy as Policy
    from jaxpg.population import train_grid as train_grid
    from jaxpg.population import train_population as train_population
    from jaxpg.runs import RunError as RunError
    from jaxpg.training import train as train
    from jaxpg.types import Config as Config

__version__ = version("jaxpg")

_HOME = {
    "Config": "types",  # where it is registered with jax
    "ConfigError": "config",
    "preset": "config",
    "build": "algorithms",
    "init": "learner",
    "update": "learner",
    "key": "noise",
    "keys": "noise",
    "train": "training",
    "train_population": "population",
    "train_grid": "population",
    "load": "loading",
    "Run": "loading",
    "RunError": "runs",
    "Policy": "policy",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxpg' has no attribute {name!r}")
    return getattr(import_module(f"jaxpg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
