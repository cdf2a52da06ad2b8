"""Settings: values of traced hyperparameters that replace a config's; grids. Imports no jax."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxpg.core.config import FIELDS, TRACED, Config, ConfigError, nearest, validate

MOST, MOST_LANES = 2**31 - 1, 2**20
Setting = Mapping[str, Any]  # traced fields by name; {} is the config itself


def with_setting(config: Config, setting: Setting) -> Config:
    """The config with the setting's values in it.

    Raises:
      ConfigError: if a field is not traced, or the config has no meaning then.
    """
    for name in setting:
        if name not in TRACED:
            raise ConfigError(f"{name!r} cannot be a setting{nearest(name, TRACED)}")
    if "max_grad_norm" in setting and (setting["max_grad_norm"] is None) != (
        config.max_grad_norm is None
    ):
        raise ConfigError("max_grad_norm: clipping and none are two programs: train them apart")
    values: dict[str, Any] = dict(setting)
    return validate(dataclasses.replace(config, **values))


def check_sizes(config: Config, lanes: int) -> None:
    """Raise ConfigError unless int32 holds what a program counts, and lanes are in their range."""
    c = config
    steps = c.num_steps if c.collect == "steps" else c.max_episode_steps or 1
    counts = {
        "max_episode_steps": c.max_episode_steps or 1,
        "num_envs": c.num_envs,
        "steps of all environments in an update": c.num_envs * steps,
        "value_steps": c.value_steps,
        "buffer_size": c.buffer_size,
        "each of hidden_sizes": max(c.hidden_sizes),
        "updates that the budget pays for": c.num_updates,
    }
    for name, count in counts.items():
        if count > MOST:
            raise ConfigError(f"{name} must be at most {MOST}, as int32 counts; got {count}")
    if not 2 <= lanes <= MOST_LANES:  # XLA compiles a batch of one otherwise
        raise ConfigError(f"lanes must be in [2, {MOST_LANES}]; got {lanes}")


def expand(
    config: Config, grid: Mapping[str, Sequence[Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A grid as programs and settings: every combination of static values is a program.

    Args:
      grid: values of each field, as in {"gamma": [0.9, 0.99], "hidden_sizes": [(32,), (64,)]}.

    Returns:
      Static values of each program, and the settings that each of them trains; the last field of
      the grid varies fastest.

    Raises:
      ConfigError: if a field does not exist or has no values, or a combination has no meaning.
    """
    for name, values in grid.items():
        if name not in FIELDS:
            raise ConfigError(f"Config has no field {name!r}{nearest(name, FIELDS)}")
        if not values:
            raise ConfigError(f"{name} must have at least one value in the grid; got none")
    # Whether gradients are clipped is static; to what, is traced.
    static = [name for name in grid if name not in TRACED or None in grid[name]]
    programs = list(_product({name: grid[name] for name in static}))
    settings = list(_product({name: grid[name] for name in grid if name not in static}))
    for program in programs:
        for setting in settings:
            with_setting(dataclasses.replace(config, **program), setting)
    return programs, settings


def _product(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each name; the last name varies fastest."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))
