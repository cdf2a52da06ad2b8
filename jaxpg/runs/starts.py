"""start.safetensors: what a run starts from, all parameters of a finished run, whole.

So nobody needs that run again to continue, retrace, extend or render this one.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors

from jaxpg import fast, files, words
from jaxpg.analysis.outcomes import known_untrained_return
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.types import Params
from jaxpg.errors import RunError
from jaxpg.names import from_torch
from jaxpg.population import chunks, own, population
from jaxpg.population.own import Build
from jaxpg.runs import manifests, results
from jaxpg.runs.manifests import Manifest, Origin

NAME = "start.safetensors"
MEANING = ("activation", "squash")  # fields that give parameters of the same shapes another meaning
ACTS = ("discrete", "num_actions", "choices", "masked", "image")  # of EnvSpec: how outputs are read


class Start(NamedTuple):
    """A finished run's parameters."""

    origin: Origin
    content: bytes  # params.safetensors
    config: Config | None = None  # that they were trained with; None where it is not known
    build: str | None = None  # as of the manifest that had it
    diverged: tuple[int, ...] = ()  # seeds that had; known as the run begins, and not kept

    @property
    def called(self) -> str:
        """The run, for people."""
        return self.origin.run or "the population that it starts from"


def of(trained: Any, directory: Path | None = None) -> Start:
    """What a run can start from.

    Args:
      trained: a population that says what was trained, of one setting.
      directory: where it is, if it is a run.

    Raises:
      RunError: if it does not say so, or has several settings.
    """
    what = trained.what
    if len(what.settings) > 1:
        raise RunError(
            f"{directory or 'the population to start from'} has {len(what.settings)} settings, and "
            "a run starts from the seeds of one"
        )
    content = results.packed_params(trained)
    origin = Origin(
        run=None if directory is None else str(directory),
        manifest=hashlib.sha256(manifests.text(what).encode()).hexdigest()
        if directory is None
        else manifests.sha256(directory),
        params=hashlib.sha256(content).hexdigest(),
        env=words.world(what.config),
        env_sha256=what.env_sha256,
        untrained=known_untrained_return(trained),
    )
    diverged = tuple(trained.seeds[trained.frozen_at >= 0].tolist())
    return Start(origin, content, what.config, what.build, diverged)


def of_the_diverged(start: Start | None, seeds: Sequence[int]) -> str | None:
    """A sentence on those of the seeds that have diverged before; None if none has."""
    if start is None or not (gone := sorted(set(seeds) & set(start.diverged))):
        return None
    return (
        f"{words.seeds(len(gone))} diverged in {start.called}, the first of them seed {gone[0]}: "
        "they start from the last finite parameters"
    )


def write(directory: Path, start: Start | None) -> None:
    """Keep it in a run's directory.

    Raises:
      OSError: if it could not be written.
    """
    if start is not None:
        files.write(directory / NAME, start.content)


def read(directory: Path, manifest: Manifest) -> Start | None:
    """What a run starts from; None if its parameters are drawn.

    Raises:
      RunError: if it is not there, or not what the manifest says.
    """
    if manifest.start is None:
        return None
    path = directory / NAME
    with files.reading(path):
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.start.params:
        raise RunError(f"{path} is damaged: it has not the SHA-256 that {manifests.NAME} says")
    return Start(manifest.start, content)


def of_seeds(start: Start, seeds: Sequence[int]) -> population.Given:
    """What these seeds start from.

    Raises:
      RunError: if there is no such seed, or these are not the parameters of a run.
    """
    try:
        named = from_safetensors(start.content)
        seeds_there = json.loads(files.safetensors_metadata(start.content)["seeds"])
        known = {seed: i for i, seed in enumerate(seeds_there)}
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        reason = words.line(error)
        raise RunError(f"{start.called} has no parameters of seeds ({reason})") from None
    missing = [seed for seed in seeds if seed not in known]
    if missing:
        raise RunError(
            f"{start.called} has no seed {missing[0]}, and every seed starts from its own there; "
            f"its seeds are {manifests.format_seeds([*known])}"
        )
    rows = np.array([known[seed] for seed in seeds])
    params = from_torch({name: leaf[rows] for name, leaf in named.items()})
    return population.Given(params, int(start.origin.params[:8], 16))


def check(start: Start, config: Config, seeds: Sequence[int], build: Build) -> None:
    """Raise RunError unless these seeds of this config can start there."""
    given = of_seeds(start, seeds)
    if start.config is not None:
        for name in MEANING:
            there, here = (getattr(one, name) for one in (start.config, config))
            if there != here:
                raise RunError(
                    f"{start.called} has {name}={there!r}, and this config {here!r}: the same "
                    "parameters would be another policy"
                )
    (drawn, *_) = population.make_chunks(config, seeds[:1], [{}], 2, own.options(build))
    wanted = _shapes(chunks.lane_shapes(drawn, build).state.params)
    found = _shapes(given.params)
    if found != wanted:
        odd = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))[0]
        raise RunError(
            f"{start.called} has other networks than this config: {odd} is "
            f"{found.get(odd, 'missing')} there, and here {wanted.get(odd, 'missing')}; its "
            "observations, actions, networks and what is normalised must be the same"
        )
    if start.config is not None and start.build is None and own.source(build) is None:
        _check_acts(start, start.config, config)


def _check_acts(start: Start, before: Config, config: Config) -> None:
    """Raise RunError if the environment acts or is seen otherwise, where both can be made."""
    try:
        there, here = (fast.build(one).env.spec for one in (before, config))
    except ConfigError:
        return  # the former is not registered here, and what it was is not known
    for name in ACTS:
        if getattr(there, name) != getattr(here, name):
            raise RunError(
                f"{start.called} was trained where {name} of the environment is "
                f"{getattr(there, name)}, and here it is {getattr(here, name)}: the same outputs "
                "would be other actions"
            )


def _shapes(params: Params) -> dict[str, str]:
    """Of one row, by name, as float32 [4, 64]."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{x.dtype} {list(x.shape[1:])}"
        for path, x in leaves
    }
