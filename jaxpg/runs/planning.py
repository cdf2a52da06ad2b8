"""What a run is to be, before anything of it is written.

A segment is what a worker trains in one call; a signal is answered at its end.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpg import fast
from jaxpg.core import env
from jaxpg.core.config import Config, ConfigError
from jaxpg.errors import DoesNotFit
from jaxpg.population import chunks, memory, own, population, provenance
from jaxpg.population.chunks import Chunk
from jaxpg.population.evaluations import Evaluating
from jaxpg.population.own import Build
from jaxpg.population.settings import (
    Setting,
    check_varied,
    plain,
    plain_setting,
    seed_list,
    setting_list,
    whole,
    with_setting,
)
from jaxpg.runs import directories, manifests, starts
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.starts import Start
from jaxpg.runs.trained import check_params

SEGMENTS = 50  # of a chunk at least, where it has so many updates
LONGEST_SEGMENT = 100  # updates


def plan(
    preset: str,
    config: Config,
    seeds: Any,
    lanes: int | None,
    settings: Sequence[Setting] = ({},),
    segments: int = SEGMENTS,
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
      segments: that each chunk is divided into at least, where it has so many updates; >= 1.
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
    settings = setting_list(settings)
    first: Setting = settings[0]
    replaced = {name: x for name, x in first.items() if all(name in other for other in settings)}
    config, build = with_setting(config, replaced), own.fixed(build, replaced)
    config, seeds = env.settle(plain(config)), seed_list(seeds)
    options, source = own.options(build), own.source(build)
    if source is None:  # one's own may use whatever it likes
        check_varied(config, settings)
    with chunks.own_jax(config):
        own.check_made(build, build(config), config)
    if lanes is None:
        lanes = population.default_lanes(device)
    lanes, segments = population.checked_lanes(lanes), whole("segments", segments)
    population.make_chunks(config, seeds[:1], settings, lanes, options)
    if start is not None:
        starts.check(start, config, seeds, build)
    return Manifest(
        preset=preset,
        config=config,
        parts=(manifests.format_seeds(seeds),),
        lanes=lanes,
        segment=min(-(-config.num_updates // segments), LONGEST_SEGMENT),
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
        env_sha256=own.env_sha256(config.env),
        start=start and start.origin,
        evaluating=evaluating,
    )


def make_chunks(manifest: Manifest, start: Start | None = None) -> list[Chunk]:
    """The chunks of a run, by index.

    Args:
      start: what the manifest says that it starts from.
    """
    groups: list[Chunk] = []
    for part in manifest.parts:
        seeds = manifests.parse_seeds(part)
        groups += population.make_chunks(
            manifest.config,
            seeds,
            manifest.settings,
            manifest.lanes,
            manifest.options,
            start and starts.of_seeds(start, seeds),
            manifest.evaluating,
        )
    return groups


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
            f"{manifest.build} uses a traced number (a float option, or a traced field) in a "
            "Python `if`: use jax.numpy.where, or annotate the option as int or bool"
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
      lanes: None for those that the run was begun with, or the backend's.
      note: called with a sentence if others are taken.

    Raises:
      DoesNotFit: if there is not enough memory; nothing is trained.
    """
    is_new = not (directory / manifests.NAME).exists()
    begun = None if is_new else manifests.read(directory).lanes
    if lanes is None and begun is not None and not directories.is_empty(directory):
        lanes = begun

    def or_withdraw(lanes: int | None) -> None:
        try:
            attempt(lanes or begun)
        except DoesNotFit:
            if is_new:
                directories.withdraw(directory)
            raise

    memory.with_lanes_that_fit(lanes, or_withdraw, lambda problem: note(f"{problem}, and is taken"))
