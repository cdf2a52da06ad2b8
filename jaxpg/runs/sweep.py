"""A sweep: a grid of hyperparameters, every point trained with every seed. Imports no jax.

What is in its directory:

    DIR/sweep.json       what is swept; written once
    DIR/1-NAME=VALUE/…   a run directory for each combination of static values, in which the
                         traced ones are settings of one program
    DIR/report.html      once all are finished
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin, get_type_hints

from jaxpg import files, words
from jaxpg.core.config import (
    FIELDS,
    OWN_PARAMS,
    Config,
    ConfigError,
    EnvParams,
    nearest,
    parse_env_param,
)
from jaxpg.core.rules import validate
from jaxpg.errors import RunError
from jaxpg.population import evaluations, own
from jaxpg.population.evaluations import Evaluating
from jaxpg.population.own import OPTION
from jaxpg.population.settings import (
    ENV,
    check_varied,
    expand,
    product,
    settled,
    with_values,
)
from jaxpg.runs import manifests
from jaxpg.runs.manifests import (
    Manifest,
    Origin,
    format_seeds,
    parse_config,
    parse_origin,
    parse_seeds,
)

if TYPE_CHECKING:
    from jaxpg.runs.starts import Start

NAME = manifests.SWEEP
SCHEMA = 1
_HINTS = get_type_hints(Config)


class Kind(NamedTuple):
    """How values of a type are read and written in a grid."""

    says: str
    read: Callable[[str], Any]  # raises ValueError or KeyError
    write: Callable[[Any], str]


NONE, TEXT, BOOLS = "none", Kind("text", str, str), {"true": True, "false": False}
KINDS = {
    bool: Kind("true or false", lambda word: BOOLS[word.lower()], lambda x: str(x).lower()),
    int: Kind("an integer", int, str),
    float: Kind("a number", float, repr),
    tuple: Kind(
        "widths such as 64x64, or none",
        lambda word: () if word.lower() == NONE else tuple(map(int, word.split("x"))),
        lambda widths: "x".join(map(str, widths)) or NONE,
    ),
    str: TEXT,
}


APART = ("env", "collect", "max_episode_steps")  # points of one are no rivals of another's


class Plan(NamedTuple):
    """What a sweep is."""

    preset: str
    config: Config  # of everything that is not in the grid
    grid: dict[str, list[Any]]
    seeds: str
    lanes: int | None  # None: the backend's, not chosen yet
    build: str | None = None  # of an algorithm of one's own: MODULE:FUNCTION,
    options: EnvParams = OWN_PARAMS  # and its options, where the grid has no others
    start: Origin | None = None  # each seed of every run starts from the same seed's parameters
    evaluating: Evaluating | None = None

    @property
    def programs(self) -> list[dict[str, Any]]:
        """The static values of each run."""
        return expand(self.config, self.grid)[0]

    @property
    def names(self) -> list[str]:
        """The run directories, in the order of the programs."""
        return [_name(i, program) for i, program in enumerate(self.programs, 1)]

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """Every point of the grid, the last field varying fastest."""
        return list(product(self.grid))


def plan(
    preset: str,
    config: Config,
    grid: dict[str, list[Any]],
    seeds: str,
    lanes: int | None,
    *,
    build: str | None = None,
    options: Mapping[str, Any] = OWN_PARAMS,
    start: "Start | None" = None,
    evaluate_every: int | None = None,
    evaluate_episodes: int = evaluations.EPISODES,
) -> Plan:
    """A sweep of every point of a grid with every seed.

    Args:
      build: MODULE:FUNCTION, which makes an algorithm of one's own; it is imported.
      options: of it, that are to be others than its own.
      start: what the seeds start from; None for parameters that they draw.
      evaluate_every: how much of its budget lies between two evaluations of a seed's policy, which
        divides the budget of every point; None for never.
      evaluate_episodes: of each evaluation, greedy and as many sampled.

    Raises:
      ConfigError: if the config, the grid, a point of it or the seeds have no meaning.
    """
    apart = [name for name in APART if name in grid]
    if apart:
        raise ConfigError(
            "a sweep ranks its points by their returns, which are not alike where "
            f"{apart[0]} differs: take a sweep for each; got {', '.join(map(str, grid[apart[0]]))}"
        )
    seeds = format_seeds(parse_seeds(seeds))
    made = own.find(build, options)
    grid = settled(config, grid, made)
    programs, _ = expand(validate(config), grid)
    points = (with_values(config, program) for program in programs)
    (evaluating,) = {
        evaluations.asked(point, evaluate_every, evaluate_episodes) for point in points
    }
    return Plan(
        preset=preset,
        config=config,
        grid=grid,
        seeds=seeds,
        lanes=lanes,
        build=build,
        options=own.options(made),
        start=start and start.origin,
        evaluating=evaluating,
    )


def begin(
    out: Path,
    asked: Plan,
    device: Mapping[str, Any] | None = None,
    start: "Start | None" = None,
) -> list[Path]:
    """Make the directory this sweep, with a run directory for every combination of static values.

    Args:
      device: that trains, as of `provenance.device`; None for this process's.
      start: what the plan says that the seeds start from.

    Raises:
      ConfigError: if a point has no meaning; nothing is written.
      RunError: if it is another sweep (the sentence says what differs), or holds something else.
    """
    from jaxpg.runs import directories

    old = read(out) if is_sweep(out) else None
    if old is None:
        directories.check_usable(out)
        if (out / manifests.NAME).exists():
            raise RunError(f"{out} is a run, and no sweep: take another --out")
    elif asked.lanes is None:
        asked = asked._replace(lanes=old.lanes)
    planned = _manifests(asked, device, start)
    asked = asked._replace(lanes=planned[0].lanes)
    if old is not None and (differ := words.differences(_settled(old), _settled(asked))):
        raise RunError(
            f"{out} is a sweep of something else ({'; '.join(differ)}): take another --out, or the "
            "same options"
        )
    if old is None:
        with files.writing(out):
            files.make_folder(out)
            files.write(out / NAME, _text(asked))
    of_points = [out / name for name in asked.names]
    for directory, content in zip(of_points, planned, strict=True):
        directories.begin(directory, content, start)
    return of_points


def read(directory: Path) -> Plan:
    """What a directory sweeps.

    Raises:
      RunError: if it is no sweep, or its sweep.json is damaged.
    """
    path = directory / NAME
    with files.reading(path):
        fields = json.loads(path.read_bytes())
        if fields["schema"] != SCHEMA:
            raise ValueError(f"its schema is {fields['schema']!r}, and this version reads {SCHEMA}")
        grid = {
            name: [tuple(x) if isinstance(x, list) else x for x in values]
            for name, values in fields["grid"].items()
        }
        plan = Plan(
            str(fields["preset"]),
            parse_config(fields["config"], path),
            grid,
            fields["seeds"],
            fields["lanes"],
            fields.get("build"),
            own.checked(EnvParams(fields.get("options", {}))),
            parse_origin(fields.get("start")),
            fields.get("evaluating") and Evaluating(**fields["evaluating"]),
        )
        parse_seeds(plan.seeds)
        expand(plan.config, plan.grid)
    return plan


def parse_grid(entries: Sequence[str]) -> dict[str, list[Any]]:
    """The grid of 'learning_rate=1e-4,3e-4', 'hidden_sizes=32,64x64', 'max_grad_norm=0.5,none'.

    Raises:
      ConfigError: if an entry is none, or a field is unknown or given twice, or a value is not of
        the field's type or given twice.
    """
    grid: dict[str, list[Any]] = {}
    if not entries:
        raise ConfigError("--grid must be FIELD=VALUE,VALUE… at least once; got nothing")
    for entry in entries:
        name, text = _field(entry, "--grid", "FIELD=VALUE,VALUE…")
        if name == "arithmetic":
            raise ConfigError("--grid cannot have arithmetic, which is one process's: sweep twice")
        if name in grid:
            raise ConfigError(f"--grid has {name} twice; give all its values at once")
        values = [_read(name, word.strip(), "--grid") for word in text.split(",")]
        if len(set(values)) < len(values):
            raise ConfigError(f"--grid has a value of {name} twice; got {text!r}")
        grid[name] = values
    return grid


def parse_fields(entries: Sequence[str], whose: str) -> dict[str, Any]:
    """The fields of 'learning_rate=1e-3', 'hidden_sizes=64x64', one value each.

    Args:
      whose: they are, for the message.

    Raises:
      ConfigError: if an entry is none, or a field is unknown or given twice, or its value is not of
        its type.
    """
    fields: dict[str, Any] = {}
    for entry in entries:
        name, text = _field(entry, whose, "FIELD=VALUE")
        if name in fields:
            raise ConfigError(f"{whose} has {name} twice")
        fields[name] = _read(name, text.strip(), whose)
    return fields


def written(value: Any) -> str:
    """A value as `parse_grid` reads it."""
    return NONE if value is None else KINDS[type(value)].write(value)


def said(values: Mapping[str, Any]) -> str:
    """Values by name, for people: written, with commas."""
    return ", ".join(f"{name}={written(value)}" for name, value in values.items())


def folder(i: int, said: str) -> str:
    """The name of the i-th directory of several, which says what is in it."""
    return f"{i}-" + re.sub(r"[^\w.=,+-]", "_", said)[:100]


def _field(entry: str, whose: str, form: str) -> tuple[str, str]:
    """A field's name, and what it is to be."""
    name, equals, text = entry.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not text:
        raise ConfigError(f"{whose} must be {form}; got {entry!r}")
    if name not in FIELDS and not name.startswith((ENV, OPTION)):
        raise ConfigError(
            f"{whose} has an unknown field {name!r}{nearest(name, FIELDS)}; the environment's "
            f"parameters are {ENV}NAME, options of an algorithm of your own {OPTION}NAME"
        )
    if name == "env_params":
        raise ConfigError(f"{whose} has each parameter by its name, as {ENV}gravity; got {name}")
    return name, text


def _read(name: str, word: str, whose: str) -> Any:
    """A value of a field; what it must be beyond its type is `validate`'s to say."""
    if name.startswith((ENV, OPTION)):
        return parse_env_param(f"{whose} {name}", word)
    hint = _HINTS[name]
    choices = get_args(hint)
    if type(None) in choices and word.lower() == NONE:
        return None
    kind = KINDS.get(get_origin(hint) or hint) or KINDS.get(choices[0], TEXT)
    try:
        return kind.read(word)
    except (ValueError, KeyError):
        raise ConfigError(f"{whose} {name} must be {kind.says}; got {word!r}") from None


def _manifests(
    plan: Plan, device: Mapping[str, Any] | None, start: "Start | None"
) -> list[Manifest]:
    """The manifest of every run; this is where every point is tried."""
    from jaxpg.runs import planning

    programs, settings = expand(plan.config, plan.grid)
    if plan.build is None:  # one's own may use whatever it likes
        check_varied(plan.config, programs)
    seeds, build = parse_seeds(plan.seeds), own.find(plan.build, plan.options)
    found = []
    for program in programs:
        fixed = own.fixed(build, program)
        planned = planning.plan(
            plan.preset,
            with_values(plan.config, program),
            seeds,
            plan.lanes,
            settings,
            build=fixed,
            start=start,
            evaluating=plan.evaluating,
            device=device,
        )
        planning.check_parts(planned, fixed)
        found.append(planned)
    return found


def _name(i: int, program: Mapping[str, Any]) -> str:
    return folder(i, ",".join(f"{name}={written(x)}" for name, x in program.items()) or "all")


def is_sweep(directory: Path) -> bool:
    """Whether a directory holds a sweep."""
    return (directory / NAME).is_file()


def _text(plan: Plan) -> str:
    content = {
        "schema": SCHEMA,
        **plan._asdict(),
        "config": dataclasses.asdict(plan.config),
        "start": plan.start and plan.start._asdict(),
        "evaluating": plan.evaluating and plan.evaluating._asdict(),
    }
    return files.as_json(content)


def _settled(plan: Plan) -> dict[str, Any]:
    """All that is settled, by name."""
    start = {"start": plan.start and plan.start.params}
    return {**plan._asdict(), **dataclasses.asdict(plan.config), "config": None, **start}
