"""Standard output, as tables are written to it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 160  # in columns, of a file or a pipe, which has none of its own


def console() -> "Console":
    """As wide as the terminal."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)
