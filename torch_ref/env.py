"""N environments behind one interface: reset, step, restart.

CartPole-v1, Pendulum-v1 and Catch-bsuite are those of `dynamics`. Every other name is made by
gymnasium: usable, but no twin of a gymnax run.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

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
    tensor_envs: dict[str, Callable[..., Env]] = {
        "CartPole-v1": dynamics.cartpole,
        "Pendulum-v1": partial(dynamics.pendulum, squash=squash),
        "Catch-bsuite": dynamics.catch,
        "jaxpg.proof.dials:Dials-v0": dynamics.dials,
    }
    dtype = getattr(torch, float_type)
    env_params = _typed(name, env_params)
    if name in tensor_envs:
        return tensor_envs[name](dtype, max_episode_steps, env_params)
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
    import gymnasium as gym

    if name not in gym.registry:
        raise ConfigError(f"unknown environment {name!r}{nearest(name, sorted(gym.registry))}")

    def make_one() -> Any:
        try:
            return gym.make(name, max_episode_steps=max_episode_steps)
        except (gym.error.Error, ImportError) as error:  # a package that it needs is missing
            raise ConfigError(f"{name} could not be made: {error}") from error

    obs_space, actions = make_one().observation_space, make_one().action_space
    choices = tuple(map(int, np.ravel(getattr(actions, "nvec", ()))))
    supported: Any = (gym.spaces.Discrete, gym.spaces.Box)
    if not (isinstance(actions, supported) or choices):
        raise ConfigError(f"{name} acts in {actions}; allowed are Discrete, MultiDiscrete and Box")
    if not isinstance(obs_space, supported):
        raise ConfigError(f"{name} observes {obs_space}; allowed are Box and Discrete")
    continuous = isinstance(actions, gym.spaces.Box)
    if continuous and not np.issubdtype(actions.dtype, np.floating):
        raise ConfigError(f"{name} acts in {actions}, and policies choose fractions in a Box")
    if squash and continuous and not actions.is_bounded():
        raise ConfigError(f"squash needs actions with finite bounds; {name} acts in {actions}")
    time_limit = max_episode_steps or gym.spec(name).max_episode_steps
    if time_limit is None:
        raise ConfigError(f"{name} has no time limit; give max_episode_steps")
    one_hot = isinstance(obs_space, gym.spaces.Discrete)
    spec = EnvSpec(
        obs_size=int(obs_space.n) if one_hot else math.prod(obs_space.shape),
        num_actions=sum(choices) or int(getattr(actions, "n", 0)) or math.prod(actions.shape),
        discrete=not continuous,
        time_limit=time_limit,
        min_episode_steps=1,
        reset_uniforms=0,
        choices=choices,
        image=_image(() if one_hot else obs_space.shape),
    )

    def tensor(observations: list) -> torch.Tensor:
        if one_hot:
            index = torch.tensor(observations) - int(obs_space.start)
            return torch.nn.functional.one_hot(index, int(obs_space.n)).to(dtype)
        return torch.tensor(np.stack(observations), dtype=dtype).reshape(len(observations), -1)

    def reset(noise: np.ndarray, env_params: EnvParams = OWN_PARAMS) -> EnvState:
        envs = [_Once(make_one()) for _ in noise]
        first = [env.reset(seed=int(key[1]))[0] for env, key in zip(envs, noise, strict=True)]
        return dynamics.start(envs, tensor(first))

    def native(action: torch.Tensor) -> Any:
        if not continuous:
            return action.numpy().reshape(actions.shape) + actions.start
        low, high = (torch.as_tensor(x.reshape(-1)) for x in (actions.low, actions.high))
        flat = dynamics.bounded(action, low, high, squash).numpy()
        return flat.astype(actions.dtype).reshape(actions.shape)

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        results = [env.step(native(a)) for env, a in zip(state.inner, action, strict=True)]
        obs, reward, terminated, truncated, _ = zip(*results, strict=True)
        rewards = torch.tensor(reward, dtype=dtype)
        ends = torch.tensor(terminated)
        state, rewards, ends, over = dynamics.advance(
            state, state.inner, tensor(list(obs)), rewards, ends, time_limit
        )
        return state, rewards, ends, over | (torch.tensor(truncated) & ~ends)

    def restart(state: EnvState, done: torch.Tensor, noise: np.ndarray) -> EnvState:
        obs = state.obs.clone()
        for i in done.nonzero().flatten().tolist():
            obs[i] = tensor([state.inner[i].reset(seed=int(noise[i][1]))[0]])[0]
        zero = torch.zeros_like(state.episode_return)
        return EnvState(
            state.inner,
            obs,
            torch.where(done, 0, state.time),
            torch.where(done, zero, state.episode_return),
        )

    return Env(spec, reset, step, restart)


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


def _typed(name: str, env_params: EnvParams) -> EnvParams:
    """Those of the environment's own types; the time limit is a field of the config."""
    made_of: dict[str, dict[str, Any]] = {
        "CartPole-v1": dynamics.CartPoleParams()._asdict(),
        "Pendulum-v1": dynamics.PendulumParams()._asdict(),
        "Catch-bsuite": {},
    }
    if not env_params:
        return env_params
    if name not in made_of:
        some = " and ".join(key for key, params in made_of.items() if params)
        raise ConfigError(f"gymnasium's {name} takes no env_params here; {some} do")
    kinds = {key: type(value) for key, value in made_of[name].items()}
    return with_types(name, env_params, kinds, _FOLLOW.get(name))


_FOLLOW = {
    "CartPole-v1": {
        "total_mass": "masscart + masspole",
        "polemass_length": "masspole * length",
    }
}
