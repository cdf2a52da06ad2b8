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
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxpg.core import algorithms, natural, noise, ppo, ring
from jaxpg.core.config import Config, preset, validate
from jaxpg.core.distributions import categorical
from jaxpg.core.learner import estimate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Algorithm, Batch, Learned, Params, Trajectory
from jaxpg.proof import oracle
from jaxpg.proof.finding import Finding, held
from jaxpg.proof.problems import (
    BASE,
    Problem,
    cartpole,
    exact_gradient,
    exact_value,
    probability,
    quick_jit,
    tabular,
    written,
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
    weight, batches = _batches(problem, params, 2)
    for fields, kind in ESTIMATORS:
        for gamma, over in ((1.0, None), (0.9, None), (1.0, "batch"), (1.0, "minibatch")):
            config = _config(
                **fields,
                gamma=gamma,
                normalize_advantage=over is not None,
                normalize_over=over or "batch",
                fit="ppo",
                num_envs=2,
                minibatches=2,
            )
            batch = _estimate(
                problem, config, params, batches, _values(problem, params, kind, gamma)
            )
            fits = [_fit(problem, config, params, batch, order) for order in _orders(2).values()]
            found = np.mean([weight @ gradients[:, 0] for _, gradients in fits], axis=0)
            yield held(
                problem,
                f"{oracle.label_of(config)}, {kind}, "
                + (f"normalised per {over}" if over else f"γ={gamma:g}"),
                found,
                _gradient(problem, params, gamma),
                expected=None if oracle.why_biased(config, kind) else 0.0,
            )


def first_steps(problem: Problem, params: Params) -> Iterator[Finding]:
    """The same of two single steps out of six, in expectation over all 15 pairs, held against VPG's
    gradient on the whole batch.

    The six are the first three rows of two trajectories, none of which ends sooner.
    """
    weight, batches = _batches(problem, params, 2)
    orders = {frozenset(order[:2]): words for order, words in _orders(6).items()}
    for over in (None, "batch", "minibatch"):
        fields = {"estimator": "gae", "baseline": "value", "gae_lambda": 0.95, "num_envs": 2}
        fields |= {"collect": "steps", "num_steps": 3, "reduction": "steps"}
        vpg = _config(**fields, normalize_advantage=over is not None)
        config = dataclasses.replace(vpg, fit="ppo", minibatches=3, normalize_over=over or "batch")
        whole, batch = (_estimate(problem, c, params, batches, rows=3) for c in (vpg, config))
        fits = [_fit(problem, config, params, batch, order) for order in orders.values()]
        yield held(
            problem,
            "pairs of steps, GAE(0.95), " + (f"normalised per {over}" if over else "as it is"),
            np.mean([weight @ gradients[:, 0] for _, gradients in fits], axis=0),
            weight @ _fit(problem, vpg, params, whole)[1][:, 0],
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
    values = _values(problem, params, "exact V", 1.0)
    for size in (2, 1):
        weight, batches = _batches(problem, params, size)
        for clip, rate in itertools.product(CLIPS, RATES if size == 2 else (USUAL_RATE,)):
            config = _config(
                estimator="reward_to_go",
                fit="ppo",
                epochs=EPOCHS,
                num_envs=size,
                clip_coef=CLIPS[clip],
                learning_rate=rate,
            )
            batch = _estimate(problem, config, params, batches, values)
            after, gradients = _fit(
                problem, config, params, batch, next(iter(_orders(size).values()))
            )
            alone = _estimate(problem, config, params, oracle.every_batch(problem, 1), values)
            start = np.asarray(natural.as_vector(params))
            reached = np.tile(start, (len(weight), 1))  # [K, P]
            case = clip if size == 2 else f"{clip}, batches of {size}"
            for k in range(EPOCHS):
                exact, kl = _exactly(problem, params, weight, reached)
                fresh = _freshly(problem, _fit_only(config), params, alone, weight, reached)
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
                path = path + rate * _gradient(problem, _as_policy(params, path), 1.0)
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
    fisher, gradient = _fisher(problem, params, weight), _gradient(problem, params, 1.0)
    known = _invertible(fisher)
    exact = {c: _solve(fisher, gradient, c) for c in DAMPINGS if c or known}
    enough = np.linalg.matrix_rank(fisher, tol=GAP[1], hermitian=True) if known else len(gradient)
    config = _config(estimator="reward_to_go", baseline="none", fit="npg")
    alone = _estimate(problem, config, params, oracle.every_batch(problem, 1))
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
    config = _config(
        **{"estimator": "reward_to_go", "baseline": "none", "fit": "npg"},
        **{"num_envs": len(everything), "cg_steps": len(gradient)},
    )
    batch = _estimate(problem, config, params, everything)
    even = np.full(len(weight), 1.0 / len(weight))
    g = np.einsum("m,tm,tmp->p", even, _returns(problem), _score(problem, params))
    yield held(
        problem,
        "natural_gradient of one batch, damping 0.1",
        _natural(problem, config, params, jax.tree.map(lambda x: x[0], batch)),
        _solve(_fisher(problem, params, even), g, 0.1),
        against="(F + c I)⁻¹ g of the batch",
        expected=0.0,
    )
    for size in (1, 2):
        weight, batches = _batches(problem, params, size)
        config = _config(
            **{"estimator": "reward_to_go", "baseline": "none", "fit": "npg"}, num_envs=size
        )
        batch = _estimate(problem, config, params, batches)
        after, _ = _fit(problem, config, params, batch)
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
        weight, batches = _batches(problem, params, size)
        for case, (name, fields) in GROUPS.items():
            config = _preset(name, num_envs=size, **fields)
            batch = _estimate(problem, config, params, batches)
            order = next(iter(_orders(size).values()))
            expected = {"leave-one-out": 0.0, "mean": 1.0 / size}.get(case)
            yield held(
                problem,
                f"{case}, groups of {size}",
                weight @ _fit(problem, config, params, batch, order)[1][:, 0],
                _gradient(problem, params, 1.0),
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
        config = _config(estimator="gae", gae_lambda=gae_lambda, collect="steps", num_steps=steps)
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
    score = np.asarray(_score(problem, params))[0]  # of the first step, [M, P]
    truth = (weight * _returns(problem)[0]) @ score
    alone = oracle.every_batch(problem, 1)
    far = problem.horizon
    for kind, distances in (("wrong V", CUTS), ("exact V", CUTS[1:2])):
        values = _values(problem, params, kind, 1.0)
        for distance, gae_lambda in itertools.product((d for d in distances if d <= far), LAMBDAS):
            config = _config(
                estimator="gae", gae_lambda=gae_lambda, collect="steps", num_steps=distance
            )
            batch = _estimate(problem, config, params, alone, values, rows=distance)
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


def _config(**fields: Any) -> Config:
    return as_arrays(validate(dataclasses.replace(PLAIN, **fields)))


def _preset(name: str, **fields: Any) -> Config:
    """The preset with the problems' networks, whose gradients are not clipped."""
    ours = ("hidden_sizes", "activation", "arithmetic", "max_grad_norm")
    fields |= {field: getattr(PLAIN, field) for field in ours}
    return as_arrays(validate(dataclasses.replace(preset(name), **fields)))


def _algorithm(problem: Problem, config: Config) -> Algorithm:
    return algorithms.build(config)._replace(env=problem.env, networks=problem.networks)


def _batches(problem: Problem, params: Params, size: int) -> tuple[np.ndarray, jax.Array]:
    """All batches of so many trajectories: their probabilities [K], and columns [N, K]."""
    columns = oracle.every_batch(problem, size)
    return oracle.chances(columns, probability(problem, params)), columns


@cache
def _orders(size: int) -> dict[tuple[int, ...], np.ndarray]:
    """Random bits that put so many things into each order, or into many where there are many."""
    words = noise.bits(noise.key(0), (64 * size, noise.ROUNDS))
    index = jnp.arange(size, dtype=jnp.uint32)
    orders = jax.vmap(lambda word: ring.permute(index, jnp.uint32(size), word))(words)
    both = zip(np.asarray(orders).tolist(), np.asarray(words), strict=True)
    return {tuple(order): word for order, word in both}


def _values(problem: Problem, params: Params, kind: str, gamma: float) -> Values | None:
    """The exact V, where the kind asks for it; the network's is the algorithm's own affair."""
    if kind != "exact V":
        return None
    value, next_value = exact_value(problem, params, gamma)
    return jnp.asarray(value), jnp.asarray(next_value)


def _estimate(
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
    trajectory = _written(problem, params)
    trajectory, values = jax.tree.map(lambda x: x[:rows], (trajectory, values))
    return _estimates(problem, config, params, trajectory, values, batches)


@quick_jit
def _written(problem: Problem, params: Params) -> Trajectory:
    return written(problem, params, _algorithm(problem, _config()))


@quick_jit
def _estimates(
    problem: Problem,
    config: Config,
    params: Params,
    trajectory: Trajectory,
    values: Values | None,
    batches: jax.Array,
) -> Batch:
    algorithm = _algorithm(problem, config)

    def one(columns: jax.Array) -> Batch:
        taken, given = jax.tree.map(lambda x: x[:, columns], (trajectory, values))
        judged = algorithm
        if given is not None:
            judged = algorithm._replace(
                advantage=lambda trajectory, *_, **c: algorithm.advantage(trajectory, *given, **c)
            )
        return estimate(config, judged, params, taken)

    return jax.vmap(one, in_axes=1)(batches)


def _fit(
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
    after, gradients = _fits(problem, _fit_only(config), params, batch, each)
    return np.asarray(after), -np.asarray(gradients)


def _fit_only(config: Config) -> Config:
    """Without an estimator, whose Ψ is given: one program for all of them, and no critic."""
    return dataclasses.replace(
        config,
        estimator="reward_to_go",
        baseline="none",
        group_std=False,
        normalize_advantage=config.normalize_over == "minibatch",
    )


@quick_jit
def _fits(
    problem: Problem, config: Config, params: Params, batches: Batch, order: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    algorithm = _algorithm(problem, config)
    policy = {"policy": params["policy"]}
    opt_state = (
        {} if config.natural else {"policy": algorithm.optimizer(config).init(policy["policy"])}
    )
    learned = Learned(policy, opt_state, jnp.int32(0))

    def one(batch: Batch) -> tuple[jax.Array, jax.Array]:
        batch = batch._replace(order=order)
        after, fitted = algorithm.fit(config, algorithm, learned, batch)
        leaves = jax.tree.leaves(fitted.gradients["policy"])
        gradients = [leaf.reshape(len(leaf), -1) for leaf in leaves]
        return natural.as_vector(after.params), jnp.concatenate(gradients, axis=1)

    return jax.vmap(one)(batches)


def _gradient(problem: Problem, params: Params, gamma: float) -> np.ndarray:
    """∇U in the policy's parameters, [P]."""
    _, unravel = ravel_pytree(params)
    gradient = jnp.asarray(exact_gradient(problem, params, gamma))
    return np.asarray(natural.as_vector(unravel(gradient)))


def _as_policy(params: Params, policy: Any) -> Params:
    """The parameters with these of the policy, [P]."""
    return {**params, "policy": ravel_pytree(params["policy"])[1](policy)}


@quick_jit
def _exactly(
    problem: Problem, params: Params, weight: jax.Array, reached: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """∇U, and the mean KL over the states that params meets, where each batch has come to."""
    chance, valid = probability(problem, params), problem.trajectory.valid

    def utility_and_kl(policy: jax.Array) -> tuple[jax.Array, jax.Array]:
        there = _as_policy(params, policy)
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
    algorithm, chance = _algorithm(problem, config), probability(problem, params)

    def surrogate(policy: jax.Array) -> jax.Array:
        there = _as_policy(params, policy)
        loss = jax.vmap(lambda batch: ppo.surrogate_objective(config, algorithm, there, batch)[0])
        return -chance @ loss(alone)

    return weight @ jax.vmap(jax.grad(surrogate))(reached)


@quick_jit
def _score(problem: Problem, params: Params) -> jax.Array:
    """∇ log π(a_t|s_t), [T, M, P]; 0 on padding."""

    def log_prob(policy: jax.Array) -> jax.Array:
        outputs = problem.networks.policy(_as_policy(params, policy), problem.trajectory.obs)
        found = categorical.log_prob(outputs, problem.trajectory.action)
        return jnp.where(problem.trajectory.valid, found, 0.0)

    return jax.jacfwd(log_prob)(natural.as_vector(params))


def _returns(problem: Problem) -> np.ndarray:
    """Σ_{k≥t} r_k, [T, M]."""
    return np.cumsum(np.asarray(problem.trajectory.reward)[::-1], axis=0)[::-1]


def _fisher(problem: Problem, params: Params, weight: np.ndarray) -> np.ndarray:
    """F = E[Σ_a π(a|s) ∇ log π(a|s) ∇ log π(a|s)ᵀ] over steps, [P, P].

    Args:
      weight: of the trajectories, [M].
    """

    def log_policy(policy: jax.Array) -> jax.Array:
        outputs = problem.networks.policy(_as_policy(params, policy), problem.trajectory.obs)
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
    algorithm = _algorithm(problem, config)
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
    algorithm = _algorithm(problem, config)
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
