"""A hash of what a value holds, for values that have no name. Imports no jax."""

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType
from typing import Any


def hash_of(value: Any) -> str:
    """Of what a value holds, the same in every process: of arrays all numbers; of a function its
    code, and what it closes over."""
    digest = hashlib.sha256()
    for part in _parts_of(value, set()):
        digest.update(part + b"\0")
    return digest.hexdigest()


def _parts_of(value: Any, within: set[int]) -> Iterator[bytes]:
    """A value as bytes, one part after another; what holds itself ends there."""
    if id(value) in within:
        return
    within = {*within, id(value)}
    yield type(value).__name__.encode()
    inner: list[Any] = []
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        import numpy as np  # late: the command says what it can do without it

        array = np.asarray(value)
        yield f"{array.dtype}{array.shape}".encode() + array.tobytes()
    elif isinstance(value, Mapping):
        inner = [x for pair in value.items() for x in pair]
    elif isinstance(value, list | tuple):
        inner = list(value)
    elif isinstance(value, partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, CodeType):
        yield value.co_code
        inner = [value.co_consts, value.co_names]
    elif inspect.isfunction(value):
        closed_over = inspect.getclosurevars(value).nonlocals
        inner = [value.__code__, value.__defaults__, value.__kwdefaults__, closed_over]
    elif inspect.ismethod(value):
        inner = [value.__func__, value.__self__]
    else:
        yield re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode()
        inner = [] if inspect.isclass(value) else [getattr(value, "__dict__", None)]
    for one in inner:
        yield from _parts_of(one, within)
