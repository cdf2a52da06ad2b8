"""Progress of a long run: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from jaxpg.analysis.stats import iqm
from jaxpg.population.population import Progress

LINES = 20  # lines that a whole run prints where there is no terminal


@contextmanager
def progress(title: str) -> Iterator[Callable[[Progress], None]]:
    """A reporter for `train_population`, shown on standard error."""
    with (_bar if sys.stderr.isatty() else _lines)(title) as report:
        yield report


def describe(at: Progress) -> str:
    """Steps, speed, return so far and time left, in a line."""
    left = at.seconds * (1.0 - at.fraction) / at.fraction
    finished = at.recent_return[~np.isnan(at.recent_return)]
    score = f"{iqm(finished):.1f}" if len(finished) else "none yet"
    return (
        f"{at.env_steps / 1e6:.1f} M steps  {at.env_steps / at.seconds / 1e6:.2f} M steps/s  "
        f"IQM return {score}  {int(left) // 60}:{int(left) % 60:02d} left"
    )


@contextmanager
def _lines(title: str) -> Iterator[Callable[[Progress], None]]:
    print(f"{title}: compiling", file=sys.stderr, flush=True)
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
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=1.0, note="compiling")
        yield lambda at: bar.update(task, completed=at.fraction, note=describe(at))
