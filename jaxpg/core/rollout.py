"""The policy in its environments: one update's experience, as a Trajectory [T, N].

Both functions are pure; `act(params, obs, uniform)` and the noise decide everything.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.core.types import Env, EnvState, Noise, Params, Trajectory


def over_time(step: Callable, state: EnvState, noise: Noise, block: int) -> tuple[Any, Any]:
    """The steps of a rollout, one after the other; a reset's noise is for a block of them.

    Args:
      step: (state, uniform [N, ...], key [N], reset noise [N, ...]) -> state, and its row.
      state: of N environments.
      noise: of this update.
      block: steps in a block.

    Returns:
      The state in the end, and the rows, leaves [T, N, ...].
    """

    def one(state: EnvState, inputs: tuple) -> tuple[Any, Any]:
        t, uniform, key = inputs
        return step(state, uniform, key, noise.reset[t // block])

    return jax.lax.scan(one, state, (jnp.arange(len(noise.action)), noise.action, noise.env))


def collect_steps(
    env: Env,
    act: Callable,
    params: Params,
    state: EnvState,
    noise: Noise,
    *,
    loop: Callable = over_time,
) -> tuple[EnvState, Trajectory]:
    """T steps of N environments, which start anew when an episode ends.

    Args:
      env: the environments.
      act: (params, obs [N, D], uniform [N, ...]) -> action [N, ...] and log π(a|s) [N].
      params: the acting policy's.
      state: where the last update left the environments.
      noise: of this update; T is the length of its action draws.
      loop: carries out the steps, with the arguments of `over_time`.

    Returns:
      The environments' next state, and a Trajectory whose rows are all valid. `next_obs` is the
      true successor; the row after an episode's end begins the next episode.
    """

    def step(
        state: EnvState, uniform: jax.Array, key: jax.Array, reset: jax.Array
    ) -> tuple[EnvState, Trajectory]:
        state, row = _step(env, act, params, state, uniform, key)
        done = jnp.logical_or(row.terminated, row.truncated)
        return env.restart(state, done, reset), row

    return loop(step, state, noise, env.spec.min_episode_steps)


def collect_episodes(
    env: Env,
    act: Callable,
    params: Params,
    state: EnvState,
    noise: Noise,
    *,
    loop: Callable = jax.lax.while_loop,
) -> tuple[EnvState, Trajectory]:
    """N whole episodes, each masked after its end.

    The loop ends with the longest episode. An episode that is over keeps its state, and its rows
    are zero and not valid.

    Args:
      env, act, params, noise: as in `collect_steps`; T is the environment's time limit.
      state: any state; every environment starts anew.
      loop: with the arguments of `jax.lax.while_loop`.

    Returns:
      The environments' last state, and a Trajectory in which each column is one episode.
    """
    alive = jnp.ones(state.time.shape, bool)
    state = env.restart(state, alive, noise.reset[0])

    def alive_somewhere(carry: tuple) -> jax.Array:
        return jnp.any(carry[2])

    def step(carry: tuple) -> tuple:
        t, state, alive, rows = carry
        next_state, row = _step(env, act, params, state, noise.action[t], noise.env[t])
        row = jax.tree.map(lambda x: jnp.where(mask_like(alive, x), x, jnp.zeros_like(x)), row)
        rows = jax.tree.map(lambda rows, x: rows.at[t].set(x), rows, row)
        state = jax.tree.map(
            lambda x, old: jnp.where(mask_like(alive, x), x, old), next_state, state
        )
        done = jnp.logical_or(row.terminated, row.truncated)
        return t + 1, state, jnp.logical_and(alive, ~done), rows

    _, first = jax.eval_shape(lambda: _step(env, act, params, state, noise.action[0], noise.env[0]))
    empty = jax.tree.map(lambda x: jnp.zeros((len(noise.action), *x.shape), x.dtype), first)
    _, state, _, rows = loop(alive_somewhere, step, (jnp.int32(0), state, alive, empty))
    return state, rows


def _step(
    env: Env, act: Callable, params: Params, state: EnvState, uniform: jax.Array, key: jax.Array
) -> tuple[EnvState, Trajectory]:
    """One step of N environments: the true next state, and the trajectory's row."""
    action, log_prob = act(params, state.obs, uniform)
    next_state, reward, terminated, truncated = env.step(key, state, action)
    row = Trajectory(
        obs=state.obs,
        action=action,
        log_prob=log_prob,
        reward=reward,
        next_obs=next_state.obs,
        terminated=terminated,
        truncated=truncated,
        valid=jnp.ones_like(terminated),
        time=state.time,
        episode_return=next_state.episode_return,
    )
    return next_state, row


def mask_like(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A mask [N] with trailing axes, to broadcast against x [N, ...]."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))
