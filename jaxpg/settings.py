"""Settings: values of traced hyperparameters that replace a config's. Imports no jax."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxpg.config import TRACED, Config, ConfigError, nearest, validate

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
