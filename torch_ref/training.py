"""train: from a config and a key to trained parameters."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from torch_ref import algorithms, env, learner
from torch_ref.config import TRACED, WHOLE, Config, EnvParams
from torch_ref.rules import check_one_number, validate
from torch_ref.types import Algorithm, LearnerState, Metrics


def train(
    config: Config, key: Any, algorithm: Algorithm | None = None
) -> tuple[LearnerState, Metrics]:
    """Train one seed for the whole budget.

    Args:
      config: what to train.
      key: of the seed, from `noise.key`; consumed.
      algorithm: `algorithms.build(config)` with parts of your own; None for exactly that.

    Returns:
      The final state, and Metrics whose leaves are [U], U = config.num_updates.

    Raises:
      ConfigError: if the config has no meaning.
    """
    history = list(updates(config, key, algorithm))
    rows = [row.named() for _, row in history]
    metrics = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return history[-1][0], Metrics(**metrics)


def updates(
    config: Config, key: Any, algorithm: Algorithm | None = None
) -> Iterator[tuple[LearnerState, Metrics]]:
    """The same, update by update; each state's networks are those of the one before, changed."""
    config = as_tensors(validate(config))
    algorithm = algorithm or algorithms.build(config)
    state = learner.init(config, key, algorithm)
    for _ in range(config.num_updates):
        state, metrics = learner.update(config, state, algorithm)
        yield state, metrics


def as_tensors(config: Config) -> Config:
    """The config with its traced fields as tensors of the working dtype, counts as int32.

    Raises:
      ConfigError: if a field has several values, or its environment has no such env_params.
    """
    config = env.settle(config)
    check_one_number(config)
    dtype = getattr(torch, config.float_type)
    values = {name: getattr(config, name) for name in TRACED}
    tensors: dict[str, Any] = {
        name: torch.as_tensor(value, dtype=torch.int32 if name in WHOLE else dtype)
        for name, value in values.items()
        if value is not None
    }
    traced = {name: torch.as_tensor(x, dtype=dtype) for name, x in config.env_params.traced.items()}
    env_params = EnvParams({**config.env_params, **traced}, config.env_params.static)
    return dataclasses.replace(config, env_params=env_params, **tensors)
