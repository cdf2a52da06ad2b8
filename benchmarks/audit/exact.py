"""What an estimator's Ψ makes of the gradient: exactly, where every trajectory can be enumerated.

Two views of the random MDP of `jaxpg.proof.problems`, a column for each trajectory. In *episodes*
every episode ends by itself. A *time limit* cuts it after `LIMIT` steps and says that it is a
truncation, and another episode follows in the column, as in a vector of environments; what is held
are the steps before the limit. γ is 1 in both.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.audit.driver import Case, Question
from jaxpg.core import noise
from jaxpg.proof.oracle import Truth, inputs
from jaxpg.proof.problems import probability, tabular

LIMIT, LAMBDA = 2, 0.95
VALUES = ("exact V", "wrong V")  # V_π, and an untrained network's


class View(NamedTuple):
    """A case, and what its Ψ is held against."""

    case: Case
    weight: np.ndarray  # P of each column, [M]
    score: np.ndarray  # ∇log π of each step, [T, M, P]; 0 on those that are not held
    truth: np.ndarray  # [P]


def views() -> dict[str, View]:
    """By name; with JAX's 64-bit mode on."""
    problem = tabular()
    params = problem.networks.init(*noise.split(noise.key(0), 2))
    truth = Truth.of(problem, params, 1.0)
    (_, *wrong), (score, *_) = inputs(problem, params)
    rows, weight = problem.trajectory, np.asarray(probability(problem, params))
    score = np.where(np.asarray(rows.valid)[..., None], score, 0.0)
    found = {}
    for kind, values in zip(VALUES, (truth[1:], wrong), strict=True):
        arrays = (rows.reward, *values, rows.terminated, rows.truncated)
        whole = View(Case(*map(np.array, arrays)), weight, score, truth.gradient)
        found[f"episodes, {kind}"] = whole
        found[f"time limit, {kind}"] = _limited(whole)
    return found


def questions() -> list[Question]:
    """What is asked of every estimator of an advantage."""
    return [
        (f"{view}, {kind}", 1.0, LAMBDA) for view in ("episodes", "time limit") for kind in VALUES
    ]


def bias(view: View, psi: np.ndarray) -> tuple[float, float]:
    """‖E ĝ - ∇U‖ / ‖∇U‖, and the cosine of the angle between the two."""
    held = view.score.any(axis=-1)
    mean = np.einsum(
        "m,tm,tmp->p", view.weight, np.where(held, psi, 0.0), view.score, optimize=True
    )
    norm, length = np.linalg.norm(view.truth), np.linalg.norm(mean)
    off = float(np.linalg.norm(mean - view.truth) / norm)
    return off, float(mean @ view.truth / (length * norm)) if length else 0.0


def _limited(whole: View) -> View:
    """Every pair of episodes, the first one cut after `LIMIT` steps, the other below it.

    The truth weighs each step before the limit with what really followed it.
    """
    case, steps = whole.case, len(whole.case.reward)
    held = whole.score.any(axis=-1)
    count = case.reward.shape[1]
    first, second = (x.ravel() for x in np.indices((count, count)))
    length = np.minimum(held.sum(axis=0), LIMIT)[first]  # of the first, in its column
    row = np.arange(LIMIT + steps)[:, None] - np.zeros_like(first)
    begun = row >= length
    source = np.where(begun, np.clip(row - length, 0, steps - 1), np.minimum(row, steps - 1))
    column = np.where(begun, second, first)
    fields = {name: x[source, column] for name, x in case._asdict().items()}
    fields["truncated"] |= (row == length - 1) & ~fields["terminated"]
    score = np.where(begun[..., None], 0.0, whole.score[source, column])
    returns = np.cumsum(case.reward[::-1], axis=0)[::-1]  # of padding 0, as rewards are there
    before = np.arange(steps) < LIMIT
    truth = np.einsum(
        "t,m,tm,tmp->p", before, whole.weight, np.where(held, returns, 0.0), whole.score
    )
    return View(Case(**fields), whole.weight[first] * whole.weight[second], score, truth)
