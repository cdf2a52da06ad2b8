"""PPO's minibatches and epochs: how far is each gradient that it follows from the true one?

Before the first step π is π_old, and every minibatch should say what VPG says. From then on the
batch judges itself, states and Ψ are those of the policy that acted, and the clip takes gradient
away, or the penalty pulls back: none of that is the gradient at the parameters that have been
reached.

Letters: T steps, M trajectories, N of them in a batch, K batches, P parameters of the policy.

Source: Schulman et al. 2017 (arXiv:1707.06347).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core import natural, penalty, ppo
from jaxpg.core.config import Config
from jaxpg.core.distributions import categorical
from jaxpg.core.types import Batch, Params
from jaxpg.proof import judged, oracle
from jaxpg.proof.finding import Finding, held
from jaxpg.proof.problems import Problem, probability, quick_jit

ESTIMATORS: tuple[tuple[dict[str, Any], str], ...] = (  # and the kind of V, as in oracle.KINDS
    ({"estimator": "total_return", "baseline": "constant"}, "constant"),
    ({"estimator": "reward_to_go", "baseline": "none"}, "none"),
    ({"estimator": "reward_to_go", "baseline": "value"}, "exact V"),
    ({"estimator": "gae", "baseline": "value", "gae_lambda": 0.5}, "exact V"),
    ({"estimator": "gae", "baseline": "value", "gae_lambda": 0.5}, "wrong V"),
)
EPOCHS = 4
RATES = (0.01, 0.1, 0.3, 1.0, 3.0)  # of plain gradient steps
USUAL_RATE = 0.1  # of those that are held at several sizes of a batch
FORMS: dict[str, dict[str, Any]] = {
    "no clip": {"fit": "ppo", "clip_coef": 1e9},
    "clip 0.2": {"fit": "ppo", "clip_coef": 0.2},
    "penalty 1": {"fit": "ppo_penalty", "kl_coef": 1.0},
}


def first_minibatch(problem: Problem, params: Params) -> Iterator[Finding]:
    """PPO's first gradient, of one of two episodes, in expectation over both orders of the two.

    It is unbiased where the estimator is (`oracle.why_biased`), since ρ = 1 there.
    """
    weight, batches = judged.batches(problem, params, 2)
    for fields, kind in ESTIMATORS:
        for gamma, over in ((1.0, None), (0.9, None), (1.0, "batch"), (1.0, "minibatch")):
            config = judged.config(
                **fields,
                gamma=gamma,
                normalize_advantage=over is not None,
                normalize_over=over or "batch",
                fit="ppo",
                num_envs=2,
                minibatches=2,
            )
            batch = judged.estimate(
                problem, config, params, batches, judged.values(problem, params, kind, gamma)
            )
            fits = [
                judged.fit(problem, config, params, batch, order)
                for order in judged.orders(2).values()
            ]
            found = np.mean([weight @ gradients[:, 0] for _, gradients in fits], axis=0)
            yield held(
                problem,
                f"{oracle.label_of(config)}, {kind}, "
                + (f"normalised per {over}" if over else f"γ={gamma:g}"),
                found,
                judged.gradient(problem, params, gamma),
                expected=None if oracle.why_biased(config, kind) else 0.0,
            )


def first_steps(problem: Problem, params: Params) -> Iterator[Finding]:
    """The same of two single steps out of six, in expectation over all 15 pairs, held against VPG's
    gradient on the whole batch.

    The six are the first three rows of two trajectories, none of which ends sooner.
    """
    weight, batches = judged.batches(problem, params, 2)
    orders = {frozenset(order[:2]): words for order, words in judged.orders(6).items()}
    for over in (None, "batch", "minibatch"):
        fields = {"estimator": "gae", "baseline": "value", "gae_lambda": 0.95, "num_envs": 2}
        fields |= {"collect": "steps", "num_steps": 3, "reduction": "steps"}
        vpg = judged.config(**fields, normalize_advantage=over is not None)
        config = dataclasses.replace(vpg, fit="ppo", minibatches=3, normalize_over=over or "batch")
        whole, batch = (judged.estimate(problem, c, params, batches, rows=3) for c in (vpg, config))
        fits = [judged.fit(problem, config, params, batch, order) for order in orders.values()]
        yield held(
            problem,
            "pairs of steps, GAE(0.95), " + (f"normalised per {over}" if over else "as it is"),
            np.mean([weight @ gradients[:, 0] for _, gradients in fits], axis=0),
            weight @ judged.fit(problem, vpg, params, whole)[1][:, 0],
            against="VPG",
            expected=None if over == "minibatch" else 0.0,
        )


def epochs(problem: Problem, params: Params) -> Iterator[Finding]:
    """PPO's gradient in epoch k, in expectation, against ∇U at the parameters that it has reached.

    Two things part them: a batch that has chosen where to go is no fair judge of it any more, and
    states and Ψ are those of the policy that acted. What a *fresh* batch of the acting policy
    would say at the same parameters has the second alone. Steps are plain, of the whole batch, so
    that nothing else does; Ψ is the reward-to-go less the exact V.
    """
    values = judged.values(problem, params, "exact V", 1.0)
    for size in (2, 1):
        weight, batches = judged.batches(problem, params, size)
        for form, rate in itertools.product(FORMS, RATES if size == 2 else (USUAL_RATE,)):
            config = judged.config(
                **FORMS[form],
                estimator="reward_to_go",
                epochs=EPOCHS,
                num_envs=size,
                learning_rate=rate,
            )
            batch = judged.estimate(problem, config, params, batches, values)
            after, gradients = judged.fit(
                problem, config, params, batch, next(iter(judged.orders(size).values()))
            )
            alone = judged.estimate(problem, config, params, oracle.every_batch(problem, 1), values)
            start = np.asarray(natural.as_vector(params))
            reached = np.tile(start, (len(weight), 1))  # [K, P]
            case = form if size == 2 else f"{form}, batches of {size}"
            for k in range(EPOCHS):
                exact, kl = _exactly(problem, params, weight, reached)
                fresh = _freshly(problem, judged.fit_only(config), params, alone, weight, reached)
                found = weight @ gradients[:, k]
                expected = None if k else 0.0
                told: dict[str, Any] = {
                    "x": rate,
                    "kl": float(kl),
                    "against": "∇U there",
                    "expected": expected,
                }
                yield held(problem, f"epoch {k + 1}, {case}", found, exact, **told)
                yield held(problem, f"epoch {k + 1}, {case}, fresh", fresh, exact, **told)
                reached = reached + rate * gradients[:, k]
            path = start
            for _ in range(EPOCHS):
                path = path + rate * judged.gradient(problem, judged.as_policy(params, path), 1.0)
            yield held(
                problem,
                f"way of {EPOCHS} epochs, {case}",
                weight @ (after - start),
                path - start,
                x=rate,
                against=f"{EPOCHS} exact steps",
            )


@quick_jit
def _exactly(
    problem: Problem, params: Params, weight: jax.Array, reached: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """∇U, and the mean KL over the states that params meets, where each batch has come to."""
    chance, valid = probability(problem, params), problem.trajectory.valid

    def utility_and_kl(policy: jax.Array) -> tuple[jax.Array, jax.Array]:
        there = judged.as_policy(params, policy)
        kl = categorical.kl(
            *(problem.networks.policy(p, problem.trajectory.obs) for p in (params, there))
        )
        kl = chance @ jnp.sum(jnp.where(valid, kl, 0.0), axis=0) / (chance @ jnp.sum(valid, axis=0))
        return probability(problem, there) @ jnp.sum(problem.trajectory.reward, axis=0), kl

    gradient, kl = jax.vmap(jax.grad(utility_and_kl, has_aux=True))(reached)
    return weight @ gradient, weight @ kl


@quick_jit
def _freshly(
    problem: Problem,
    config: Config,
    params: Params,
    alone: Batch,
    weight: jax.Array,
    reached: jax.Array,
) -> jax.Array:
    """What PPO's objective says, in expectation over trajectories of params, where each batch of
    others has come to.

    Args:
      alone: each trajectory a batch, leaves [M, T, 1, ...].
    """
    algorithm, chance = judged.build(problem, config), probability(problem, params)
    objective = ppo.surrogate_objective
    if config.fit == "ppo_penalty":
        beta = algorithm.init_fit(config, params)
        objective = partial(penalty.surrogate_objective, old=params, beta=beta)

    def utility(policy: jax.Array) -> jax.Array:
        there = judged.as_policy(params, policy)
        loss = jax.vmap(lambda batch: objective(config, algorithm, there, batch)[0])
        return -chance @ loss(alone)

    return weight @ jax.vmap(jax.grad(utility))(reached)
