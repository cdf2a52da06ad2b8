"""The policy in its environments: one update's experience, as a Trajectory [T, N].

Both functions are pure; `act(params, obs, uniform)` and the noise decide everything.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpg.core.types import Acted, Env, EnvState, Noise, Params, Trajectory
from jaxpg.fast import lanes


def collect_steps(
    env: Env, act: Callable, params: Params, state: EnvState, noise: Noise
) -> tuple[EnvState, Trajectory]:
    """T steps of N environments, which start anew when an episode ends.

    Args:
      env: the environments.
      act: (params, obs [N, D], uniform [N, ...]) -> action [N, ...], and the network's outputs
        [N, K] that it follows from, or None.
      params: the acting policy's.
      state: where the last update left the environments.
      noise: of this update; T is the length of its action draws.

    Returns:
      The environments' next state, and a Trajectory whose rows are all valid. `next_obs` is the
      true successor; the row after an episode's end begins the next episode. `acted` is kept.
    """

    def step(
        state: EnvState, uniform: jax.Array, key: jax.Array, reset: jax.Array
    ) -> tuple[EnvState, tuple]:
        next_state, (row, outputs) = _step(env, act, params, state, uniform, key)
        done = jnp.logical_or(row.terminated, row.truncated)
        return env.restart(next_state, done, reset), (row, outputs)

    streams = ((noise.action, 1), (noise.env, 1), (noise.reset, env.spec.min_episode_steps))
    state, (rows, outputs) = lanes.scan(step, state, streams)
    everywhere = jnp.ones_like(rows.valid)  # a constant, where the loop has written an array
    return state, rows._replace(valid=everywhere, acted=Acted(rows.obs, outputs))


def collect_episodes(
    env: Env, act: Callable, params: Params, state: EnvState, noise: Noise
) -> tuple[EnvState, Trajectory]:
    """N whole episodes, each masked after its end.

    The loop ends with the longest episode (of all seeds, under vmap). An episode that is over
    keeps its state, and its rows are zero and not valid.

    Args:
      env, act, params, noise: as in `collect_steps`; T is the environment's time limit.
      state: any state; every environment starts anew.

    Returns:
      The environments' last state, and a Trajectory in which each column is one episode.
    """
    everywhere = jnp.ones(state.time.shape, bool)
    state = env.restart(state, everywhere, noise.reset[0])

    def alive_somewhere(carry: tuple) -> jax.Array:
        return lanes.max_lane(jnp.any(carry[2]))

    def step(carry: tuple) -> tuple:
        t, state, alive, rows = carry
        next_state, new = _step(env, act, params, state, noise.action[t], noise.env[t])
        row, outputs = jax.tree.map(lambda x: jnp.where(_like(alive, x), x, jnp.zeros_like(x)), new)
        rows = jax.tree.map(lambda rows, x: rows.at[t].set(x), rows, (row, outputs))
        state = jax.tree.map(lambda x, old: jnp.where(_like(alive, x), x, old), next_state, state)
        done = jnp.logical_or(row.terminated, row.truncated)
        return t + 1, state, jnp.logical_and(alive, ~done), rows

    first = jax.eval_shape(lambda: _step(env, act, params, state, noise.action[0], noise.env[0]))
    empty = jax.tree.map(lambda x: jnp.zeros((len(noise.action), *x.shape), x.dtype), first[1])
    start = (jnp.int32(0), state, everywhere, empty)
    _, state, _, (rows, outputs) = jax.lax.while_loop(alive_somewhere, step, start)
    return state, rows._replace(acted=Acted(rows.obs, outputs))


def _step(
    env: Env, act: Callable, params: Params, state: EnvState, uniform: jax.Array, key: jax.Array
) -> tuple[EnvState, tuple[Trajectory, jax.Array | None]]:
    """One step of N environments: the true next state; the trajectory's row, and the outputs."""
    action, outputs = act(params, state.obs, uniform)
    next_state, reward, terminated, truncated = env.step(key, state, action)
    row = Trajectory(
        obs=state.obs,
        action=action,
        reward=reward,
        next_obs=next_state.obs,
        terminated=terminated,
        truncated=truncated,
        valid=jnp.ones_like(terminated),
        time=state.time,
        episode_return=next_state.episode_return,
    )
    return next_state, (row, outputs)


def _like(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A mask [N] with trailing axes, to broadcast against x [N, ...]."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))
