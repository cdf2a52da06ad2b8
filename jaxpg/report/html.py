"""Pages from templates, and how they lie in a directory with their figures.

Whatever comes from a run is escaped by jinja2; only the figures, whose text matplotlib escapes, are
put in as they are. Besides, a page forbids itself scripts and whatever lies elsewhere.
"""

from pathlib import Path
from typing import Any

from jaxpg import files
from jaxpg.report import canvas
from jaxpg.report.canvas import Drawn, Picture

NAME = "report.html"
FOLDER = "figures"


def save(directory: Path, html: str, drawn: dict[str, Drawn]) -> Path:
    """Write a page, and its figures by name.

    Raises:
      RunError: if the directory cannot be written.
    """
    path, folder = directory / NAME, directory / FOLDER
    with files.writing(path):
        folder.mkdir(exist_ok=True)
        for name, picture in drawn.items():
            files.write(folder / f"{name}.svg", picture.svg)
            files.write(folder / f"{name}.png", picture.png)
        files.write(path, html)
    return path


def render(template: str, **values: Any) -> str:
    """A template's text with these values, escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jaxpg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    return environment.get_template(template).render(**values)


def _inline(picture: Picture, text: str, kind: str = "") -> Any:
    """An SVG as markup, for templates."""
    from markupsafe import Markup

    return Markup(canvas.inline(text, picture.name + kind, picture.alt))
