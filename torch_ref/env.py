"""N environments behind one interface: reset, step, restart.

CartPole-v1, Pendulum-v1 and Catch-bsuite are written here in batched torch, with gymnax's dynamics,
and are pure functions. Every other name is made by gymnasium: usable, but no twin of a gymnax run.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_ref.config import OWN_PARAMS, Config, ConfigError, EnvParams, nearest, with_types
from torch_ref.types import Env, EnvSpec, EnvState

CARTPOLE_MIN_STEPS = 8  # with its own parameters no actions end an episode sooner; all were tried


class CartPoleParams(NamedTuple):
    """What CartPole is made of: floats, or float [N] each; metres, kilograms, seconds."""

    gravity: Any = 9.8
    masscart: Any = 1.0
    masspole: Any = 0.1
    length: Any = 0.5  # half the pole's
    force_mag: Any = 10.0
    tau: Any = 0.02
    theta_threshold_radians: Any = 12 * 2 * math.pi / 360
    x_threshold: Any = 2.4


class CartPoleState(NamedTuple):
    """N CartPoles, float [N] each: metres, radians and their rates per second."""

    x: torch.Tensor
    x_dot: torch.Tensor
    theta: torch.Tensor
    theta_dot: torch.Tensor


class PendulumParams(NamedTuple):
    """What a pendulum is made of: floats, or float [N] each; metres, kilograms, seconds."""

    max_speed: Any = 8.0
    max_torque: Any = 2.0
    dt: Any = 0.05
    g: Any = 10.0
    m: Any = 1.0
    l: Any = 1.0  # noqa: E741


class PendulumState(NamedTuple):
    """N pendulums, float [N] each: radians from upright, and per second."""

    theta: torch.Tensor
    theta_dot: torch.Tensor


class DialsState(NamedTuple):
    """N pairs of dials, int32 [N] each, from 0 to 3."""

    first: torch.Tensor
    second: torch.Tensor


CATCH_ROWS = 10
CATCH_COLUMNS = 5


class CatchState(NamedTuple):
    """N games of Catch, int64 [N] each: places of the ball, and of the paddle in the last row."""

    ball_x: torch.Tensor
    ball_y: torch.Tensor
    paddle_x: torch.Tensor


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
        "CartPole-v1": cartpole,
        "Pendulum-v1": partial(pendulum, squash=squash),
        "Catch-bsuite": catch,
        "jaxpg.proof.dials:Dials-v0": dials,
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


def terminate_at_limit(env: Env) -> Env:
    """The environment whose time limit ends the task, as a failure does."""

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        state, reward, terminated, truncated = env.step(key, state, action)
        return state, reward, torch.logical_or(terminated, truncated), torch.zeros_like(truncated)

    return env._replace(step=step)


def bounded(action: torch.Tensor, low: Any, high: Any, squash: bool) -> torch.Tensor:
    """The action within an environment's bounds: squashed by tanh and scaled to them, or clipped.

        (low + high) / 2 + (high - low) / 2 · tanh(a)

    Rounding may leave what is scaled beyond a bound, so it is clipped, too.
    """
    if squash:
        action = (low + high) / 2 + (high - low) / 2 * torch.tanh(action)
    return torch.clamp(action, low, high)


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
        same = _frames(state.obs, one, 1).repeat_interleave(count, 2)
        return state._replace(obs=same.reshape(len(same), -1))

    def reset(*inputs: Any) -> EnvState:
        return begun(env.reset(*inputs))

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        after, reward, terminated, truncated = env.step(key, now(state), action)
        earlier, new = _frames(state.obs, spec, count)[:, :, 1:], _frames(after.obs, one, 1)
        obs = torch.cat([earlier, new], dim=2).reshape(state.obs.shape)
        return after._replace(obs=obs), reward, terminated, truncated

    def restart(state: EnvState, done: torch.Tensor, noise: Any) -> EnvState:
        fresh = env.restart(now(state), done, noise)
        obs = torch.where(done[:, None], begun(fresh).obs, state.obs)
        return fresh._replace(obs=obs)

    return Env(spec, reset, step, restart)


def newest(obs: torch.Tensor, spec: EnvSpec, count: int) -> torch.Tensor:
    """The last of the observations that were stacked, [N, D] of [N, count · D].

    Args:
      spec: of the environment that stacks them.
    """
    return _frames(obs, spec, count)[:, :, -1].reshape(len(obs), -1)


def _frames(obs: torch.Tensor, spec: EnvSpec, count: int) -> torch.Tensor:
    """Stacked observations apart: [N, pixels, count, channels], or [N, 1, count, D] of no image."""
    return obs.reshape(len(obs), math.prod(spec.image[:2]), count, -1)


def _image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height, width and channels, 1 where there are none, of what has two or three axes."""
    return (*shape, 1)[:3] if len(shape) in (2, 3) else ()


def cartpole(
    dtype: torch.dtype, max_episode_steps: int | None = None, env_params: EnvParams = OWN_PARAMS
) -> Env:
    """CartPole-v1 with gymnax's dynamics; a reset consumes four uniforms.

    Source: Barto, Sutton & Anderson 1983, with the constants and Euler step of gymnasium.
    """
    time_limit = 500 if max_episode_steps is None else max_episode_steps
    spec = EnvSpec(
        obs_size=4,
        num_actions=2,
        discrete=True,
        time_limit=time_limit,
        min_episode_steps=1 if env_params else min(CARTPOLE_MIN_STEPS, time_limit),
        reset_uniforms=4,
    )

    def place(noise: torch.Tensor) -> tuple[CartPoleState, torch.Tensor]:
        inner = CartPoleState(*((noise.to(dtype) - 0.5) * 0.1).unbind(-1))
        return inner, torch.stack(inner, dim=-1)

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        s, p = state.inner, CartPoleParams()._replace(**state.env_params)
        total_mass, polemass_length = p.masscart + p.masspole, p.masspole * p.length
        action = action.to(dtype)
        force = p.force_mag * action - p.force_mag * (1 - action)
        cos, sin = torch.cos(s.theta), torch.sin(s.theta)
        temp = (force + polemass_length * s.theta_dot**2 * sin) / total_mass
        theta_acc = (p.gravity * sin - cos * temp) / (
            p.length * (4.0 / 3.0 - p.masspole * cos**2 / total_mass)
        )
        x_acc = temp - polemass_length * theta_acc * cos / total_mass
        inner = CartPoleState(
            x=s.x + p.tau * s.x_dot,
            x_dot=s.x_dot + p.tau * x_acc,
            theta=s.theta + p.tau * s.theta_dot,
            theta_dot=s.theta_dot + p.tau * theta_acc,
        )
        before, fallen = (
            (at.x.abs() > p.x_threshold) | (at.theta.abs() > p.theta_threshold_radians)
            for at in (s, inner)
        )
        reward = torch.where(before, 0.0, torch.ones_like(inner.x))  # after the end, as gymnax
        return _advance(state, inner, torch.stack(inner, dim=-1), reward, fallen, time_limit)

    return _tensor_env(spec, place, step, env_params)


def pendulum(
    dtype: torch.dtype,
    max_episode_steps: int | None = None,
    env_params: EnvParams = OWN_PARAMS,
    squash: bool = False,
) -> Env:
    """Pendulum-v1 with gymnax's dynamics; a reset consumes two uniforms."""
    time_limit = 200 if max_episode_steps is None else max_episode_steps
    spec = EnvSpec(
        obs_size=3,
        num_actions=1,
        discrete=False,
        time_limit=time_limit,
        min_episode_steps=1,
        reset_uniforms=2,
    )

    def observe(inner: PendulumState) -> torch.Tensor:
        parts = (torch.cos(inner.theta), torch.sin(inner.theta), inner.theta_dot)
        return torch.stack(parts, dim=-1)

    def place(noise: torch.Tensor) -> tuple[PendulumState, torch.Tensor]:
        start = (noise.to(dtype) - 0.5) * torch.tensor([2.0 * math.pi, 2.0], dtype=dtype)
        inner = PendulumState(*start.unbind(-1))
        return inner, observe(inner)

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        s, p = state.inner, PendulumParams()._replace(**state.env_params)
        torque = bounded(action[..., 0], -p.max_torque, p.max_torque, squash)
        angle = torch.remainder(s.theta + math.pi, 2 * math.pi) - math.pi
        reward = -(angle**2 + 0.1 * s.theta_dot**2 + 0.001 * torque**2)
        pull = 3 * p.g / (2 * p.l) * torch.sin(s.theta) + 3.0 / (p.m * p.l**2) * torque
        theta_dot = torch.clamp(s.theta_dot + pull * p.dt, -p.max_speed, p.max_speed)
        inner = PendulumState(s.theta + theta_dot * p.dt, theta_dot)
        never = torch.zeros_like(reward, dtype=torch.bool)
        return _advance(state, inner, observe(inner), reward, never, time_limit)

    return _tensor_env(spec, place, step, env_params)


def catch(
    dtype: torch.dtype, max_episode_steps: int | None = None, env_params: EnvParams = OWN_PARAMS
) -> Env:
    """bsuite's Catch: a ball falls, and a paddle goes left, stays or goes right to be under it.

    An observation is the board with ones where ball and paddle are; a reset consumes a uniform.

    Source: Osband et al. 2020, Behaviour suite for reinforcement learning (arXiv:1908.03568).
    """
    time_limit = 1_000 if max_episode_steps is None else max_episode_steps
    spec = EnvSpec(
        obs_size=CATCH_ROWS * CATCH_COLUMNS,
        num_actions=3,
        discrete=True,
        time_limit=time_limit,
        min_episode_steps=min(CATCH_ROWS - 1, time_limit),
        reset_uniforms=1,
        image=(CATCH_ROWS, CATCH_COLUMNS, 1),
    )
    pixels = torch.arange(CATCH_ROWS * CATCH_COLUMNS)

    def observe(inner: CatchState) -> torch.Tensor:
        ball = inner.ball_y * CATCH_COLUMNS + inner.ball_x
        paddle = (CATCH_ROWS - 1) * CATCH_COLUMNS + inner.paddle_x
        return ((pixels == ball[:, None]) | (pixels == paddle[:, None])).to(dtype)

    def place(noise: torch.Tensor) -> tuple[CatchState, torch.Tensor]:
        ball_x = torch.floor(noise[..., 0] * CATCH_COLUMNS).long()
        inner = CatchState(
            ball_x, torch.zeros_like(ball_x), torch.full_like(ball_x, CATCH_COLUMNS // 2)
        )
        return inner, observe(inner)

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        s = state.inner
        paddle_x = torch.clamp(s.paddle_x + action - 1, 0, CATCH_COLUMNS - 1)
        inner = CatchState(s.ball_x, s.ball_y + 1, paddle_x)
        landed = inner.ball_y == CATCH_ROWS - 1
        caught = torch.where(inner.ball_x == paddle_x, 1.0, -1.0).to(dtype)
        reward = torch.where(landed, caught, 0.0)
        return _advance(state, inner, observe(inner), reward, landed, time_limit)

    return _tensor_env(spec, place, step, env_params)


def dials(
    dtype: torch.dtype, max_episode_steps: int | None = None, env_params: EnvParams = OWN_PARAMS
) -> Env:
    """Two dials to be turned up together, of which an observation says how each may be turned.

    What jaxpg.proof.dials has in gymnax: for parity, of choices at once and of masks.
    """
    time_limit = 20 if max_episode_steps is None else max_episode_steps
    spec = EnvSpec(
        obs_size=7,
        num_actions=5,
        discrete=True,
        time_limit=time_limit,
        min_episode_steps=1,
        reset_uniforms=0,
        choices=(3, 2),
        masked=True,
    )

    def observe(inner: DialsState) -> torch.Tensor:
        first, second = inner
        always = torch.ones_like(first)
        allowed = (first > 0, always, first < 3, always, second < 3)
        return torch.stack([x.to(dtype) for x in (first / 4, second / 4, *allowed)], dim=-1)

    def place(noise: np.ndarray) -> tuple[DialsState, torch.Tensor]:
        start = torch.zeros(len(noise), dtype=torch.int32)
        inner = DialsState(start, start)
        return inner, observe(inner)

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        move = action.to(torch.int32)
        inner = DialsState(state.inner.first + move[:, 0] - 1, state.inner.second + move[:, 1])
        up = (inner.first == 3) & (inner.second == 3)
        apart = (inner.first - inner.second).abs().to(dtype)
        reward = torch.where(up, 1.0, -(1 + apart) / 8)
        return _advance(state, inner, observe(inner), reward, up, time_limit)

    return _tensor_env(spec, place, step, env_params)


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
        except gym.error.Error as error:  # a package that it needs is missing
            raise ConfigError(f"{name} could not be made: {error}") from error

    obs_space, actions = make_one().observation_space, make_one().action_space
    choices = tuple(map(int, np.ravel(getattr(actions, "nvec", ()))))
    supported: Any = (gym.spaces.Discrete, gym.spaces.Box)
    if not (isinstance(actions, supported) or choices):
        raise ConfigError(f"{name} acts in {actions}; allowed are Discrete, MultiDiscrete and Box")
    if not isinstance(obs_space, supported):
        raise ConfigError(f"{name} observes {obs_space}; allowed are Box and Discrete")
    continuous = isinstance(actions, gym.spaces.Box)
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
        envs = [make_one() for _ in noise]
        first = [env.reset(seed=int(key[1]))[0] for env, key in zip(envs, noise, strict=True)]
        return _start(envs, tensor(first))

    def native(action: torch.Tensor) -> Any:
        if not continuous:
            return action.numpy().reshape(actions.shape) + actions.start
        low, high = (torch.as_tensor(x.reshape(-1)) for x in (actions.low, actions.high))
        flat = bounded(action, low, high, squash).numpy()
        return flat.astype(actions.dtype).reshape(actions.shape)

    def step(key: Any, state: EnvState, action: torch.Tensor) -> tuple:
        results = [env.step(native(a)) for env, a in zip(state.inner, action, strict=True)]
        obs, reward, terminated, truncated, _ = zip(*results, strict=True)
        rewards = torch.tensor(reward, dtype=dtype)
        ends = torch.tensor(terminated)
        state, rewards, ends, over = _advance(
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


def _typed(name: str, env_params: EnvParams) -> EnvParams:
    """Those of the environment's own types; the time limit is a field of the config."""
    made_of: dict[str, dict[str, Any]] = {
        "CartPole-v1": CartPoleParams()._asdict(),
        "Pendulum-v1": PendulumParams()._asdict(),
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


def _start(inner: Any, obs: torch.Tensor, given: dict[str, torch.Tensor] | None = None) -> EnvState:
    """N environments at the start of an episode."""
    time = torch.zeros(obs.shape[0], dtype=torch.int32)
    return EnvState(inner, obs, time, torch.zeros(obs.shape[0], dtype=obs.dtype), given or {})


def _advance(
    state: EnvState,
    inner: Any,
    obs: torch.Tensor,
    reward: torch.Tensor,
    terminated: torch.Tensor,
    time_limit: int,
) -> tuple:
    """The state after a step, its reward, and how it ended."""
    time = state.time + 1
    truncated = (time >= time_limit) & ~terminated
    state = EnvState(inner, obs, time, state.episode_return + reward, state.env_params)
    return state, reward, terminated, truncated


def _tensor_env(spec: EnvSpec, place: Callable, step: Callable, made_for: EnvParams) -> Env:
    """An Env whose restart chooses, tensor by tensor, between a fresh state and the old one.

    Args:
      place: reset noise [N, ...] -> the environments' own state, and observations.
      made_for: the parameters that it must be handed.
    """

    def reset(noise: torch.Tensor, env_params: EnvParams = OWN_PARAMS) -> EnvState:
        if env_params.keys() != made_for.keys():
            raise ConfigError(
                f"the environment was built for env_params {sorted(made_for)}, and is given "
                f"{sorted(env_params)}: build the algorithm of this config"
            )
        inner, obs = place(noise)
        values = {key: torch.as_tensor(x, dtype=obs.dtype) for key, x in env_params.items()}
        return _start(inner, obs, {key: x.expand(len(noise)) for key, x in values.items()})

    def restart(state: EnvState, done: torch.Tensor, noise: Any) -> EnvState:
        fresh = _start(*place(noise))

        def choose(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
            return torch.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)

        inner = type(state.inner)(*map(choose, fresh.inner, state.inner))
        obs, time, episode_return = map(choose, fresh[1:4], state[1:4])
        return EnvState(inner, obs, time, episode_return, state.env_params)

    return Env(spec, reset, step, restart)
