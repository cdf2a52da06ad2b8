"""A population's chunks on the nodes of a Ray cluster: workers train, and this process writes.

A worker is an actor with a core or an accelerator of its own. It compiles the program once, and
takes chunk after chunk; of each it sends increments: the lanes, and the metrics since the last
ones. Who asked for the chunk gets snapshots, as from `chunks.advance`, and keeps them where it
likes. A chunk whose worker is lost goes on from there with another. Ray alone decides where
workers are, so nodes may join and leave.
"""

import math
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpg import words
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.types import Metrics
from jaxpg.errors import REFUSED, DoesNotFit
from jaxpg.population import chunks, own, provenance
from jaxpg.population.chunks import Advance, Chunk, Lane, Snapshot
from jaxpg.population.cluster import PATIENCE, POLL, Cluster, options, raised_there, said
from jaxpg.population.own import Build

LOSSES = 5  # of workers in a row, while nobody sends anything, after which it is given up
PAUSE = 60.0  # seconds, at most, before who follows several that were lost
REFUSED_SECONDS = 300.0  # after which a refused worker's place is tried again: it may be mended
MOST_WORKERS = 10_000
PACKAGE = Path(__file__).parents[1]


class Task(NamedTuple):
    """What every worker is to do."""

    chunk: Chunk  # all chunks are like it
    length: int  # updates of a segment
    updates: int  # of each chunk
    build: Build  # makes the algorithm


class Increment(NamedTuple):
    """What has become of a chunk since the last one; numpy."""

    lanes: Lane
    metrics: Metrics  # leaves [L, updates]
    recent_return: np.ndarray  # [L]
    evaluations: np.ndarray | None  # all until now, as of a snapshot: they are few


class Lost(Exception):
    """A worker is gone, or does not answer."""

    def __init__(self, reason: str, trained: Chunk | None = None):
        """`trained` is the chunk that it had, if any."""
        super().__init__(reason)
        self.trained = trained


class Limits(NamedTuple):
    """What a cluster's workers are held to."""

    pace: Callable[[], float] = lambda: 0.0  # seconds to train before an increment is sent
    compile_seconds: float = math.inf  # who takes longer to compile is lost
    stall_seconds: float = math.inf  # who sends nothing for so long, beyond the pace, is lost


NO_LIMITS = Limits()


def work(
    cluster: Cluster,
    task: Task,
    jobs: Sequence[int],
    job: Callable[[Advance, int], None],
    stop: threading.Event,
    *,
    ready: Callable[[float], None],
    limits: Limits = NO_LIMITS,
) -> None:
    """Do `job(advance, i)` for each i of the jobs, whichever worker is free; as `chunks.work`.

    A job whose worker is lost is ended by Lost, and begun again with another.

    Args:
      stop: once it is set every worker ends its segment, of which its job still hears.
      ready: called once, when the first worker has compiled, with the seconds which that took.

    Raises:
      ConfigError: if there is nobody but workers that differ from this process or cannot train
        this; or one after another is lost, and nobody else sends anything, either.
    """
    crew = _Crew(cluster, task, job, jobs, stop, ready, limits)
    with ThreadPoolExecutor(MOST_WORKERS) as pool:
        seats: list[Future] = []
        try:
            while crew.wanted() and not stop.is_set():
                for _ in range(min(crew.wanted(), cluster.size, MOST_WORKERS) - len(seats)):
                    seats.append(pool.submit(crew.seat))
                crew.check(len(seats))
                crew.tell()
                wait(seats, POLL, FIRST_COMPLETED) if seats else stop.wait(POLL)
                for seat in [seat for seat in seats if seat.done()]:
                    seats.remove(seat)
                    seat.result()
        except BaseException:
            stop.set()
            raise
        finally:
            crew.dismiss()
    crew.tell()
    for seat in seats:
        seat.result()


class Worker:
    """One core or accelerator, in a process of its own: the actor."""

    def __init__(self) -> None:
        self._hurry = threading.Event()

    def describe(self, config: Config, build: Build) -> tuple[str, dict[str, str]]:
        """The name of this machine, and what bits may depend on."""
        return socket.gethostname(), describe(config, build, provenance.device())

    def compile(self, task: Task, beside: int) -> float | Exception:
        """The seconds that it took, or why this cannot be trained here.

        Args:
          beside: workers of this machine that have yet to take the memory that they will need.
        """
        began = time.perf_counter()
        try:
            programs = chunks.compile_programs(task.chunk, task.length, 1, task.build)
            shapes = chunks.lane_shapes(task.chunk, task.build)
            together = [task.chunk] * (1 + beside)
            chunks.check_memory(programs, shapes, together, task.updates, False, elsewhere=beside)
        except REFUSED as problem:
            return problem
        (self._program,) = programs
        return time.perf_counter() - began

    def train(
        self, seconds: float, begin: tuple[Chunk, int, Snapshot | None] | None = None
    ) -> Increment | None:
        """Train until so many seconds have passed, to the end of a segment.

        Args:
          begin: a chunk, its updates and where to go on; None for the chunk of before.

        Returns:
          What has become of it; None if nothing was left.
        """
        if begin is not None:
            self._ends = chunks.advance(self._program, *begin)
        began, parts = time.monotonic(), []
        for snapshot in self._ends:
            parts.append(snapshot.history[-1])
            if self._hurry.is_set() or time.monotonic() - began >= seconds:
                break
        if not parts:
            return None
        lanes = jax.tree.map(np.array, snapshot.lanes)
        metrics = chunks.join_metrics(parts)
        return Increment(lanes, metrics, snapshot.recent_return, snapshot.evaluations)

    def hurry(self) -> None:
        """From now on `train` ends with its segment."""
        self._hurry.set()


def describe(config: Config, build: Build, device: Mapping[str, Any]) -> dict[str, str]:
    """What bits may depend on, of this process but for the device, by name.

    Args:
      device: as of `provenance.device`.
    """
    found = {
        **provenance.versions(config.env),
        "source of jaxpg": provenance.source_sha256(PACKAGE),
    }
    del found["python"], found["numpy"]  # which compute nothing of it
    theirs = own.source(build)
    if theirs and own.is_importable(theirs.name):  # else it comes with the task
        found[f"source of {theirs.name}"] = str(theirs.sha256)
    world = own.env_sha256(config.env)
    if world is not None:
        found[f"source of {config.env}"] = world
    found |= {name: str(device[name]) for name in ("platform", "kind", "form", "xla_flags")}
    if device["platform"] == "cpu":
        found["processor"] = provenance.processor()
    return found


class _Crew:
    """The workers of some jobs; a seat is a thread of this process that one worker answers to."""

    def __init__(
        self,
        cluster: Cluster,
        task: Task,
        job: Callable[[Advance, int], None],
        jobs: Sequence[int],
        stop: threading.Event,
        ready: Callable[[float], None],
        limits: Limits,
    ):
        """As `work`."""
        self._cluster, self._task, self._job, self._stop = cluster, task, job, stop
        self._here = describe(task.chunk.config, task.build, cluster.device)
        self._ready, self._limits = ready, limits
        asked = {**options(cluster.resource), "concurrency_groups": {"hurry": 1}}
        self._actor = cluster.ray.remote(**asked)(Worker)
        self._lock = threading.Lock()
        self._todo, self._busy = deque(jobs), set[int]()
        # Workers that have answered, and are not lost: their machine, and whether they have sent.
        self._there: dict[Any, tuple[str, threading.Event]] = {}
        self._is_ready = False  # one of them can train
        self._heard = 0  # increments, whoever sent them
        self._over = threading.Event()
        self._lost, self._remarks = deque[str](), deque[str]()  # that nobody was told yet
        self._told = set[str]()
        self._idle_since = time.monotonic()
        self.refused: list[Exception] = []  # why a worker cannot train, one for each

    def wanted(self) -> int:
        """Seats that there is use for, those of the refused too; 0 if all is done."""
        with self._lock:
            jobs = len(self._todo) + len(self._busy)
        return jobs + len(self.refused) if jobs else 0

    def seat(self) -> None:
        """Employ a worker, and another if it is lost, until there is no job."""
        losses = 0  # in a row, of this seat
        silent = 0  # of these, in a row, while nobody else sent anything either
        heard = 0
        while self._is_needed():
            worker, sent = self._actor.remote(), threading.Event()
            try:
                self._employ(worker, sent)
            except Lost as loss:
                losses = 0 if sent.is_set() else losses + 1
                silent = silent + 1 if self._heard == heard else 0
                heard = self._heard
                self._lost.append(str(loss))
                if silent == LOSSES:
                    raise ConfigError(
                        f"{LOSSES} workers were lost one after another, before any of them had "
                        f"sent anything; the last: {loss}{_trained(loss)}"
                    ) from loss
            finally:
                self._leave(worker)
                self._cluster.ray.kill(worker)
            if losses > 1:  # a node may be sick, and all others busy
                self._over.wait(min(PAUSE, POLL * 2**losses))

    def check(self, seats: int) -> None:
        """Raise why the first worker was refused, if all of these are and nobody has trained."""
        if not self._is_ready and seats == len(self.refused) >= self._cluster.size > 0:
            raise self.refused[0]

    def tell(self) -> None:
        """Tell a person who was lost or refused, and that nobody trains."""
        note = self._cluster.note
        for sentence in _taken(self._remarks) if self._is_ready else ():
            if sentence not in self._told:
                self._told.add(sentence)
                note(sentence)
        lost = _taken(self._lost)
        for reason in dict.fromkeys(lost):
            count = lost.count(reason)
            some = f"{count} workers are lost" if count > 1 else "a worker is lost"
            note(f"{some} ({reason}): what was trained there goes on from its last save")
        if self._there:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > PATIENCE:
            self._idle_since = math.inf  # once, until somebody is there
            note(
                f"no {self._cluster.resource} of the cluster is free: waiting for one, as on a "
                "node that joins"
            )

    def dismiss(self) -> None:
        """Let everybody end the segment, and begin nothing more."""
        self._over.set()
        for worker in list(self._there):
            worker.hurry.options(concurrency_group="hurry").remote()

    def _is_needed(self) -> bool:
        """Whether another worker is."""
        return bool(self._todo) and not self._stop.is_set()

    def _employ(self, worker: Any, sent: threading.Event) -> None:
        """Let a worker do jobs for as long as there are any.

        Args:
          sent: set once it has sent an increment.

        Raises:
          Lost: if it is.
        """
        host = "a node"
        try:
            asked = worker.describe.remote(self._task.chunk.config, self._task.build)
            answer = self._answer(asked, math.inf, self._is_needed)  # it may have no place yet
            if answer is None:
                return
            host, theirs = answer
            with self._lock:
                there = self._there.values()
                beside = [name for name, has_sent in there if not has_sent.is_set()]
                self._there[worker] = host, sent
            self._compare(host, theirs)
            asked = worker.compile.remote(self._task, beside.count(host))
            took = self._answer(asked, self._limits.compile_seconds, self._is_needed)
            if isinstance(took, Exception):
                raise took
        except Lost as loss:
            raise Lost(f"{host}: {loss}") from loss
        except Exception as error:  # whatever cannot be imported there, or traced
            problem = error if isinstance(error, REFUSED) else ConfigError(words.raised(error))
            problem.args = (f"{host}: {problem}",)
            self._remarks.append(f"{problem}; nothing is trained there")
            self._leave(worker)
            self.refused.append(problem)
            self._over.wait(REFUSED_SECONDS)  # who came to its place would be refused, too
            self.refused.remove(problem)
            return
        if took is None:
            return
        with self._lock:
            if not self._is_ready:
                self._ready(took)
                self._is_ready = True
        while (i := self._next()) is not None:
            try:
                self._job(partial(self._advance, worker, sent), i)
            except Lost as loss:
                with self._lock:  # both at once: another may take it
                    self._todo.append(i)  # the last: it may be what its workers die of
                    self._busy.discard(i)
                raise Lost(f"{host}: {loss}", loss.trained) from loss
            with self._lock:
                self._busy.discard(i)

    def _compare(self, host: str, theirs: Mapping[str, str]) -> None:
        """Raise ConfigError if bits may depend on where they are trained, unless that is meant."""
        differ = [
            f"{name} {theirs.get(name, 'none')}, here {value}"
            for name, value in self._here.items()
            if theirs.get(name) != value
        ]
        if not differ:
            return
        sentence = f"{host} differs in what last bits may depend on ({'; '.join(differ)})"
        if not self._cluster.mixed:
            raise ConfigError(f"{sentence}: --mixed (mixed=True) trains there all the same")
        self._remarks.append(f"{sentence}, and trains all the same")

    def _leave(self, worker: Any) -> None:
        """A worker is not there any more."""
        with self._lock:
            self._there.pop(worker, None)

    def _next(self) -> int | None:
        """A job to begin, if there is one."""
        with self._lock:
            if self._stop.is_set() or not self._todo:
                return None
            i = self._todo.popleft()
            self._busy.add(i)
            return i

    def _advance(
        self,
        worker: Any,
        sent: threading.Event,
        chunk: Chunk,
        updates: int,
        at: Snapshot | None,
    ) -> Iterator[Snapshot]:
        """`chunks.advance`, by a worker."""
        history = [] if at is None else list(at.history)
        done = 0 if at is None else at.update
        seconds = self._limits.pace()
        calls = deque([(worker.train.remote(seconds, (chunk, updates, at)), seconds)])
        while done < updates:
            # It goes on while this process is busy with what it has sent.
            seconds = self._limits.pace()
            calls.append((worker.train.remote(seconds), seconds))
            call, seconds = calls.popleft()
            try:
                found = self._answer(call, self._limits.stall_seconds + seconds)
            except (Lost, DoesNotFit) as error:  # when it began, there was room
                raise Lost(str(error), chunk) from error
            except (jax.errors.JaxRuntimeError, MemoryError, OSError) as error:
                raise Lost(words.raised(error), chunk) from error  # what it computes on is broken
            new = jax.tree.map(np.array, found)  # out of ray's memory
            del call, found  # else that stays taken
            sent.set()
            self._heard += 1
            history.append(new.metrics)
            done += new.metrics.env_steps.shape[1]
            yield Snapshot(new.lanes, history, new.recent_return, new.evaluations)

    def _answer(self, call: Any, limit: float, is_needed: Callable[[], bool] = lambda: True) -> Any:
        """What a call has given; None once nobody needs that any more.

        Args:
          limit: seconds, in which this process could run, that it may take.

        Raises:
          Lost: if the worker is.
          ConfigError: if it could not even begin.
        """
        ray, waited = self._cluster.ray, 0.0
        errors = ray.exceptions
        try:
            while not ray.wait([call], timeout=POLL)[0]:
                waited += POLL
                if not is_needed():
                    return None
                if waited >= limit:
                    raise Lost(f"no answer for {waited:g} s")
            return ray.get(call)
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.RayError):
                raise Lost(said(error.cause)) from error
            raise error.cause from error
        except errors.RayError as error:
            if getattr(error, "actor_init_failed", False):  # as where there is no jaxpg
                found = re.search(r"\bip=([^,)\s]+)", str(error))
                where = f", at {found[1]}" if found else ""
                raise ConfigError(
                    f"a worker cannot begin{where} ({raised_there(error)})"
                ) from error
            raise Lost(said(error)) from error


def _trained(loss: Lost) -> str:
    """What it may have died of, after the sentence on its loss."""
    if loss.trained is None:
        return ""
    seeds = loss.trained.keys[: loss.trained.real, 1]
    return f"; it trained {words.seeds(len(seeds))}, the first of them {seeds[0]}"


def _taken(sentences: deque[str]) -> list[str]:
    """All of them, which are there no more."""
    return [sentences.popleft() for _ in range(len(sentences))]
