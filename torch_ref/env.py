"""N environments behind one interface: reset, step, restart.

CartPole-v1, Pendulum-v1 and Catch-bsuite are those of `dynamics`. Every other name is made by
gymnasium: usable, but no twin of a gymnax run.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_ref import dynamics
from torch_ref.config import OWN_PARAMS, Config, ConfigError, EnvParams, nearest, with_types
from torch_ref.types import Env, EnvSpec, EnvState


def make(
    name: str,
    *,
    float_type: str = "float32",
    max_episode_steps: int | None = None,
    env_params: EnvParams = OWN_PARAMS,
    squash: bool = False,
) -> Env:
    """The environment called `name`: a tensor one if there is one, else gymnasium's.

    Args:
      name: "CartPole-v1", "Pendulum-v1", "Catch-bsuite", that of `dials` or a registered gymnasium
        name.
      float_type: dtype of state, observation and reward.
      max_episode_steps: time limit in steps; None takes the environment's own.
      env_params: its parameters that are not the environment's own. The traced ones have no value
        here: `reset` is handed them, and the state has them from there.
      squash: whether continuous actions are squashed into their bounds, or clipped to them.

    Raises:
      ConfigError: if there is no such environment, or its spaces are not supported, or it has no
        such parameters.
    """
    dtype = getattr(torch, float_type)
    env_params = _typed(name, env_params)
    written = _written(squash)
    if name in written:
        return written[name].make(dtype, max_episode_steps, env_params)
    return gymnasium_env(name, dtype, max_episode_steps, squash)


def settle(config: Config) -> Config:
    """The config whose env_params have the environment's own types, as 12.0 for gravity=12.

    Raises:
      ConfigError: if there is no such environment, or it has no such parameters.
    """
    settled = _typed(config.env, config.env_params)
    return dataclasses.replace(config, env_params=settled)


def _image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width and channels, 1 where there are none, of what has two or three axes."""
    return (*shape, 1)[:3] if len(shape) in (2, 3) else ()


def gymnasium_env(
    name: str, dtype: torch.dtype, max_episode_steps: int | None = None, squash: bool = False
) -> Env:
    """N gymnasium environments, stepped one after another. Their state is theirs: not pure.

    Args:
      name: a registered gymnasium name.
      dtype: of observation and reward.
      max_episode_steps: time limit in steps; None takes the environment's own.
      squash: as in `make`.

    Raises:
      ConfigError: if there is none, its spaces are not supported, or it has no time limit.
    """
    world = _find(name, max_episode_steps)
    check_spaces(world)
    spec = _spec(world, max_episode_steps)
    encode, decode = _encoder(world, dtype), _decoder(world, squash)

    def reset(noise: np.ndarray, env_params: EnvParams = OWN_PARAMS) -> EnvState:
        envs = [_Once(_find(name, max_episode_steps)) for _ in noise]
        first = [env.reset(seed=int(key[1]))[0] for env, key in zip(envs, noise, strict=True)]
        return dynamics.start(envs, encode(first))

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        results = [env.step(decode(a)) for env, a in zip(state.inner, action, strict=True)]
        obs, reward, terminated, truncated, _ = zip(*results, strict=True)
        rewards = _each(world, "reward", float, reward).to(dtype)
        ends = _each(world, "terminated", bool, terminated)
        state, rewards, ends, over = dynamics.advance(
            state, state.inner, encode(obs), rewards, ends, spec.time_limit
        )
        return state, rewards, ends, over | (_each(world, "truncated", bool, truncated) & ~ends)

    def restart(state: EnvState, done: torch.Tensor, noise: np.ndarray) -> EnvState:
        obs = state.obs.clone()
        for i in done.nonzero().flatten().tolist():
            obs[i] = encode([state.inner[i].reset(seed=int(noise[i][1]))[0]])[0]
        zero = torch.zeros_like(state.episode_return)
        return EnvState(
            state.inner,
            obs,
            torch.where(done, 0, state.time),
            torch.where(done, zero, state.episode_return),
        )

    return Env(spec, reset, step, restart)


def _each(world: Any, name: str, kind: type, values: Sequence[Any]) -> torch.Tensor:
    """One number of each environment, [N]."""
    found: list[np.ndarray] = []
    for value in values:
        try:
            found.append(np.asarray(value).reshape(()).astype(kind))
        except (TypeError, ValueError):
            found.append(np.array(np.nan))
        if not np.isfinite(found[-1]):  # of None it is NaN, too
            raise ConfigError(
                f"a step of {world.spec.id} must give one number as {name}; got {value!r}"
            )
    return torch.from_numpy(np.array(found))


class _Once:
    """An environment that is not stepped beyond an episode's end: it says how that was again."""

    def __init__(self, env: Any):
        self._env, self._end = env, None

    def reset(self, seed: int) -> tuple:
        """Begin an episode."""
        self._end = None
        return self._env.reset(seed=seed)

    def step(self, action: Any) -> tuple:
        """Observation, reward, terminated, truncated and info, as of gymnasium."""
        if self._end is not None:
            return self._end
        outcome = self._env.step(action)
        terminated, truncated = outcome[2:4]
        self._end = outcome if terminated or truncated else None
        return outcome


class _Written(NamedTuple):
    """An environment that is written down in `dynamics`."""

    make: Callable[..., Env]  # (dtype, time limit, its parameters that are not its own)
    params: Any = ()  # with its own values
    follow: Mapping[str, str] = MappingProxyType({})  # parameters that are made of others, and how


def _written(squash: bool = False) -> dict[str, _Written]:
    """By name."""
    made_of_others = {
        "total_mass": "masscart + masspole",
        "polemass_length": "masspole * length",
    }
    pendulum = partial(dynamics.pendulum, squash=squash)
    return {
        "CartPole-v1": _Written(dynamics.cartpole, dynamics.CartPoleParams(), made_of_others),
        "Pendulum-v1": _Written(pendulum, dynamics.PendulumParams()),
        "Catch-bsuite": _Written(dynamics.catch),
        "jaxpg.proof.dials:Dials-v0": _Written(dynamics.dials),
    }


def _typed(name: str, env_params: EnvParams) -> EnvParams:
    """Those of the environment's own types; the time limit is a field of the config."""
    if not env_params:
        return env_params
    written = _written()
    if name not in written:
        some = " and ".join(key for key, one in written.items() if one.params)
        raise ConfigError(f"gymnasium's {name} takes no env_params here; {some} do")
    params = written[name].params
    kinds = {key: type(value) for key, value in params._asdict().items()} if params else {}
    return with_types(name, env_params, kinds, written[name].follow)


def _find(name: str, max_episode_steps: int | None) -> Any:
    """gymnasium's environment that is called so.

    Raises:
      ConfigError: if there is none, or it cannot be made here.
    """
    import gymnasium

    if name not in gymnasium.registry:
        raise ConfigError(
            f"unknown environment {name!r}{nearest(name, sorted(gymnasium.registry))}"
        )
    try:
        return gymnasium.make(name, max_episode_steps=max_episode_steps)
    except (gymnasium.error.Error, ImportError) as error:  # a package that it needs is missing
        raise ConfigError(f"{name} could not be made: {error}") from error


def _spec(world: Any, max_episode_steps: int | None) -> EnvSpec:
    obs_space, action_space = world.observation_space, world.action_space
    limit = max_episode_steps or world.spec.max_episode_steps
    if limit is None:
        raise ConfigError(f"{world.spec.id} has no time limit of its own; give max_episode_steps")
    one_hot = hasattr(obs_space, "n")
    return EnvSpec(
        obs_size=int(obs_space.n) if one_hot else math.prod(obs_space.shape),
        num_actions=_num_actions(action_space),
        discrete=not hasattr(action_space, "low"),
        time_limit=limit,
        min_episode_steps=1,
        reset_uniforms=0,
        choices=_choices(action_space),
        image=_image(() if one_hot else obs_space.shape),
    )


def _choices(space: Any) -> tuple[int, ...]:
    """The actions of each part of a MultiDiscrete."""
    return tuple(map(int, np.ravel(getattr(space, "nvec", ()))))


def _num_actions(space: Any) -> int:
    """A, of a space of actions."""
    return sum(_choices(space)) or int(getattr(space, "n", 0)) or math.prod(space.shape)


def check_spaces(world: Any) -> None:
    """Raise ConfigError unless policies can act in an environment, and networks see it."""
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    name, obs_space, action_space = world.spec.id, world.observation_space, world.action_space
    if not isinstance(action_space, Discrete | MultiDiscrete | Box):
        raise ConfigError(
            f"{name} acts in {action_space}; allowed are Discrete, MultiDiscrete and Box"
        )
    if isinstance(action_space, Box) and not np.issubdtype(action_space.dtype, np.floating):
        raise ConfigError(f"{name} acts in {action_space}, and policies choose fractions in a Box")
    if not isinstance(obs_space, Box | Discrete):
        raise ConfigError(f"{name} observes {obs_space}; allowed are Box and Discrete")


def _encoder(world: Any, dtype: torch.dtype) -> Callable[[Sequence[Any]], torch.Tensor]:
    """Its observations, N of them -> [N, D]."""
    space = world.observation_space

    def encode(observations: Sequence[Any]) -> torch.Tensor:
        if not hasattr(space, "n"):
            return torch.tensor(np.stack(observations), dtype=dtype).reshape(len(observations), -1)
        index = torch.tensor([int(x) for x in observations]) - int(space.start)
        return torch.nn.functional.one_hot(index, int(space.n)).to(dtype)

    return encode


def _decoder(world: Any, squash: bool) -> Callable[[torch.Tensor], Any]:
    """An action, or [A] -> in its bounds, as gymnasium takes it."""
    space = world.action_space
    continuous = hasattr(space, "low")
    if squash and continuous and not space.is_bounded():
        raise ConfigError(
            f"squash needs actions with finite bounds; {world.spec.id} acts in {space}"
        )

    def decode(action: torch.Tensor) -> Any:
        if not continuous:
            return action.numpy().reshape(space.shape) + space.start
        low, high = (torch.as_tensor(x.reshape(-1)) for x in (space.low, space.high))
        flat = dynamics.bounded(action, low, high, squash).numpy()
        return flat.astype(space.dtype).reshape(space.shape)

    return decode
