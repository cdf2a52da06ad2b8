"""Many seeds, and many settings of the traced hyperparameters, in fixed lanes on every device.

A row is one seed with one setting. What becomes of it does not depend on the rows beside it, on
their order, or on the number of devices; only, in the last bits, on the number of lanes.
"""

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpg import algorithms, chunks, noise
from jaxpg.chunks import Build, Chunk, Program, Snapshot
from jaxpg.config import FIELDS, TRACED, Config, ConfigError, nearest, validate
from jaxpg.training import as_arrays
from jaxpg.types import Metrics, Params

LANES = {"cpu": 16, "gpu": 256, "tpu": 256}  # rows that a worker trains at once; measured on cpu

Setting = Mapping[str, float]  # traced fields by name


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


class Progress(NamedTuple):
    """How far a population is, after a segment."""

    env_steps: int  # by all rows
    fraction: float  # of all updates, in [0, 1]
    recent_return: np.ndarray  # mean return of the last 100 episodes, of every row begun
    seconds: float  # since training began, compiling aside


class GridPoint(NamedTuple):
    """What became of one combination of static hyperparameters."""

    config: Config
    settings: Sequence[Setting]  # what `population.setting` is the index of
    population: Population


def train_population(
    config: Config,
    seeds: Sequence[int],
    *,
    settings: Sequence[Setting] = ({},),
    lanes: int | None = None,
    segments: int = 50,
    report: Callable[[Progress], None] | None = None,
    build: Build = algorithms.build,
) -> Population:
    """Train every seed with every setting, for the whole budget.

    A row whose loss, gradient norm or parameters stop being finite is frozen at its last finite
    state; the others do not notice.

    Args:
      config: what to train.
      seeds: different integers in [0, 2^32).
      settings: values of traced fields that replace the config's, as in {"gamma": 0.9}; all of
        them are trained by one program. Rows are ordered by setting, then as the seeds are.
      lanes: L ≥ 2, rows that one worker trains at once; None takes the backend's default. For a
        given L a row's result does not depend on the others.
      segments: calls that each group of lanes is divided into, for the sake of `report`.
      report: called after each of them, from any thread, one at a time.
      build: makes the algorithm, as `jaxpg.build(config)._replace(…)` with parts of your own. It
        meets the config's static fields as they are and the traced ones as arrays over the lanes.

    Raises:
      ConfigError: if the config has no meaning, or the seeds are none, repeated or out of range.
    """
    if segments < 1:
        raise ConfigError(f"segments must be at least 1; got {segments}")
    lanes = default_lanes() if lanes is None else lanes
    groups = make_chunks(config, seeds, settings, lanes)
    length = -(-config.num_updates // min(segments, config.num_updates))
    began = time.perf_counter()
    programs = chunks.compile_programs(groups[0], length, build)
    tally = Tally(groups, config.num_updates, report)
    compile_seconds = tally.began - began
    finals: dict[int, Snapshot] = {}
    stop = threading.Event()

    def train_one(program: Program, i: int) -> None:
        for _, snapshot in chunks.advance(program, groups[i], config.num_updates, None):
            tally.add(i, snapshot)
            if stop.is_set():
                return
        finals[i] = jax.tree.map(np.asarray, snapshot)

    chunks.work(programs, range(len(groups)), train_one, stop)
    ends = [finals[i] for i in range(len(groups))]
    return gather(groups, ends, seeds, len(settings), compile_seconds, tally.seconds())


def train_grid(
    config: Config, seeds: Sequence[int], grid: Mapping[str, Sequence[Any]], **options: Any
) -> list[GridPoint]:
    """Train every seed at every point of a grid of hyperparameters, traced and static ones.

    The points that differ in traced fields alone are rows of one program; each combination of
    static values is a program of its own, and they are trained one after another.

    Args:
      grid: values of each field, as in {"gamma": [0.9, 0.99], "hidden_sizes": [(32,), (64,)]}.
      options: of `train_population`.

    Returns:
      One entry for each combination of static values, in the order of the grid; its population
      has the rows of all its settings.

    Raises:
      ConfigError: as `train_population` does; of every combination before the first is trained.
    """
    for name in grid:
        if name not in FIELDS:
            raise ConfigError(f"Config has no field {name!r}{nearest(name, FIELDS)}")
    # Whether gradients are clipped is static; to what, is traced.
    static = [name for name in grid if name not in TRACED or None in grid[name]]
    settings = list(_product({name: grid[name] for name in grid if name not in static}))
    configs = [
        dataclasses.replace(config, **values)
        for values in _product({name: grid[name] for name in static})
    ]
    lanes = options.get("lanes") or default_lanes()
    for point in configs:
        make_chunks(point, seeds, settings, lanes)
    return [
        GridPoint(point, settings, train_population(point, seeds, settings=settings, **options))
        for point in configs
    ]


def default_lanes() -> int:
    """L where nobody has chosen it: the backend's."""
    return LANES.get(jax.default_backend(), LANES["cpu"])


def make_chunks(
    config: Config, seeds: Sequence[int], settings: Sequence[Setting], lanes: int
) -> list[Chunk]:
    """The rows in groups of L, the last of them padded with its last row.

    Raises:
      ConfigError: as `train_population` does.
    """
    if lanes < 2:  # XLA compiles a batch of one otherwise
        raise ConfigError(f"lanes must be at least 2; got {lanes}")
    if len(set(seeds)) != len(seeds) or not len(seeds):
        raise ConfigError(f"seeds must be different and at least one; got {len(seeds)} of them")
    configs = [_with_setting(config, setting) for setting in settings]
    keys = np.asarray(jax.random.key_data(noise.keys(seeds)))
    rows = len(configs) * len(seeds)
    if not rows:
        raise ConfigError("settings must be at least one; got none")
    stacked = jax.tree.map(lambda *values: np.stack(values), *configs)
    groups = []
    for first in range(0, rows, lanes):
        setting, seed = np.divmod(np.arange(first, first + lanes).clip(max=rows - 1), len(seeds))
        at = jax.tree.map(lambda values: values[setting], stacked)
        groups.append(Chunk(at, keys[seed], min(lanes, rows - first)))
    return groups


class Tally:
    """How far all chunks are together; workers add to it."""

    def __init__(
        self,
        groups: Sequence[Chunk],
        num_updates: int,
        report: Callable[[Progress], None] | None,
        seconds: float = 0.0,
    ):
        """Begin the clock at so many seconds."""
        self.began = time.perf_counter() - seconds
        self._groups, self._report = groups, report
        self._all_updates = num_updates * sum(group.real for group in groups)
        self._lock = threading.Lock()
        self._steps = [0] * len(groups)
        self._updates = [0] * len(groups)
        self._recent: dict[int, np.ndarray] = {}

    def seconds(self) -> float:
        """Since the clock began."""
        return time.perf_counter() - self.began

    def add(self, i: int, snapshot: Snapshot, silent: bool = False) -> None:
        """Chunk i has come so far; report it, unless silent."""
        real = self._groups[i].real
        updates, steps = counts(snapshot, real)
        with self._lock:
            self._updates[i], self._steps[i] = real * updates, steps
            self._recent[i] = snapshot.recent_return[:real]
            if self._report is not None and not silent:
                fraction = sum(self._updates) / self._all_updates
                returns = np.concatenate(list(self._recent.values()))
                self._report(Progress(sum(self._steps), fraction, returns, self.seconds()))


def counts(snapshot: Snapshot, real: int) -> tuple[int, int]:
    """Updates done, and environment steps taken by all lanes but the padding."""
    updates = sum(part.env_steps.shape[1] for part in snapshot.history)
    steps = sum(int(part.env_steps[:real].sum(dtype=np.int64)) for part in snapshot.history)
    return updates, steps


def gather(
    groups: Sequence[Chunk],
    finals: Sequence[Snapshot],
    seeds: Sequence[int],
    num_settings: int,
    compile_seconds: float,
    wall_seconds: float,
) -> Population:
    """The population whose chunks have come to these ends (snapshots of numpy arrays)."""
    parts = []
    for group, final in zip(groups, finals, strict=True):
        lane, state = final.lanes, final.lanes.state
        frozen_at = np.where(lane.cause > 0, state.update, -1).astype(np.int32)
        metrics = chunks.join_metrics(final.history)
        part = (state.params, metrics, final.recent_return, frozen_at, lane.cause)
        parts.append(jax.tree.map(lambda x: x[: group.real], part))
    params, metrics, final_return, frozen_at, cause = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *parts
    )
    return Population(
        seeds=np.tile(np.array(seeds, np.uint32), num_settings),
        setting=np.repeat(np.arange(num_settings, dtype=np.int32), len(seeds)),
        params=params,
        metrics=metrics,
        final_return=final_return,
        frozen_at=frozen_at,
        cause=cause,
        lanes=len(groups[0].keys),
        compile_seconds=compile_seconds,
        wall_seconds=wall_seconds,
    )


def _product(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each name; the last name varies fastest."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _with_setting(config: Config, setting: Setting) -> Config:
    """The config of one row, its traced fields numpy scalars of the working dtype."""
    for name in setting:
        if name not in TRACED:
            raise ConfigError(f"{name!r} cannot be a setting{nearest(name, TRACED)}")
    if "max_grad_norm" in setting and (setting["max_grad_norm"] is None) != (
        config.max_grad_norm is None
    ):
        raise ConfigError("max_grad_norm: clipping and none are two programs: train them apart")
    values: dict[str, Any] = dict(setting)
    row = as_arrays(validate(dataclasses.replace(config, **values)))
    return jax.tree.map(np.asarray, row)
