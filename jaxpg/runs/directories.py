"""What a directory is to a run: usable, this very run, empty, finished; how it becomes one."""

import json
import shutil
from pathlib import Path
from typing import Any

from jaxpg import files
from jaxpg.errors import RunError
from jaxpg.runs import checkpoints, manifests, results, starts
from jaxpg.runs.lock import NAME as LOCK
from jaxpg.runs.lock import locked
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.starts import Start


def begin(directory: Path, manifest: Manifest, start: Start | None = None) -> None:
    """Make the directory this run, or find that it already is.

    Args:
      start: what the manifest says that the run starts from.

    Raises:
      RunError: if it is another run (the sentence says what differs), or holds something else.
    """
    check_usable(directory)
    with files.writing(directory):
        files.make_folder(directory)
        if _is_begun(directory, manifest):  # by who may be training it
            return
        with locked(directory):
            is_new = not (directory / manifests.NAME).exists()
            if not is_new:
                check_same(directory, manifest)
            if is_new or not (directory / starts.NAME).exists():
                starts.write(directory, start)
            if is_new or _is_undecided(directory, manifest):
                manifests.write(directory, manifest)


def _is_begun(directory: Path, manifest: Manifest) -> bool:
    """Whether it is this run, and nothing is left to be written of it."""
    needed = [manifests.NAME, *([] if manifest.start is None else [starts.NAME])]
    if not all((directory / name).exists() for name in needed):
        return False
    check_same(directory, manifest)
    return not _is_undecided(directory, manifest)


def _is_undecided(directory: Path, manifest: Manifest) -> bool:
    """Whether it has saved nothing, and is another in what may change until then."""
    return is_empty(directory) and _open(manifests.read(directory)) != _open(manifest)


def _open(manifest: Manifest) -> dict[str, Any]:
    """What may change until something is saved: lanes that have no room, and the files of what is
    one's own."""
    return {name: getattr(manifest, name) for name in ("lanes", "build_sha256", "env_sha256")}


def withdraw(directory: Path) -> None:
    """Undo `begin`, of a run that has trained nothing."""
    try:
        with locked(directory):
            (directory / checkpoints.FOLDER).rmdir()  # which it refuses to if there are any
            for path in directory.iterdir():
                if path.name not in (LOCK, manifests.NAME):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            (directory / manifests.NAME).unlink()
    except OSError as error:
        raise RunError(f"{directory} cannot be emptied ({error.strerror})") from None


def check_same(directory: Path, manifest: Manifest) -> None:
    """Raise RunError, with what differs, unless the directory's manifest is this one.

    Of a run that has saved nothing the lanes may have changed, and the files of an algorithm and of
    an environment of one's own.
    """
    old = manifests.read(directory)
    if is_empty(directory):
        old = old._replace(**_open(manifest))
    of_source = {name: getattr(old, name) for name in ("build_sha256", "env_sha256")}
    same_files = manifest._replace(**of_source)  # of which more is said
    changed = manifests.differences(old, same_files)
    if changed:
        of_seeds = all(name.startswith("seeds:") for name in changed)
        more = (
            f"; more seeds get an --out of their own, with --lanes {old.lanes}, and `jaxpg merge`"
        )
        raise RunError(
            f"{directory} is a run of something else ({'; '.join(changed)}): take another --out, "
            f"or the same options{more if of_seeds else ''}"
        )
    manifests.check_source(directory, old, manifest.source)


def is_empty(directory: Path) -> bool:
    """Whether a run has saved nothing yet."""
    return not has_checkpoints(directory) and not is_finished(directory)


def has_checkpoints(directory: Path) -> bool:
    """Whether training can go on from something; a run that was saved from memory has none."""
    return bool(checkpoints.listed(directory))


def check_usable(directory: Path) -> None:
    """Raise RunError unless the directory is a run, or new, or empty."""
    try:
        if not directory.exists() and not directory.is_symlink():
            return
        names = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise RunError(f"{directory} cannot be a run directory ({error.strerror})") from None
    ours = (LOCK, starts.NAME)  # which a run that was killed as it began has left
    foreign = {name for name in names if name not in ours and not name.startswith(files.TEMPORARY)}
    if foreign and manifests.NAME not in foreign:
        raise RunError(
            f"{directory} must be a run, or new or empty; it holds {sorted(foreign)[0]} and no "
            f"{manifests.NAME}"
        )


def is_finished(directory: Path) -> bool:
    """Whether the results of this very manifest are there."""
    if not all((directory / name).exists() for name in results.FILES):
        return False
    try:
        summary = json.loads((directory / "summary.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{directory / 'summary.json'} cannot be read ({error})") from None
    return isinstance(summary, dict) and summary.get("manifest") == manifests.sha256(directory)
