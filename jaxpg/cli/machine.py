"""The process that a command has to itself: what its environment says to jax and matplotlib."""

import os
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from jaxpg import files, words
from jaxpg.core.config import Config, ConfigError
from jaxpg.runs.watch import EXIT_INTERRUPTED

# What environments draw depends on these.
DRAWING = ("JAX_DEFAULT_PRNG_IMPL", "JAX_RANDOM_SEED_OFFSET", "JAX_THREEFRY_PARTITIONABLE")
DEBUGGING = (  # what no program of ours is written for; all but one are `chunks.own_jax`'s, too
    "JAX_CHECK_TRACER_LEAKS",
    "JAX_DEBUG_INFS",
    "JAX_DEBUG_KEY_REUSE",
    "JAX_DEBUG_NANS",
    "JAX_DISABLE_JIT",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_NUMPY_RANK_PROMOTION",
    "JAX_TRANSFER_GUARD",
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE",
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST",
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE",
)
HARMLESS = ("", "0", "false", "off", "standard", "allow")


def own() -> None:
    """Make the process ours; must come first.

    Ctrl-C is answered by a thread, at once, until training answers it: an exception would be
    swallowed, or abort the process, where jax calls back from C, and the main thread may compile.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _answered)
    threading.Thread(target=_answer, args=[reader], daemon=True).start()
    # A notebook's backend is inherited by what is started in it, and may not be installed here.
    os.environ["MPLBACKEND"] = "Agg"
    for name in DRAWING:
        os.environ.pop(name, None)
    for name in DEBUGGING:
        value = os.environ.pop(name, "")
        if value.lower() not in HARMLESS:
            print(f"jaxpg: {name}={value} is for debugging, and not heeded", file=sys.stderr)


def prepare(config: Config, here: bool = True) -> None:
    """Set up jax for a config; must come before jax is imported.

    Args:
      here: whether this machine computes. Otherwise its devices are left to the workers of a
        cluster: who looks at an accelerator holds it.

    Raises:
      ConfigError: if the environment asks for a device that is not there.
    """
    keep_compiled()
    os.environ["JAX_ENABLE_X64"] = "1" if config.float_type == "float64" else "0"
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME"):
        asked = os.environ.get(name)
        if not asked or not here:
            continue
        import jax

        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:  # jax asserts that a GPU's plugin is there
            reason = words.line(error) or "jax has nothing for it"
            raise ConfigError(
                f"{name} must name devices of this machine, such as cpu; got {asked!r} ({reason})"
            ) from None


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


def _answered(number: int, frame: FrameType | None) -> None:
    """The handler of SIGINT while nobody else has one."""


def _answer(reader: int) -> None:
    """Leave at a Ctrl-C that is ours, and at a second one whosever it is."""
    interrupts = 0
    while True:
        interrupts += os.read(reader, 1)[0] == signal.SIGINT
        if interrupts > 1 or (interrupts and signal.getsignal(signal.SIGINT) is _answered):
            with suppress(OSError):
                os.write(2, b"jaxpg: interrupted\n")
            files.forsake()
            os._exit(EXIT_INTERRUPTED)
