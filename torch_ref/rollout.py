"""The policy in its environments: one update's experience, as a Trajectory [T, N].

`act(params, obs, uniform)` and the noise decide everything.
"""

from collections.abc import Callable
from typing import Any

import torch

from torch_ref.types import Env, EnvState, Noise, Trajectory


def over_time(step: Callable, state: EnvState, noise: Noise, block: int) -> tuple[Any, Any]:
    """The steps of a rollout, one after the other; a reset's noise is for a block of them.

    Args:
      step: (state, uniform [N, ...], key [N], reset noise [N, ...]) -> state, and its row.
      state: of N environments.
      noise: of this update.
      block: steps in a block.

    Returns:
      The state in the end, and the rows, leaves [T, N, ...].
    """
    rows = []
    for t in range(noise.action.shape[0]):
        state, row = step(state, noise.action[t], noise.env[t], noise.reset[t // block])
        rows.append(row)
    return state, _stack(rows)


@torch.no_grad()
def collect_steps(
    env: Env, act: Callable, params: Any, state: EnvState, noise: Noise
) -> tuple[EnvState, Trajectory]:
    """T steps of N environments, which start anew when an episode ends.

    Args:
      env: the environments.
      act: (params, obs [N, D], uniform [N, ...]) -> action [N, ...] and log π(a|s) [N].
      params: the acting policy's.
      state: where the last update left the environments.
      noise: of this update; T is the length of its action draws.

    Returns:
      The environments' next state, and a Trajectory whose rows are all valid. `next_obs` is the
      true successor; the row after an episode's end begins the next episode.
    """

    def step(
        state: EnvState, uniform: torch.Tensor, key: Any, reset: Any
    ) -> tuple[EnvState, Trajectory]:
        state, row = _step(env, act, params, state, uniform, key)
        done = torch.logical_or(row.terminated, row.truncated)
        return env.restart(state, done, reset), row

    return over_time(step, state, noise, env.spec.min_episode_steps)


@torch.no_grad()
def collect_episodes(
    env: Env, act: Callable, params: Any, state: EnvState, noise: Noise
) -> tuple[EnvState, Trajectory]:
    """N whole episodes, each masked after its end.

    The loop ends with the longest episode. An episode that is over keeps its state, and its rows
    are zero and not valid.

    Args:
      env, act, params, noise: as in `collect_steps`; T is the environment's time limit.
      state: any state; every environment starts anew.

    Returns:
      The environments' last state, and a Trajectory in which each column is one episode.
    """
    alive = torch.ones_like(state.time, dtype=torch.bool)
    state = env.restart(state, alive, noise.reset[0])
    rows: list[Trajectory] = []
    while alive.any():
        t = len(rows)
        next_state, row = _step(env, act, params, state, noise.action[t], noise.env[t])
        row = Trajectory(*(torch.where(mask_like(alive, x), x, torch.zeros_like(x)) for x in row))
        state = _freeze(alive, next_state, state)
        alive = alive & ~torch.logical_or(row.terminated, row.truncated)
        rows.append(row)
    padding = Trajectory(*map(torch.zeros_like, rows[-1]))
    return state, _stack(rows + [padding] * (noise.action.shape[0] - len(rows)))


def _step(
    env: Env, act: Callable, params: Any, state: EnvState, uniform: torch.Tensor, key: Any
) -> tuple[EnvState, Trajectory]:
    """One step of N environments: the true next state, and the trajectory's row."""
    action, log_prob = act(params, state.obs, uniform)
    next_state, reward, terminated, truncated = env.step(key, state, action)
    row = Trajectory(
        obs=state.obs,
        action=action,
        log_prob=log_prob,
        reward=reward,
        next_obs=next_state.obs,
        terminated=terminated,
        truncated=truncated,
        valid=torch.ones_like(terminated),
        time=state.time,
        episode_return=next_state.episode_return,
    )
    return next_state, row


def mask_like(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A mask [N] with trailing axes, to broadcast against x [N, ...]."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 1))


def _freeze(alive: torch.Tensor, state: Any, old: Any) -> Any:
    """`state` where the episode goes on, `old` where it is over (torch has no tree map)."""
    if isinstance(state, tuple):
        parts = (_freeze(alive, *pair) for pair in zip(state, old, strict=True))
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    if not isinstance(state, torch.Tensor):  # gymnasium's environments keep their own
        return state
    return torch.where(mask_like(alive, state), state, old)


def _stack(rows: list[Trajectory]) -> Trajectory:
    return Trajectory(*(torch.stack(field) for field in zip(*rows, strict=True)))
