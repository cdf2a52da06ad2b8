"""Populations from Python: in memory, or into a directory that the command knows, too."""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxpg import fast, words
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.presets import PRESETS
from jaxpg.errors import Stopped
from jaxpg.population import evaluations, memory, own, population, progress
from jaxpg.population.cluster import Cluster, device_of, joined
from jaxpg.population.own import Build
from jaxpg.population.progress import Progress
from jaxpg.population.settings import (
    Setting,
    check_varied,
    expand,
    plain,
    seed_list,
    setting_list,
    settled,
    whole,
    with_values,
)
from jaxpg.runs import directories, planning, run, starts
from jaxpg.runs.load import Run, load
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.starts import Start
from jaxpg.runs.trained import Trained, check_params
from jaxpg.runs.watch import interrupt


class GridPoint(NamedTuple):
    """What became of one combination of static hyperparameters."""

    config: Config
    settings: Sequence[Setting]  # what `population.setting` is the index of
    population: Trained


def train_population(
    config: Config,
    seeds: Any,
    *,
    settings: Sequence[Setting] = ({},),
    lanes: int | None = None,
    segments: int = planning.SEGMENTS,
    report: Callable[[Progress], None] | None = None,
    build: Build = fast.build,
    out: str | os.PathLike[str] | None = None,
    evaluate_every: int | None = None,
    evaluate_episodes: int = evaluations.EPISODES,
    start_from: str | os.PathLike[str] | Run | Trained | None = None,
    cluster: str | None = None,
    mixed: bool = False,
) -> Trained:
    """Train every seed with every setting, for the whole budget.

    A row whose loss, gradient norm or parameters stop being finite is frozen at its last finite
    state; the others do not notice.

    Args:
      config: what to train.
      seeds: different integers in [0, 2^32): a range, a list or an array [S].
      settings: values of traced fields that replace the config's, as in {"gamma": 0.9}, of the
        environment's parameters, {"env.gravity": 5}, or of the options of `build`,
        {"option.scale": 0.5}; all of them are trained by one program. Rows are ordered by setting,
        then as the seeds are.
      lanes: L ≥ 2, rows that one worker trains at once; None takes the backend's default, or
        fewer if memory has no room for them. For a given L a row's result does not depend on the
        others.
      segments: calls that each group of lanes is divided into, for the sake of `report` (with
        `out` more, where a call would be long).
      report: called after each of them, from any thread, one at a time; with `out` after what
        has been saved. None is silent, but for a bar in a notebook.
      build: makes the algorithm, as `jaxpg.build(config)._replace(…)` with parts of your own, of
        one lane, in whose config the traced fields are traced scalars. Its other parameters that
        are numbers, true or false are its options (`jaxpg.population.own`).
      out: a run directory, as of `jaxpg train`: new, or empty, or of this very run, which is then
        continued. Ctrl-C and SIGTERM save and raise Stopped; the same call goes on. No watchdog
        ends a segment that hangs, as the command's `--stall-seconds` does.
      evaluate_every: how much of its budget (environment steps, or episodes, per row) lies between
        two evaluations of a row's policy; it divides the budget, and the first is before training.
        None is never. The result has them as `evaluations`; training is the same to the bit.
      evaluate_episodes: fresh ones, greedy and as many sampled, of each evaluation.
      start_from: a finished run, its directory, or a population, of one setting: every seed starts
        from the same seed's parameters there (and the moments of observations), with an optimizer
        and noise of its own.
      cluster: HOST:PORT of a Ray cluster that this machine is in, or "auto": its nodes train, and
        this process keeps what they send. It needs no accelerator. One that is connected to Ray
        stays so.
      mixed: whether a node may have another processor or other versions, and so other last bits.

    Raises:
      ConfigError: if the config has no meaning, or the seeds are none, repeated or out of range;
        or there is no such cluster, or none of it that trains this to the same bits; as
        DoesNotFit, if there is not enough memory.
      RunError: if `out` is something else, in use, damaged or cannot be written; or the seeds
        cannot start from `start_from`.
      Stopped: if training into `out` was stopped.
    """
    config, seeds, settings = plain(config), seed_list(seeds), setting_list(settings)
    segments = whole("segments", segments)
    if segments < 1:
        raise ConfigError(f"segments must be at least 1; got {segments}")
    _check_build(build)
    evaluating = evaluations.asked(config, evaluate_every, evaluate_episodes)
    start = start_of(start_from)
    if sentence := starts.of_the_diverged(start, seeds):
        warnings.warn(sentence, stacklevel=2)
    plan = partial(
        planning.plan,
        _name(config),
        config,
        seeds,
        settings=settings,
        segments=segments,
        build=build,
        start=start,
        evaluating=evaluating,
    )
    with joined(cluster, mixed) as nodes, _shown(config, seeds, report) as show:
        plan = partial(plan, device=device_of(nodes))
        if out is not None:
            return _train_into(Path(out), plan, lanes, show, build, start, nodes)
        what = plan(lanes=lanes)
        train = partial(
            population.train_rows,
            config,
            seeds,
            settings,
            segments=segments,
            report=show,
            build=build,
            nodes=nodes,
            start=start and starts.of_seeds(start, seeds),
            evaluating=evaluating,
        )
        found = memory.with_lanes_that_fit(lanes, lambda some: train(lanes=some or what.lanes))
    what = what._replace(lanes=found.lanes)
    return Trained(*found._replace(manifest=what, start=start))


def train_grid(
    config: Config, seeds: Any, grid: Mapping[str, Sequence[Any]], **options: Any
) -> list[GridPoint]:
    """Train every seed at every point of a grid of hyperparameters, traced and static ones.

    The points that differ in traced fields alone are rows of one program; each combination of
    static values is a program of its own, and they are trained one after another.

    Args:
      grid: values of each field, as in {"gamma": [0.9, 0.99], "hidden_sizes": [(32,), (64,)]}.
      options: of `train_population`, but `out`: a grid on the disk is made by `jaxpg sweep`.

    Returns:
      One entry for each combination of static values, in the order of the grid; its population
      has the rows of all its settings.

    Raises:
      ConfigError: as `train_population` does; of every combination before the first is trained.
    """
    if "settings" in options:
        raise ConfigError("settings are of one run: those of a grid are made of its values")
    if options.get("out") is not None:
        raise ConfigError(
            "out is of one run, and a grid is several: jaxpg sweep keeps it, or save each point's "
            "population"
        )
    seeds = seed_list(seeds)
    build = options.pop("build", fast.build)
    _check_build(build)
    programs, settings = expand(config, settled(config, grid, build))
    if own.source(build) is None:  # one's own may use whatever it likes
        check_varied(config, programs)
    points = [(with_values(config, values), own.fixed(build, values)) for values in programs]
    every, start = options.get("evaluate_every"), start_of(options.get("start_from"))
    for point, made in points:
        evaluations.asked(point, every, options.get("evaluate_episodes", evaluations.EPISODES))
        planned = (_name(point), point, seeds, options.get("lanes"), settings)
        planning.plan(*planned, build=made, start=start)
    return [
        GridPoint(
            point,
            settings,
            train_population(point, seeds, settings=settings, build=made, **options),
        )
        for point, made in points
    ]


def _train_into(
    directory: Path,
    plan: Callable[..., Manifest],
    lanes: int | None,
    report: Callable[[Progress], None] | None,
    build: Build,
    start: Start | None,
    nodes: Cluster | None,
) -> Trained:
    """Begin a run, or go on with it, to its end.

    Args:
      plan: of lanes, gives its manifest.
    """
    directories.check_usable(directory)

    def begin(lanes: int | None) -> None:
        what = plan(lanes=lanes)
        planning.check_parts(what, build)
        directories.begin(directory, what, start)
        if not directories.is_finished(directory):
            run.train(
                directory,
                report=report,
                stall_seconds=math.inf,
                build=build,
                nodes=nodes,
                insisted=interrupt,
            )

    try:
        planning.with_lanes_that_fit(directory, lanes, begin)
    except Stopped:
        raise Stopped(f"stopped, and saved in {directory}: the same call goes on") from None
    return load(directory).population


def _check_build(build: Any) -> None:
    if not callable(build):
        raise ConfigError(
            "build must be a function that makes an algorithm of a config, as jaxpg.build is; got "
            f"one {type(build).__name__}"
        )


def start_of(source: str | os.PathLike[str] | Run | Trained | None) -> Start | None:
    """What seeds start from that start from a finished run, or a population; None for None."""
    if source is None:
        return None
    if isinstance(source, str | os.PathLike):
        source = load(source)
    if isinstance(source, Run):
        return starts.of(source.population, source.directory)
    if not isinstance(source, population.Population):
        raise ConfigError(
            "start_from must be a finished run, its directory or a population; got "
            f"{type(source).__name__}"
        )
    check_params(source.params)
    return starts.of(source)


def _shown(
    config: Config, seeds: list[int], report: Callable[[Progress], None] | None
) -> AbstractContextManager[Callable[[Progress], None] | None]:
    """The reporter, or in a notebook a bar, where none is given."""
    if report is None and progress.in_notebook():
        return progress.shown(f"{config.env}, {words.seeds(len(seeds))}")
    return nullcontext(report)


def _name(config: Config) -> str:
    """What a run of this config is called: a preset, if it is one."""
    return next((name for name, preset in PRESETS.items() if preset == config), "custom")
