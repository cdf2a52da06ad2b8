"""MuJoCo Playground: DeepMind's control suite and robots (Zakka et al. 2025, arXiv:2502.08844).

The physics is MJX, in JAX, also where Playground would take Warp's: it runs on every backend. A
fall terminates; the episode length of an environment's own config truncates. Where an environment
tells the critic more than the policy, both see what the policy does.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from gymnax.environments import environment, spaces
from mujoco_playground import registry

POLICY = "state"  # what the policy sees, where observations are several


def names() -> list[str]:
    """Those that are registered."""
    return sorted(registry.ALL_ENVS)


def make(name: str) -> tuple["Playground", environment.EnvParams]:
    """The environment, and its time limit."""
    config = registry.get_default_config(name)
    env = registry.load(name, config, {"impl": "jax"} if "impl" in config else None)
    repeat = config.get("action_repeat", 1)
    return Playground(env, repeat), environment.EnvParams(-(-config.episode_length // repeat))


class Playground(environment.Environment):
    """An environment of Playground's, without its wrappers but for the steps of an action."""

    def __init__(self, env: Any, repeat: int = 1):
        """`repeat`: steps that an action is kept for, whose rewards are added up."""
        self.env, self.repeat = env, repeat
        self.obs_shape = jax.eval_shape(lambda: _seen(env.reset(jax.random.PRNGKey(0)))).shape

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        state = self.env.reset(jax.random.key_data(key))  # its state keeps a key
        return _seen(state), state

    def step_env(self, key: jax.Array, state: Any, action: jax.Array, params: Any) -> tuple:
        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = self.env.step(state, action)
            return state, state.reward

        rewards: jax.Array
        state, rewards = jax.lax.scan(step, state, None, self.repeat)
        return _seen(state), state, rewards.sum(), state.done > 0, {}

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, self.obs_shape)

    def action_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (self.env.action_size,))


def _seen(state: Any) -> jax.Array:
    return state.obs[POLICY] if isinstance(state.obs, Mapping) else state.obs
