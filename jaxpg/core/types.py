"""The data that flows between the modules.

Letters: T steps, N environments, D observation, A actions, M rows of a ring, K outputs of the
policy network. Arrays are time-major. Floats have the working dtype, unless a line says otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxpg.core.config import STATIC, TRACED, Config, EnvParams

jax.tree_util.register_dataclass(
    Config, data_fields=[*TRACED, "env_params"], meta_fields=list(STATIC)
)
jax.tree_util.register_pytree_node(
    EnvParams,
    lambda params: (
        (params.traced,),
        tuple((name, params[name]) for name in sorted(params.static)),
    ),
    lambda static, traced: EnvParams({**traced[0], **dict(static)}, frozenset(dict(static))),
)

# network -> layer -> {"kernel", "bias"} (or a leaf such as "log_std"), and Moments as "obs" where
# observations are normalised
Params = dict[str, Any]
Moments = dict[str, jax.Array]  # "count", "mean" and "var" of what has been met


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
    obs: jax.Array  # [N, D]
    time: jax.Array  # int32 [N], steps since the episode's start
    episode_return: jax.Array  # [N], undiscounted, since the episode's start
    # Those of Config.env_params that are traced, by name [N]; nothing changes them.
    env_params: dict[str, Any] = {}  # noqa: RUF012


class Env(NamedTuple):
    """N environments as pure functions."""

    spec: EnvSpec
    reset: Callable[..., EnvState]  # (reset noise [N, ...], Config.env_params) -> state
    step: Callable[..., tuple]  # (key [N], state, action) -> state, reward, terminated, truncated
    restart: Callable[..., EnvState]  # (state, done [N], reset noise [N, ...]) -> state


class Noise(NamedTuple):
    """All randomness of one update."""

    reset: jax.Array  # float32 [R, N, reset_uniforms], or keys [R, N]; R blocks of steps
    action: jax.Array  # float32 [T, N, *action_shape]
    env: jax.Array  # keys [T, N]
    replay: jax.Array | None  # uint32 [value_steps, ROUNDS], of samples from the ring
    order: jax.Array | None = None  # uint32 [epochs, ROUNDS], of the batch in each epoch


class Trajectory(NamedTuple):
    """What the policy met; rows that are not valid are zero."""

    obs: jax.Array  # [T, N, D]
    action: jax.Array  # int32 [T, N] or [T, N, choices]; or [T, N, A], before it is squashed
    log_prob: jax.Array  # [T, N], log π(a|s) of the policy that acted
    reward: jax.Array  # [T, N]
    next_obs: jax.Array  # [T, N, D], the true successor, before any reset
    terminated: jax.Array  # bool [T, N], the task ended here
    truncated: jax.Array  # bool [T, N], only our view of it ended here
    valid: jax.Array  # bool [T, N], False on the padding after an episode's end
    time: jax.Array  # int32 [T, N], steps since the episode's start
    episode_return: jax.Array  # [T, N], sum of rewards since the episode's start, this one included


class Batch(NamedTuple):
    """What a fit learns from, constants; on padding Ψ and the target are 0."""

    obs: jax.Array  # [T, N, D]
    action: jax.Array  # as in Trajectory
    log_prob: jax.Array  # [T, N], of the policy that acted
    valid: jax.Array  # bool [T, N]
    advantage: jax.Array  # [T, N], Ψ
    value: jax.Array  # [T, N], V(s) before the fit; 0 without a critic
    target: jax.Array  # [T, N], what the critic is fitted to
    # From the ring, ((obs, reward, next_obs, terminated), valid), leaves
    # [value_steps, batch_size, ...]; None without one:
    samples: Any = None
    order: jax.Array | None = None  # uint32 [epochs, ROUNDS], as in Noise


class Ring(NamedTuple):
    """The last M rows of a stream."""

    rows: Any  # leaves [M, ...]
    next_slot: jax.Array  # int32, where the next row goes
    filled: jax.Array  # int32, slots that hold a row


class RewardScale(NamedTuple):
    """What rewards are divided by, and what that is computed from."""

    returns: jax.Array  # [N], so far, of the episodes that go on; 0 where one has ended
    moments: Moments  # of the returns so far at all steps of all environments, scalars


class Networks(NamedTuple):
    """The two function approximators."""

    init: Callable[..., Params]  # (key_policy, key_value) -> params
    policy: Callable[..., jax.Array]  # (params, obs [..., D]) -> [..., K]
    value: Callable[..., jax.Array]  # (params, obs [..., D]) -> [...]


class Distribution(NamedTuple):
    """An action distribution, given the policy network's outputs [..., K]."""

    sample: Callable[..., jax.Array]  # (outputs, uniform) -> action
    mode: Callable[..., jax.Array]  # (outputs) -> the greedy action
    log_prob: Callable[..., jax.Array]  # (outputs, action) -> [...]
    entropy: Callable[..., jax.Array]  # (outputs) -> [...]
    kl: Callable[..., jax.Array]  # (old outputs, outputs) -> [...], KL(π_old ‖ π)


class Algorithm(NamedTuple):
    """The parts of a policy-gradient method. Replace any with `algorithm._replace(part=yours)`."""

    env: Env
    networks: Networks
    distribution: Distribution
    collect: Callable[..., tuple]  # (env, act, params, env_state, noise) -> env_state, trajectory
    advantage: Callable[..., jax.Array]  # (trajectory, value, next_value, *, gamma, gae_lambda)
    value_target: Callable[..., jax.Array]  # the same arguments
    policy_loss: Callable[..., jax.Array]  # (log_prob or ρ, advantage, valid) -> scalar
    scale_reward: Callable[..., tuple]  # (scale, trajectory, *, gamma) -> scale, trajectory
    remember: Callable[..., tuple]  # (trajectory) -> obs, reward, next_obs, terminated
    fit: Callable[..., tuple]  # (config, algorithm, learned, batch) -> learned, fitted
    init_fit: Callable[..., Any]  # (config, params) -> Learned.fit_state before the first update
    optimizer: Callable  # (config) -> an optax.GradientTransformation, from gradients to directions
    rounded: Callable[..., Any]  # what is carried forward, a tree: as it is, or on the grid
    learn: Callable[..., tuple]  # learner.learn, as a vmap over seeds is to carry it out
    built_of: tuple[tuple[str, Any], ...] = ()  # (field, value) of the config that chose the parts


class Learned(NamedTuple):
    """What a fit changes."""

    params: Params
    opt_state: dict[str, Any]  # network -> optimizer state; {"joint": ...} with a joint loss
    update: jax.Array  # int32, updates done
    fit_state: Any = None  # what a fit keeps from update to update; None of most


class Fitted(NamedTuple):
    """What a fit tells of itself."""

    losses: dict[str, jax.Array]  # the metrics that are its own, by name
    gradients: dict[str, Any]  # by optimizer: every gradient it was given, leaves [steps, ...]


class Seen(NamedTuple):
    """What one update met, estimated, descended and reports."""

    trajectory: "Trajectory"  # with the environment's own rewards
    batch: Batch
    gradients: dict[str, Any]  # as in Fitted
    metrics: "Metrics"


class LearnerState(NamedTuple):
    """Everything that an update reads and writes, of one seed."""

    params: Params
    opt_state: dict[str, Any]  # network -> optimizer state; {"joint": ...} with a joint loss
    env_state: EnvState
    key: jax.Array  # key_run; never changes, each update folds its index in
    update: jax.Array  # int32, updates done
    replay: Ring | None  # (obs, reward, next_obs, terminated)
    recent_returns: Ring  # the last 100 episodes' returns
    reward_scale: RewardScale | None = None  # with normalize_reward
    fit_state: Any = None  # as in Learned


class Metrics(NamedTuple):
    """One update's report, scalars. Losses and norms are those before its optimizer's first step;
    with minibatches their mean over the steps taken."""

    env_steps: jax.Array  # int32, valid steps in this update
    episodes: jax.Array  # int32, episodes that ended in this update
    return_sum: jax.Array  # sum of their undiscounted returns
    policy_loss: jax.Array
    value_loss: jax.Array  # 0 without a critic
    entropy: jax.Array  # nats per step
    policy_grad_norm: jax.Array  # before clipping; of everything with a joint loss
    value_grad_norm: jax.Array  # before clipping; 0 with a joint loss or without a critic
    # Some fits' own, see `Config.reports`:
    clip_fraction: jax.Array | None = None  # of valid steps whose ratio was beyond the clip
    approx_kl: jax.Array | None = None  # nats, of the acting policy to this one
    explained_variance: jax.Array | None = None  # by V before the fit, of the target, at most 1
    kl: jax.Array | None = None  # nats, of the acting policy to the next; 0 without a step
    full_kl: jax.Array | None = None  # of TRPO's step before it was shortened
    accepted: jax.Array | None = None  # 1 or 0, whether TRPO's line search accepted a step
    kl_weight: jax.Array | None = None  # of the penalty on the KL in this update

    def named(self) -> dict[str, Any]:
        """What this fit reports, by name."""
        return {name: x for name, x in self._asdict().items() if x is not None}
