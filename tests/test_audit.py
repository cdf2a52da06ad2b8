"""The audit of public estimators: its trajectories, its exact biases, and what it says of a fault;
and, where they can be installed, the libraries themselves."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.audit import __main__ as audit
from benchmarks.audit import cases, driver, environments, exact, page
from benchmarks.record import read

ENVIRONMENTS = Path(sys.prefix) / "audit"


def blind(case, gamma, gae_lambda):
    """GAE that takes a truncation for a termination."""
    return cases.gae(case._replace(terminated=case.done), gamma, gae_lambda)


def through(case, gamma, gae_lambda):
    """GAE that sees no truncation: V of the next row, and its errors."""
    seen = case._replace(truncated=np.zeros_like(case.truncated))
    return cases.gae(seen._replace(next_value=case.values[1:]), gamma, gae_lambda)


def raises(case, gamma, gae_lambda):
    if gae_lambda == 0:
        raise IndexError("no lambda")
    return cases.gae(case, gamma, gae_lambda)


AUDITED = [
    driver.Audited("right", "GAE", cases.gae),
    driver.Audited("target", "λ-return", cases.lambda_return, can=driver.monte_carlo),
    driver.Audited("blind", "GAE", blind, "an option", "It is blind."),
    driver.Audited("through", "GAE", through, why="It sees nothing."),
    driver.Audited("raises", "GAE", raises, why="It raises."),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What the audit makes of a library that is made of the functions above."""
    import jax

    path = tmp_path_factory.mktemp("audit")
    asked, answered = str(path / "asked.npz"), str(path / "answered.npz")
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        views = exact.views()
        given = audit.all_cases(views)
        driver.write(asked, given, audit.questions())
        patch.setattr(sys, "argv", ["driver", asked, answered])
        driver.main("numpy", AUDITED)
        with np.load(answered) as file:
            answers = {name: file[name] for name in file.files}
        found = audit.rows("stand-in", answers, given, views)
    return {row["function"]: row for row in found}


def test_every_event_is_in_the_trajectories():
    found = cases.events()
    ends = {name: (case.terminated.any(), case.truncated.any()) for name, case in found.items()}
    assert ends == {
        "a cut": (False, False),
        "termination": (True, False),
        "termination, last row": (True, False),
        "truncation": (False, True),
        "truncation, last row": (False, True),
        "padding": (True, False),
    }
    for case in found.values():
        going_on = ~case.done[:-1]
        same = case.next_value[:-1] == case.value[1:]
        assert same[going_on][: cases.PADDED].all()
        assert not same[~going_on].any()
    assert (found["padding"].reward[cases.PADDED :] == 9).all()


def test_what_is_right_is_equal_at_every_event(rows):
    for name in ("right", "target"):
        assert all(event["equal"] for event in rows[name]["events"].values()), name


def test_what_is_wrong_differs_at_its_event_alone(rows):
    parted = {
        name: [event for event, found in rows[name]["events"].items() if not found["equal"]]
        for name in ("blind", "through")
    }
    assert parted == {
        "blind": ["truncation", "truncation, last row"],
        "through": ["truncation"],  # V of the row after the last one is that of the successor
    }


def test_an_exception_is_an_answer(rows):
    for event in rows["raises"]["events"].values():
        assert event["raised"] == {"asked": [1.0, 0.0], "says": "IndexError: no lambda"}
        assert event["equal"]  # elsewhere


def test_gae_has_no_bias_with_an_exact_value_and_a_blind_one_has_at_a_limit(rows):
    """No episode of the first view is truncated."""
    bias = {
        name: {v: rows[name]["bias"][v]["theirs"][0] for v in rows[name]["bias"]} for name in rows
    }
    assert bias["right"]["episodes, exact V"] < 1e-12
    assert bias["right"]["time limit, exact V"] < 1e-12
    assert bias["right"]["time limit, wrong V"] > 0.01
    for name in ("blind", "through"):
        assert bias[name]["episodes, exact V"] < 1e-12
        assert bias[name]["time limit, exact V"] > 0.01
    assert bias["target"] == {}


def test_the_page_names_what_differs(rows):
    given = list(rows.values())
    lines = {line.split("`")[1]: line for line in page.table(given).splitlines()[2:]}
    text = page.audit({"rows": given, "left_out": {"sleepy": "no wheel"}} | ORIGIN)
    assert lines["right"].count(" = ") == 6
    assert lines["blind"].count(" = ") == 4
    assert lines["raises"].count("raises, else =") == 6
    assert "an option" in lines["blind"]
    assert "It is blind. At *truncation*, γ = 1, λ = " in text
    assert "It raises. It says: IndexError: no lambda." in text
    assert "Left out: sleepy, no wheel." in text
    (silent,) = [row | {"why": ""} for name, row in rows.items() if name == "blind"]
    with pytest.raises(AssertionError, match="does not say why"):
        page.audit({"rows": [silent], "left_out": {}} | ORIGIN)


ORIGIN = {"command": "python -m benchmarks.audit", "commit": "0", "versions": {"jax": "0"}}


def installed(name):
    try:
        return environments.make(name, ENVIRONMENTS)
    except environments.NotInstalledError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("name", environments.LIBRARIES)
def test_a_library_is_what_the_record_says(name, x64):
    installed(name)
    found, _ = audit.audit([name], ENVIRONMENTS)
    recorded = [row for row in read("audit")["rows"] if row["library"] == name]

    def said(row):
        cells = {
            event: one and one.get("raised", one.get("equal"))
            for event, one in row["events"].items()
        }
        return row["version"], row["function"], row["option"], cells

    assert list(map(said, found)) == list(map(said, recorded))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "leaves"),
    [
        ("skrl 1", "gaussian", {"log_std"}),
        ("skrl 1", "categorical", {"mean.kernel", "mean.bias"}),
        ("skrl 2", "gaussian", set()),
        ("skrl 2", "categorical", {"mean.kernel", "mean.bias"}),
    ],
)
def test_the_twins_of_skrl_differ_in_what_entropy_moves(name, kind, leaves):
    python, module = installed(name), "benchmarks.audit.skrl_twins"
    with_bonus = environments.run(python, module, kind)
    differ = {x.split()[0] for x in with_bonus.stdout.splitlines() if "exceeds" in x}
    assert (with_bonus.returncode, differ) == (bool(leaves), leaves), with_bonus.stderr
    without = environments.run(python, module, kind, "0")
    assert without.returncode == 0, without.stdout + without.stderr
