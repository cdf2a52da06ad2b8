"""Brax: continuous control, on its own physics (Freeman et al. 2021, arXiv:2106.13281).

A robot that falls has terminated; what Brax's trainers end after 1,000 steps is truncated. Its
parameters are the fractions that it is made with: weights of its reward, the noise of a reset.
"""

import copy
import inspect
from typing import Any

import flax
import jax
import jax.numpy as jnp
from brax import envs
from gymnax.environments import environment, spaces

EPISODE_LENGTH = 1_000  # of Brax's own wrapper, whose environments have no limit without it


def names() -> list[str]:
    """Those that are registered, which `brax.envs.register_environment` adds to."""
    return sorted(envs._envs)


def make(name: str) -> tuple["Brax", environment.EnvParams]:
    """The environment with the physics that it has by default, and its parameters."""
    env = envs.get_environment(name)
    own = _fractions(env)
    fields = {"__annotations__": dict.fromkeys(own, float), **own}
    params = flax.struct.dataclass(type("Params", (environment.EnvParams,), fields))
    return Brax(env, list(own)), params(max_steps_in_episode=EPISODE_LENGTH)


def _fractions(env: envs.Env) -> dict[str, float]:
    """What it was made with, as far as it is a fraction that the environment keeps."""
    taken = inspect.signature(type(env).__init__).parameters
    kept = {name: getattr(env, f"_{name}", None) for name in taken}
    return {name: value for name, value in kept.items() if isinstance(value, float)}


class Brax(environment.Environment):
    """An environment of Brax's, without its wrappers."""

    def __init__(self, env: envs.Env, own: list[str]):
        self.env, self.own = env, own
        self.obs_shape = jax.eval_shape(env.reset, jax.random.key(0)).obs.shape

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        state = self._with(params).reset(jax.random.key_data(key))  # its state may keep a key
        return state.obs, state

    def step_env(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple:
        state = self._with(params).step(state, action)
        return state.obs, state, state.reward, state.done > 0, {}

    def _with(self, params: Any) -> envs.Env:
        """The environment as if it had been made with these."""
        env = copy.copy(self.env)
        for name in self.own:
            setattr(env, f"_{name}", getattr(params, name))
        return env

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, self.obs_shape)

    def action_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (self.env.action_size,))
