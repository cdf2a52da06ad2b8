"""N gymnax environments as pure functions: reset, step, restart.

gymnax is imported late, because that starts the JAX backend.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg import suites, words
from jaxpg.core import dynamics
from jaxpg.core.config import OWN_PARAMS, Config, ConfigError, EnvParams, nearest, with_types
from jaxpg.core.types import Env, EnvSpec, EnvState
from jaxpg.later import import_matplotlib, imported_later


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
    name, gym, params = _gymnax(name)
    env_params = _typed(name, gym, params, env_params)
    params = dynamics.with_params(gym, params, {key: env_params[key] for key in env_params.static})
    spec = _spec(name, gym, params, max_episode_steps, bool(env_params))
    limit, names = _time_limit(params), env_params.keys()
    if limit is not None:  # some have it as a float, or an array, and must
        own = (
            type(limit)(spec.time_limit)
            if isinstance(limit, int | float)
            else jnp.asarray(spec.time_limit, limit.dtype)
        )
        params = params.replace(max_steps_in_episode=own)
    encode, decode = _encoder(gym, params, float_type), _decoder(name, gym, params, squash)
    begin, advance = dynamics.begin_and_advance(name, gym, params, float_type)
    with _explained(name, float_type, env_params):
        obs_space, _ = _spaces(gym, params)
        types = dynamics.state_types(
            name, begin, advance, decode, spec, obs_space, env_params, float_type
        )

    def typed(inner: Any) -> Any:
        return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), inner, types)

    def start(noise: jax.Array, given: dict[str, jax.Array]) -> EnvState:
        obs, inner = begin(noise, given)
        return EnvState(typed(inner), encode(obs), jnp.int32(0), jnp.zeros((), float_type), given)

    def reset(noise: jax.Array, env_params: EnvParams = OWN_PARAMS) -> EnvState:
        if env_params.keys() != names:
            raise ConfigError(
                f"the environment was built for env_params {sorted(names)}, and is given "
                f"{sorted(env_params)}: build the algorithm of this config"
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
    name, gym, params = _gymnax(config.env)
    settled = _typed(name, gym, params, config.env_params)
    return dataclasses.replace(config, env_params=settled)


def described(name: str) -> tuple[Any, Any, int | None]:
    """Its spaces of observations and of actions, gymnax's, and its own time limit in steps.

    Raises:
      ConfigError: if there is no such environment, or its spaces are not supported.
    """
    name, gym, params = _gymnax(name)
    _check_spaces(name, gym, params)
    limit = _time_limit(params)
    return *_spaces(gym, params), None if limit is None else int(limit)


def classes_of(name: str) -> list[type]:
    """What the environment called `name` is made of: its wrappers, the outermost first, and itself.

    Raises:
      ConfigError: if there is no such environment.
    """
    _, gym, _ = _gymnax(name)
    found = [type(gym)]
    while hasattr(gym, "_env"):
        gym = gym._env
        found.append(type(gym))
    return found


class Interface(NamedTuple):
    """Between an environment's own observations and actions and the flat ones of the networks."""

    # Of one observation, () where it is one of n; of several, [frame_stack, …], the oldest first.
    obs_shape: tuple[int, ...]
    encode: Callable[[jax.Array], jax.Array]  # observation [*obs_shape] -> [D]
    decode: Callable[[jax.Array], jax.Array]  # action, or [A] -> in its bounds and its shape


def interface(
    name: str,
    float_type: str = "float32",
    env_params: EnvParams = OWN_PARAMS,
    squash: bool = False,
    frame_stack: int = 1,
) -> Interface:
    """How one environment called `name` is seen and acted in.

    Args:
      env_params: numbers; the bounds of an action may depend on them.
      squash: as in `make`.
      frame_stack: how many observations are seen at once.

    Raises:
      ConfigError: if there is no such environment, or its spaces are not supported.
    """
    name, gym, params = _gymnax(name)
    params = dynamics.with_params(gym, params, _typed(name, gym, params, env_params))
    _check_spaces(name, gym, params)
    obs_space, _ = _spaces(gym, params)
    obs_shape = () if hasattr(obs_space, "n") else tuple(obs_space.shape)
    image = _image_of(gym, obs_space)
    encode, decode = _encoder(gym, params, float_type), _decoder(name, gym, params, squash)
    if frame_stack == 1:
        return Interface(obs_shape, encode, lambda action: decode(action, {}))

    def encode_all(observations: jax.Array) -> jax.Array:
        obs = jax.vmap(encode)(observations)
        pixels = math.prod(image[:2])
        return obs.reshape(frame_stack, pixels, -1).swapaxes(0, 1).reshape(-1)

    return Interface((frame_stack, *obs_shape), encode_all, lambda action: decode(action, {}))


def _image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width and channels, 1 where there are none, of what has two or three axes."""
    return (*shape, 1)[:3] if len(shape) in (2, 3) else ()


def _image_of(gym: Any, obs_space: Any) -> tuple[int, ...]:
    """Of an environment: nothing where its observations are vectors, or have a mask in them."""
    is_vector = hasattr(obs_space, "n") or getattr(gym, "masks_actions", False)
    return () if is_vector else _image(tuple(obs_space.shape))


def _time_limit(params: Any) -> Any:
    """An environment's own, as its type is; None if it has none."""
    return getattr(params, "max_steps_in_episode", None)


@contextmanager
def _explained(name: str, float_type: str, env_params: EnvParams) -> Iterator[None]:
    """Raise a ConfigError for what an environment's code raises as it is traced, if it is known
    why."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # whatever its code raises
        if env_params.traced and isinstance(error, jax.errors.ConcretizationTypeError):
            raise ConfigError(
                f"{name} decides in Python by a parameter, so env_params cannot have all of "
                f"{', '.join(env_params.traced)}"
            ) from error
        reason = str(error).partition("\n")[0]
        if float_type != "float32" and isinstance(error, TypeError):  # it mixes 32 and 64 bits
            raise ConfigError(f"{name} only runs with arithmetic='float32' ({reason})") from error
        if suites.has(name):
            raise ConfigError(f"{name} does not run here ({reason})") from error
        raise


@jax.ensure_compile_time_eval()  # modules and environments keep arrays: not those of a jit's trace
@jax.transfer_guard("allow")  # which a user's guard is not about
def _gymnax(name: str) -> tuple[str, Any, Any]:
    """Its name without a module, the environment, and its parameters."""
    import_matplotlib()
    with imported_later("seaborn", "matplotlib.pyplot"):
        import gymnax

    if suites.has(name):
        return name, *suites.made(name)
    module, _, name = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever its code raises
            reason = words.raised(error)
            raise ConfigError(
                f"module {module!r} of environment '{module}:{name}' cannot be imported ({reason})"
            ) from error
    if name not in gymnax.registered_envs:
        import gymnasium  # which gymnax has imported

        has = name in gymnasium.registry
        where = ", but python -m torch_ref.train trains gymnasium's of that name" if has else ""
        hint = nearest(name, gymnax.registered_envs)
        raise ConfigError(f"unknown environment {name!r}{where}{hint}")
    try:
        return name, *gymnax.make(name)
    except OSError as error:  # MNISTBandit-bsuite downloads its images
        raise ConfigError(f"{name} could not be made: {error}") from error


def _typed(name: str, gym: Any, params: Any, env_params: EnvParams) -> EnvParams:
    """Those of the environment's own types; the time limit is a field of the config."""
    if not env_params:
        return env_params
    follow = {key: words for key, words, _ in dynamics.known(gym).follow}
    found = vars(params) if hasattr(params, "replace") else {}
    declared = getattr(type(params), "__annotations__", {})
    kinds = {
        key: kind
        for key, x in found.items()
        if key not in (*follow, "max_steps_in_episode")
        and (kind := _kind(x, declared.get(key))) is not None
    }
    return with_types(name, env_params, kinds, follow)


def _kind(x: Any, declared: Any) -> type | None:
    """float, int or bool, of a single number of Python, numpy or jax; None of anything else."""
    if declared in (float, "float") and type(x) is int:
        return float
    if type(x) in (float, int, bool):
        return type(x)
    if getattr(x, "shape", None) != ():
        return None
    kinds = {jnp.floating: float, jnp.integer: int, jnp.bool_: bool}
    return next((kind for dtype, kind in kinds.items() if jnp.issubdtype(x.dtype, dtype)), None)


def _spec(
    name: str, gym: Any, params: Any, max_episode_steps: int | None, changed: bool
) -> EnvSpec:
    _check_spaces(name, gym, params)
    obs_space, action_space = _spaces(gym, params)
    choices = tuple(space.n for space in getattr(action_space, "spaces", ()))
    discrete = bool(choices) or hasattr(action_space, "n")
    limit = max_episode_steps or _time_limit(params)
    if limit is None:
        raise ConfigError(f"{name} has no time limit of its own; give max_episode_steps")
    known, time_limit = dynamics.known(gym), int(limit)
    shortest = 1 if changed else known.min_episode_steps  # of other parameters nothing is known
    return EnvSpec(
        obs_size=getattr(obs_space, "n", 0) or math.prod(obs_space.shape),
        num_actions=_num_actions(action_space),
        discrete=discrete,
        time_limit=time_limit,
        min_episode_steps=min(shortest, time_limit),
        reset_uniforms=known.uniforms,
        choices=choices,
        masked=getattr(gym, "masks_actions", False),
        image=_image_of(gym, obs_space),
    )


def _num_actions(space: Any) -> int:
    """A, of a space of actions."""
    parts = getattr(space, "spaces", [space])
    return sum(getattr(part, "n", 0) or math.prod(part.shape) for part in parts)


def _check_spaces(name: str, gym: Any, params: Any) -> None:
    from gymnax.environments import spaces

    obs_space, action_space = _spaces(gym, params)
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
    if getattr(gym, "masks_actions", False):
        found = 0 if hasattr(obs_space, "n") else math.prod(obs_space.shape)
        if isinstance(action_space, spaces.Box) or found < _num_actions(action_space):
            raise ConfigError(
                f"{name} masks actions (masks_actions), so these must be discrete, and an "
                "observation must end with a number for each; it acts in "
                f"{action_space} and observes {obs_space}"
            )


@jax.ensure_compile_time_eval()
@jax.transfer_guard("allow")
def _spaces(gym: Any, params: Any) -> tuple[Any, Any]:
    """Of observations and of actions."""
    return gym.observation_space(params), gym.action_space(params)


def _encoder(gym: Any, params: Any, float_type: str) -> Callable[[jax.Array], jax.Array]:
    """Its observation -> [D]."""
    obs_space, _ = _spaces(gym, params)

    def encode(obs: jax.Array) -> jax.Array:
        if not hasattr(obs_space, "n"):
            return jnp.asarray(obs, float_type).reshape(-1)
        return jax.nn.one_hot(obs, obs_space.n, dtype=float_type).reshape(-1)

    return encode


@jax.transfer_guard("allow")  # of bounds
def _decoder(
    name: str, gym: Any, params: Any, squash: bool
) -> Callable[[jax.Array, dict], jax.Array]:
    """(action, or [A], the parameters that are traced) -> in its bounds, in the action's shape."""
    _, own_space = _spaces(gym, params)
    continuous = hasattr(own_space, "low")
    ends = (own_space.low, own_space.high) if continuous else ()
    if squash and not all(np.isfinite(end).all() for end in ends):
        raise ConfigError(f"squash needs actions with finite bounds; {name} acts in {own_space}")

    def decode(action: jax.Array, given: dict[str, jax.Array]) -> jax.Array:
        if not continuous:
            return action
        space = gym.action_space(dynamics.with_params(gym, params, given)) if given else own_space
        shape, bounds = space.shape, (space.low, space.high)
        low, high = (jnp.broadcast_to(jnp.asarray(x), shape).reshape(-1) for x in bounds)
        return dynamics.bounded(action, low, high, squash).reshape(shape)

    return decode
