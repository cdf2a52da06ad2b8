"""Render: moving pictures of policies in CartPole, drawn with Pillow.

The episode ends when the pole leans by 12°; the fall after that is drawn on, so that one sees it.
"""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxpg.core import algorithms, learner, noise
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Params
from jaxpg.policies.evaluate import record, stacked_params
from jaxpg.runs.load import Run

STEP_MS = 20  # of CartPole's time, which is also the picture's
STRIDE = 2  # steps per frame
LARGEST_SHEET = 3_000_000  # bytes; frames are left out until a sheet is smaller
FALL = 40  # steps that a fall is shown for
UNTRAINED = 120  # steps that a sheet shows the untrained policies for
TRAINED = 300
CELL = (96, 66)  # pixels of one seed in a sheet
SMOOTH = 3  # everything is drawn so many times larger, for the sake of its edges

PAPER, INK, ACCENT, FALLEN, MUTED, LINE = (
    (250, 250, 248),
    (31, 41, 51),
    (11, 110, 153),
    (205, 72, 56),
    (107, 119, 133),
    (214, 218, 222),
)


class Motion(NamedTuple):
    """What one cart does, step by step, F of them."""

    x: np.ndarray  # [F], m
    theta: np.ndarray  # [F], rad, from upright, to the right
    up: np.ndarray  # bool [F], whether the episode goes on
    step: np.ndarray  # int [F], of the episode
    falls: np.ndarray  # int [F], episodes that ended in a fall so far


def one(
    run: Run, seed: int, *, mode: str, before: bool, setting: int = 0, key: int = 0
) -> list[Image.Image]:
    """Frames of one seed's episode; with `before`, beside the policy that it started as.

    Args: as of `evaluate.in_gymnax`.

    Raises:
      ConfigError: if the environment is not CartPole-v1.
    """
    check(run.config)
    trained = _motions(run.config, stacked_params(run, [seed], setting), [seed], mode, key)[0]
    panels = [(f"{run.manifest.preset}, seed {seed}", trained)]
    if before:
        steps = len(trained.x)
        untrained = _again_and_again(run.config, seed, steps, mode, key)
        panels = [(f"seed {seed}, untrained", untrained), (f"seed {seed}, trained", trained)]
    return [
        _beside([_panel(title, motion, f) for title, motion in panels])
        for f in _frames(len(trained.x))
    ]


def sheet(
    run: Run,
    seeds: Sequence[int],
    *,
    mode: str,
    before: bool,
    setting: int = 0,
    key: int = 0,
    stride: int = STRIDE,
) -> list[Image.Image]:
    """Frames of many seeds at once; with `before`, first as they were before training.

    Args: as of `one`; `stride` is how many steps there are between two frames.
    """
    check(run.config)
    parts = []
    if before:
        params = initial_params(run.config, seeds)
        untrained = _motions(run.config, params, seeds, mode, key, UNTRAINED)
        parts.append((f"{len(seeds)} seeds, untrained", untrained, UNTRAINED))
    trained = _motions(run.config, stacked_params(run, seeds, setting), seeds, mode, key, TRAINED)
    steps = int(run.population.metrics.env_steps[run.row(seeds[0], setting)].sum())
    parts.append((f"{len(seeds)} seeds, trained for {steps:,} steps each", trained, TRAINED))
    return [
        _sheet_frame(title, motions, f)
        for title, motions, steps in parts
        for f in _frames(steps, stride)
    ]


def small_sheet(run: Run, seeds: Sequence[int], **options: Any) -> bytes:
    """`sheet` as a GIF of at most LARGEST_SHEET bytes, with as many frames as fit.

    Raises:
      ConfigError: if so many seeds cannot be shown in so few bytes.
    """
    for stride in range(STRIDE, 11):
        content = to_gif(sheet(run, seeds, stride=stride, **options), stride * STEP_MS)
        if len(content) <= LARGEST_SHEET:
            return content
    raise ConfigError(
        f"a sheet has at most {LARGEST_SHEET:,} bytes; {len(seeds)} seeds need more: take fewer"
    )


def to_gif(frames: Sequence[Image.Image], milliseconds: int = STRIDE * STEP_MS) -> bytes:
    """An endless GIF in our colours and their blends."""
    small = [frame.quantize(palette=_palette(), dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    small[0].save(
        file, "GIF", save_all=True, append_images=small[1:], duration=milliseconds, loop=0
    )
    return file.getvalue()


def to_mp4(frames: Sequence[Image.Image]) -> bytes:
    """A film, by the ffmpeg that is on the PATH, whose default for mp4 is H.264.

    Raises:
      ConfigError: if there is none, or it fails.
    """
    program = ffmpeg()
    width, height = frames[0].size
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    rate = ["-r", f"{1000 / (STRIDE * STEP_MS):g}", "-i", "-"]
    target = ["-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-f", "mp4"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        done = subprocess.run(
            [program, "-loglevel", "error", *source, *rate, *target, str(path)],
            input=b"".join(frame.tobytes() for frame in frames),
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


def check(config: Config) -> None:
    """Raise ConfigError unless the environment is one that can be drawn."""
    if config.env != "CartPole-v1":
        raise ConfigError(f"only CartPole-v1 can be rendered; this run is of {config.env}")


def initial_params(config: Config, seeds: Sequence[int]) -> Params:
    """The parameters that seeds start from, leaves [S, ...]; the same that training drew."""
    algorithm, arrays = algorithms.build(config), as_arrays(config)
    start = jax.jit(jax.vmap(lambda key: learner.init(arrays, key, algorithm).params))
    return jax.tree.map(np.asarray, start(noise.keys(seeds)))


def _motions(
    config: Config,
    params: Params,
    seeds: Sequence[int],
    mode: str,
    key: int,
    steps: int | None = None,
) -> list[Motion]:
    """Each seed's first episode, and its fall if it has one, or exactly so many steps of that."""
    obs, lengths = record(config, params, seeds, 1, mode, key=key)
    motions = [_motion(obs[: n + 1, i, 0], n) for i, n in enumerate(lengths[:, 0])]
    if steps is None:
        return motions
    last = [np.minimum(np.arange(steps), len(motion.x) - 1) for motion in motions]
    return [Motion(*(x[at] for x in motion)) for motion, at in zip(motions, last, strict=True)]


def _again_and_again(config: Config, seed: int, steps: int, mode: str, key: int) -> Motion:
    """Episodes of an untrained policy, one after another, for so many steps."""
    count = -(-steps // (FALL + 8)) + 1
    obs, lengths = record(config, initial_params(config, [seed]), [seed], count, mode, key=key)
    parts = [_motion(obs[: n + 1, 0, j], n) for j, n in enumerate(lengths[0])]
    falls = np.cumsum([0, *(part.falls[-1] for part in parts)])
    parts = [part._replace(falls=part.falls + n) for part, n in zip(parts, falls, strict=False)]
    return Motion(*(np.concatenate(x)[:steps] for x in zip(*parts, strict=True)))


def _motion(obs: np.ndarray, length: int) -> Motion:
    """An episode of CartPole observations [length + 1, 4], and what follows if it fell.

    An unforced rod on a cart that comes to rest: θ'' = 3 g / (4 l) sin θ, l half its length.
    """
    x, theta = list(obs[:, 0]), list(obs[:, 2])
    fell = abs(x[-1]) > 2.4 or abs(theta[-1]) > 12 * np.pi / 180
    speed, spin = float(obs[-1, 1]), float(obs[-1, 3])
    for _ in range(FALL if fell else 0):
        speed *= 0.9
        spin += 0.02 * 14.7 * np.sin(theta[-1])
        x.append(x[-1] + 0.02 * speed)
        theta.append(float(np.clip(theta[-1] + 0.02 * spin, -np.pi / 2, np.pi / 2)))
    index = np.arange(len(x))
    up = (index < length) | (not fell)
    return Motion(np.array(x), np.array(theta), up, np.minimum(index, length), (~up).astype(int))


def _frames(steps: int, stride: int = STRIDE) -> range:
    return range(0, steps, stride)


def _panel(title: str, motion: Motion, frame: int) -> Image.Image:
    """One cart, large."""
    frame = min(frame, len(motion.x) - 1)
    width, height = 480, 270
    image = Image.new("RGB", (width * SMOOTH, height * SMOOTH), PAPER)
    draw = ImageDraw.Draw(image)
    _draw_cart(draw, motion, frame, (0, 0, width, height - 34), pole=1.0)
    bottom, right = height - 16, width - 16
    count = f"step {motion.step[frame]}   return {motion.step[frame]}"
    if motion.falls[-1]:
        count = f"{_falls(int(motion.falls[frame]))}   {count}"
    _write(draw, (16, bottom), title, 15, INK, "ls", bold=True)
    colour = MUTED if motion.up[frame] else FALLEN
    _write(draw, (right, bottom), count, 14, colour, "rs")
    return image.reduce(SMOOTH)


def _falls(count: int) -> str:
    return "1 fall" if count == 1 else f"{count} falls"


def _beside(panels: list[Image.Image]) -> Image.Image:
    gap = 2
    width = sum(panel.width for panel in panels) + gap * (len(panels) - 1)
    image = Image.new("RGB", (width, panels[0].height), LINE)
    left = 0
    for panel in panels:
        image.paste(panel, (left, 0))
        left += panel.width + gap
    return image


def _sheet_frame(title: str, motions: list[Motion], frame: int) -> Image.Image:
    """All carts, small, with a line above that counts them."""
    columns = min(len(motions), max(1, round(len(motions) ** 0.5)))
    columns = max(columns, min(len(motions), 4))  # room for the line
    rows = -(-len(motions) // columns)
    top, margin = 34, 16
    width, height = columns * CELL[0] + 2 * margin, rows * CELL[1] + top + margin
    image = Image.new("RGB", (width * SMOOTH, height * SMOOTH), PAPER)
    draw = ImageDraw.Draw(image)
    for i, motion in enumerate(motions):
        row, column = divmod(i, columns)
        box = (margin + column * CELL[0], top + row * CELL[1], *CELL)
        _draw_cart(draw, motion, frame, box, pole=1.9)
    up = sum(bool(motion.up[frame]) for motion in motions)
    small = columns < 6
    _write(draw, (margin, 23), title, 12 if small else 15, INK, "ls", bold=True)
    if not small:
        _write(
            draw, (width - margin, 23), f"step {frame}   {up} of {len(motions)} up", 14, MUTED, "rs"
        )
    return image.reduce(SMOOTH)


def _draw_cart(
    draw: ImageDraw.ImageDraw,
    motion: Motion,
    frame: int,
    box: tuple[int, int, int, int],
    pole: float,
) -> None:
    """A cart with its pole on its track.

    Args:
      box: left, top, width, height, in pixels of the picture.
      pole: its length in the picture, in m of the track; the true one is 1.
    """
    left, top, width, height = (SMOOTH * side for side in box)
    metre = width / 5.4
    ground = top + 0.84 * height
    x = left + width / 2 + metre * float(np.clip(motion.x[frame], -2.5, 2.5))
    theta = float(motion.theta[frame])
    size = 0.25 * metre * (1.0 if pole == 1.0 else 1.4)
    deck, line = ground - size, max(SMOOTH, metre * 0.035)
    draw.line([left + 0.1 * metre, ground, left + width - 0.1 * metre, ground], LINE, round(line))
    body = (x - 1.15 * size, deck - 0.45 * size, x + 1.15 * size, ground - 0.25 * size)
    for wheel in (x - 0.6 * size, x + 0.6 * size):
        draw.ellipse(
            (wheel - 0.3 * size, ground - 0.6 * size, wheel + 0.3 * size, ground), fill=MUTED
        )
    draw.rounded_rectangle(body, radius=0.25 * size, fill=INK)
    axle = (x, deck - 0.45 * size)
    tip = (x + pole * metre * np.sin(theta), axle[1] - pole * metre * np.cos(theta))
    colour = ACCENT if motion.up[frame] else FALLEN
    thick = max(2.5 * SMOOTH, 0.42 * size)
    across = (0.5 * thick * np.cos(theta), 0.5 * thick * np.sin(theta))
    corners = [
        (point[0] + side * across[0], point[1] + side * across[1])
        for point, side in ((axle, 1), (tip, 1), (tip, -1), (axle, -1))
    ]
    draw.polygon(corners, colour)
    for point, radius in ((axle, 0.62 * thick), (tip, 0.5 * thick)):
        px, py = point
        draw.ellipse((px - radius, py - radius, px + radius, py + radius), fill=colour)


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


@lru_cache(maxsize=16)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@lru_cache(maxsize=1)
def _palette() -> Image.Image:
    """The paper blended with each of our colours, which is all that smooth edges need."""
    colours: list[tuple[int, ...]] = [PAPER]
    for colour, shades in ((INK, 6), (ACCENT, 6), (FALLEN, 6), (MUTED, 4), (LINE, 2)):
        for i in range(1, shades + 1):
            pairs = zip(PAPER, colour, strict=True)
            colours.append(tuple(round(a + (b - a) * i / shades) for a, b in pairs))
    image = Image.new("P", (1, 1))
    flat = [value for colour in colours for value in colour]
    image.putpalette(flat + list(PAPER) * (256 - len(colours)))
    return image
