"""The data that flows between the modules; no code.

Letters: T steps, N environments, D observation, A actions, M rows of a ring, K outputs of the
policy network. Arrays are time-major. Floats have the working dtype, unless a line says otherwise.
Random keys and bits are numpy uint32, a key [2]; all else is torch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

Moments = dict[str, torch.Tensor]  # "count", "mean" and "var" of what has been met


class EnvSpec(NamedTuple):
    """What the rest needs to know of an environment."""

    obs_size: int  # D
    num_actions: int  # A: how many actions, or how many numbers one continuous action has
    discrete: bool
    time_limit: int  # steps after which an episode is truncated
    min_episode_steps: int  # no episode ends sooner, so resets are drawn once per so many steps
    reset_uniforms: int  # uniforms that a reset consumes; 0: it consumes a key
    choices: tuple[int, ...] = ()  # of several made at once how many each is one of; they add to A
    masked: bool = False  # whether an observation ends with A numbers, 1 where an action is allowed
    # height, width and channels of an observation that is an image, whose [D] are row by row and
    # pixel by pixel; () of another
    image: tuple[int, ...] = ()

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of one action, and of the uniforms that it is sampled by."""
        if self.discrete:
            return (len(self.choices),) if self.choices else ()
        return (self.num_actions,)


class EnvState(NamedTuple):
    """N environments between two steps."""

    inner: Any  # the environment's own state, leaves [N, ...]
    obs: torch.Tensor  # [N, D]
    time: torch.Tensor  # int32 [N], steps since the episode's start
    episode_return: torch.Tensor  # [N], undiscounted, since the episode's start
    # Those of Config.env_params that are traced, by name [N]; nothing changes them.
    env_params: dict[str, Any] = {}  # noqa: RUF012


class Env(NamedTuple):
    """N environments as functions; pure ones, but for `env.gymnasium_env`."""

    spec: EnvSpec
    reset: Callable[..., EnvState]  # (reset noise [N, ...], Config.env_params) -> state
    step: Callable[..., tuple]  # (key [N], state, action) -> state, reward, terminated, truncated
    restart: Callable[..., EnvState]  # (state, done [N], reset noise [N, ...]) -> state


class Noise(NamedTuple):
    """All randomness of one update."""

    reset: Any  # float32 [R, N, reset_uniforms], or keys [R, N, 2]; R blocks of steps
    action: torch.Tensor  # float32 [T, N, *action_shape]
    env: np.ndarray  # keys [T, N, 2]
    replay: np.ndarray | None  # uint32 [value_steps, ROUNDS], of samples from the ring
    order: np.ndarray | None = None  # uint32 [epochs, ROUNDS], of the batch in each epoch


class Trajectory(NamedTuple):
    """What the policy met; rows that are not valid are zero."""

    obs: torch.Tensor  # [T, N, D]
    action: torch.Tensor  # int64 [T, N] or [T, N, choices]; or [T, N, A], before it is squashed
    log_prob: torch.Tensor  # [T, N], log π(a|s) of the policy that acted
    reward: torch.Tensor  # [T, N]
    next_obs: torch.Tensor  # [T, N, D], the true successor, before any reset
    terminated: torch.Tensor  # bool [T, N], the task ended here
    truncated: torch.Tensor  # bool [T, N], only our view of it ended here
    valid: torch.Tensor  # bool [T, N], False on the padding after an episode's end
    time: torch.Tensor  # int32 [T, N], steps since the episode's start
    episode_return: torch.Tensor  # [T, N], rewards since the episode's start, this one included


class Batch(NamedTuple):
    """What a fit learns from, constants; on padding Ψ and the target are 0."""

    obs: torch.Tensor  # [T, N, D]
    action: torch.Tensor  # as in Trajectory
    log_prob: torch.Tensor  # [T, N], of the policy that acted
    valid: torch.Tensor  # bool [T, N]
    advantage: torch.Tensor  # [T, N], Ψ
    value: torch.Tensor  # [T, N], V(s) before the fit; 0 without a critic
    target: torch.Tensor  # [T, N], what the critic is fitted to
    # From the ring, a list of ((obs, reward, next_obs, terminated), valid), one for each of
    # value_steps, tensors [batch_size, ...]; None without one:
    samples: Any = None
    order: np.ndarray | None = None  # uint32 [epochs, ROUNDS], as in Noise


class Ring(NamedTuple):
    """The last M rows of a stream."""

    rows: Any  # leaves [M, ...]
    next_slot: int  # where the next row goes
    filled: int  # slots that hold a row


class RewardScale(NamedTuple):
    """What rewards are divided by, and what that is computed from."""

    returns: torch.Tensor  # [N], so far, of the episodes that go on; 0 where one has ended
    moments: Moments  # of the returns so far at all steps of all environments, scalars


class Networks(NamedTuple):
    """The two function approximators."""

    init: Callable[..., nn.ModuleDict]  # (key_policy, key_value) -> params
    policy: Callable[..., torch.Tensor]  # (params, obs [..., D]) -> [..., K]
    value: Callable[..., torch.Tensor]  # (params, obs [..., D]) -> [...]


class Distribution(NamedTuple):
    """An action distribution, given the policy network's outputs [..., K]."""

    sample: Callable[..., torch.Tensor]  # (outputs, uniform) -> action
    mode: Callable[..., torch.Tensor]  # (outputs) -> the greedy action
    log_prob: Callable[..., torch.Tensor]  # (outputs, action) -> [...]
    entropy: Callable[..., torch.Tensor]  # (outputs) -> [...]
    kl: Callable[..., torch.Tensor]  # (old outputs, outputs) -> [...], KL(π_old ‖ π)


class Algorithm(NamedTuple):
    """The parts of a policy-gradient method. Replace any with `algorithm._replace(part=yours)`."""

    env: Env
    networks: Networks
    distribution: Distribution
    collect: Callable[..., tuple]  # (env, act, params, env_state, noise) -> env_state, trajectory
    advantage: Callable[..., torch.Tensor]  # (trajectory, value, next_value, *, gamma, gae_lambda)
    value_target: Callable[..., torch.Tensor]  # the same arguments
    policy_loss: Callable[..., torch.Tensor]  # (log_prob or ρ, advantage, valid) -> scalar
    scale_reward: Callable[..., tuple]  # (scale, trajectory, *, gamma) -> scale, trajectory
    remember: Callable[..., tuple]  # (trajectory) -> obs, reward, next_obs, terminated
    fit: Callable[..., tuple]  # (config, algorithm, learned, batch) -> learned, fitted
    init_fit: Callable[..., Any]  # (config, params) -> Learned.fit_state before the first update
    optimizer: Callable[..., torch.optim.Optimizer]  # (config, parameters) -> their optimizer
    rounded: Callable[..., Any]  # what is carried forward, a tree: as it is, or on the grid
    learn: Callable[..., tuple]  # learner.learn
    built_of: tuple[tuple[str, Any], ...] = ()  # (field, value) of the config that chose the parts


class Learned(NamedTuple):
    """What a fit changes; in place."""

    params: nn.ModuleDict
    opt_state: dict[str, torch.optim.Optimizer]  # by network; {"joint": ...} with a joint loss
    update: int  # updates done
    fit_state: Any = None  # what a fit keeps from update to update; None of most


class Fitted(NamedTuple):
    """What a fit tells of itself."""

    losses: dict[str, torch.Tensor]  # the metrics that are its own, by name
    gradients: dict[str, Any]  # by optimizer: every gradient it was given, [{name: tensor}, ...]


class Seen(NamedTuple):
    """What one update met, estimated, descended and reports."""

    trajectory: "Trajectory"  # with the environment's own rewards
    batch: Batch
    gradients: dict[str, Any]  # as in Fitted
    metrics: "Metrics"


class LearnerState(NamedTuple):
    """Everything that an update reads and writes, of one seed.

    Unlike its jax twin, an update changes `params` and `opt_state` in place.
    """

    params: nn.ModuleDict
    opt_state: dict[str, torch.optim.Optimizer]  # by network; {"joint": ...} with a joint loss
    env_state: EnvState
    key: np.ndarray  # key_run; never changes, each update folds its index in
    update: int  # updates done
    replay: Ring | None  # (obs, reward, next_obs, terminated)
    recent_returns: Ring  # the last 100 episodes' returns
    reward_scale: RewardScale | None = None  # with normalize_reward
    fit_state: Any = None  # as in Learned


class Metrics(NamedTuple):
    """One update's report, scalars. Losses and norms are those before its optimizer's first step;
    with minibatches their mean over the steps taken."""

    env_steps: torch.Tensor  # int, valid steps in this update
    episodes: torch.Tensor  # int, episodes that ended in this update
    return_sum: torch.Tensor  # sum of their undiscounted returns
    policy_loss: torch.Tensor
    value_loss: torch.Tensor  # 0 without a critic
    entropy: torch.Tensor  # nats per step
    policy_grad_norm: torch.Tensor  # before clipping; of everything with a joint loss
    value_grad_norm: torch.Tensor  # before clipping; 0 with a joint loss or without a critic
    # Some fits' own, see `Config.reports`:
    clip_fraction: torch.Tensor | None = None  # of valid steps whose ratio was beyond the clip
    approx_kl: torch.Tensor | None = None  # nats, of the acting policy to this one
    explained_variance: torch.Tensor | None = None  # by V before the fit, of the target, at most 1
    kl: torch.Tensor | None = None  # nats, of the acting policy to the next; 0 without a step
    full_kl: torch.Tensor | None = None  # of TRPO's step before it was shortened
    accepted: torch.Tensor | None = None  # 1 or 0, whether TRPO's line search accepted a step
    kl_weight: torch.Tensor | None = None  # of the penalty on the KL in this update

    def named(self) -> dict[str, Any]:
        """What this fit reports, by name."""
        return {name: x for name, x in self._asdict().items() if x is not None}
