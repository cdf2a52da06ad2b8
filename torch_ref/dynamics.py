"""CartPole, Pendulum, Catch and a pair of dials in batched torch, with gymnax's dynamics: pure
functions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_ref.config import OWN_PARAMS, ConfigError, EnvParams
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


def bounded(action: torch.Tensor, low: Any, high: Any, squash: bool) -> torch.Tensor:
    """The action within an environment's bounds: squashed by tanh and scaled to them, or clipped.

        (low + high) / 2 + (high - low) / 2 · tanh(a)

    Rounding may leave what is scaled beyond a bound, so it is clipped, too.
    """
    if squash:
        action = (low + high) / 2 + (high - low) / 2 * torch.tanh(action)
    return torch.clamp(action, low, high)


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
        return advance(state, inner, torch.stack(inner, dim=-1), reward, fallen, time_limit)

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
        return advance(state, inner, observe(inner), reward, never, time_limit)

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
        return advance(state, inner, observe(inner), reward, landed, time_limit)

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
        return advance(state, inner, observe(inner), reward, up, time_limit)

    return _tensor_env(spec, place, step, env_params)


def start(inner: Any, obs: torch.Tensor, given: dict[str, torch.Tensor] | None = None) -> EnvState:
    """N environments at the start of an episode."""
    time = torch.zeros(obs.shape[0], dtype=torch.int32)
    return EnvState(inner, obs, time, torch.zeros(obs.shape[0], dtype=obs.dtype), given or {})


def advance(
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
        return start(inner, obs, {key: x.expand(len(noise)) for key, x in values.items()})

    def restart(state: EnvState, done: torch.Tensor, noise: Any) -> EnvState:
        fresh = start(*place(noise))

        def choose(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
            return torch.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)

        inner = type(state.inner)(*map(choose, fresh.inner, state.inner))
        obs, time, episode_return = map(choose, fresh[1:4], state[1:4])
        return EnvState(inner, obs, time, episode_return, state.env_params)

    return Env(spec, reset, step, restart)
