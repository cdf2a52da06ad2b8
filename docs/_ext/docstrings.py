"""The docstrings as they are written, for a reader of the source, made into what Sphinx reads.

A formula is an indented block, `*` and `_` are only themselves, and what a field of a NamedTuple
holds is said in the comment beside it.
"""

import dataclasses
import inspect
import re
import tokenize
from functools import cache
from io import StringIO
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Yields):$")
LITERAL = ["", ".. code-block:: text", ""]
_fields: dict[str, list[str]] = {}  # docstrings of fields, kept from napoleon


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook in before napoleon, which listens at priority 500, and for fields after it too."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
    app.connect("autodoc-process-signature", _no_signature_of_data)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = [_escape(_comment_of(name)), ""]
        return
    if what == "attribute":
        _fields[name] = [_escape(line) for line in lines]
        return
    out: list[str] = []
    in_section = in_formula = False
    for line in lines:
        indented = line.startswith("    ")
        if SECTION.match(line):
            in_section = True
        elif line and not line.startswith(" "):
            in_section = False
        if indented and not in_section and not in_formula and not (out and out[-1].strip()):
            in_formula = True
            out += LITERAL
        elif line.strip() and not indented:
            in_formula = False
        out.append(line if in_formula else _escape(line))
    lines[:] = out


def _restore(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon reads 'Environment: any name' of a field as 'type: description'."""
    if name in _fields:
        lines[:] = _fields.pop(name)


def _no_signature_of_data(
    app: Sphinx, what: str, name: str, obj: Any, *rest: Any
) -> tuple[str, str] | None:
    """Fields are listed below the class, with types and defaults; once is enough."""
    data = what == "class" and (dataclasses.is_dataclass(obj) or hasattr(obj, "_fields"))
    return ("", "") if data else None


def _escape(line: str) -> str:
    r"""`*`, `|` and a `_` that ends a word stand for themselves, but not inside `code`."""
    parts = re.split(r"(``.+?``|`[^`]+`)", line)
    parts[::2] = [re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def _comment_of(name: str) -> str:
    """The comment beside `jaxpg.module.Class.field`, and the lines below that go on with it."""
    module, class_name, field = name.rsplit(".", 2)
    return _comments(module, class_name).get(field, "")


@cache
def _comments(module: str, class_name: str) -> dict[str, str]:
    from importlib import import_module

    source = inspect.getsource(getattr(import_module(module), class_name))
    found: dict[str, str] = {}
    field = None
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.NAME and token.start[1] == 4 and ":" in token.line:
            field = token.string
        elif token.type == tokenize.COMMENT and field:
            found[field] = f"{found.get(field, '')} {token.string.lstrip('# ')}".strip()
    return found
