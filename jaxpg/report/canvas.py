"""How a figure is made: our style and nobody else's, as SVG and PNG, and as a part of a page."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxpg import files
from jaxpg.later import import_matplotlib

INK, ACCENT, MUTED = "#1f2933", "#0b6e99", "#616e7c"
GRID, WARN, SECOND, PAPER = "#e4e7eb", "#c2334d", "#b7641a", "#ffffff"
# Of runs that are compared: told apart by people who see no red or no green; in grey by DASHES.
SERIES = (ACCENT, SECOND, "#5b3fa0", "#3a7d44", "#a3195b", "#4d5b6a")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
# Of a heat map, from low to high. The text on the last three is light.
SHADES = (
    *("#f1f6f9", "#d7e3ea", "#bdd0da", "#a3becb", "#89abbb", "#6f98ac"),
    *("#447991", "#286480", "#0b4f6e"),
)
ON_LOW, ON_HIGH, HIGH = "#101820", "#fefefe", 6
LEFT, RIGHT, BOTTOM = 0.76, 0.14, 0.5  # inches beside the axes; much faster than a layout engine
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType: many a venue takes no Type 3
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "xtick.color": INK,
    "ytick.color": INK,
}


class Picture(NamedTuple):
    """What a picture shows, in words, and how it is drawn."""

    name: str  # of its files
    title: str
    caption: str
    alt: str  # for people who do not see it
    draw: Callable[[Any], None]  # onto matplotlib axes
    size: tuple[float, float] = (4.6, 2.95)  # inches
    top: float = 0.12  # inches above the axes


class Drawn(NamedTuple):
    """A picture's files."""

    svg: str  # the same content always gives the same text
    png: bytes


def draw(picture: Picture) -> Drawn:
    """The picture as SVG and PNG."""
    with figure_of(picture.draw, picture.size, picture.top, picture.name) as figure:
        svg = _svg(figure)
        return Drawn(svg, _saved(figure, "png", dpi=180, pil_kwargs={"compress_level": 3}))


def draw_svg(picture: Picture) -> str:
    """The picture as SVG alone."""
    with figure_of(picture.draw, picture.size, picture.top, picture.name) as figure:
        return _svg(figure)


@contextmanager
def figure_of(
    draw: Callable[[Any], None], size: tuple[float, float], top: float, name: str
) -> Iterator[Any]:
    """What is drawn onto axes as a matplotlib figure, which is to be saved within the block.

    Args:
      size: width and height in inches.
      top: inches above the axes.
      name: the ids in an SVG are made from.
    """
    width, height = size
    across, up = width - LEFT - RIGHT, height - BOTTOM - top
    with blank(size, name) as figure:
        axes = figure.add_axes((LEFT / width, BOTTOM / height, across / width, up / height))
        axes.set_facecolor("none")
        draw(axes)
        _make_room(axes)
        yield figure


def _make_room(axes: Any) -> None:
    """Begin the axes further right, where the numbers beside them push their label off the page."""
    beyond = -axes.yaxis.get_tightbbox().x0 / axes.figure.bbox.width
    if beyond > 0.0:
        at = axes.get_position()
        axes.set_position((at.x0 + beyond, at.y0, at.width - beyond, at.height))


@contextmanager
def blank(size: tuple[float, float], salt: str = "jaxpg", **options: Any) -> Iterator[Any]:
    """An empty figure, drawn by Agg in our style alone.

    Args:
      size: width and height in inches.
      salt: the ids in an SVG are made from.
      options: of matplotlib's Figure.
    """
    with own_rc({**STYLE, "svg.hashsalt": salt}):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # not pyplot: no window

        figure = Figure(figsize=size, facecolor=PAPER, **options)
        FigureCanvasAgg(figure)
        yield figure


@contextmanager
def own_rc(style: Any) -> Iterator[None]:
    """matplotlib with its own defaults and a style.

    Neither a matplotlibrc nor MPLBACKEND, which a notebook leaves to what it starts, changes it.
    """
    matplotlib = import_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        yield


def inline(text: str, prefix: str, alt: str) -> str:
    """An SVG file's text as an element of a page.

    Colours become the page's, so that they follow light and dark; ids get a prefix, since a page
    has many pictures.

    Args:
      alt: plain text, escaped here.
    """
    from markupsafe import escape

    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    names = {INK: "ink", MUTED: "muted", GRID: "grid", WARN: "warn", PAPER: "paper"}
    names |= {color: f"series-{i}" for i, color in enumerate(SERIES)}
    names |= {color: f"shade-{i}" for i, color in enumerate(SHADES)}
    names |= {ON_LOW: "on-low", ON_HIGH: "on-high"}
    for color, name in names.items():
        body = body.replace(color, f"var(--{name})")
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height|version)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(alt)}">{rest}'


def save(figure: Any, path: Path, kind: str = "png", **options: Any) -> None:
    """Write a figure whole, or not at all.

    Args:
      options: of matplotlib's savefig.

    Raises:
      RunError: if the file cannot be written.
    """
    files.save(path, _saved(figure, kind, **options))


def _svg(figure: Any) -> str:
    return _saved(figure, "svg", dpi=180, metadata={"Date": None}).decode()


def _saved(figure: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
