"""Proximal policy optimisation: many steps on one batch, near the policy that acted.

    maximise E[min(ρ Ψ, clip(ρ, 1 - ε, 1 + ε) Ψ)],    ρ = π(a|s) / π_old(a|s)

An epoch goes through the batch in an order of its own, a minibatch of steps (or of whole episodes)
at a time. π_old is the policy that acted, and its probabilities are those of acting.

Source: Schulman et al. 2017 (arXiv:1707.06347); what implementations add to it, Huang et al. 2022,
The 37 implementation details of proximal policy optimization (ICLR blog track).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_ref import gradient, learner, ring
from torch_ref.advantages import masked_range, normalize
from torch_ref.config import Config
from torch_ref.losses import masked_mean
from torch_ref.types import Algorithm, Batch, Fitted, Learned


def fit(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    batch: Batch,
    *,
    policy_objective: Callable | None = None,
    value_objective: Callable | None = None,
) -> tuple[Learned, Fitted]:
    """`epochs` passes over the batch, each in `minibatches` steps of every optimizer.

    With `target_kl` a step that would begin further than that from π_old is left out, and all
    after it, but never the first; their gradients are 0. What is reported is a mean over the steps
    taken.

    Args:
      policy_objective, value_objective: your own, with the arguments of `surrogate_objective` and
        `gradient.value_objective`; a joint loss is made of them, too. A minibatch's Ψ is already
        normalised where `normalize_over` says so.

    Raises:
      ConfigError: if there are parameters that no loss is of.
    """
    assert batch.order is not None
    rates = learner.rates(config, learned.update)
    params, opt_state = learned.params, learned.opt_state
    groups = learner.groups(config, params)
    learner.check_groups(groups)
    policy = policy_objective or surrogate_objective
    value = value_objective or gradient.value_objective
    joint = gradient.joint_objective(policy, value)
    minimised = {"policy": policy, "value": value, "joint": joint}
    first = next(iter(groups))
    gradients: dict[str, list] = {name: [] for name in groups}
    seen: dict[str, list] = {}
    limit: Any = math.inf
    for part in (part for keys in batch.order for part in minibatches(config, batch, keys)):
        if config.normalize_over == "minibatch":
            part = part._replace(advantage=normalize(part.advantage, part.valid))
        taken = True
        if config.target_kl is not None:
            with torch.no_grad():
                _, met = minimised[first](config, algorithm, params, part)
            taken = not met["approx_kl"] > limit
            limit = config.target_kl if taken else -math.inf
        for name, group in groups.items():
            if not taken:
                zeros = {key: torch.zeros_like(x) for key, x in gradients[name][0].items()}
                gradients[name].append(zeros)
                continue

            def objective() -> tuple:
                return minimised[name](config, algorithm, params, part)

            start = (group, opt_state[name])
            descent = learner.descend(config, algorithm, rates[name], objective, *start)
            gradients[name].append(descent.gradient)
            for key, x in {**descent.parts, NORMS[name]: descent.norm}.items():
                seen.setdefault(key, []).append(x)
    zero = torch.zeros_like(batch.target[0, 0])
    losses = {"value_loss": zero, "value_grad_norm": zero}
    losses |= {name: torch.stack(steps).mean() for name, steps in seen.items()}
    losses["explained_variance"] = explained_variance(batch.value, batch.target, batch.valid)
    return learned, Fitted(losses, gradients)


def minibatches(config: Config, batch: Batch, round_keys: np.ndarray) -> list[Batch]:
    """The batch in a random order, cut into M parts of equal size.

    Args:
      round_keys: the order's random bits, uint32 [ROUNDS].

    Returns:
      M batches of tensors [1, T · N / M, ...], of single steps; of whole episodes [T, N / M, ...].
    """
    fields = batch._replace(samples=None, order=None)._asdict()
    tensors = {name: x for name, x in fields.items() if x is not None}
    if config.collect == "steps":
        tensors = {name: x.flatten(0, 1)[None] for name, x in tensors.items()}
    size = tensors["valid"].shape[1]
    order = ring.permute(np.arange(size, dtype=np.uint32), np.uint32(size), round_keys)
    return [
        batch._replace(**{name: x[:, chosen] for name, x in tensors.items()})
        for chosen in torch.from_numpy(order.astype(np.int64)).chunk(config.minibatches)
    ]


def surrogate_objective(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The clipped surrogate's loss - ent_coef · entropy, and what it is made of."""
    outputs = algorithm.networks.policy(params, batch.obs)
    log_ratio = learner.log_ratio(algorithm, outputs, batch)
    clipped = clipped_ratio(log_ratio, batch.advantage, clip_coef=config.clip_coef)
    loss, parts = learner.regularized(config, algorithm, outputs, clipped, batch)
    beyond = torch.expm1(log_ratio).abs() > config.clip_coef
    return loss, {
        **parts,
        "approx_kl": approximate_kl(log_ratio, batch.valid),
        "clip_fraction": masked_mean(beyond.to(loss.dtype), batch.valid),
    }


def clipped_ratio(
    log_ratio: torch.Tensor, advantage: torch.Tensor, *, clip_coef: Any
) -> torch.Tensor:
    """What of ρ counts: min(ρ Ψ, clip(ρ, 1 - ε, 1 + ε) Ψ) is this times Ψ.

        min(ρ, 1 + ε) where Ψ ≥ 0,    max(ρ, 1 - ε) where Ψ < 0

    Where the ratio has already gone where Ψ wants it, further than ε, its slope is 0.

    Args:
      log_ratio: log ρ, float [...].
      advantage: Ψ, float [...].
      clip_coef: ε > 0, a scalar.

    Raises:
      AssertionError: if the shapes differ.

    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7.
    """
    assert log_ratio.shape == advantage.shape
    ratio = torch.exp(log_ratio)
    upper, lower = ratio.clamp(max=1.0 + clip_coef), ratio.clamp(min=1.0 - clip_coef)
    return torch.where(advantage >= 0.0, upper, lower)


def approximate_kl(log_ratio: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """KL(π_old ‖ π) in nats, estimated by the mean over valid steps of (ρ - 1) - log ρ, which is
    never negative.

    Args:
      log_ratio: log ρ of actions that π_old took, float [...].
      valid: bool [...].

    Source: Schulman 2020, Approximating KL divergence (joschu.net); its estimator k3.
    """
    return masked_mean(torch.expm1(log_ratio) - log_ratio, valid)


def explained_variance(
    value: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """1 - Var(target - V) / Var(target) over valid steps; 0 where the target does not vary.

    Args:
      value: V(s) before the fit, float [...].
      target: float [...].
      valid: bool [...].
    """

    def variance(x: torch.Tensor) -> torch.Tensor:
        return masked_mean((x - masked_mean(x, valid)) ** 2, valid)

    least, largest = masked_range(target, valid)
    varies = largest > least  # the variance, rounded, is not 0 where they are equal
    whole = torch.where(varies, variance(target), 1.0)
    return torch.where(varies, 1.0 - variance(target - value) / whole, 0.0)


NORMS = {
    "policy": "policy_grad_norm",
    "value": "value_grad_norm",
    "joint": "policy_grad_norm",
}
