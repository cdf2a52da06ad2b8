"""Running statistics: what has been met so far, and observations and rewards scaled by it.

Moments are {"count", "mean", "var"}: of how many rows, and of each entry its mean and variance. A
stream in parts has, whatever the parts, the moments that it has as a whole.
"""

import torch

from torch_ref.types import Moments, RewardScale, Trajectory

EPSILON = 1e-8  # what is added to a variance
CLIP = 10.0  # standard deviations; what is more counts as so many, as in OpenAI Baselines


def of_nothing(shape: tuple[int, ...], float_type: str) -> Moments:
    """The moments before anything was met, which change no observation but beyond ±CLIP."""
    zeros = torch.zeros(shape, dtype=getattr(torch, float_type))
    return {"count": zeros.new_zeros(()), "mean": zeros, "var": zeros + 1.0}


def merge(moments: Moments, x: torch.Tensor, valid: torch.Tensor) -> Moments:
    """The moments with a batch's rows among what they are of.

        w = n / (count + n),   δ = mean(x) - mean
        mean ← mean + w δ,     var ← (1 - w) var + w var(x) + w (1 - w) δ²

    of the n valid rows of x; variances have ddof 0.

    Args:
      moments: of entries [...].
      x: float [T, N, ...].
      valid: which rows count, at least one, bool [T, N].

    Raises:
      AssertionError: if the shapes do not fit.

    Source: Chan, Golub & LeVeque 1983 (The American Statistician 37).
    """
    assert x.shape[:2] == valid.shape

    rows = x[valid]
    count = torch.sum(valid).to(x.dtype)
    mean = rows.sum(0) / count
    least, largest = rows.amin(0), rows.amax(0)
    mean = torch.clamp(mean, least, largest)  # of equal numbers it may be rounded to another
    centred = rows - mean
    var = (centred * centred).sum(0) / count
    total = moments["count"] + count
    weight = count / total
    shift = mean - moments["mean"]
    within = (1.0 - weight) * moments["var"] + weight * var
    return {
        "count": total,
        "mean": moments["mean"] + weight * shift,
        "var": within + weight * (1.0 - weight) * shift * shift,
    }


def normalize_obs(moments: Moments, obs: torch.Tensor) -> torch.Tensor:
    """clip((s - mean) / √(var + EPSILON), ±CLIP), the moments a constant.

    Args:
      moments: of entries [D].
      obs: s, float [..., D].

    Returns:
      float [..., D].
    """
    std = torch.sqrt(moments["var"] + EPSILON)
    return torch.clip((obs - moments["mean"]) / std, -CLIP, CLIP)


def scale_reward(
    scale: RewardScale, trajectory: Trajectory, *, gamma: float | torch.Tensor
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
    done = torch.logical_or(trajectory.terminated, trajectory.truncated)
    inputs = (trajectory.reward, done, scale.returns)
    returns, following = return_so_far(*inputs, gamma=gamma)
    moments = merge(scale.moments, returns, trajectory.valid)
    std = torch.sqrt(moments["var"] + EPSILON)
    reward = torch.clip(trajectory.reward / std, -CLIP, CLIP)
    return RewardScale(following, moments), trajectory._replace(reward=reward)


def return_so_far(
    reward: torch.Tensor, done: torch.Tensor, start: torch.Tensor, *, gamma: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
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
      AssertionError: if the shapes differ or the flag is not bool.
    """
    assert reward.shape == done.shape
    assert done.dtype == torch.bool

    rows, before = [], start
    for now, ended in zip(reward, done, strict=True):
        rows.append(now + gamma * before)
        before = torch.where(ended, 0.0, rows[-1])
    return torch.stack(rows), before
