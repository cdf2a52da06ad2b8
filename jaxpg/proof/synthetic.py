"""Trajectories in which everything happens, for both packages from one numpy source.

Early CartPole shows few events; here every batch holds terminations and truncations, in the first,
a middle and the last row, rewards of both signs, and, by layout: "steps", several episodes in a
column, one that began in an earlier update and views cut at T; "episodes", padding after the end.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

import jaxpg.core.types
import torch_ref.types

T, N = 12, 5
OBS_SIZE = {"categorical": 4, "gaussian": 3, "squashed": 3, "masked": 7}
DIALS = "jaxpg.proof.dials:Dials-v0"
ENVS = {
    **{"CartPole-v1": "categorical", "Catch-bsuite": "categorical"},
    **{"Pendulum-v1": "gaussian", DIALS: "masked"},
}
"""The distribution that stands for an environment's actions."""
TERMINATED = {  # rows, by column
    "steps": [(3,), (), (0, 11), (5,), (6, 7)],
    "episodes": [(4,), (), (11,), (), (0,)],
}
TRUNCATED = {
    "steps": [(8,), (), (), (11,), ()],
    "episodes": [(), (11,), (), (7,), ()],
}
FIRST_TIME = {"steps": [5, 0, 2, 0, 0], "episodes": [0] * N}


def arrays(
    layout: str, distribution: str, seed: int = 0, obs_size: int | None = None
) -> dict[str, np.ndarray]:
    """The fields of a Trajectory [T, N], float64.

    Args:
      layout: "steps" or "episodes".
      distribution: of OBS_SIZE; "masked" is that of choices at once of which some are not allowed.
      obs_size: D; None takes that of OBS_SIZE.
    """
    rng = np.random.default_rng(seed)
    ends = {"terminated": TERMINATED[layout], "truncated": TRUNCATED[layout]}
    flags = {name: np.zeros((T, N), bool) for name in ends}
    for name, columns in ends.items():
        for column, rows in enumerate(columns):
            flags[name][list(rows), column] = True
    done = flags["terminated"] | flags["truncated"]

    obs = rng.normal(size=(T, N, obs_size or OBS_SIZE[distribution]))
    next_obs = np.concatenate([obs[1:], rng.normal(size=obs[:1].shape)])
    next_obs[done] = rng.normal(size=obs.shape)[done]  # the true successor, not the next start
    if distribution == "masked":
        obs, next_obs = _with_mask(obs), _with_mask(next_obs)
        taken = [np.argmax(rng.random(mask.shape) * mask, axis=-1) for mask in _masks(obs)]
        action = np.stack(taken, axis=-1)
    elif distribution == "categorical":
        action = rng.integers(2, size=(T, N))
    else:
        action = rng.normal(size=(T, N, 1))
    reward = rng.normal(size=(T, N)) + 0.3
    time, episode_return = np.zeros((T, N), np.int32), np.zeros((T, N))
    clock, total = np.array(FIRST_TIME[layout]), np.array(FIRST_TIME[layout], float)
    for t in range(T):
        total = total + reward[t]
        time[t], episode_return[t] = clock, total
        clock, total = np.where(done[t], 0, clock + 1), np.where(done[t], 0.0, total)
    fields = {
        "obs": obs,
        "action": action,
        "reward": reward,
        "next_obs": next_obs,
        **flags,
        "valid": np.ones((T, N), bool),
        "time": time,
        "episode_return": episode_return,
        "log_prob": _of_chance(obs, action, distribution) + 0.2 * rng.normal(size=(T, N)),
    }
    if layout == "episodes":
        over = np.cumsum(done, axis=0) - done > 0
        for field in fields.values():
            field[over] = 0
    return fields


def _with_mask(obs: np.ndarray) -> np.ndarray:
    """Observations that end with ones and zeros, and always allow not to turn a dial."""
    mask = (obs[..., 2:] > 0).astype(float)
    mask[..., [1, 3]] = 1.0
    return np.concatenate([obs[..., :2], mask], axis=-1)


def _masks(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an observation allows of either choice."""
    return obs[..., 2:5], obs[..., 5:7]


def _of_chance(obs: np.ndarray, action: np.ndarray, distribution: str) -> np.ndarray:
    """log π(a) of a policy that looks at nothing: not far from an untrained one's."""
    if distribution == "masked":
        return -sum(np.log(mask.sum(axis=-1)) for mask in _masks(obs))
    if distribution == "categorical":
        return np.full(action.shape, -np.log(2.0))
    squash = np.log(1.0 - np.tanh(action) ** 2) if distribution == "squashed" else 0.0
    return -np.sum(0.5 * (action**2 + np.log(2.0 * np.pi)) + squash, axis=-1)


def for_jax(fields: dict[str, np.ndarray], float_type: str) -> jaxpg.core.types.Trajectory:
    """The same as a Trajectory of jaxpg."""

    def convert(field: np.ndarray) -> Any:
        kinds = {"f": float_type, "i": "int32", "b": "bool"}
        return jnp.asarray(field, kinds[field.dtype.kind])

    return jaxpg.core.types.Trajectory(**{name: convert(field) for name, field in fields.items()})


def for_torch(fields: dict[str, np.ndarray], float_type: str) -> torch_ref.types.Trajectory:
    """The same as a Trajectory of torch_ref."""

    def convert(name: str, field: np.ndarray) -> torch.Tensor:
        kinds = {"f": float_type, "i": "int32" if name == "time" else "int64", "b": "bool"}
        return torch.tensor(field, dtype=getattr(torch, kinds[field.dtype.kind]))

    return torch_ref.types.Trajectory(**{name: convert(name, x) for name, x in fields.items()})
