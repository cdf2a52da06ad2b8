"""What the driver of a library is: functions that call the library's own, and a file in and out.

A driver runs in its library's environment, so this module needs numpy alone:

    python -m benchmarks.audit.rlax CASES.npz RESULTS.npz
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

N_STEPS = 3  # of the n-step returns
EPSILON = 0.2  # of the clipped surrogate
Question = Sequence[Any]  # a case's name; of a trajectory also γ and λ


class Case(NamedTuple):
    """A trajectory, [T, N], float64 and bool."""

    reward: np.ndarray
    value: np.ndarray  # V(s_t)
    next_value: np.ndarray  # V(s_{t+1}) of the true successor, before any reset
    terminated: np.ndarray
    truncated: np.ndarray

    @property
    def done(self) -> np.ndarray:
        return self.terminated | self.truncated

    @property
    def last_value(self) -> np.ndarray:
        """V of what follows the last row, [N]; of no matter where that row is the end."""
        return self.next_value[-1]

    @property
    def values(self) -> np.ndarray:
        """The values with the last one appended, [T + 1, N]."""
        return np.concatenate([self.value, self.next_value[-1:]])

    def paid(self, gamma: float) -> np.ndarray:
        """The rewards, with γ V(s_{t+1}) added where the view was truncated."""
        return self.reward + gamma * np.where(self.truncated, self.next_value, 0.0)


class Batch(NamedTuple):
    """What a loss of a policy is a function of."""

    logits: np.ndarray  # [B, A]
    action: np.ndarray  # int [B]
    old_log_prob: np.ndarray  # of the policy that acted, [B]
    advantage: np.ndarray  # [B]
    valid: np.ndarray  # bool [B], False on padding


class Audited(NamedTuple):
    """One function of a library."""

    name: str  # under which it is found in the library
    quantity: str  # what jaxpg's is called, one of `cases.REFERENCE`
    call: Callable[..., Any]  # trajectory, γ, λ -> [T, N]; or batch -> a gradient in logits, [B, A]
    option: str = ""  # with which it is called, and how it is told of a truncation
    why: str = ""  # it parts from jaxpg's, and what its documentation says of that
    can: Callable[[Question], bool] = lambda question: True  # it be asked that

    @property
    def title(self) -> str:
        return f"{self.name}, {self.option}" if self.option else self.name


def main(library: str, functions: Sequence[Audited]) -> None:
    """Ask every function every question, and write what it answers, and the library's version."""
    cases, questions = read(sys.argv[1])
    answers, raised = {}, {}
    for function in functions:
        for question in questions[function.quantity]:
            if not function.can(question):
                continue
            case, *numbers = question
            name = key(function.title, question)
            try:
                answers[name] = np.asarray(function.call(cases[case], *numbers))
            except Exception as error:  # an answer, too
                raised[name] = f"{type(error).__name__}: {error}"
    told = [one._asdict() | {"title": one.title, "call": None, "can": None} for one in functions]
    about = {"version": version(library), "functions": told, "raised": raised}
    np.savez(sys.argv[2], about=np.array(json.dumps(about)), **answers)


def whole(question: Question) -> bool:
    """Of a loss that knows no padding."""
    return question[0] == "whole batch"


def monte_carlo(question: Question) -> bool:
    """Of a function without a λ."""
    return question[2] == 1.0


def key(title: str, question: Question) -> str:
    """Of an answer."""
    return json.dumps([title, *question])


def write(
    path: str, cases: Mapping[str, Case | Batch], questions: Mapping[str, Sequence[Question]]
) -> None:
    """What `read` reads."""
    arrays = {f"{name}/{field}": x for name, c in cases.items() for field, x in c._asdict().items()}
    np.savez(path, questions=np.array(json.dumps(questions)), **arrays)


def read(path: str) -> tuple[dict[str, Case | Batch], dict[str, list[Question]]]:
    """The cases by name, and what to ask about them of functions of each quantity."""
    fields: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as arrays:
        for name in (name for name in arrays.files if name != "questions"):
            case, _, field = name.rpartition("/")
            fields.setdefault(case, {})[field] = arrays[name]
        questions = json.loads(str(arrays["questions"]))
    kinds = {frozenset(kind._fields): kind for kind in (Case, Batch)}
    return {name: kinds[frozenset(one)](**one) for name, one in fields.items()}, questions
