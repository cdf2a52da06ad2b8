"""Progress of a long run: a bar on a terminal and in a notebook, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpg.analysis.stats import iqm
from jaxpg.words import duration, returned, short

if TYPE_CHECKING:  # which imports jax
    from jaxpg.core.types import Metrics

NARROW = 110  # columns of a terminal that are too few for a bar beside its numbers
LINES = 20  # lines that a whole run prints where there is no terminal
WIDTH, PAUSE = 30, 0.2  # characters of the bar in a notebook; seconds between two messages


class Progress(NamedTuple):
    """How far a population is, after a segment; rows that have begun are in the run's order."""

    env_steps: int  # by all rows
    fraction: float  # of all updates, in [0, 1]
    recent_return: np.ndarray  # mean return of the last 100 episodes, of every row begun
    seconds: float  # since training began, compiling aside
    rows: int  # that are trained in all
    metrics: "Metrics"  # of the newest update of every row begun; NaN where a row is frozen
    # Of every row begun the mean return of the newest greedy and the newest sampled episodes,
    # [rows, 2], if policies are evaluated while they train.
    evaluations: np.ndarray | None = None

    @property
    def env_steps_per_row(self) -> float:
        """The axis of curves: of a plain run, environment steps per seed."""
        return self.env_steps / self.rows

    @property
    def known(self) -> np.ndarray:
        """The returns of rows that have any, and have not diverged."""
        healthy = np.isfinite(self.metrics.policy_loss)
        return self.recent_return[healthy & np.isfinite(self.recent_return)]

    @property
    def return_iqm(self) -> float | None:
        """Of the returns that are known; None without any."""
        return float(iqm(self.known)) if len(self.known) else None


def shown(title: str) -> AbstractContextManager[Callable[[Progress], None]]:
    """A reporter for `train_population`, shown on standard error or in a notebook's cell."""
    display = in_notebook()
    if display is not None:
        return _cell(title, display)
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    return _bar(title) if on_terminal else _lines(title)


def in_notebook() -> Callable[..., Any] | None:
    """IPython's `display`, in a notebook or another frontend that is no terminal; else None."""
    ipython = sys.modules.get("IPython")  # not imported: no notebook
    shell = ipython and ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display


def describe(at: Progress, narrow: bool = False) -> str:
    """Steps, speed, return so far and time left, in a line.

    Args:
      narrow: whether its end may be cut off, so that what matters most comes first.
    """
    score, known, begun = at.return_iqm, len(at.known), len(at.recent_return)
    said = "none yet" if score is None else returned(score)
    if 0 < known < begun:
        said += f" ({known:,} of {begun:,} seeds)"
    left = at.seconds * (1.0 - at.fraction) / at.fraction
    parts = [
        f"{short(at.env_steps)} steps",
        f"{short(at.env_steps / at.seconds)} steps/s",
        f"IQM return {said}",
        f"{duration(left)} left",
    ]
    return "  ".join(reversed(parts) if narrow else parts)


@contextmanager
def _lines(title: str) -> Iterator[Callable[[Progress], None]]:
    shown = 0

    def report(at: Progress) -> None:
        nonlocal shown
        if int(at.fraction * LINES) > shown:
            shown = int(at.fraction * LINES)
            print(f"{title}: {at.fraction:4.0%}  {describe(at)}", file=sys.stderr, flush=True)

    yield report


@contextmanager
def _bar(title: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    console = Console(stderr=True)
    narrow = console.width < NARROW
    note = TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True))
    percent = TaskProgressColumn(table_column=Column(no_wrap=True, min_width=4))
    columns = [TextColumn("{task.description}"), BarColumn(), percent, TimeElapsedColumn(), note]
    with Bar(*([percent, note] if narrow else columns), console=console) as bar:
        task = bar.add_task(title, total=1.0, note="compiling")
        yield lambda at: bar.update(task, completed=at.fraction, note=describe(at, narrow))


@contextmanager
def _cell(title: str, display: Callable[..., Any]) -> Iterator[Callable[[Progress], None]]:
    """A line of a cell's output that is written anew, without widgets."""

    def line(filled: int, text: str) -> dict[str, str]:
        return {"text/plain": f"{title} {'█' * filled}{'░' * (WIDTH - filled)} {text}"}

    handle = display(line(0, "compiling"), raw=True, display_id=True)
    told = 0.0

    def report(at: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= PAUSE or at.fraction == 1.0:
            told = time.monotonic()
            text = f"{at.fraction:4.0%}  {describe(at)}"
            handle.update(line(int(at.fraction * WIDTH), text), raw=True)

    yield report
