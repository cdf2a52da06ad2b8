"""Whole episodes of a policy: what evaluating, while it trains and afterwards, and rendering share.

An episode's key decides all of it: of its streams 0 places it, 1 samples its actions and 2 moves
the environment. Letters: E episodes of one policy; vmap for more policies, the loop then ends with
the last of all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.core import noise
from jaxpg.core.config import ConfigError, EnvParams
from jaxpg.core.rollout import mask_like
from jaxpg.core.types import Algorithm, EnvState, Params
from jaxpg.fast import lanes
from jaxpg.population.evaluations import MODES


def play(
    algorithm: Algorithm, mode: str, params: Params, keys: jax.Array, env_params: EnvParams
) -> tuple[jax.Array, jax.Array]:
    """Episodes from their start to their end.

    Args:
      mode: of `evaluations.MODES`.
      params: of one policy.
      keys: of the episodes, [E].

    Returns:
      Undiscounted returns [E], and lengths in steps, int32 [E].
    """
    start, step = stages(algorithm, mode)

    def alive_somewhere(carry: tuple) -> jax.Array:
        return jnp.any(carry[2])

    def body(carry: tuple) -> tuple:
        t, state, alive = carry
        return t + 1, *step(params, keys, t, state, alive)

    first = (jnp.int32(0), *start(keys, env_params))
    _, end, _ = lanes.while_loop(alive_somewhere, body, first)
    return end.episode_return, end.time


def stages(algorithm: Algorithm, mode: str) -> tuple[Callable[..., tuple], Callable[..., tuple]]:
    """How episodes begin, and how they go on.

    Returns:
      (keys [E], env_params) -> state, alive [E]; and
      (params, keys, step's number, state, alive) -> state, alive, where an episode that is over
      keeps its state.
    """
    env, choose = algorithm.env, chooser(algorithm, mode)

    def start(keys: jax.Array, env_params: EnvParams) -> tuple:
        draws = jax.vmap(lambda key: noise.fold_in(key, 0))(keys)
        if env.spec.reset_uniforms:
            draws = jax.vmap(lambda key: noise.uniform(key, (env.spec.reset_uniforms,)))(draws)
        return env.reset(draws, env_params), jnp.ones(len(keys), bool)

    def step(params: Params, keys: jax.Array, t: jax.Array, state: EnvState, alive: Any) -> tuple:
        def step_key(key: jax.Array) -> jax.Array:
            return noise.fold_in(noise.fold_in(key, 2), t)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(mask_like(alive, new), new, old)

        action = choose(params, state.obs, keys, t)
        following, _, terminated, truncated = env.step(jax.vmap(step_key)(keys), state, action)
        done = jnp.logical_or(terminated, truncated)
        return jax.tree.map(keep, following, state), jnp.logical_and(alive, ~done)

    return start, step


def chooser(algorithm: Algorithm, mode: str) -> Callable[..., jax.Array]:
    """(params, obs [E, D], keys [E], step's number) -> actions [E, ...], both as `Env` has them.

    Raises:
      ConfigError: if there is no such mode.
    """
    if mode not in MODES:
        raise ConfigError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    distribution, shape = algorithm.distribution, algorithm.env.spec.action_shape

    def choose(params: Params, obs: jax.Array, keys: jax.Array, t: jax.Array) -> jax.Array:
        outputs = algorithm.networks.policy(params, obs)
        if mode == "greedy":
            return distribution.mode(outputs)

        def draw(key: jax.Array) -> jax.Array:
            return noise.uniform(noise.fold_in(noise.fold_in(key, 1), t), shape)

        return distribution.sample(outputs, jax.vmap(draw)(keys))

    return choose
