"""Environments made of environments: another end, several observations at once."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.core.types import Env, EnvSpec, EnvState


def terminate_at_limit(env: Env) -> Env:
    """The environment whose time limit ends the task, as a failure does."""

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        state, reward, terminated, truncated = env.step(key, state, action)
        return state, reward, jnp.logical_or(terminated, truncated), jnp.zeros_like(truncated)

    return env._replace(step=step)


def stack_frames(env: Env, count: int) -> Env:
    """The environment that observes its last observations together, the oldest first.

    Images lie behind one another along their channels, [height, width, count · channels]; what is
    no image one after the other, [count · D]. The first observation of an episode stands for those
    that would have been before it, too.

    Args:
      count: of observations, at least 1.
    """
    one, image = env.spec, env.spec.image
    spec = one._replace(obs_size=count * one.obs_size)
    if image:
        spec = spec._replace(image=(*image[:2], count * image[2]))

    def now(state: EnvState) -> EnvState:
        return state._replace(obs=newest(state.obs, spec, count))

    def begun(state: EnvState) -> EnvState:
        same = jnp.repeat(frames(state.obs, one, 1), count, axis=2)
        return state._replace(obs=same.reshape(len(same), -1))

    def reset(*inputs: Any) -> EnvState:
        return begun(env.reset(*inputs))

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        after, reward, terminated, truncated = env.step(key, now(state), action)
        earlier, new = frames(state.obs, spec, count)[:, :, 1:], frames(after.obs, one, 1)
        obs = jnp.concatenate([earlier, new], axis=2).reshape(state.obs.shape)
        return after._replace(obs=obs), reward, terminated, truncated

    def restart(state: EnvState, done: jax.Array, noise: jax.Array) -> EnvState:
        fresh = env.restart(now(state), done, noise)
        obs = jnp.where(done[:, None], begun(fresh).obs, state.obs)
        return fresh._replace(obs=obs)

    return Env(spec, reset, step, restart)


def newest(obs: jax.Array, spec: EnvSpec, count: int) -> jax.Array:
    """The last of the observations that were stacked, [N, D] of [N, count · D].

    Args:
      spec: of the environment that stacks them.
    """
    return frames(obs, spec, count)[:, :, -1].reshape(len(obs), -1)


def frames(obs: jax.Array, spec: EnvSpec, count: int) -> jax.Array:
    """Stacked observations apart: [N, pixels, count, channels], or [N, 1, count, D] of no image."""
    return obs.reshape(len(obs), math.prod(spec.image[:2]), count, -1)
