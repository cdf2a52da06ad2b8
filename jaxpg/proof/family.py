"""The family against the truth: PPO, natural gradients, group baselines, and a view that is cut.

`oracle.py` holds the estimators of one step along the gradient. Here are the questions that the
other members raise, on problems of a few trajectories. What is judged is the library's own:
`learner.collect` writes every trajectory down, with the log π of the policy that acted,
`learner.estimate` weights them, and a `fit` descends. The truth they are held against is that of
`problems.py`, and knows nothing of them.

Letters: T steps, M trajectories, N of them in a batch, K batches, P parameters of the policy.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core import algorithms, natural, noise, ppo
from jaxpg.core.config import Config, preset, validate
from jaxpg.core.distributions import categorical
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Batch, Params, Trajectory
from jaxpg.proof import judged, oracle
from jaxpg.proof.finding import Finding, held
from jaxpg.proof.problems import (
    Problem,
    cartpole,
    probability,
    quick_jit,
    tabular,
)

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
CLIPS = {"no clip": 1e9, "clip 0.2": 0.2}
ITERATIONS = (1, 2, 5, 10)
DAMPINGS = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
GROUP_SIZES = (2, 3)
ONCE = {"epochs": 1, "minibatches": 1}
GROUPS: dict[str, tuple[str, dict[str, Any]]] = {  # a preset, and what of it is changed
    "leave-one-out": ("rloo", {}),
    "mean": ("grpo", {**ONCE, "group_std": False, "reduction": "trajectories"}),
    "mean and deviation": ("grpo", {**ONCE, "reduction": "trajectories"}),
    "leave-one-out, by length": ("rloo", {"reduction": "trajectory_means"}),
    "mean and deviation, by length": ("grpo", ONCE),
}
LAMBDAS = (0.8, 0.95, 1.0)
CUTS = (1, 2, 3, 5, 8, 12)  # steps from the first to the end of the view
SMALL_UNITS = 1e8  # that make one unit of reward
GAP = (1e-14, 1e-9)  # shares of the largest eigenvalue; F can be inverted if none is between


def findings(*, seed: int = 0, report: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """What comes out of every question, at the networks' initial weights.

    Args:
      seed: of the weights.
      report: told which question is begun, from any thread.
    """

    def asked(question: str) -> list[Finding]:
        report(question)
        with jax.enable_x64(True):  # it holds for one thread
            ask, problems = QUESTIONS[question]
            found = []
            for problem in (make() for make in problems):
                params = problem.networks.init(*noise.split(noise.key(seed), 2))
                found += [held._replace(question=question) for held in ask(problem, params)]
            return found

    with ThreadPoolExecutor() as pool:  # as in `oracle.rows`
        return [finding for found in pool.map(asked, QUESTIONS) for finding in found]


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
        for clip, rate in itertools.product(CLIPS, RATES if size == 2 else (USUAL_RATE,)):
            config = judged.config(
                estimator="reward_to_go",
                fit="ppo",
                epochs=EPOCHS,
                num_envs=size,
                clip_coef=CLIPS[clip],
                learning_rate=rate,
            )
            batch = judged.estimate(problem, config, params, batches, values)
            after, gradients = judged.fit(
                problem, config, params, batch, next(iter(judged.orders(size).values()))
            )
            alone = judged.estimate(problem, config, params, oracle.every_batch(problem, 1), values)
            start = np.asarray(natural.as_vector(params))
            reached = np.tile(start, (len(weight), 1))  # [K, P]
            case = clip if size == 2 else f"{clip}, batches of {size}"
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


def direction(problem: Problem, params: Params) -> Iterator[Finding]:
    """Conjugate gradients against (F + c I)⁻¹ ∇U, with the exact Fisher matrix F written down.

    F is of the states that the policy meets, and so are the products that stand for it: as many
    iterations as F has eigenvalues that are not 0 suffice, and two do not. Then
    `natural_gradient` of one batch, against the F and the g of that batch; and NPG's step in
    expectation over batches.
    """
    weight = np.asarray(probability(problem, params))
    fisher, gradient = _fisher(problem, params, weight), judged.gradient(problem, params, 1.0)
    known = _invertible(fisher)
    exact = {c: _solve(fisher, gradient, c) for c in DAMPINGS if c or known}
    enough = np.linalg.matrix_rank(fisher, tol=GAP[1], hermitian=True) if known else len(gradient)
    config = judged.config(estimator="reward_to_go", baseline="none", fit="npg")
    alone = judged.estimate(problem, config, params, oracle.every_batch(problem, 1))
    for (damping, truth), steps in itertools.product(exact.items(), (*ITERATIONS, len(gradient))):
        yield held(
            problem,
            f"conjugate gradients, damping {damping:g}",
            _conjugate(problem, config, params, alone, weight, gradient, damping, steps),
            truth,
            x=steps,
            against="(F + c I)⁻¹ ∇U",
            expected=0.0 if steps >= enough else None,
            open=steps > 2,
        )
    for damping, found in exact.items():
        if damping and 0.0 in exact:
            yield held(problem, f"damping {damping:g}, solved", found, exact[0.0], against="F⁻¹ ∇U")

    everything = jnp.arange(len(weight))[:, None]  # a batch of all trajectories
    config = judged.config(
        **{"estimator": "reward_to_go", "baseline": "none", "fit": "npg"},
        **{"num_envs": len(everything), "cg_steps": len(gradient)},
    )
    batch = judged.estimate(problem, config, params, everything)
    even = np.full(len(weight), 1.0 / len(weight))
    g = np.einsum("m,tm,tmp->p", even, judged.returns(problem), judged.score(problem, params))
    yield held(
        problem,
        "natural_gradient of one batch, damping 0.1",
        _natural(problem, config, params, jax.tree.map(lambda x: x[0], batch)),
        _solve(_fisher(problem, params, even), g, 0.1),
        against="(F + c I)⁻¹ g of the batch",
        expected=0.0,
    )
    for size in (1, 2):
        weight, batches = judged.batches(problem, params, size)
        config = judged.config(
            **{"estimator": "reward_to_go", "baseline": "none", "fit": "npg"}, num_envs=size
        )
        batch = judged.estimate(problem, config, params, batches)
        after, _ = judged.fit(problem, config, params, batch)
        yield held(
            problem,
            f"NPG's step, batches of {size}, damping 0.1",
            weight @ (after - np.asarray(natural.as_vector(params))) / float(config.learning_rate),
            exact[0.1],
            against="(F + c I)⁻¹ ∇U",
        )


def groups(problem: Problem, params: Params) -> Iterator[Finding]:
    """The presets `rloo` and `grpo`, whole and in part, in their first step on a group.

    A mean that holds one's own return scales the gradient by 1 - 1/N, and no more.
    """
    for size in GROUP_SIZES:
        weight, batches = judged.batches(problem, params, size)
        for case, (name, fields) in GROUPS.items():
            config = _preset(name, num_envs=size, **fields)
            batch = judged.estimate(problem, config, params, batches)
            order = next(iter(judged.orders(size).values()))
            expected = {"leave-one-out": 0.0, "mean": 1.0 / size}.get(case)
            yield held(
                problem,
                f"{case}, groups of {size}",
                weight @ judged.fit(problem, config, params, batch, order)[1][:, 0],
                judged.gradient(problem, params, 1.0),
                expected=expected,
            )


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


def _preset(name: str, **fields: Any) -> Config:
    """The preset with the problems' networks, whose gradients are not clipped."""
    ours = ("hidden_sizes", "activation", "arithmetic", "max_grad_norm")
    fields |= {field: getattr(judged.PLAIN, field) for field in ours}
    return as_arrays(validate(dataclasses.replace(preset(name), **fields)))


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
    """What PPO's surrogate says, in expectation over trajectories of params, where each batch of
    others has come to.

    Args:
      alone: each trajectory a batch, leaves [M, T, 1, ...].
    """
    algorithm, chance = judged.build(problem, config), probability(problem, params)

    def surrogate(policy: jax.Array) -> jax.Array:
        there = judged.as_policy(params, policy)
        loss = jax.vmap(lambda batch: ppo.surrogate_objective(config, algorithm, there, batch)[0])
        return -chance @ loss(alone)

    return weight @ jax.vmap(jax.grad(surrogate))(reached)


def _fisher(problem: Problem, params: Params, weight: np.ndarray) -> np.ndarray:
    """F = E[Σ_a π(a|s) ∇ log π(a|s) ∇ log π(a|s)ᵀ] over steps, [P, P].

    Args:
      weight: of the trajectories, [M].
    """

    def log_policy(policy: jax.Array) -> jax.Array:
        outputs = problem.networks.policy(judged.as_policy(params, policy), problem.trajectory.obs)
        return jax.nn.log_softmax(outputs)

    start = natural.as_vector(params)
    both = quick_jit(lambda policy: (log_policy(policy), jax.jacfwd(log_policy)(policy)))
    log_prob, score = map(np.asarray, both(start))  # [T, M, A] and [T, M, A, P]
    chance = np.exp(log_prob) * np.asarray(problem.trajectory.valid)[..., None]
    chance = weight[:, None] * chance
    return np.einsum("tma,tmap,tmaq->pq", chance, score, score, optimize=True) / np.sum(chance)


def _solve(fisher: np.ndarray, gradient: np.ndarray, damping: float) -> np.ndarray:
    """(F + c I)⁻¹ g; with c = 0 the shortest of all solutions, which lies in the range of F."""
    if damping:
        return np.linalg.solve(fisher + damping * np.eye(len(fisher)), gradient)
    return np.linalg.pinv(fisher, rcond=GAP[1], hermitian=True) @ gradient


def _invertible(fisher: np.ndarray) -> bool:
    """Whether the eigenvalues that are 0 can be told from those that are not."""
    eigenvalues = np.linalg.eigvalsh(fisher)
    share = np.abs(eigenvalues) / eigenvalues[-1]
    return not np.any((share > GAP[0]) & (share < GAP[1]))


@partial(quick_jit, static_argnames="steps")
def _conjugate(
    problem: Problem,
    config: Config,
    params: Params,
    alone: Batch,
    weight: jax.Array,
    gradient: jax.Array,
    damping: float,
    steps: int,
) -> jax.Array:
    """`conjugate_gradients` with products that are expectations of `fisher_product`, [P].

    Args:
      alone: each trajectory a batch, leaves [M, T, 1, ...].
      weight: of the trajectories, [M].
    """
    algorithm = judged.build(problem, config)
    share = weight * jnp.sum(alone.valid, axis=(1, 2))  # of the steps
    share = share / jnp.sum(share)

    def product(vector: jax.Array) -> jax.Array:
        each = jax.vmap(lambda batch: natural.fisher_product(algorithm, params, batch)(vector))
        return share @ each(alone) + damping * vector

    length = jnp.sqrt(natural.dot(gradient, gradient))
    share_found = natural.conjugate_gradients(
        product,
        gradient / length,
        steps=steps,
        tolerance=1e-28,  # where a residual is rounding
    )
    return length * share_found


@quick_jit
def _natural(problem: Problem, config: Config, params: Params, batch: Batch) -> jax.Array:
    """Minus the direction of `natural_gradient`, [P], for rewards in a unit so small that an
    absolute bound on the residual does not end the search."""
    algorithm = judged.build(problem, config)
    batch = batch._replace(advantage=SMALL_UNITS * batch.advantage)
    return -natural.natural_gradient(config, algorithm, params, batch).direction / SMALL_UNITS


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


SMALL = (partial(cartpole, 5), partial(tabular, 2))  # few enough for all groups of 3
QUESTIONS: dict[str, tuple[Callable[..., Iterator[Finding]], tuple[Callable, ...]]] = {
    "first minibatch": (first_minibatch, SMALL),
    "first steps": (first_steps, SMALL[:1]),
    "epochs": (epochs, SMALL),
    "natural direction": (direction, (SMALL[0], tabular)),
    "groups": (groups, SMALL),
    "weights before a cut": (weights_before_cut, (partial(cartpole, 12),)),
    "bias before a cut": (bias_before_cut, (partial(cartpole, 12), partial(tabular, 5))),
}  # who asks, and of which problems
