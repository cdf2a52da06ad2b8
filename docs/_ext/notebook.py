"""Notebooks as pages: text, code and the outputs that are stored in the file. Executes nothing."""

from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


class NotebookParser(MystParser):
    """Reads .ipynb as the Markdown that it amounts to."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse a notebook's JSON into the document."""
        super().parse(to_markdown(nbformat.reads(inputstring, as_version=4)), document)


def to_markdown(notebook: Any) -> str:
    """Cells in order, code in fences, each with its outputs below it."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_output(output) for output in cell.outputs]
    return "\n\n".join(parts) + "\n"


def _output(output: Any) -> str:
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```"
    if output.output_type == "error":
        raise ValueError(f"a notebook with an error in it: {output.ename}: {output.evalue}")
    if "image/png" in output.data:
        alt = output.metadata.get("alt", "Figure")
        data = output.data["image/png"].replace("\n", "")
        image = f'<img class="figure" alt="{alt}" src="data:image/png;base64,{data}">'
        return f"```{{raw}} html\n{image}\n```"
    return f"```text\n{output.data['text/plain'].rstrip()}\n```"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the parser."""
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":  # python docs/_ext/notebook.py docs/quickstart.ipynb: to look at it
    import sys

    print(to_markdown(nbformat.reads(Path(sys.argv[1]).read_text(), as_version=4)))
