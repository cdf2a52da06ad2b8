"""Do the estimators of public libraries give what jaxpg's give, and if not, from which event on?

    python -m benchmarks.audit [--only LIBRARY …] [--environments DIR]

Makes an environment for each library (environments.py has the versions), asks its own functions
about trajectories with every event (cases.py, and a driver a library), and holds the answers
against jaxpg's and, where they differ, against the exact gradient (exact.py). A library that cannot
be installed or loaded is named with the reason. Writes benchmarks/results/audit-cpu.json, which
fills docs/audit.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.audit import cases, environments, exact, page
from benchmarks.audit.driver import Batch, Case, Question, key, write
from benchmarks.audit.environments import LIBRARIES, NotInstalledError
from benchmarks.record import write as record
from jaxpg.parity import compare

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
SKRL, POLICIES = ("skrl 1", "skrl 2"), ("gaussian", "categorical")  # of skrl_twins.py


def main() -> None:
    """Ask, compare, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, help="prints; writes nothing")
    into = Path(sys.prefix) / "audit"
    parser.add_argument("--environments", type=Path, default=into, help=f"where they are: {into}")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    found, left_out = audit(options.only or list(LIBRARIES), options.environments)
    print(page.table(found))
    if not options.only:
        twins = _twins([name for name in SKRL if name not in left_out], options.environments)
        record("audit", {"rows": found, "left_out": left_out, "twins": twins})


def audit(names: Sequence[str], into: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each function of these libraries; and why a library has none, by its name.

    Args:
      names: of `environments.LIBRARIES`.
      into: the directory of the environments, which are made where they are not there.
    """
    views = exact.views()
    given = all_cases(views)
    found, left_out = [], {}
    with tempfile.TemporaryDirectory() as directory:
        asked, answered = (str(Path(directory) / x) for x in ("cases.npz", "answers.npz"))
        write(asked, given, questions())
        for name in names:
            try:
                python = environments.make(name, into)
            except NotInstalledError as error:
                left_out[name] = str(error)
                continue
            driver = f"benchmarks.audit.{LIBRARIES[name].driver}"
            done = environments.run(python, driver, asked, answered)
            if done.returncode:  # it does not load here; the others are audited all the same
                left_out[name] = done.stderr.strip().splitlines()[-1]
                continue
            with np.load(answered) as file:
                answers = {one: file[one] for one in file.files}
            found += rows(name, answers, given, views)
    return found, left_out


def all_cases(views: dict[str, exact.View]) -> dict[str, Case | Batch]:
    """By name."""
    return cases.events() | cases.batches() | {name: view.case for name, view in views.items()}


def questions() -> dict[str, list[Question]]:
    """Of each quantity every event; of an advantage what it makes of the gradient, too."""
    batches: list[Question] = [(name,) for name in cases.BATCHES]
    found = {
        quantity: batches if quantity in cases.LOSSES else cases.questions()
        for quantity in cases.REFERENCE
    }
    found["GAE"] += exact.questions()
    return found


def rows(
    library: str,
    answers: dict[str, np.ndarray],
    given: dict[str, Case | Batch],
    views: dict[str, exact.View],
) -> list[dict[str, Any]]:
    """Of one library.

    Args:
      library: of `environments.LIBRARIES`.
      answers: what its driver has written, by `driver.key`.
      given, views: what it was asked about.
    """
    about = json.loads(str(answers["about"]))
    found = []
    for told in about["functions"]:
        name, quantity = told["title"], told["quantity"]
        events: dict[str, Any] = {}
        for question in questions()[quantity]:
            if question[0] not in views:
                event = _held(name, quantity, question, answers, about["raised"], given)
                events[question[0]] = _worse(events.get(question[0]), event)
        found.append(
            {
                "library": library,
                "version": about["version"],
                "function": told["name"],
                "option": told["option"],
                "quantity": quantity,
                "why": told["why"],
                "events": events,
                "bias": _biases(name, quantity, answers, views),
            }
        )
    return found


def _held(
    name: str,
    quantity: str,
    question: Question,
    answers: dict[str, np.ndarray],
    raised: dict[str, str],
    given: dict[str, Case | Batch],
) -> dict[str, Any] | None:
    """How one answer compares; None if the function cannot be asked that."""
    case, *numbers = question
    if key(name, question) in raised:
        return {"raised": {"asked": numbers, "says": raised[key(name, question)]}}
    if key(name, question) not in answers:
        return None
    kept = slice(cases.PADDED if case == "padding" else None)
    theirs = answers[key(name, question)][kept]
    ours = np.asarray(cases.REFERENCE[quantity](given[case], *numbers))[kept]
    tolerance = TOLERANCE[theirs.dtype.name]
    (leaf,) = compare(theirs, ours, tolerance=tolerance).leaves
    return {
        "asked": numbers,
        "error": leaf.error,
        "equal": not leaf.reason,
        "dtype": theirs.dtype.name,
        "at": leaf.at,
        "theirs": leaf.a,
        "ours": leaf.b,
    }


def _worse(known: dict[str, Any] | None, event: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of two answers at one event the one with the larger error; and that one of them raised."""
    if not known or not event:
        return known or event
    raised = {name: one[name] for one in (event, known) for name in one if name == "raised"}
    return max((known, event), key=lambda one: one.get("error", -1.0)) | raised


def _biases(
    name: str, quantity: str, answers: dict[str, np.ndarray], views: dict[str, exact.View]
) -> dict[str, Any]:
    """Of an advantage: the gradient's bias and cosine, and those of jaxpg's."""
    found = {}
    for question in exact.questions():
        if quantity == "GAE" and key(name, question) in answers:
            view = views[question[0]]
            ours = np.asarray(cases.gae(view.case, *question[1:]))
            sides = {"theirs": answers[key(name, question)], "ours": ours}
            found[question[0]] = {side: exact.bias(view, psi) for side, psi in sides.items()}
    return found


def _twins(names: Sequence[str], into: Path) -> list[dict[str, Any]]:
    """What skrl_twins.py prints of these versions, with an entropy bonus and without."""
    found = []
    for name in names:
        python = environments.make(name, into)
        for kind in POLICIES:
            pair: dict[str, Any] = {"library": LIBRARIES[name].pins[0], "policy": kind}
            for what, coefficient in (("with", "0.1"), ("without", "0")):
                module = "benchmarks.audit.skrl_twins"
                done = environments.run(python, module, kind, coefficient)
                if not done.stdout.startswith(("EQUAL", "DIFFERENT")):
                    raise SystemExit(done.stderr)
                pair |= {what: done.stdout, f"equal_{what}": not done.returncode}
            found.append(pair)
    return found


if __name__ == "__main__":
    main()
