"""Action distributions: softmax categorical, several at once, diagonal Gaussian, squashed or not.

Each is a `Distribution`: functions of the policy network's outputs. Sampling maps given uniform
draws to actions by the inverse CDF, so it is a deterministic function.
"""

import math
from functools import reduce
from operator import add

import torch

from torch_ref.types import Distribution

NEVER = -1e30  # the logit of an action that is not allowed: finite, so that 0 times it is 0
# Where a Gaussian's expectation is taken, in standard deviations from its mean, and their weights:
POINTS = [0.45 * i for i in range(-12, 13)]
WEIGHTS = [math.exp(-0.5 * z * z) / sum(math.exp(-0.5 * x * x) for x in POINTS) for z in POINTS]


def categorical_sample(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse CDF of the softmax distribution π.

        a = max {j: π_j > 0 and u ≥ π_0 + … + π_{j-1}}

    An action of probability 0 is never taken, nor where rounding leaves the sum of all below u.

    Args:
      logits: unnormalised log-probabilities, float [..., A].
      uniform: u in [0, 1), float32 [...].

    Returns:
      Actions, int64 [...] (torch indexes with nothing smaller).
    """
    probs = torch.moveaxis(torch.softmax(logits, dim=-1), -1, 0)
    uniform = uniform.to(logits.dtype)
    action, cdf = torch.zeros(uniform.shape, dtype=torch.int64), torch.zeros((), dtype=logits.dtype)
    for i, prob in enumerate(probs):
        action = torch.where((prob > 0.0) & (uniform >= cdf), i, action)
        cdf = cdf + prob
    return action


def categorical_mode(logits: torch.Tensor) -> torch.Tensor:
    """The most probable action, the first of equals, int64 [...]."""
    return torch.argmax(logits, dim=-1)


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

    The ρ - 1 add up to 0, and with them no term is negative. A ρ that may be too large for a number
    is not computed: π_old ρ is π.
    """
    old_log_probs = torch.log_softmax(old_logits, dim=-1)
    log_probs = torch.log_softmax(logits, dim=-1)
    log_ratio, old_probs = log_probs - old_log_probs, torch.exp(old_log_probs)
    is_large = log_ratio > 1.0
    small = torch.where(is_large, 0.0, log_ratio)
    of_large = torch.exp(log_probs) - old_probs * (1.0 + log_ratio)
    terms = torch.where(is_large, of_large, old_probs * (torch.expm1(small) - small))
    return torch.sum(terms, dim=-1)


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


def allowed_only(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The logits of π among the actions that are allowed: the others' probability is 0.

    log π, entropy and KL are then those of that distribution, and their slopes in the others'
    logits 0. Where nothing is allowed, all actions are equally probable.

    Args:
      logits: float [..., A].
      allowed: bool [..., A].
    """
    return torch.where(allowed, logits, NEVER)


def several(one: Distribution, choices: tuple[int, ...]) -> Distribution:
    """Independent choices, made at once: log π, entropy and KL are sums over them.

    Args:
      one: the distribution of a single one.
      choices: each is one of how many, and has as many of the outputs [..., K]; an action, and what
        it is sampled by, is [..., len(choices)].
    """

    def parts(outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.split(outputs, list(choices), dim=-1)

    def sample(outputs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        pairs = zip(parts(outputs), uniform.unbind(-1), strict=True)
        return torch.stack([one.sample(*pair) for pair in pairs], dim=-1)

    def mode(outputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([one.mode(part) for part in parts(outputs)], dim=-1)

    def log_prob(outputs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        pairs = zip(parts(outputs), action.unbind(-1), strict=True)
        return reduce(add, (one.log_prob(*pair) for pair in pairs))

    def entropy(outputs: torch.Tensor) -> torch.Tensor:
        return reduce(add, map(one.entropy, parts(outputs)))

    def kl(old_outputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return reduce(add, map(one.kl, parts(old_outputs), parts(outputs)))

    return Distribution(sample, mode, log_prob, entropy, kl)


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
    # √2 erf⁻¹(2u - 1); torch's erfinv is 1e-11 off in the tails where it is not MKL's.
    epsilon = torch.special.ndtri(centred)
    return mean + torch.exp(log_std) * epsilon


def gaussian_mode(outputs: torch.Tensor) -> torch.Tensor:
    """μ, float [..., A]."""
    mean, _ = torch.chunk(outputs, 2, dim=-1)
    return mean


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


def squashed_log_prob(outputs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """log of the density of tanh(a) in (-1, 1)^A, float [...], of Gaussian actions a [..., A].

        log N(a; μ, σ) - Σ_j log(1 - tanh² a_j)

    An action is kept as it was sampled: tanh is never undone. In the units of an environment, whose
    bounds are scaled to, it is less by a constant, Σ_j log of half their distance.

    Source: Haarnoja et al. 2018 (arXiv:1801.01290), appendix C.
    """
    return gaussian_log_prob(outputs, action) - torch.sum(_log_slope(action), dim=-1)


def squashed_entropy(outputs: torch.Tensor) -> torch.Tensor:
    """That of tanh(a) in (-1, 1)^A in nats, at most A log 2, float [...].

        H(N) + Σ_j E[log(1 - tanh² a_j)]

    The expectation has no closed form. It is a sum over equidistant points, whose error vanishes
    faster than any power of their distance: below 1e-6 nats for σ ≤ 1.5, 1e-3 for σ ≤ 3; it is
    1e-2 at σ = 5 and 1e-1 at 10.

    Source: Trefethen & Weideman 2014, The exponentially convergent trapezoidal rule (SIAM Review
    56).
    """
    mean, log_std = torch.chunk(outputs, 2, dim=-1)
    std = torch.exp(log_std)
    terms = [w * _log_slope(mean + z * std) for z, w in zip(POINTS, WEIGHTS, strict=True)]
    return gaussian_entropy(outputs) + torch.sum(reduce(add, terms), dim=-1)


def _log_slope(x: torch.Tensor) -> torch.Tensor:
    """log(1 - tanh² x) = 2 (log 2 - |x| - log(1 + e^{-2|x|})), finite where the tanh is 1."""
    distance = torch.abs(x)
    return 2.0 * (math.log(2.0) - distance - torch.log1p(torch.exp(-2.0 * distance)))


categorical = Distribution(
    categorical_sample, categorical_mode, categorical_log_prob, categorical_entropy, categorical_kl
)
clamped = Distribution(
    categorical_sample, categorical_mode, clamped_log_prob, clamped_entropy, categorical_kl
)
gaussian = Distribution(
    gaussian_sample, gaussian_mode, gaussian_log_prob, gaussian_entropy, gaussian_kl
)
squashed = Distribution(  # what is invertible changes no KL
    gaussian_sample, gaussian_mode, squashed_log_prob, squashed_entropy, gaussian_kl
)
