"""jaxpg: policy gradients you can trust at ten thousand seeds.

`from jaxpg import Config, key, train`. Names load on first use: `import jaxpg` alone imports no
jax, so that the command answers at once.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

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
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxpg' has no attribute {name!r}")
    return getattr(import_module(f"jaxpg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
