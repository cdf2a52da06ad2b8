"""Stable-Baselines3: the rollout buffer of its A2C and PPO, and A2C's loss."""

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import configure_logger

from benchmarks.audit.driver import Audited, Batch, Case, main, whole
from jaxpg.parity import gradients


def gae(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    return _filled(case, gamma, gae_lambda).advantages


def returns(case: Case, gamma: float, gae_lambda: float) -> np.ndarray:
    return _filled(case, gamma, gae_lambda).returns


def _filled(case: Case, gamma: float, gae_lambda: float) -> RolloutBuffer:
    """As `OnPolicyAlgorithm.collect_rollouts` fills it, which pays for truncations in rewards."""
    steps, envs = case.reward.shape
    box, choice = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
    buffer = RolloutBuffer(steps, box, choice, "cpu", gae_lambda, gamma, envs)
    starts = np.concatenate([np.zeros((1, envs), bool), case.done[:-1]])
    nothing, log_prob = np.zeros((envs, 1)), torch.zeros(envs)
    for reward, value, start in zip(case.paid(gamma), case.value, starts, strict=True):
        buffer.add(nothing, nothing, reward, start, torch.from_numpy(value), log_prob)
    buffer.compute_returns_and_advantage(torch.tensor(case.last_value), case.done[-1])
    return buffer


def policy_loss(batch: Batch) -> np.ndarray:
    return _gradient(batch, batch.advantage, 0.0)


def entropy_bonus(batch: Batch) -> np.ndarray:
    return _gradient(batch, np.zeros_like(batch.advantage), 1.0)


def _gradient(batch: Batch, advantage: np.ndarray, coefficient: float) -> np.ndarray:
    """What `A2C.train` descends, by a policy that is linear in one-hot rows: in the logits."""
    rows, actions = batch.logits.shape

    class Rows(gymnasium.Env):
        observation_space = spaces.Box(0, 1, (rows,))
        action_space = spaces.Discrete(actions)

    options = {"net_arch": [], "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    model = A2C(
        "MlpPolicy", Rows(), 0.0, n_steps=rows, ent_coef=coefficient, vf_coef=0.0,
        max_grad_norm=np.inf, use_rms_prop=False, policy_kwargs=options, device="cpu",
    )  # fmt: skip
    model.set_logger(configure_logger(verbose=0))
    with torch.no_grad():
        model.policy.action_net.weight.copy_(torch.from_numpy(batch.logits.T))
        model.policy.action_net.bias.zero_()
    buffer, nothing = model.rollout_buffer, torch.zeros(1)
    for row, action in enumerate(batch.action):
        start, obs = np.zeros(1, bool), np.eye(rows)[row][None]
        buffer.add(obs, action[None, None], np.zeros(1), start, nothing, nothing)
    buffer.advantages[:] = advantage[:, None]
    model.train()
    return gradients(model.policy.action_net)["weight"].T


if __name__ == "__main__":
    option = "γ V(s') paid in the reward, as its trainer does"
    main(
        "stable-baselines3",
        [
            Audited("RolloutBuffer: advantages", "GAE", gae, option),
            Audited("RolloutBuffer: returns", "λ-return", returns, option),
            Audited("A2C.train: policy_loss", "policy gradient loss", policy_loss, can=whole),
            Audited("A2C.train: entropy_loss", "entropy bonus", entropy_bonus, can=whole),
        ],
    )
