"""Returns and advantage estimators: by how much did an action beat the policy's average?

Arrays are time-major: T steps first, then batch axes (usually N environments) that do not
affect one another. Rewards, values and advantages share one unit.
"""

import torch


def discounted_return(
    reward: torch.Tensor,
    next_value: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    *,
    gamma: float | torch.Tensor,
) -> torch.Tensor:
    """Reward-to-go, discounted from the current step.

        G_t = r_t + γ (0 if terminated_t, V(s_{t+1}) if truncated_t, else G_{t+1})

    with G_T = V(s_T), the successor of the last row: a view that was cut goes on in V. Without a
    critic V is 0 everywhere.

    Args:
      reward: r_t, float [T, ...].
      next_value: V(s_{t+1}) of the true successor, before auto-reset, float [T, ...].
      terminated, truncated: why the episode ended at step t, bool [T, ...].
      gamma: discount per step, in [0, 1].

    Returns:
      G_t, float [T, ...].

    Raises:
      AssertionError: if the shapes differ or a flag is not bool.

    Source: Sutton & Barto, 2nd ed., eq. 3.8; truncation as in Pardo et al. 2018
    (arXiv:1712.00378).
    """
    assert reward.shape == next_value.shape == terminated.shape == truncated.shape
    assert terminated.dtype == truncated.dtype == torch.bool

    returns = torch.empty_like(reward)
    following = next_value[-1]
    for t in reversed(range(reward.shape[0])):
        follow = torch.where(truncated[t], next_value[t], following)
        following = reward[t] + gamma * torch.where(terminated[t], 0.0, follow)
        returns[t] = following
    return returns


def total_return(
    reward: torch.Tensor,
    next_value: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    *,
    gamma: float | torch.Tensor,
) -> torch.Tensor:
    """R(τ) = Σ_k γ^k r_k of the whole episode, the same at each of its steps.

    Every column is one episode that starts at row 0.

    Args:
      reward, next_value, terminated, truncated, gamma: as in `discounted_return`.

    Returns:
      R(τ), float [T, ...].

    Source: Williams 1992 (Machine Learning 8).
    """
    returns = discounted_return(reward, next_value, terminated, truncated, gamma=gamma)
    return returns[0].expand_as(returns)


def td_error(
    reward: torch.Tensor,
    value: torch.Tensor,
    next_value: torch.Tensor,
    terminated: torch.Tensor,
    *,
    gamma: float | torch.Tensor,
) -> torch.Tensor:
    """δ_t = r_t + γ (1 - terminated_t) V(s_{t+1}) - V(s_t), the one-step advantage.

    Args:
      reward, value: r_t and V(s_t), float [T, ...].
      next_value: V(s_{t+1}) of the true successor, before auto-reset, float [T, ...].
      terminated: whether the task ended at step t, bool [T, ...].
      gamma: discount per step, in [0, 1].

    Returns:
      δ_t, float [T, ...].

    Raises:
      AssertionError: if the shapes differ or the flag is not bool.

    Source: Sutton & Barto, 2nd ed., eq. 13.14.
    """
    assert reward.shape == value.shape == next_value.shape == terminated.shape
    assert terminated.dtype == torch.bool

    return reward + gamma * torch.where(terminated, 0.0, next_value) - value


def gae(
    reward: torch.Tensor,
    value: torch.Tensor,
    next_value: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    *,
    gamma: float | torch.Tensor,
    gae_lambda: float | torch.Tensor,
) -> torch.Tensor:
    """Generalized advantage estimate, GAE(γ, λ).

        δ_t = r_t + γ (1 - terminated_t) V(s_{t+1}) - V(s_t)
        A_t = δ_t + γ λ (1 - done_t) A_{t+1},    done = terminated or truncated

    with A_T = 0. Termination ends the task: nothing follows, so V(s_{t+1}) is dropped. Truncation
    ends only our view of it: V(s_{t+1}) stays, but row t+1 belongs to another episode, so the
    recursion restarts.

    Args:
      reward, value, next_value, terminated, gamma: as in `td_error`.
      truncated: whether only our view ended at step t, bool [T, ...].
      gae_lambda: λ in [0, 1]; 0 gives the TD error, 1 the Monte-Carlo return (bootstrapped where
        the view was cut) minus V.

    Returns:
      A_t, float [T, ...]. The λ-return, a value target, is `advantage + value`.

    Raises:
      AssertionError: if the shapes differ or a flag is not bool.

    Source: Schulman et al. 2016 (arXiv:1506.02438), eq. 16; truncation as in Pardo et al. 2018
    (arXiv:1712.00378).
    """
    assert reward.shape == truncated.shape
    assert truncated.dtype == torch.bool

    delta = td_error(reward, value, next_value, terminated, gamma=gamma)
    done = torch.logical_or(terminated, truncated)

    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in reversed(range(delta.shape[0])):
        following = delta[t] + gamma * gae_lambda * torch.where(done[t], 0.0, following)
        advantage[t] = following
    return advantage


def leave_one_out(returns: torch.Tensor) -> torch.Tensor:
    """The average of the other trajectories' returns, b_i = Σ_{j≠i} R_j / (N - 1).

    A baseline that included R_i would scale the gradient by 1 - 1/N.

    Args:
      returns: R_i, float [N], N ≥ 2.

    Returns:
      b_i, float [N].

    Source: Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free!
    """
    assert returns.ndim == 1
    return (torch.sum(returns) - returns) / (returns.shape[0] - 1)


def relative_to_group(psi: torch.Tensor, returns: torch.Tensor, *, std: bool) -> torch.Tensor:
    """Ψ - mean(R), and with `std` divided by the standard deviation of R + 1e-8, ddof 0.

    The mean holds one's own return, which scales the gradient by 1 - 1/N. To divide by the
    deviation weights groups by how alike their returns are: another objective. Where all are one
    number, nobody did better than another, and with `std` Ψ is 0.

    Args:
      psi: Ψ, float [T, N].
      returns: R_i, float [N], N ≥ 2.

    Source: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300), eq. 3 and §4.1; Liu et al. 2025,
    Understanding R1-Zero-like training (arXiv:2503.20783), on the biases.
    """
    assert returns.ndim == 1
    mean = torch.clamp(returns.mean(), returns.min(), returns.max())  # as in `normalize`
    if not std:
        return psi - mean
    deviation = torch.sqrt(torch.mean((returns - mean) ** 2))
    return torch.where(deviation == 0.0, 0.0, (psi - mean) / (deviation + 1e-8))


def broadcast_baseline(
    returns: torch.Tensor, value: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """The weight that a baseline of shape (T, 1) gives to returns of shape (T,).

    Their difference is a (T, T) matrix, and the article's loss sums all of it:

        Σ_i Σ_t -log π(a_t|s_t) (G_t - V(s_i)) = Σ_t -log π(a_t|s_t) Ψ_t
        Ψ_t = T (G_t - Σ_i V(s_i) / T)

    Args:
      returns: G_t, float [T, N].
      value: V(s_t), float [T, N].
      valid: which steps belong to the episode, bool [T, N]; T in the formula is their number.

    Returns:
      Ψ_t, float [T, N].

    Source: Pichka 2023, Policy Gradient Algorithm's Mathematics Explained with PyTorch
    Implementation; its code, github.com/ebrahimpichka/vanilla-pg.
    """
    assert returns.shape == value.shape == valid.shape
    length = torch.sum(valid, dim=0, keepdim=True, dtype=returns.dtype)
    total_value = torch.sum(torch.where(valid, value, 0.0), dim=0, keepdim=True)
    return length * returns - total_value


def discount_from_start(time: torch.Tensor, *, gamma: torch.Tensor) -> torch.Tensor:
    """γ^t, t counted from the episode's start: what turns a relative Ψ_t into an absolute one.

    Args:
      time: t, int32 [T, ...].
      gamma: discount per step, in [0, 1], a scalar of the working dtype.

    Source: Thomas 2014, Bias in natural actor-critic algorithms (ICML), on why the discounted
    objective asks for it.
    """
    return torch.pow(gamma, time)


def normalize(advantage: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(Ψ - mean) / (standard deviation + 1e-8) over the valid steps, ddof 0.

    It is 0 where all of them are one number. Their mean, rounded, may be another; divided by what
    is then a deviation of rounding alone, that would be ±1 at every step.

    Args:
      advantage: Ψ, float [T, ...].
      valid: which steps count, bool [T, ...].

    Returns:
      float [T, ...]; steps that are not valid are 0.
    """
    assert advantage.shape == valid.shape
    count = torch.sum(valid, dtype=advantage.dtype)
    mean = torch.sum(torch.where(valid, advantage, 0.0)) / count
    mean = torch.clamp(mean, *masked_range(advantage, valid))
    centred = torch.where(valid, advantage - mean, 0.0)
    std = torch.sqrt(torch.sum(centred * centred) / count)
    return centred / (std + 1e-8)


def masked_range(x: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest of the valid entries."""
    return torch.where(valid, x, torch.inf).min(), torch.where(valid, x, -torch.inf).max()
