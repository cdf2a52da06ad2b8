"""A run on several processes, on one machine or many: each trains a share of the chunks.

Chunks never wait for one another, so the processes need nothing from each other but to know which
share is theirs, whether all are alive, and when all are done. `jax.distributed` answers the first
(it knows Slurm, Kubernetes, MPI and TPU pods) and is left before training begins: it ends every
process as soon as one is gone, wherever they are. The rest is files in the run directory, which
all processes must see:

    processes/INDEX.json    rewritten every few seconds: which start, which beat, what it does
"""

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxpg import files
from jaxpg.errors import RunError
from jaxpg.runs.watch import Clock

FOLDER = "processes"
BEATS = 8  # at least, in the time after which a process is given up
PEER_SECONDS = 120.0  # of silence; network file systems show a change up to a minute late


class Share(NamedTuple):
    """Which of the processes this is."""

    process: int  # the first, 0, writes the manifest and the results
    processes: int
    start: int  # a number that the processes of one start have in common

    def mine(self, num_chunks: int) -> range:
        """The chunks that this process trains."""
        return range(self.process, num_chunks, self.processes)


ALONE = Share(0, 1, 0)


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Share:
    """Meet the other processes, by `jax.distributed`, and part again.

    Must come before anything else uses jax. What is None is detected.

    Raises:
      RunError: if nothing can be detected, or the arguments have no meaning.
    """
    import jax
    import numpy as np

    known = None not in (coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if known else None,
            coordinator_bind_address=coordinator,  # by default it would listen everywhere
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise RunError(
            f"--distributed: the processes cannot be brought together "
            f"({' '.join(str(error).split())}); where no cluster is detected, name --coordinator "
            "HOST:PORT, --num-processes and --process-id"
        ) from None
    from jax.experimental import multihost_utils

    start = multihost_utils.broadcast_one_to_all(np.uint32(int.from_bytes(os.urandom(4))))
    share = Share(jax.process_index(), jax.process_count(), int(start))
    jax.distributed.shutdown()
    return share


def wait_for_first(
    directory: Path, share: Share, patience: float, is_finished: Callable[[Path], bool]
) -> None:
    """Wait until the first process, unless this is it, works in the directory or has finished.

    Raises:
      RunError: if it does not in so many seconds.
    """
    clock = Clock(_interval(patience))
    while (
        share.process
        and _read(directory, 0).get("start") != share.start
        and not is_finished(directory)
    ):
        clock.tick()
        if clock.seconds() > patience:
            raise RunError(
                f"process 0 has not begun in {directory} within {patience:g} s, as seen by process "
                f"{share.process} on {socket.gethostname()}: it has ended, or the directory is not "
                "on a file system that all processes share"
            )
        time.sleep(_interval(patience))


class Peers:
    """The other processes of a run: their signs of life, and ours.

    A process that stops tells the others to stop. One that is silent for too long is given up: the
    others stop, save and end, so that a supervisor starts them all again.
    """

    def __init__(
        self,
        directory: Path,
        share: Share,
        stop: threading.Event,
        note: Callable[[str], None],
        patience: float,
    ):
        """Watch them until the end of a `with`.

        Args:
          stop: set when another process stops or is given up.
          note: called with a sentence about that.
          patience: seconds of silence after which a process is given up.
        """
        self._directory, self._share = directory, share
        self._stop, self._note, self._patience = stop, note, patience
        self._clock = Clock(_interval(patience))  # who was stopped has not listened meanwhile
        self._doing, self._beats = "training", itertools.count()
        self._heard: dict[int, tuple[dict[str, Any], float]] = {}  # the newest, and since when
        self._lock = threading.Lock()  # of our file
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peers":
        if self._share.processes > 1:
            others = set(range(self._share.processes)) - {self._share.process}
            self._heard = {i: ({}, self._clock.seconds()) for i in others}
            with files.writing(self._directory):
                (self._directory / FOLDER).mkdir(exist_ok=True)
            self.say("training")
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._share.processes > 1:
            self._ended.set()
            self._thread.join()
            if self._doing != "finished":
                self.say("stopping")

    def say(self, doing: str) -> None:
        """Tell the others what this process does: training, trained, finished or stopping."""
        if self._share.processes == 1:
            return
        with self._lock:
            self._doing = doing
            content = {
                "start": self._share.start,
                "processes": self._share.processes,
                "host": socket.gethostname(),
                "process": os.getpid(),
                "doing": doing,
                "beat": next(self._beats),
            }
            try:
                files.write(_path(self._directory, self._share.process), json.dumps(content))
            except OSError as error:
                self._note(f"{self._directory} cannot be written ({error.strerror}); stopping")
                self._stop.set()

    def awaited(self) -> list[int]:
        """Those that this process waits for before it ends: the first, which waits for all."""
        return [i for i in self._heard if self._share.process == 0 or i == 0]

    def wait(self, index: int, doing: str) -> bool:
        """Whether a process has come to do this; False if this process is to stop before."""
        while self._heard[index][0].get("doing") != doing:
            if self._stop.wait(_interval(self._patience)):
                return False
        return True

    def _watch(self) -> None:
        while not self._ended.wait(_interval(self._patience)):
            self._clock.tick()
            for i in self._heard:
                self._listen(i)
            self.say("stopping" if self._stop.is_set() else self._doing)

    def _listen(self, i: int) -> None:
        said, since = self._heard[i]
        new = _read(self._directory, i)
        if new.get("start") == self._share.start and new != said:
            self._heard[i] = new, self._clock.seconds()
            problem = new.get("doing") == "stopping" and "is stopping"
        else:
            # Who has trained its chunks owes nothing more, except the first: the results.
            owes = said.get("doing") not in (("trained", "finished") if i else ("finished",))
            silent = owes and self._clock.seconds() - since > self._patience
            problem = silent and f"has shown no sign of life for {self._patience:g} s"
        if problem and not self._stop.is_set():
            where = f" ({new['host']})" if "host" in new else ""
            self._note(
                f"process {i} of {self._share.processes}{where} {problem}: "
                "finishing this segment, then saving"
            )
            self._stop.set()


def _interval(patience: float) -> float:
    return min(2.0, patience / BEATS)


def _path(directory: Path, index: int) -> Path:
    return directory / FOLDER / f"{index}.json"


def _read(directory: Path, index: int) -> dict[str, Any]:
    """What a process wrote; nothing if there is nothing that can be read."""
    try:
        content = json.loads(_path(directory, index).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
