"""The process that a command has to itself: what its environment says to jax and matplotlib."""

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from jaxpg.core.config import Config

EXIT_INTERRUPTED = 130
PATIENCE = 2.0  # seconds in which an interrupted command may tidy up


def own() -> None:
    """Make the process ours; must come first."""
    signal.signal(signal.SIGINT, _interrupt)
    # A notebook's backend is inherited by what is started in it, and may not be installed here.
    os.environ["MPLBACKEND"] = "Agg"


def leave() -> None:
    """End at once, as Ctrl-C does."""
    print("jaxpg: interrupted", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)


def prepare(config: Config) -> None:
    """Set up jax for a config; must come before jax is imported."""
    keep_compiled()
    os.environ["JAX_ENABLE_X64"] = "1" if config.float_type == "float64" else "0"


def keep_compiled() -> None:
    """Compiled programs are kept, in JAX_COMPILATION_CACHE_DIR; must come before jax starts."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_cache())


def _cache() -> Path:
    """A folder that can be written: in the user's cache, or a temporary one, with a sentence."""
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(home) if home else Path.home() / ".cache") / "jaxpg" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = f"{folder} cannot be written"
    except RuntimeError:
        reason = "there is no home directory"
    except OSError as error:
        reason = f"{folder} cannot be made ({error.strerror})"
    folder = _temporary()
    print(f"jaxpg: {reason}, so what is compiled is kept in {folder}", file=sys.stderr, flush=True)
    return folder


def _temporary() -> Path:
    """This user's alone, since programs are loaded from it."""
    folder = Path(tempfile.gettempdir()) / f"jaxpg-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o077 and folder.is_dir():
            return folder
    except OSError:
        pass  # then one that nobody else has made
    return Path(tempfile.mkdtemp(prefix="jaxpg-"))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C, until training takes it over. jax's own callbacks may swallow the exception."""
    end = threading.Timer(PATIENCE, leave)
    end.daemon = True
    end.start()
    signal.signal(number, lambda *_: leave())
    raise KeyboardInterrupt
