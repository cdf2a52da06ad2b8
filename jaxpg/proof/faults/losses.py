"""Faults of the losses and of what their gradients reach."""

import inspect
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from jaxpg.proof.faults.plants import Plant, both, of, parts, replaced, wrap
from torch_ref import algorithms, convert, gradient, learner, losses, networks


def _objective(change: Callable[[Any], Any]) -> Plant:
    """The policy's objective has another config."""
    return wrap(
        gradient,
        "policy_objective",
        lambda original, config, *rest: original(change(config), *rest),
    )


def mean_for_sum() -> Plant:
    """The policy loss is a mean over steps where the sum over time is asked for."""
    return mock.patch.dict(algorithms.POLICY_LOSSES, trajectories=losses.policy_loss_steps)


def padding_in_the_mean() -> Plant:
    """Means divide by all steps, not by the valid ones."""

    def masked_mean(x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.where(valid, x, 0.0).mean()

    return mock.patch.object(losses, "masked_mean", masked_mean)


def mask_off_by_one() -> Plant:
    """The loss counts the step after each episode's last, and not its first."""

    def objective(original: Callable, *inputs: Any) -> Any:
        *rest, batch = inputs
        return original(*rest, batch._replace(valid=batch.valid.roll(1, 0)))

    return wrap(gradient, "policy_objective", objective)


def entropy_with_the_wrong_sign() -> Plant:
    """The bonus is a malus."""
    return _objective(lambda config: replaced(config, ent_coef=lambda x: -x))


def entropy_missing_from_the_loss() -> Plant:
    """Entropy is reported and not differentiated, as in a well-known library for years."""
    return _objective(lambda config: replaced(config, ent_coef=lambda x: 0.0 * x))


def half_the_value_loss() -> Plant:
    """½ (V - target)² for (V - target)²."""
    return wrap(gradient, "value_loss", lambda original, *inputs: 0.5 * original(*inputs))


def value_loss_broadcast() -> Plant:
    """Values [B, 1] less targets [B]: a [B, B] matrix of errors."""

    def value_loss(value: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> Any:
        error = value[valid][:, None] - target[valid][None, :]
        return (error * error).mean()

    return mock.patch.object(gradient, "value_loss", value_loss)


def baseline_not_detached() -> Plant:
    """The policy's loss sends a gradient through Ψ into the critic."""

    def leaking(log_prob: torch.Tensor, advantage: torch.Tensor, valid: torch.Tensor) -> Any:
        return -torch.sum(torch.where(valid, log_prob * advantage, 0.0)) / log_prob.shape[1]

    return both(
        _no_constants(),
        mock.patch.dict(algorithms.POLICY_LOSSES, trajectories=leaking),
    )


def target_not_detached() -> Plant:
    """The critic's loss sends a gradient through its bootstrapped target."""

    def value_loss(value: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> Any:
        return losses.masked_mean((value - target) ** 2, valid)

    return both(
        _no_constants(),
        mock.patch.object(gradient, "value_loss", value_loss),
    )


def _no_constants() -> Plant:
    """`estimate` without its no_grad."""
    return mock.patch.object(learner, "estimate", inspect.unwrap(learner.estimate))


def transposed_kernel() -> Plant:
    """A square layer's kernel is converted without its transpose."""

    def to_torch(original: Callable, params: Any) -> Any:
        converted = original(params)
        for name, weight in converted.items():
            if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
                converted[name] = weight.T.clone()
        return converted

    return wrap(convert, "to_torch", to_torch)


def missing_bias_gradient() -> Plant:
    """The output layer's bias is never updated."""

    def init_mlp(original: Callable, *inputs: Any, **choices: Any) -> Any:
        mlp = original(*inputs, **choices)
        mlp.output.bias.register_hook(torch.zeros_like)
        return mlp

    return wrap(networks, "init_mlp", init_mlp)


def torso_without_the_value_gradient() -> Plant:
    """The value head reads the shared torso's features as constants."""

    def value(params: Any, obs: torch.Tensor) -> torch.Tensor:
        return params["value"](params["torso"](obs).detach())[..., 0]

    return parts(lambda a: {"networks": a.networks._replace(value=value)})


FAULTS = (
    *of("episodes", mean_for_sum),
    *of("returns", padding_in_the_mean),
    *of(
        "episodes",
        mask_off_by_one,
        entropy_with_the_wrong_sign,
        entropy_missing_from_the_loss,
        half_the_value_loss,
        value_loss_broadcast,
        baseline_not_detached,
        target_not_detached,
        transposed_kernel,
        missing_bias_gradient,
    ),
    *of("shared", torso_without_the_value_gradient),
)
