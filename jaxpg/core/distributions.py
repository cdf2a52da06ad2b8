"""Action distributions: softmax categorical, several at once, diagonal Gaussian, squashed or not.

Each is a `Distribution`: functions of the policy network's outputs. Sampling maps given uniform
draws to actions by the inverse CDF, so it is a deterministic function.
"""

import itertools
import math
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp

from jaxpg.core.types import Distribution

NEVER = -1e30  # the logit of an action that is not allowed: finite, so that 0 times it is 0
# Where a Gaussian's expectation is taken, in standard deviations from its mean, and their weights:
POINTS = [0.45 * i for i in range(-12, 13)]
WEIGHTS = [math.exp(-0.5 * z * z) / sum(math.exp(-0.5 * x * x) for x in POINTS) for z in POINTS]


def categorical_sample(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Inverse CDF of the softmax distribution π.

        a = max {j: π_j > 0 and u ≥ π_0 + … + π_{j-1}}

    An action of probability 0 is never taken, nor where rounding leaves the sum of all below u.

    Args:
      logits: unnormalised log-probabilities, float [..., A].
      uniform: u in [0, 1), float32 [...].

    Returns:
      Actions, int32 [...].
    """
    probs = jnp.moveaxis(jax.nn.softmax(logits, axis=-1), -1, 0)
    uniform = uniform.astype(logits.dtype)
    action, cdf = jnp.zeros(uniform.shape, jnp.int32), jnp.zeros((), logits.dtype)
    for i, prob in enumerate(probs):
        action = jnp.where((prob > 0.0) & (uniform >= cdf), i, action)
        cdf = cdf + prob
    return action


def categorical_mode(logits: jax.Array) -> jax.Array:
    """The most probable action, the first of equals, int32 [...]."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def categorical_log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    """log π(a), float [...], of actions int32 [...]."""
    return _of_action(jax.nn.log_softmax(logits, axis=-1), action)


def categorical_entropy(logits: jax.Array) -> jax.Array:
    """-Σ π log π in nats, float [...]."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def categorical_kl(old_logits: jax.Array, logits: jax.Array) -> jax.Array:
    """KL(π_old ‖ π) in nats, float [...].

        Σ π_old ((ρ - 1) - log ρ),    ρ = π / π_old

    The ρ - 1 add up to 0, and with them no term is negative. A ρ that may be too large for a number
    is not computed: π_old ρ is π.
    """
    old_log_probs = jax.nn.log_softmax(old_logits, axis=-1)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    log_ratio, old_probs = log_probs - old_log_probs, jnp.exp(old_log_probs)
    is_large = log_ratio > 1.0
    small = jnp.where(is_large, 0.0, log_ratio)
    of_large = jnp.exp(log_probs) - old_probs * (1.0 + log_ratio)
    terms = jnp.where(is_large, of_large, old_probs * (jnp.expm1(small) - small))
    return jnp.sum(terms, axis=-1)


def clamped_log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    """log of π(a) clamped to [ε, 1 - ε], ε = 2^-23, float [...].

    Outside, the gradient is 0: an action that has become certain is never unlearned.

    Source: torch.distributions.Categorical(probs) in float32.
    """
    return _of_action(_clamped_log(jax.nn.softmax(logits, axis=-1)), action)


def clamped_entropy(logits: jax.Array) -> jax.Array:
    """-Σ π log(clamped π) in nats, float [...]."""
    probs = jax.nn.softmax(logits, axis=-1)
    return -jnp.sum(probs * _clamped_log(probs), axis=-1)


def allowed_only(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """The logits of π among the actions that are allowed: the others' probability is 0.

    log π, entropy and KL are then those of that distribution, and their slopes in the others'
    logits 0. Where nothing is allowed, all actions are equally probable.

    Args:
      logits: float [..., A].
      allowed: bool [..., A].
    """
    return jnp.where(allowed, logits, NEVER)


def several(one: Distribution, choices: tuple[int, ...]) -> Distribution:
    """Independent choices, made at once: log π, entropy and KL are sums over them.

    Args:
      one: the distribution of a single one.
      choices: each is one of how many, and has as many of the outputs [..., K]; an action, and what
        it is sampled by, is [..., len(choices)].
    """
    ends = list(itertools.accumulate(choices))[:-1]

    def parts(outputs: jax.Array) -> list[jax.Array]:
        return jnp.split(outputs, ends, axis=-1)

    def sample(outputs: jax.Array, uniform: jax.Array) -> jax.Array:
        pairs = zip(parts(outputs), jnp.moveaxis(uniform, -1, 0), strict=True)
        return jnp.stack([one.sample(*pair) for pair in pairs], axis=-1)

    def mode(outputs: jax.Array) -> jax.Array:
        return jnp.stack([one.mode(part) for part in parts(outputs)], axis=-1)

    def log_prob(outputs: jax.Array, action: jax.Array) -> jax.Array:
        pairs = zip(parts(outputs), jnp.moveaxis(action, -1, 0), strict=True)
        return reduce(add, (one.log_prob(*pair) for pair in pairs))

    def entropy(outputs: jax.Array) -> jax.Array:
        return reduce(add, map(one.entropy, parts(outputs)))

    def kl(old_outputs: jax.Array, outputs: jax.Array) -> jax.Array:
        return reduce(add, map(one.kl, parts(old_outputs), parts(outputs)))

    return Distribution(sample, mode, log_prob, entropy, kl)


def _of_action(by_action: jax.Array, action: jax.Array) -> jax.Array:
    """The entry of the action; by a mask, since the gradient of indexing would be a scatter."""
    chosen = jax.nn.one_hot(action, by_action.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(chosen, by_action, 0.0), axis=-1)


def _clamped_log(probs: jax.Array) -> jax.Array:
    low = 2.0**-23
    clamped = jnp.where(probs < low, low, jnp.where(probs > 1.0 - low, 1.0 - low, probs))
    return jnp.log(clamped)


def gaussian_sample(outputs: jax.Array, uniform: jax.Array) -> jax.Array:
    """Inverse CDF of a diagonal Gaussian: a = μ + σ √2 erf⁻¹(2u - 1).

    Args:
      outputs: μ and then log σ, float [..., 2A].
      uniform: u in [0, 1) on the grid of 2^-23, float32 [..., A]; moved by half a grid step into
        the open interval, where erf⁻¹ is finite.

    Returns:
      Actions, float [..., A], not clipped.
    """
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    centred = uniform.astype(outputs.dtype) + 2.0**-24
    epsilon = math.sqrt(2.0) * jax.scipy.special.erfinv(2.0 * centred - 1.0)
    return mean + jnp.exp(log_std) * epsilon


def gaussian_mode(outputs: jax.Array) -> jax.Array:
    """μ, float [..., A]."""
    mean, _ = jnp.split(outputs, 2, axis=-1)
    return mean


def gaussian_log_prob(outputs: jax.Array, action: jax.Array) -> jax.Array:
    """Σ_j -½ ((a_j - μ_j) / σ_j)² - log σ_j - ½ log 2π, float [...], of actions [..., A]."""
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    z = (action - mean) * jnp.exp(-log_std)
    return jnp.sum(-0.5 * z * z - log_std - 0.5 * math.log(2.0 * math.pi), axis=-1)


def gaussian_entropy(outputs: jax.Array) -> jax.Array:
    """Σ_j log σ_j + ½ log 2πe in nats, float [...]."""
    _, log_std = jnp.split(outputs, 2, axis=-1)
    return jnp.sum(log_std + 0.5 * math.log(2.0 * math.pi * math.e), axis=-1)


def gaussian_kl(old_outputs: jax.Array, outputs: jax.Array) -> jax.Array:
    """KL(π_old ‖ π) in nats, float [...].

    Σ_j ½ (σ_old² / σ² - 1) - log(σ_old / σ) + ½ ((μ - μ_old) / σ)²
    """
    old_mean, old_log_std = jnp.split(old_outputs, 2, axis=-1)
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    z, log_ratio = (mean - old_mean) * jnp.exp(-log_std), old_log_std - log_std
    return jnp.sum(0.5 * jnp.expm1(2.0 * log_ratio) - log_ratio + 0.5 * z * z, axis=-1)


def squashed_log_prob(outputs: jax.Array, action: jax.Array) -> jax.Array:
    """log of the density of tanh(a) in (-1, 1)^A, float [...], of Gaussian actions a [..., A].

        log N(a; μ, σ) - Σ_j log(1 - tanh² a_j)

    An action is kept as it was sampled: tanh is never undone. In the units of an environment, whose
    bounds are scaled to, it is less by a constant, Σ_j log of half their distance.

    Source: Haarnoja et al. 2018 (arXiv:1801.01290), appendix C.
    """
    return gaussian_log_prob(outputs, action) - jnp.sum(_log_slope(action), axis=-1)


def squashed_entropy(outputs: jax.Array) -> jax.Array:
    """That of tanh(a) in (-1, 1)^A in nats, at most A log 2, float [...].

        H(N) + Σ_j E[log(1 - tanh² a_j)]

    The expectation has no closed form. It is a sum over equidistant points, whose error vanishes
    faster than any power of their distance: below 1e-6 nats for σ ≤ 1.5, 1e-3 for σ ≤ 3; it is
    1e-2 at σ = 5 and 1e-1 at 10.

    Source: Trefethen & Weideman 2014, The exponentially convergent trapezoidal rule (SIAM Review
    56).
    """
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    std = jnp.exp(log_std)
    terms = [w * _log_slope(mean + z * std) for z, w in zip(POINTS, WEIGHTS, strict=True)]
    return gaussian_entropy(outputs) + jnp.sum(reduce(add, terms), axis=-1)


def _log_slope(x: jax.Array) -> jax.Array:
    """log(1 - tanh² x) = 2 (log 2 - |x| - log(1 + e^{-2|x|})), finite where the tanh is 1."""
    distance = jnp.abs(x)
    return 2.0 * (math.log(2.0) - distance - jnp.log1p(jnp.exp(-2.0 * distance)))


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
