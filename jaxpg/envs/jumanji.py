"""Jumanji: puzzles, packing and routing (Bonnet et al. 2024, arXiv:2306.09884).

An observation is a structure; what is in it, action masks too, becomes one vector. Jumanji tells
its time limits as terminations: an environment is made without, and its limit truncates it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jumanji
from gymnax.environments import environment, spaces
from jumanji import specs

NEVER = 1_000_000  # steps; some environments have an array of so many


def names() -> list[str]:
    """Those that are registered."""
    return sorted(jumanji.registered_environments())


def make(name: str) -> tuple["Jumanji", Any]:
    """The environment, and its time limit if it has one."""
    env = jumanji.make(name)
    limit = getattr(env, "time_limit", None)
    if limit is None or not isinstance(env.action_spec, specs.DiscreteArray):
        return Jumanji(env), None
    return Jumanji(jumanji.make(name, time_limit=NEVER)), environment.EnvParams(int(limit))


class State(NamedTuple):
    """Between two steps."""

    inner: Any
    truncated: Any  # whether the last step ended the episode, and not the task


class Jumanji(environment.Environment):
    """An environment of Jumanji's, without its wrappers."""

    def __init__(self, env: jumanji.Environment):
        self.env = env
        first = jax.eval_shape(lambda key: self.reset_env(key, None)[0], jax.random.key(0))
        self.obs_shape = first.shape

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        inner, step = self.env.reset(jax.random.key_data(key))  # its state keeps a key
        return _flat(step.observation), State(inner, jnp.bool_(False))

    def step_env(self, key: jax.Array, state: State, action: jax.Array, params: Any) -> tuple:
        inner, step = self.env.step(state.inner, action)
        dead = jnp.all(step.discount == 0)
        state = State(inner, jnp.logical_and(step.last(), ~dead))
        return _flat(step.observation), state, step.reward, jnp.logical_and(step.last(), dead), {}

    def is_truncated(self, state: State, params: Any) -> jax.Array:
        return state.truncated

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, self.obs_shape)

    def action_space(self, params: Any) -> Any:
        spec = self.env.action_spec
        if isinstance(spec, specs.MultiDiscreteArray):
            return spaces.Tuple([spaces.Discrete(int(n)) for n in spec.num_values.reshape(-1)])
        return spaces.Discrete(int(spec.num_values)) if hasattr(spec, "num_values") else spec


def _flat(observation: Any) -> jax.Array:
    """All numbers of an observation, [D]."""
    leaves = jax.tree.leaves(observation)
    return jnp.concatenate([jnp.asarray(x, jnp.float32).reshape(-1) for x in leaves])
