"""Tables of what was held against the truth, for the terminal and for a page."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Lines to be shown."""

    title: str
    headings: tuple[str, ...]
    lines: Sequence[Sequence[str]]
    named: int  # columns from the left that hold names; the others hold numbers


def rich(tables: Sequence[Table]) -> Any:
    """As a rich renderable for the terminal."""
    from rich.console import Group
    from rich.table import Table as View

    views = []
    for title, headings, lines, named in tables:
        view = View(title=title, title_justify="left", header_style="bold")
        for i, heading in enumerate(headings):
            name = i < named
            view.add_column(heading, justify="left" if name else "right", no_wrap=name)
        for line in lines:
            view.add_row(*line)
        views.append(view)
    return Group(*views)


def markdown(tables: Sequence[Table]) -> str:
    """As Markdown."""
    parts = []
    for title, headings, lines, named in tables:
        parts += [f"**{title}**", "", f"| {' | '.join(headings)} |"]
        parts += ["|" + "---|" * named + "---:|" * (len(headings) - named)]
        parts += [f"| {' | '.join(line)} |" for line in lines] + [""]
    return "\n".join(parts)


def share(amount: float, *, tolerance: float, digits: int = 1) -> str:
    """An amount in percent; what is rounding, or would have no digit so, by its size."""
    percent = f"{amount:.{digits}%}"
    return f"{amount:.0e}" if amount <= tolerance or not float(percent[:-1]) else percent
