"""The exact oracle: the truth about every estimator, where all trajectories can be enumerated.

On a small problem with a finite horizon the utility U(θ) = Σ_τ P(τ;θ) R(τ), its gradient, and the
expectation Σ_τ P(τ;θ) ĝ(τ) and the variance of every estimator ĝ are finite sums. The estimators
are the library's own: `collect_episodes` writes the trajectories down, `make_advantage` weights
them, and ĝ is minus the gradient of the policy loss. All of it is float64, so call it with JAX's
64-bit mode on, as `rows` does by itself.

Letters: M trajectories, P parameters, K = M^N batches of N trajectories.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxpg import algorithms, env, networks, noise
from jaxpg.config import Config, ConfigError, validate
from jaxpg.distributions import categorical
from jaxpg.rollout import collect_episodes
from jaxpg.training import as_arrays
from jaxpg.types import Env, EnvSpec, EnvState, Networks, Noise, Params, Trajectory

TOLERANCE = 1e-12  # of ‖∇U‖: what the bias of an unbiased estimator may be
MAX_BATCHES = 20_000  # K: where there are more, estimators that couple trajectories are left out
ASCENT_STEPS, ASCENT_RATE = 30, 0.1  # from the random to the trained parameters
BASE = Config(
    collect="episodes",
    num_envs=1,
    hidden_sizes=(4,),
    activation="tanh",  # smooth, so that finite differences can check ∇U
    arithmetic="float64",
)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("trajectory", "log_dynamics", "state"),
    meta_fields=("name", "horizon", "env", "networks"),
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """Every trajectory of a problem with a fixed start and a horizon, which is a termination."""

    name: str
    horizon: int  # T
    env: Env
    networks: Networks
    trajectory: Trajectory  # [T, M], a column for each trajectory
    log_dynamics: jax.Array  # Σ_t log p(s_{t+1}|s_t,a_t), [M]
    state: jax.Array  # number of the (s_t, t) that a row starts in, int [T, M]; -1 on padding


class Moments(NamedTuple):
    """An estimator's exact expectation and spread."""

    mean: np.ndarray  # E ĝ, [P]
    variance: float  # trace of ĝ's covariance, times the N trajectories that ĝ averages


class Row(NamedTuple):
    """One estimator, held against ∇U."""

    problem: str
    parameters: str  # "random" or "trained"
    estimator: str
    baseline: str  # "none", "constant", "exact V" or "wrong V"
    discounting: str
    gamma: float
    gae_lambda: float | None  # None where the estimator has none
    reduction: str
    normalized: bool
    trajectories: int  # N in a batch
    bias: float  # ‖E ĝ - ∇U‖
    relative_bias: float  # bias / ‖∇U‖
    cosine: float  # of the angle between E ĝ and ∇U; 0 where E ĝ is 0
    variance: float  # as in Moments
    unbiased_by_theory: bool
    note: str  # why it is biased; empty if it is not


def cartpole(horizon: int = 8) -> Problem:
    """CartPole-v1 from a tilted start: the pole can fall after 3 steps, and need not within 12."""
    world = env.make("CartPole-v1", float_type="float64", max_episode_steps=horizon + 1)
    upright = world.reset(jnp.full((1, 4), 0.5, "float64"))
    tilt = {"theta": jnp.array([0.19]), "theta_dot": jnp.array([0.2])}
    obs = jnp.array([[0.0, 0.0, 0.19, 0.2]])
    start = upright._replace(obs=obs, inner=upright.inner.replace(**tilt))
    finite = _with_horizon(world, start, horizon)
    return _enumerate(f"CartPole, {horizon} steps", finite, horizon)


def tabular(horizon: int = 3, *, seed: int = 0) -> Problem:
    """A random chain of 3 states and 2 actions; state 2 ends it, rewards have both signs.

    The observation is one-hot in the state and in the time, so that V can depend on both.

    Args:
      horizon: steps after which the task ends.
      seed: of p(s'|s,a), from a flat Dirichlet distribution, and of r(s,a,s') ~ N(0, 1).
    """
    states, actions = 3, 2
    rng = np.random.default_rng(seed)
    p = jnp.asarray(rng.dirichlet(np.ones(states), size=(states, actions)))
    r = jnp.asarray(rng.normal(size=(states, actions, states)))

    def observe(s: jax.Array, time: jax.Array) -> jax.Array:
        hot = (jax.nn.one_hot(s, states, dtype=p.dtype), jax.nn.one_hot(time, horizon, dtype=p.dtype))
        return jnp.concatenate(hot, axis=-1)

    def step(key: jax.Array, state: EnvState, choice: jax.Array) -> tuple:
        action, following = choice // states, choice % states  # an action and where it leads
        reward = r[state.inner, action, following]
        time = state.time + 1
        total = state.episode_return + reward
        after = EnvState(following, observe(following, time), time, total)
        return after, reward, following == states - 1, jnp.zeros_like(time, bool)

    zero = jnp.zeros(1, jnp.int32)
    start = EnvState(zero, observe(zero, zero), zero, jnp.zeros(1))
    spec = EnvSpec(states + horizon, actions, True, horizon, 1, 0)
    chain = _with_horizon(Env(spec, lambda _: start, step, lambda *_: start), start, horizon)

    def dynamics(trajectory: Trajectory) -> tuple[Trajectory, jax.Array]:
        action, following = trajectory.action // states, trajectory.action % states
        s = jnp.argmax(trajectory.obs[..., :states], axis=-1)
        log_p = jnp.where(trajectory.valid, jnp.log(p[s, action, following]), 0.0)
        return trajectory._replace(action=action), jnp.sum(log_p, axis=0)

    return _enumerate(f"random MDP, {horizon} steps", chain, horizon, states, dynamics)


@jax.jit
def probability(problem: Problem, params: Params) -> jax.Array:
    """P(τ;θ) = Π_t π_θ(a_t|s_t) p(s_{t+1}|s_t,a_t), float [M]."""
    valid = problem.trajectory.valid
    outputs = problem.networks.policy(params, problem.trajectory.obs)
    log_prob = categorical.log_prob(outputs, problem.trajectory.action)
    log_policy = jnp.sum(jnp.where(valid, log_prob, 0.0), axis=0)
    return jnp.exp(problem.log_dynamics + log_policy)


def utility(problem: Problem, params: Params, gamma: float) -> jax.Array:
    """U(θ) = Σ_τ P(τ;θ) Σ_k γ^k r_k, a scalar."""
    weight = jnp.power(jnp.asarray(gamma), jnp.arange(problem.horizon))
    return probability(problem, params) @ (weight @ problem.trajectory.reward)


def exact_gradient(problem: Problem, params: Params, gamma: float) -> np.ndarray:
    """∇U(θ) by automatic differentiation of the sum, [P] in the order of `ravel_pytree`."""
    return np.asarray(ravel_pytree(_gradient(problem, params, gamma))[0])


def exact_value(problem: Problem, params: Params, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """V_π(s_t, t) and V_π(s_{t+1}, t+1), the mean of what follows over all that pass there.

        V(s, t) = Σ_{τ: s_t = s} P(τ) G_t(τ) / Σ_{τ: s_t = s} P(τ),    G_t = Σ_{k≥t} γ^{k-t} r_k

    Returns:
      Two arrays [T, M]. Where nothing follows, and on padding, they are 9: an estimator that reads
      them there is wrong, and should be seen to be.
    """
    valid = np.asarray(problem.trajectory.valid)
    returns = np.array(problem.trajectory.reward)
    for t in reversed(range(problem.horizon - 1)):
        returns[t] += gamma * returns[t + 1]
    weight = np.broadcast_to(np.asarray(probability(problem, params)), valid.shape)[valid]
    state = np.asarray(problem.state)[valid]
    mean = np.bincount(state, weight * returns[valid]) / np.bincount(state, weight)
    value = np.full(valid.shape, 9.0)
    value[valid] = mean[state]
    return value, np.concatenate([value[1:], np.full_like(value[:1], 9.0)])


def expectation(
    problem: Problem,
    params: Params,
    config: Config,
    value: np.ndarray | None = None,
    next_value: np.ndarray | None = None,
) -> Moments:
    """Σ P(batch) ĝ(batch) over all batches of N trajectories, and the variance of ĝ.

    ĝ is minus the gradient, in all parameters, of the config's policy loss on one batch. It is
    assembled by the chain rule from the loss's derivatives in log π, V(s_t) and V(s_{t+1}), and
    their Jacobians: a loss that lets a gradient through V is not forgiven.

    Args:
      problem: with M^N small enough for a list.
      config: names the estimator; N = num_envs; arithmetic float64.
      value, next_value: V(s_t) and V(s_{t+1}), constants, [T, M]; None takes the value network, or
        0 without a critic.
    """
    config, count = as_arrays(config), config.num_envs
    shape = problem.trajectory.reward.shape
    arrays, jacobians = _inputs(problem, params)
    if not config.critic:
        value = next_value = np.zeros(shape)
    if value is not None and next_value is not None:
        arrays = (arrays[0], jnp.asarray(value), jnp.asarray(next_value))
        jacobians = jacobians[:1]
    batches = np.indices((shape[1],) * count).reshape(count, -1)  # [N, K]
    slopes = _slopes(config, problem.trajectory, arrays, jnp.asarray(batches))

    weight = np.prod(np.asarray(probability(problem, params))[batches], axis=0)
    gradient = np.zeros(1)
    for slope, jacobian in zip(slopes, jacobians, strict=False):
        if np.any(slope):
            gradient = gradient - _chain(np.asarray(slope), np.asarray(jacobian))
    mean = weight @ gradient if gradient.ndim > 1 else np.zeros(jacobians[0].shape[-1])
    spread = np.sum(np.square(gradient - mean), axis=-1)
    return Moments(mean, count * float(weight @ np.broadcast_to(spread, weight.shape)))


def rows(problems: Sequence[Problem] | None = None, *, seed: int = 0) -> list[Row]:
    """Hold every valid estimator against ∇U, at random and at trained parameters.

    Args:
      problems: what to enumerate; None takes `cartpole()` and `tabular()`.
      seed: of the networks' initial weights.
    """
    with jax.enable_x64(True):
        found = []
        for problem in (cartpole(), tabular()) if problems is None else problems:
            key_policy, key_value = noise.split(noise.key(seed), 2)
            start = problem.networks.init(key_policy, key_value)
            for parameters, params in (("random", start), ("trained", train(problem, start))):
                for config, baseline in cases(problem.trajectory.valid.shape[1]):
                    found.append(hold(problem, parameters, params, config, baseline))
        return found


def hold(
    problem: Problem, parameters: str, params: Params, config: Config, baseline: str
) -> Row:
    """One row: the estimator that config and baseline name, against ∇U of its γ."""
    gamma = float(config.gamma)
    value = exact_value(problem, params, gamma) if baseline == "exact V" else (None, None)
    moments = expectation(problem, params, config, *value)
    gradient = exact_gradient(problem, params, gamma)
    norm, bias = np.linalg.norm(gradient), np.linalg.norm(moments.mean - gradient)
    length = np.linalg.norm(moments.mean)
    note = why_biased(config, baseline)
    return Row(
        problem=problem.name,
        parameters=parameters,
        estimator=config.estimator,
        baseline=baseline,
        discounting=config.discounting,
        gamma=gamma,
        gae_lambda=float(config.gae_lambda) if config.estimator == "gae" else None,
        reduction=config.reduction,
        normalized=config.normalize_advantage,
        trajectories=config.num_envs,
        bias=float(bias),
        relative_bias=float(bias / norm),
        cosine=float(moments.mean @ gradient / (length * norm)) if length > 0 else 0.0,
        variance=moments.variance,
        unbiased_by_theory=not note,
        note=note,
    )


def cases(trajectories: int) -> Iterator[tuple[Config, str]]:
    """Every valid config with its kind of baseline, where M trajectories are few enough.

    An estimator that couples the trajectories of a batch takes batches of 2, others of 1.
    """
    choices = itertools.product(
        ("total_return", "reward_to_go", "td_error", "gae"),
        ("none", "constant", "value"),
        ("relative", "absolute"),
        (1.0, 0.9),
        ("trajectories", "steps"),
        (False, True),
    )
    for estimator, baseline, discounting, gamma, reduction, normalized in choices:
        count = 2 if baseline == "constant" or reduction == "steps" or normalized else 1
        for gae_lambda in (0.5, 1.0) if estimator == "gae" else (1.0,):
            config = dataclasses.replace(
                BASE,
                num_envs=count,
                estimator=estimator,
                baseline=baseline,
                discounting=discounting,
                gamma=gamma,
                gae_lambda=gae_lambda,
                reduction=reduction,
                normalize_advantage=normalized,
            )
            try:
                validate(config)
            except ConfigError:
                continue
            if trajectories**count <= MAX_BATCHES:
                kinds = ("exact V", "wrong V") if config.critic else (baseline,)
                yield from ((config, kind) for kind in kinds)


def why_biased(config: Config, baseline: str) -> str:
    """What theory says: the reasons for a bias, or nothing for an unbiased estimator.

    A baseline may depend on s_t, on t and on the other trajectories, but not on a_t or on what
    follows it. A bootstrap, which stands for the future, must be V_π itself. Discounting from the
    current step drops the factor γ^t that the gradient of Σ γ^k r_k has.
    """
    bootstraps = config.estimator == "td_error" or (
        config.estimator == "gae" and float(config.gae_lambda) < 1.0
    )
    reasons = {
        "bootstraps from a wrong V": bootstraps and baseline == "wrong V",
        "drops the factor γ^t": config.discounting == "relative" and float(config.gamma) < 1.0,
        "a mean over steps is a ratio": config.reduction == "steps",
        "normalised by its own batch": config.normalize_advantage,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def train(problem: Problem, params: Params) -> Params:
    """Parameters after some steps of exact gradient ascent on U, at γ = 1."""

    def step(params: Params, _: None) -> tuple[Params, None]:
        gradient = _gradient(problem, params, 1.0)
        return jax.tree.map(lambda x, g: x + ASCENT_RATE * g, params, gradient), None

    return jax.jit(lambda params: jax.lax.scan(step, params, None, ASCENT_STEPS)[0])(params)


def _with_horizon(world: Env, start: EnvState, horizon: int) -> Env:
    """The environments with a fixed start, [1, ...], and with the horizon as a termination."""

    def restart(state: EnvState, done: jax.Array, reset: jax.Array) -> EnvState:
        many = done.shape
        return jax.tree.map(lambda x: jnp.broadcast_to(x[0], many + x.shape[1:]), start)

    def step(key: jax.Array, state: EnvState, action: jax.Array) -> tuple:
        state, reward, terminated, truncated = world.step(key, state, action)
        terminated = jnp.logical_or(terminated, state.time >= horizon)
        return state, reward, terminated, jnp.zeros_like(truncated)

    spec = world.spec._replace(time_limit=horizon)
    return Env(spec, lambda reset: restart(start, jnp.ones(len(reset), bool), reset), step, restart)


def _enumerate(
    name: str,
    world: Env,
    horizon: int,
    outcomes: int = 1,
    dynamics: Callable[..., tuple] = lambda trajectory: (trajectory, jnp.zeros(())),
) -> Problem:
    """Every trajectory, written down by `collect_episodes` with the choices as its noise.

    Args:
      world: steps on a choice, action · outcomes + outcome.
      dynamics: trajectory of choices -> trajectory of actions, Σ_t log p of its outcomes.
    """
    branches = world.spec.num_actions * outcomes
    choices = np.indices((branches,) * horizon).reshape(horizon, -1)  # [T, branches^T]
    count = choices.shape[1]
    draws = Noise(
        reset=jnp.zeros((1, count)),
        action=jnp.asarray(choices, jnp.int32),
        env=noise.split(noise.key(0), choices.shape),
        replay=None,
    )

    def act(params: None, obs: jax.Array, choice: jax.Array) -> jax.Array:
        return choice

    start = world.reset(draws.reset[0])
    collect = jax.jit(lambda start, draws: collect_episodes(world, act, {}, start, draws)[1])
    trajectory = collect(start, draws)
    valid = np.asarray(trajectory.valid)
    different = np.all(valid | (choices == 0), axis=0)  # else it differs only after its end
    trajectory = jax.tree.map(lambda x: x[:, different], trajectory)
    trajectory, log_dynamics = dynamics(trajectory)
    valid = valid[:, different]
    key = np.concatenate([trajectory.time[..., None], trajectory.obs], axis=-1)
    state = np.full(valid.shape, -1)
    state[valid] = np.unique(key[valid], axis=0, return_inverse=True)[1].reshape(-1)
    config = as_arrays(validate(BASE))
    log_dynamics = jnp.broadcast_to(log_dynamics, valid.shape[1:])
    nets = networks.make(config, world.spec)
    return Problem(name, horizon, world, nets, trajectory, log_dynamics, jnp.asarray(state))


@jax.jit
def _gradient(problem: Problem, params: Params, gamma: float) -> Params:
    return jax.grad(utility, argnums=1)(problem, params, gamma)


@jax.jit
def _inputs(problem: Problem, params: Params) -> tuple[tuple, tuple]:
    """What a loss is a function of, log π(a_t|s_t), V(s_t), V(s_{t+1}), and their Jacobians.

    Returns:
      Three arrays [T, M] and three [T, M, P]. On padding they are what the networks say there.
    """
    flat, unravel = ravel_pytree(params)
    nets, trajectory = problem.networks, problem.trajectory

    def log_prob(theta: jax.Array, row: Trajectory) -> jax.Array:
        return categorical.log_prob(nets.policy(unravel(theta), row.obs), row.action)

    def value(theta: jax.Array, row: Trajectory) -> jax.Array:
        return nets.value(unravel(theta), row.obs)

    def next_value(theta: jax.Array, row: Trajectory) -> jax.Array:
        return nets.value(unravel(theta), row.next_obs)

    found = []
    for function in (log_prob, value, next_value):
        by_row = jax.value_and_grad(function)
        found.append(jax.vmap(jax.vmap(by_row, (None, 0)), (None, 0))(flat, trajectory))
    values, jacobians = zip(*found, strict=True)
    return values, jacobians


@jax.jit
def _slopes(
    config: Config, trajectory: Trajectory, arrays: tuple, batches: jax.Array
) -> tuple[jax.Array, ...]:
    """Derivatives of the library's loss in log π, V(s_t) and V(s_{t+1}), [T, N, K] each."""
    advantage = algorithms.make_advantage(config)
    policy_loss = algorithms.POLICY_LOSSES[config.reduction]

    def slopes(batch: jax.Array) -> tuple:
        rows = jax.tree.map(lambda x: x[:, batch], trajectory)  # [T, N]

        def loss(log_prob: jax.Array, value: jax.Array, next_value: jax.Array) -> jax.Array:
            coefficients = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}
            psi = advantage(rows, value, next_value, **coefficients)
            return policy_loss(log_prob, psi, rows.valid)

        return jax.grad(loss, (0, 1, 2))(*(x[:, batch] for x in arrays))

    return jax.vmap(slopes, in_axes=1, out_axes=2)(batches)


def _chain(slope: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Σ_n Σ_t slope[t, n, k] · jacobian[t, n-th trajectory of batch k], [K, P]."""
    count, trajectories = slope.shape[1], jacobian.shape[1]
    by_trajectory = np.moveaxis(jacobian, 0, 1)  # [M, T, P]
    total = np.zeros((trajectories,) * count + jacobian.shape[-1:])
    for n in range(count):
        grid = slope[:, n].reshape(-1, *(trajectories,) * count)
        grid = np.moveaxis(np.moveaxis(grid, 0, -1), n, 0)  # [M, ..., T], the n-th of them first
        shape = (*grid.shape[:-1], -1)
        product = grid.reshape(trajectories, -1, grid.shape[-1]) @ by_trajectory
        total += np.moveaxis(product.reshape(shape), 0, n)
    return total.reshape(-1, jacobian.shape[-1])
