"""Jumanji: puzzles, packing and routing (Bonnet et al. 2024, arXiv:2306.09884).

An observation is a structure; what is in it becomes one vector, whose end is the mask of actions.
Where several choices are masked together, every combination of them is an action. Jumanji tells its
time limits as terminations: an environment is made without, and its limit truncates it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from gymnax.environments import environment, spaces

NEVER = 1_000_000  # steps; some environments have an array of so many


def names() -> list[str]:
    """Those that are registered."""
    return sorted(jumanji.registered_environments())


def make(name: str) -> tuple["Jumanji", Any]:
    """The environment, and its time limit if it has one."""
    env = jumanji.make(name)
    limit = getattr(env, "time_limit", None)
    if limit is None:
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
        first = jax.eval_shape(lambda: env.reset(jax.random.PRNGKey(0))[1].observation)
        self.obs_shape = jax.eval_shape(_flat, first).shape
        mask = getattr(first, "action_mask", None)
        self.values = tuple(np.ravel(getattr(env.action_spec, "num_values", ())).tolist())
        self.combined = mask is not None and len(self.values) > 1 and mask.shape == self.values
        self.choices = (math.prod(self.values),) if self.combined else self.values
        self.masks_actions = mask is not None and mask.size == sum(self.choices)

    def reset_env(self, key: jax.Array, params: Any) -> tuple:
        inner, step = self.env.reset(jax.random.key_data(key))  # its state keeps a key
        return _flat(step.observation), State(inner, jnp.bool_(False))

    def step_env(self, key: jax.Array, state: State, action: jax.Array, params: Any) -> tuple:
        if self.combined:
            action = jnp.stack(jnp.unravel_index(action, self.values))
        action = action.reshape(np.shape(self.env.action_spec.num_values))
        inner, step = self.env.step(state.inner, action)
        dead = jnp.all(step.discount == 0)
        state = State(inner, jnp.logical_and(step.last(), ~dead))
        reward = jnp.sum(step.reward)  # of all agents
        return _flat(step.observation), state, reward, jnp.logical_and(step.last(), dead), {}

    def is_truncated(self, state: State, params: Any) -> jax.Array:
        return state.truncated

    def observation_space(self, params: Any) -> spaces.Box:
        return spaces.Box(-jnp.inf, jnp.inf, self.obs_shape)

    def action_space(self, params: Any) -> Any:
        if not self.choices:
            return self.env.action_spec
        parts = [spaces.Discrete(n) for n in self.choices]
        return parts[0] if len(parts) == 1 else spaces.Tuple(parts)


def _flat(observation: Any) -> jax.Array:
    """All numbers of an observation, [D], a mask of actions last."""
    leaves = jax.tree.leaves(observation)
    if hasattr(observation, "action_mask"):
        leaves = jax.tree.leaves(observation._replace(action_mask=None))
        leaves.append(observation.action_mask)
    return jnp.concatenate([jnp.asarray(x, jnp.float32).reshape(-1) for x in leaves])
