"""Running statistics: what has been met so far, and observations and rewards scaled by it.

Moments are {"count", "mean", "var"}: of how many rows, and of each entry its mean and variance. A
stream in parts has, whatever the parts, the moments that it has as a whole.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxpg.core.types import Moments, RewardScale, Trajectory

EPSILON = 1e-8  # what is added to a variance
CLIP = 10.0  # standard deviations; what is more counts as so many, as in OpenAI Baselines


def of_nothing(shape: tuple[int, ...], float_type: str) -> Moments:
    """The moments before anything was met, which change no observation but beyond ±CLIP."""
    zeros = jnp.zeros(shape, float_type)
    return {"count": jnp.zeros((), float_type), "mean": zeros, "var": zeros + 1.0}


def merge(moments: Moments, x: jax.Array, valid: jax.Array) -> Moments:
    """The moments with a batch's rows among what they are of.

        w = n / (count + n),   δ = mean(x) - mean
        mean ← mean + w δ,     var ← (1 - w) var + w var(x) + w (1 - w) δ²

    of the n valid rows of x; variances have ddof 0.

    Args:
      moments: of entries [...].
      x: float [T, N, ...].
      valid: which rows count, at least one, bool [T, N].

    Raises:
      AssertionError: on tracing, if the shapes do not fit.

    Source: Chan, Golub & LeVeque 1983 (The American Statistician 37).
    """
    chex.assert_equal_shape_prefix([x, valid], 2)

    counts = jnp.broadcast_to(valid.reshape(*valid.shape, *[1] * (x.ndim - 2)), x.shape)
    count = jnp.sum(valid, dtype=x.dtype)
    mean = jnp.sum(jnp.where(counts, x, 0.0), axis=(0, 1)) / count
    least = jnp.min(jnp.where(counts, x, jnp.inf), axis=(0, 1))
    largest = jnp.max(jnp.where(counts, x, -jnp.inf), axis=(0, 1))
    mean = jnp.clip(mean, least, largest)  # of equal numbers it may be rounded to another
    centred = jnp.where(counts, x - jnp.broadcast_to(mean, x.shape), 0.0)
    var = jnp.sum(centred * centred, axis=(0, 1)) / count
    total = moments["count"] + count
    weight = count / total
    shift = mean - moments["mean"]
    within = (1.0 - weight) * moments["var"] + weight * var
    return {
        "count": total,
        "mean": moments["mean"] + weight * shift,
        "var": within + weight * (1.0 - weight) * shift * shift,
    }


def normalize_obs(moments: Moments, obs: jax.Array) -> jax.Array:
    """clip((s - mean) / √(var + EPSILON), ±CLIP), the moments a constant.

    Args:
      moments: of entries [D].
      obs: s, float [..., D].

    Returns:
      float [..., D].
    """
    mean, var = jax.lax.stop_gradient((moments["mean"], moments["var"]))
    mean, std = (jnp.broadcast_to(x, obs.shape) for x in (mean, jnp.sqrt(var + EPSILON)))
    return jnp.clip((obs - mean) / std, -CLIP, CLIP)


def scale_reward(
    scale: RewardScale,
    trajectory: Trajectory,
    *,
    gamma: float | jax.Array,
    scan: Callable = jax.lax.scan,
) -> tuple[RewardScale, Trajectory]:
    """The trajectory with clip(r / √(var + EPSILON), ±CLIP) as reward.

    var is the variance of all returns so far of all environments, this trajectory's among them.
    Nothing is subtracted: a constant less for each step would be another task.

    Args:
      scale: of the trajectories before this one.
      trajectory: with the environment's own rewards.
      gamma: discount per step, in [0, 1].

    Returns:
      The scale for the next trajectory, and this one.

    Source: VecNormalize of OpenAI Baselines; Engstrom et al. 2020 (arXiv:2005.12729), on what it
    does. gymnasium's NormalizeReward starts anew where a task ends, but a step earlier.
    """
    done = jnp.logical_or(trajectory.terminated, trajectory.truncated)
    inputs = (trajectory.reward, done, scale.returns)
    returns, following = return_so_far(*inputs, gamma=gamma, scan=scan)
    moments = merge(scale.moments, returns, trajectory.valid)
    std = jnp.sqrt(moments["var"] + EPSILON)
    reward = jnp.clip(trajectory.reward / std, -CLIP, CLIP)
    return RewardScale(following, moments), trajectory._replace(reward=reward)


def return_so_far(
    reward: jax.Array,
    done: jax.Array,
    start: jax.Array,
    *,
    gamma: float | jax.Array,
    scan: Callable = jax.lax.scan,
) -> tuple[jax.Array, jax.Array]:
    """What an episode's rewards add up to, the older ones discounted.

        R_t = r_t + γ (0 if done_{t-1} else R_{t-1})

    Args:
      reward: r_t, float [T, N].
      done: whether the episode ended at step t, bool [T, N].
      start: what is discounted in the first row, float [N].
      gamma: discount per step, in [0, 1].

    Returns:
      R_t, float [T, N], and the `start` of the rows that follow.

    Raises:
      AssertionError: on tracing, if the shapes differ or the flag is not bool.
    """
    chex.assert_equal_shape([reward, done])
    chex.assert_type(done, bool)

    def step(before, inputs):
        reward, done = inputs
        returns = reward + gamma * before
        return jnp.where(done, 0.0, returns), returns

    following, returns = scan(step, start, (reward, done))
    return returns, following
