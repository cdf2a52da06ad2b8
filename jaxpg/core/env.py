"""N gymnax environments as pure functions: reset, step, restart.

gymnax is imported late, because that starts the JAX backend.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg import suites, words
from jaxpg.core.config import OWN_PARAMS, Config, ConfigError, EnvParams, nearest, with_types
from jaxpg.core.noise import keys
from jaxpg.core.types import Env, EnvSpec, EnvState
from jaxpg.later import import_matplotlib, imported_later

TRUNCATED = ("truncated", "TimeLimit.truncated")  # keys of info by which others tell it


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
    params = _with(gym, params, {key: env_params[key] for key in env_params.static})
    spec = _spec(name, gym, params, max_episode_steps, bool(env_params))
    limit, names = _time_limit(params), env_params.keys()
    if limit is not None:  # some have it as a float, and must
        params = params.replace(max_steps_in_episode=type(limit)(spec.time_limit))
    encode, decode = _encoder(gym, params, float_type), _decoder(name, gym, params, squash)
    begin, advance = _dynamics(name, gym, params, float_type)
    with _explained(name, float_type, env_params):
        examples = _examples(spec, decode, env_params, float_type)
        obs_space, _ = _spaces(gym, params)
        types = _state_types(name, begin, advance, *examples, obs_space, float_type)

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
    params = _with(gym, params, _typed(name, gym, params, env_params))
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


def terminate_at_limit(env: Env) -> Env:
    """The environment whose time limit ends the task, as a failure does."""

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        state, reward, terminated, truncated = env.step(key, state, action)
        return state, reward, jnp.logical_or(terminated, truncated), jnp.zeros_like(truncated)

    return env._replace(step=step)


def bounded(action: jax.Array, low: Any, high: Any, squash: bool) -> jax.Array:
    """The action within an environment's bounds: squashed by tanh and scaled to them, or clipped.

        (low + high) / 2 + (high - low) / 2 · tanh(a)

    Rounding may leave what is scaled beyond a bound, so it is clipped, too.
    """
    if squash:
        action = (low + high) / 2 + (high - low) / 2 * jnp.tanh(action)
    return jnp.clip(action, low, high)


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
        same = jnp.repeat(_frames(state.obs, one, 1), count, axis=2)
        return state._replace(obs=same.reshape(len(same), -1))

    def reset(*inputs: Any) -> EnvState:
        return begun(env.reset(*inputs))

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        after, reward, terminated, truncated = env.step(key, now(state), action)
        earlier, new = _frames(state.obs, spec, count)[:, :, 1:], _frames(after.obs, one, 1)
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
    return _frames(obs, spec, count)[:, :, -1].reshape(len(obs), -1)


def _frames(obs: jax.Array, spec: EnvSpec, count: int) -> jax.Array:
    """Stacked observations apart: [N, pixels, count, channels], or [N, 1, count, D] of no image."""
    return obs.reshape(len(obs), math.prod(spec.image[:2]), count, -1)


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
    follow = {key: words for key, words, _ in _known(gym).follow}
    found = vars(params) if hasattr(params, "replace") else {}
    kinds = {key: type(x) for key, x in found.items() if type(x) in (float, int, bool)}
    left = {
        key: kind for key, kind in kinds.items() if key not in (*follow, "max_steps_in_episode")
    }
    return with_types(name, env_params, left, follow)


def _with(gym: Any, params: Any, given: dict[str, Any]) -> Any:
    """The parameters with some replaced, and those that are made of them."""
    if not given:
        return params
    params = params.replace(**given)
    return params.replace(**{key: made(params) for key, _, made in _known(gym).follow})


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
    known, time_limit = _known(gym), int(limit)
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


def _dynamics(
    name: str, gym: Any, params: Any, float_type: str
) -> tuple[Callable[..., tuple], Callable[..., tuple]]:
    """One environment, without a reset at an episode's end.

        begin(noise, given) -> observation, state
        advance(key, state, action, given) -> observation, state, reward, terminated, truncated

    where `given` has the parameters that are traced, by name.

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

    def has_ended(state: Any, params: Any) -> Any:
        """Its own way to truncate; gymnax's where a state tells the time and there is a limit."""
        tells = hasattr(state, "time") and hasattr(params, "max_steps_in_episode")
        return gym.is_truncated(state, params) if tells or is_own("is_truncated") else False

    def begin(noise: jax.Array, given: dict[str, jax.Array]) -> tuple:
        place, now = _known(gym).place, _with(gym, params, given)
        if place is None:
            return gym.reset(noise, now) if own else gym.reset_env(noise, now)
        inner = place(noise.astype(float_type))
        return gym.get_obs(inner), inner

    def advance(key: jax.Array, state: Any, action: jax.Array, given: dict) -> tuple:
        now = _with(gym, params, given)
        obs, state, reward, terminated, info = gym.step_env(key, state, action, now)
        told = [key for key in TRUNCATED if isinstance(info, Mapping) and key in info]
        if told and not is_own("is_truncated"):
            raise ConfigError(
                f"{name} says in info[{told[0]!r}] that an episode is truncated, where gymnax does "
                "not ask: it must have is_truncated(state, params)"
            )
        return obs, state, reward, terminated, has_ended(state, now)

    def advance_by_its_step(key: jax.Array, state: Any, action: jax.Array, given: dict) -> tuple:
        now = _with(gym, params, given)
        outcome = gym.step(key, state, action, now)
        info = outcome[-1]
        if len(outcome) != 6 or not isinstance(info, Mapping) or "final_observation" not in info:
            raise ConfigError(
                f"{name} has a step of its own, which must give observation, state, reward, "
                "terminated, truncated and info with final_observation, as gymnax's"
            )
        obs, state, reward, terminated, truncated, _ = outcome
        done = jnp.logical_or(terminated, truncated)  # then `obs` is of the next episode
        return jnp.where(done, info["final_observation"], obs), state, reward, terminated, truncated

    return begin, advance_by_its_step if own else advance


def _examples(
    spec: EnvSpec, decode: Callable, env_params: EnvParams, float_type: str
) -> tuple[Any, Any, Any]:
    """Shapes of the noise that a start consumes, of an action as the environment takes it, and of
    the parameters that are traced."""
    given = {key: jax.ShapeDtypeStruct((), float_type) for key in env_params.traced}
    uniforms = jax.ShapeDtypeStruct((spec.reset_uniforms,), jnp.float32)
    noise = uniforms if spec.reset_uniforms else jax.eval_shape(lambda: keys([0])[0])
    kind = jnp.int32 if spec.discrete else jnp.float32
    action = jax.ShapeDtypeStruct(spec.action_shape, kind)
    return noise, jax.eval_shape(decode, action, given), given


def _state_types(
    name: str,
    begin: Callable,
    advance: Callable,
    noise: Any,
    action: Any,
    given: Any,
    obs_space: Any,
    float_type: str,
) -> Any:
    """The shape and dtype of each leaf of the environment's state; observations are checked, too.

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
        obs, state, *_ = jax.eval_shape(advance, key, state, action, given)
        _check_observation(name, obs_space, obs)
        return jax.tree.map(explicit, state)

    obs, state = jax.eval_shape(begin, noise, given)
    _check_observation(name, obs_space, obs)
    start = jax.tree.map(explicit, state)
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


def _check_observation(name: str, obs_space: Any, obs: Any) -> None:
    """Raise ConfigError unless an observation lies as its space says: it would be reshaped."""
    if obs.shape != tuple(obs_space.shape):
        raise ConfigError(
            f"{name} observes {list(obs.shape)}, and its observation_space says "
            f"{list(obs_space.shape)}"
        )


def _encoder(gym: Any, params: Any, float_type: str) -> Callable[[jax.Array], jax.Array]:
    """Its observation -> [D]."""
    obs_space, _ = _spaces(gym, params)

    def encode(obs: jax.Array) -> jax.Array:
        if not hasattr(obs_space, "n"):
            return obs.astype(float_type).reshape(-1)
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
        space = gym.action_space(_with(gym, params, given)) if given else own_space
        shape, bounds = space.shape, (space.low, space.high)
        low, high = (jnp.broadcast_to(jnp.asarray(x), shape).reshape(-1) for x in bounds)
        return bounded(action, low, high, squash).reshape(shape)

    return decode


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


def _place_catch(uniform: jax.Array) -> Any:
    """The ball in one of the five columns of the top row, the paddle in the middle of the last."""
    from gymnax.environments.bsuite import catch

    ball_x = jnp.floor(uniform[0] * 5).astype(jnp.int32)
    top, middle, last = jnp.int32(0), jnp.int32(2), jnp.int32(9)
    return catch.EnvState(
        ball_x=ball_x, ball_y=top, paddle_x=middle, paddle_y=last, prev_done=False, time=0
    )


class Known(NamedTuple):
    """What is known of an environment, beyond what gymnax says."""

    min_episode_steps: int = 1  # with its own parameters no actions end an episode sooner
    uniforms: int = 0  # draws that `place` consumes; 0: a reset consumes a key
    # A start that another library can reproduce to the bit, unlike uniform(minval, maxval):
    place: Callable[..., Any] | None = None  # (uniform [uniforms]) -> gymnax state
    # Parameters that are made of others: each one's name, and how, in words and in code.
    follow: tuple[tuple[str, str, Callable[[Any], Any]], ...] = ()
    made_with: dict[str, Any] = {}  # noqa: RUF012  # of one made otherwise nothing is known


_CARTPOLE = (
    ("total_mass", "masscart + masspole", lambda p: p.masscart + p.masspole),
    ("polemass_length", "masspole * length", lambda p: p.masspole * p.length),
)
KNOWN = {  # by class: whatever else is registered under their names is another environment
    "gymnax.environments.classic_control.cartpole.CartPole": Known(
        8, 4, _place_cartpole, _CARTPOLE
    ),
    "gymnax.environments.classic_control.pendulum.Pendulum": Known(1, 2, _place_pendulum),
    "gymnax.environments.bsuite.catch.Catch": Known(
        9, 1, _place_catch, made_with={"rows": 10, "columns": 5}
    ),
}


def _known(gym: Any) -> Known:
    known = KNOWN.get(f"{type(gym).__module__}.{type(gym).__name__}", Known())
    own = {name: getattr(gym, name, None) for name in known.made_with}
    return known if own == known.made_with else Known()
