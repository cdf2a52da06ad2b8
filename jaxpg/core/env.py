"""N gymnax environments as pure functions: reset, step, restart.

The package's only import of gymnax. It is done late, because it starts the JAX backend, and without
what gymnax imports for its pictures: that takes longer than all the rest.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpg.core.config import ConfigError, nearest
from jaxpg.core.types import Env, EnvSpec, EnvState
from jaxpg.fast import lanes

CARTPOLE_MIN_STEPS = 8  # no sequence of actions ends an episode sooner; a test tries them all


def make(name: str, *, float_type: str = "float32", max_episode_steps: int | None = None) -> Env:
    """The gymnax environment called `name`; `gymnax.register` adds yours.

    Args:
      name: a registered name, or MODULE:NAME, where importing the module registers the name.
      float_type: dtype of state, observation and reward.
      max_episode_steps: time limit in steps; None takes the environment's own.

    Raises:
      ConfigError: if there is no such environment, or its spaces are not supported.
    """
    name, gym, params = _gymnax(name)
    if max_episode_steps is not None:
        params = params.replace(max_steps_in_episode=max_episode_steps)
    spec = _spec(name, gym, params)
    _, encode, decode = _interface(gym, params, float_type)

    def pack(obs: jax.Array, inner: Any) -> EnvState:
        inner = jax.tree.map(lambda leaf: _explicit_type(leaf, float_type), inner)
        return EnvState(inner, encode(obs), jnp.int32(0), jnp.zeros((), float_type))

    @jax.vmap
    def reset(noise: jax.Array) -> EnvState:
        if name not in RESETS:
            return pack(*gym.reset_env(noise, params))
        inner = RESETS[name].place(noise.astype(float_type))
        return pack(gym.get_obs(inner), inner)

    @jax.vmap
    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        action = decode(action)
        obs, inner, reward, terminated, _ = gym.step_env(key, state.inner, action, params)
        inner = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), inner, state.inner)
        reward = jnp.asarray(reward, float_type).reshape(())
        terminated = jnp.asarray(terminated, bool).reshape(())
        over = jnp.logical_or(gym.is_truncated(inner, params), state.time + 1 >= spec.time_limit)
        truncated = jnp.logical_and(over, ~terminated)
        state = EnvState(inner, encode(obs), state.time + 1, state.episode_return + reward)
        return state, reward, terminated, truncated

    def restart(state: EnvState, done: jax.Array, noise: jax.Array) -> EnvState:
        def choose(fresh: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), fresh, old)

        return jax.tree.map(choose, reset(noise), state)

    return Env(spec, reset, lanes.row_by_row(step), lanes.row_by_row(restart))


class Interface(NamedTuple):
    """Between an environment's own observations and actions and the flat ones of the networks."""

    obs_shape: tuple[int, ...]  # of one observation; () where it is one of n
    encode: Callable[[jax.Array], jax.Array]  # observation [*obs_shape] -> [D]
    decode: Callable[[jax.Array], jax.Array]  # action, or [A] -> clipped, in the action's shape


def interface(name: str, float_type: str = "float32") -> Interface:
    """How one environment called `name` is seen and acted in.

    Raises:
      ConfigError: if there is no such environment, or its spaces are not supported.
    """
    name, gym, params = _gymnax(name)
    _spec(name, gym, params)
    return _interface(gym, params, float_type)


def terminate_at_limit(env: Env) -> Env:
    """The environment whose time limit ends the task, as a failure does."""

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        state, reward, terminated, truncated = env.step(key, state, action)
        return state, reward, jnp.logical_or(terminated, truncated), jnp.zeros_like(truncated)

    return env._replace(step=step)


def _gymnax(name: str) -> tuple[str, Any, Any]:
    """Its name without a module, the environment, and its parameters."""
    with _imported_later("seaborn", "matplotlib.pyplot"):
        import gymnax

    module, _, name = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever its code raises
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"module {module!r} of environment '{module}:{name}' cannot be imported ({reason})"
            ) from error
    if name not in gymnax.registered_envs:
        raise ConfigError(f"unknown environment {name!r}{nearest(name, gymnax.registered_envs)}")
    try:
        return name, *gymnax.make(name)
    except OSError as error:  # MNISTBandit-bsuite downloads its images
        raise ConfigError(f"{name} could not be made: {error}") from error


@contextmanager
def _imported_later(*names: str) -> Iterator[None]:
    """Who imports one of these modules meanwhile, imports it by the first use of it."""
    missing = [name for name in names if name not in sys.modules]
    sys.modules |= {name: _Later(name) for name in missing}
    try:
        yield
    finally:
        for name in missing:
            if isinstance(sys.modules.get(name), _Later):
                del sys.modules[name]


class _Later(ModuleType):
    """In the place of a module that has not been imported."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _spec(name: str, gym: Any, params: Any) -> EnvSpec:
    from gymnax.environments import spaces

    obs_space, action_space = gym.observation_space(params), gym.action_space(params)
    discrete = isinstance(action_space, spaces.Discrete)
    if not (discrete or isinstance(action_space, spaces.Box)):
        raise ConfigError(f"{name} acts in {action_space}; allowed are Discrete and Box")
    if not hasattr(obs_space, "shape"):
        raise ConfigError(f"{name} observes {obs_space}; allowed are Box and Discrete")
    time_limit = int(params.max_steps_in_episode)
    return EnvSpec(
        obs_size=getattr(obs_space, "n", 0) or math.prod(obs_space.shape),
        num_actions=action_space.n if discrete else math.prod(action_space.shape),
        discrete=discrete,
        time_limit=time_limit,
        min_episode_steps=min(CARTPOLE_MIN_STEPS, time_limit) if name == "CartPole-v1" else 1,
        reset_uniforms=RESETS[name].uniforms if name in RESETS else 0,
    )


def _interface(gym: Any, params: Any, float_type: str) -> Interface:
    obs_space, action_space = gym.observation_space(params), gym.action_space(params)

    def encode(obs: jax.Array) -> jax.Array:
        if not hasattr(obs_space, "n"):
            return obs.astype(float_type).reshape(-1)
        return jax.nn.one_hot(obs, obs_space.n, dtype=float_type).reshape(-1)

    def decode(action: jax.Array) -> jax.Array:
        if hasattr(action_space, "n"):
            return action
        shape = action_space.shape
        low, high = (jnp.broadcast_to(jnp.asarray(x), shape).reshape(-1) for x in bounds)
        return jnp.clip(action, low, high).reshape(shape)

    bounds = () if hasattr(action_space, "n") else (action_space.low, action_space.high)
    obs_shape = () if hasattr(obs_space, "n") else tuple(obs_space.shape)
    return Interface(obs_shape, encode, decode)


def _explicit_type(leaf: Any, float_type: str) -> jax.Array:
    """gymnax resets to Python numbers, whose dtype would change from step to step."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf.astype(float_type)
    return leaf.astype(jnp.int32) if leaf.dtype == jnp.int64 else leaf


def _place_cartpole(uniform: jax.Array) -> Any:
    """Each of the four numbers in [-0.05, 0.05)."""
    from gymnax.environments.classic_control import cartpole

    x, x_dot, theta, theta_dot = (uniform - 0.5) * 0.1
    return cartpole.EnvState(time=0, x=x, x_dot=x_dot, theta=theta, theta_dot=theta_dot)


def _place_pendulum(uniform: jax.Array) -> Any:
    """Angle in [-π, π) and speed in [-1, 1)."""
    from gymnax.environments.classic_control import pendulum

    theta, theta_dot = (uniform - 0.5) * jnp.array([2.0 * math.pi, 2.0], uniform.dtype)
    return pendulum.EnvState(time=0, theta=theta, theta_dot=theta_dot, last_u=jnp.zeros(()))


class Reset(NamedTuple):
    """A start that another library can reproduce to the bit, unlike uniform(minval, maxval)."""

    uniforms: int  # draws that it consumes
    place: Callable[..., Any]  # (uniform [uniforms]) -> gymnax state


RESETS = {"CartPole-v1": Reset(4, _place_cartpole), "Pendulum-v1": Reset(2, _place_pendulum)}
