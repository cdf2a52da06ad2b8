"""Files that are complete or not there, whatever happens to the process or the machine."""

import os
from pathlib import Path

TEMPORARY = ".tmp-"  # how the name of a file that is still being written begins


def write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, and never loses it.

    Raises:
      OSError: if it could not be written; there is then nothing half-written of that name.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
