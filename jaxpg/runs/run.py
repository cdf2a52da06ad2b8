"""Training into a run's directory, commit by commit, to the end.

A commit is made at the first end of a segment at which the work since the last one has taken
SAVE_RATIO times as long as a commit takes, and at the end of a chunk. So saving costs at most
1 / SAVE_RATIO of the time (plus a chunk's last commit), however slow the disk, and a kill costs at
most a segment and SAVE_RATIO commits' time of work. Progress is reported after the commit only.
"""

import dataclasses
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxpg import fast, files
from jaxpg.errors import Foreign, RunError, Stopped, Unreadable
from jaxpg.population import chunks, own, population, provenance
from jaxpg.population.chunks import Advance, Chunk, Lane
from jaxpg.population.cluster import Cluster, device_of
from jaxpg.population.crew import Limits, Task
from jaxpg.population.own import Build
from jaxpg.population.population import Tally
from jaxpg.population.progress import Progress
from jaxpg.runs import checkpoints, compiling, manifests, planning, results, starts
from jaxpg.runs.checkpoints import Checkpoint
from jaxpg.runs.lock import locked
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.watch import Watchdog, leave, stop_on_signals

SAVE_RATIO = 50
COMPILE_SECONDS = 3600.0  # that compiling may take at least; a loaded machine takes minutes
LOG = "progress.jsonl"


def train(
    directory: Path,
    *,
    report: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] = lambda sentence: None,
    stall_seconds: float,
    build: Build = fast.build,
    nodes: Cluster | None = None,
    stop: threading.Event | None = None,
    insisted: Callable[[], None] = leave,
) -> dict[str, Any]:
    """Train what the directory's manifest says, from where it was, and write the results.

    Args:
      report: called after each commit, from any thread, one at a time.
      note: called with a sentence for a person, as about a damaged checkpoint.
      stall_seconds: the process ends with EXIT_STALLED if a segment takes longer, or compiling
        longer than this and than COMPILE_SECONDS; of a cluster the worker does, and another
        goes on. While the process is stopped no time passes.
      build: makes the algorithm; the same that the run was begun with.
      nodes: the cluster that trains; None for this machine.
      stop: set by SIGTERM or SIGINT, also where nothing was left to stop.
      insisted: called at a second SIGINT.

    Returns:
      The summary.

    Raises:
      RunError: if the directory is in use, damaged or cannot be written, or was begun by a version
        that trains to other bits.
      Stopped: after SIGTERM or SIGINT, once everything is saved.
      DoesNotFit: if there is not enough memory; nothing is trained.
      ConfigError: if no node of the cluster can train it.
    """
    stop = stop or threading.Event()
    with locked(directory), stop_on_signals(stop, insisted):
        begun = (directory / checkpoints.FOLDER).exists()
        _clean(directory)
        manifest = manifests.read(directory)
        manifests.check_same_bits(directory, manifest)
        manifests.check_source(directory, manifest, own.source(build))
        device = device_of(nodes)
        _compare_machines(manifest, device, note)
        all_chunks = planning.make_chunks(manifest, starts.read(directory, manifest))
        updates = manifest.config.num_updates
        shapes = chunks.lane_shapes(all_chunks[0], build)
        tally = Tally(all_chunks, updates, _log(directory / LOG, report))
        saved = _restore(directory, manifest, all_chunks, shapes, tally, note)
        if begun and not any(saved):
            note(
                f"{directory} was begun before, and ended before anything was saved, as while "
                "it compiled: training begins at its start"
            )
        compile_seconds = 0.0
        waiting = time.perf_counter()

        def ready(seconds: float) -> None:
            """Training begins; until now its clock has stood still."""
            nonlocal compile_seconds
            compile_seconds = seconds
            tally.began += time.perf_counter() - waiting

        jobs = [i for i, kept in enumerate(saved) if _safe(kept) < updates]
        if jobs:
            to_compile = max(COMPILE_SECONDS, stall_seconds)
            watched = stall_seconds if nodes is None else math.inf  # a cluster watches its own
            with Watchdog(watched, "no segment has ended") as watchdog:
                job = _Job(directory, updates, all_chunks, shapes, saved, tally, stop, watchdog)
                population.carry_out(
                    nodes,
                    Task(all_chunks[0], manifest.segment, updates, build),
                    all_chunks,
                    jobs,
                    job.train_chunk,
                    stop,
                    ready=ready,
                    writes=True,
                    note=note,
                    compiling=partial(_compiling, manifest, to_compile, note),
                    limits=Limits(job.pace, to_compile, stall_seconds),
                )
        if any(_safe(kept) < updates for kept in saved):
            raise Stopped
        return _finish(directory, manifest, all_chunks, shapes, compile_seconds, device)


def _restore(
    directory: Path,
    manifest: Manifest,
    all_chunks: list[Chunk],
    shapes: Lane,
    tally: Tally,
    note: Callable[[str], None],
) -> list[list[Checkpoint]]:
    """The good checkpoints of each chunk, the newest last; damaged ones are removed, with a note.

    Raises:
      RunError: if one cannot be read; as Foreign, if one is whole, but not of this run and version.
    """
    found = checkpoints.listed(directory)
    saved, seconds = [], 0.0
    for i in range(len(all_chunks)):
        kept = found.get(i, [])
        while kept:
            try:
                loaded = checkpoints.load(
                    kept[-1], all_chunks[i], shapes, manifest.config.num_updates
                )
            except Foreign:
                raise
            except Unreadable as problem:
                raise RunError(
                    f"{problem}; nothing was removed. If it stays so, move it away, and training "
                    "goes on from the one before"
                ) from None
            except RunError as problem:
                bad = kept.pop()
                note(f"{problem}; going on from update {_safe(kept)}")
                _remove(bad.path)
                continue
            tally.add(i, loaded.snapshot, silent=True)
            seconds = max(seconds, loaded.seconds)
            break
        saved.append(kept)
    tally.began = time.perf_counter() - seconds
    return saved


def _safe(kept: list[Checkpoint]) -> int:
    """Updates of a chunk that its good checkpoints keep."""
    return kept[-1].update if kept else 0


@contextmanager
def _compiling(manifest: Manifest, limit: float, note: Callable[[str], None]) -> Iterator[None]:
    """What this machine compiles in: a word on how long that takes, and an end to what hangs."""
    note(compiling.expectation(manifest))
    began = time.perf_counter()
    with Watchdog(limit, "compiling has not ended") as watchdog:
        watchdog.beat(0)
        yield
    compiling.remember(manifest, time.perf_counter() - began)


@dataclasses.dataclass
class _Job:
    """What is done with a chunk: train it from its newest checkpoint on, and commit."""

    directory: Path
    updates: int  # that make a chunk whole
    all_chunks: list[Chunk]
    shapes: Lane
    saved: list[list[Checkpoint]]  # the good ones of each chunk, the newest last
    tally: Tally
    stop: threading.Event
    watchdog: Watchdog
    commit_seconds: float = 0.0  # what the last commit of any worker took

    def pace(self) -> float:
        """Seconds of work that a commit is worth."""
        return SAVE_RATIO * self.commit_seconds

    def train_chunk(self, advance: Advance, i: int) -> None:
        """Train chunk i to its end, or until it is to stop."""
        chunk, kept, worker = self.all_chunks[i], self.saved[i], threading.get_ident()
        clock, beat = self.watchdog.clock, partial(self.watchdog.beat, worker)
        beat()
        at = None
        if kept:
            at = checkpoints.load(kept[-1], chunk, self.shapes, self.updates).snapshot
        committed = clock.seconds()
        try:
            for snapshot in advance(chunk, self.updates, at):
                beat()
                waited = clock.seconds() - committed
                if snapshot.update == self.updates or self.stop.is_set() or waited >= self.pace():
                    began = clock.seconds()
                    self._commit(i, snapshot)
                    committed = clock.seconds()
                    self.commit_seconds = committed - began
                    beat()
                if self.stop.is_set():
                    break
        finally:
            self.watchdog.rest(worker)

    def _commit(self, i: int, snapshot: chunks.Snapshot) -> None:
        """Save it, and remove what is too old to be kept."""
        kept, seconds = self.saved[i], self.tally.seconds()
        kept.append(checkpoints.save(self.directory, i, self.all_chunks[i], snapshot, seconds))
        for old in kept[: -checkpoints.KEPT]:
            _remove(old.path)
        del kept[: -checkpoints.KEPT]
        self.tally.add(i, snapshot)


def _finish(
    directory: Path,
    manifest: Manifest,
    all_chunks: list[Chunk],
    shapes: Lane,
    compile_seconds: float,
    device: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the results of finished chunks; the summary, which says that they are there, last."""
    updates = manifest.config.num_updates
    found = checkpoints.listed(directory)
    ends = [
        checkpoints.load(found[i][-1], chunk, shapes, updates) for i, chunk in enumerate(all_chunks)
    ]
    seconds = max(end.seconds for end in ends) + manifest.made.get(manifests.SECONDS, 0.0)
    seeds, settings = np.array(manifest.rows).T
    order = seeds.astype(np.uint32), settings.astype(np.int32)
    whole = population.gather(
        all_chunks, [end.snapshot for end in ends], order, compile_seconds, seconds
    )
    again = manifests.resume_line(directory)
    advice = f"; training is finished and saved: make room, then {again} writes the results"
    with files.writing(directory, advice):
        return results.save(directory, manifest, whole, device)


def _log(path: Path, report: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """A reporter that appends each report to a file, then passes it on."""
    again = manifests.resume_line(path.parent)
    advice = f"; everything reported so far is saved: make room, then {again}"

    def write(at: Progress) -> None:
        line = {
            "fraction": at.fraction,
            "env_steps": at.env_steps,
            "seconds": round(at.seconds, 3),
            "seeds_begun": len(at.recent_return),
            "iqm_return": at.return_iqm,
        }
        with files.writing(path, advice):
            files.append(path, json.dumps(line))
        if report is not None:
            report(at)

    return write


def _clean(directory: Path) -> None:
    """Make the folder of checkpoints; remove what killed processes were writing."""
    folder = directory / checkpoints.FOLDER
    with files.writing(directory):
        files.make_folder(folder)
        for path in [*directory.iterdir(), *folder.iterdir()]:
            if path.name.startswith(files.TEMPORARY):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path} cannot be removed ({error.strerror})") from None


def _compare_machines(
    manifest: Manifest, device: Mapping[str, Any], note: Callable[[str], None]
) -> None:
    """Note what may change the last bits since the run was begun."""
    now = {"versions": provenance.versions(manifest.config.env), "device": device}
    changed = [
        f"{name} {old.get(name)} -> {new[name]}"
        for old, new in ((manifest.made.get(kind), now[kind]) for kind in now)
        if isinstance(old, dict)
        for name in new
        if name != "count" and old.get(name, new[name]) != new[name]
    ]
    if changed:
        note(f"since the run was begun: {', '.join(changed)}; its last bits may depend on that")
