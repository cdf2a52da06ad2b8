"""Many seeds, and many settings of the traced hyperparameters, in fixed lanes on every device.

A row is one seed with one setting. What becomes of it does not depend on the rows beside it, on
their order, or on the number of devices; only, in the last bits, on the number of lanes.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg.core import noise
from jaxpg.core.config import OWN_PARAMS, Config, ConfigError, EnvParams
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Metrics, Params
from jaxpg.fast import backend
from jaxpg.population import chunks, crew, own
from jaxpg.population.chunks import Advance, Chunk, Snapshot
from jaxpg.population.cluster import Cluster
from jaxpg.population.crew import Task
from jaxpg.population.evaluations import Evaluating, Evaluations
from jaxpg.population.own import Build
from jaxpg.population.progress import Progress
from jaxpg.population.settings import Setting, check_alike, plain, seed_list, whole, with_setting

# Rows that a worker trains at once: measured on a CPU, predicted without one for a GPU
# (benchmarks.gpu) and a TPU (benchmarks.tpu).
LANES = {"cpu": 16, "gpu": 1024, "tpu": 512}
MOST_LANES = 2**20


class Population(NamedTuple):
    """What became of S rows over U updates; numpy arrays. Without settings a row is a seed."""

    seeds: np.ndarray  # uint32 [S]
    setting: np.ndarray  # int32 [S], index in the settings
    params: Params  # leaves [S, ...]
    metrics: Metrics  # leaves [S, U]; of a frozen row 0 for what is counted, NaN for the rest
    final_return: np.ndarray  # [S], mean return of the last (up to) 100 episodes; NaN if none ended
    frozen_at: np.ndarray  # int32 [S], the update that would have made the row non-finite, or -1
    cause: np.ndarray  # int32 [S], index in CAUSES of what was not finite; 0 if not frozen
    lanes: int  # L; the result depends on it, in the last bits
    compile_seconds: float
    wall_seconds: float  # training, without compiling
    manifest: Any = None  # what was trained, from `runs.manifests`, where that is known
    evaluations: Evaluations | None = None  # while it trained, if that was asked for
    start: Any = None  # what it started from, from `runs.starts`, if that was trained before


class Given(NamedTuple):
    """What seeds are given to start from, instead of parameters that are drawn."""

    params: Params  # leaves [S, ...], of the seeds in their order
    word: int  # in [0, 2^32), of its identity: noise differs with it


def train_rows(
    config: Config,
    seeds: Sequence[int],
    settings: Sequence[Setting],
    *,
    lanes: int,
    segments: int,
    report: Callable[[Progress], None] | None,
    build: Build,
    nodes: Cluster | None,
    start: Given | None,
    evaluating: Evaluating | None,
) -> Population:
    """Train every seed with every setting, in memory; arguments as of `runs.python`.

    Args:
      nodes: the cluster that trains; None for this machine.
    """
    all_chunks = make_chunks(config, seeds, settings, lanes, own.options(build), start, evaluating)
    length = -(-config.num_updates // segments)
    tally = Tally(all_chunks, config.num_updates, report)
    compile_seconds = 0.0
    reached: dict[int, Snapshot] = {}
    stop = threading.Event()

    def ready(seconds: float) -> None:
        nonlocal compile_seconds
        compile_seconds, tally.began = seconds, time.perf_counter()

    def train_one(advance: Advance, i: int) -> None:
        for snapshot in advance(all_chunks[i], config.num_updates, reached.get(i)):
            tally.add(i, snapshot)
            reached[i] = snapshot  # from which another worker of a cluster may go on
            if stop.is_set():
                return
        # Copies: jax's own arrays are larger than what is in them.
        reached[i] = snapshot._replace(lanes=jax.tree.map(np.array, snapshot.lanes))

    task = Task(all_chunks[0], length, config.num_updates, build)
    carry_out(nodes, task, all_chunks, range(len(all_chunks)), train_one, stop, ready=ready)
    ends = [reached[i] for i in range(len(all_chunks))]
    order = (
        np.tile(np.array(seeds, np.uint32), len(settings)),
        np.repeat(np.arange(len(settings), dtype=np.int32), len(seeds)),
    )
    return gather(all_chunks, ends, order, compile_seconds, tally.seconds())


def carry_out(
    nodes: Cluster | None,
    task: Task,
    all_chunks: Sequence[Chunk],
    jobs: Sequence[int],
    job: Callable[[Advance, int], None],
    stop: threading.Event,
    *,
    ready: Callable[[float], None],
    writes: bool = False,
    note: Callable[[str], None] = lambda sentence: None,
    compiling: Callable[[], AbstractContextManager[None]] = nullcontext,
    limits: crew.Limits = crew.NO_LIMITS,
) -> None:
    """Do `job(advance, i)` for each i of the jobs, on this machine's workers or a cluster's.

    Args:
      nodes: the cluster that trains; None for this machine.
      all_chunks: of which the jobs are some; their results must fit into memory, too.
      stop: once it is set no job is begun; those that are hear of it.
      ready: called once, when it is compiled, with the seconds which that took.
      writes: whether the results become files.
      note: called with a line on the memory that it takes.
      compiling: what this machine compiles in.
      limits: of a cluster's workers.

    Raises:
      DoesNotFit: if there is not enough memory; no job is begun.
      ConfigError: if no node of the cluster can train it.
    """
    shapes, began = chunks.lane_shapes(task.chunk, task.build), time.perf_counter()
    if nodes is not None:
        note(chunks.check_memory((), shapes, all_chunks, task.updates, writes, nodes.size))
        crew.work(nodes, task, jobs, job, stop, ready=ready, limits=limits)
        return
    with compiling():
        programs = chunks.compile_programs(task.chunk, task.length, len(jobs), task.build)
    note(chunks.check_memory(programs, shapes, all_chunks, task.updates, writes))
    ready(time.perf_counter() - began)
    chunks.work(programs, jobs, job, stop)


def default_lanes(device: Mapping[str, Any] | None = None) -> int:
    """L where nobody has chosen it: that of the backend.

    Args:
      device: that trains, as of `provenance.device`; None for this process's.
    """
    platform = backend.devices()[0].platform if device is None else device["platform"]
    return LANES.get(platform, LANES["cpu"])


def enough_lanes(rows: int, workers: int) -> int:
    """The fewest L with which so many workers train all rows at once."""
    return max(2, -(-rows // workers))


def checked_lanes(lanes: Any) -> int:
    """L as Python's number.

    Raises:
      ConfigError: if it is none, or out of range.
    """
    number = whole("lanes", lanes)
    if not 2 <= number <= MOST_LANES:  # XLA compiles a batch of one otherwise
        raise ConfigError(f"lanes must be in [2, {MOST_LANES:,}]; got {number:,}")
    return number


def make_chunks(
    config: Config,
    seeds: Sequence[int],
    settings: Sequence[Setting],
    lanes: int,
    options: EnvParams = OWN_PARAMS,
    start: Given | None = None,
    evaluating: Evaluating | None = None,
) -> list[Chunk]:
    """The rows in groups of L, the last of them padded with its last row.

    Args:
      options: of an algorithm of one's own, as they are where no setting says otherwise.
      start: what the seeds start from; None for what they draw. Their noise is then another: what
        they start from has been fitted to the former.
      evaluating: when their policies are evaluated; None for never.

    Raises:
      ConfigError: as `train_population` does.
    """
    config, seeds, lanes = plain(config), seed_list(seeds), checked_lanes(lanes)
    if config.grid_bits and backend.devices()[0].platform == "tpu":
        raise ConfigError(
            f"arithmetic={config.arithmetic!r} rounds float64, which a TPU only emulates and "
            "cannot round: take float32, or the machine's CPU (JAX_PLATFORMS=cpu)"
        )
    with chunks.own_jax(config):
        arrays = [as_arrays(with_setting(config, setting)) for setting in settings]
        check_alike(arrays)
        configs = jax.tree.map(np.asarray, arrays)
        given = [
            jax.tree.map(
                lambda x: np.asarray(x, config.float_type), own.with_setting(options, setting)
            )
            for setting in settings
        ]
        keys = np.asarray(jax.random.key_data(_training_keys(seeds, start)))
        if evaluating is not None:
            evaluation_keys = np.asarray(jax.random.key_data(noise.keys(seeds, "validation")))
    count = len(configs) * len(seeds)
    stacked, stacked_options = (
        jax.tree.map(lambda *values: np.stack(values), *some) for some in (configs, given)
    )
    all_chunks = []
    for first in range(0, count, lanes):
        setting, seed = np.divmod(np.arange(first, first + lanes).clip(max=count - 1), len(seeds))
        at, own_at = jax.tree.map(lambda values: values[setting], (stacked, stacked_options))
        chunk = Chunk(at, keys[seed], min(lanes, count - first), own_at)
        if start is not None:
            params = jax.tree.map(lambda x, rows=seed: x[rows], start.params)
            chunk = chunk._replace(params=params)
        if evaluating is not None:
            chunk = chunk._replace(evaluating=evaluating, evaluation_keys=evaluation_keys[seed])
        all_chunks.append(chunk)
    return all_chunks


class Tally:
    """How far some chunks are together; workers add to it."""

    def __init__(
        self,
        all_chunks: Sequence[Chunk],
        num_updates: int,
        report: Callable[[Progress], None] | None,
    ):
        self.began = time.perf_counter()
        self._rows, self._report = [chunk.real for chunk in all_chunks], report
        self._all_updates = num_updates * sum(self._rows)
        self._lock = threading.Lock()
        self._steps = [0 for _ in all_chunks]
        self._updates = [0 for _ in all_chunks]  # of all its rows together
        self._recent: dict[int, tuple[np.ndarray, Metrics, np.ndarray | None]] = {}

    def seconds(self) -> float:
        """Since the clock began."""
        return time.perf_counter() - self.began

    def add(self, i: int, snapshot: Snapshot, silent: bool = False) -> None:
        """Chunk i has come so far; report it, unless silent."""
        real = self._rows[i]
        steps = sum(int(part.env_steps[:real].sum(dtype=np.int64)) for part in snapshot.history)
        with self._lock:
            self._updates[i], self._steps[i] = real * snapshot.update, steps
            newest = jax.tree.map(lambda x: x[:real, -1].copy(), snapshot.history[-1])
            seen = None if snapshot.evaluations is None else snapshot.evaluations[:real, -1]
            self._recent[i] = snapshot.recent_return[:real], newest, seen
            if self._report is not None and not silent:
                begun = [self._recent[i] for i in sorted(self._recent)]
                returns, metrics, evaluations = jax.tree.map(
                    lambda *rows: np.concatenate(rows), *begun
                )
                at = Progress(
                    env_steps=sum(self._steps),
                    fraction=sum(self._updates) / self._all_updates,
                    recent_return=returns,
                    seconds=self.seconds(),
                    rows=sum(self._rows),
                    metrics=metrics,
                    evaluations=evaluations,
                )
                self._report(at)


def gather(
    all_chunks: Sequence[Chunk],
    finals: Sequence[Snapshot],
    order: tuple[np.ndarray, np.ndarray],
    compile_seconds: float,
    wall_seconds: float,
) -> Population:
    """The population whose chunks have come to these ends (snapshots of numpy arrays).

    Args:
      order: the seed, uint32 [S], and the index of the setting, int32 [S], of each row.
    """
    parts = []
    for chunk, final in zip(all_chunks, finals, strict=True):
        lane, state = final.lanes, final.lanes.state
        frozen_at = np.where(lane.cause > 0, state.update, -1).astype(np.int32)
        metrics = chunks.join_metrics(final.history)
        of_rows = (final.recent_return, frozen_at, lane.cause, final.evaluations)
        parts.append(jax.tree.map(lambda x: x[: chunk.real], (state.params, metrics, *of_rows)))
    params, metrics, final_return, frozen_at, cause, returns = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *parts
    )
    evaluations = None
    if returns is not None:
        at = np.array(chunks.points_of(all_chunks[0]), np.int32)
        evaluations = Evaluations(at, *np.moveaxis(returns, -1, 0))
    return Population(
        seeds=order[0],
        setting=order[1],
        params=params,
        metrics=metrics,
        final_return=final_return,
        frozen_at=frozen_at,
        cause=cause,
        lanes=len(all_chunks[0].keys),
        compile_seconds=compile_seconds,
        wall_seconds=wall_seconds,
        evaluations=evaluations,
    )


def _training_keys(seeds: Sequence[int], start: Given | None) -> jax.Array:
    """Of each seed, [S]; with a start those of another use, and of that start alone."""
    if start is None:
        return noise.keys(seeds)
    return jax.vmap(noise.fold_in, (0, None))(
        noise.keys(seeds, "continuation"), jnp.uint32(start.word)
    )
