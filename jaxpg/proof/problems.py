"""Problems small enough to write every trajectory down, and the truth about them.

With a fixed start and a finite horizon the utility U(θ) = Σ_τ P(τ;θ) R(τ), its gradient and V_π are
finite sums. All of it is float64, so call it with JAX's 64-bit mode on.

Letters: T steps (the horizon), M trajectories, P parameters.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxpg.core import env, learner, networks, noise
from jaxpg.core.config import Config
from jaxpg.core.distributions import categorical
from jaxpg.core.rollout import collect_episodes, mask_like
from jaxpg.core.rules import validate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import (
    Algorithm,
    Env,
    EnvSpec,
    EnvState,
    Networks,
    Noise,
    Params,
    Trajectory,
)

# Programs here are many and small: most of the time goes to compiling them. Not inside another jit.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):  # where XLA still has the emitter that compiles faster
    QUICK["xla_cpu_use_fusion_emitters"] = False
quick_jit = partial(jax.jit, compiler_options=QUICK)
MAX_SEQUENCES = 100_000  # of choices, over all steps: each is played, and lies in memory
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
    data_fields=("trajectory", "log_dynamics", "state", "choices"),
    meta_fields=("name", "horizon", "env", "networks", "outcomes"),
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
    outcomes: int  # that a step can have after an action, whatever the action
    choices: jax.Array  # int32 [T, M], action · outcomes + outcome, what the environment steps on
    state: jax.Array  # number of the (s_t, t) that a row starts in, int [T, M]; -1 on padding


def cartpole(horizon: int = 7) -> Problem:
    """CartPole-v1 from a tilted start: in 3 steps the pole can fall, and it need not within 12.

    Args:
      horizon: steps after which the task ends, in [1, 16]. Up to 3 every return is the same, so
        that there is no gradient.

    Raises:
      ValueError: for another horizon.
    """
    _check_horizon(horizon, 2)
    world = env.make("CartPole-v1", float_type="float64", max_episode_steps=horizon + 1)
    upright = world.reset(jnp.full((1, 4), 0.5, "float64"))
    tilt = {"theta": jnp.array([0.19]), "theta_dot": jnp.array([0.2])}
    obs = jnp.array([[0.0, 0.0, 0.19, 0.2]])
    start = upright._replace(obs=obs, inner=upright.inner.replace(**tilt))
    finite = _with_horizon(world, start, horizon)
    return _enumerate(f"CartPole, {horizon} steps", finite, horizon)


def tabular(horizon: int = 3, *, seed: int = 0, masked: bool = False) -> Problem:
    """A random chain of 3 states and 2 actions; state 2 ends it, rewards have both signs.

    The observation is one-hot in the state and in the time, so that V can depend on both.

    Args:
      horizon: steps after which the task ends, in [1, 6], or in [1, 5] if `masked`.
      seed: of p(s'|s,a), from a flat Dirichlet distribution, and of r(s,a,s') ~ N(0, 1).
      masked: whether there are 3 actions, and state s allows all but action s.

    Raises:
      ValueError: for another horizon.
    """
    states, actions = 3, 3 if masked else 2
    _check_horizon(horizon, actions * states)
    rng = np.random.default_rng(seed)
    p = jnp.asarray(rng.dirichlet(np.ones(states), size=(states, actions)))
    r = jnp.asarray(rng.normal(size=(states, actions, states)))

    def observe(s: jax.Array, time: jax.Array) -> jax.Array:
        hot = (
            jax.nn.one_hot(s, states, dtype=p.dtype),
            jax.nn.one_hot(time, horizon, dtype=p.dtype),
            *([1.0 - jax.nn.one_hot(s, actions, dtype=p.dtype)] if masked else []),
        )
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
    size = states + horizon + (actions if masked else 0)
    spec = EnvSpec(size, actions, True, horizon, 1, 0, masked=masked)
    chain = _with_horizon(Env(spec, lambda _: start, step, lambda *_: start), start, horizon)

    def dynamics(trajectory: Trajectory) -> tuple[Trajectory, jax.Array]:
        action, following = trajectory.action // states, trajectory.action % states
        s = jnp.argmax(trajectory.obs[..., :states], axis=-1)
        log_p = jnp.where(trajectory.valid, jnp.log(p[s, action, following]), 0.0)
        return trajectory._replace(action=action), jnp.sum(log_p, axis=0)

    name = f"random MDP{', masked' if masked else ''}, {horizon} steps"
    return _enumerate(name, chain, horizon, states, dynamics)


@jax.jit
def probability(problem: Problem, params: Params) -> jax.Array:
    """P(τ;θ) = Π_t π_θ(a_t|s_t) p(s_{t+1}|s_t,a_t), float [M]."""
    return jnp.exp(problem.log_dynamics + jnp.sum(_log_prob(problem, params), axis=0))


def utility(problem: Problem, params: Params, gamma: float) -> jax.Array:
    """U(θ) = Σ_τ P(τ;θ) Σ_k γ^k r_k, a scalar."""
    weight = jnp.power(jnp.asarray(gamma), jnp.arange(problem.horizon))
    return probability(problem, params) @ (weight @ problem.trajectory.reward)


def exact_gradient(problem: Problem, params: Params, gamma: float) -> np.ndarray:
    """∇U(θ) by automatic differentiation of the sum, [P] in the order of `ravel_pytree`."""
    return np.asarray(ravel_pytree(_gradient(problem, params, gamma))[0])


def relative_gradient(problem: Problem, params: Params, gamma: float) -> np.ndarray:
    """What ∇U is without the factor γ^t of each step, E Σ_t ∇log π(a_t|s_t) G_t, [P].

        G_t = Σ_{k≥t} γ^{k-t} r_k

    Most code takes it. For γ < 1 it is in general no function's gradient (Nota & Thomas 2020).
    """
    gradient = _relative(problem, params, jnp.asarray(_returns(problem, gamma)))
    return np.asarray(ravel_pytree(gradient)[0])


def exact_value(problem: Problem, params: Params, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """V_π(s_t, t) and V_π(s_{t+1}, t+1), the mean of what follows over all that pass there.

        V(s, t) = Σ_{τ: s_t = s} P(τ) G_t(τ) / Σ_{τ: s_t = s} P(τ),    G_t = Σ_{k≥t} γ^{k-t} r_k

    Returns:
      Two arrays [T, M]. Where nothing follows, and on padding, they are 9: an estimator that reads
      them there is wrong, and should be seen to be.
    """
    valid = np.asarray(problem.trajectory.valid)
    returns = _returns(problem, gamma)
    weight = np.broadcast_to(np.asarray(probability(problem, params)), valid.shape)[valid]
    state = np.asarray(problem.state)[valid]
    mean = np.bincount(state, weight * returns[valid]) / np.bincount(state, weight)
    value = np.full(valid.shape, 9.0)
    value[valid] = mean[state]
    return value, np.concatenate([value[1:], np.full_like(value[:1], 9.0)])


def written(problem: Problem, params: Params, algorithm: Algorithm) -> Trajectory:
    """Every trajectory as `learner.collect` writes it down for a policy that acts: with its log π.

    Args:
      params: the acting policy's.
      algorithm: of which env and networks are the problem's; its `collect` may be any.

    Returns:
      [T, M].
    """
    chosen = algorithm.distribution._replace(
        sample=lambda outputs, choice: choice,
        log_prob=lambda outputs, choice: algorithm.distribution.log_prob(
            outputs, choice // problem.outcomes
        ),
    )
    draws = _draws(problem.choices)
    start = problem.env.reset(draws.reset[0])
    _, trajectory = learner.collect(algorithm._replace(distribution=chosen), params, start, draws)
    return trajectory._replace(action=trajectory.action // problem.outcomes)


@quick_jit
def ascend(problem: Problem, params: Params) -> Params:
    """Parameters after some steps of exact gradient ascent on U, at γ = 1."""

    def step(params: Params, _: None) -> tuple[Params, None]:
        gradient = jax.grad(utility, argnums=1)(problem, params, 1.0)
        return jax.tree.map(lambda x, g: x + ASCENT_RATE * g, params, gradient), None

    return jax.lax.scan(step, params, None, ASCENT_STEPS)[0]


def _check_horizon(horizon: int, choices: int) -> None:
    """Before anything is enumerated, of so many choices in a step."""
    longest = int(math.log(MAX_SEQUENCES, choices))
    if horizon not in range(1, longest + 1):
        raise ValueError(
            f"horizon must be an integer in [1, {longest}], since all {choices}^horizon sequences "
            f"of choices are played; got {horizon}"
        )


def _returns(problem: Problem, gamma: float) -> np.ndarray:
    """G_t = Σ_{k≥t} γ^{k-t} r_k, [T, M]."""
    returns = np.array(problem.trajectory.reward)
    for t in reversed(range(problem.horizon - 1)):
        returns[t] += gamma * returns[t + 1]
    return returns


def _log_prob(problem: Problem, params: Params) -> jax.Array:
    """log π(a_t|s_t), [T, M]; 0 on padding."""
    outputs = problem.networks.policy(params, problem.trajectory.obs)
    log_prob = categorical.log_prob(outputs, problem.trajectory.action)
    return jnp.where(problem.trajectory.valid, log_prob, 0.0)


def _with_horizon(world: Env, start: EnvState, horizon: int) -> Env:
    """The environments with a fixed start, [1, ...], and with the horizon as a termination."""

    def restart(state: EnvState, done: jax.Array, reset: jax.Array) -> EnvState:
        def one(x: jax.Array, first: jax.Array) -> jax.Array:
            return jnp.where(mask_like(done, x), first, x)

        return jax.tree.map(one, state, start)

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
    draws = _draws(jnp.asarray(choices, jnp.int32))

    def act(params: None, obs: jax.Array, choice: jax.Array) -> tuple[jax.Array, jax.Array]:
        return choice, jnp.zeros(choice.shape)

    start = world.reset(draws.reset[0])
    collect = quick_jit(lambda start, draws: collect_episodes(world, act, {}, start, draws)[1])
    trajectory = collect(start, draws)
    valid = np.asarray(trajectory.valid)
    different = np.all(valid | (choices == 0), axis=0)  # else it differs only after its end
    if world.spec.masked:
        action = choices // outcomes
        mask = trajectory.obs[..., -world.spec.num_actions :]
        allowed = np.take_along_axis(np.asarray(mask), action[..., None], axis=-1)[..., 0] > 0
        different &= np.all(allowed | ~valid, axis=0)
    kept = jax.tree.map(lambda x: x[:, different], trajectory)
    trajectory, log_dynamics = quick_jit(dynamics)(kept)
    valid = valid[:, different]
    key = np.concatenate([trajectory.time[..., None], trajectory.obs], axis=-1)
    state = np.full(valid.shape, -1)
    state[valid] = np.unique(key[valid], axis=0, return_inverse=True)[1].reshape(-1)
    config = as_arrays(validate(BASE))
    log_dynamics = jnp.broadcast_to(log_dynamics, valid.shape[1:])
    nets = networks.make(config, world.spec)
    return Problem(
        name=name,
        horizon=horizon,
        env=world,
        networks=nets,
        trajectory=trajectory,
        log_dynamics=log_dynamics,
        outcomes=outcomes,
        choices=draws.action[:, different],
        state=jnp.asarray(state),
    )


def _draws(choices: jax.Array) -> Noise:
    """Noise whose draws of actions are choices, [T, M]; the rest has no part in a fixed start."""
    keys = noise.split(noise.key(0), choices.shape)
    return Noise(jnp.zeros((1, choices.shape[1])), action=choices, env=keys, replay=None)


@quick_jit
def _gradient(problem: Problem, params: Params, gamma: float) -> Params:
    return jax.grad(utility, argnums=1)(problem, params, gamma)


@quick_jit
def _relative(problem: Problem, params: Params, returns: jax.Array) -> Params:
    chance = probability(problem, params)  # of the policy that acted: a constant

    def weighted(params: Params) -> jax.Array:
        return chance @ jnp.sum(_log_prob(problem, params) * returns, axis=0)

    return jax.grad(weighted)(params)
