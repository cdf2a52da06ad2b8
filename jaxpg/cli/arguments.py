"""The command lines of those commands that have no hyperparameters. Imports no jax."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxpg.core.config import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are one sentence like all others, and which knows typos."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it.

        Raises:
          ConfigError: for options that do not exist, before those that are missing; or anything
            else that is wrong.
        """
        known = self._option_string_actions
        for word in args or ():
            option = word.split("=")[0]
            if option.startswith("--") and option != "--" and option not in known:
                options = [name for name in known if name.startswith("--")]
                raise ConfigError(
                    f"{self._name()}: unknown option {option}{nearest(option, options)}"
                )
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of exiting."""
        raise ConfigError(f"{self._name()}: {message}; see {self.prog} --help")

    def _name(self) -> str:
        return self.prog.removeprefix("jaxpg ")


def command_parser(name: str, description: str, example: str) -> Parser:
    """The parser of `jaxpg NAME`; the example is what follows after that."""
    return Parser(
        prog=f"jaxpg {name}",
        description=description,
        epilog=f"example: jaxpg {name} {example}".rstrip(),
        allow_abbrev=False,
    )


def add_run(parser: argparse.ArgumentParser, what: str = "a run directory") -> None:
    """The argument DIR, as `dir`."""
    parser.add_argument("dir", type=Path, metavar="DIR", help=what)


def with_examples(description: str, examples: Sequence[str]) -> str:
    """A description with examples below it, for parsers that have no epilog."""
    return "\n".join([description, "", "examples:", *(f"  {line}" for line in examples)])
