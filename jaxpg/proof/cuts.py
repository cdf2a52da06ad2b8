"""A view that is cut before its episodes end: what does GAE make of the last steps before the cut?

Letters: T steps, M trajectories, P parameters of the policy.

Source: Schulman et al. 2016 (arXiv:1506.02438), eq. 16; what a cut does to its weights is observed
in An Approximate Ascent Approach To Prove Convergence of PPO (arXiv:2602.03386).
"""

import itertools
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core import algorithms
from jaxpg.core.config import Config
from jaxpg.core.types import Params, Trajectory
from jaxpg.proof import judged, oracle
from jaxpg.proof.finding import Finding, held
from jaxpg.proof.problems import Problem, probability, quick_jit

LAMBDAS = (0.8, 0.95, 1.0)
CUTS = (1, 2, 3, 5, 8, 12)  # steps from the first to the end of the view


def weights_before_cut(problem: Problem, params: Params) -> Iterator[Finding]:
    """The weights that GAE gives to the n-step estimators, D steps before its view is cut.

        (1 - λ) λ^(n-1) for n < D,    λ^(D-1) for n = D

    V(s_{t+n}) enters with γ^n times its estimator's weight, less what the next longer one takes
    back: the weight is a derivative.
    """
    steps = problem.horizon - 1  # the last step would end the task
    longest = int(np.argmax(np.sum(problem.trajectory.valid, axis=0)))
    row = jax.tree.map(lambda x: x[:steps, longest : longest + 1], problem.trajectory)
    for gae_lambda in LAMBDAS:
        config = judged.config(
            estimator="gae", gae_lambda=gae_lambda, collect="steps", num_steps=steps
        )
        found = np.asarray(_weights(config, row))
        for distance in (d for d in CUTS if d <= steps):
            n = np.arange(1, distance + 1)
            theory = np.where(n < distance, 1.0 - gae_lambda, 1.0) * gae_lambda ** (n - 1.0)
            weights = found[steps - distance, :distance]
            case = f"GAE({gae_lambda:g}): the weight of"
            yield held(
                problem,
                f"{case} each",
                weights,
                theory,
                x=distance,
                against="theory",
                expected=0.0,
            )
            yield held(
                problem,
                f"{case} the longest",
                weights[-1:],
                np.ones(1),
                x=distance,
                against="all",
                expected=1.0 - gae_lambda ** (distance - 1.0),
            )


def bias_before_cut(problem: Problem, params: Params) -> Iterator[Finding]:
    """What GAE makes of the first step, D steps before its view is cut: its part of ∇U.

    Whether a reward is seen or foretold by V, the truth is the same. With the exact V nothing is
    lost; with a wrong one the longest estimator, the least wrong, ends at the cut.
    """
    weight = np.asarray(probability(problem, params))
    score = np.asarray(judged.score(problem, params))[0]  # of the first step, [M, P]
    truth = (weight * judged.returns(problem)[0]) @ score
    alone = oracle.every_batch(problem, 1)
    far = problem.horizon
    for kind, distances in (("wrong V", CUTS), ("exact V", CUTS[1:2])):
        values = judged.values(problem, params, kind, 1.0)
        for distance, gae_lambda in itertools.product((d for d in distances if d <= far), LAMBDAS):
            config = judged.config(
                estimator="gae", gae_lambda=gae_lambda, collect="steps", num_steps=distance
            )
            batch = judged.estimate(problem, config, params, alone, values, rows=distance)
            known = kind == "exact V" or (gae_lambda == 1.0 and distance == far)
            yield held(
                problem,
                f"GAE({gae_lambda:g}), {kind}",
                (weight * batch.advantage[:, 0, 0]) @ score,
                truth,
                x=distance,
                against="∇U of the first step",
                expected=0.0 if known else None,
            )


@quick_jit
def _weights(config: Config, row: Trajectory) -> jax.Array:
    """The weight of the n-step estimator in Ψ_t, [T, T] with n from 1; γ is 1."""
    advantage = partial(
        algorithms.make_advantage(config), row, gamma=config.gamma, gae_lambda=config.gae_lambda
    )
    zero = jnp.zeros_like(row.reward)
    slopes = jax.jacobian(advantage, argnums=(0, 1))(zero, zero)
    of_value, of_next = (slope[:, 0, :, 0] for slope in slopes)  # [T, T], by t and by where V is
    # V(s_{t+n}) is the value of row t + n and the next value of the row before it.
    by_row = of_next + jnp.pad(of_value[:, 1:], ((0, 0), (0, 1)))
    steps = jnp.arange(len(row.reward))
    return jax.vmap(lambda weights, t: jnp.roll(weights, -t))(by_row, steps)
