"""The library on every batch of a problem, as the family's questions judge it.

`learner.collect` writes every trajectory down, with the log π of the policy that acted,
`learner.estimate` weights them, and a `fit` descends. The last functions are the truth's side, in
the policy's parameters alone: it is that of `problems.py`, and knows nothing of the others.

Letters: T steps, M trajectories, N of them in a batch, K batches, P parameters of the policy.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxpg.core import algorithms, learner, natural, noise, ring
from jaxpg.core.config import Config
from jaxpg.core.distributions import categorical
from jaxpg.core.rules import validate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Algorithm, Batch, Learned, Params, Trajectory
from jaxpg.proof import oracle
from jaxpg.proof.problems import (
    BASE,
    Problem,
    exact_gradient,
    exact_value,
    probability,
    quick_jit,
    written,
)

PLAIN = dataclasses.replace(
    BASE,
    discounting="absolute",
    gamma=1.0,
    reduction="trajectories",
    value_steps=1,
    optimizer="sgd",
    lr_schedule="constant",
    max_grad_norm=None,
)
Values = tuple[jax.Array, jax.Array]  # V(s_t) and V(s_{t+1}) of every trajectory, [T, M]


def config(**fields: Any) -> Config:
    """`PLAIN` with these fields."""
    return as_arrays(validate(dataclasses.replace(PLAIN, **fields)))


def build(problem: Problem, config: Config) -> Algorithm:
    """The config's algorithm, with the problem's environment and networks."""
    return algorithms.build(config)._replace(env=problem.env, networks=problem.networks)


def batches(problem: Problem, params: Params, size: int) -> tuple[np.ndarray, jax.Array]:
    """All batches of so many trajectories: their probabilities [K], and columns [N, K]."""
    columns = oracle.every_batch(problem, size)
    return oracle.chances(columns, probability(problem, params)), columns


@cache
def orders(size: int) -> dict[tuple[int, ...], np.ndarray]:
    """Random bits that put so many things into each order, or into many where there are many."""
    words = noise.bits(noise.key(0), (64 * size, noise.ROUNDS))
    index = jnp.arange(size, dtype=jnp.uint32)
    orders = jax.vmap(lambda word: ring.permute(index, jnp.uint32(size), word))(words)
    both = zip(np.asarray(orders).tolist(), np.asarray(words), strict=True)
    return {tuple(order): word for order, word in both}


def values(problem: Problem, params: Params, kind: str, gamma: float) -> Values | None:
    """The exact V, where the kind asks for it; the network's is the algorithm's own affair."""
    if kind != "exact V":
        return None
    value, next_value = exact_value(problem, params, gamma)
    return jnp.asarray(value), jnp.asarray(next_value)


@quick_jit
def trajectories(problem: Problem, params: Params) -> Trajectory:
    """Every trajectory as these parameters write it down, [T, M]."""
    return written(problem, params, build(problem, config()))


def estimate(
    problem: Problem,
    config: Config,
    params: Params,
    batches: jax.Array,
    values: Values | None = None,
    *,
    rows: int | None = None,
) -> Batch:
    """`learner.estimate` of each batch of trajectories, leaves [K, T, N, ...].

    Args:
      batches: their columns, [N, K].
      values: V(s_t) and V(s_{t+1}) in the place of the network's.
      rows: of a view that is cut; None: all.
    """
    over_batch = config.normalize_advantage and config.normalize_over == "batch"
    config = dataclasses.replace(  # without what a fit does: one program for all of them
        config,
        fit="gradient",
        epochs=1,
        minibatches=1,
        reduction="steps",
        normalize_over="batch",
        normalize_advantage=over_batch,
    )
    trajectory = trajectories(problem, params)
    trajectory, values = jax.tree.map(lambda x: x[:rows], (trajectory, values))
    return _estimates(problem, config, params, trajectory, values, batches)


def fit(
    problem: Problem,
    config: Config,
    params: Params,
    batch: Batch,
    order: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the config's fit makes of each batch.

    Args:
      batch: leaves [K, T, N, ...].
      order: of PPO's epochs, uint32 [ROUNDS].

    Returns:
      The policy's parameters [K, P], and minus the gradients that it was given, [K, steps, P].
    """
    each = None if order is None else jnp.broadcast_to(order, (config.epochs, noise.ROUNDS))
    after, gradients = _fits(problem, fit_only(config), params, batch, each)
    return np.asarray(after), -np.asarray(gradients)


def fit_only(config: Config) -> Config:
    """Without an estimator, whose Ψ is given: one program for all of them, and no critic."""
    return dataclasses.replace(
        config,
        estimator="reward_to_go",
        baseline="none",
        group_std=False,
        normalize_advantage=config.normalize_over == "minibatch",
    )


def gradient(problem: Problem, params: Params, gamma: float) -> np.ndarray:
    """∇U in the policy's parameters, [P]."""
    _, unravel = ravel_pytree(params)
    gradient = jnp.asarray(exact_gradient(problem, params, gamma))
    return np.asarray(natural.as_vector(unravel(gradient)))


def as_policy(params: Params, policy: Any) -> Params:
    """The parameters with these of the policy, [P]."""
    return {**params, "policy": ravel_pytree(params["policy"])[1](policy)}


@quick_jit
def score(problem: Problem, params: Params) -> jax.Array:
    """∇ log π(a_t|s_t), [T, M, P]; 0 on padding."""

    def log_prob(policy: jax.Array) -> jax.Array:
        outputs = problem.networks.policy(as_policy(params, policy), problem.trajectory.obs)
        found = categorical.log_prob(outputs, problem.trajectory.action)
        return jnp.where(problem.trajectory.valid, found, 0.0)

    return jax.jacfwd(log_prob)(natural.as_vector(params))


def returns(problem: Problem) -> np.ndarray:
    """Σ_{k≥t} r_k, [T, M]."""
    return np.cumsum(np.asarray(problem.trajectory.reward)[::-1], axis=0)[::-1]


@quick_jit
def _estimates(
    problem: Problem,
    config: Config,
    params: Params,
    trajectory: Trajectory,
    values: Values | None,
    batches: jax.Array,
) -> Batch:
    algorithm = build(problem, config)

    def one(columns: jax.Array) -> Batch:
        taken, given = jax.tree.map(lambda x: x[:, columns], (trajectory, values))
        judged = algorithm
        if given is not None:
            judged = algorithm._replace(
                advantage=lambda trajectory, *_, **c: algorithm.advantage(trajectory, *given, **c)
            )
        return learner.estimate(config, judged, params, taken)

    return jax.vmap(one, in_axes=1)(batches)


@quick_jit
def _fits(
    problem: Problem, config: Config, params: Params, batches: Batch, order: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    algorithm = build(problem, config)
    policy = {"policy": params["policy"]}
    opt_state = (
        {} if config.natural else {"policy": algorithm.optimizer(config).init(policy["policy"])}
    )
    learned = Learned(policy, opt_state, jnp.int32(0), algorithm.init_fit(config, policy))

    def one(batch: Batch) -> tuple[jax.Array, jax.Array]:
        batch = batch._replace(order=order)
        after, fitted = algorithm.fit(config, algorithm, learned, batch)
        leaves = jax.tree.leaves(fitted.gradients["policy"])
        gradients = [leaf.reshape(len(leaf), -1) for leaf in leaves]
        return natural.as_vector(after.params), jnp.concatenate(gradients, axis=1)

    return jax.vmap(one)(batches)
