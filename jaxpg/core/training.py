"""train: from a config and a key to trained parameters, as one pure function."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.core import algorithms, env, learner
from jaxpg.core.config import TRACED, WHOLE, Config, ConfigError
from jaxpg.core.rules import check_one_number, validate
from jaxpg.core.types import Algorithm, LearnerState, Metrics


def train(
    config: Config, key: jax.Array, algorithm: Algorithm | None = None
) -> tuple[LearnerState, Metrics]:
    """Train one seed for the whole budget.

    Args:
      config: what to train; its traced fields may be traced.
      key: of the seed, from `noise.key`; consumed.
      algorithm: None for `algorithms.build(config)`.

    Returns:
      The final state, and Metrics whose leaves are [U], U = config.num_updates.

    Raises:
      ConfigError: if the config has no meaning.
    """
    config = as_arrays(validate(config))
    algorithm = algorithm or algorithms.build(config)
    state = learner.init(config, key, algorithm)

    def step(state: LearnerState, _: None) -> tuple[LearnerState, Metrics]:
        return learner.update(config, state, algorithm)

    return jax.lax.scan(step, state, None, length=config.num_updates)


def as_arrays(config: Config) -> Config:
    """The config with its traced fields as arrays of the working dtype, counts as int32.

    Raises:
      ConfigError: if it asks for float64 where JAX has none, a field has several values, or its
        environment has no such env_params.
    """
    if config.float_type == "float64" and not jax.config.read("jax_enable_x64"):
        raise ConfigError(
            f"arithmetic={config.arithmetic!r} needs JAX's 64-bit mode: set "
            "JAX_ENABLE_X64=1 or call jax.config.update('jax_enable_x64', True)"
        )
    config = env.settle(config)
    check_one_number(config, ": jax.vmap trains several, one config each")
    values = {name: getattr(config, name) for name in TRACED}
    arrays: dict[str, Any] = {
        name: jnp.asarray(value, jnp.int32 if name in WHOLE else config.float_type)
        for name, value in values.items()
        if value is not None
    }
    env_params = jax.tree.map(lambda x: jnp.asarray(x, config.float_type), config.env_params)
    return dataclasses.replace(config, env_params=env_params, **arrays)
