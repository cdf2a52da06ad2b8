"""One process at a time in a run directory."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpg import files
from jaxpg.errors import InUse, RunError

NAME = "lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock.

    The kernel holds it for the process and lets go when that ends, however it ends: there is no
    stale lock. The file stays, and says who holds it or held it last.

    Raises:
      RunError: if another process holds it (InUse), or the directory cannot be written.
    """
    path = directory / NAME
    with files.writing(directory):
        file = path.open("ab", buffering=0)  # else what a full disk refuses is written again later
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{directory} is in use by {_holder(path)}") from None
        except OSError as error:
            raise RunError(f"{directory} cannot be locked ({error.strerror})") from None
        holder = json.dumps({"process": os.getpid(), "host": socket.gethostname()})
        with files.writing(directory):
            file.truncate(0)
            file.write(f"{holder}\n".encode())
        yield


def _holder(path: Path) -> str:
    """Who holds the lock, as far as its file says so."""
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
