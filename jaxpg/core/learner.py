"""init and update: one seed's training state, and one step of the algorithm.

The package's only import of optax.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpg.core import noise
from jaxpg.core import ring as replay
from jaxpg.core.arithmetic import round_floats
from jaxpg.core.config import Config
from jaxpg.core.losses import masked_mean, value_loss
from jaxpg.core.types import Algorithm, EnvSpec, LearnerState, Metrics, Params, Trajectory
from jaxpg.fast import dense, lanes

# Gradients to a direction; the learning rate is applied in `_descend`, where it may be traced.
OPTIMIZERS = {
    "sgd": optax.identity(),
    "adam": optax.flatten(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)),
    "rmsprop": optax.flatten(optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False)),
}
RECENT_EPISODES = 100  # episodes that final_return is the mean of


class Learned(NamedTuple):
    """The part of a LearnerState that a fit reads and writes."""

    params: Params
    opt_state: dict[str, Any]
    update: jax.Array


def init(config: Config, key: jax.Array, algorithm: Algorithm) -> LearnerState:
    """The state before the first update.

    Args:
      config: traced fields as arrays of the working dtype.
      key: of the seed, consumed.
      algorithm: from `algorithms.build`.
    """
    key_policy, key_value, key_run = noise.streams(key)
    spec, optimizer = algorithm.env.spec, OPTIMIZERS[config.optimizer]
    params = algorithm.networks.init(key_policy, key_value)
    groups = {"shared": params} if config.networks == "shared" else params
    env_state = algorithm.env.reset(noise.first_reset(key_run, config, spec))
    obs, scalar = env_state.obs[0], jnp.zeros((), config.float_type)
    transition = (obs, scalar, obs, jnp.zeros((), bool))
    return LearnerState(
        params=params,
        opt_state={name: optimizer.init(group) for name, group in groups.items()},
        env_state=env_state,
        key=key_run,
        update=jnp.int32(0),
        replay=replay.empty(transition, config.buffer_size) if config.replays else None,
        recent_returns=replay.empty(scalar, RECENT_EPISODES),
    )


def update(
    config: Config, state: LearnerState, algorithm: Algorithm
) -> tuple[LearnerState, Metrics]:
    """One update: draw the noise, collect, estimate, step the optimizers.

    Args:
      config: traced fields as arrays of the working dtype.
      state: of one seed; vmap for more.
      algorithm: from `algorithms.build`.
    """
    steps = max_steps(config, algorithm.env.spec)
    draws = noise.draw(state.key, state.update, config, algorithm.env.spec, steps)

    def act(params: Params, obs: jax.Array, uniform: jax.Array) -> tuple:
        outputs = algorithm.networks.policy(params, obs)
        action = lanes.row_by_row(algorithm.distribution.sample)(outputs, uniform)
        return action, outputs if params is state.params else None  # others' gradient is not taken

    env_state, trajectory = algorithm.collect(
        algorithm.env, act, state.params, state.env_state, draws
    )
    done = jnp.logical_or(trajectory.terminated, trajectory.truncated)
    finished = (trajectory.episode_return.reshape(-1), done.reshape(-1))
    state = state._replace(
        env_state=env_state,
        replay=_remember(algorithm, state.replay, trajectory),
        recent_returns=replay.insert(state.recent_returns, *finished),
    )
    state, losses = _learn(config, algorithm, state, trajectory, draws.replay)
    metrics = Metrics(
        env_steps=jnp.sum(trajectory.valid, dtype=jnp.int32),
        episodes=jnp.sum(done, dtype=jnp.int32),
        return_sum=jnp.sum(jnp.where(done, trajectory.episode_return, 0.0)),
        **losses,
    )
    return state._replace(update=state.update + 1), metrics


def max_steps(config: Config, spec: EnvSpec) -> int:
    """T: the most steps that an update takes in each environment."""
    return config.num_steps if config.collect == "steps" else spec.time_limit


def estimate(
    config: Config, algorithm: Algorithm, params: Params, trajectory: Trajectory
) -> tuple[jax.Array, jax.Array]:
    """Ψ and the critic's target, constants, 0 on padding, [T, N] each; V is 0 without a critic."""
    values = _values(config, algorithm, params, trajectory)
    return _estimate(config, algorithm, trajectory, *values)


def _values(
    config: Config, algorithm: Algorithm, params: Params, trajectory: Trajectory
) -> tuple[jax.Array, jax.Array]:
    """V(s) and V(s') of each step."""
    if not config.critic:
        return jnp.zeros_like(trajectory.reward), jnp.zeros_like(trajectory.reward)
    network = _on_valid_rows(config, trajectory, algorithm.networks.value)
    return network(params, trajectory.obs), network(params, trajectory.next_obs)


def _estimate(
    config: Config,
    algorithm: Algorithm,
    trajectory: Trajectory,
    value: jax.Array,
    next_value: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`estimate` from the critic's values."""
    inputs = (trajectory, value, next_value)
    coefficients = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}
    advantage = algorithm.advantage(*inputs, **coefficients)
    target = algorithm.value_target(*inputs, **coefficients)
    valid = trajectory.valid
    return jnp.where(valid, advantage, 0.0), jnp.where(valid, target, 0.0)


def policy_objective(
    config: Config,
    algorithm: Algorithm,
    params: Params,
    trajectory: Trajectory,
    advantage: jax.Array,
    outputs: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """policy_loss - ent_coef · entropy, and the two apart; the policy's outputs may be known."""
    network = _on_valid_rows(config, trajectory, algorithm.networks.policy, outputs)
    outputs = network(params, trajectory.obs)
    log_prob = algorithm.distribution.log_prob(outputs, trajectory.action)
    loss = algorithm.policy_loss(log_prob, advantage, trajectory.valid)
    entropy = masked_mean(algorithm.distribution.entropy(outputs), trajectory.valid)
    return loss - config.ent_coef * entropy, {"policy_loss": loss, "entropy": entropy}


def joint_objective(
    config: Config,
    algorithm: Algorithm,
    params: Params,
    trajectory: Trajectory,
    advantage: jax.Array,
    target: jax.Array,
    outputs: jax.Array | None = None,
    value: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """policy_loss + vf_coef · value_loss - ent_coef · entropy, and the three apart.

    The policy's outputs and V(s) may be known.
    """
    objective, parts = policy_objective(config, algorithm, params, trajectory, advantage, outputs)
    network = _on_valid_rows(config, trajectory, algorithm.networks.value, value)
    loss = value_loss(network(params, trajectory.obs), target, trajectory.valid)
    return objective + config.vf_coef * loss, {**parts, "value_loss": loss}


def _learn(
    config: Config,
    algorithm: Algorithm,
    state: LearnerState,
    trajectory: Trajectory,
    replay_bits: jax.Array | None,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """Estimate, then step the optimizers; a seed at a time where that is faster."""
    fit = _fit_shared if config.networks == "shared" else _fit_separate
    samples = None
    if state.replay is not None and replay_bits is not None:
        draw = partial(replay.sample, state.replay, batch_size=config.batch_size)
        samples = jax.vmap(draw)(replay_bits)

    @lanes.one_by_one
    def turn(
        config: Config, learned: Learned, trajectory: Trajectory, outputs: Any, samples: Any
    ) -> tuple:
        if few:
            trajectory = trajectory._replace(obs=trajectory.obs.T.reshape(obs.shape))
        value, next_value = _values(config, algorithm, learned.params, trajectory)
        estimates = _estimate(config, algorithm, trajectory, value, next_value)
        return fit(config, algorithm, learned, trajectory, *estimates, outputs, value, samples)

    learned = Learned(state.params, state.opt_state, state.update)
    outputs, trajectory = _said(trajectory), trajectory._replace(acted=None)
    obs = trajectory.obs
    few = obs.shape[-1] <= dense.FEW_INPUTS
    if few:  # column by column, as `lanes.in_blocks` reads them again and again
        trajectory = trajectory._replace(obs=obs.reshape(-1, obs.shape[-1]).T)
    learned, losses = turn(config, learned, trajectory, outputs, samples)
    return state._replace(params=learned.params, opt_state=learned.opt_state), losses


def _said(trajectory: Trajectory) -> jax.Array | None:
    """What the policy said when it acted, unless `collect` has put other observations there."""
    acted = trajectory.acted
    return acted.outputs if acted is not None and acted.obs is trajectory.obs else None


def _fit_separate(
    config: Config,
    algorithm: Algorithm,
    state: Learned,
    trajectory: Trajectory,
    advantage: jax.Array,
    target: jax.Array,
    outputs: jax.Array | None,
    value: jax.Array,
    samples: Any,
) -> tuple[Learned, dict[str, jax.Array]]:
    """One step of the policy, then value_steps steps of the critic (if there is one)."""
    params, opt_state = state.params, state.opt_state

    def objective(policy: Params) -> tuple:
        return policy_objective(
            config, algorithm, {**params, "policy": policy}, trajectory, advantage, outputs
        )

    gradient, losses = jax.grad(objective, has_aux=True)(params["policy"])
    losses["policy_grad_norm"] = optax.tree.norm(gradient)
    rate = config.learning_rate * _schedule(config, state.update)
    policy = _descend(config, rate, gradient, opt_state["policy"], params["policy"])
    zero = jnp.zeros((), config.float_type)
    losses |= {"value_loss": zero, "value_grad_norm": zero}
    fitted = {"policy": policy}
    if config.critic:
        batch = _value_batch(config, algorithm, trajectory, target)
        rate = config.value_learning_rate * _schedule(config, state.update)

        def step(carry: tuple, sample: Any, known: jax.Array | None = None) -> tuple:
            value_params, value_opt_state = carry
            obs, goal, valid = batch(value_params, sample)
            network = algorithm.networks.value
            if not config.replays:
                network = _on_valid_rows(config, trajectory, network, known)

            def objective(value_params: Params) -> jax.Array:
                return value_loss(network({"value": value_params}, obs), goal, valid)

            loss, gradient = jax.value_and_grad(objective)(value_params)
            carry = _descend(config, rate, gradient, value_opt_state, value_params)
            return carry, {"value_loss": loss, "value_grad_norm": optax.tree.norm(gradient)}

        def samples_of(steps: int | slice) -> Any:
            return jax.tree.map(lambda x: x[steps], samples)

        # V(s) is known in the first step; its loss is the one that is reported.
        start = (params["value"], opt_state["value"])
        after, losses_of_first = step(start, samples_of(0), value)
        others = samples_of(slice(1, None))
        fitted["value"], _ = jax.lax.scan(step, after, others, length=config.value_steps - 1)
        losses |= losses_of_first
    state = state._replace(
        params={name: group for name, (group, _) in fitted.items()},
        opt_state={name: group for name, (_, group) in fitted.items()},
    )
    return state, losses


def _fit_shared(
    config: Config,
    algorithm: Algorithm,
    state: Learned,
    trajectory: Trajectory,
    advantage: jax.Array,
    target: jax.Array,
    outputs: jax.Array | None,
    value: jax.Array,
    samples: Any,
) -> tuple[Learned, dict[str, jax.Array]]:
    """One step of everything, on the joint loss."""

    def objective(params: Params) -> tuple:
        inputs = (config, algorithm, params, trajectory, advantage, target)
        return joint_objective(*inputs, outputs, value)

    gradient, losses = jax.grad(objective, has_aux=True)(state.params)
    losses["policy_grad_norm"] = optax.tree.norm(gradient)
    losses["value_grad_norm"] = jnp.zeros((), config.float_type)
    rate = config.learning_rate * _schedule(config, state.update)
    params, opt_state = _descend(config, rate, gradient, state.opt_state["shared"], state.params)
    return state._replace(params=params, opt_state={"shared": opt_state}), losses


def _value_batch(
    config: Config, algorithm: Algorithm, trajectory: Trajectory, target: jax.Array
) -> Callable[..., tuple]:
    """What a value step is fitted to: (value params, sample) -> obs, target, valid."""

    def from_batch(value_params: Params, sample: None) -> tuple:
        return trajectory.obs, target, trajectory.valid

    def from_replay(value_params: Params, sample: tuple) -> tuple:
        (obs, reward, next_obs, terminated), valid = sample
        next_value = algorithm.networks.value({"value": value_params}, next_obs)
        return obs, reward + config.gamma * jnp.where(terminated, 0.0, next_value), valid

    return from_replay if config.replays else from_batch


def _on_valid_rows(
    config: Config,
    trajectory: Trajectory,
    network: Callable,
    known: jax.Array | None = None,
) -> Callable:
    """The network in blocks, none of them after the longest episode; in `steps` all rows count.

    Args:
      known: its outputs, if they have been computed before.
    """
    valid = None if config.collect == "steps" else trajectory.valid
    return lanes.in_blocks(network, valid, known)


def _descend(
    config: Config, rate: jax.Array, gradient: Params, opt_state: Any, params: Params
) -> tuple[Params, Any]:
    """Clip, step the optimizer, and move the parameters by -rate times its direction."""
    if config.max_grad_norm is not None:
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        gradient, _ = clip.update(gradient, clip.init(params))
    direction, opt_state = OPTIMIZERS[config.optimizer].update(gradient, opt_state, params)
    params = jax.tree.map(lambda param, step: param - rate * step, params, direction)
    return (round_floats(params) if config.arithmetic == "float32_grid" else params), opt_state


def _schedule(config: Config, update: jax.Array) -> jax.Array:
    """The fraction of the learning rate that this update uses."""
    if config.lr_schedule == "constant":
        return jnp.ones((), config.float_type)
    return 1.0 - update.astype(config.float_type) / config.num_updates


def _remember(algorithm: Algorithm, ring: Any, trajectory: Trajectory) -> Any:
    if ring is None:
        return None
    rows = algorithm.remember(trajectory)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    return replay.insert(ring, flat, trajectory.valid.reshape(-1))
