"""Action distributions: softmax categorical and diagonal Gaussian.

Each is a `Distribution`: functions of the policy network's outputs. Sampling maps given uniform
draws to actions by the inverse CDF, so it is a deterministic function.
"""

import math

import torch

from torch_ref.types import Distribution


def categorical_sample(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse CDF of the softmax distribution π.

        a = Σ_{j < A-1} [u ≥ π_0 + … + π_j]

    Args:
      logits: unnormalised log-probabilities, float [..., A].
      uniform: u in [0, 1), float32 [...].

    Returns:
      Actions, int64 [...] (torch indexes with nothing smaller).
    """
    probs = torch.moveaxis(torch.softmax(logits, dim=-1), -1, 0)
    uniform = uniform.to(logits.dtype)
    action, cdf = torch.zeros(uniform.shape, dtype=torch.int64), torch.zeros((), dtype=logits.dtype)
    for prob in probs[:-1]:
        cdf = cdf + prob
        action = action + (uniform >= cdf)
    return action


def categorical_log_prob(logits: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """log π(a), float [...], of actions int64 [...]."""
    return _of_action(torch.log_softmax(logits, dim=-1), action)


def categorical_entropy(logits: torch.Tensor) -> torch.Tensor:
    """-Σ π log π in nats, float [...]."""
    log_probs = torch.log_softmax(logits, dim=-1)
    return -torch.sum(torch.exp(log_probs) * log_probs, dim=-1)


def categorical_kl(old_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(π_old ‖ π) in nats, float [...].

        Σ π_old ((ρ - 1) - log ρ),    ρ = π / π_old

    The ρ - 1 add up to 0, and with them no term is negative.
    """
    old = torch.log_softmax(old_logits, dim=-1)
    log_ratio = torch.log_softmax(logits, dim=-1) - old
    return torch.sum(torch.exp(old) * (torch.expm1(log_ratio) - log_ratio), dim=-1)


def clamped_log_prob(logits: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """log of π(a) clamped to [ε, 1 - ε], ε = 2^-23, float [...].

    Outside, the gradient is 0: an action that has become certain is never unlearned.

    Source: torch.distributions.Categorical(probs) in float32.
    """
    return _of_action(_clamped_log(torch.softmax(logits, dim=-1)), action)


def clamped_entropy(logits: torch.Tensor) -> torch.Tensor:
    """-Σ π log(clamped π) in nats, float [...]."""
    probs = torch.softmax(logits, dim=-1)
    return -torch.sum(probs * _clamped_log(probs), dim=-1)


def _of_action(by_action: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """The entry of the action."""
    return torch.gather(by_action, -1, action[..., None])[..., 0]


def _clamped_log(probs: torch.Tensor) -> torch.Tensor:
    low = 2.0**-23
    clamped = torch.where(probs < low, low, torch.where(probs > 1.0 - low, 1.0 - low, probs))
    return torch.log(clamped)


def gaussian_sample(outputs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse CDF of a diagonal Gaussian: a = μ + σ √2 erf⁻¹(2u - 1).

    Args:
      outputs: μ and then log σ, float [..., 2A].
      uniform: u in [0, 1) on the grid of 2^-23, float32 [..., A]; moved by half a grid step into
        the open interval, where erf⁻¹ is finite.

    Returns:
      Actions, float [..., A], not clipped.
    """
    mean, log_std = torch.chunk(outputs, 2, dim=-1)
    centred = uniform.to(outputs.dtype) + 2.0**-24
    epsilon = math.sqrt(2.0) * torch.special.erfinv(2.0 * centred - 1.0)
    return mean + torch.exp(log_std) * epsilon


def gaussian_log_prob(outputs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Σ_j -½ ((a_j - μ_j) / σ_j)² - log σ_j - ½ log 2π, float [...], of actions [..., A]."""
    mean, log_std = torch.chunk(outputs, 2, dim=-1)
    z = (action - mean) * torch.exp(-log_std)
    return torch.sum(-0.5 * z * z - log_std - 0.5 * math.log(2.0 * math.pi), dim=-1)


def gaussian_entropy(outputs: torch.Tensor) -> torch.Tensor:
    """Σ_j log σ_j + ½ log 2πe in nats, float [...]."""
    _, log_std = torch.chunk(outputs, 2, dim=-1)
    return torch.sum(log_std + 0.5 * math.log(2.0 * math.pi * math.e), dim=-1)


def gaussian_kl(old_outputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """KL(π_old ‖ π) in nats, float [...].

    Σ_j ½ (σ_old² / σ² - 1) - log(σ_old / σ) + ½ ((μ - μ_old) / σ)²
    """
    old_mean, old_log_std = torch.chunk(old_outputs, 2, dim=-1)
    mean, log_std = torch.chunk(outputs, 2, dim=-1)
    z, log_ratio = (mean - old_mean) * torch.exp(-log_std), old_log_std - log_std
    return torch.sum(0.5 * torch.expm1(2.0 * log_ratio) - log_ratio + 0.5 * z * z, dim=-1)


categorical = Distribution(
    categorical_sample, categorical_log_prob, categorical_entropy, categorical_kl
)
clamped = Distribution(categorical_sample, clamped_log_prob, clamped_entropy, categorical_kl)
gaussian = Distribution(gaussian_sample, gaussian_log_prob, gaussian_entropy, gaussian_kl)
