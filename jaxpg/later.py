"""Modules that somebody else imports and hardly anybody uses: imported by their first use.

gymnax imports seaborn and matplotlib.pyplot for its pictures, which take longer than all the rest
of a start together (1.3 of 3 s).
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def imported_later(*names: str) -> Iterator[None]:
    """Who imports one of these modules meanwhile, imports it by the first use of it."""
    missing = [name for name in names if name not in sys.modules]
    sys.modules |= {name: _Later(name) for name in missing}
    try:
        yield
    finally:
        for name in missing:
            if isinstance(sys.modules.get(name), _Later):
                del sys.modules[name]


class _Later(ModuleType):
    """In the place of a module that has not been imported."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
