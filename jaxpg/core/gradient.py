"""The policy gradient: one step along it, and the critic's steps; or one along the joint loss's.

    θ ← θ - α_u ∇(L_π - c_H H̄),    φ ← φ - β_u ∇L_V

α_u and β_u are the learning rates of update u, and an optimizer may turn and scale the gradients.
`scan` is the loop over the critic's steps, with the arguments of `jax.lax.scan`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpg.core import learner
from jaxpg.core.config import Config
from jaxpg.core.losses import clipped_value_loss, value_loss
from jaxpg.core.types import Algorithm, Batch, Fitted, Learned, Params


def fit(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    batch: Batch,
    *,
    scan: Callable = jax.lax.scan,
) -> tuple[Learned, Fitted]:
    """One step along the policy gradient, of losses apart or of their sum."""
    if config.joint:
        return fit_joint(config, algorithm, learned, batch)
    return fit_separate(config, algorithm, learned, batch, scan=scan)


def fit_separate(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    batch: Batch,
    *,
    scan: Callable = jax.lax.scan,
) -> tuple[Learned, Fitted]:
    """One step of the policy, then value_steps steps of the critic (if there is one)."""
    params, opt_state = learned.params, learned.opt_state
    rate = learner.rates(config, learned.update)["policy"]

    def of_policy(policy: Params) -> tuple:
        return policy_objective(
            config, algorithm, learner.with_group(params, "policy", policy), batch
        )

    start = (params["policy"], opt_state["policy"])
    (policy, state), step = learner.descend(config, algorithm, rate, of_policy, start)
    learned = learned._replace(
        params=learner.with_group(params, "policy", policy),
        opt_state={**opt_state, "policy": state},
    )
    learned, critic = fit_value(config, algorithm, learned, batch, scan=scan)
    losses = {**step.parts, "policy_grad_norm": step.norm, **critic.losses}
    gradients = {"policy": jax.tree.map(lambda x: x[None], step.gradient), **critic.gradients}
    return learned, Fitted(losses, gradients)


def fit_value(
    config: Config,
    algorithm: Algorithm,
    learned: Learned,
    batch: Batch,
    *,
    scan: Callable = jax.lax.scan,
) -> tuple[Learned, Fitted]:
    """value_steps steps of the critic; without one nothing, and losses of 0.

    Raises:
      ConfigError: if there are parameters that neither the policy's step nor these would train.
    """
    learner.check_groups(learner.groups(config, learned.params))
    zero = jnp.zeros((), config.float_type)
    if not config.critic:
        return learned, Fitted({"value_loss": zero, "value_grad_norm": zero}, {})
    params, opt_state = learned.params, learned.opt_state
    rate = learner.rates(config, learned.update)["value"]

    def step_value(carry: tuple, sample: Any) -> tuple[tuple, learner.Descent]:
        def of_value(value: Params) -> tuple:
            whole = learner.with_group(params, "value", value)
            if config.replays:
                return replay_objective(config, algorithm, whole, sample)
            return value_objective(config, algorithm, whole, batch)

        return learner.descend(config, algorithm, rate, of_value, carry)

    start = (params["value"], opt_state["value"])
    (value, state), steps = scan(step_value, start, batch.samples, length=config.value_steps)
    losses = {"value_loss": steps.parts["value_loss"][0], "value_grad_norm": steps.norm[0]}
    learned = learned._replace(
        params=learner.with_group(params, "value", value), opt_state={**opt_state, "value": state}
    )
    return learned, Fitted(losses, {"value": steps.gradient})


def fit_joint(
    config: Config, algorithm: Algorithm, learned: Learned, batch: Batch
) -> tuple[Learned, Fitted]:
    """One step of everything, on the joint loss."""
    params, opt_state = learned.params, learned.opt_state
    rate = learner.rates(config, learned.update)["joint"]
    objective = joint_objective(policy_objective, value_objective)

    def of_all(group: Params) -> tuple:
        return objective(config, algorithm, learner.with_group(params, "joint", group), batch)

    start = (learner.groups(config, params)["joint"], opt_state["joint"])
    (group, state), step = learner.descend(config, algorithm, rate, of_all, start)
    losses = {**step.parts, "policy_grad_norm": step.norm}
    losses["value_grad_norm"] = jnp.zeros((), config.float_type)
    learned = learned._replace(
        params=learner.with_group(params, "joint", group), opt_state={"joint": state}
    )
    gradients = {"joint": jax.tree.map(lambda x: x[None], step.gradient)}
    return learned, Fitted(losses, gradients)


def policy_objective(
    config: Config, algorithm: Algorithm, params: Params, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """policy_loss - ent_coef · entropy, and the two apart."""
    outputs = algorithm.networks.policy(params, batch.obs)
    log_prob = algorithm.distribution.log_prob(outputs, batch.action)
    return learner.regularized(config, algorithm, outputs, log_prob, batch)


def value_objective(
    config: Config, algorithm: Algorithm, params: Params, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The critic's loss on the batch, clipped or not."""
    value = algorithm.networks.value(params, batch.obs)
    if config.clip_value is None:
        loss = value_loss(value, batch.target, batch.valid)
    else:
        inputs = (value, batch.value, batch.target, batch.valid)
        loss = clipped_value_loss(*inputs, clip_value=config.clip_value)
    return loss, {"value_loss": loss}


def replay_objective(
    config: Config, algorithm: Algorithm, params: Params, sample: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The critic's loss on a sample from the ring, whose targets r + γ V(s') follow the critic."""
    (obs, reward, next_obs, terminated), valid = sample
    next_value = jax.lax.stop_gradient(algorithm.networks.value(params, next_obs))
    target = reward + config.gamma * jnp.where(terminated, 0.0, next_value)
    loss = value_loss(algorithm.networks.value(params, obs), target, valid)
    return loss, {"value_loss": loss}


def joint_objective(policy_objective: Callable, value_objective: Callable) -> Callable:
    """The policy's objective, entropy bonus and all, + vf_coef · the critic's, and their parts."""

    def objective(
        config: Config, algorithm: Algorithm, params: Params, batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        policy, parts = policy_objective(config, algorithm, params, batch)
        value, more = value_objective(config, algorithm, params, batch)
        return policy + config.vf_coef * value, {**parts, **more}

    return objective
