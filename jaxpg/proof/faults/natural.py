"""Faults of NPG and TRPO: the Fisher matrix, conjugate gradients, the line search."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from jaxpg.proof.faults.plants import Plant, of, parts, replaced, wrap
from torch_ref import gradient, learner, losses, natural


def _natural_gradient(change: Callable[..., Any]) -> Plant:
    """The natural gradient becomes change(the original, config, algorithm, params, batch)."""
    return wrap(natural, "natural_gradient", change)


def _line_search(change: Callable[[Any], Any]) -> Plant:
    """The line search has another config."""
    return wrap(
        natural, "line_search", lambda original, config, *rest: original(change(config), *rest)
    )


def kl_with_its_arguments_swapped() -> Plant:
    """KL(π ‖ π_old): its curvature is the same, and the line search sees another number."""

    def mean_kl(original: Callable, algorithm: Any, *rest: Any) -> Any:
        own = algorithm.distribution
        swapped = own._replace(kl=lambda old, new: own.kl(new, old))
        return original(algorithm._replace(distribution=swapped), *rest)

    return wrap(natural, "mean_kl", mean_kl)


def kl_without_the_spread() -> Plant:
    """The Gaussians' KL and Fisher matrix are those of their means alone."""

    def of_means(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        mean, _ = torch.chunk(new, 2, dim=-1)
        old_mean, log_std = torch.chunk(old, 2, dim=-1)
        return torch.sum(0.5 * ((mean - old_mean) * torch.exp(-log_std)) ** 2, dim=-1)

    return parts(lambda a: {"distribution": a.distribution._replace(kl=of_means)})


def fisher_matrix_of_the_actions_taken() -> Plant:
    """The mean of ∇ log π ∇ log πᵀ over the batch's actions, and not over the policy's."""

    def fisher_product(original: Callable, algorithm: Any, params: Any, batch: Any) -> Any:
        def mean_kl(_: Callable, algorithm: Any, old: Any, params: Any, batch: Any) -> Any:
            now = algorithm.networks.policy(params, batch.obs)
            logs = (algorithm.distribution.log_prob(x, batch.action) for x in (now, old))
            new, old = logs
            return losses.masked_mean(0.5 * (new - old) ** 2, batch.valid)

        with wrap(natural, "mean_kl", mean_kl):
            return original(algorithm, params, batch)

    return wrap(natural, "fisher_product", fisher_product)


def fisher_matrix_over_padding() -> Plant:
    """The Fisher matrix is a mean over all steps, the padding too."""

    def fisher_product(original: Callable, algorithm: Any, params: Any, batch: Any) -> Any:
        every = torch.ones_like(batch.valid)
        return original(algorithm, params, batch._replace(valid=every))

    return wrap(natural, "fisher_product", fisher_product)


def damping_subtracted() -> Plant:
    """(F - c I)⁻¹ g."""
    return _natural_gradient(
        lambda original, config, *rest: original(replaced(config, damping=lambda c: -c), *rest)
    )


def damping_on_the_other_side() -> Plant:
    """F⁻¹ (g + c)."""

    def change(original: Callable, config: Any, *rest: Any) -> Any:
        def solve(cg: Callable, product: Callable, b: torch.Tensor, **options: Any) -> Any:
            return cg(product, b + config.damping, **options)

        with wrap(natural, "conjugate_gradients", solve):
            return original(replaced(config, damping=torch.zeros_like), *rest)

    return _natural_gradient(change)


def length_without_the_damping() -> Plant:
    """The length of a step is measured by xᵀ F x."""

    def change(original: Callable, config: Any, *rest: Any) -> Any:
        found = original(config, *rest)
        x = found.direction
        return found._replace(curvature=found.curvature - config.damping * (x @ x))

    return _natural_gradient(change)


def length_without_the_half() -> Plant:
    """√(δ / xᵀ F x)."""
    return wrap(
        natural,
        "step_length",
        lambda original, curvature, *, max_kl: original(curvature, max_kl=0.5 * max_kl),
    )


def conjugate_gradients_one_step_short() -> Plant:
    """Conjugate gradients take one step less than they are told."""
    return _natural_gradient(
        lambda original, config, *rest: original(replaced(config, cg_steps=lambda x: x - 1), *rest)
    )


def residual_relative_to_the_gradient() -> Plant:
    """Conjugate gradients stop once |r|² is a fraction of |g|², not a number."""
    return _tolerance(lambda b: natural.RESIDUAL * natural.dot(b, b))


def residual_not_squared() -> Plant:
    """Conjugate gradients stop once |r|, not |r|², is at the bound."""
    return _tolerance(lambda b: natural.RESIDUAL**2)


def _tolerance(change: Callable[[torch.Tensor], Any]) -> Plant:
    def solve(cg: Callable, product: Callable, b: torch.Tensor, *, steps: int) -> Any:
        return cg(product, b, steps=steps, tolerance=change(b))

    return wrap(natural, "conjugate_gradients", solve)


def residuals_left_as_they_are() -> Plant:
    """New residuals are not made orthogonal to those before, so that rounding grows."""

    def solve(product: Callable, b: torch.Tensor, *, steps: int) -> torch.Tensor:
        x, r, p = torch.zeros_like(b), b, b
        for _ in range(steps):
            square, image = r @ r, product(p)
            if square <= natural.RESIDUAL:
                break
            x, r = x + square / (p @ image) * p, r - square / (p @ image) * image
            p = r + (r @ r) / square * p
        return x

    return mock.patch.object(natural, "conjugate_gradients", solve)


def any_surrogate_accepted() -> Plant:
    """The line search takes the first step whose KL is small, better or not."""

    def search(original: Callable, *inputs: Any) -> Any:
        calls: list[int] = []

        def objective(surrogate: Callable, *inputs: Any) -> tuple:
            calls.append(1)
            loss, parts = surrogate(*inputs)
            return (loss if len(calls) == 1 else loss - 1e9), parts

        with wrap(natural, "surrogate_objective", objective):
            return original(*inputs)

    return wrap(natural, "line_search", search)


def any_kl_accepted() -> Plant:
    """The line search takes the first step that is better, however far it goes."""
    return _line_search(lambda config: replaced(config, max_kl=lambda x: 1e9 * x))


def kl_of_1_5_times_the_bound_accepted() -> Plant:
    """The line search accepts KL ≤ 1.5 δ, as a well-known implementation does."""
    return _line_search(lambda config: replaced(config, max_kl=lambda x: 1.5 * x))


def steps_cut_in_half() -> Plant:
    """A step that is refused is halved."""
    return mock.patch.object(natural, "SHRINK", 0.5)


def refused_step_kept() -> Plant:
    """Where no step is accepted, the parameters stay where the last attempt has put them."""

    def search(original: Callable, *inputs: Any) -> Any:
        with mock.patch.object(natural, "vector_to_parameters", _only_once_each(inputs)):
            return original(*inputs)

    def _only_once_each(inputs: Any) -> Callable:
        config, place, left = inputs[0], natural.vector_to_parameters, []

        def limited(*inputs: Any) -> None:
            left.append(1)
            if len(left) <= config.backtrack_steps:
                place(*inputs)

        return limited

    return wrap(natural, "line_search", search)


def line_search_without_the_entropy() -> Plant:
    """The bonus is in the gradient, and not in what a step must improve."""
    return _line_search(lambda config: replaced(config, ent_coef=torch.zeros_like))


def ratio_to_the_policy_that_steps() -> Plant:
    """The surrogate's ratio is 1 at the policy that steps, whatever the one that acted was."""

    def change(original: Callable, config: Any, algorithm: Any, params: Any, batch: Any) -> Any:
        with torch.no_grad():
            outputs = algorithm.networks.policy(params, batch.obs)
            now = algorithm.distribution.log_prob(outputs, batch.action)
        return original(config, algorithm, params, batch._replace(log_prob=now))

    return _natural_gradient(change)


def logarithm_for_the_ratio() -> Plant:
    """The surrogate is that of the policy gradient, log π Ψ."""
    return mock.patch.object(natural, "surrogate_objective", gradient.policy_objective)


def natural_gradient_uphill() -> Plant:
    """The policy moves along +x."""
    return _natural_gradient(
        lambda original, *inputs: (found := original(*inputs))._replace(direction=-found.direction)
    )


def natural_gradient_clipped() -> Plant:
    """max_grad_norm bounds the natural gradient, too."""

    def change(original: Callable, config: Any, *rest: Any) -> Any:
        found = original(config, *rest)
        bound = torch.clamp(config.max_grad_norm / found.direction.norm(), max=1.0)
        return found._replace(direction=bound * found.direction)

    return _natural_gradient(change)


def natural_gradient_without_the_schedule() -> Plant:
    """NPG's learning rate does not fall."""

    def rates(original: Callable, config: Any, update: int) -> Any:
        return original(config, update) | {"policy": config.learning_rate}

    return wrap(learner, "rates", rates)


FAULTS = (
    *of("trpo", kl_with_its_arguments_swapped),
    *of("npg", kl_without_the_spread),
    *of(
        "trpo",
        fisher_matrix_of_the_actions_taken,
        fisher_matrix_over_padding,
        damping_subtracted,
        damping_on_the_other_side,
        length_without_the_damping,
        length_without_the_half,
        conjugate_gradients_one_step_short,
        residual_relative_to_the_gradient,
        residual_not_squared,
        residuals_left_as_they_are,
        any_surrogate_accepted,
        any_kl_accepted,
        kl_of_1_5_times_the_bound_accepted,
        steps_cut_in_half,
        refused_step_kept,
    ),
    *of("trpo, entropy", line_search_without_the_entropy),
    *of("trpo", ratio_to_the_policy_that_steps),
    *of(
        "npg",
        logarithm_for_the_ratio,
        natural_gradient_uphill,
        natural_gradient_clipped,
        natural_gradient_without_the_schedule,
    ),
)
