"""init and update: one seed's training state, and one step of the algorithm.

An update has three stages: collect what the policy meets, estimate what it was worth, fit the
networks to that.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from torch_ref import noise, ring
from torch_ref.config import Config
from torch_ref.losses import masked_mean, value_loss
from torch_ref.types import (
    Algorithm,
    Batch,
    EnvSpec,
    EnvState,
    Fitted,
    Learned,
    LearnerState,
    Metrics,
    Noise,
    Ring,
    Seen,
    Trajectory,
)

# Each with optax's twin constants; the learning rate is set anew in `descend`.
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
    params = algorithm.networks.init(key_policy, key_value)
    groups = {"shared": params} if config.networks == "shared" else params
    env_state = algorithm.env.reset(noise.first_reset(key_run, config, algorithm.env.spec))
    obs, scalar = env_state.obs[0], env_state.episode_return[0]
    transition = (obs, scalar, obs, torch.zeros((), dtype=torch.bool))
    return LearnerState(
        params=params,
        opt_state={name: algorithm.optimizer(group.parameters()) for name, group in groups.items()},
        env_state=env_state,
        key=key_run,
        update=0,
        replay=ring.empty(transition, config.buffer_size) if config.replays else None,
        recent_returns=ring.empty((scalar,), RECENT_EPISODES),
    )


def update(
    config: Config, state: LearnerState, algorithm: Algorithm
) -> tuple[LearnerState, Metrics]:
    """One update: draw the noise, collect, estimate, fit.

    Args:
      config: traced fields as tensors of the working dtype.
      state: of one seed.
      algorithm: from `algorithms.build`.
    """
    state, seen = watch(config, state, algorithm)
    return state, seen.metrics


def watch(config: Config, state: LearnerState, algorithm: Algorithm) -> tuple[LearnerState, Seen]:
    """`update`, and what it met, estimated and descended on the way."""
    steps = max_steps(config, algorithm.env.spec)
    draws = noise.draw(state.key, state.update, config, algorithm.env.spec, steps)
    env_state, trajectory = collect(algorithm, state.params, state.env_state, draws)
    replay = _remember(algorithm, state.replay, trajectory)
    samples = _samples(config, replay, draws)
    learned = Learned(state.params, state.opt_state, state.update)
    learned, batch, fitted = algorithm.learn(config, algorithm, learned, trajectory, samples)
    done = torch.logical_or(trajectory.terminated, trajectory.truncated)
    finished = ((trajectory.episode_return.reshape(-1),), done.reshape(-1))
    state = LearnerState(
        params=learned.params,
        opt_state=learned.opt_state,
        env_state=env_state,
        key=state.key,
        update=state.update + 1,
        replay=replay,
        recent_returns=ring.insert(state.recent_returns, *finished),
    )
    metrics = Metrics(
        env_steps=torch.sum(trajectory.valid),
        episodes=torch.sum(done),
        return_sum=torch.sum(torch.where(done, trajectory.episode_return, 0.0)),
        **fitted.losses,
    )
    return state, Seen(trajectory, batch, fitted.gradients, metrics)


def max_steps(config: Config, spec: EnvSpec) -> int:
    """T: the most steps that an update takes in each environment."""
    return config.num_steps if config.collect == "steps" else spec.time_limit


def collect(
    algorithm: Algorithm, params: nn.ModuleDict, env_state: EnvState, draws: Noise
) -> tuple[EnvState, Trajectory]:
    """The environments' next state, and what the policy met in them."""

    def act(
        params: nn.ModuleDict, obs: torch.Tensor, uniform: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = algorithm.networks.policy(params, obs)
        action = algorithm.distribution.sample(outputs, uniform)
        return action, algorithm.distribution.log_prob(outputs, action)

    return algorithm.collect(algorithm.env, act, params, env_state, draws)


def learn(
    config: Config, algorithm: Algorithm, learned: Learned, trajectory: Trajectory, samples: Any
) -> tuple[Learned, Batch, Fitted]:
    """Estimate, then fit."""
    batch = estimate(config, algorithm, learned.params, trajectory, samples)
    learned, fitted = algorithm.fit(config, algorithm, learned, batch)
    return learned, batch, fitted


@torch.no_grad()
def estimate(
    config: Config,
    algorithm: Algorithm,
    params: nn.ModuleDict,
    trajectory: Trajectory,
    samples: Any = None,
) -> Batch:
    """What a fit learns from: Ψ and the critic's target, constants; V is 0 without a critic.

    Args:
      samples: from the ring, as in `Batch`.
    """
    value = next_value = torch.zeros_like(trajectory.reward)
    if config.critic:
        value = algorithm.networks.value(params, trajectory.obs)
        next_value = algorithm.networks.value(params, trajectory.next_obs)
    inputs = (trajectory, value, next_value)
    coefficients = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}
    valid = trajectory.valid
    return Batch(
        obs=trajectory.obs,
        action=trajectory.action,
        log_prob=trajectory.log_prob,
        valid=valid,
        advantage=torch.where(valid, algorithm.advantage(*inputs, **coefficients), 0.0),
        value=value,
        target=torch.where(valid, algorithm.value_target(*inputs, **coefficients), 0.0),
        samples=samples,
    )


def policy_objective(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """policy_loss - ent_coef · entropy, and the two apart."""
    outputs = algorithm.networks.policy(params, batch.obs)
    log_prob = algorithm.distribution.log_prob(outputs, batch.action)
    loss = algorithm.policy_loss(log_prob, batch.advantage, batch.valid)
    entropy = masked_mean(algorithm.distribution.entropy(outputs), batch.valid)
    return loss - config.ent_coef * entropy, {"policy_loss": loss, "entropy": entropy}


def value_objective(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch, sample: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """value_loss on the batch, or on a sample from the ring, whose targets follow the critic."""
    obs, target, valid = batch.obs, batch.target, batch.valid
    if config.replays:
        (obs, reward, next_obs, terminated), valid = sample
        next_value = algorithm.networks.value(params, next_obs).detach()
        target = reward + config.gamma * torch.where(terminated, 0.0, next_value)
    loss = value_loss(algorithm.networks.value(params, obs), target, valid)
    return loss, {"value_loss": loss}


def joint_objective(
    config: Config, algorithm: Algorithm, params: nn.ModuleDict, batch: Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """policy_loss + vf_coef · value_loss - ent_coef · entropy, and the three apart."""
    policy, parts = policy_objective(config, algorithm, params, batch)
    value, more = value_objective(config, algorithm, params, batch, None)
    return policy + config.vf_coef * value, {**parts, **more}


def fit_separate(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """One step of the policy, then value_steps steps of the critic (if there is one)."""
    params, opt_state = learned.params, learned.opt_state
    schedule = _schedule(config, learned.update)

    def of_policy() -> tuple:
        return policy_objective(config, algorithm, params, batch)

    rate = config.learning_rate * schedule
    step = descend(config, algorithm, rate, of_policy, params["policy"], opt_state["policy"])
    gradients = {"policy": [step.gradient]}
    zero = torch.zeros_like(step.norm)
    losses = {**step.parts, "policy_grad_norm": step.norm}
    losses |= {"value_loss": zero, "value_grad_norm": zero}
    if config.critic:
        value_rate = config.value_learning_rate * schedule

        def step_value(sample: Any) -> Descent:
            def of_value() -> tuple:
                return value_objective(config, algorithm, params, batch, sample)

            start = (params["value"], opt_state["value"])
            return descend(config, algorithm, value_rate, of_value, *start)

        samples = [None] * config.value_steps if batch.samples is None else batch.samples
        steps = [step_value(sample) for sample in samples]
        gradients["value"] = [step.gradient for step in steps]
        losses |= {"value_loss": steps[0].parts["value_loss"], "value_grad_norm": steps[0].norm}
    return learned, Fitted(losses, gradients)


def fit_shared(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """One step of everything, on the joint loss."""

    def of_all() -> tuple:
        return joint_objective(config, algorithm, learned.params, batch)

    rate = config.learning_rate * _schedule(config, learned.update)
    start = (learned.params, learned.opt_state["shared"])
    step = descend(config, algorithm, rate, of_all, *start)
    losses = {**step.parts, "policy_grad_norm": step.norm}
    losses["value_grad_norm"] = torch.zeros_like(step.norm)
    return learned, Fitted(losses, {"shared": [step.gradient]})


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


def _schedule(config: Config, update: int) -> torch.Tensor:
    """The fraction of the learning rates that this update uses."""
    index = torch.tensor(update, dtype=getattr(torch, config.float_type))
    if config.lr_schedule == "constant":
        return torch.ones_like(index)
    return 1.0 - index / config.num_updates


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
