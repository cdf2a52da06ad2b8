"""What ends a run early: a signal, or no progress."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

EXIT_STOPPED = 75  # asked to stop, all saved: start it again (sysexits' EX_TEMPFAIL)
EXIT_STALLED = 76  # a segment, or compiling, did not end in time: start it again
EXIT_INTERRUPTED = 130  # a second Ctrl-C: left at once; what was reported is saved


def leave() -> None:
    """End the process at once."""
    os._exit(EXIT_INTERRUPTED)


def interrupt() -> None:
    """What a SIGINT does in Python; who is within a `with` still waits for its end."""
    raise KeyboardInterrupt


@contextmanager
def stop_on_signals(stop: threading.Event, insisted: Callable[[], None] = leave) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`; a second SIGINT calls `insisted`.

    In another thread than the main one, which alone may say what signals do, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if not stop.is_set():
            stop.set()  # first: who reads the sentence may answer it at once
            _say(f"{signal.Signals(number).name}: finishing this segment, then saving")
        elif number == signal.SIGINT:
            insisted()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Clock:
    """Seconds in which this process could run, if somebody ticks as often as was agreed.

    While it is stopped (Ctrl-Z, docker pause) nobody does, and no more than two intervals count.
    """

    def __init__(self, interval: float):
        """Begin at 0.

        Args:
          interval: seconds from one tick to the next.
        """
        self._interval = interval
        self._ticked = 0.0, time.monotonic()  # seconds until the last tick, and when it was

    def seconds(self) -> float:
        """Since it began."""
        until, when = self._ticked
        return until + min(time.monotonic() - when, 2 * self._interval)

    def tick(self) -> None:
        """The process runs."""
        self._ticked = self.seconds(), time.monotonic()


class Watchdog:
    """Ends the process if a worker shows no sign of life for so many seconds.

    A hang inside a compiled program cannot be interrupted, so this is `os._exit`; everything
    that was reported is on the disk.
    """

    def __init__(self, limit: float, problem: str):
        """Watch until the end of a `with`.

        Args:
          limit: seconds in which the process could run.
          problem: what is said then, as in "no segment has ended".
        """
        self._limit, self._problem = limit, problem
        self._interval = min(1.0, limit / 4)
        self.clock = Clock(self._interval)
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
        self._beats[worker] = self.clock.seconds()

    def rest(self, worker: int) -> None:
        """Worker has nothing to do, and is not waited for."""
        self._beats.pop(worker, None)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self.clock.tick()
            now = self.clock.seconds()
            if any(now - beat > self._limit for beat in list(self._beats.values())):
                _say(
                    f"{self._problem} for {self._limit:g} s, so this process ends; what was "
                    "reported is saved, and the same command continues from there"
                )
                os._exit(EXIT_STALLED)


def _say(sentence: str) -> None:
    """To standard error, past Python's buffers and locks; in silence where nobody listens."""
    if sys.stderr is not None:  # else the number may be that of another file
        with suppress(OSError):
            os.write(2, f"jaxpg: {sentence}\n".encode())
