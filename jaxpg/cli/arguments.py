"""The one way from a command line to what is asked for: tyro, over a command's dataclass.

Its docstring is the command's description, its fields are the options, and their docstrings the
help. Every complaint is one sentence. Imports no jax.
"""

import dataclasses
import difflib
import inspect
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import tyro
from docstring_parser import parse_from_object
from tyro.conf import Positional, arg

from jaxpg.core.config import FIELDS, ConfigError, EnvParams, parse_env_params
from jaxpg.core.presets import PRESETS, preset
from jaxpg.words import parameters

Directory = Annotated[Path, Positional, arg(metavar="DIR")]
Directories = Annotated[tuple[Path, ...], Positional, arg(metavar="DIR", help_behavior_hint="")]
Preset = Annotated[str, Positional, arg(metavar="[PRESET]")]
Contenders = Annotated[
    tuple[str, ...], Positional, arg(metavar="PRESET[,FIELD=VALUE,…]", help_behavior_hint="")
]
Given = Annotated[tuple[str, ...], tyro.conf.Fixed, tyro.conf.Suppress]  # names of options
Changed = Annotated[
    bool,
    arg(
        help="Accept that the source of --algorithm, or of your own environment, has changed since "
        "the run began."
    ),
]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Setting = Annotated[
    int | None,
    arg(
        metavar="K",
        help="Which one of several settings, from 0 in the order of their grid.",
        help_behavior_hint="(required if the run has several)",
    ),
]
Callback = Annotated[str | None, arg(metavar="MODULE:FUNCTION", help_behavior_hint="")]
ELSEWHERE = {  # options as other libraries call them
    "adam-eps": "optimizer-eps",
    "anneal-lr": "lr-schedule",
    "clip-grad-norm": "max-grad-norm",
    "clip-eps": "clip-coef",
    "clip-range": "clip-coef",
    "clip-range-vf": "clip-value",
    "clip-vloss": "clip-value",
    "entropy-coef": "ent-coef",
    "env-id": "env",
    "grad-clip": "max-grad-norm",
    "kl-coeff": "kl-coef",
    "kl-target": "desired-kl",
    "lr": "learning-rate",
    "n-envs": "num-envs",
    "n-epochs": "epochs",
    "n-steps": "num-steps",
    "norm-adv": "normalize-advantage",
    "num-minibatches": "minibatches",
    "seed": "seeds",
    "tensorboard": "track",
    "timesteps": "total-steps",
    "total-timesteps": "total-steps",
    "update-epochs": "epochs",
    "value-coef": "vf-coef",
    "wandb": "track",
}


class Command(NamedTuple):
    """What `jaxpg NAME` is."""

    options: type  # a dataclass; with a field `config` its defaults are those of `preset`
    run: Callable[[Any], None]  # given one
    examples: tuple[str, ...]

    @property
    def says(self) -> str:
        """What it does, in a sentence."""
        return (self.options.__doc__ or "").partition("\n")[0]


def setting_suffix(setting: int, count: int) -> str:
    """What a file's name says of its setting, where there are several."""
    return f"-setting-{setting}" if count > 1 else ""


REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.primitive_rule
def _env_params(info: Any) -> Any:
    """How EnvParams are given."""
    if info.type is not EnvParams:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=VALUE [NAME=VALUE ...]]",
        instance_from_str=parse_env_params,
        is_instance=lambda x: isinstance(x, EnvParams),
        str_from_instance=lambda x: parameters(x).split(),
    )


def parse(name: str, command: Command, words: Sequence[str]) -> Any:
    """The options of `jaxpg NAME`; asked for help, it is shown and the process ends.

    A field `given` of them gets the names of those that were not left out.

    Raises:
      ConfigError: if the words are not such.
    """
    _check_options(name, command.options, words)
    _check_numbers(name, words)
    first = words[0] if words and words[0] in PRESETS else "vpg"
    options = _parsed(name, command, words, first)
    if hasattr(options, "given"):
        given = [_option(word).removeprefix("no-") for word in words if word.startswith("--")]
        return dataclasses.replace(options, given=tuple(x.replace("-", "_") for x in given))
    named = getattr(options, "preset", first)
    return options if named == first else _parsed(name, command, words, named)


def _parsed(name: str, command: Command, words: Sequence[str], named: str) -> Any:
    examples = "\n".join(f"  {line}" for line in command.examples)
    settings: dict[str, Any] = {
        "prog": f"jaxpg {name}",
        "description": f"{inspect.getdoc(command.options)}\n\nexamples:\n{examples}",
        "args": [_none(before, word) for before, word in pairwise(["", *words])],
    }
    if "config" in {field.name for field in dataclasses.fields(command.options)}:
        settings["default"] = command.options(preset=named, config=preset(named))
    if {"-h", "--help"} & set(words):
        _join_lines(command.options)
    said = io.StringIO()
    try:
        with redirect_stderr(said), REGISTRY:
            return tyro.cli(command.options, config=(tyro.conf.AvoidSubcommands,), **settings)
    except SystemExit as ended:
        if not ended.code:
            raise  # help
        problem = _sentence(said.getvalue())
    raise ConfigError(f"{name}: {problem}; see jaxpg {name} --help")


def _none(before: str, word: str) -> str:
    """A word, which is Python's None where it is none, as in a grid, of a field that may be so."""
    _, name, value = _value(before, word)
    if name not in FIELDS or type(None) not in get_args(FIELDS[name].type):
        return word
    return f"{word.removesuffix(value)}None" if value.lower() == "none" else word


def _value(before: str, word: str) -> tuple[str, str, str]:
    """The option that a word gives a value, or follows, as it was written; its name as a field's;
    and the value."""
    option, equals, value = word.rpartition("=")
    given = option if equals else before
    return given, _option(given).replace("-", "_"), value


def _sentence(box: str) -> str:
    """What tyro complains of: in its box, or lines, what is between the title and the next rule."""
    blocks: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines():
        if line.startswith("╭") or not any(map(str.isalnum, line)):
            blocks.append([])
        else:
            blocks[-1] += line.strip("│").split()
    return " ".join(blocks[1] if blocks[1:] else blocks[0]).rstrip(".!")


def _check_options(name: str, options: type, words: Sequence[str]) -> None:
    """Unknown options come first, before those that are missing; with the nearest that exist. One
    that is given twice would be what is said last, and nothing of what was said before."""
    known = ["help", *_options(options)]
    given = set[str]()
    for option in filter(None, (_option(word) for word in words if word.startswith("--"))):
        named = option.removeprefix("no-")
        if named in given and named != "help":
            raise ConfigError(
                f"{name}: --{option} is given twice; if it takes several values, all of them stand "
                "behind one"
            )
        given.add(named)
        if option not in known:
            near = [ELSEWHERE[option]] if ELSEWHERE.get(option) in known else []
            near = near or difflib.get_close_matches(option, known, n=1, cutoff=0.6)
            near = near or [x for x in known if option in x.split("-")]
            names = " or ".join(f"--{x}" for x in near)
            hint = f"; did you mean {names}? See" if near else "; see"
            raise ConfigError(f"{name}: unknown option --{option}{hint} jaxpg {name} --help")


def _check_numbers(name: str, words: Sequence[str]) -> None:
    """A number of a config is one; several are asked for by who looks for a sweep."""
    for before, word in pairwise(["", *words]):
        given, field, value = _value(before, word)
        numeric = field in FIELDS and isinstance(FIELDS[field].default, int | float)
        if given.startswith("--") and numeric and re.fullmatch(r"[-+.\de]+(,[-+.\de]+)+", value):
            raise ConfigError(
                f"{name}: {given} takes one number, and {value!r} are several: that is a sweep, "
                f"jaxpg sweep … --grid {field}={value}; see jaxpg sweep --help"
            )


def _option(word: str) -> str:
    """The option that a word such as --total_steps=100 is, without dashes before it."""
    return word.partition("=")[0].removeprefix("--").replace("_", "-")


def _join_lines(options: type) -> None:
    """Make one line of each field's docstring, whose indented lines tyro's help keeps apart."""
    says = {one.arg_name: one.description for one in parse_from_object(options).params}
    for field in dataclasses.fields(options):
        about = {"help": " ".join((says.get(field.name) or "").split()) or None}
        field.metadata = MappingProxyType({**field.metadata, **about})
    for _, _, kind in _fields(options):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            _join_lines(kind)


def _fields(options: type) -> Iterator[tuple[str, Any, Any]]:
    """Name, type hint and type of each field of a dataclass."""
    for name, hint in get_type_hints(options, include_extras=True).items():
        yield name, hint, get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _options(options: type) -> Iterator[str]:
    """The names of a dataclass's options, and of those in it."""
    for name, hint, kind in _fields(options):
        option = name.rstrip("_").replace("_", "-")  # from_, which Python has a word for
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _options(kind)
        elif not {Positional, tyro.conf.Fixed} & set(getattr(hint, "__metadata__", ())):
            yield from (option, f"no-{option}") if kind is bool else (option,)
