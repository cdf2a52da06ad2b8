"""The only writer: files and directories that are complete or not there, whatever happens.

They are written aside, forced to the disk and renamed. Text is UTF-8, whatever the locale.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxpg import words
from jaxpg.errors import RunError, Unreadable

TEMPORARY = ".tmp-"  # how the name of what is still being written begins
_unfinished: set[Path] = set()  # directories


def write(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old one or the whole new one, and never loses it.

    Raises:
      OSError: if it could not be written; there is then nothing half-written of that name.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(_encoded(content))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def as_json(content: Any) -> str:
    """As JSON that people read, too.

    Raises:
      ValueError: if there is a NaN or an infinity in it, which JSON has not.
    """
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def append(path: Path, line: str) -> None:
    """Add a line to a log, whose last one may be half a line.

    Raises:
      OSError: if it could not be written.
    """
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def make_folder(path: Path) -> None:
    """Make a directory and those that it lies in, where they are not there, and never lose them.

    Raises:
      OSError: if it could not be made.
    """
    new = []
    for at in (path, *path.parents):
        if at.exists():
            break
        new.append(at)
    path.mkdir(parents=True, exist_ok=True)
    for at in new:
        sync(at.parent)


def sync(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(path: Path, content: bytes | str) -> None:
    """Write a file that a person has named, and the folders that it lies in.

    A link stays one, and a device or pipe (as /dev/stdout) is written to.

    Raises:
      RunError: if it could not be written.
    """
    with writing(path):
        if _is_device(path):
            with path.open("ab") as file:
                file.write(_encoded(content))
        else:
            path = path.resolve()
            make_folder(path.parent)
            write(path, content)


def check(path: Path | None, argument: str) -> None:
    """Raise RunError unless `save` could write there, before anything is computed for it.

    Args:
      path: of a file; None is fine.
      argument: what the user calls it.
    """
    if path is None:
        return
    if path.is_dir():
        raise RunError(f"{argument} must be a file; {path} is a directory")
    place = path.absolute() if _is_device(path) else path.resolve().parent
    while not place.exists():
        place = place.parent
    if not (place.is_dir() or _is_device(path)) or not os.access(place, os.W_OK):
        raise RunError(f"{argument} must be a file that can be written; {path} cannot be written")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong with a file of ours while it is read and understood, as a RunError.

    Raises:
      RunError: if it is damaged; as Unreadable, if it may be whole.
    """
    try:
        yield
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror})") from None
    except KeyError as error:
        raise RunError(f"{path} is damaged: it lacks {error}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {words.line(error)}") from None


@contextmanager
def writing(path: Path, advice: str = "") -> Iterator[None]:
    """What the file system refuses inside becomes a sentence.

    Args:
      path: what cannot be written then.
      advice: what the sentence ends with.

    Raises:
      RunError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or words.line(error)
        raise RunError(f"{path} cannot be written ({reason}){advice}") from error


@contextmanager
def whole_directory(out: Path, argument: str) -> Iterator[Path]:
    """A directory to fill, which is `out` afterwards, or gone if filling it failed.

    Args:
      out: what it will be; new, or an empty directory.
      argument: what the user calls it.

    Raises:
      RunError: if `out` holds something or cannot be written.
    """
    with writing(out):
        if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise RunError(f"{argument} must be a new or empty directory; {out} holds something")
        if out.exists() and out.samefile(os.curdir):
            raise RunError(f"{argument} cannot be the working directory, whose place it takes")
        out = out.absolute()
        make_folder(out.parent)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        _unfinished.add(partial)
        try:
            partial.chmod(0o755)  # mkdtemp's is for the owner alone
            yield partial
            partial.rename(out)
            sync(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _unfinished.remove(partial)


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


def safetensors_metadata(content: bytes) -> dict[str, str]:
    """What such a file, which safetensors can load, says beside its arrays; {} if nothing."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__", {})


def forsake() -> None:
    """Remove the directories that are being filled; the process ends.

    Another thread may go on to fill one, and give it its name: who comes second fails.
    """
    for partial in list(_unfinished):
        forsaken = partial.with_name(f"{partial.name}-")
        with suppress(OSError):
            partial.rename(forsaken)
            shutil.rmtree(forsaken, ignore_errors=True)


def _is_device(path: Path) -> bool:
    return path.exists() and (not path.is_file() or path.parts[:2] == ("/", "dev"))


def _encoded(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content
