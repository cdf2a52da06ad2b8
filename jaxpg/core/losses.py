"""Losses: arrays in, a scalar to minimise out. Padding (not valid) has no part in them."""

import chex
import jax
import jax.numpy as jnp


def policy_loss_steps(log_prob: jax.Array, advantage: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over valid steps, -Σ_t log π(a_t|s_t) Ψ_t / (number of valid steps).

    With episodes of random length this is a ratio of two random sums: slightly biased.

    Args:
      log_prob: log π(a_t|s_t), float [T, N].
      advantage: Ψ_t, a constant, float [T, N].
      valid: bool [T, N].

    Returns:
      Scalar; its gradient is minus the policy gradient.

    Raises:
      AssertionError: on tracing, if the shapes differ.

    Source: Schulman et al. 2016 (arXiv:1506.02438), eq. 1.
    """
    chex.assert_equal_shape([log_prob, advantage, valid])
    constant = jnp.where(valid, jax.lax.stop_gradient(advantage), 0.0)
    return -masked_mean(log_prob * constant, valid)


def policy_loss_trajectories(
    log_prob: jax.Array, advantage: jax.Array, valid: jax.Array
) -> jax.Array:
    """Sum over time, mean over trajectories, -(1/N) Σ_i Σ_t log π(a_t|s_t) Ψ_t.

    The textbook estimator: of whole episodes unbiased wherever Ψ is. Of fixed steps a trajectory is
    what one environment met in them, and this T times the mean over steps. The entropy bonus is a
    mean over steps in any case, so beside this sum the same weight of it says less.

    Args and Raises: as in `policy_loss_steps`.

    Source: Williams 1992 (Machine Learning 8); Sutton et al. 1999.
    """
    chex.assert_equal_shape([log_prob, advantage, valid])
    constant = jnp.where(valid, jax.lax.stop_gradient(advantage), 0.0)
    return -jnp.sum(jnp.where(valid, log_prob * constant, 0.0)) / log_prob.shape[1]


def policy_loss_trajectory_means(
    log_prob: jax.Array, advantage: jax.Array, valid: jax.Array
) -> jax.Array:
    """Mean over time, then over trajectories, -(1/N) Σ_i (1/T_i) Σ_t log π(a_t|s_t) Ψ_t.

    A step of a long episode weighs less than one of a short episode.

    Args and Raises: as in `policy_loss_steps`; every trajectory has a valid step.

    Source: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300), eq. 3.
    """
    chex.assert_equal_shape([log_prob, advantage, valid])
    constant = jnp.where(valid, jax.lax.stop_gradient(advantage), 0.0)
    total = jnp.sum(jnp.where(valid, log_prob * constant, 0.0), axis=0)
    return -jnp.mean(total / jnp.sum(valid, axis=0, dtype=log_prob.dtype))


def value_loss(value: jax.Array, target: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over valid steps of (V(s) - target)².

    Args:
      value: V(s), float [...].
      target: a constant, float [...].
      valid: bool [...].

    Raises:
      AssertionError: on tracing, if the shapes differ.
    """
    chex.assert_equal_shape([value, target, valid])
    error = value - jax.lax.stop_gradient(target)
    return masked_mean(error * error, valid)


def clipped_value_loss(
    value: jax.Array,
    old_value: jax.Array,
    target: jax.Array,
    valid: jax.Array,
    *,
    clip_value: float,
) -> jax.Array:
    """Mean over valid steps of max((V - target)², (V_old + clip(V - V_old, ±c) - target)²).

    Args:
      value: V(s), float [...].
      old_value, target: constants, float [...].
      valid: bool [...].
      clip_value: c > 0, a scalar.

    Raises:
      AssertionError: on tracing, if the shapes differ.

    Without the ½ that it has there, as in CleanRL: the same vf_coef weighs twice as much here.

    Source: Dhariwal et al. 2017, OpenAI Baselines.
    """
    chex.assert_equal_shape([value, old_value, target, valid])
    near = old_value + jnp.clip(value - old_value, -clip_value, clip_value)
    error = jnp.maximum((value - target) ** 2, (near - target) ** 2)
    return masked_mean(error, valid)


def masked_mean(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of the valid entries."""
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.sum(valid, dtype=x.dtype)
