"""benchmarks/README.md as a page of the site, and links to it from the others."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


def setup(app: Sphinx) -> dict[str, Any]:
    """Change pages as they are read."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    if name == "benchmarks":
        app.env.note_dependency(str(README))
        source[0] = re.sub(r"\]\((?!https?:|#)", "](../benchmarks/", README.read_text())
    source[0] = source[0].replace("](../benchmarks/README.md", "](benchmarks.md")
