"""N gymnax environments as pure functions: reset, step, restart.

The package's only import of gymnax. It is done late, because it starts the JAX backend.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpg.core.config import ConfigError, nearest
from jaxpg.core.noise import keys
from jaxpg.core.types import Env, EnvSpec, EnvState
from jaxpg.later import import_matplotlib, imported_later


def make(
    name: str,
    *,
    float_type: str = "float32",
    max_episode_steps: int | None = None,
    rows: Callable = jax.vmap,
) -> Env:
    """The gymnax environment called `name`; `gymnax.register` adds yours.

    Args:
      name: a registered name, or MODULE:NAME, where importing the module registers the name.
      float_type: dtype of state, observation and reward.
      max_episode_steps: time limit in steps; None takes the environment's own.
      rows: what makes of a function of one environment that of N.

    Raises:
      ConfigError: if there is no such environment, or it is not supported.
    """
    name, gym, params = _gymnax(name)
    spec = _spec(name, gym, params, max_episode_steps)
    own = getattr(params, "max_steps_in_episode", None)
    if own is not None:  # some have it as a float, and must
        params = params.replace(max_steps_in_episode=type(own)(spec.time_limit))
    _, encode, decode = _interface(gym, params, float_type)
    begin, advance = _dynamics(name, gym, params, float_type)
    try:
        types = _state_types(name, begin, advance, *_examples(spec, decode), float_type)
    except TypeError as error:  # some of gymnax's mix numbers of 32 and of 64 bits
        if float_type == "float32":
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{name} only runs with arithmetic='float32' ({reason})") from error

    def typed(inner: Any) -> Any:
        return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), inner, types)

    def start(noise: jax.Array) -> EnvState:
        obs, inner = begin(noise)
        return EnvState(typed(inner), encode(obs), jnp.int32(0), jnp.zeros((), float_type))

    @rows
    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        obs, inner, reward, terminated, over = advance(key, state.inner, decode(action))
        inner = typed(inner)
        reward = jnp.asarray(reward, float_type).reshape(())
        terminated = jnp.asarray(terminated, bool).reshape(())
        over = jnp.logical_or(over, state.time + 1 >= spec.time_limit)
        truncated = jnp.logical_and(over, ~terminated)
        state = EnvState(inner, encode(obs), state.time + 1, state.episode_return + reward)
        return state, reward, terminated, truncated

    @rows
    def restart(state: EnvState, done: jax.Array, noise: jax.Array) -> EnvState:
        return jax.tree.map(lambda new, old: jnp.where(done, new, old), start(noise), state)

    return Env(spec, rows(start), step, restart)


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
    _check_spaces(name, gym, params)
    return _interface(gym, params, float_type)


def terminate_at_limit(env: Env) -> Env:
    """The environment whose time limit ends the task, as a failure does."""

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        state, reward, terminated, truncated = env.step(key, state, action)
        return state, reward, jnp.logical_or(terminated, truncated), jnp.zeros_like(truncated)

    return env._replace(step=step)


@jax.ensure_compile_time_eval()  # modules and environments keep arrays: not those of a jit's trace
@jax.transfer_guard("allow")  # which a user's guard is not about
def _gymnax(name: str) -> tuple[str, Any, Any]:
    """Its name without a module, the environment, and its parameters."""
    import_matplotlib()
    with imported_later("seaborn", "matplotlib.pyplot"):
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


def _spec(name: str, gym: Any, params: Any, max_episode_steps: int | None) -> EnvSpec:
    _check_spaces(name, gym, params)
    obs_space, action_space = _spaces(gym, params)
    discrete = hasattr(action_space, "n")
    own = getattr(params, "max_steps_in_episode", None)
    if max_episode_steps is None and own is None:
        raise ConfigError(f"{name} has no time limit of its own; give max_episode_steps")
    time_limit = max_episode_steps or int(own)  # type: ignore[arg-type]
    known = _known(gym)
    return EnvSpec(
        obs_size=getattr(obs_space, "n", 0) or math.prod(obs_space.shape),
        num_actions=action_space.n if discrete else math.prod(action_space.shape),
        discrete=discrete,
        time_limit=time_limit,
        min_episode_steps=min(known.min_episode_steps, time_limit),
        reset_uniforms=known.uniforms,
    )


def _check_spaces(name: str, gym: Any, params: Any) -> None:
    from gymnax.environments import spaces

    obs_space, action_space = _spaces(gym, params)
    if not isinstance(action_space, spaces.Discrete | spaces.Box):
        raise ConfigError(f"{name} acts in {action_space}; allowed are Discrete and Box")
    if not hasattr(obs_space, "shape"):
        raise ConfigError(f"{name} observes {obs_space}; allowed are Box and Discrete")


@jax.ensure_compile_time_eval()
@jax.transfer_guard("allow")
def _spaces(gym: Any, params: Any) -> tuple[Any, Any]:
    """Of observations and of actions."""
    return gym.observation_space(params), gym.action_space(params)


def _dynamics(
    name: str, gym: Any, params: Any, float_type: str
) -> tuple[Callable[..., tuple], Callable[..., tuple]]:
    """One environment, without a reset at an episode's end.

        begin(noise) -> observation, state
        advance(key, state, action) -> observation, state, reward, terminated, truncated

    gymnax's own `step` resets, and draws for that at every step, so its parts are called instead;
    but not where an environment has a `step` or `reset` of its own, as a wrapper has.
    """
    from gymnax.environments.environment import Environment

    def is_own(part: str) -> bool:
        return getattr(getattr(gym, part), "__func__", None) is not getattr(Environment, part)

    own = [part for part in ("step", "reset") if is_own(part)]
    if own and float_type == "float64":
        raise ConfigError(
            f"{name} has its own {' and '.join(own)}, which gymnax calls in float32 only; so "
            "arithmetic must be 'float32'"
        )

    def has_ended(state: Any) -> Any:
        """Its own way to truncate; gymnax's where a state tells the time and there is a limit."""
        tells = hasattr(state, "time") and hasattr(params, "max_steps_in_episode")
        return gym.is_truncated(state, params) if tells or is_own("is_truncated") else False

    def begin(noise: jax.Array) -> tuple:
        place = _known(gym).place
        if place is None:
            return gym.reset(noise, params) if own else gym.reset_env(noise, params)
        inner = place(noise.astype(float_type))
        return gym.get_obs(inner), inner

    def advance(key: jax.Array, state: Any, action: jax.Array) -> tuple:
        obs, state, reward, terminated, _ = gym.step_env(key, state, action, params)
        return obs, state, reward, terminated, has_ended(state)

    def advance_by_its_step(key: jax.Array, state: Any, action: jax.Array) -> tuple:
        obs, state, reward, terminated, truncated, info = gym.step(key, state, action, params)
        done = jnp.logical_or(terminated, truncated)  # then `obs` is of the next episode
        return jnp.where(done, info["final_observation"], obs), state, reward, terminated, truncated

    return begin, advance_by_its_step if own else advance


def _examples(spec: EnvSpec, decode: Callable) -> tuple[Any, Any]:
    """Shapes of the noise that a start consumes, and of an action as the environment takes it."""
    uniforms = jax.ShapeDtypeStruct((spec.reset_uniforms,), jnp.float32)
    noise = uniforms if spec.reset_uniforms else jax.eval_shape(lambda: keys([0])[0])
    if spec.discrete:
        return noise, jax.ShapeDtypeStruct((), jnp.int32)
    numbers = jax.ShapeDtypeStruct((spec.num_actions,), jnp.float32)
    return noise, jax.eval_shape(decode, numbers)


def _state_types(
    name: str, begin: Callable, advance: Callable, noise: Any, action: Any, float_type: str
) -> Any:
    """The shape and dtype of each leaf of the environment's state.

    gymnax resets to Python numbers, which a step turns into something else: so they are those that
    a step leaves behind, with floats of the working dtype, and must stay so.
    """

    def explicit(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = leaf.dtype
        if jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.dtype(float_type)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.int32 if dtype == jnp.int64 else dtype)

    def after_a_step(state: Any) -> Any:
        key = jax.eval_shape(lambda: keys([0])[0])
        return jax.tree.map(explicit, jax.eval_shape(advance, key, state, action)[1])

    start = jax.tree.map(explicit, jax.eval_shape(begin, noise)[1])
    types = after_a_step(start)
    again = after_a_step(types)
    if len({jax.tree.structure(state) for state in (start, types, again)}) > 1:
        raise ConfigError(f"a step of {name} must leave a state of the kind that it is given")
    shapes, others = (jax.tree_util.tree_leaves_with_path(tree) for tree in (types, again))
    for (path, leaf), (_, other), old in zip(shapes, others, jax.tree.leaves(start), strict=True):
        if leaf != other or leaf.shape != old.shape:
            raise ConfigError(
                f"a step of {name} must keep the shapes and types of its state; it turns "
                f"{jax.tree_util.keystr(path)} of {old.dtype}{list(old.shape)} into "
                f"{other.dtype}{list(other.shape)}"
            )
    return types


def _interface(gym: Any, params: Any, float_type: str) -> Interface:
    obs_space, action_space = _spaces(gym, params)

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


class Known(NamedTuple):
    """What is known of an environment, beyond what gymnax says."""

    min_episode_steps: int = 1  # no sequence of actions ends an episode sooner
    uniforms: int = 0  # draws that `place` consumes; 0: a reset consumes a key
    # A start that another library can reproduce to the bit, unlike uniform(minval, maxval):
    place: Callable[..., Any] | None = None  # (uniform [uniforms]) -> gymnax state


KNOWN = {  # by class: whatever else is registered under their names is another environment
    "gymnax.environments.classic_control.cartpole.CartPole": Known(8, 4, _place_cartpole),
    "gymnax.environments.classic_control.pendulum.Pendulum": Known(1, 2, _place_pendulum),
}


def _known(gym: Any) -> Known:
    return KNOWN.get(f"{type(gym).__module__}.{type(gym).__name__}", Known())
