"""Action distributions: softmax categorical and diagonal Gaussian.

Each is a `Distribution`: functions of the policy network's outputs. Sampling maps given uniform
draws to actions by the inverse CDF, so it is a deterministic function.
"""

import math

import jax
import jax.numpy as jnp

from jaxpg.core.types import Distribution


def categorical_sample(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Inverse CDF of the softmax distribution π.

        a = Σ_{j < A-1} [u ≥ π_0 + … + π_j]

    Args:
      logits: unnormalised log-probabilities, float [..., A].
      uniform: u in [0, 1), float32 [...].

    Returns:
      Actions, int32 [...].
    """
    probs = jnp.moveaxis(jax.nn.softmax(logits, axis=-1), -1, 0)
    uniform = uniform.astype(logits.dtype)
    action, cdf = jnp.zeros(uniform.shape, jnp.int32), jnp.zeros((), logits.dtype)
    for prob in probs[:-1]:
        cdf = cdf + prob
        action = action + (uniform >= cdf).astype(jnp.int32)
    return action


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

    The ρ - 1 add up to 0, and with them no term is negative.
    """
    old = jax.nn.log_softmax(old_logits, axis=-1)
    log_ratio = jax.nn.log_softmax(logits, axis=-1) - old
    return jnp.sum(jnp.exp(old) * (jnp.expm1(log_ratio) - log_ratio), axis=-1)


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


categorical = Distribution(
    categorical_sample, categorical_log_prob, categorical_entropy, categorical_kl
)
clamped = Distribution(categorical_sample, clamped_log_prob, clamped_entropy, categorical_kl)
gaussian = Distribution(gaussian_sample, gaussian_log_prob, gaussian_entropy, gaussian_kl)
