"""The policy gradient: one step along it, and the critic's steps; or one along the joint loss's.

    θ ← θ - α_u ∇(L_π - c_H H̄),    φ ← φ - β_u ∇L_V

α_u and β_u are the learning rates of update u, and an optimizer may turn and scale the gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torch_ref import learner
from torch_ref.config import Config
from torch_ref.losses import clipped_value_loss, value_loss
from torch_ref.types import Algorithm, Batch, Fitted, Learned


def fit(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """One step along the policy gradient, of losses apart or of their sum."""
    if config.joint:
        return fit_joint(config, algorithm, learned, batch)
    return fit_separate(config, algorithm, learned, batch)


def fit_separate(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """One step of the policy, then value_steps steps of the critic (if there is one)."""
    params, opt_state = learned.params, learned.opt_state
    rate = learner.rates(config, learned.update)["policy"]

    def of_policy() -> tuple:
        return policy_objective(config, algorithm, params, batch)

    start = (params["policy"], opt_state["policy"])
    step = learner.descend(config, algorithm, rate, of_policy, *start)
    learned, critic = fit_value(config, algorithm, learned, batch)
    losses = {**step.parts, "policy_grad_norm": step.norm, **critic.losses}
    return learned, Fitted(losses, {"policy": [step.gradient], **critic.gradients})


def fit_value(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """value_steps steps of the critic; without one nothing, and losses of 0.

    Raises:
      ConfigError: if there are parameters that neither the policy's step nor these would train.
    """
    learner.check_groups(learner.groups(config, learned.params))
    zero = torch.zeros_like(batch.target[0, 0])
    if not config.critic:
        return learned, Fitted({"value_loss": zero, "value_grad_norm": zero}, {})
    params, opt_state = learned.params, learned.opt_state
    rate = learner.rates(config, learned.update)["value"]

    def step_value(sample: Any) -> learner.Descent:
        def of_value() -> tuple:
            if config.replays:
                return replay_objective(config, algorithm, params, sample)
            return value_objective(config, algorithm, params, batch)

        start = (params["value"], opt_state["value"])
        return learner.descend(config, algorithm, rate, of_value, *start)

    samples = [None] * config.value_steps if batch.samples is None else batch.samples
    steps = [step_value(sample) for sample in samples]
    losses = {"value_loss": steps[0].parts["value_loss"], "value_grad_norm": steps[0].norm}
    return learned, Fitted(losses, {"value": [step.gradient for step in steps]})


def fit_joint(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """One step of everything, on the joint loss."""
    objective = joint_objective(policy_objective, value_objective)

    def of_all() -> tuple:
        return objective(config, algorithm, learned.params, batch)

    rate = learner.rates(config, learned.update)["joint"]
    start = (learned.params, learned.opt_state["joint"])
    step = learner.descend(config, algorithm, rate, of_all, *start)
    losses = {**step.parts, "policy_grad_norm": step.norm}
    losses["value_grad_norm"] = torch.zeros_like(step.norm)
    return learned, Fitted(losses, {"joint": [step.gradient]})


def policy_objective(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """policy_loss - ent_coef · entropy, and the two apart."""
    outputs = algorithm.networks.policy(params, batch.obs)
    log_prob = algorithm.distribution.log_prob(outputs, batch.action)
    return learner.regularized(config, algorithm, outputs, log_prob, batch)


def value_objective(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The critic's loss on the batch, clipped or not."""
    value = algorithm.networks.value(params, batch.obs)
    if config.clip_value is None:
        loss = value_loss(value, batch.target, batch.valid)
    else:
        inputs = (value, batch.value, batch.target, batch.valid)
        loss = clipped_value_loss(*inputs, clip_value=config.clip_value)
    return loss, {"value_loss": loss}


def replay_objective(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, sample: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The critic's loss on a sample from the ring, whose targets r + γ V(s') follow the critic."""
    (obs, reward, next_obs, terminated), valid = sample
    next_value = algorithm.networks.value(params, next_obs).detach()
    target = reward + config.gamma * torch.where(terminated, 0.0, next_value)
    loss = value_loss(algorithm.networks.value(params, obs), target, valid)
    return loss, {"value_loss": loss}


def joint_objective(policy_objective: Callable, value_objective: Callable) -> Callable:
    """The policy's objective, entropy bonus and all, + vf_coef · the critic's, and their parts."""

    def objective(
        config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy, parts = policy_objective(config, algorithm, params, batch)
        value, more = value_objective(config, algorithm, params, batch)
        return policy + config.vf_coef * value, {**parts, **more}

    return objective
