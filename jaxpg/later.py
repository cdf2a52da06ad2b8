"""How gymnax is imported: without what it needs for pictures alone, whatever a notebook has set.

It imports seaborn and matplotlib.pyplot, which take longer than all the rest of a start together
(1.3 of 3 s): those are imported by their first use.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def import_matplotlib() -> Any:
    """matplotlib, whose import fails where MPLBACKEND names what is not installed.

    So it does not see the variable then; a backend that there is, is set afterwards.
    """
    theirs = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if theirs is not None:
            os.environ["MPLBACKEND"] = theirs
    if theirs:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = theirs
    return matplotlib


class _Later(ModuleType):
    """In the place of a module that has not been imported."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
