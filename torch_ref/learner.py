"""init and update: one seed's training state, and one step of the algorithm."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from torch_ref import noise
from torch_ref import ring as replay
from torch_ref.arithmetic import round_floats
from torch_ref.config import Config
from torch_ref.losses import masked_mean, value_loss
from torch_ref.types import Algorithm, EnvSpec, LearnerState, Metrics, Trajectory

# Each with optax's twin constants; the learning rate is set anew in `_descend`.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.0),
    "adam": lambda params: torch.optim.Adam(params, lr=0.0, betas=(0.9, 0.999), eps=1e-8),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.0, alpha=0.99, eps=1e-8),
}
RECENT_EPISODES = 100  # episodes that final_return is the mean of


def init(config: Config, key: Any, algorithm: Algorithm) -> LearnerState:
    """The state before the first update.

    Args:
      config: traced fields as tensors of the working dtype.
      key: of the seed, consumed.
      algorithm: from `algorithms.build`.
    """
    key_policy, key_value, key_run = noise.streams(key)
    spec, optimizer = algorithm.env.spec, OPTIMIZERS[config.optimizer]
    params = algorithm.networks.init(key_policy, key_value)
    groups = {"shared": params} if config.networks == "shared" else params
    env_state = algorithm.env.reset(noise.first_reset(key_run, config, spec))
    obs, scalar = env_state.obs[0], env_state.episode_return[0]
    transition = (obs, scalar, obs, torch.zeros((), dtype=torch.bool))
    return LearnerState(
        params=params,
        opt_state={name: optimizer(group.parameters()) for name, group in groups.items()},
        env_state=env_state,
        key=key_run,
        update=0,
        replay=replay.empty(transition, config.buffer_size) if config.replays else None,
        recent_returns=replay.empty((scalar,), RECENT_EPISODES),
    )


def update(
    config: Config, state: LearnerState, algorithm: Algorithm
) -> tuple[LearnerState, Metrics]:
    """One update: draw the noise, collect, estimate, step the optimizers.

    Args:
      config: traced fields as tensors of the working dtype.
      state: of one seed.
      algorithm: from `algorithms.build`.
    """
    steps = max_steps(config, algorithm.env.spec)
    draws = noise.draw(state.key, state.update, config, algorithm.env.spec, steps)

    def act(params: nn.ModuleDict, obs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return algorithm.distribution.sample(algorithm.networks.policy(params, obs), uniform)

    env_state, trajectory = algorithm.collect(
        algorithm.env, act, state.params, state.env_state, draws
    )
    done = torch.logical_or(trajectory.terminated, trajectory.truncated)
    finished = ((trajectory.episode_return.reshape(-1),), done.reshape(-1))
    state = state._replace(
        env_state=env_state,
        replay=_remember(algorithm, state.replay, trajectory),
        recent_returns=replay.insert(state.recent_returns, *finished),
    )
    losses = _learn(config, algorithm, state, trajectory, draws.replay)
    metrics = Metrics(
        env_steps=torch.sum(trajectory.valid),
        episodes=torch.sum(done),
        return_sum=torch.sum(torch.where(done, trajectory.episode_return, 0.0)),
        **losses,
    )
    return state._replace(update=state.update + 1), metrics


def max_steps(config: Config, spec: EnvSpec) -> int:
    """T: the most steps that an update takes in each environment."""
    return config.num_steps if config.collect == "steps" else spec.time_limit


@torch.no_grad()
def estimate(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, trajectory: Trajectory
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ψ and the critic's target, constants, 0 on padding, [T, N] each; V is 0 without a critic."""
    value = next_value = torch.zeros_like(trajectory.reward)
    if config.critic:
        value = algorithm.networks.value(params, trajectory.obs)
        next_value = algorithm.networks.value(params, trajectory.next_obs)
    inputs = (trajectory, value, next_value)
    coefficients = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}
    advantage = algorithm.advantage(*inputs, **coefficients)
    target = algorithm.value_target(*inputs, **coefficients)
    valid = trajectory.valid
    return torch.where(valid, advantage, 0.0), torch.where(valid, target, 0.0)


def policy_objective(
    config: Config,
    algorithm: Algorithm,
    params: nn.ModuleDict,
    trajectory: Trajectory,
    advantage: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """policy_loss - ent_coef · entropy, and the two apart."""
    outputs = algorithm.networks.policy(params, trajectory.obs)
    log_prob = algorithm.distribution.log_prob(outputs, trajectory.action)
    loss = algorithm.policy_loss(log_prob, advantage, trajectory.valid)
    entropy = masked_mean(algorithm.distribution.entropy(outputs), trajectory.valid)
    parts = {"policy_loss": loss.detach(), "entropy": entropy.detach()}
    return loss - config.ent_coef * entropy, parts


def joint_objective(
    config: Config,
    algorithm: Algorithm,
    params: nn.ModuleDict,
    trajectory: Trajectory,
    advantage: torch.Tensor,
    target: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """policy_loss + vf_coef · value_loss - ent_coef · entropy, and the three apart."""
    objective, parts = policy_objective(config, algorithm, params, trajectory, advantage)
    value = algorithm.networks.value(params, trajectory.obs)
    loss = value_loss(value, target, trajectory.valid)
    return objective + config.vf_coef * loss, {**parts, "value_loss": loss.detach()}


def _learn(
    config: Config,
    algorithm: Algorithm,
    state: LearnerState,
    trajectory: Trajectory,
    replay_bits: Any,
) -> dict[str, torch.Tensor]:
    """Estimate, then step the optimizers."""
    fit = _fit_shared if config.networks == "shared" else _fit_separate
    samples = None
    if state.replay is not None:
        samples = [replay.sample(state.replay, bits, config.batch_size) for bits in replay_bits]
    advantage, target = estimate(config, algorithm, state.params, trajectory)
    return fit(config, algorithm, state, trajectory, advantage, target, samples)


def _fit_separate(
    config: Config,
    algorithm: Algorithm,
    state: LearnerState,
    trajectory: Trajectory,
    advantage: torch.Tensor,
    target: torch.Tensor,
    samples: Any,
) -> dict[str, torch.Tensor]:
    """One step of the policy, then value_steps steps of the critic (if there is one)."""
    params, opt_state = state.params, state.opt_state
    objective, losses = policy_objective(config, algorithm, params, trajectory, advantage)
    rate = config.learning_rate * _schedule(config, state.update)
    losses["policy_grad_norm"] = _descend(
        config, rate, objective, opt_state["policy"], params["policy"]
    )
    zero = torch.zeros((), dtype=objective.dtype)
    losses |= {"value_loss": zero, "value_grad_norm": zero}
    if config.critic:
        batch = _value_batch(config, algorithm, trajectory, target)
        rate = config.value_learning_rate * _schedule(config, state.update)
        history = []
        for sample in [None] * config.value_steps if samples is None else samples:
            obs, goal, valid = batch(params, sample)
            loss = value_loss(algorithm.networks.value(params, obs), goal, valid)
            norm = _descend(config, rate, loss, opt_state["value"], params["value"])
            history.append({"value_loss": loss.detach(), "value_grad_norm": norm})
        losses |= history[0]
    return losses


def _fit_shared(
    config: Config,
    algorithm: Algorithm,
    state: LearnerState,
    trajectory: Trajectory,
    advantage: torch.Tensor,
    target: torch.Tensor,
    samples: Any,
) -> dict[str, torch.Tensor]:
    """One step of everything, on the joint loss."""
    objective, losses = joint_objective(
        config, algorithm, state.params, trajectory, advantage, target
    )
    rate = config.learning_rate * _schedule(config, state.update)
    losses["policy_grad_norm"] = _descend(
        config, rate, objective, state.opt_state["shared"], state.params
    )
    losses["value_grad_norm"] = torch.zeros((), dtype=objective.dtype)
    return losses


def _value_batch(
    config: Config, algorithm: Algorithm, trajectory: Trajectory, target: torch.Tensor
) -> Callable[..., tuple]:
    """What a value step is fitted to: (params, sample) -> obs, target, valid."""

    def from_batch(params: nn.ModuleDict, sample: None) -> tuple:
        return trajectory.obs, target, trajectory.valid

    @torch.no_grad()
    def from_replay(params: nn.ModuleDict, sample: tuple) -> tuple:
        (obs, reward, next_obs, terminated), valid = sample
        next_value = algorithm.networks.value(params, next_obs)
        return obs, reward + config.gamma * torch.where(terminated, 0.0, next_value), valid

    return from_replay if config.replays else from_batch


def _descend(
    config: Config,
    rate: torch.Tensor,
    objective: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    module: nn.Module,
) -> torch.Tensor:
    """Backpropagate, clip, step the optimizer in place; returns the gradient's norm.

    torch's clip_grad_norm_ would add 1e-6 to the norm; optax, and so this, does not.
    """
    optimizer.zero_grad()
    objective.backward()
    params = list(module.parameters())
    gradients = [param.grad for param in params if param.grad is not None]
    norm = global_norm(gradients)
    with torch.no_grad():
        if config.max_grad_norm is not None and not norm < config.max_grad_norm:
            for gradient in gradients:
                gradient.copy_(gradient / norm * config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.step()
        if config.arithmetic == "float32_grid":
            for param in params:
                param.copy_(round_floats(param))
    return norm


def global_norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """√ Σ g² over all leaves."""
    return torch.stack([(gradient * gradient).sum() for gradient in gradients]).sum().sqrt()


def _schedule(config: Config, update: int) -> torch.Tensor:
    """The fraction of the learning rate that this update uses."""
    index = torch.tensor(update, dtype=getattr(torch, config.float_type))
    if config.lr_schedule == "constant":
        return torch.ones_like(index)
    return 1.0 - index / config.num_updates


def _remember(algorithm: Algorithm, ring: Any, trajectory: Trajectory) -> Any:
    if ring is None:
        return None
    rows = algorithm.remember(trajectory)
    return replay.insert(ring, tuple(x.flatten(0, 1) for x in rows), trajectory.valid.flatten())
