"""A trained policy, to act with outside training."""

import dataclasses
import importlib
import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg import fast
from jaxpg.core import algorithms, env, noise
from jaxpg.core.config import Config, EnvParams
from jaxpg.core.rules import validate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Algorithm, EnvSpec, Params
from jaxpg.population.own import Build
from jaxpg.population.settings import plain_setting


@dataclasses.dataclass(frozen=True, eq=False)
class Actor:
    """How the policies of one config act; pure functions, compiled when they are called."""

    algorithm: Algorithm
    interface: env.Interface
    outputs: Callable[..., jax.Array]  # (params, obs [..., D]) -> [..., K]
    greedy: Callable[..., jax.Array]  # (params, observation [..., *obs_shape]) -> action
    sampled: Callable[..., jax.Array]  # (params, observation, key) -> action

    @property
    def spec(self) -> EnvSpec:
        """Of the environment."""
        return self.algorithm.env.spec


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Policy:
    """One seed's policy: parameters and what acts by them.

    It can be copied; and pickled, unless it has parts of one's own, which are functions without a
    name: a `Run` can, and makes them again.
    """

    config: Config
    params: Params
    algorithm: Algorithm | None = None  # with parts of one's own

    @classmethod
    def of(cls, config: Config, params: Params, algorithm: Algorithm | None = None) -> "Policy":
        """The policy that a config's networks and these parameters are.

        Args:
          params: of one seed, as in a LearnerState.
          algorithm: with networks of your own; None for the config's.

        Raises:
          ConfigError: if the environment is unknown, or the config needs JAX's 64-bit mode.
        """
        actor(config, algorithm)
        return cls(config, params, algorithm)

    @cached_property
    def actor(self) -> Actor:
        """The pure functions that act, compiled once for all policies of the config."""
        return actor(self.config, self.algorithm)

    def __reduce__(self) -> tuple:
        """Without what is compiled."""
        return Policy, (self.config, self.params, self.algorithm)

    def act(self, observation: Any, key: jax.Array | None = None) -> Any:
        """Choose an action for each observation.

        Args:
          observation: one, or any number along leading axes, as the environment gives it
            (of CartPole [..., 4]); with frame_stack the last so many, the oldest first, of an
            episode's begin its first one as often ([..., frame_stack, 4]). Of a Discrete its
            number, not one-hot. numpy, JAX, or nested sequences.
          key: to sample from π, as from `jaxpg.key`, consumed; None takes the most probable
            action (of a Gaussian its mean, which may then be squashed).

        Returns:
          Actions as the environment takes them: int32 [...] or [..., choices], or
          [..., *action_shape] within its bounds. A JAX array for a JAX array (or a traced key),
          numpy for anything else.

        Raises:
          ValueError: if the observation has not the environment's shape, or is none of a
            Discrete's numbers.
        """
        shape, values = self.actor.interface.obs_shape, self.actor.interface.values
        given = np.shape(observation)
        if len(given) < len(shape) or given[len(given) - len(shape) :] != shape:
            wanted = ", ".join(["…", *map(str, shape)])
            raise ValueError(f"observation must have the shape ({wanted}); got {given}")
        with jax.transfer_guard("allow"):  # numpy is asked for
            if values and not isinstance(observation, jax.core.Tracer):
                numbers = np.asarray(observation)
                unknown = numbers[~((numbers >= 0) & (numbers < values) & (numbers % 1 == 0))]
                if unknown.size:
                    raise ValueError(f"observation must be of 0 to {values - 1}; got {unknown[0]}")
            if key is None:
                action = self.actor.greedy(self.params, observation)
            else:
                action = self.actor.sampled(self.params, observation, key)
            traced = isinstance(action, jax.core.Tracer)
            return action if traced or isinstance(observation, jax.Array) else np.asarray(action)


def actor(config: Config, algorithm: Algorithm | None = None) -> Actor:
    """How the policies of a config, or of an algorithm made from it, act.

    Raises:
      ConfigError: if the environment is unknown, or the config needs JAX's 64-bit mode.
    """
    with jax.transfer_guard("allow"):
        as_arrays(validate(config))
        own = plain_setting({"env_params": config.env_params})  # which make an action's bounds
        static = dataclasses.replace(fast.static(config), **own)
        return _actor(static, algorithm, registered(config.env))


def registered(name: str) -> Any:
    """What makes the environment called `name`: another object, once it is registered anew.

    Raises:
      ConfigError: if there is no such environment.
    """
    env.interface(name)
    registry = getattr(importlib.import_module("gymnax.registration"), "_registry", {})
    return registry.get(name.rpartition(":")[2])


def made(build: Build, config: Config, options: EnvParams) -> Algorithm:
    """What `build` makes of a config, the same object each time: what is compiled is kept by it."""
    with jax.transfer_guard("allow"):
        return _made(build, config, options, registered(config.env))


@lru_cache(maxsize=16)
def _made(build: Build, config: Config, options: EnvParams, registered: Any) -> Algorithm:
    """Another one once the environment is registered anew."""
    with jax.ensure_compile_time_eval():  # what it keeps is no trace's
        return build(config, **options)


@lru_cache(maxsize=16)
def _actor(config: Config, algorithm: Algorithm | None, registered: Any) -> Actor:
    """The actor; `registered` makes another of it once the environment is registered anew."""
    algorithm = algorithm or algorithms.build(config)
    spec = algorithm.env.spec
    seen = (config.env_params, config.squash, config.frame_stack, config.max_episode_steps)
    interface = env.interface(config.env, config.float_type, *seen)
    outputs, distribution = algorithm.networks.policy, algorithm.distribution

    def on_batch(choose: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def act(params: Params, observation: Any, *key: jax.Array) -> jax.Array:
            observation = jnp.asarray(observation)
            batch = observation.shape[: observation.ndim - len(interface.obs_shape)]
            count = math.prod(batch)
            flat = observation.reshape(count, *interface.obs_shape)
            if not count:  # networks need not know what to do with nothing
                flat = jnp.zeros((1, *interface.obs_shape), observation.dtype)
            action = choose(outputs(params, jax.vmap(interface.encode)(flat)), *key)
            action = jax.vmap(interface.decode)(action)[:count]
            return action.reshape(*batch, *action.shape[1:])

        return jax.jit(act)

    def sampled(outputs: jax.Array, key: jax.Array) -> jax.Array:
        uniform = noise.uniform(key, (len(outputs), *spec.action_shape))
        return distribution.sample(outputs, uniform)

    return Actor(algorithm, interface, outputs, on_batch(distribution.mode), on_batch(sampled))
