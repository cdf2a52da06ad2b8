"""An estimator or a loss of one's own, held against the exact gradient of a problem in `problems`.

It may be written in JAX, torch or numpy: all that it gets are arrays.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core import noise
from jaxpg.core.advantages import gae
from jaxpg.core.types import Trajectory
from jaxpg.proof.oracle import (
    MAX_BATCHES,
    TOLERANCE,
    Moments,
    Truth,
    against,
    chain,
    every_batch,
    inputs,
    moments,
    truth_size,
)
from jaxpg.proof.problems import (
    Problem,
    ascend,
    cartpole,
    probability,
    quick_jit,
    relative_gradient,
    tabular,
)
from jaxpg.proof.tables import share

Slopes = Callable[..., Any]  # log π, trajectory, V(s), V(s') -> ∂ loss / ∂ log π, [T, N, K]
COLUMNS = ("problem", "parameters", "V", "bias", "cosine", "length", "variance", "E ĝ is")
GRADIENTS = ("∇U", "∇U without γ^t")  # one of them is what E ĝ is where there is no bias
GAES = ("GAE(λ)", "GAE(λ) without γ^t")  # the same where V is exact
SEEN = 1e-3  # of ‖∇U‖: so small a bias must not be lost in rounding


class Held(NamedTuple):
    """The estimator at one set of parameters, with one V. Lengths are relative to ‖∇U‖."""

    problem: str
    parameters: str  # "random" or "trained"
    value: str  # the V that it was given: "exact" or "wrong"
    bias: float  # ‖E ĝ - ∇U‖ / ‖∇U‖
    cosine: float  # of the angle between E ĝ and ∇U; 0 where E ĝ is 0
    length: float  # ‖E ĝ‖ / ‖∇U‖
    variance: float  # trace of ĝ's covariance, times the trajectories in a batch
    equals: tuple[str, ...]  # those of GRADIENTS and GAES that E ĝ is, to rounding

    @property
    def row(self) -> tuple[str, ...]:
        """A line of a table, as `COLUMNS` says."""
        bias = share(self.bias, tolerance=TOLERANCE)
        numbers = (f"{self.cosine:.4f}", f"{self.length:.3f}", f"{self.variance:.3g}")
        equal = next(iter(self.equals), "–")
        return (self.problem, self.parameters, self.value, bias, *numbers, equal)


class Bias(NamedTuple):
    """What came out; prints as a table."""

    rows: tuple[Held, ...]

    @property
    def unbiased(self) -> bool:
        """Whether E ĝ is ∇U wherever V was exact, or wherever it was ∇U without γ^t."""
        return _all_equal([row for row in self.rows if row.value == "exact"], GRADIENTS)

    @property
    def is_gae(self) -> bool:
        """Whether E ĝ is that of jaxpg's GAE(λ) with either V, all with or all without γ^t.

        With an exact V that of any λ is the same; with a wrong one it is not.
        """
        return _all_equal(self.rows, GAES)

    def __str__(self) -> str:
        lines = [COLUMNS, *(row.row for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, x, widths)).rstrip() for x in lines)


def estimator_bias(
    advantage: Callable[..., Any],
    problem: Callable[[], Problem] | Sequence[Callable[[], Problem]] = (cartpole, tabular),
    *,
    loss: Callable[..., Any] | None = None,
    gamma: float = 0.9,
    gae_lambda: float = 0.5,
    trajectories: int = 1,
    arrays: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
) -> Bias:
    """The exact bias and variance of the gradient that an estimator or a loss gives.

        ĝ = -∂ loss(log π, Ψ) / ∂θ,    Ψ = advantage(trajectory, V(s_t), V(s_{t+1}))

    in expectation over every batch of trajectories that the problem has, at the policy's initial
    parameters and at trained ones, with V_π itself and with an untrained network's V.

    What is seen depends on the problem, γ and λ. CartPole's rewards are all 1, and the step that
    ends an episode ends it whatever the action: a wrong reward or last step shows on the random MDP
    alone. γ = 1 does not tell γ from γ², and λ = 0 or 1 not λ from λ³. With V_π every λ is
    unbiased: how TD errors are weighted is seen with the wrong V, by whether this `is_gae`. Columns
    that are mixed up show with 2 trajectories in a batch. No problem has a time limit, nor a column
    that a second episode begins in.

    Args:
      advantage: (trajectory, value, next_value, *, gamma, gae_lambda) -> Ψ, as
        `Algorithm.advantage`: a `Trajectory` of [T, N] and values [T, N] give [T, N]. Steps that
        are not `valid` follow an episode's end; nothing in them may count.
      problem: makes it, with JAX's 64-bit mode on: `cartpole`, `tabular`, `partial(tabular, 2)`; or
        several that do.
      loss: (log_prob, Ψ, valid) -> scalar to be minimised, of arrays [T, N]; it has to mean Ψ as a
        constant. None sums over time and takes the mean over trajectories.
      gamma: handed to the estimator, and of the objective U, whose first reward counts fully.
      gae_lambda: handed to the estimator.
      trajectories: N in a batch; more than 1 where the estimator or loss couples them.
      arrays: makes the framework's array of numpy's: `torch.from_numpy`, or `np.asarray`. Then each
        batch is a call. None for JAX, where the estimator is traced once for all batches.
      seed: of the initial weights.

    Raises:
      ValueError: for a γ or λ outside [0, 1], or more batches than can be enumerated; where ∇U is 0
        to rounding, or ĝ so large that rounding hides a bias; a Ψ of another shape, or one that is
        not finite on a valid step; a loss that is no scalar, whose slope is not finite, or that
        torch finds no slope of.
    """
    for name, given in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if not 0.0 <= given <= 1.0:
            raise ValueError(f"{name} must be in [0, 1]; got {given}")
    call = partial(advantage, gamma=gamma, gae_lambda=gae_lambda)
    slopes = _one_by_one(call, loss, arrays) if arrays else _in_jax(call, loss)
    makers = (problem,) if callable(problem) else problem
    rows: list[Held] = []
    with jax.enable_x64(True):
        for made in [make() for make in makers]:
            batches = _batches(made, trajectories)
            rows += _held(made, slopes, batches, gamma=gamma, gae_lambda=gae_lambda, seed=seed)
    return Bias(tuple(rows))


def _batches(problem: Problem, trajectories: int) -> jax.Array:
    """Every batch, [N, K], where they are few enough."""
    count = problem.trajectory.valid.shape[1]
    most = int(math.log(MAX_BATCHES, max(count, 2)))
    if most == 0:
        raise ValueError(
            f"{problem.name} has {count:,} trajectories, of which at most {MAX_BATCHES:,} are "
            "held: take a shorter horizon"
        )
    if trajectories not in range(1, most + 1):
        raise ValueError(
            f"trajectories must be an integer in [1, {most}] for {problem.name}: of its {count:,} "
            f"at most {MAX_BATCHES:,} batches are held; got {trajectories}"
        )
    return every_batch(problem, trajectories)


def _held(
    problem: Problem,
    slopes: Slopes,
    batches: jax.Array,
    *,
    gamma: float,
    gae_lambda: float,
    seed: int,
) -> Iterator[Held]:
    """At both sets of parameters with either V; batches are columns, [N, K].

    On padding V is 9 and the next one 5: whatever γ, what goes on over an episode's end sees that
    they are not its own.
    """
    start, valid = problem.networks.init(*noise.split(noise.key(seed), 2)), problem.trajectory.valid
    for parameters, params in (("random", start), ("trained", ascend(problem, start))):
        truth = Truth.of(problem, params, gamma)
        size = truth_size(problem, params, gamma)
        relative = relative_gradient(problem, params, gamma)
        (log_prob, *wrong), (score, *_) = inputs(problem, params)
        for kind, (value, next_value) in (("exact", truth[1:]), ("wrong", wrong)):
            values = (np.where(valid, value, 9.0), np.where(valid, next_value, 5.0))
            given = (log_prob, problem.trajectory, *map(jnp.asarray, values))
            slope = slopes(*jax.tree.map(lambda x: x[:, batches], given))
            weight = probability(problem, params)
            found = moments(-chain(slope, score), batches, weight)
            rounding = TOLERANCE * (size + found.size)
            _check_seen(problem, found, rounding, truth.gradient)
            gaes = _gae_gradients(problem, weight, score, values, gamma, gae_lambda)
            known = zip(GRADIENTS + GAES, (truth.gradient, relative, *gaes), strict=True)
            _, bias, cosine, length = against(found.mean, truth.gradient)
            yield Held(
                problem=problem.name,
                parameters=parameters,
                value=kind,
                bias=bias,
                cosine=cosine,
                length=length,
                variance=found.variance,
                equals=tuple(x for x, g in known if np.linalg.norm(found.mean - g) <= rounding),
            )


def _gae_gradients(
    problem: Problem,
    probability: jax.Array,
    score: jax.Array,
    values: Sequence[Any],
    gamma: float,
    gae_lambda: float,
) -> list[np.ndarray]:
    """E ĝ of jaxpg's GAE(λ) with these V(s_t) and V(s_{t+1}), with and without γ^t, [P] each."""
    rows = problem.trajectory
    inputs = (rows.reward, *map(jnp.asarray, values), rows.terminated, rows.truncated)
    psi = np.asarray(gae(*inputs, gamma=gamma, gae_lambda=gae_lambda))
    weight = gamma ** np.arange(problem.horizon)[:, None]
    slopes = [_plain(x[:, None], rows.valid[:, None]) for x in (weight * psi, psi)]
    return [np.asarray(probability) @ -chain(jnp.asarray(slope), score) for slope in slopes]


def _all_equal(rows: Sequence[Held], names: Sequence[str]) -> bool:
    """Whether one of the names is of all rows."""
    return any(all(name in row.equals for row in rows) for name in names)


def _in_jax(call: Callable[..., Any], loss: Callable[..., Any] | None) -> Slopes:
    """Traced once for all batches."""

    def of_one(trajectory: Trajectory, *values: Any) -> Any:
        psi = call(trajectory, *values)
        _check_shape("advantage", psi, trajectory.valid.shape)
        return psi

    def scalar(*inputs: Any) -> Any:
        assert loss is not None
        found = loss(*inputs)
        _check_shape("loss", found, ())
        return found

    estimate = quick_jit(jax.vmap(of_one, 2, 2))
    differentiate = loss and quick_jit(jax.vmap(jax.grad(scalar), 2, 2))

    def slopes(log_prob: Any, trajectory: Trajectory, *values: Any) -> Any:
        psi = estimate(trajectory, *values)
        _check_finite(psi, trajectory.valid)
        if not differentiate:
            return _plain(psi, trajectory.valid)
        slope = differentiate(log_prob, psi, trajectory.valid)
        _check_slope(slope, trajectory.valid)
        return slope

    return slopes


def _one_by_one(
    call: Callable[..., Any], loss: Callable[..., Any] | None, arrays: Callable[[np.ndarray], Any]
) -> Slopes:
    """Batch by batch in another framework, which is torch where there is a loss."""

    def slope(log_prob: Any, trajectory: Trajectory, *values: Any) -> Any:
        psi = call(trajectory, *values)
        _check_shape("advantage", psi, trajectory.valid.shape)
        _check_finite(psi, trajectory.valid)
        if loss is None:
            return _plain(psi, trajectory.valid)
        if not hasattr(log_prob, "requires_grad_"):
            raise ValueError(
                "a loss is differentiated by JAX, or by torch, for which arrays must be "
                f"torch.from_numpy; it makes {type(log_prob).__name__}"
            )
        leaf = log_prob.requires_grad_()
        found = loss(leaf, psi, trajectory.valid)
        _check_shape("loss", found, ())
        if found.requires_grad:
            found.backward()
        if leaf.grad is None:
            raise ValueError("loss does not depend on log_prob, or is detached from it")
        _check_slope(leaf.grad, trajectory.valid)
        return leaf.grad.numpy()

    def slopes(*given: Any) -> np.ndarray:
        given = jax.tree.map(np.asarray, given)
        found = [
            slope(*jax.tree.map(lambda x: arrays(np.array(x[:, :, k])), given))
            for k in range(given[0].shape[2])
        ]
        return np.stack(found, axis=-1)

    return slopes


def _plain(psi: Any, valid: Any) -> np.ndarray:
    """∂ / ∂ log π of -(1/N) Σ_i Σ_t log π Ψ."""
    return -np.where(valid, psi, 0.0) / valid.shape[1]


def _check_shape(part: str, x: Any, shape: Any) -> None:
    found = getattr(x, "shape", None)
    if found is None or tuple(found) != tuple(shape):
        what = f"[T, N], {tuple(shape)}" if shape else "a scalar"
        slopeless = ", which has no slope" if isinstance(x, float) else ""
        got = f"{type(x).__name__}{slopeless}" if found is None else tuple(found)
        raise ValueError(f"{part} must give {what}; got {got}")


def _check_finite(psi: Any, valid: Any) -> None:
    if not np.isfinite(np.asarray(psi)[np.asarray(valid)]).all():
        raise ValueError("advantage gives a NaN or an infinity on a valid step")


def _check_slope(slope: Any, valid: Any) -> None:
    lost, valid = ~np.isfinite(np.asarray(slope)), np.asarray(valid)
    if lost.any():
        where = "a valid step" if lost[valid].any() else "a step that is not valid"
        raise ValueError(f"the slope of loss in log_prob is a NaN or an infinity on {where}")


def _check_seen(problem: Problem, found: Moments, rounding: float, truth: np.ndarray) -> None:
    """Raise if rounding could hide a bias."""
    norm = np.linalg.norm(truth)
    if not rounding < SEEN * norm:
        raise ValueError(
            f"{problem.name}: ĝ is {found.size / norm:.0e} times as long as ∇U on average, so that "
            "rounding would hide its bias"
        )
