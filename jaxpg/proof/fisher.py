"""The natural direction: is what conjugate gradients find (F + c I)⁻¹ ∇U, with the exact F?

Letters: T steps, M trajectories, A actions, P parameters of the policy.

Source: Kakade 2001, A natural policy gradient (NIPS 14); the search by conjugate gradients,
Schulman et al. 2015 (arXiv:1502.05477).
"""

import itertools
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core import natural
from jaxpg.core.config import Config
from jaxpg.core.types import Batch, Params
from jaxpg.proof import judged, oracle
from jaxpg.proof.finding import Finding, held
from jaxpg.proof.problems import Problem, probability, quick_jit

ITERATIONS = (1, 2, 5, 10)
DAMPINGS = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
SMALL_UNITS = 1e8  # that make one unit of reward
GAP = (1e-14, 1e-9)  # shares of the largest eigenvalue; F can be inverted if none is between


def direction(problem: Problem, params: Params) -> Iterator[Finding]:
    """Conjugate gradients against (F + c I)⁻¹ ∇U, with the exact Fisher matrix F written down.

    F is of the states that the policy meets, and so are the products that stand for it: as many
    iterations as F has eigenvalues that are not 0 suffice, and two do not. Then
    `natural_gradient` of one batch, against the F and the g of that batch; and NPG's step in
    expectation over batches.
    """
    weight = np.asarray(probability(problem, params))
    fisher, gradient = matrix(problem, params, weight), judged.gradient(problem, params, 1.0)
    known = _invertible(fisher)
    exact = {c: solve(fisher, gradient, c) for c in DAMPINGS if c or known}
    enough = np.linalg.matrix_rank(fisher, tol=GAP[1], hermitian=True) if known else len(gradient)
    npg = partial(judged.config, estimator="reward_to_go", baseline="none", fit="npg")
    config = npg()
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
    config = npg(num_envs=len(everything), cg_steps=len(gradient))
    batch = judged.estimate(problem, config, params, everything)
    even = np.full(len(weight), 1.0 / len(weight))
    g = np.einsum("m,tm,tmp->p", even, judged.returns(problem), judged.score(problem, params))
    yield held(
        problem,
        "natural_gradient of one batch, damping 0.1",
        _natural(problem, config, params, jax.tree.map(lambda x: x[0], batch)),
        solve(matrix(problem, params, even), g, 0.1),
        against="(F + c I)⁻¹ g of the batch",
        expected=0.0,
    )
    for size in (1, 2):
        weight, batches = judged.batches(problem, params, size)
        config = npg(num_envs=size)
        batch = judged.estimate(problem, config, params, batches)
        after, _ = judged.fit(problem, config, params, batch)
        yield held(
            problem,
            f"NPG's step, batches of {size}, damping 0.1",
            weight @ (after - np.asarray(natural.as_vector(params))) / float(config.learning_rate),
            exact[0.1],
            against="(F + c I)⁻¹ ∇U",
        )


def matrix(problem: Problem, params: Params, weight: np.ndarray) -> np.ndarray:
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


def solve(fisher: np.ndarray, gradient: np.ndarray, damping: float) -> np.ndarray:
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
