"""Tianshou: the estimators of its algorithms, on its own buffer of one environment a column."""

import numpy as np
import torch
from tianshou.algorithm.algorithm_base import Algorithm
from tianshou.data import Batch, VectorReplayBuffer

from benchmarks.audit.driver import N_STEPS, Audited, Case, main


def gae(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    return _episodic(case, gamma, gae_lambda)[1]


def returns(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    return _episodic(case, gamma, gae_lambda)[0]


def _episodic(case: Case, gamma: float, gae_lambda: float) -> list[np.ndarray]:
    buffer, indices = _filled(case)
    flat = case.next_value.T.ravel(), case.value.T.ravel()
    found = Algorithm.compute_episodic_return(
        buffer[indices], buffer, indices, *flat, gamma=gamma, gae_lambda=gae_lambda
    )
    return [x.reshape(case.reward.T.shape).T for x in found]


def n_step(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    buffer, indices = _filled(case)
    next_value = torch.from_numpy(case.next_value.T.ravel().copy())
    batch = Algorithm.compute_nstep_return(
        buffer[indices], buffer, indices, lambda _, i: next_value[i], gamma, N_STEPS
    )
    return batch.returns.numpy().reshape(case.reward.T.shape).T


def _filled(case: Case) -> tuple[VectorReplayBuffer, np.ndarray]:
    """A buffer that holds the columns, one after another."""
    steps, envs = case.reward.shape
    buffer = VectorReplayBuffer(steps * envs, envs)
    unseen = np.zeros((envs, 1))
    for reward, terminated, truncated in zip(
        case.reward, case.terminated, case.truncated, strict=True
    ):
        ends = {"terminated": terminated, "truncated": truncated}
        ends["done"] = terminated | truncated
        row = {"obs": unseen, "obs_next": unseen, "act": np.zeros(envs), "info": [{}] * envs}
        buffer.add(Batch(rew=reward, **ends, **row))
    return buffer, np.arange(steps * envs)


if __name__ == "__main__":
    main(
        "tianshou",
        [
            Audited("compute_episodic_return: advantages", "GAE", gae),
            Audited("compute_episodic_return: returns", "λ-return", returns),
            Audited("compute_nstep_return", "3-step return", n_step),
        ],
    )
