"""Brax: continuous control, on its own physics (Freeman et al. 2021, arXiv:2106.13281).

A robot that falls has terminated; what Brax's trainers end after 1,000 steps is truncated.
"""

from typing import Any

import jax
import jax.numpy as jnp
from brax import envs
from gymnax.environments import environment, spaces

EPISODE_LENGTH = 1_000  # of Brax's own wrapper, whose environments have no limit without it


def names() -> list[str]:
    """Those that are registered, which `brax.envs.register_environment` adds to."""
    return sorted(envs._envs)


def make(name: str) -> tuple["Brax", environment.EnvParams]:
    """The environment with the physics that it has by default, and the time limit."""
    return Brax(envs.get_environment(name)), environment.EnvParams(EPISODE_LENGTH)


class Brax(environment.Environment):
    """An environment of Brax's, without its wrappers."""

    def __init__(self, env: envs.Env):
        self.env = env
        self.obs_shape = jax.eval_shape(env.reset, jax.random.key(0)).obs.shape

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        state = self.env.reset(jax.random.key_data(key))  # its state may keep a key
        return state.obs, state

    def step_env(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple:
        state = self.env.step(state, action)
        return state.obs, state, state.reward, state.done > 0, {}

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, self.obs_shape)

    def action_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (self.env.action_size,))
