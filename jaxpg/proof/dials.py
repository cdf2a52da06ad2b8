"""Dials-v0: the smallest environment with several choices at once and a mask, for gymnax.

Two dials are turned up together, as fast as they can be. torch_ref/dynamics.py has it, too.
"""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class DialsState(environment.EnvState):
    """Where the dials are, from 0 to 3."""

    first: jax.Array
    second: jax.Array


class Dials(environment.Environment):
    """The first dial is turned down, not at all or up; the second not at all or up.

    The end, with a reward of 1, is where both are up; before it the reward is less the further they
    are apart. An observation is where the dials are and, 1 or 0, which turns their stops allow.
    """

    masks_actions = True

    @property
    def default_params(self) -> environment.EnvParams:
        return environment.EnvParams(max_steps_in_episode=20)

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        state = DialsState(time=0, first=jnp.int32(0), second=jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple:
        first, second = state.first + action[0] - 1, state.second + action[1]
        state = DialsState(time=state.time + 1, first=first, second=second)
        up = (first == 3) & (second == 3)
        reward = jnp.where(up, 1.0, -(1 + jnp.abs(first - second)) / 8)
        return self.get_obs(state), state, reward, up, {}

    def get_obs(self, state: Any, params: Any = None, key: Any = None) -> jax.Array:
        first, second = state.first, state.second
        allowed = (first > 0, True, first < 3, True, second < 3)
        return jnp.stack([first / 4, second / 4, *(jnp.where(x, 1.0, 0.0) for x in allowed)])

    def action_space(self, params: Any = None) -> spaces.Tuple:
        return spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)])

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(0.0, 1.0, (7,))


if "Dials-v0" not in gymnax.registered_envs:
    gymnax.register("Dials-v0", Dials)
