"""N gymnax environments as pure functions: reset, step, restart."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core import dynamics
from jaxpg.core.config import MOST, OWN_PARAMS, Config, ConfigError, EnvParams
from jaxpg.core.types import Env, EnvSpec, EnvState
from jaxpg.world import World, explained, find


def make(
    name: str,
    *,
    float_type: str = "float32",
    max_episode_steps: int | None = None,
    env_params: EnvParams = OWN_PARAMS,
    squash: bool = False,
    rows: Callable = jax.vmap,
) -> Env:
    """The gymnax environment called `name`; `gymnax.register` adds yours.

    Args:
      name: a registered name; or MODULE:NAME, where importing the module registers the name; or
        SUITE:NAME, of those in `jaxpg.suites`.
      float_type: dtype of state, observation and reward.
      max_episode_steps: time limit in steps; None takes the environment's own.
      env_params: its parameters that are not the environment's own. The traced ones have no value
        here: `reset` is handed them, and the state has them from there.
      squash: whether continuous actions are squashed into their bounds, or clipped to them.
      rows: what makes of a function of one environment that of N.

    Raises:
      ConfigError: if there is no such environment, or it is not supported, or has no such
        parameters.
    """
    world = find(name)
    env_params = world.typed(env_params)
    world = world.with_params({key: env_params[key] for key in env_params.static})
    world = world.with_time_limit(max_episode_steps)  # a clock may be observed
    check_spaces(world)
    spec, built_for = _spec(world, max_episode_steps, bool(env_params)), env_params.known
    encode, decode = _encoder(world, float_type), _decoder(world, squash)
    begin, advance = dynamics.begin_and_advance(world, float_type)
    with explained(world.name, float_type, env_params):
        types = dynamics.state_types(world, begin, advance, decode, spec, env_params, float_type)

    def typed(inner: Any) -> Any:
        return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), inner, types)

    def start(noise: jax.Array, given: dict[str, jax.Array]) -> EnvState:
        obs, inner = begin(noise, given)
        return EnvState(typed(inner), encode(obs), jnp.int32(0), jnp.zeros((), float_type), given)

    def reset(noise: jax.Array, env_params: EnvParams = OWN_PARAMS) -> EnvState:
        env_params = world.typed(env_params)
        if env_params.known != built_for:
            raise ConfigError(
                f"the environment was built for env_params {built_for}, and is given "
                f"{env_params.known}: build the algorithm of this config"
            )
        values = {key: jnp.asarray(x, float_type) for key, x in env_params.traced.items()}
        return rows(start)(
            noise, {key: jnp.broadcast_to(x, noise.shape[:1]) for key, x in values.items()}
        )

    @rows
    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        given = state.env_params
        action = decode(action, given)
        obs, inner, reward, terminated, over = advance(key, state.inner, action, given)
        inner = typed(inner)
        reward = jnp.asarray(reward, float_type).reshape(())
        terminated = jnp.asarray(terminated, bool).reshape(())
        over = jnp.logical_or(over, state.time + 1 >= spec.time_limit)
        truncated = jnp.logical_and(over, ~terminated)
        state = EnvState(inner, encode(obs), state.time + 1, state.episode_return + reward, given)
        return state, reward, terminated, truncated

    @rows
    def restart(state: EnvState, done: jax.Array, noise: jax.Array) -> EnvState:
        fresh = start(noise, state.env_params)
        return jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, state)

    return Env(spec, reset, step, restart)


def settle(config: Config) -> Config:
    """The config whose env_params have the environment's own types, as 12.0 for gravity=12.

    Raises:
      ConfigError: if there is no such environment, or it has no such parameters.
    """
    if not config.env_params:
        return config
    return dataclasses.replace(config, env_params=find(config.env).typed(config.env_params))


class Interface(NamedTuple):
    """Between an environment's own observations and actions and the flat ones of the networks."""

    # Of one observation, () where it is one of n; of several, [frame_stack, …], the oldest first.
    obs_shape: tuple[int, ...]
    values: int  # that such a one may have, 0, 1, …; 0 where it is no Discrete
    encode: Callable[[jax.Array], jax.Array]  # observation [*obs_shape] -> [D]
    decode: Callable[[jax.Array], jax.Array]  # action, or [A] -> in its bounds and its shape


def interface(
    name: str,
    float_type: str = "float32",
    env_params: EnvParams = OWN_PARAMS,
    squash: bool = False,
    frame_stack: int = 1,
    max_episode_steps: int | None = None,
) -> Interface:
    """How one environment called `name` is seen and acted in.

    Args:
      env_params: numbers; the bounds of an action may depend on them.
      squash, max_episode_steps: as in `make`.
      frame_stack: how many observations are seen at once.

    Raises:
      ConfigError: if there is no such environment, or its spaces are not supported.
    """
    world = find(name)
    world = world.with_params(world.typed(env_params)).with_time_limit(max_episode_steps)
    check_spaces(world)
    obs_shape, image = world.obs_shape, _image_of(world)
    encode, decode = _encoder(world, float_type), _decoder(world, squash)
    values = int(getattr(world.obs_space, "n", 0))
    if frame_stack == 1:
        return Interface(obs_shape, values, encode, lambda action: decode(action, {}))

    def encode_all(observations: jax.Array) -> jax.Array:
        obs = jax.vmap(encode)(observations)
        pixels = math.prod(image[:2])
        return obs.reshape(frame_stack, pixels, -1).swapaxes(0, 1).reshape(-1)

    shape = (frame_stack, *obs_shape)
    return Interface(shape, values, encode_all, lambda action: decode(action, {}))


def _image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width and channels, 1 where there are none, of what has two or three axes."""
    return (*shape, 1)[:3] if len(shape) in (2, 3) else ()


def _image_of(world: World) -> tuple[int, ...]:
    """Of an environment: nothing where its observations are vectors, or have a mask in them."""
    return () if world.masks_actions else _image(world.obs_shape)


def _spec(world: World, max_episode_steps: int | None, changed: bool) -> EnvSpec:
    obs_space, action_space = world.obs_space, world.action_space
    choices = tuple(space.n for space in getattr(action_space, "spaces", ()))
    discrete = bool(choices) or hasattr(action_space, "n")
    limit = max_episode_steps or world.time_limit
    if limit is None or not 1 <= limit <= MOST:
        own = "no time limit" if limit is None else f"a time limit of {limit}"
        raise ConfigError(f"{world.name} has {own} of its own; give max_episode_steps")
    known, time_limit = world.known, int(limit)
    shortest = 1 if changed else known.min_episode_steps  # of other parameters nothing is known
    return EnvSpec(
        obs_size=getattr(obs_space, "n", 0) or math.prod(obs_space.shape),
        num_actions=_num_actions(action_space),
        discrete=discrete,
        time_limit=time_limit,
        min_episode_steps=min(shortest, time_limit),
        reset_uniforms=known.uniforms,
        choices=choices,
        masked=world.masks_actions,
        image=_image_of(world),
    )


def _num_actions(space: Any) -> int:
    """A, of a space of actions."""
    parts = getattr(space, "spaces", [space])
    return sum(getattr(part, "n", 0) or math.prod(part.shape) for part in parts)


def check_spaces(world: World) -> None:
    """Raise ConfigError unless policies can act in an environment, and networks see it."""
    from gymnax.environments import spaces

    name, obs_space, action_space = world.name, world.obs_space, world.action_space
    parts = getattr(action_space, "spaces", ())
    several = len(parts) > 0 and all(isinstance(part, spaces.Discrete) for part in parts)
    if not (isinstance(action_space, spaces.Discrete | spaces.Box) or several):
        raise ConfigError(
            f"{name} acts in {action_space}; allowed are Discrete, a Tuple of them, and Box"
        )
    if isinstance(action_space, spaces.Box) and not jnp.issubdtype(
        action_space.dtype, jnp.floating
    ):
        raise ConfigError(
            f"{name} acts in a Box of {jnp.dtype(action_space.dtype).name}, and policies choose "
            "fractions there; whole numbers are Discrete, or a Tuple of them"
        )
    if not hasattr(obs_space, "shape"):
        raise ConfigError(f"{name} observes {obs_space}; allowed are Box and Discrete")
    if world.masks_actions:
        found = 0 if hasattr(obs_space, "n") else math.prod(obs_space.shape)
        if isinstance(action_space, spaces.Box) or found < _num_actions(action_space):
            raise ConfigError(
                f"{name} masks actions (masks_actions), so these must be discrete, and an "
                "observation must end with a number for each; it acts in "
                f"{action_space} and observes {obs_space}"
            )


def _encoder(world: World, float_type: str) -> Callable[[jax.Array], jax.Array]:
    """Its observation -> [D]."""
    obs_space = world.obs_space

    def encode(obs: jax.Array) -> jax.Array:
        if not hasattr(obs_space, "n"):
            return jnp.asarray(obs, float_type).reshape(-1)
        return jax.nn.one_hot(obs, obs_space.n, dtype=float_type).reshape(-1)

    return encode


@jax.transfer_guard("allow")  # of bounds
def _decoder(world: World, squash: bool) -> Callable[[jax.Array, dict], jax.Array]:
    """(action, or [A], the parameters that are traced) -> in its bounds, in the action's shape."""
    own_space = world.action_space
    continuous = hasattr(own_space, "low")
    ends = (own_space.low, own_space.high) if continuous else ()
    if squash and not all(np.isfinite(end).all() for end in ends):
        raise ConfigError(
            f"squash needs actions with finite bounds; {world.name} acts in {own_space}"
        )

    def decode(action: jax.Array, given: dict[str, jax.Array]) -> jax.Array:
        if not continuous:
            return action
        now = world.with_params(given)  # of a trace
        space = now.gym.action_space(now.params) if given else own_space
        shape, bounds = space.shape, (space.low, space.high)
        low, high = (jnp.broadcast_to(jnp.asarray(x), shape).reshape(-1) for x in bounds)
        return dynamics.bounded(action, low, high, squash).reshape(shape)

    return decode
