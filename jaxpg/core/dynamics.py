"""One gymnax environment: how it begins and advances."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.core.config import ConfigError, EnvParams
from jaxpg.core.noise import keys
from jaxpg.core.types import EnvSpec
from jaxpg.world import World


def bounded(action: jax.Array, low: Any, high: Any, squash: bool) -> jax.Array:
    """The action within an environment's bounds: squashed by tanh and scaled to them, or clipped.

        (low + high) / 2 + (high - low) / 2 · tanh(a)

    Rounding may leave what is scaled beyond a bound, so it is clipped, too.
    """
    if squash:
        action = (low + high) / 2 + (high - low) / 2 * jnp.tanh(action)
    return jnp.clip(action, low, high)


def begin_and_advance(
    world: World, float_type: str
) -> tuple[Callable[..., tuple], Callable[..., tuple]]:
    """One environment, without a reset at an episode's end.

        begin(noise, given) -> observation, state
        advance(key, state, action, given) -> observation, state, reward, terminated, truncated

    where `given` has the parameters that are traced, by name.

    gymnax's own `step` resets, and draws for that at every step, so its parts are called instead;
    but not where an environment has a `step` or `reset` of its own, as a wrapper has.
    """
    from gymnax.environments.environment import Environment

    name, gym = world.name, world.gym

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
        if world.known.place is None:
            now = world.with_params(given).params
            return gym.reset(noise, now) if own else gym.reset_env(noise, now)
        inner = world.known.place(noise.astype(float_type))
        return gym.get_obs(inner), inner

    def advance(key: jax.Array, state: Any, action: jax.Array, given: dict) -> tuple:
        now = world.with_params(given).params
        obs, state, reward, terminated, info = gym.step_env(key, state, action, now)
        names = info if isinstance(info, Mapping) else ()
        told = [one for one in names if "truncat" in str(one).lower()]
        if told and not is_own("is_truncated"):
            raise ConfigError(
                f"{name} says in info[{told[0]!r}] that an episode is truncated, where gymnax does "
                "not ask: it must have is_truncated(state, params)"
            )
        return obs, state, reward, terminated, has_ended(state, now)

    def advance_by_its_step(key: jax.Array, state: Any, action: jax.Array, given: dict) -> tuple:
        now = world.with_params(given).params
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


def state_types(
    world: World,
    begin: Callable,
    advance: Callable,
    decode: Callable,
    spec: EnvSpec,
    env_params: EnvParams,
    float_type: str,
) -> Any:
    """The shape and dtype of each leaf of the environment's state; observations are checked, too.

    gymnax resets to Python numbers, which a step turns into something else: so they are those that
    a step leaves behind, with floats of the working dtype, and must stay so.

    Args:
      decode: an action of the policy -> as the environment takes it.

    Raises:
      ConfigError: if they change from step to step, or an observation lies otherwise than its
        space says.
    """
    noise, action, given = _examples(spec, decode, env_params, float_type)

    def explicit(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = leaf.dtype
        if jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.dtype(float_type)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.int32 if dtype == jnp.int64 else dtype)

    def after_a_step(state: Any) -> Any:
        key = jax.eval_shape(lambda: keys([0])[0])
        obs, state, *_ = jax.eval_shape(advance, key, state, action, given)
        _check_observation(world, obs)
        return jax.tree.map(explicit, state)

    obs, state = jax.eval_shape(begin, noise, given)
    _check_observation(world, obs)
    start = jax.tree.map(explicit, state)
    types = after_a_step(start)
    again = after_a_step(types)
    if len({jax.tree.structure(state) for state in (start, types, again)}) > 1:
        raise ConfigError(f"a step of {world.name} must leave a state of the kind that it is given")
    shapes, others = (jax.tree_util.tree_leaves_with_path(tree) for tree in (types, again))
    for (path, leaf), (_, other), old in zip(shapes, others, jax.tree.leaves(start), strict=True):
        if leaf != other or leaf.shape != old.shape:
            raise ConfigError(
                f"a step of {world.name} must keep the shapes and types of its state; it turns "
                f"{jax.tree_util.keystr(path)} of {old.dtype}{list(old.shape)} into "
                f"{other.dtype}{list(other.shape)}"
            )
    return types


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


def _check_observation(world: World, obs: Any) -> None:
    """Raise ConfigError unless an observation lies as its space says: it would be reshaped."""
    said = tuple(world.obs_space.shape)
    if obs.shape != said:
        raise ConfigError(
            f"{world.name} observes {list(obs.shape)}, and its observation_space says {list(said)}"
        )
