"""A finding: something exact of the family, against its truth, and what theory says of the two."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxpg.proof import oracle
from jaxpg.proof.problems import Problem
from jaxpg.proof.tables import Table, share

TOLERANCES = {"natural direction": 1e-10}  # of the amount by theory; others have oracle.TOLERANCE
X_NAMES = {  # of the questions that vary something
    "epochs": "learning rate",
    "natural direction": "iterations",
    "weights before a cut": "steps to the cut",
    "bias before a cut": "steps to the cut",
}
HEADINGS: tuple[str, ...] = (
    *("problem", "what", "against", "amount", "by theory", "cosine", "length"),
)


class Finding(NamedTuple):
    """Something exact, held against its truth."""

    question: str  # of QUESTIONS
    problem: str
    case: str
    x: float | None  # what the question varies: a rate, iterations, a distance; None: nothing
    against: str  # what the truth is
    amount: float  # ‖found - truth‖ / ‖truth‖
    cosine: float  # of the angle between the two; 0 where one is 0
    length: float  # ‖found‖ / ‖truth‖
    kl: float | None  # nats, from the policy that acted to where a gradient is evaluated
    expected: float | None  # the amount by theory; None: theory says that it is not 0
    open: bool = False  # theory says nothing, neither that it is 0 nor that it is not


def held(
    problem: Problem,
    case: str,
    found: Any,
    truth: Any,
    *,
    x: float | None = None,
    against: str = "∇U",
    kl: float | None = None,
    expected: float | None = None,
    open: bool = False,
) -> Finding:
    """The finding; who asks is filled in later."""
    _, amount, cosine, length = oracle.against(found, truth)
    return Finding(
        question="",
        problem=problem.name,
        case=case,
        x=x,
        against=against,
        amount=amount,
        cosine=cosine,
        length=length,
        kl=kl,
        expected=expected,
        open=open and expected is None,
    )


def as_theory_says(finding: Finding) -> bool:
    """Whether the amount is what theory says, to rounding; NaN never is."""
    tolerance = TOLERANCES.get(finding.question, oracle.TOLERANCE)
    if finding.expected is None:
        return finding.open or finding.amount > tolerance
    return abs(finding.amount - finding.expected) <= tolerance


def tables(found: Sequence[Finding]) -> list[Table]:
    """Each question's findings, those that vary nothing apart from those that do: these have a
    column for each x. An amount that is not what theory says has a (!)."""
    shown = []
    for question in dict.fromkeys(finding.question for finding in found):
        ours = [finding for finding in found if finding.question == question]
        single, varied = ([f for f in ours if (f.x is None) == alone] for alone in (True, False))
        if single:
            shown.append(Table(question, HEADINGS, [_line(finding) for finding in single], 3))
        if varied:
            xs = sorted({finding.x for finding in varied if finding.x is not None})
            headings = ("problem", "what", "against", *(f"{x:g}" for x in xs))
            by_case: dict[tuple[str, ...], dict[float | None, str]] = {}
            for f in varied:
                by_case.setdefault((f.problem, f.case, f.against), {})[f.x] = _amount(f)
            lines = [(*case, *(cells.get(x, "–") for x in xs)) for case, cells in by_case.items()]
            shown.append(Table(f"{question}: amount by {X_NAMES[question]}", headings, lines, 3))
    return shown


def _line(finding: Finding) -> tuple[str, ...]:
    theory = "not 0" if finding.expected is None else f"{finding.expected:.4g}"
    named = (finding.problem, finding.case, finding.against)
    return (*named, _amount(finding), theory, f"{finding.cosine:.4f}", f"{finding.length:.3f}")


def _amount(finding: Finding) -> str:
    tolerance = TOLERANCES.get(finding.question, oracle.TOLERANCE)
    shown = share(finding.amount, tolerance=tolerance, digits=2)
    return shown if as_theory_says(finding) else f"{shown} (!)"
