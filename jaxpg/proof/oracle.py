"""The exact oracle: the truth about every estimator, where all trajectories can be enumerated.

On the problems of `problems.py` the expectation Σ_τ P(τ;θ) ĝ(τ) and the variance of every estimator
ĝ are finite sums. The estimators are the library's own: `collect_episodes` writes the trajectories
down, `make_advantage` weights them, and ĝ is minus the gradient of the policy loss. All of it is
float64, so call it with JAX's 64-bit mode on, as `rows` does by itself.

Letters: M trajectories, P parameters, K = M^N batches of N trajectories.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxpg.core import algorithms, noise
from jaxpg.core.advantages import normalize
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.distributions import categorical
from jaxpg.core.rules import validate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Params, Trajectory
from jaxpg.proof.problems import (
    BASE,
    Problem,
    ascend,
    cartpole,
    exact_gradient,
    exact_value,
    probability,
    quick_jit,
    tabular,
)
from jaxpg.proof.tables import Table, share

KINDS = {  # of V that a baseline may use
    "value": ("exact V", "wrong V"),
    "broadcast_value": ("broadcast exact V", "broadcast wrong V"),
}
TOLERANCE = 1e-12  # of ‖∇U‖: what the bias of an unbiased estimator may be
MAX_BATCHES = 20_000  # K: where there are more, estimators that couple trajectories are left out
TOLD = 20  # estimators between two reports
GAMMAS = (1.0, 0.9)
VARIANTS = ("γ=1", "γ=0.9 absolute", "γ=0.9 relative", "normalised", "mean over steps")
HEADINGS = (
    *("estimator", "baseline"),
    *(f"{variant}: {what}" for variant in VARIANTS[:3] for what in ("bias", "variance")),
    *(f"{variant}: {what}" for variant in VARIANTS[3:] for what in ("bias", "cosine")),
)


class Moments(NamedTuple):
    """An estimator's exact expectation and spread."""

    mean: np.ndarray  # E ĝ, [P]
    variance: float  # trace of ĝ's covariance, times the N trajectories that ĝ averages
    size: float  # E ‖ĝ‖, what the mean's rounding scales with


class Comparison(NamedTuple):
    """A gradient that was found, beside the true one."""

    distance: float  # ‖found - truth‖
    amount: float  # ‖found - truth‖ / ‖truth‖
    cosine: float  # of the angle between the two; 0 where the one found is 0
    length: float  # ‖found‖ / ‖truth‖


class Truth(NamedTuple):
    """What an estimator at one γ is held against, and the V that it may use."""

    gradient: np.ndarray  # ∇U, [P]
    value: np.ndarray  # V_π(s_t, t), [T, M]
    next_value: np.ndarray  # V_π(s_{t+1}, t+1), [T, M]

    @classmethod
    def of(cls, problem: Problem, params: Params, gamma: float) -> "Truth":
        """Of one γ.

        Raises:
          ValueError: if ∇U is 0 to rounding.
        """
        gradient = exact_gradient(problem, params, gamma)
        if not np.linalg.norm(gradient) > TOLERANCE * truth_size(problem, params, gamma):
            raise ValueError(
                f"{problem.name}: ∇U is 0 to rounding at γ = {gamma:g}, so that nothing can be "
                "held against it"
            )
        return cls(gradient, *exact_value(problem, params, gamma))


class Row(NamedTuple):
    """One estimator, held against ∇U."""

    problem: str
    parameters: str  # "random" or "trained"
    estimator: str
    baseline: str  # "none", "constant", or one of KINDS
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

    Raises:
      ConfigError: if what is estimated depends on batches before this one.
    """
    if config.normalize_obs or config.normalize_reward:
        raise ConfigError(
            "an exact expectation is that of one batch alone, so it needs normalize_obs and "
            f"normalize_reward False; got {config.normalize_obs} and {config.normalize_reward}"
        )
    config, count = as_arrays(config), config.num_envs
    shape = problem.trajectory.reward.shape
    given = value is not None and next_value is not None
    (log_prob, *values), (score, *sensitivities) = inputs(problem, params)
    if given or not config.critic:
        values = [jnp.asarray(v) if given else jnp.zeros(shape) for v in (value, next_value)]
    batches = every_batch(problem, count)
    estimator = dataclasses.replace(config, reduction="steps")  # not its part: one program for both
    psi = _psi(estimator, problem.trajectory, batches, *values)
    policy_loss = algorithms.POLICY_LOSSES[config.reduction]
    slope, psi_slope = _loss_slopes(policy_loss, log_prob, psi, problem.trajectory.valid, batches)
    gradient = -chain(slope, score)
    if np.any(psi_slope) and config.critic and not given:  # never, if the loss holds Ψ constant
        slopes = _value_slopes(config, problem.trajectory, batches, *values, psi_slope)
        for slope, jacobian in zip(slopes, sensitivities, strict=True):
            gradient = gradient - chain(slope, jacobian)

    return moments(gradient, batches, probability(problem, params))


def every_batch(problem: Problem, count: int) -> jax.Array:
    """The columns of every batch of N trajectories, int [N, K], in order."""
    trajectories = problem.trajectory.valid.shape[1]
    return jnp.asarray(np.indices((trajectories,) * count).reshape(count, -1))


def chances(batches: jax.Array, probability: jax.Array) -> np.ndarray:
    """P of every batch, the product over its trajectories, [K].

    Args:
      batches: from `every_batch`, [N, K].
      probability: P(τ;θ), [M].
    """
    return np.prod(np.asarray(probability)[batches], axis=0)


def moments(gradient: np.ndarray, batches: jax.Array, probability: jax.Array) -> Moments:
    """Of ĝ over all batches.

    Args:
      gradient: ĝ of each batch, [K, P].
      batches: from `every_batch`, [N, K].
      probability: P(τ;θ), [M].
    """
    weight = chances(batches, probability)
    mean = weight @ gradient
    off = gradient - mean
    spread = np.einsum("kp,kp->k", off, off)
    size = float(weight @ np.linalg.norm(gradient, axis=1))
    return Moments(mean, len(batches) * float(weight @ spread), size)


def truth_size(problem: Problem, params: Params, gamma: float) -> float:
    """E ‖R ∇log P(τ;θ)‖, what the rounding of ∇U = E R ∇log P(τ;θ) scales with."""
    valid, reward = np.asarray(problem.trajectory.valid), np.asarray(problem.trajectory.reward)
    returns = np.where(valid, gamma ** np.arange(problem.horizon) @ reward, 0.0)
    terms = chain(jnp.asarray(returns[:, None]), inputs(problem, params)[1][0])
    return moments(terms, every_batch(problem, 1), probability(problem, params)).size


def against(found: Any, truth: Any) -> Comparison:
    """Of two vectors, [P] each."""
    distance, norm, length = map(np.linalg.norm, (found - truth, truth, found))
    return Comparison(
        distance=float(distance),
        amount=float(distance / norm),
        cosine=float(found @ truth / (length * norm)) if length > 0 else 0.0,
        length=float(length / norm),
    )


@quick_jit
def inputs(problem: Problem, params: Params) -> tuple[tuple, tuple]:
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


def chain(slope: jax.Array, jacobian: jax.Array) -> np.ndarray:
    """Σ_n Σ_t slope[t, n, k] · jacobian[t, n-th trajectory of batch k], [K, P].

    The batches are all tuples of trajectories in order, so that nothing need be gathered.
    """
    horizon, trajectories, params = jacobian.shape
    grid = (trajectories,) * slope.shape[1]
    by_trajectory = np.moveaxis(np.asarray(jacobian), 0, 1)  # [M, T, P]
    total = np.zeros((*grid, params))
    for n in range(len(grid)):
        weight = np.asarray(slope)[:, n].reshape(horizon, *grid)
        weight = np.moveaxis(np.moveaxis(weight, 0, -1), n, 0)  # [M of the n-th, others, T]
        term = weight.reshape(trajectories, -1, horizon) @ by_trajectory
        total += np.moveaxis(term.reshape(*grid, params), 0, n)
    return total.reshape(-1, params)


def rows(
    problems: Sequence[Problem] | None = None,
    *,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Hold every valid estimator against ∇U, at random and at trained parameters.

    Args:
      problems: what to enumerate; None takes `cartpole()` and `tabular()`.
      seed: of the networks' initial weights.
      report: told how far it is, from any thread.
    """
    with jax.enable_x64(True):
        problems = (cartpole(), tabular()) if problems is None else problems
    with ThreadPoolExecutor() as pool:  # most of the time goes to compiling, outside Python's lock
        work = partial(_rows_of, seed, report)
        return [row for found in pool.map(work, problems) for row in found]


def _rows_of(seed: int, report: Callable[[str], None], problem: Problem) -> list[Row]:
    with jax.enable_x64(True):  # it holds for one thread
        chosen = [(as_arrays(c), kind) for c, kind in cases(problem.trajectory.valid.shape[1])]
        start = problem.networks.init(*noise.split(noise.key(seed), 2))
        found = []
        for parameters, params in (("random", start), ("trained", ascend(problem, start))):
            truth = {gamma: Truth.of(problem, params, gamma) for gamma in GAMMAS}
            for i, (config, baseline) in enumerate(chosen):
                if i % TOLD == 0:
                    done = f"{i} of {len(chosen)} estimators"
                    report(f"{problem.name}, {parameters} parameters: {done}")
                case = (config, baseline, truth[float(config.gamma)])
                found.append(hold(problem, parameters, params, *case))
        return found


def hold(
    problem: Problem,
    parameters: str,
    params: Params,
    config: Config,
    baseline: str,
    truth: Truth | None = None,
) -> Row:
    """One row: the estimator that config and baseline name, against the truth at its γ.

    Args:
      baseline: which V, of a config that has one (`KINDS`); else the config's own baseline.

    Raises:
      ValueError: for another baseline; where Ψ is normalised by a fit, in minibatches.
    """
    kinds = KINDS.get(config.baseline, (config.baseline,))
    if baseline not in kinds:
        raise ValueError(
            f"with baseline={config.baseline!r} it must be {' or '.join(map(repr, kinds))}; got "
            f"{baseline!r}"
        )
    if config.normalize_advantage and config.normalize_over != "batch":
        raise ValueError("normalize_over must be 'batch': a minibatch is normalised by its fit")
    truth = truth or Truth.of(problem, params, float(config.gamma))
    exact = (truth.value, truth.next_value) if baseline.endswith("exact V") else ()
    moments = expectation(problem, params, config, *exact)
    compared = against(moments.mean, truth.gradient)
    note = why_biased(config, baseline)
    return Row(
        problem=problem.name,
        parameters=parameters,
        estimator=config.estimator,
        baseline=baseline,
        discounting=config.discounting,
        gamma=float(config.gamma),
        gae_lambda=float(config.gae_lambda) if config.estimator == "gae" else None,
        reduction=config.reduction,
        normalized=config.normalize_advantage,
        trajectories=config.num_envs,
        bias=compared.distance,
        relative_bias=compared.amount,
        cosine=compared.cosine,
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
        ("none", "constant", "value", "broadcast_value"),
        ("relative", "absolute"),
        GAMMAS,
        ("trajectories", "steps"),
        (False, True),
    )
    for estimator, baseline, discounting, gamma, reduction, normalized in choices:
        count = 2 if baseline == "constant" or reduction == "steps" or normalized else 1
        for gae_lambda in (0.5, 1.0) if estimator == "gae" else (1.0,):
            choice: dict[str, Any] = {
                "estimator": estimator,
                "baseline": baseline,
                "discounting": discounting,
                "gamma": gamma,
                "gae_lambda": gae_lambda,
                "reduction": reduction,
                "normalize_advantage": normalized,
            }
            config = dataclasses.replace(BASE, num_envs=count, **choice)
            try:
                validate(config)
            except ConfigError:
                continue
            if trajectories**count <= MAX_BATCHES:
                kinds = KINDS.get(baseline, (baseline,))
                yield from ((config, kind) for kind in kinds)


def why_biased(config: Config, baseline: str) -> str:
    """What theory says: the reasons for a bias, or nothing for an unbiased estimator.

    A baseline may depend on s_t, on t and on the other trajectories, but not on a_t or on what
    follows it; nor may what divides Ψ, as a deviation of returns and a trajectory's length do. A
    bootstrap, which stands for the future, must be V_π itself. Discounting from the current step
    drops the factor γ^t that the gradient of Σ γ^k r_k has.
    """
    bootstraps = config.estimator == "td_error" or (
        config.estimator == "gae" and config.gae_lambda < 1.0
    )
    reasons = {
        "bootstraps from a wrong V": bootstraps and baseline == "wrong V",
        "sums a T × T matrix": config.baseline == "broadcast_value",
        "drops the factor γ^t": config.discounting == "relative" and config.gamma < 1.0,
        "a mean over steps is a ratio": config.reduction == "steps",
        "divided by its own length": config.reduction == "trajectory_means",
        "its group's mean has its own return": config.baseline == "group",
        "divided by its group's deviation": config.group_std,
        "normalised by its own batch": config.normalize_advantage,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def as_theory_says(row: Row) -> bool:
    """Whether an estimator is unbiased, to rounding, if theory calls it so; NaN never is."""
    return not row.unbiased_by_theory or row.relative_bias <= TOLERANCE


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """The rows of one problem and one set of parameters, an estimator a line, as `HEADINGS` says.

    Bias is relative to ‖∇U‖, variance that of one trajectory; the last four columns are at γ = 1.
    """
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        variant = variant_of(row)
        if variant:
            lines.setdefault((label_of(row), row.baseline), {})[variant] = row
    table = []
    for (label, baseline), by_variant in lines.items():
        cells = [label, baseline]
        for variant in VARIANTS:
            found = by_variant.get(variant)
            cells.append(share(found.relative_bias, tolerance=TOLERANCE) if found else "–")
            angle = variant in VARIANTS[3:]
            spread = found and (f"{found.cosine:.4f}" if angle else f"{found.variance:.3g}")
            cells.append(spread or "–")
        table.append(cells)
    return table


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by problem and parameters, under a title."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row.problem}, {row.parameters} parameters", []).append(row)
    return found


def tables(rows: Sequence[Row]) -> list[Table]:
    """`summary` of each group."""
    return [Table(title, HEADINGS, summary(group), 2) for title, group in groups(rows).items()]


def label_of(row: Row | Config) -> str:
    """The estimator's name for people."""
    if row.estimator == "gae":
        return f"GAE({row.gae_lambda:g})"
    names = {"total_return": "total return", "reward_to_go": "reward-to-go", "td_error": "TD error"}
    return names[row.estimator]


def variant_of(row: Row) -> str | None:
    """Which of VARIANTS a row is; at γ = 1 the two ways of discounting are one."""
    changes = (row.gamma < 1.0, row.normalized, row.reduction == "steps")
    if sum(changes) > 1 or (row.gamma == 1.0 and row.discounting == "relative"):
        return None
    if row.gamma < 1.0:
        return f"γ={row.gamma:g} {row.discounting}"
    return "normalised" if row.normalized else "mean over steps" if changes[2] else "γ=1"


@quick_jit
def _psi(
    config: Config,
    trajectory: Trajectory,
    batches: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
) -> jax.Array:
    """The library's Ψ of each batch of trajectories, [T, N, K]; batches are columns, [N, K]."""
    taken = jax.tree.map(lambda x: x[:, batches], (trajectory, value, next_value))
    return _advantage(config)(*taken)


@quick_jit
def _value_slopes(
    config: Config,
    trajectory: Trajectory,
    batches: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    psi_slope: jax.Array,
) -> tuple[jax.Array, ...]:
    """A loss's derivatives in V(s_t) and V(s_{t+1}), from those in Ψ, [T, N, K] each."""
    rows, *taken = jax.tree.map(lambda x: x[:, batches], (trajectory, value, next_value))
    return jax.vjp(partial(_advantage(config), rows), *taken)[1](psi_slope)


def _advantage(config: Config) -> Callable[..., jax.Array]:
    coefficients = {"gamma": config.gamma, "gae_lambda": config.gae_lambda}

    def advantage(trajectory: Trajectory, *values: jax.Array) -> jax.Array:
        psi = algorithms.make_advantage(config)(trajectory, *values, **coefficients)
        over_batch = config.normalize_advantage and config.normalize_over == "batch"
        return normalize(psi, trajectory.valid) if over_batch else psi

    return jax.vmap(advantage, in_axes=2, out_axes=2)


@partial(quick_jit, static_argnums=0)
def _loss_slopes(
    policy_loss: Callable[..., jax.Array],
    log_prob: jax.Array,
    psi: jax.Array,
    valid: jax.Array,
    batches: jax.Array,
) -> tuple[jax.Array, ...]:
    """The loss's derivatives in log π and in Ψ, [T, N, K] each."""
    slopes = jax.vmap(jax.grad(policy_loss, (0, 1)), in_axes=2, out_axes=2)
    return slopes(log_prob[:, batches], psi, valid[:, batches])
