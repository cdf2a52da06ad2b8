"""A run: what is planned, and training into its directory, commit by commit, to the end.

A commit is made at the first end of a segment at which the work since the last one has taken
SAVE_RATIO times as long as a commit takes, and at the end of a chunk. So saving costs at most
1 / SAVE_RATIO of the time (plus a chunk's last commit), however slow the disk, and a kill costs at
most a segment and SAVE_RATIO commits' time of work. Progress is reported after the commit only.
"""

import json
import math
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpg import fast, files
from jaxpg.analysis.stats import iqm
from jaxpg.core import env
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import DoesNotFit, Foreign, RunError, Stopped
from jaxpg.population import chunks, own, population, provenance
from jaxpg.population.chunks import Advance, Chunk, Lane
from jaxpg.population.cluster import Cluster, Task, device_of
from jaxpg.population.evaluations import Evaluating
from jaxpg.population.own import Build
from jaxpg.population.population import Tally
from jaxpg.population.progress import Progress
from jaxpg.population.settings import (
    Setting,
    check_varied,
    plain,
    plain_setting,
    seed_list,
    with_setting,
)
from jaxpg.runs import checkpoints, compiling, directories, results
from jaxpg.runs import manifest as manifests
from jaxpg.runs import start as starts
from jaxpg.runs.checkpoints import Checkpoint
from jaxpg.runs.lock import locked
from jaxpg.runs.manifest import Manifest
from jaxpg.runs.start import Start
from jaxpg.runs.trained import check_params
from jaxpg.runs.watch import Watchdog, stop_on_signals

SAVE_RATIO = 50
SEGMENTS = 50  # of a chunk at least, where it has so many updates
LONGEST_SEGMENT = 100  # updates; a signal is answered within one segment
COMPILE_SECONDS = 3600.0  # that compiling may take at least; a loaded machine takes minutes
LOG = "progress.jsonl"


class Chain(NamedTuple):
    """The good checkpoints of a chunk, the newest last."""

    kept: list[Checkpoint]

    @property
    def update(self) -> int:
        """Updates that are safe."""
        return self.kept[-1].update if self.kept else 0


def plan(
    preset: str,
    config: Config,
    seeds: Any,
    lanes: int | None,
    settings: Sequence[Setting] = ({},),
    segments: int | None = None,
    build: Build = fast.build,
    start: Start | None = None,
    evaluating: Evaluating | None = None,
    device: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of a new run.

    Args:
      preset: the name by which it is called.
      seeds: different integers in [0, 2^32): a range, a list or an array.
      lanes: None for the backend's.
      settings: values of traced fields; every seed is trained with each of them.
      segments: that each chunk is divided into at least, where it has so many updates; None for
        SEGMENTS.
      build: makes the algorithm.
      start: what the seeds start from; None for parameters that they draw.
      evaluating: when they are evaluated while they train; None for never.
      device: that trains, as of `provenance.device`; None for this process's.

    Raises:
      ConfigError: if the config, the seeds, the lanes or the settings have no meaning; nothing is
        written.
      RunError: if the seeds cannot start there.
    """
    # What every setting replaces has the first one's value, so that the config says nothing false.
    first: Setting = next(iter(settings), {})
    replaced = {name: x for name, x in first.items() if all(name in other for other in settings)}
    config, build = with_setting(config, replaced), own.fixed(build, replaced)
    config, seeds = env.settle(plain(config)), seed_list(seeds)
    options, source = own.options(build), own.source(build)
    if source is None:  # one's own may use whatever it likes
        check_varied(config, settings)
    with chunks.own_jax(config):
        own.check_made(build, build(config))
    lanes = population.default_lanes(device) if lanes is None else lanes
    population.make_chunks(config, seeds[:1], settings, lanes, options)
    if start is not None:
        starts.check(start, config, seeds, build)
    return Manifest(
        preset=preset,
        config=config,
        parts=(manifests.format_seeds(seeds),),
        lanes=lanes,
        segment=min(-(-config.num_updates // (segments or SEGMENTS)), LONGEST_SEGMENT),
        settings=tuple(plain_setting(setting) for setting in settings),
        made={
            "versions": provenance.versions(config.env),
            "commit": provenance.commit(),
            "device": device or provenance.device(),
            "command": shlex.join(sys.argv),
        },
        bits=manifests.BITS,
        build=source and source.name,
        build_sha256=source and source.sha256,
        options=options,
        start=start and start.origin,
        evaluating=evaluating,
    )


def check_parts(manifest: Manifest, build: Build) -> None:
    """Trace an update by an algorithm of one's own, so that its errors come before a directory is
    made.

    Raises:
      RunError: if its parameters are not named as a file needs it.
      ConfigError: if it needs to know a number that is traced.
    """
    if manifest.build is None:
        return
    one = manifest._replace(parts=(manifests.format_seeds(manifest.seeds[:1]),))
    try:
        chunk = make_chunks(one)[0]
        lanes = chunks.lane_shapes(chunk, build)
        check_params(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), lanes.state.params))
        chunks.trace_update(chunk, lanes, build)
    except jax.errors.ConcretizationTypeError as error:
        raise ConfigError(
            f"{manifest.build} decides in Python by a number that is traced, as options that are "
            "fractions and traced fields of the config are: take jax.numpy.where, or annotate the "
            "option as int or bool"
        ) from error


def with_lanes_that_fit(
    directory: Path,
    lanes: int | None,
    attempt: Callable[[int | None], None],
    note: Callable[[str], None] = lambda sentence: None,
) -> None:
    """`attempt(lanes)`, which trains; if nobody chose them and they have no room, as many as fit.

    Args:
      directory: that it trains into; one that is new is left empty if nothing fits.
      lanes: None for those that the run has, or the backend's.
      note: called with a sentence if others are taken.

    Raises:
      DoesNotFit: if there is not enough memory; nothing is trained.
    """
    is_new = not (directory / manifests.NAME).exists()
    if lanes is None and not is_new:
        lanes = manifests.read(directory).lanes
    try:
        attempt(lanes)
    except DoesNotFit as problem:
        if is_new:
            directories.withdraw(directory)
        if lanes is not None or problem.lanes is None:
            raise
        note(f"{problem}, and is taken")
        with_lanes_that_fit(directory, problem.lanes, attempt, note)


def train(
    directory: Path,
    *,
    report: Callable[[Progress], None] | None = None,
    note: Callable[[str], None] = lambda sentence: None,
    stall_seconds: float,
    build: Build = fast.build,
    nodes: Cluster | None = None,
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

    Returns:
      The summary.

    Raises:
      RunError: if the directory is in use, damaged or cannot be written, or was begun by a version
        that trains to other bits.
      Stopped: after SIGTERM or SIGINT, once everything is saved.
      DoesNotFit: if there is not enough memory; nothing is trained.
      ConfigError: if no node of the cluster can train it.
    """
    stop = threading.Event()
    with locked(directory), stop_on_signals(stop):
        begun = (directory / checkpoints.FOLDER).exists()
        _clean(directory)
        manifest = manifests.read(directory)
        manifests.check_same_bits(directory, manifest)
        manifests.check_source(directory, manifest, own.source(build))
        device = device_of(nodes)
        _compare_machines(manifest, device, note)
        groups = make_chunks(manifest, starts.read(directory, manifest))
        updates = manifest.config.num_updates
        shapes = chunks.lane_shapes(groups[0], build)
        rows = {i: group.real for i, group in enumerate(groups)}
        tally = Tally(rows, updates, _log(directory / LOG, report))
        chains = _restore(directory, manifest, groups, shapes, tally, note)
        if begun and not any(chain.update for chain in chains.values()):
            note(
                f"{directory} was begun before, and ended before anything was saved, as while "
                "it compiled: training begins at its start"
            )
        compile_seconds = 0.0

        def ready(seconds: float) -> None:
            """Training begins; until now its clock has stood still."""
            nonlocal compile_seconds
            compile_seconds = seconds
            tally.began += time.perf_counter() - waiting

        jobs = [i for i, chain in chains.items() if chain.update < updates]
        if jobs:
            waiting = time.perf_counter()
            to_compile = max(COMPILE_SECONDS, stall_seconds)
            watched = stall_seconds if nodes is None else math.inf  # a cluster watches its own
            with _job(directory, manifest, groups, shapes, chains, tally, stop, watched) as (
                train_chunk,
                pace,
            ):
                population.carry_out(
                    nodes,
                    Task(groups[0], manifest.segment, updates, build),
                    groups,
                    jobs,
                    train_chunk,
                    stop,
                    ready=ready,
                    writes=True,
                    note=note,
                    compiling=partial(_compiling, manifest, to_compile, note),
                    pace=pace,
                    compile_seconds=to_compile,
                    stall_seconds=stall_seconds,
                )
        if any(chain.update < updates for chain in chains.values()):
            raise Stopped
        return _finish(directory, manifest, groups, shapes, compile_seconds, device)


def make_chunks(manifest: Manifest, start: Start | None = None) -> list[Chunk]:
    """The chunks of a run, by index.

    Args:
      start: what the manifest says that it starts from.
    """
    what = (manifest.settings, manifest.lanes, manifest.options)
    return [
        chunk
        for part in manifest.parts
        for seeds in [manifests.parse_seeds(part)]
        for chunk in population.make_chunks(
            manifest.config,
            seeds,
            *what,
            start and starts.of_seeds(start, seeds),
            manifest.evaluating,
        )
    ]


def _restore(
    directory: Path,
    manifest: Manifest,
    groups: list[Chunk],
    shapes: Lane,
    tally: Tally,
    note: Callable[[str], None],
) -> dict[int, Chain]:
    """The good checkpoints of each chunk; damaged ones are removed, with a note.

    Raises:
      Foreign: if one is whole, but not of this run and version.
    """
    found = checkpoints.listed(directory)
    chains, seconds = {}, 0.0
    for i in range(len(groups)):
        kept = found.get(i, [])
        while kept:
            try:
                loaded = checkpoints.load(kept[-1], groups[i], shapes, manifest.config.num_updates)
            except Foreign:
                raise
            except RunError as problem:
                bad = kept.pop()
                note(f"{problem}; going on from update {kept[-1].update if kept else 0}")
                _remove(bad.path)
                continue
            tally.add(i, loaded.snapshot, silent=True)
            seconds = max(seconds, loaded.seconds)
            break
        chains[i] = Chain(kept)
    tally.began = time.perf_counter() - seconds
    return chains


@contextmanager
def _compiling(manifest: Manifest, limit: float, note: Callable[[str], None]) -> Iterator[None]:
    """What this machine compiles in: a word on how long that takes, and an end to what hangs."""
    note(compiling.expectation(manifest))
    began = time.perf_counter()
    with Watchdog(limit, "compiling has not ended") as watchdog:
        watchdog.beat(0)
        yield
    compiling.remember(manifest, time.perf_counter() - began)


@contextmanager
def _job(
    directory: Path,
    manifest: Manifest,
    groups: list[Chunk],
    shapes: Lane,
    chains: dict[int, Chain],
    tally: Tally,
    stop: threading.Event,
    stall_seconds: float,
) -> Iterator[tuple[Callable[[Advance, int], None], Callable[[], float]]]:
    """What is done with a chunk: train it from its newest checkpoint on, and commit; and the
    seconds of work that a commit is worth."""
    updates = manifest.config.num_updates
    commit_seconds = 0.0  # what the last commit of any worker took

    def pace() -> float:
        return SAVE_RATIO * commit_seconds

    def train_chunk(advance: Advance, i: int) -> None:
        nonlocal commit_seconds
        chunk, kept, worker = groups[i], chains[i].kept, threading.get_ident()
        watchdog.beat(worker)
        at = checkpoints.load(kept[-1], chunk, shapes, updates).snapshot if kept else None
        committed = clock.seconds()
        for done, snapshot in advance(chunk, updates, at):
            watchdog.beat(worker)
            waited = clock.seconds() - committed
            if done == updates or stop.is_set() or waited >= pace():
                began = clock.seconds()
                kept.append(checkpoints.save(directory, i, chunk, snapshot, tally.seconds()))
                for old in kept[: -checkpoints.KEPT]:
                    _remove(old.path)
                del kept[: -checkpoints.KEPT]
                tally.add(i, snapshot)
                committed = clock.seconds()
                commit_seconds = committed - began
                watchdog.beat(worker)
            if stop.is_set():
                break
        watchdog.rest(worker)

    with Watchdog(stall_seconds, "no segment has ended") as watchdog:
        clock = watchdog.clock
        yield train_chunk, pace


def _finish(
    directory: Path,
    manifest: Manifest,
    groups: list[Chunk],
    shapes: Lane,
    compile_seconds: float,
    device: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the results of finished chunks; the summary, which says that they are there, last."""
    updates = manifest.config.num_updates
    found = checkpoints.listed(directory)
    ends = [
        checkpoints.load(found[i][-1], chunk, shapes, updates) for i, chunk in enumerate(groups)
    ]
    seconds = max(end.seconds for end in ends)
    seeds, settings = np.array(manifest.rows).T
    order = seeds.astype(np.uint32), settings.astype(np.int32)
    whole = population.gather(
        groups, [end.snapshot for end in ends], order, compile_seconds, seconds
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
        known = at.recent_return[np.isfinite(at.recent_return)]
        line = {
            "fraction": at.fraction,
            "env_steps": at.env_steps,
            "seconds": round(at.seconds, 3),
            "seeds_begun": len(at.recent_return),
            "iqm_return": float(iqm(known)) if len(known) else None,
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
        folder.mkdir(exist_ok=True)
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
