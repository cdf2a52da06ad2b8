"""Faults of PPO's penalty: the KL, its weight, and when that changes."""

from functools import partial
from typing import Any
from unittest import mock

import torch

from jaxpg.proof.faults.plants import Plant, config_of_fit, of, replaced, wrap
from torch_ref import algorithms, gradient, penalty, ppo


def penalty_left_out() -> Plant:
    """The KL is not in the objective, though its weight changes."""

    def change(original: Any, *inputs: Any, old: Any, beta: Any) -> Any:
        return original(*inputs, old=old, beta=torch.zeros_like(beta))

    return wrap(penalty, "surrogate_objective", change)


def penalty_of_kl_with_its_arguments_swapped() -> Plant:
    """KL(π ‖ π_old) is penalised, and measured."""

    def fit(config: Any, algorithm: Any, learned: Any, batch: Any) -> Any:
        kl = algorithm.distribution.kl
        swapped = algorithm.distribution._replace(kl=lambda old, new: kl(new, old))
        return penalty.fit(config, algorithm._replace(distribution=swapped), learned, batch)

    return mock.patch.dict(algorithms.FITS, ppo_penalty=fit)


def kl_estimated_by_the_actions() -> Plant:
    """Whether the weight changes goes by an estimate, from the actions that were taken."""

    def change(original: Any, algorithm: Any, old_outputs: Any, params: Any, batch: Any) -> Any:
        outputs = algorithm.networks.policy(params, batch.obs)
        log_prob = algorithm.distribution.log_prob(outputs, batch.action)
        log_ratio = torch.where(batch.valid, log_prob - batch.log_prob, 0.0)
        return ppo.approximate_kl(log_ratio, batch.valid)

    return wrap(penalty.natural, "mean_kl", change)


def weight_that_never_changes() -> Plant:
    """The weight stays what it was at first."""
    return wrap(penalty, "adapted_weight", lambda original, weight, kl, *, desired_kl: weight)


def weight_that_changes_the_other_way() -> Plant:
    """It is doubled where the KL is small, and halved where it is large."""

    def change(original: Any, weight: Any, kl: Any, *, desired_kl: Any) -> Any:
        return weight * weight / original(weight, kl, desired_kl=desired_kl)

    return wrap(penalty, "adapted_weight", change)


def weight_that_begins_anew() -> Plant:
    """Every update begins with the first one's weight."""

    def fit(config: Any, algorithm: Any, learned: Any, batch: Any) -> Any:
        return penalty.fit(
            config,
            algorithm,
            learned._replace(fit_state=penalty.init(config, learned.params)),
            batch,
        )

    return mock.patch.dict(algorithms.FITS, ppo_penalty=fit)


def slack_and_factor_swapped() -> Plant:
    """The weight changes by 1.5 beyond twice the desired KL, not by 2 beyond 1.5 times."""

    def change(original: Any, weight: Any, kl: Any, *, desired_kl: Any) -> Any:
        lower = torch.where(kl < desired_kl / 2.0, weight / 1.5, weight)
        return torch.where(kl > desired_kl * 2.0, weight * 1.5, lower)

    return wrap(penalty, "adapted_weight", change)


def desired_kl_off_by_a_factor() -> Plant:
    """Four times as far is desired."""
    return config_of_fit(lambda config: replaced(config, desired_kl=lambda x: 4.0 * x))


def penalty_left_out_of_a_joint_loss() -> Plant:
    """A joint loss has the surrogate without the KL."""

    def change(original: Any, policy_objective: Any, value_objective: Any) -> Any:
        return original(partial(policy_objective, beta=0.0), value_objective)

    return wrap(gradient, "joint_objective", change)


def penalty_weighed_as_the_value_loss() -> Plant:
    """In a joint loss the KL has vf_coef for a factor, too."""

    def change(original: Any, policy_objective: Any, value_objective: Any) -> Any:
        def weighed(config: Any, *inputs: Any) -> Any:
            beta = config.vf_coef * policy_objective.keywords["beta"]
            return policy_objective(config, *inputs, beta=beta)

        return original(weighed, value_objective)

    return wrap(gradient, "joint_objective", change)


def weight_without_bounds() -> Plant:
    """It is halved beyond its least."""

    def change(original: Any, weight: Any, kl: Any, *, desired_kl: Any) -> Any:
        return original(torch.ones_like(weight), kl, desired_kl=desired_kl) * weight

    return wrap(penalty, "adapted_weight", change)


FAULTS = (
    *of(
        "penalty",
        penalty_left_out,
        penalty_of_kl_with_its_arguments_swapped,
        kl_estimated_by_the_actions,
        weight_that_never_changes,
        weight_that_changes_the_other_way,
        weight_that_begins_anew,
        slack_and_factor_swapped,
        desired_kl_off_by_a_factor,
    ),
    *of("penalty joint", penalty_left_out_of_a_joint_loss, penalty_weighed_as_the_value_loss),
    *of("least penalty", weight_without_bounds),
)
