"""An estimator or a loss of one's own, held against the exact gradient of a problem in `problems`.

It may be written in JAX, torch or numpy: all that it gets are arrays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core import noise
from jaxpg.core.types import Params, Trajectory
from jaxpg.proof.oracle import (
    MAX_BATCHES,
    TOLERANCE,
    Truth,
    against,
    chain,
    every_batch,
    inputs,
    moments,
)
from jaxpg.proof.problems import Problem, ascend, cartpole, probability, quick_jit
from jaxpg.proof.tables import share

Slopes = Callable[..., Any]  # log π, trajectory, V(s), V(s') -> ∂ loss / ∂ log π, [T, N, K]
COLUMNS = ("problem", "parameters", "V", "bias", "cosine", "length", "variance")


class Held(NamedTuple):
    """The estimator at one set of parameters, with one V. Lengths are relative to ‖∇U‖."""

    problem: str
    parameters: str  # "random" or "trained"
    value: str  # the V that it was given: "exact" or "wrong"
    bias: float  # ‖E ĝ - ∇U‖ / ‖∇U‖
    cosine: float  # of the angle between E ĝ and ∇U; 0 where E ĝ is 0
    length: float  # ‖E ĝ‖ / ‖∇U‖
    variance: float  # trace of ĝ's covariance, times the trajectories in a batch

    @property
    def row(self) -> tuple[str, ...]:
        """A line of a table, as `COLUMNS` says."""
        bias = share(self.bias, tolerance=TOLERANCE)
        numbers = (f"{self.cosine:.4f}", f"{self.length:.3f}", f"{self.variance:.3g}")
        return (self.problem, self.parameters, self.value, bias, *numbers)


class Bias(NamedTuple):
    """What came out; prints as a table."""

    rows: tuple[Held, ...]

    @property
    def unbiased(self) -> bool:
        """Whether E ĝ is ∇U wherever V was exact."""
        return all(row.bias <= TOLERANCE for row in self.rows if row.value == "exact")

    def __str__(self) -> str:
        lines = [COLUMNS, *(row.row for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, x, widths)).rstrip() for x in lines)


def estimator_bias(
    advantage: Callable[..., Any],
    problem: Callable[[], Problem] = cartpole,
    *,
    loss: Callable[..., Any] | None = None,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
    trajectories: int = 1,
    arrays: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
) -> Bias:
    """The exact bias and variance of the gradient that an estimator or a loss gives.

        ĝ = -∂ loss(log π, Ψ) / ∂θ,    Ψ = advantage(trajectory, V(s_t), V(s_{t+1}))

    in expectation over every batch of trajectories that the problem has, at the policy's initial
    parameters and at trained ones, with V_π itself and with an untrained network's V.

    Args:
      advantage: (trajectory, value, next_value, *, gamma, gae_lambda) -> Ψ, as
        `Algorithm.advantage`: a `Trajectory` of [T, N] and values [T, N] give [T, N]. Steps that
        are not `valid` follow an episode's end; nothing in them may count.
      problem: makes it, with JAX's 64-bit mode on: `cartpole`, `tabular`, `partial(tabular, 2)`.
      loss: (log_prob, Ψ, valid) -> scalar to be minimised, of arrays [T, N]; it has to mean Ψ as a
        constant. None sums over time and takes the mean over trajectories.
      gamma: of the objective U, whose first reward counts fully.
      gae_lambda: handed to the estimator.
      trajectories: N in a batch; more than 1 where the estimator or loss couples them.
      arrays: makes the framework's array of numpy's: `torch.from_numpy`, or `np.asarray`. Then each
        batch is a call. None for JAX, where the estimator is traced once for all batches.
      seed: of the initial weights.

    Raises:
      ValueError: for more batches than can be enumerated, a Ψ of another shape, or one that is not
        finite on a valid step; a loss that is no scalar, or that torch finds no slope of.
    """
    with jax.enable_x64(True):
        made = problem()
        count = made.trajectory.valid.shape[1] ** trajectories
        if trajectories < 1 or count > MAX_BATCHES:
            allowed = f"from 1 on, and so few that there are at most {MAX_BATCHES:,} batches"
            raise ValueError(f"trajectories must be {allowed}; {trajectories} makes {count:,}")
        batches = every_batch(made, trajectories)
        call = partial(advantage, gamma=gamma, gae_lambda=gae_lambda)
        slopes = _one_by_one(call, loss, arrays) if arrays else _in_jax(call, loss)
        start = made.networks.init(*noise.split(noise.key(seed), 2))
        found = []
        for parameters, params in (("random", start), ("trained", ascend(made, start))):
            truth = Truth.of(made, params, gamma)
            (log_prob, *wrong), (score, *_) = inputs(made, params)
            for kind, values in (("exact", truth[1:]), ("wrong", wrong)):
                given = (log_prob, made.trajectory, *map(jnp.asarray, values))
                slope = slopes(*jax.tree.map(lambda x: x[:, batches], given))
                place = (made, params, parameters, kind, truth.gradient)
                found.append(_hold(*place, -chain(slope, score), batches))
        return Bias(tuple(found))


def _hold(
    problem: Problem,
    params: Params,
    parameters: str,
    value: str,
    truth: np.ndarray,
    gradient: np.ndarray,
    batches: jax.Array,
) -> Held:
    """ĝ of every batch, [K, P], against ∇U, [P]."""
    mean, variance = moments(gradient, batches, probability(problem, params))
    _, bias, cosine, length = against(mean, truth)
    return Held(problem.name, parameters, value, bias, cosine, length, variance)


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
        inputs = (psi, trajectory.valid)
        return differentiate(log_prob, *inputs) if differentiate else _plain(*inputs)

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
        if not found.requires_grad:
            raise ValueError("loss does not depend on log_prob, or is detached from it")
        found.backward()
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
