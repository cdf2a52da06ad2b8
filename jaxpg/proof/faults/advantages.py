"""Faults of Ψ and of the value target: estimators, discounting, baselines, normalisation."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from jaxpg.proof.faults.plants import Plant, of, trajectory, wrap
from torch_ref import advantages, algorithms


def gamma_off_by_1e_7() -> Plant:
    """γ + 1e-7 in GAE."""
    return wrap(
        advantages, "gae", lambda gae, *x, gamma, gae_lambda: gae(
            *x, gamma=gamma + 1e-7, gae_lambda=gae_lambda
        )
    )  # fmt: skip


def lambda_off_by_1e_7() -> Plant:
    """λ + 1e-7 in GAE."""
    return wrap(
        advantages, "gae", lambda gae, *x, gamma, gae_lambda: gae(
            *x, gamma=gamma, gae_lambda=gae_lambda + 1e-7
        )
    )  # fmt: skip


def gae_runs_through_truncations() -> Plant:
    """GAE's recursion is not cut where the view of an episode was."""

    def gae(original: Callable, *inputs: Any, **coefficients: Any) -> torch.Tensor:
        *rest, truncated = inputs
        return original(*rest, torch.zeros_like(truncated), **coefficients)

    return wrap(advantages, "gae", gae)


def truncation_as_termination() -> Plant:
    """A time limit counts as death: nothing is bootstrapped there."""
    return trajectory(
        lambda t: {
            "terminated": t.terminated | t.truncated,
            "truncated": torch.zeros_like(t.truncated),
        }
    )


def bootstrap_from_the_reset_observation() -> Plant:
    """V of the row that follows, which after an episode's end begins the next episode."""
    return trajectory(lambda t: {"next_obs": t.obs.roll(-1, 0)})


def time_off_by_one() -> Plant:
    """γ^(t+1) for γ^t in absolute discounting."""
    return wrap(
        advantages, "discount_from_start", lambda f, time, *, gamma: f(time + 1, gamma=gamma)
    )


def absolute_for_relative_discount() -> Plant:
    """Ψ is weighted by γ^t where the config asks for the relative one."""

    def make(original: Callable, config: Any) -> Any:
        return original(dataclasses.replace(config, discounting="absolute"))

    return wrap(algorithms, "make_advantage", make)


def standard_deviation_with_ddof_1() -> Plant:
    """Ψ is divided by the standard deviation that torch.std gives."""
    return _normalize(lambda psi, some: (psi - some.mean()) / (some.std() + 1e-8))


def epsilon_inside_the_root() -> Plant:
    """Ψ is divided by √(σ² + ε) instead of σ + ε."""
    return _normalize(
        lambda psi, some: (psi - some.mean()) / (some.var(correction=0) + 1e-8).sqrt()
    )


def padding_in_the_statistics() -> Plant:
    """Ψ's mean and standard deviation are taken over the padding too."""
    return _normalize(lambda psi, some: (psi - psi.mean()) / (psi.std(correction=0) + 1e-8))


def _normalize(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Plant:
    def normalize(advantage: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.where(valid, change(advantage, advantage[valid]), 0.0)

    return mock.patch.object(advantages, "normalize", normalize)


def average_that_includes_ones_own_return() -> Plant:
    """The constant baseline is the mean of all trajectories, not of the others."""
    return mock.patch.object(
        advantages, "leave_one_out", lambda returns: returns.mean().expand_as(returns)
    )


def group_with_ddof_1() -> Plant:
    """The group's standard deviation is divided by N - 1."""

    def relative(psi: Any, returns: Any, *, std: bool) -> Any:
        return (psi - returns.mean()) / (returns.std() + 1e-8)

    return mock.patch.object(advantages, "relative_to_group", relative)


def group_without_oneself() -> Plant:
    """The group's mean is that of the others."""

    def relative(psi: Any, returns: Any, *, std: bool) -> Any:
        return (psi - advantages.leave_one_out(returns)) / (returns.std(correction=0) + 1e-8)

    return mock.patch.object(advantages, "relative_to_group", relative)


def lengths_with_the_padding() -> Plant:
    """A trajectory's sum is divided by the number of rows, not of valid steps."""

    def loss(log_prob: Any, advantage: Any, valid: Any) -> Any:
        return -torch.where(valid, log_prob * advantage.detach(), 0.0).mean(dim=0).mean()

    return mock.patch.dict(algorithms.POLICY_LOSSES, trajectory_means=loss)


def baseline_broadcast() -> Plant:
    """Returns [T] less values [T, 1]: each return less the mean of all values."""

    def reward_to_go(t: Any, value: torch.Tensor, next_value: torch.Tensor, **rest: Any) -> Any:
        returns = algorithms.monte_carlo(t, value, next_value, **rest)
        return (returns[:, None] - value[None, :]).mean(dim=1)

    return mock.patch.dict(algorithms.ESTIMATORS, reward_to_go=reward_to_go)


def float32_returns() -> Plant:
    """Returns are summed in float32 and put into a float64 run."""

    def discounted_return(original: Callable, *inputs: Any, gamma: Any) -> torch.Tensor:
        reward, next_value, *ends = inputs
        returns = original(reward.float(), next_value.float(), *ends, gamma=gamma.float())
        return returns.to(reward.dtype)

    return wrap(advantages, "discounted_return", discounted_return)


FAULTS = (
    *of("episodes", gamma_off_by_1e_7, lambda_off_by_1e_7),
    *of("shared", gae_runs_through_truncations),
    *of("episodes", truncation_as_termination),
    *of("shared", bootstrap_from_the_reset_observation),
    *of("absolute", time_off_by_one),
    *of("returns", absolute_for_relative_discount),
    *of(
        "episodes",
        standard_deviation_with_ddof_1,
        epsilon_inside_the_root,
        padding_in_the_statistics,
    ),
    *of("constant", average_that_includes_ones_own_return),
    *of("group", group_with_ddof_1, group_without_oneself, lengths_with_the_padding),
    *of("returns", baseline_broadcast, float32_returns),
)
