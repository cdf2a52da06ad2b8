"""Progress: where it is shown, and what."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from jaxpg.core.config import Config
from jaxpg.population import population, progress
from jaxpg.population.progress import Progress
from jaxpg.runs.python import train_population

NEWEST = SimpleNamespace(policy_loss=np.zeros(3))
HALF = Progress(2_000_000, 0.5, np.array([0.25, np.nan, 0.25]), 100.0, rows=3, metrics=NEWEST)


def test_a_line_says_steps_speed_return_and_time_left():
    said = progress.describe(HALF)
    assert said == "2 M steps  20 k steps/s  IQM return 0.25 (2 of 3 seeds)  1:40 min left"
    narrow = progress.describe(HALF, narrow=True)
    assert narrow == "1:40 min left  IQM return 0.25 (2 of 3 seeds)  20 k steps/s  2 M steps"
    silent = HALF._replace(recent_return=np.full(3, np.nan))
    assert "IQM return none yet" in progress.describe(silent)


def test_a_row_that_diverged_is_not_among_those_whose_return_is_said():
    gone = SimpleNamespace(policy_loss=np.array([np.nan, 0.0, 0.0]))
    at = HALF._replace(recent_return=np.array([500.0, 20.0, 20.0]), metrics=gone)
    assert at.return_iqm == 20.0
    assert "IQM return 20.0 (2 of 3 seeds) " in progress.describe(at)


def test_where_nobody_is_there_are_twenty_lines_at_most(capsys):
    with progress.shown("title") as report:
        for i in range(1, 1001):
            report(HALF._replace(fraction=i / 1000))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == progress.LINES
    assert lines[0].startswith("title:   5%  2 M steps")


@pytest.fixture
def cell(monkeypatch):
    """What the output of a notebook's cell was, one text after another."""
    shown = []

    def display(data, raw, display_id):
        assert raw
        assert display_id
        shown.append(data["text/plain"])
        return SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    ipython, parts = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    parts.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", parts)
    return shown


def test_a_cell_has_a_bar_that_is_written_anew(cell, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.shown("title") as report:
        report(HALF)
        report(HALF._replace(fraction=0.6))  # too soon after the last
        now[0] += 1
        report(HALF._replace(fraction=0.7))
        report(HALF._replace(fraction=1.0))  # the end is always shown
    assert capsys.readouterr() == ("", "")
    assert cell[0] == f"title {'░' * 30} compiling"
    assert [re.findall(r"\d+%", text) for text in cell[1:]] == [["50%"], ["70%"], ["100%"]]
    assert cell[-1].startswith(f"title {'█' * 30} 100%")


def test_ipython_in_a_terminal_is_no_notebook(cell):
    sys.modules["IPython"].get_ipython = lambda: SimpleNamespace()
    assert progress.in_notebook() is None
    sys.modules["IPython"].get_ipython = lambda: None
    assert progress.in_notebook() is None


def test_a_population_in_a_notebook_shows_it_unless_it_reports_otherwise(cell, monkeypatch):
    def make_chunks(*arguments):
        raise InterruptedError  # as far as this test goes

    monkeypatch.setattr(population, "make_chunks", make_chunks)
    for report, shown in ((None, 1), (lambda at: None, 0)):
        cell.clear()
        with pytest.raises(InterruptedError):
            train_population(Config(), [3, 4], report=report)
        assert len(cell) == shown
    with pytest.raises(InterruptedError):
        train_population(Config(), [3, 4])
    assert cell[0].startswith("CartPole-v1, 2 seeds ")
