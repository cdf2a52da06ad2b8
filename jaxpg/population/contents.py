"""A hash of what a value holds, for values that have no name. Imports no jax.

It is the same in every process: nothing of it depends on addresses, or on the order of a set.
"""

import dataclasses
import hashlib
import inspect
import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, ModuleType
from typing import Any

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))


def hash_of(value: Any) -> str:
    """Of arrays all numbers; of a function its code and what it closes over, but for lists and
    dictionaries, in which a function may write down what it has seen, and for its globals."""
    digest = hashlib.sha256()
    for part in _parts_of(value, {}):
        digest.update(part + b"\0")
    return digest.hexdigest()


def _parts_of(value: Any, met: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """A value as bytes, one part after another; what was met before is its number.

    Args:
      met: by address the number of each and itself, which keeps the address from being used again.
    """
    yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if isinstance(value, PLAIN):
        yield repr(value).encode()
        return
    if isinstance(value, ModuleType):
        yield value.__name__.encode()
        return
    if id(value) in met:
        yield f"the {met[id(value)][0]}th".encode()
        return
    met[id(value)] = len(met), value
    inner: list[Any] = []
    if isinstance(value, set | frozenset):
        yield from sorted(hash_of(one).encode() for one in value)
    elif isinstance(value, Mapping):
        inner = [x for pair in value.items() for x in pair]
    elif isinstance(value, list | tuple):
        inner = list(value)
    elif isinstance(value, partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, CodeType):
        inner = [value.co_code, value.co_consts, value.co_names]
    elif inspect.isfunction(value):
        inner = [value.__code__, value.__defaults__, value.__kwdefaults__, *_closed_over(value)]
    elif inspect.ismethod(value):
        inner = [value.__func__, value.__self__]
    elif isinstance(value, property):
        inner = [value.fget]
    elif isinstance(value, staticmethod | classmethod):
        inner = [value.__func__]
    elif inspect.isbuiltin(value):
        yield value.__qualname__.encode()
        inner = [value.__self__]
    elif inspect.isclass(value):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif hasattr(value, "__array__"):
        yield _numbers(value)
    else:
        inner = [getattr(type(value), "__call__", None), _fields(value)]  # noqa: B004
        if not hasattr(value, "__dict__"):
            inner.append(_reduced(value))
    for one in inner:
        yield from _parts_of(one, met)


def _closed_over(function: Any) -> list[Any]:
    """What a function closes over and nothing changes; of the rest the type."""
    found = []
    for cell in function.__closure__ or ():
        try:
            inner = cell.cell_contents
        except ValueError:  # it is not set yet
            inner = None
        found.append(type(inner) if isinstance(inner, list | dict | set) else inner)
    return found


def _numbers(value: Any) -> bytes:
    """Of an array; nothing of one whose entries are no numbers, as JAX's keys."""
    import numpy as np  # late: the command says what it can do without it

    try:
        array = np.asarray(value)
    except TypeError:
        return b""
    content = b"" if array.dtype.hasobject else array.tobytes()
    return f"{array.dtype}{array.shape}".encode() + content


def _reduced(value: Any) -> Any:
    """What an object without fields, as a range, is made of; None if it does not say."""
    try:
        return value.__reduce_ex__(2)
    except (TypeError, pickle.PicklingError):
        return None


def _fields(value: Any) -> dict[str, Any]:
    """An object's own values; those of a dataclass alone, beside which others keep counters."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return getattr(value, "__dict__", {})
