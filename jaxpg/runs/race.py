"""A race: contenders that train the same seeds, round by round. Imports no jax.

What is in its directory:

    DIR/race.json        what was settled before the first round; written once
    DIR/1-CONTENDER/…    a run directory for each contender, which grows by the seeds of each round
    DIR/decision.json    what was found, once it has ended, and race.png, a picture of it
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpg import files, words
from jaxpg.analysis import race as analysis
from jaxpg.analysis.budget import alike
from jaxpg.analysis.outcomes import counted
from jaxpg.analysis.race import Plan
from jaxpg.core.config import FIELDS, OWN_PARAMS, Config, ConfigError, EnvParams, nearest
from jaxpg.core.presets import PRESETS
from jaxpg.core.rules import unused, validate
from jaxpg.errors import RunError
from jaxpg.population import own
from jaxpg.population.own import OPTION
from jaxpg.population.settings import ENV
from jaxpg.runs import manifests
from jaxpg.runs.manifests import Manifest, parse_config
from jaxpg.runs.sweep import folder, parse_fields

NAME = manifests.RACE
SCHEMA = 1
ALGORITHM = "algorithm="  # what an entry of a contender begins with that names one's own
MOST = 8  # contenders: the 28 pairs of 8 share the error rate
MOST_BYTES = 2**30  # that swaps may take


class Contender(NamedTuple):
    """One of those that are held against each other."""

    name: str  # as it was asked for
    preset: str
    config: Config
    build: str | None = None  # what makes an algorithm of one's own: MODULE:FUNCTION,
    options: EnvParams = OWN_PARAMS  # and its options, as they were given


class Race(NamedTuple):
    """What is settled before the first round."""

    contenders: tuple[Contender, ...]
    plan: Plan
    start: int  # the first seed
    lanes: int | None  # None: the backend's, not chosen yet

    @property
    def names(self) -> list[str]:
        """The run directories, in the order of the contenders."""
        return [folder(i, one.name) for i, one in enumerate(self.contenders, 1)]


def plan(
    names: Sequence[str],
    shared: dict[str, Any],
    *,
    first_round: int,
    max_seeds: int,
    alpha: float,
    start: int = 0,
    lanes: int | None = None,
) -> Race:
    """A race of these contenders.

    Args:
      names: PRESET or PRESET,FIELD=VALUE,… of each; algorithm=MODULE:FUNCTION and option.NAME=VALUE
        are fields there.
      shared: fields of all of them, which their own come before.
      first_round: seeds of each contender in the first round, at least.
      max_seeds: of each contender, in all.
      alpha: chance of telling alike contenders apart.
      start: the first seed.

    Raises:
      ConfigError: if they cannot be held against each other, or nothing could be decided.
    """
    if not 2 <= len(names) <= MOST:
        raise ConfigError(f"race needs between 2 and {MOST} contenders; got {len(names)}")
    contenders = tuple(_contender(name, shared) for name in names)
    for i, one in enumerate(contenders):
        for other in contenders[:i]:
            _check_comparable(other, one)
    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha must be in (0, 1); got {alpha:g}")
    if not 2 <= first_round <= max_seeds:
        raise ConfigError(
            f"--max-seeds must be at least --first-round, and that at least 2; got {max_seeds} and "
            f"{first_round}"
        )
    if start < 0 or start + max_seeds > 2**32:
        raise ConfigError(
            f"--start-seed and the --max-seeds from there must be in [0, 2^32); got {start} and "
            f"{max_seeds}"
        )
    settled = Plan(len(contenders), analysis.rounds(first_round, max_seeds), alpha)
    fewest = analysis.fewest_seeds(settled)
    if max_seeds < fewest:
        raise ConfigError(
            f"--max-seeds must be at least {fewest}, with fewer nothing can be decided at this "
            f"--alpha in {len(settled.rounds)} rounds; got {max_seeds}"
        )
    if settled.num_swaps * max_seeds > MOST_BYTES:
        raise ConfigError(
            f"--max-seeds, --alpha and the number of contenders are too much together: "
            f"{settled.num_swaps:,} swaps of {max_seeds:,} seeds do not fit; give fewer seeds or "
            "contenders, or a larger --alpha"
        )
    return Race(contenders, settled, start, lanes)


def begin(out: Path, asked: Race) -> Race:
    """Make the directory this race, or find that it already is; as it is, its lanes chosen.

    Raises:
      RunError: if it is another race (the sentence says what differs), or holds something else.
    """
    from jaxpg.population.population import default_lanes
    from jaxpg.runs import directories, planning

    if (out / NAME).is_file():
        old = read(out)
        if asked.lanes is None:
            asked = asked._replace(lanes=old.lanes)
        if old != asked:
            differ = words.differences(_settled(old), _settled(asked))
            raise RunError(
                f"{out} is a race of something else ({'; '.join(differ)}), and "
                "its error rate is that of what was settled before it: take another --out, or the "
                "same options"
            )
        return asked
    directories.check_usable(out)
    if (out / manifests.NAME).exists():
        raise RunError(f"{out} is a run, and no race: take another --out")
    if asked.lanes is None:  # no more than the largest round fills
        largest = int(np.diff((0, *asked.plan.rounds)).max())
        asked = asked._replace(lanes=max(2, min(default_lanes(), largest)))
    for i, one in enumerate(asked.contenders):
        planning.check_parts(_manifest(asked, i), own.find(one.build, one.options))
    with files.writing(out):
        files.make_folder(out)
        files.write(out / NAME, _text(asked))
    return asked


def enter(out: Path, race: Race, contender: int, seeds: int) -> Path:
    """The contender's run directory, which has at least so many seeds then; to be trained.

    Raises:
      RunError: if it is another run, or cannot be written.
    """
    from jaxpg.runs import directories, edit

    directory, first = out / race.names[contender], _manifest(race, contender)
    if not (directory / manifests.NAME).exists():
        directories.begin(directory, first)
    old = manifests.read(directory)
    directories.check_same(directory, first._replace(parts=old.parts))
    has = len(old.seeds)
    if old.seeds != list(range(race.start, race.start + has)):
        raise RunError(
            f"{directory} has the seeds {','.join(old.parts)}, which no round of the race ends with"
        )
    if has < seeds:
        edit.add_seeds(directory, range(race.start + has, race.start + seeds))
    return directory


def scores(out: Path, race: Race) -> list[np.ndarray]:
    """What each contender's seeds count with, [n] each: -inf if they failed, empty if unfinished.

    Raises:
      RunError: if results are damaged, or of another config than a contender's.
    """
    from jaxpg.runs import directories
    from jaxpg.runs.load import load

    found = []
    for name, one in zip(race.names, race.contenders, strict=True):
        directory = out / name
        if not (directory / manifests.NAME).exists() or not directories.is_finished(directory):
            found.append(np.empty(0))
            continue
        run = load(directory)
        manifests.check_planned(directory, run.manifest, one.config, "race")
        trained = run.population
        final, diverged = np.asarray(trained.final_return, float), trained.frozen_at >= 0
        found.append(counted(final, diverged, -np.inf))
    return found


def read(directory: Path) -> Race:
    """What a directory races.

    Raises:
      RunError: if it is no race, or its race.json is damaged.
    """
    path = directory / NAME
    with files.reading(path):
        fields = json.loads(path.read_bytes())
        if fields["schema"] != SCHEMA:
            raise ValueError(f"its schema is {fields['schema']!r}, and this version reads {SCHEMA}")
        contenders = tuple(
            Contender(
                str(one["name"]),
                str(one["preset"]),
                parse_config(one["config"], path),
                one.get("build"),
                own.checked(EnvParams(one.get("options", {}))),
            )
            for one in fields["contenders"]
        )
        settled = Plan(len(contenders), tuple(map(int, fields["rounds"])), float(fields["alpha"]))
        return Race(contenders, settled, int(fields["start"]), int(fields["lanes"]))


def _contender(name: str, shared: dict[str, Any]) -> Contender:
    preset, *entries = name.split(",")
    if preset not in PRESETS:
        raise ConfigError(
            f"a contender must be PRESET or PRESET,FIELD=VALUE,…; got {name!r}, and "
            f"{preset!r} is no preset{nearest(preset, PRESETS)}"
        )
    builds = [entry for entry in entries if entry.startswith(ALGORITHM)]
    fields = {**shared, **parse_fields([x for x in entries if x not in builds], name)}
    options = {x.removeprefix(OPTION): fields.pop(x) for x in [*fields] if x.startswith(OPTION)}
    if len(builds) > 1 or (options and not builds):
        raise ConfigError(f"{name} must have one {ALGORITHM}MODULE:FUNCTION, if it has options")
    if params := [field for field in fields if field.startswith(ENV)]:
        raise ConfigError(
            f"contenders must have one environment; {name} has {params[0]}: --env-params gives all "
            "of them the same"
        )
    try:
        config = validate(dataclasses.replace(PRESETS[preset], **fields))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    build = builds[0].removeprefix(ALGORITHM) if builds else None
    return Contender(name, preset, config, build, EnvParams(options))


def _decisive(one: Contender) -> tuple[Any, ...]:
    """What its results depend on."""
    idle = () if one.build else unused(one.config)
    defaults: dict[str, Any] = {name: FIELDS[name].default for name in idle}
    return dataclasses.replace(one.config, **defaults), one.build, one.options


def _check_comparable(one: Contender, other: Contender) -> None:
    """Raise ConfigError unless the two differ, and in nothing but what is asked about."""
    if _decisive(one) == _decisive(other):
        raise ConfigError(f"{one.name} and {other.name} are the same: contenders must differ")
    for name in ("env", "env_params", "max_episode_steps", "arithmetic"):
        ours, theirs = getattr(one.config, name), getattr(other.config, name)
        if ours != theirs:
            raise ConfigError(
                f"contenders must have one {name}; {one.name} has {ours!r} and {other.name} "
                f"{theirs!r}"
            )
    if not alike(one.config, other.config):
        ours, theirs = (
            f"{config.num_updates:,} updates of {config.update_cost:,} {config.unit}"
            for config in (one.config, other.config)
        )
        raise ConfigError(
            f"contenders must have one budget; {one.name} has {ours} and {other.name} {theirs}: "
            "--total-steps gives all of them the same, and updates should divide it"
        )


def _manifest(race: Race, contender: int) -> Manifest:
    """Of a contender's run in the first round."""
    from jaxpg.runs import planning

    one = race.contenders[contender]
    seeds = range(race.start, race.start + race.plan.rounds[0])
    build = own.find(one.build, one.options)
    return planning.plan(one.preset, one.config, seeds, race.lanes, build=build)


def _text(race: Race) -> str:
    content = {
        "schema": SCHEMA,
        "contenders": [
            {**one._asdict(), "config": dataclasses.asdict(one.config)} for one in race.contenders
        ],
        "rounds": race.plan.rounds,
        "alpha": race.plan.alpha,
        "start": race.start,
        "lanes": race.lanes,
    }
    return files.as_json(content)


def _settled(race: Race) -> dict[str, Any]:
    """All that is settled, by name."""
    names = [one.name for one in race.contenders]
    fields = {
        f"{one.name}: {name}": value
        for one in race.contenders
        for name, value in {
            **dataclasses.asdict(one.config),
            "algorithm": one.build,
            "options": one.options,
        }.items()
    }
    general = {"rounds": race.plan.rounds, "alpha": race.plan.alpha, "start": race.start}
    return {"contenders": names, "lanes": race.lanes, **general} | fields
