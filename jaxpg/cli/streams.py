"""Standard output and error on which a command can rely: a write that fails ends nothing.

A reader may die (`| head`), a disk be full, a terminal be gone, a stream be closed (`2>&-`) or know
no Unicode. What cannot be written is lost; what a command computes and saves is not.
"""

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from jaxpg import words

PLAIN = {"≥": ">=", "≤": "<=", "×": "x", "−": "-", "–": "-", "—": "-", "→": "->", "·": "-",
         "π": "pi", "Ψ": "Psi", "∇": "grad ", "λ": "lambda", "γ": "gamma", "σ": "sigma",
         "─": "-", "━": "-", "│": "|", "‖": "||", **dict.fromkeys("╭╮╰╯├┤┼", "+")}  # fmt: skip


class Raw(io.RawIOBase):
    """A file descriptor, to be written to; `error` says what went wrong last."""

    def __init__(self, number: int):
        """Write to the descriptor of this number, which stays open."""
        self._number = number
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The number."""
        return self._number

    def isatty(self) -> bool:
        """Whether a person may be looking."""
        return os.isatty(self._number)

    def write(self, content: memoryview) -> int:  # type: ignore[override]
        """Write some of it; pretend to, where that fails."""
        while True:
            try:
                return os.write(self._number, content)
            except BlockingIOError:  # somebody else has set this terminal so
                select.select([], [self._number], [])
            except OSError as error:
                self.error = error
                return len(content)


def rely() -> None:
    """Make sys.stdout and sys.stderr such streams; must come before anything is opened or said."""
    for number in (0, 1, 2):
        _open(number)
    codecs.register_error("plain", plain)
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def say(sentence: str) -> None:
    """For a person, on standard error."""
    print(f"jaxpg: {sentence}", file=sys.stderr, flush=True)


@contextmanager
def attempt(otherwise: str) -> Iterator[None]:
    """What is not training: if it fails, that is said, and the command goes on."""
    try:
        yield
    except (Exception, SystemExit) as error:  # of whatever draws, tracks or writes
        say(f"{otherwise} ({words.raised(error):.500})")


def lost() -> str | None:
    """Why standard output is incomplete, if that is not what its reader wanted."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, Raw) else None
    return None if error is None or error.errno == errno.EPIPE else error.strerror


def plain(error: UnicodeError) -> tuple[str, int]:
    """For `codecs.register_error`: other characters that say the same."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(x) or _letters(x) or "?" for x in text), error.end


def _letters(character: str) -> str:
    """é is e, … is three dots."""
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()


def _stream(number: int, old: TextIO | None) -> io.TextIOWrapper:
    raw = Raw(number)
    encoding = getattr(old, "encoding", None) or "utf-8"
    lines = number == 2 or raw.isatty() or getattr(old, "write_through", False)
    buffer: Any = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=encoding, errors="plain", line_buffering=lines)


def _open(number: int) -> None:
    """/dev/null in the place of a closed descriptor, which the next file would take."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        os.set_inheritable(number, True)
