"""What ends a run early: a signal, or no progress."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

EXIT_STOPPED = 75  # asked to stop, all saved: start it again (sysexits' EX_TEMPFAIL)
EXIT_STALLED = 76  # a segment did not end in time: start it again
EXIT_INTERRUPTED = 130  # a second Ctrl-C: left at once; what was reported is saved


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`; a second SIGINT ends the process at once."""

    def ask(number: int, frame: object) -> None:
        if not stop.is_set():
            stop.set()  # first: who reads the sentence may answer it at once
            name = signal.Signals(number).name
            with suppress(OSError):  # nobody may be listening any more
                os.write(2, f"jaxpg: {name}: finishing this segment, then saving\n".encode())
        elif number == signal.SIGINT:
            os._exit(EXIT_INTERRUPTED)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watchdog:
    """Ends the process if a worker shows no sign of life for so many seconds.

    A hang inside a compiled program cannot be interrupted, so this is `os._exit`; everything
    that was reported is on the disk.
    """

    def __init__(self, limit: float):
        self._limit = limit
        self._beats: dict[int, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def beat(self, worker: int) -> None:
        """Worker has begun something, or ended a part of it."""
        self._beats[worker] = time.monotonic()

    def rest(self, worker: int) -> None:
        """Worker has nothing to do, and is not waited for."""
        self._beats.pop(worker, None)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._limit / 4)):
            now = time.monotonic()
            if any(now - beat > self._limit for beat in list(self._beats.values())):
                print(
                    f"jaxpg: no segment has ended for {self._limit:g} s, so this process ends; "
                    "what was reported is saved, and the same command continues from there",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_STALLED)
