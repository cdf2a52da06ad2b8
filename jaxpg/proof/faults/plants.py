"""What a fault is, and the means to plant one.

A plant is a context: `torch_ref` is wrong in one way for as long as it lasts.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch

from torch_ref import algorithms, learner

Plant = AbstractContextManager[Any]


class Fault(NamedTuple):
    """One mistake; its function's docstring says which."""

    plant: Callable[[], Plant]
    control: str  # name of a config in the package's CONTROLS

    @property
    def name(self) -> str:
        return self.plant.__name__.replace("_", " ")

    @property
    def description(self) -> str:
        return (self.plant.__doc__ or "").strip()


def of(control: str, *plants: Callable[[], Plant]) -> tuple[Fault, ...]:
    """The faults that one control shows."""
    return tuple(Fault(plant, control) for plant in plants)


def wrap(module: Any, name: str, change: Callable[..., Any]) -> Plant:
    """module.name(...) becomes change(the original, ...)."""
    original = getattr(module, name)
    return mock.patch.object(
        module, name, lambda *args, **kwargs: change(original, *args, **kwargs)
    )


@contextmanager
def both(first: Plant, second: Plant) -> Iterator[None]:
    """One mistake that takes two plants."""
    with first, second:
        yield


def trajectory(change: Callable[[Any], dict[str, Any]]) -> Plant:
    """Ψ and the value target are estimated from a trajectory with other rows."""

    def estimate(original: Callable, *inputs: Any) -> Any:
        config, algorithm, params, t = inputs
        return original(config, algorithm, params, t._replace(**change(t)))

    return wrap(learner, "estimate", estimate)


def parts(change: Callable[[Any], dict[str, Any]]) -> Plant:
    """The algorithm is built with other parts."""

    def build(original: Callable, *inputs: Any) -> Any:
        algorithm = original(*inputs)
        return algorithm._replace(**change(algorithm))

    return wrap(algorithms, "build", build)


def config_of_fit(change: Callable[[Any], Any]) -> Plant:
    """The fit has another config."""
    return mock.patch.dict(
        algorithms.FITS,
        {
            name: lambda config, *rest, fit=fit: fit(change(config), *rest)
            for name, fit in algorithms.FITS.items()
        },
    )


def optimizer(name: str, make: Callable[[Any, Any], torch.optim.Optimizer]) -> Plant:
    """An optimizer is made by make(config, parameters)."""
    return mock.patch.dict(learner.OPTIMIZERS, {name: make})


def replaced(config: Any, **fields: Callable[[Any], Any]) -> Any:
    """The config with change(its value) in each field that is named."""
    changed = {name: change(getattr(config, name)) for name, change in fields.items()}
    return dataclasses.replace(config, **changed)
