"""Faults of how actions are sampled and their probabilities computed."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

from jaxpg.proof.faults.plants import Plant, both, of, parts, trajectory, wrap
from torch_ref import distributions, dynamics, networks


def action_from_less_or_equal() -> Plant:
    """Inverse CDF with u > cdf for u ≥ cdf: differs only where u is exactly on the CDF."""

    def sample(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        cdf = torch.cumsum(torch.softmax(logits, dim=-1), dim=-1)
        return torch.sum(uniform.to(logits.dtype)[..., None] > cdf[..., :-1], dim=-1)

    return parts(lambda a: {"distribution": a.distribution._replace(sample=sample)})


def log_of_a_clamped_softmax() -> Plant:
    """log π from probabilities clamped to [ε, 1 - ε], as torch's Categorical(probs) has it."""

    def log_prob(logits: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        eps = torch.finfo(logits.dtype).eps
        probs = torch.softmax(logits, dim=-1).clamp(eps, 1 - eps)
        return torch.gather(probs.log(), -1, action[..., None])[..., 0]

    return parts(lambda a: {"distribution": a.distribution._replace(log_prob=log_prob)})


def variance_for_standard_deviation() -> Plant:
    """A Gaussian's log σ is read as the logarithm of its variance."""

    def halved(function: Callable) -> Callable:
        def other(outputs: torch.Tensor, *rest: Any) -> torch.Tensor:
            mean, log_std = torch.chunk(outputs, 2, dim=-1)
            return function(torch.cat([mean, 0.5 * log_std], dim=-1), *rest)

        return other

    return parts(lambda a: {"distribution": type(a.distribution)(*map(halved, a.distribution))})


def _log_prob(change: Callable[..., Any]) -> Plant:
    """log π becomes change(the original, outputs, action)."""
    return _distribution("log_prob", change)


def _distribution(name: str, change: Callable[..., Any]) -> Plant:
    """A function of the distribution becomes change(the original, …)."""

    def other(a: Any) -> dict[str, Any]:
        changed = partial(change, getattr(a.distribution, name))
        return {"distribution": a.distribution._replace(**{name: changed})}

    return parts(other)


def slope_of_tanh_forgotten() -> Plant:
    """log π of a squashed action is that of the Gaussian."""
    return _log_prob(lambda original, *inputs: distributions.gaussian_log_prob(*inputs))


def slope_of_tanh_multiplied() -> Plant:
    """The density of a squashed action is the Gaussian's times the slope of tanh, not over it."""
    return _log_prob(
        lambda original, *inputs: 2 * distributions.gaussian_log_prob(*inputs) - original(*inputs)
    )


def slope_of_tanh_as_it_is_written() -> Plant:
    """log(1 - tanh²), which is -∞ where the tanh is rounded to 1."""

    def log_prob(original: Callable, outputs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        slope = torch.log(1.0 - torch.tanh(action) ** 2)
        return distributions.gaussian_log_prob(outputs, action) - slope.sum(-1)

    return _log_prob(log_prob)


def density_at_the_squashed_action() -> Plant:
    """log π takes the action's tanh for what was sampled."""
    return _log_prob(lambda original, outputs, action: original(outputs, torch.tanh(action)))


def tanh_applied_twice() -> Plant:
    """The action is squashed as it is sampled, and once more where the environment is stepped."""
    return _distribution("sample", lambda original, *inputs: torch.tanh(original(*inputs)))


def entropy_before_squashing() -> Plant:
    """The bonus is the Gaussian's entropy, which grows without bounds."""
    return _distribution(
        "entropy", lambda original, outputs: distributions.gaussian_entropy(outputs)
    )


def slope_of_tanh_at_the_mean() -> Plant:
    """The entropy's expectation is the slope's logarithm at the Gaussian's mean."""
    return both(
        mock.patch.object(distributions, "POINTS", [0.0]),
        mock.patch.object(distributions, "WEIGHTS", [1.0]),
    )


def bounds_not_scaled_to() -> Plant:
    """A squashed action is in (-1, 1), whatever the bounds are."""
    return wrap(dynamics, "bounded", lambda original, action, *_: torch.tanh(action))


def one_draw_for_all_choices() -> Plant:
    """What the first of choices at once is sampled by samples the others, too."""
    return _distribution(
        "sample",
        lambda original, outputs, uniform: original(outputs, uniform[..., :1].expand_as(uniform)),
    )


def mean_over_choices() -> Plant:
    """log π of choices at once is the mean of theirs, and not the sum."""
    return _log_prob(lambda original, outputs, action: original(outputs, action) / action.shape[-1])


def _mask(change: Callable[..., Any]) -> Plant:
    """What is left of logits becomes change(the original, logits, allowed)."""
    return wrap(networks, "allowed_only", change)


def mask_in_acting_alone() -> Plant:
    """What is learned from has the probabilities of all actions."""
    return _mask(
        lambda original, logits, allowed: (
            logits if torch.is_grad_enabled() else original(logits, allowed)
        )
    )


def mask_in_learning_alone() -> Plant:
    """Actions are taken, allowed or not, and learned from as if they had been allowed."""
    return _mask(
        lambda original, logits, allowed: (
            original(logits, allowed) if torch.is_grad_enabled() else logits
        )
    )


def mask_as_a_penalty() -> Plant:
    """The logits of what is not allowed are less by 10."""
    return _mask(lambda original, logits, allowed: torch.where(allowed, logits, logits - 10.0))


def mask_of_the_state_that_follows() -> Plant:
    """What is learned from has the masks of the observations after its actions."""

    def change(t: Any) -> dict[str, Any]:
        return {"obs": torch.cat([t.obs[..., :-5], t.next_obs[..., -5:]], dim=-1)}

    return trajectory(change)


def mask_of_the_normalised_observation() -> Plant:
    """A mask is read after an observation is normalised, so that most of it allows nothing."""

    def make(original: Callable, config: Any, spec: Any) -> Any:
        plain = original(dataclasses.replace(config, normalize_obs=False), spec)
        return networks.normalized(plain, config, spec)

    return wrap(networks, "make", make)


FAULTS = (
    *of("episodes", action_from_less_or_equal, log_of_a_clamped_softmax),
    *of("gaussian", variance_for_standard_deviation),
    *of(
        "squashed",
        slope_of_tanh_forgotten,
        slope_of_tanh_multiplied,
        slope_of_tanh_as_it_is_written,
        density_at_the_squashed_action,
        tanh_applied_twice,
        entropy_before_squashing,
        slope_of_tanh_at_the_mean,
        bounds_not_scaled_to,
    ),
    *of(
        "masked",
        one_draw_for_all_choices,
        mean_over_choices,
        mask_in_acting_alone,
        mask_in_learning_alone,
        mask_as_a_penalty,
        mask_of_the_state_that_follows,
        mask_of_the_normalised_observation,
    ),
)
