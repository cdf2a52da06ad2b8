"""An algorithm: what to collect, an estimator, a policy loss, a fit; chosen by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from torch_ref import (
    advantages,
    distributions,
    env,
    gradient,
    learner,
    losses,
    natural,
    networks,
    penalty,
    ppo,
    rollout,
    statistics,
    wrappers,
)
from torch_ref.arithmetic import grid_distribution, grid_env, round_floats
from torch_ref.config import BUILT_OF, Config, ConfigError
from torch_ref.types import Algorithm, Distribution, EnvSpec, Trajectory


def as_it_is(x: Any) -> Any:
    """What is done to something where nothing is to be done."""
    return x


def build(config: Config, round_floats: Callable = round_floats) -> Algorithm:
    """The algorithm that a config names.

    Args:
      config: validated.
      round_floats: to the grid; takes how many bits of mantissa are left.

    Raises:
      ConfigError: if the environment is unknown or not supported.
    """
    env_ = env.make(
        config.env,
        float_type=config.float_type,
        max_episode_steps=config.max_episode_steps,
        env_params=config.env_params,
        squash=config.squash,
    )
    if config.time_limit == "terminates":
        env_ = wrappers.terminate_at_limit(env_)
    if config.frame_stack > 1:
        env_ = wrappers.stack_frames(env_, config.frame_stack)
    distribution = _distribution(config, env_.spec)
    on_grid = config.grid_bits is not None
    rounded = partial(round_floats, mantissa_bits=config.grid_bits)
    return Algorithm(
        env=grid_env(env_, rounded) if on_grid else env_,
        networks=networks.make(config, env_.spec),
        distribution=grid_distribution(distribution, rounded) if on_grid else distribution,
        collect=COLLECT[config.collect],
        advantage=make_advantage(config),
        value_target=VALUE_TARGETS[config.value_target],
        policy_loss=POLICY_LOSSES[config.reduction],
        scale_reward=statistics.scale_reward,
        remember=REMEMBER[config.value_data],
        fit=FITS[config.fit],
        init_fit=FIT_STATES.get(config.fit, stateless),
        optimizer=learner.OPTIMIZERS[config.optimizer],
        rounded=rounded if on_grid else as_it_is,
        learn=learner.learn,
        built_of=tuple((name, getattr(config, name)) for name in BUILT_OF),
    )


def stateless(config: Config, params: nn.ModuleDict) -> None:
    """What most fits start from: nothing."""


def _distribution(config: Config, spec: EnvSpec) -> Distribution:
    if spec.discrete:
        of_continuous = {
            "squash": config.squash,
            "sigma='state'": config.sigma == "state",
            "log_std_init": config.log_std_init,
        }
        for name, given in of_continuous.items():
            if given:
                raise ConfigError(f"{name} needs continuous actions; {config.env} has none")
        one = CATEGORICALS[config.log_prob]
        return distributions.several(one, spec.choices) if spec.choices else one
    if config.log_prob == "clamped":
        raise ConfigError(f"log_prob='clamped' needs discrete actions; {config.env} has none")
    return distributions.squashed if config.squash else distributions.gaussian


def make_advantage(config: Config) -> Callable[..., torch.Tensor]:
    """Ψ of a trajectory, as the config's estimator, baseline and discounting define it.

    Returns:
      (trajectory, value [T, N], next_value [T, N], *, gamma, gae_lambda) -> Ψ [T, N].
    """

    def advantage(
        trajectory: Trajectory,
        value: torch.Tensor,
        next_value: torch.Tensor,
        *,
        gamma: torch.Tensor,
        gae_lambda: torch.Tensor,
    ) -> torch.Tensor:
        estimator = ESTIMATORS[config.estimator]
        weight = advantages.discount_from_start(trajectory.time, gamma=gamma)
        baseline = value
        if config.estimator == "total_return":
            baseline = weight * value  # R(τ) counts from the episode's start, and so must V
        if config.baseline == "broadcast_value":
            baseline = torch.zeros_like(value)  # subtracted below
        coefficients = {"gamma": gamma, "gae_lambda": gae_lambda}
        psi = estimator(trajectory, baseline, next_value, **coefficients)
        if config.baseline in ("constant", "group"):
            returns = monte_carlo(trajectory, value, next_value, **coefficients)[0]
            if config.baseline == "constant":
                psi = psi - advantages.leave_one_out(returns)[None, :]
            else:
                psi = advantages.relative_to_group(psi, returns, std=config.group_std)
        if config.discounting == "absolute" and config.estimator != "total_return":
            psi = weight * psi
        if config.baseline == "broadcast_value":
            psi = advantages.broadcast_baseline(psi, value, trajectory.valid)
        return psi

    return advantage


def total_return(t: Trajectory, value, next_value, *, gamma, gae_lambda=None) -> torch.Tensor:
    """R(τ) - V; V is 0 without a critic."""
    inputs = (t.reward, next_value, t.terminated, t.truncated)
    return advantages.total_return(*inputs, gamma=gamma) - value


def reward_to_go(t: Trajectory, value, next_value, *, gamma, gae_lambda=None) -> torch.Tensor:
    """G_t - V(s_t); V is 0 without a critic."""
    return monte_carlo(t, value, next_value, gamma=gamma) - value


def td_error(t: Trajectory, value, next_value, *, gamma, gae_lambda=None) -> torch.Tensor:
    """r_t + γ V(s_{t+1}) - V(s_t)."""
    return advantages.td_error(t.reward, value, next_value, t.terminated, gamma=gamma)


def gae(t: Trajectory, value, next_value, *, gamma, gae_lambda) -> torch.Tensor:
    """GAE(γ, λ)."""
    inputs = (t.reward, value, next_value, t.terminated, t.truncated)
    return advantages.gae(*inputs, gamma=gamma, gae_lambda=gae_lambda)


def monte_carlo(t: Trajectory, value, next_value, *, gamma, gae_lambda=None) -> torch.Tensor:
    """G_t, bootstrapped where the view was cut."""
    inputs = (t.reward, next_value, t.terminated, t.truncated)
    return advantages.discounted_return(*inputs, gamma=gamma)


def td0(t: Trajectory, value, next_value, *, gamma, gae_lambda=None) -> torch.Tensor:
    """r_t + γ V(s_{t+1})."""
    return td_error(t, value, next_value, gamma=gamma) + value


def lambda_return(t: Trajectory, value, next_value, *, gamma, gae_lambda) -> torch.Tensor:
    """GAE(γ, λ) + V(s_t)."""
    return gae(t, value, next_value, gamma=gamma, gae_lambda=gae_lambda) + value


def transitions(t: Trajectory) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(s, r, s', whether the task ended): V(s) is fitted to r + γ V(s')."""
    return t.obs, t.reward, t.next_obs, t.terminated


def successors(t: Trajectory) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(s', r, s', False): V(s') is fitted to r + γ V(s'), which drives it to r / (1 - γ)."""
    return t.next_obs, t.reward, t.next_obs, torch.zeros_like(t.terminated)


COLLECT = {"steps": rollout.collect_steps, "episodes": rollout.collect_episodes}
ESTIMATORS = {
    "total_return": total_return,
    "reward_to_go": reward_to_go,
    "td_error": td_error,
    "gae": gae,
}
VALUE_TARGETS = {"monte_carlo": monte_carlo, "td0": td0, "lambda_return": lambda_return}
POLICY_LOSSES = {
    "steps": losses.policy_loss_steps,
    "trajectories": losses.policy_loss_trajectories,
    "trajectory_means": losses.policy_loss_trajectory_means,
}
FITS: dict[str, Callable] = {
    "gradient": gradient.fit,
    "npg": natural.fit_npg,
    "trpo": natural.fit_trpo,
    "ppo": ppo.fit,
    "ppo_penalty": penalty.fit,
}
FIT_STATES: dict[str, Callable] = {"ppo_penalty": penalty.init}
REMEMBER = {"batch": transitions, "replay": transitions, "replay_successor": successors}
CATEGORICALS = {"exact": distributions.categorical, "clamped": distributions.clamped}
