"""Directories that are complete or not there: written aside, then renamed; files of arrays."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpg.core.config import ConfigError


@contextmanager
def whole_directory(out: Path, argument: str) -> Iterator[Path]:
    """A directory to fill, which is `out` afterwards, or gone if filling it failed.

    Args, Raises: as of `begin_directory`.
    """
    partial = begin_directory(out, argument)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def begin_directory(out: Path, argument: str) -> Path:
    """A directory beside `out`, to be renamed to it once it is complete.

    Args:
      out: what it will be; new, or an empty directory.
      argument: what the user calls it.

    Raises:
      ConfigError: if `out` holds something or cannot be written.
    """
    try:
        if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise ConfigError(f"{argument} must be a new or empty directory; {out} holds something")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        partial.chmod(0o755)  # mkdtemp's is for the owner alone
        return partial
    except OSError as error:
        raise ConfigError(f"{argument} must be writable; {out} is not ({error.strerror})") from None


@contextmanager
def whole_file(out: Path, argument: str) -> Iterator[Path]:
    """A path to write to, which becomes `out` (replacing a file of that name) once it is complete.

    Raises:
      ConfigError: if `out` is a directory or cannot be written; `argument` is what the user calls
        it.
    """
    try:
        if out.is_dir():
            raise ConfigError(f"{argument} must be a file; {out} is a directory")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
            partial = Path(aside) / out.name
            yield partial
            partial.replace(out)
    except OSError as error:
        raise ConfigError(f"{argument} must be writable; {out} is not ({error.strerror})") from None


def safetensors(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A file in that format whose bytes its content alone decides.

    The library writes metadata in another order each time.
    """
    from safetensors.numpy import save

    content = save(dict(arrays))
    end = 8 + int.from_bytes(content[:8], "little")
    about = {"__metadata__": dict(sorted(metadata.items()))}
    header = json.dumps(about | json.loads(content[8:end]), separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the arrays begin at a multiple of 8 bytes
    return len(header).to_bytes(8, "little") + header + content[end:]
