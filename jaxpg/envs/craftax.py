"""Craftax: survive and explore, in a grid of blocks (Matthews et al. 2024, arXiv:2402.16801).

Craftax tells its time limit as an episode's end like any other: an environment is made without, and
its limit truncates it.
"""

from typing import Any

import jax
from craftax.craftax_env import make_craftax_env_from_name
from gymnax.environments import environment, spaces

NAMES = ("Craftax-Classic-Symbolic-v1", "Craftax-Symbolic-v1")
NEVER = 1_000_000  # steps


def names() -> list[str]:
    """Those that observe numbers, not pixels."""
    return list(NAMES)


def make(name: str) -> tuple["Craftax", environment.EnvParams]:
    """The environment, and its time limit."""
    env = make_craftax_env_from_name(name, auto_reset=False)
    return Craftax(env), environment.EnvParams(env.default_params.max_timesteps)


class Craftax(environment.Environment):
    """An environment of Craftax's, which does not reset itself."""

    def __init__(self, env: Any):
        self.env = env
        self.own = env.default_params.replace(max_timesteps=NEVER)

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        return self.env.reset_env(jax.random.key_data(key), self.own)  # its state keeps a key

    def step_env(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple:
        return self.env.step_env(jax.random.key_data(key), state, action, self.own)

    def observation_space(self, params: Any) -> spaces.Box:
        space = self.env.observation_space(self.own)
        return spaces.Box(space.low, space.high, space.shape, space.dtype)

    def action_space(self, params: Any) -> spaces.Discrete:
        return spaces.Discrete(self.env.action_space(self.own).n)
