"""Faults of PPO: the clipped surrogate, epochs and minibatches, where it stops."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from jaxpg.proof.faults.plants import Plant, config_of_fit, of, optimizer, replaced, wrap
from torch_ref import advantages, algorithms, gradient, learner, losses, noise, ppo, ring


def _surrogate(change: Callable[..., Any]) -> Plant:
    """PPO's objective of the policy becomes change(the original, config, algorithm, params, …)."""
    return wrap(ppo, "surrogate_objective", change)


def _batch(change: Callable[[Any], dict[str, Any]]) -> Plant:
    """PPO is given another batch."""

    def fit(config: Any, algorithm: Any, learned: Any, batch: Any) -> Any:
        return ppo.fit(config, algorithm, learned, batch._replace(**change(batch)))

    return mock.patch.dict(algorithms.FITS, ppo=fit)


def entropy_beside_the_loss() -> Plant:
    """The entropy is in the reported loss, and not in its gradient."""

    def change(original: Callable, config: Any, *rest: Any) -> tuple:
        loss, parts = original(config, *rest)
        entropy = config.ent_coef * parts["entropy"]
        return loss + entropy - entropy.detach(), parts

    return _surrogate(change)


def ratio_to_the_policy_itself() -> Plant:
    """The ratio's denominator is the probability under the policy that is being fitted."""

    def change(original: Callable, config: Any, algorithm: Any, params: Any, batch: Any) -> tuple:
        with torch.no_grad():
            outputs = algorithm.networks.policy(params, batch.obs)
            now = algorithm.distribution.log_prob(outputs, batch.action)
        return original(config, algorithm, params, batch._replace(log_prob=now))

    return _surrogate(change)


def old_probabilities_of_each_epoch() -> Plant:
    """From the second epoch on, the old probabilities are those at the epoch's beginning."""

    def fit(config: Any, algorithm: Any, learned: Any, batch: Any) -> Any:
        calls: list[int] = []

        def minibatches(original: Callable, config: Any, batch: Any, keys: Any) -> Any:
            if calls:
                with torch.no_grad():
                    outputs = algorithm.networks.policy(learned.params, batch.obs)
                    now = algorithm.distribution.log_prob(outputs, batch.action)
                batch = batch._replace(log_prob=now)
            calls.append(1)
            return original(config, batch, keys)

        with wrap(ppo, "minibatches", minibatches):
            return ppo.fit(config, algorithm, learned, batch)

    return mock.patch.dict(algorithms.FITS, ppo=fit)


def clip_above_whatever_the_advantage() -> Plant:
    """Where Ψ < 0 the ratio is bounded from above, too, instead of from below."""
    return wrap(
        ppo,
        "clipped_ratio",
        lambda original, log_ratio, advantage, **rest: original(log_ratio, advantage.abs(), **rest),
    )


def maximum_for_minimum() -> Plant:
    """max(ρ Ψ, clip(ρ) Ψ)."""
    return wrap(
        ppo,
        "clipped_ratio",
        lambda original, log_ratio, advantage, **rest: original(log_ratio, -advantage, **rest),
    )


def clip_on_both_sides() -> Plant:
    """clip(ρ) Ψ, without the minimum: a ratio that went the wrong way is not brought back."""

    def clipped_ratio(log_ratio: Any, advantage: Any, *, clip_coef: Any) -> Any:
        return torch.exp(log_ratio).clamp(1.0 - clip_coef, 1.0 + clip_coef)

    return mock.patch.object(ppo, "clipped_ratio", clipped_ratio)


def clip_of_the_logarithm() -> Plant:
    """log ρ is bounded by ±ε, and not ρ by 1 ± ε."""

    def clipped_ratio(log_ratio: Any, advantage: Any, *, clip_coef: Any) -> Any:
        upper, lower = log_ratio.clamp(max=clip_coef), log_ratio.clamp(min=-clip_coef)
        return torch.exp(torch.where(advantage >= 0.0, upper, lower))

    return mock.patch.object(ppo, "clipped_ratio", clipped_ratio)


def clip_coefficient_ignored() -> Plant:
    """ε is 0.2, whatever the config says."""
    return config_of_fit(lambda config: replaced(config, clip_coef=lambda x: 0.0 * x + 0.2))


def clip_coefficient_off_by_1e_6() -> Plant:
    """ε (1 + 1e-6)."""
    return config_of_fit(lambda config: replaced(config, clip_coef=lambda x: x * (1 + 1e-6)))


def normalised_over_the_batch() -> Plant:
    """Ψ is normalised once, over the whole batch, and not in each minibatch."""

    def fit(config: Any, algorithm: Any, learned: Any, batch: Any) -> Any:
        psi = advantages.normalize(batch.advantage, batch.valid)
        config = dataclasses.replace(config, normalize_over="batch")
        return ppo.fit(config, algorithm, learned, batch._replace(advantage=psi))

    return mock.patch.dict(algorithms.FITS, ppo=fit)


def minibatch_with_ddof_1() -> Plant:
    """A minibatch's standard deviation is divided by n - 1."""

    def normalize(advantage: Any, valid: Any) -> Any:
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8)

    return mock.patch.object(ppo, "normalize", normalize)


def one_minibatch_twice() -> Plant:
    """The first minibatch stands in the place of the second, too."""

    def minibatches(original: Callable, *inputs: Any) -> Any:
        first, _, *rest = original(*inputs)
        return [first, first, *rest]

    return wrap(ppo, "minibatches", minibatches)


def one_order_for_all_epochs() -> Plant:
    """Every epoch goes through the batch in the order of the first."""
    return _batch(lambda batch: {"order": np.repeat(batch.order[:1], len(batch.order), axis=0)})


def steps_in_their_order() -> Plant:
    """The batch is cut as it is, and not shuffled."""
    return mock.patch.object(ring, "permute", lambda index, size, round_keys: index)


def order_of_the_next_update() -> Plant:
    """An update shuffles as the one after it should."""

    def draw(original: Callable, key: Any, update: int, *rest: Any) -> Any:
        return original(key, update, *rest)._replace(order=original(key, update + 1, *rest).order)

    return wrap(noise, "draw", draw)


def one_epoch_less() -> Plant:
    """The last epoch is left out."""
    return _batch(lambda batch: {"order": batch.order[:-1]})


def value_clip_around_the_new_value() -> Plant:
    """The critic's value is clipped around itself."""
    return wrap(
        gradient,
        "clipped_value_loss",
        lambda original, value, old, *rest, **c: original(value, value.detach(), *rest, **c),
    )


def smaller_of_two_value_losses() -> Plant:
    """The minimum of the clipped and the plain value loss, and not the maximum."""

    def loss(value: Any, old: Any, target: Any, valid: Any, *, clip_value: Any) -> Any:
        near = old + (value - old).clamp(-clip_value, clip_value)
        return losses.masked_mean(torch.minimum((value - target) ** 2, (near - target) ** 2), valid)

    return mock.patch.object(gradient, "clipped_value_loss", loss)


def value_clip_forgotten() -> Plant:
    """clip_value is ignored."""
    return config_of_fit(lambda config: dataclasses.replace(config, clip_value=None))


def kl_of_the_other_direction() -> Plant:
    """KL(π ‖ π_old), estimated as if its samples were π's."""
    return wrap(ppo, "approximate_kl", lambda original, ratio, valid: original(-ratio, valid))


def kl_by_the_first_estimator() -> Plant:
    """-log ρ, which may be negative."""
    return mock.patch.object(
        ppo, "approximate_kl", lambda log_ratio, valid: losses.masked_mean(-log_ratio, valid)
    )


def epsilon_of_the_optimizer_forgotten() -> Plant:
    """Adam has its usual epsilon, whatever the config says."""
    return optimizer("adam", lambda config, params: torch.optim.Adam(params, lr=0.0))


def schedule_within_an_update() -> Plant:
    """The learning rate falls from step to step of an update."""
    steps = [0]

    def descend(original: Callable, config: Any, algorithm: Any, rate: Any, *rest: Any) -> Any:
        steps[0] += 1
        return original(config, algorithm, rate * (1.0 - 1e-3 * (steps[0] % 10)), *rest)

    return wrap(learner, "descend", descend)


def target_kl_a_step_late() -> Plant:
    """What is held against the target is the divergence before the last step."""

    def fit(config: Any, *inputs: Any) -> Any:
        before = [torch.zeros(())]

        def objective(*inputs: Any) -> tuple:
            loss, parts = ppo.surrogate_objective(*inputs)
            before.append(parts["approx_kl"])
            return loss, parts | {"approx_kl": before[-2]}

        return ppo.fit(config, *inputs, policy_objective=objective)

    return mock.patch.dict(algorithms.FITS, ppo=fit)


def target_kl_times_1_5() -> Plant:
    """Steps are left out beyond 1.5 times the target."""
    return config_of_fit(lambda config: replaced(config, target_kl=lambda x: 1.5 * x))


def weight_of_the_value_loss_forgotten() -> Plant:
    """vf_coef is 1 in the joint loss."""
    return config_of_fit(lambda config: replaced(config, vf_coef=torch.ones_like))


def clip_by_the_norm_of_the_policy() -> Plant:
    """A joint gradient is clipped by the norm of the policy's part."""

    def norm(original: Callable, gradients: Any) -> Any:
        gradients = list(gradients)
        return original(gradients[: len(gradients) // 2])

    return wrap(learner, "global_norm", norm)


FAULTS = (
    *of(
        "ppo",
        entropy_beside_the_loss,
        ratio_to_the_policy_itself,
        old_probabilities_of_each_epoch,
        clip_above_whatever_the_advantage,
        maximum_for_minimum,
        clip_on_both_sides,
        clip_of_the_logarithm,
        clip_coefficient_ignored,
        clip_coefficient_off_by_1e_6,
        normalised_over_the_batch,
        minibatch_with_ddof_1,
        one_minibatch_twice,
        one_order_for_all_epochs,
        steps_in_their_order,
        order_of_the_next_update,
        one_epoch_less,
        value_clip_around_the_new_value,
        smaller_of_two_value_losses,
        value_clip_forgotten,
        kl_of_the_other_direction,
        kl_by_the_first_estimator,
        epsilon_of_the_optimizer_forgotten,
        schedule_within_an_update,
    ),
    *of("ppo stops", target_kl_a_step_late, target_kl_times_1_5),
    *of("ppo joint", weight_of_the_value_loss_forgotten, clip_by_the_norm_of_the_policy),
)
