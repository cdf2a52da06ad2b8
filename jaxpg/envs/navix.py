"""Navix: MiniGrid's rooms, doors and keys (Pignatelli et al. 2024, arXiv:2407.19396).

An observation is an image of the whole grid, with three numbers a tile. Navix resets an episode in
the step after its last: an environment is stepped below that, and made without its time limit,
which truncates it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import navix
from gymnax.environments import environment, spaces

NEVER = 1_000_000  # steps


def names() -> list[str]:
    """Those that are registered."""
    return sorted(navix.registry())


def make(name: str) -> tuple["Navix", environment.EnvParams]:
    """The environment, and its time limit."""
    env = navix.make(name)
    return Navix(env.replace(max_steps=NEVER)), environment.EnvParams(env.max_steps)


class Navix(environment.Environment):
    """An environment of Navix's, which does not reset itself."""

    def __init__(self, env: navix.Environment):
        self.env = env

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        first = self.env.reset(jax.random.key_data(key))  # its state keeps a key
        first = first.replace(state=first.state.replace(cache=None))  # sprites: some 10 to 70 KB
        return _seen(first), first

    def step_env(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple:
        state = self.env._step(state, action)
        return _seen(state), state, state.reward, state.is_termination(), {}

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(0.0, 255.0, self.env.observation_space.shape)

    def action_space(self, params: Any) -> spaces.Discrete:
        return spaces.Discrete(len(self.env.action_set))


def _seen(step: Any) -> jax.Array:
    return step.observation.astype(jnp.float32)
