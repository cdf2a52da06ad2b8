"""What is trained, as it is asked for: seeds, settings, grids. Imports no jax.

A setting is values of traced hyperparameters that replace a config's. A parameter of the
environment is called env.NAME, an option of an algorithm of one's own option.NAME.
"""

import dataclasses
import itertools
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxpg import words
from jaxpg.core.config import (
    FIELDS,
    OPTIONAL,
    STATIC,
    TRACED,
    Config,
    ConfigError,
    EnvParams,
    nearest,
)
from jaxpg.core.rules import check_is_config, unused, validate
from jaxpg.errors import RunError
from jaxpg.population import own
from jaxpg.population.own import OPTION, Build

MOST_SEEDS = 1_000_000  # of one run; more are a slip, or fill a machine with their results
ENV = "env."  # what the name of an environment's parameter begins with, beside fields
NAMED = 10  # settings, where one is to be chosen
Setting = Mapping[str, Any]  # traced fields by name; {} is the config itself


def seed_list(seeds: Any) -> list[int]:
    """The seeds as Python numbers.

    Args:
      seeds: different integers in [0, 2^32), at least one: a range, a list, or any array [S].

    Raises:
      ConfigError: if they are anything else.
    """
    if isinstance(seeds, range) and len(seeds) > MOST_SEEDS:
        raise ConfigError(f"seeds must be at most {MOST_SEEDS:,}; got {len(seeds):,}")
    try:
        given = list(seeds.tolist() if hasattr(seeds, "tolist") else seeds)
        if any(isinstance(seed, bool) for seed in given):
            raise TypeError
        numbers = [operator.index(seed) for seed in given]
    except TypeError:
        raise ConfigError(
            f"seeds must be integers in [0, 2^32), as range(8); got {seeds!r:.60}"
        ) from None
    if not numbers:
        raise ConfigError("seeds must be at least one; got none")
    if len(set(numbers)) != len(numbers):
        (twice, _), *_ = Counter(numbers).most_common(1)
        raise ConfigError(f"seeds must be different; got {twice} twice")
    wrong = [number for number in numbers if not 0 <= number < 2**32]
    if wrong:
        raise ConfigError(f"a seed must be an integer in [0, 2^32); got {wrong[0]}")
    return numbers


def plain(config: Config) -> Config:
    """The config with Python numbers for scalars of numpy and of jax.

    Raises:
      ConfigError: if it is none; or a field is an array of more than one number, or is being
        traced.
    """
    check_is_config(config)
    return dataclasses.replace(config, **plain_setting(vars(config)))


def setting_list(settings: Any) -> list[Setting]:
    """The settings, of any iterable.

    Raises:
      ConfigError: if they are none, or no mappings.
    """
    several = isinstance(settings, Iterable) and not isinstance(settings, Mapping)
    found = list(settings) if several else []
    if several and not found:
        raise ConfigError("settings must be at least one; got none")
    if not several or not all(isinstance(one, Mapping) for one in found):
        raise ConfigError(f"settings must be mappings, as [{{'gamma': 0.9}}]; got {settings!r:.60}")
    return found


def whole(name: str, number: Any) -> int:
    """What is counted, as Python's number.

    Raises:
      ConfigError: if it is no integer.
    """
    found = integer(number)
    if found is None:
        raise ConfigError(f"{name} must be an integer; got {number!r}")
    return found


def plain_setting(setting: Setting) -> dict[str, Any]:
    """The setting, with Python's numbers for scalars of numpy and of jax."""
    return {name: _plain(name, value) for name, value in setting.items()}


def with_setting(config: Config, setting: Setting) -> Config:
    """The config with the setting's values in it; options are not the config's.

    Raises:
      ConfigError: if a field is not traced or not one number, or the config has no meaning then.
    """
    for name in setting:
        if name not in TRACED and not name.startswith((ENV, OPTION)):
            allowed = nearest(name, [*TRACED, f"{ENV}NAME", f"{OPTION}NAME"])
            raise ConfigError(f"{name!r} cannot be a setting{allowed}")
    for name in OPTIONAL:
        if name in setting and (setting[name] is None) != (getattr(config, name) is None):
            raise ConfigError(f"{name}: a number and none are two programs: train them apart")
    values = plain_setting(setting)
    for name, value in values.items():  # 12 for a gravity that is traced is 12.0
        traced = name.removeprefix(ENV) in config.env_params.traced
        if name.startswith(ENV) and traced and integer(value) is not None:
            values[name] = float(value)
    return validate(with_values(config, values))


def which(setting: int | None, settings: Sequence[Setting]) -> int:
    """The setting that is meant: this one, or the only one that there is.

    Raises:
      RunError: if there is no such setting, or there are several and none is given.
    """
    count = len(settings)
    if setting is None and count > 1:
        known = [
            f"{i}: {words.parameters(values) or 'the config'}"
            for i, values in enumerate(settings[:NAMED])
        ]
        more = ["…"] if count > NAMED else []
        raise RunError(
            f"there are {count} settings: choose one, setting in [0, {count}) "
            f"({'; '.join([*known, *more])})"
        )
    number = integer(0 if setting is None else setting)
    if number is None or not 0 <= number < count:
        raise RunError(f"setting must be in [0, {count}); got {setting!r}")
    return number


def integer(number: Any) -> int | None:
    """A number of Python, numpy or jax as Python's; None for anything else."""
    try:
        return None if isinstance(number, bool) else operator.index(number)
    except TypeError:
        return None


def value_of(config: Config, name: str) -> Any:
    """What a config has of a field, or of a parameter of its environment."""
    if name.startswith(ENV):
        return config.env_params[name.removeprefix(ENV)]
    return getattr(config, name)


def check_alike(configs: Sequence[Config]) -> None:
    """Raise ConfigError unless the configs of all settings have the same parameters of the
    environment, and static ones with the same value; others are another program."""
    every = sorted({name for config in configs for name in config.env_params})
    for i, config in enumerate(configs):
        missing = [name for name in every if name not in config.env_params]
        if missing:
            raise ConfigError(
                f"setting {i} has no {ENV}{missing[0]}, which others have: give every setting its "
                "own, if only the environment's"
            )
        for name in config.env_params.static:
            ours, theirs = config.env_params[name], configs[0].env_params[name]
            if ours != theirs:
                raise ConfigError(
                    f"{ENV}{name} is static, each value a program of its own: train them apart, or "
                    f"in a grid; got {theirs!r} and {ours!r}"
                )


def check_varied(config: Config, points: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError if settings, or programs, differ in a field on which nothing depends in any
    of them."""
    points = [plain_setting(point) for point in points]
    static = {tuple((name, x) for name, x in one.items() if name in STATIC) for one in points}
    first, *others = (unused(with_values(config, dict(values))) for values in static)
    for name, needed in first.items():
        values = {point.get(name, getattr(config, name)) for point in points}
        if len(values) > 1 and all(name in other for other in others):
            raise ConfigError(f"{name} needs {needed}: runs that differ in it alone are the same")


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with these values of fields, and of parameters of the environment."""
    fields = {name: x for name, x in values.items() if not name.startswith((ENV, OPTION))}
    params = {name.removeprefix(ENV): x for name, x in values.items() if name.startswith(ENV)}
    if params:
        fields["env_params"] = {**config.env_params, **params}
    return dataclasses.replace(config, **fields)


def expand(
    config: Config, grid: Mapping[str, Sequence[Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A grid as programs and settings: every combination of static values is a program.

    Args:
      grid: values of each field, from `settled`.

    Returns:
      Static values of each program, and the settings that each of them trains; the last field of
      the grid varies fastest.

    Raises:
      ConfigError: if a field does not exist or has no values, or a combination has no meaning.
    """
    for name in grid:
        if name not in FIELDS and not name.startswith((ENV, OPTION)):
            raise ConfigError(f"Config has no field {name!r}{nearest(name, FIELDS)}")
        if name == "env_params":
            raise ConfigError(f"a grid has each parameter by its name, as {ENV}gravity; got {name}")
    grid = {name: _values(name, values) for name, values in grid.items()}
    prefixed = [name for name in grid if name.startswith((ENV, OPTION))]
    traced = {*TRACED, *(name for name in prefixed if isinstance(grid[name][0], float))}
    # Whether there is such a bound is static; what it is, is traced.
    static = [name for name in grid if name not in traced or None in grid[name]]
    programs = list(product({name: grid[name] for name in static}))
    settings = list(product({name: grid[name] for name in grid if name not in static}))
    for program in programs:
        for setting in settings:
            with_setting(with_values(config, program), setting)
    return programs, settings


def settled(
    config: Config, grid: Mapping[str, Sequence[Any]], build: Build
) -> dict[str, list[Any]]:
    """The grid with values of the environment's and of the algorithm's own types, as 5.0 for
    env.gravity=5.

    Args:
      grid: values of each field, as in {"gamma": [0.9, 0.99], "hidden_sizes": [(32,), (64,)]};
        an array of numbers too.
      build: makes the algorithm.

    Raises:
      ConfigError: if an environment of the grid has no such parameter, or the algorithm no such
        option.
    """
    found = {name: _values(name, values) for name, values in grid.items()}
    for name in grid:
        if name.startswith(OPTION):
            base = own.options(build)
            found[name] = [
                own.typed(base, {name: x})[name.removeprefix(OPTION)] for x in found[name]
            ]
    params = [name for name in grid if name.startswith(ENV)]
    for where, name in itertools.product(found.get("env", [config.env]) if params else (), params):
        from jaxpg.core import env  # late, for it brings jax

        one = dataclasses.replace(config, env=where, env_params=EnvParams())
        found[name] = [
            env.settle(validate(with_values(one, {name: x}))).env_params[name.removeprefix(ENV)]
            for x in found[name]
        ]
    return found


def _values(name: str, values: Any) -> list[Any]:
    """A field's values in a grid."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} must have a list of values in the grid; got {values!r:.60}")
    found = [_plain(name, value) for value in values]
    if not found:
        raise ConfigError(f"{name} must have at least one value in the grid; got none")
    return found


def _plain(name: str, value: Any) -> Any:
    """A field's value as Python has it."""
    if isinstance(value, tuple):
        return tuple(_plain(name, part) for part in value)
    if isinstance(value, EnvParams):
        return EnvParams({key: _plain(f"{ENV}{key}", part) for key, part in value.items()})
    if not hasattr(value, "item"):
        return value
    try:
        return value.item()
    except (ValueError, TypeError):  # of more than one number; jax's, of one that is being traced
        raise ConfigError(f"{name} must be one number; got {value!r:.60}") from None


def product(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each name; the last name varies fastest."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))
