"""init and update: one seed's training state, and one step of the algorithm.

An update has three stages: collect what the policy meets, estimate what it was worth, fit the
networks to that. What every fit is made of is here, too: the groups of parameters, their learning
rates, and `descend`, a step of an optimizer.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from torch_ref import advantages, noise, ring, statistics
from torch_ref.config import RECENT_EPISODES, Config, ConfigError, check_built_of
from torch_ref.losses import masked_mean
from torch_ref.types import (
    Algorithm,
    Batch,
    Distribution,
    EnvSpec,
    EnvState,
    Fitted,
    Learned,
    LearnerState,
    Metrics,
    Noise,
    RewardScale,
    Ring,
    Seen,
    Trajectory,
)

# Of a config and parameters; the learning rate is set anew in `descend`.
OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda c, params: torch.optim.SGD(params, lr=0.0),
    "adam": lambda c, params: torch.optim.Adam(
        params, lr=0.0, betas=(float(c.adam_b1), float(c.adam_b2)), eps=float(c.optimizer_eps)
    ),
    "rmsprop": lambda c, params: torch.optim.RMSprop(
        params, lr=0.0, alpha=0.99, eps=float(c.optimizer_eps)
    ),
}
LOSSES = ("policy_loss", "value_loss", "entropy", "policy_grad_norm", "value_grad_norm")


def init(config: Config, key: Any, algorithm: Algorithm) -> LearnerState:
    """The state before the first update.

    Args:
      config: traced fields as tensors of the working dtype.
      key: of the seed, consumed.
      algorithm: from `algorithms.build`.

    Raises:
      ConfigError: if the algorithm was built of another config; if observations are to be
        normalised, and networks of one's own do not.
    """
    check_built_of(config, algorithm.built_of)
    key_policy, key_value, key_run = noise.streams(key)
    params = algorithm.networks.init(key_policy, key_value)
    if config.normalize_obs and "obs" not in params:
        raise ConfigError(
            "normalize_obs needs networks that normalise: hand yours to networks.normalized; got "
            f"parameters of {', '.join(params)}"
        )
    draws = noise.first_reset(key_run, config, algorithm.env.spec)
    env_state = algorithm.env.reset(draws, config.env_params)
    obs, scalar = env_state.obs[0], env_state.episode_return[0]
    transition = (obs, scalar, obs, torch.zeros((), dtype=torch.bool))
    return LearnerState(
        params=params,
        opt_state={
            name: algorithm.optimizer(config, group.parameters())
            for name, group in groups(config, params).items()
        },
        env_state=env_state,
        key=key_run,
        update=0,
        replay=ring.empty(transition, config.buffer_size) if config.replays else None,
        recent_returns=ring.empty((scalar,), RECENT_EPISODES),
        reward_scale=_first_scale(config),
        fit_state=algorithm.init_fit(config, params),
    )


def update(
    config: Config, state: LearnerState, algorithm: Algorithm
) -> tuple[LearnerState, Metrics]:
    """One update: draw the noise, collect, estimate, fit; all with the moments of observations
    that it began with. What `init` took from the config is in the state, and stays as it is there:
    env_params (`state.env_state.env_params`) and kl_coef (`state.fit_state`).

    Args:
      config: traced fields as tensors of the working dtype.
      state: of one seed.
      algorithm: from `algorithms.build`.

    Raises:
      ConfigError: if the algorithm was built of another config.
    """
    state, seen = watch(config, state, algorithm)
    return state, seen.metrics


def watch(config: Config, state: LearnerState, algorithm: Algorithm) -> tuple[LearnerState, Seen]:
    """`update`, and what it met, estimated and descended on the way."""
    check_built_of(config, algorithm.built_of)
    steps = max_steps(config, algorithm.env.spec)
    draws = noise.draw(state.key, state.update, config, algorithm.env.spec, steps)
    env_state, met = collect(algorithm, state.params, state.env_state, draws)
    reward_scale, trajectory = state.reward_scale, met
    if config.normalize_reward:
        reward_scale, trajectory = algorithm.scale_reward(reward_scale, met, gamma=config.gamma)
        reward_scale = algorithm.rounded(reward_scale)
    replay = _remember(algorithm, state.replay, trajectory)
    samples = _samples(config, replay, draws)
    learned = Learned(state.params, state.opt_state, state.update, state.fit_state)
    inputs = (learned, trajectory, samples, draws.order)
    learned, batch, fitted = algorithm.learn(config, algorithm, *inputs)
    params = learned.params
    if config.normalize_obs:
        moments = statistics.merge(params["obs"], met.obs, met.valid)
        for name, x in algorithm.rounded(moments).items():
            params["obs"][name].copy_(x)
    done = torch.logical_or(trajectory.terminated, trajectory.truncated)
    returns, ended = (_in_order(config, x) for x in (trajectory.episode_return, done))
    state = LearnerState(
        params=params,
        opt_state=learned.opt_state,
        env_state=env_state,
        key=state.key,
        update=state.update + 1,
        replay=replay,
        recent_returns=ring.insert(state.recent_returns, (returns,), ended),
        reward_scale=reward_scale,
        fit_state=learned.fit_state,
    )
    metrics = Metrics(
        env_steps=torch.sum(trajectory.valid),
        episodes=torch.sum(done),
        return_sum=torch.sum(torch.where(done, trajectory.episode_return, 0.0)),
        **fitted.losses,
    )
    return state, Seen(met, batch, fitted.gradients, metrics)


def _in_order(config: Config, by_step: torch.Tensor) -> torch.Tensor:
    """Of every step, [T N], as they were taken; whole episodes one after another: those of an
    update begin together, so that the longest would be its last."""
    return (by_step.T if config.collect == "episodes" else by_step).reshape(-1)


def max_steps(config: Config, spec: EnvSpec) -> int:
    """T: the most steps that an update takes in each environment."""
    return config.num_steps if config.collect == "steps" else spec.time_limit


def collect(
    algorithm: Algorithm, params: nn.ModuleDict, env_state: EnvState, draws: Noise
) -> tuple[EnvState, Trajectory]:
    """The environments' next state, and what the policy met in them."""
    acting = partial(act, algorithm.networks.policy, algorithm.distribution)
    return algorithm.collect(algorithm.env, acting, params, env_state, draws)


def act(
    policy: Callable,
    distribution: Distribution,
    params: nn.ModuleDict,
    obs: torch.Tensor,
    uniform: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Actions [N, ...] that the policy draws where it sees obs [N, D], and their log π, [N]."""
    outputs = policy(params, obs)
    action = distribution.sample(outputs, uniform)
    return action, distribution.log_prob(outputs, action)


def learn(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    trajectory: Trajectory,
    samples: Any,
    order: np.ndarray | None,
) -> tuple[Learned, Batch, Fitted]:
    """Estimate, then fit.

    Raises:
      ConfigError: as of `estimate`; or if the fit reports other metrics than its config says.
    """
    batch = estimate(config, algorithm, learned.params, trajectory)
    batch = batch._replace(samples=samples, order=order)
    learned, fitted = algorithm.fit(config, algorithm, learned, batch)
    return learned, batch, fitted._replace(losses=checked_losses(config, fitted.losses))


@torch.no_grad()
def estimate(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, trajectory: Trajectory
) -> Batch:
    """What a fit learns from: Ψ and the critic's target, constants; V is 0 without a critic.

    Raises:
      ConfigError: if a part does not give a number for each step.
    """
    valid = trajectory.valid
    value = next_value = torch.zeros_like(trajectory.reward)
    if config.critic:
        value = algorithm.networks.value(params, trajectory.obs)
        next_value = algorithm.networks.value(params, trajectory.next_obs)
    inputs = (trajectory, checked_by_step("networks.value", value, valid), next_value)
    coefficients = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}
    advantage = checked_by_step("advantage", algorithm.advantage(*inputs, **coefficients), valid)
    if config.normalize_advantage and config.normalize_over == "batch":
        advantage = advantages.normalize(advantage, valid)
    target = checked_by_step("value_target", algorithm.value_target(*inputs, **coefficients), valid)
    return Batch(
        obs=trajectory.obs,
        action=trajectory.action,
        log_prob=trajectory.log_prob,
        valid=valid,
        advantage=torch.where(valid, advantage, 0.0),
        value=value,
        target=torch.where(valid, target, 0.0),
    )


def checked_losses(config: Config, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a fit reports, if that is what its config says: all who read metrics go by it."""
    wanted = (*LOSSES, *config.reports)
    if losses.keys() != {*wanted}:
        missing = ", ".join(name for name in wanted if name not in losses)
        unknown = ", ".join(name for name in losses if name not in wanted)
        raise ConfigError(
            f"with fit={config.fit!r} the losses must be {', '.join(wanted)}; "
            f"missing: {missing or 'none'}; unknown: {unknown or 'none'}"
        )
    return losses


def checked_by_step(part: str, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """What a part gives, if that is a number for each step: it would be broadcast in silence."""
    if x.shape != valid.shape:
        raise ConfigError(f"{part} must give [T, N], {tuple(valid.shape)}; got {tuple(x.shape)}")
    return x


def regularized(
    config: Config, algorithm: Algorithm, outputs: torch.Tensor, score: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """policy_loss - ent_coef · entropy, and the two apart.

    Args:
      outputs: of the policy network, [T, N, K].
      score: what Ψ weighs, log π(a|s) or what a fit has in its place, [T, N].
    """
    loss = algorithm.policy_loss(score, batch.advantage, batch.valid)
    entropy = masked_mean(algorithm.distribution.entropy(outputs), batch.valid)
    return loss - config.ent_coef * entropy, {"policy_loss": loss, "entropy": entropy}


def log_ratio(algorithm: Algorithm, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """log ρ, ρ = π(a|s) / π_old(a|s), [T, N]; 0 on padding, where it may be anything."""
    log_prob = algorithm.distribution.log_prob(outputs, batch.action)
    return torch.where(batch.valid, log_prob - batch.log_prob, 0.0)


def groups(config: Config, params: nn.ModuleDict) -> dict[str, Any]:
    """The parameters by optimizer; a natural gradient needs none."""
    params, _ = apart(config, params)
    if config.joint:
        return {"joint": params}
    return {name: group for name, group in params.items() if name != "policy" or not config.natural}


def apart(config: Config, params: nn.ModuleDict) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """The parameters that are learned, and the others: the moments of observations."""
    if not config.normalize_obs:
        return params, nn.ModuleDict()
    learned = {name: group for name, group in params.items() if name != "obs"}
    return nn.ModuleDict(learned), nn.ModuleDict({"obs": params["obs"]})


def check_groups(names: Iterable[str]) -> None:
    """Raise ConfigError if parameters are in a group that no loss is of: they would stay as they
    are."""
    others = sorted({*names} - {"joint", "policy", "value"})
    if others:
        raise ConfigError(
            "parameters are of 'policy' and 'value', which have a loss each, and nothing would "
            f"train those of {', '.join(others)}: joint_loss=True trains all of them"
        )


def rates(config: Config, update: int) -> dict[str, torch.Tensor]:
    """The learning rates of an update, by optimizer; a linear schedule is 0 beyond the budget."""
    index = torch.tensor(update, dtype=getattr(torch, config.float_type))
    schedule = torch.ones_like(index)
    if config.lr_schedule == "linear":
        spent = index / config.num_updates
        schedule = torch.clamp(1.0 - spent, min=0.0)
    rate, value_rate = config.learning_rate * schedule, config.value_learning_rate * schedule
    return {"joint": rate, "policy": rate, "value": value_rate}


class Descent(NamedTuple):
    """What one step of an optimizer was taken on."""

    parts: dict[str, torch.Tensor]  # of the objective, by name
    gradient: dict[str, torch.Tensor]  # as the optimizer was given it: clipped
    norm: torch.Tensor  # before clipping


def descend(
    config: Config,
    algorithm: Algorithm,
    rate: torch.Tensor,
    objective: Callable,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Descent:
    """Differentiate, clip, step the optimizer, move by -rate times its direction; in place.

    torch's clip_grad_norm_ would add 1e-6 to the norm; optax, and so this, does not.

    Args:
      rate: the learning rate, a scalar.
      objective: () -> (a scalar, its parts by name), of the module's parameters.
      module: whose parameters these are.
      optimizer: of the module.

    Returns:
      What the step was taken on.
    """
    optimizer.zero_grad()
    loss, parts = objective()
    loss.backward()
    params = {name: param for name, param in module.named_parameters() if param.grad is not None}
    gradient = {name: param.grad for name, param in params.items() if param.grad is not None}
    norm = global_norm(gradient.values())
    with torch.no_grad():
        if config.max_grad_norm is not None and not norm < config.max_grad_norm:
            for part in gradient.values():
                part.copy_(part / norm * config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.step()
        for param in params.values():
            param.copy_(algorithm.rounded(param))
    given = {name: part.clone() for name, part in gradient.items()}
    return Descent({name: part.detach() for name, part in parts.items()}, given, norm)


def global_norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """√ Σ g² over all leaves."""
    return torch.stack([(gradient * gradient).sum() for gradient in gradients]).sum().sqrt()


def _first_scale(config: Config) -> RewardScale | None:
    """What rewards are scaled by before any was met."""
    if not config.normalize_reward:
        return None
    moments = statistics.of_nothing((), config.float_type)
    return RewardScale(moments["mean"].new_zeros(config.num_envs), moments)


def _remember(algorithm: Algorithm, replay: Ring | None, trajectory: Trajectory) -> Ring | None:
    """The ring with the trajectory's transitions in it."""
    if replay is None:
        return None
    rows = algorithm.remember(trajectory)
    return ring.insert(replay, tuple(x.flatten(0, 1) for x in rows), trajectory.valid.flatten())


def _samples(config: Config, replay: Ring | None, draws: Noise) -> Any:
    """One sample from the ring for each step of the critic."""
    if replay is None or draws.replay is None:
        return None
    return [ring.sample(replay, bits, config.batch_size) for bits in draws.replay]
