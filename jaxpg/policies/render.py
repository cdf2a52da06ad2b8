"""Render: moving pictures of policies, drawn with Pillow.

What an environment looks like is in `drawings`; here are the episodes, the frames and the files.
"""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxpg import words
from jaxpg.core import algorithms, learner, noise
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Algorithm, Params
from jaxpg.policies import drawings
from jaxpg.policies.drawings import ACCENT, FALLEN, INK, LINE, MUTED, PAPER, SMOOTH, Drawing
from jaxpg.policies.evaluate import Recorded, recorder, stacked_params
from jaxpg.runs import starts
from jaxpg.runs.load import Run

LONGEST = 600  # frames of one seed's film; of a longer episode steps are left out
LARGEST_SHEET = 3_000_000  # bytes; frames are left out until a sheet is smaller
LARGEST_STRIDE = 10  # steps from one frame of a sheet to the next
LINGER_MS = 600  # that an episode's end is shown for, where nothing follows it
UNTRAINED = 120  # steps that a sheet shows the untrained policies for
TRAINED = 300
BATCH = 8  # untrained episodes that are simulated at a time
PANEL = (480, 270)  # pixels of one seed, alone


class Motion(NamedTuple):
    """What is seen of one seed, step by step, F of them."""

    seen: Any  # as the drawing wants it: a tree, leaves [F, ...]
    up: np.ndarray  # bool [F], whether the episode goes on
    step: np.ndarray  # int [F], of the episode
    returns: np.ndarray  # [F], since the episode's start
    ends: np.ndarray  # int [F], episodes that have ended so far


class Acting(NamedTuple):
    """How policies act."""

    config: Config
    mode: str  # "greedy" or "sampled"
    algorithm: Algorithm | None  # with parts of one's own; None for the config's


class Film(NamedTuple):
    """A moving picture."""

    frames: list[Image.Image]
    milliseconds: int  # of each
    colours: tuple[tuple[int, int, int], ...] = ()  # besides ours


def one(
    run: Run,
    seed: int,
    *,
    mode: str,
    before: bool,
    setting: int | None = None,
    episode_seed: int = 0,
) -> Film:
    """One seed's episode; with `before`, beside the policy that it started as.

    Args: as of `evaluate.in_gymnax`.

    Raises:
      ConfigError: if the environment cannot be drawn.
    """
    config = run.config_of(setting)
    drawing = drawings.find(config)
    acting = Acting(config, mode, run.algorithm(setting))
    (trained,) = _motions(
        acting, drawing, stacked_params(run, [seed], setting), [seed], episode_seed
    )
    steps = len(trained.up)
    panels = [(f"{run.manifest.called}, seed {seed}", trained)]
    if before:
        first = _again_and_again(
            acting, drawing, first_params(run, acting, [seed]), seed, steps, episode_seed
        )
        panels = [(f"seed {seed}, {_first(run)}", first), (f"seed {seed}, trained", trained)]
    stride = max(drawing.stride, -(-steps // LONGEST))
    frames = [
        _beside([_panel(drawing, title, motion, f) for title, motion in panels])
        for f in range(0, steps, stride)
    ]
    return Film(frames, drawing.stride * drawing.step_ms, drawing.colours)


def sheet(
    run: Run,
    seeds: Sequence[int],
    *,
    mode: str,
    before: bool,
    setting: int | None = None,
    episode_seed: int = 0,
) -> Film:
    """Many seeds at once; with `before`, first as they were before training. Args: as of `one`."""
    drawing = drawings.find(run.config_of(setting))
    parts = _sheet_parts(run, drawing, seeds, mode, before, setting, episode_seed)
    return _sheet_film(drawing, parts, drawing.stride)


def small_sheet(
    run: Run,
    seeds: Sequence[int],
    *,
    mode: str,
    before: bool,
    setting: int | None = None,
    episode_seed: int = 0,
) -> bytes:
    """`sheet` as a GIF of at most LARGEST_SHEET bytes, with as many frames as fit.

    Raises:
      ConfigError: if so many seeds cannot be shown in so few bytes.
    """
    drawing = drawings.find(run.config_of(setting))
    parts = _sheet_parts(run, drawing, seeds, mode, before, setting, episode_seed)
    for stride in range(drawing.stride, LARGEST_STRIDE + 1):
        content = to_gif(_sheet_film(drawing, parts, stride))
        if len(content) <= LARGEST_SHEET:
            return content
    raise ConfigError(
        f"a sheet has at most {LARGEST_SHEET:,} bytes; {words.seeds(len(seeds))} need more: take "
        "fewer"
    )


def to_gif(film: Film) -> bytes:
    """An endless GIF in the film's colours and their blends."""
    palette = _palette(film.colours)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in film.frames]
    file = io.BytesIO()
    small[0].save(
        file, "GIF", save_all=True, append_images=small[1:], duration=film.milliseconds, loop=0
    )
    return file.getvalue()


def to_mp4(film: Film) -> bytes:
    """A film, by the ffmpeg that is on the PATH, whose default for mp4 is H.264.

    Raises:
      ConfigError: if there is none, or it fails.
    """
    program = ffmpeg()
    width, height = film.frames[0].size
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    rate = ["-r", f"{1000 / film.milliseconds:g}", "-i", "-"]
    target = ["-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-f", "mp4"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        done = subprocess.run(
            [program, "-loglevel", "error", *source, *rate, *target, str(path)],
            input=b"".join(frame.tobytes() for frame in film.frames),
            capture_output=True,
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise ConfigError(f"ffmpeg failed: {lines[-1] if lines else done.returncode}")
        return path.read_bytes()


def ffmpeg() -> str:
    """Where it is.

    Raises:
      ConfigError: if it is not installed.
    """
    program = shutil.which("ffmpeg")
    if program is None:
        raise ConfigError("an mp4 needs ffmpeg, which is not on the PATH; a .gif needs nothing")
    return program


def first_params(run: Run, acting: Acting, seeds: Sequence[int]) -> Params:
    """The parameters that training began with, leaves [S, ...]."""
    if run.manifest.start is None:
        return initial_params(acting.config, seeds, acting.algorithm)
    return starts.of_seeds(run.population.start, seeds).params


def _first(run: Run) -> str:
    """What policies are called as they were before training."""
    return "untrained" if run.manifest.start is None else "before"


def initial_params(
    config: Config, seeds: Sequence[int], algorithm: Algorithm | None = None
) -> Params:
    """The parameters that seeds start from, leaves [S, ...]; the same that training drew.

    Args:
      algorithm: with parts of one's own; None for the config's.
    """
    algorithm, arrays = algorithm or algorithms.build(config), as_arrays(config)
    start = jax.jit(jax.vmap(lambda key: learner.init(arrays, key, algorithm).params))
    return jax.tree.map(np.asarray, start(noise.keys(seeds)))


def _motions(
    acting: Acting,
    drawing: Drawing,
    params: Params,
    seeds: Sequence[int],
    episode_seed: int,
    steps: int | None = None,
) -> list[Motion]:
    """Each seed's first episode, and what follows its end, or so many steps of that at most."""
    record = recorder(acting.config, acting.mode, drawing.see, steps, acting.algorithm)
    recorded = record(params, seeds, [0], episode_seed)
    return [_motion(drawing, recorded, i, 0) for i in range(len(seeds))]


def _again_and_again(
    acting: Acting, drawing: Drawing, params: Params, seed: int, steps: int, episode_seed: int
) -> Motion:
    """Episodes of a policy as it was before training, one after another, for so many steps."""
    record = recorder(acting.config, acting.mode, drawing.see, algorithm=acting.algorithm)
    parts: list[Motion] = []
    while sum(len(part.up) for part in parts) < steps:
        recorded = record(params, [seed], np.arange(BATCH) + len(parts), episode_seed)
        parts += [_motion(drawing, recorded, 0, j) for j in range(BATCH)]
    ended = np.cumsum([0, *(part.ends[-1] for part in parts)])
    parts = [part._replace(ends=part.ends + n) for part, n in zip(parts, ended, strict=False)]
    return jax.tree.map(lambda *x: np.concatenate(x)[:steps], *parts)


def _motion(drawing: Drawing, recorded: Recorded, i: int, j: int) -> Motion:
    """Episode j of the i-th seed as it was recorded, and what follows its end."""
    length, last = int(recorded.lengths[i, j]), len(recorded.returns) - 1
    seen = jax.tree.map(lambda x: x[: length + 1, i, j], recorded.seen)
    returns = recorded.returns[: length + 1, i, j]
    if drawing.after is not None:
        following = drawing.after(seen[-1])
        seen, more = np.concatenate([seen, following]), len(following)
        over = more > 0
    else:
        over = length < last or last == recorded.limit
        more = LINGER_MS // drawing.step_ms if over else 0
        seen = jax.tree.map(lambda x: x[np.minimum(np.arange(length + 1 + more), length)], seen)
    index = np.arange(length + 1 + more)
    up, step = (index < length) | (not over), np.minimum(index, length)
    return Motion(seen, up, step, returns[step], (~up).astype(int))


def _panel(drawing: Drawing, title: str, motion: Motion, frame: int) -> Image.Image:
    """One seed, large."""
    frame = min(frame, len(motion.up) - 1)
    width, height = PANEL
    image = Image.new("RGB", (width * SMOOTH, height * SMOOTH), PAPER)
    _draw(drawing, image, motion, frame, (0, 0, width, height - 34), small=False)
    draw, bottom, right = ImageDraw.Draw(image), height - 16, width - 16
    count = f"step {motion.step[frame]}   return {_number(motion.returns[frame])}"
    if motion.ends[-1] > (0 if drawing.after else 1):  # one end is seen without
        count = f"{_ends(int(motion.ends[frame]), drawing)}   {count}"
    title, size = _fitted(title, right - _width(count, 14) - 2 * 16)
    _write(draw, (16, bottom), title, size, INK, "ls", bold=True)
    colour = FALLEN if drawing.after and not motion.up[frame] else MUTED
    _write(draw, (right, bottom), count, 14, colour, "rs")
    return image.reduce(SMOOTH)


def _ends(count: int, drawing: Drawing) -> str:
    return f"1 {drawing.ending}" if count == 1 else f"{count} {drawing.ending}s"


def _number(value: float) -> str:
    """A return: a whole number as such."""
    return f"{value:,.0f}" if float(value).is_integer() else words.returned(value)


def _beside(panels: list[Image.Image]) -> Image.Image:
    gap = 2
    width = sum(panel.width for panel in panels) + gap * (len(panels) - 1)
    image = Image.new("RGB", (width, panels[0].height), LINE)
    left = 0
    for panel in panels:
        image.paste(panel, (left, 0))
        left += panel.width + gap
    return image


class Part(NamedTuple):
    """One part of a sheet."""

    title: str
    motions: list[Motion]
    steps: int


def _sheet_parts(
    run: Run,
    drawing: Drawing,
    seeds: Sequence[int],
    mode: str,
    before: bool,
    setting: int | None,
    episode_seed: int,
) -> list[Part]:
    """What a sheet shows: the seeds untrained, if that is wanted, and trained."""
    count = words.seeds(len(seeds))
    acting = Acting(run.config_of(setting), mode, run.algorithm(setting))
    spent = words.amount(run.config.num_updates * run.config.update_cost)
    shown = [(f"{count}, trained for {spent} {run.config.unit} each", TRAINED)]
    params = [stacked_params(run, seeds, setting)]
    if before:
        shown = [(f"{count}, {_first(run)}", UNTRAINED), *shown]
        params = [first_params(run, acting, seeds), *params]
    parts = []
    for (title, most), start in zip(shown, params, strict=True):
        motions = _motions(acting, drawing, start, seeds, episode_seed, most)
        if drawing.after is None:  # nothing moves any more once all are over
            most = min(most, max(len(motion.up) for motion in motions))
        parts.append(Part(title, motions, most))
    return parts


def _sheet_film(drawing: Drawing, parts: Sequence[Part], stride: int) -> Film:
    widest = max(_width(part.title, 12, bold=True) for part in parts)
    frames = [
        _sheet_frame(drawing, part.title, part.motions, f, widest)
        for part in parts
        for f in range(0, part.steps, stride)
    ]
    return Film(frames, stride * drawing.step_ms, drawing.colours)


def _sheet_frame(
    drawing: Drawing, title: str, motions: list[Motion], frame: int, widest: int
) -> Image.Image:
    """All seeds, small, with a line above that counts them.

    Args:
      widest: pixels that the titles of a film's parts need.
    """
    cell = drawing.cell
    columns = min(len(motions), max(1, round(len(motions) ** 0.5)))
    columns = max(columns, min(len(motions), -(-384 // cell[0])))  # room for the line
    rows = -(-len(motions) // columns)
    top, margin = 34, 16
    width, height = columns * cell[0] + 2 * margin, rows * cell[1] + top + margin
    width = max(width, widest + 2 * margin)
    image = Image.new("RGB", (width * SMOOTH, height * SMOOTH), PAPER)
    for i, motion in enumerate(motions):
        row, column = divmod(i, columns)
        box = (margin + column * cell[0], top + row * cell[1], *cell)
        _draw(drawing, image, motion, min(frame, len(motion.up) - 1), box, small=True)
    draw, small = ImageDraw.Draw(image), width < 6 * 96
    up = sum(bool(motion.up[min(frame, len(motion.up) - 1)]) for motion in motions)
    _write(draw, (margin, 23), title, 12 if small else 15, INK, "ls", bold=True)
    if not small:
        tally = f"step {frame}   {up} of {len(motions)} {drawing.running}"
        _write(draw, (width - margin, 23), tally, 14, MUTED, "rs")
    return image.reduce(SMOOTH)


def _draw(
    drawing: Drawing, image: Image.Image, motion: Motion, frame: int, box: drawings.Box, small: bool
) -> None:
    """One state into a box, which is given in pixels of the picture as it will be."""
    left, top, width, height = box
    enlarged = (SMOOTH * left, SMOOTH * top, SMOOTH * width, SMOOTH * height)
    seen = jax.tree.map(lambda x: x[frame], motion.seen)
    drawing.draw(image, enlarged, seen, up=bool(motion.up[frame]), small=small)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    anchor: str,
    bold: bool = False,
) -> None:
    place = (at[0] * SMOOTH, at[1] * SMOOTH)
    draw.text(place, text, fill=colour, font=_font(size * SMOOTH, bold), anchor=anchor)


def _width(text: str, size: int, bold: bool = False) -> int:
    """Of a line that `_write` writes, in pixels."""
    return -(-int(_font(size * SMOOTH, bold).getlength(text)) // SMOOTH) + 1


def _fitted(text: str, room: int) -> tuple[str, int]:
    """A bold line and its size, smaller where there is less room for it; of one that does not fit
    even so, the end, which has the seed."""
    for size in range(15, 10, -1):
        if _width(text, size, bold=True) <= room:
            return text, size
    while text and _width(f"…{text}", size, bold=True) > room:
        text = text[1:]
    return f"…{text}", size


@lru_cache(maxsize=16)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings; that need not be imported."""
    found = find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)


@lru_cache(maxsize=16)
def _palette(more: tuple[tuple[int, int, int], ...]) -> Image.Image:
    """The paper blended with each of our colours, which is all that smooth edges need."""
    ours = [(INK, 6), (ACCENT, 6), (FALLEN, 6), (MUTED, 4), (LINE, 2)]
    colours: list[tuple[int, ...]] = [PAPER]
    for colour, shades in [*ours, *((colour, 8) for colour in more)]:
        for i in range(1, shades + 1):
            pairs = zip(PAPER, colour, strict=True)
            colours.append(tuple(round(a + (b - a) * i / shades) for a, b in pairs))
    image = Image.new("P", (1, 1))
    flat = [value for colour in colours for value in colour]
    image.putpalette(flat + list(PAPER) * (256 - len(colours)))
    return image
