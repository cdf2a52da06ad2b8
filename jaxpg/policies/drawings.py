"""How environments look: a small function each, with Pillow, and the table that says which.

A function draws one state into a box of a picture that is SMOOTH times larger than it will be, for
the sake of its edges. (gymnax's and gymnasium's own drawings need pygame and gymnasium, make a new
environment for every frame, and have no small form for many seeds.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from jaxpg.core import env
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.types import EnvState

SMOOTH = 3
PAPER, INK, ACCENT, FALLEN, MUTED, LINE = (
    (250, 250, 248),
    (31, 41, 51),
    (11, 110, 153),
    (205, 72, 56),
    (107, 119, 133),
    (214, 218, 222),
)
CHANNELS = (  # of a grid, in their order
    *(ACCENT, FALLEN, (224, 160, 48), (58, 125, 68), (91, 63, 160), (23, 160, 160)),
    *((163, 25, 91), (150, 105, 60), (230, 130, 170), (77, 91, 106)),
)
FALL = 40  # steps that CartPole's fall is shown for

Box = tuple[int, int, int, int]  # left, top, width, height, in pixels of what is reduced later
Draw = Callable[..., None]  # (image, box, what was seen, up=whether the episode goes on, small=)


def _obs(state: EnvState) -> Any:
    return state.obs


class Drawing(NamedTuple):
    """How one environment is drawn."""

    draw: Draw
    see: Callable[[EnvState], Any] = _obs  # what of N states is drawn: a tree, leaves [N, ...]
    step_ms: int = 50  # of the film for a step
    stride: int = 1  # steps per frame
    cell: tuple[int, int] = (66, 66)  # pixels of one seed in a sheet
    ending: str = "episode"  # how the end of one is called
    running: str = "under way"  # and one that has not ended
    after: Callable[[np.ndarray], np.ndarray] | None = None  # what follows an end, for the eye
    colours: tuple[tuple[int, int, int], ...] = ()  # besides ours


def find(config: Config) -> Drawing:
    """The drawing of a config's environment.

    Raises:
      ConfigError: if it cannot be drawn; the sentence says which can.
    """
    name = config.env.rpartition(":")[2]
    if name == "CartPole-v1" and config.env_params:
        own = config.env_params
        return DRAWINGS[name]._replace(draw=partial(_cartpole, **own), after=partial(_fall, **own))
    if name.startswith("MountainCar") and "goal_position" in config.env_params:
        goal = config.env_params["goal_position"]
        return _HILL._replace(draw=partial(_mountain_car, goal=goal))
    if name in DRAWINGS:
        return DRAWINGS[name]
    seen = (config.env_params, config.squash, 1, config.max_episode_steps)  # one at a time
    shape = env.interface(config.env, config.float_type, *seen).obs_shape
    if name in MAPS:
        import gymnax  # made by now, so this costs nothing

        return MAPS[name](gymnax.make(name)[0])
    if len(shape) in (2, 3) and min(shape[:2]) > 1:
        return Drawing(partial(_grid, shape=shape), step_ms=100, colours=CHANNELS)
    names = ", ".join([*DRAWINGS, *MAPS])
    raise ConfigError(
        f"{name} cannot be drawn; what can is {names}, and every environment that observes a grid, "
        f"[rows, columns] or [rows, columns, channels]; this one observes {list(shape)}. Yours can "
        f"be, too: jaxpg.policies.drawings.DRAWINGS[{name!r}] = Drawing(…) in its module"
    )


def _cartpole(
    image: Image.Image,
    box: Box,
    obs: np.ndarray,
    *,
    up: bool,
    small: bool,
    length: float = 0.5,
    **_others: float,
) -> None:
    """A cart with its pole on its track; in a sheet the pole is longer than it is, to be seen.

    Args:
      length: half the pole's, in metres.
    """
    draw = ImageDraw.Draw(image)
    left, top, width, height = box
    pole, theta = 2 * length * (1.9 if small else 1.0), float(obs[2])  # m of the track
    metre = width / 5.4
    ground = top + 0.84 * height
    x = left + width / 2 + metre * float(np.clip(obs[0], -2.5, 2.5))
    size = 0.25 * metre * (1.4 if small else 1.0)
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
    _rod(draw, axle, tip, max(2.5 * SMOOTH, 0.42 * size), ACCENT if up else FALLEN)


def _fall(
    obs: np.ndarray,
    *,
    gravity: float = 9.8,
    length: float = 0.5,
    tau: float = 0.02,
    x_threshold: float = 2.4,
    theta_threshold_radians: float = 12 * np.pi / 180,
    **_others: float,
) -> np.ndarray:
    """What follows the last CartPole observation [4] if the pole fell: [FALL, 4], or nothing.

    An unforced rod on a cart that comes to rest: θ'' = 3 g / (4 l) sin θ, l half its length.
    """
    x, speed, theta, spin = (float(value) for value in obs)
    rows = []
    fell = abs(x) > x_threshold or abs(theta) > theta_threshold_radians
    for _ in range(FALL if fell else 0):
        speed *= 0.9
        spin += tau * 0.75 * gravity / length * np.sin(theta)
        x += tau * speed
        theta = float(np.clip(theta + tau * spin, -np.pi / 2, np.pi / 2))
        rows.append((x, speed, theta, spin))
    return np.array(rows).reshape(-1, 4)


def _acrobot(image: Image.Image, box: Box, obs: np.ndarray, *, up: bool, small: bool) -> None:
    """Two links below a pivot, and the height that the tip is to reach."""
    draw = ImageDraw.Draw(image)
    (x, y), metre = _center(box), 0.45 * min(box[2:]) / 2.1
    first = float(np.arctan2(obs[1], obs[0]))  # from hanging down, to the right
    second = first + float(np.arctan2(obs[3], obs[2]))
    elbow = (x + metre * np.sin(first), y + metre * np.cos(first))
    tip = (elbow[0] + metre * np.sin(second), elbow[1] + metre * np.cos(second))
    draw.line([x - 2.1 * metre, y - metre, x + 2.1 * metre, y - metre], LINE, _thin(metre))
    _rod(draw, (x, y), elbow, 0.2 * metre, INK)
    _rod(draw, elbow, tip, 0.2 * metre, ACCENT if up else MUTED)
    _disc(draw, (x, y), 0.07 * metre, PAPER)


def _pendulum(image: Image.Image, box: Box, obs: np.ndarray, *, up: bool, small: bool) -> None:
    """A rod on a pivot; it is to stand."""
    draw = ImageDraw.Draw(image)
    (x, y), metre = _center(box), 0.42 * min(box[2:])
    tip = (x - metre * float(obs[1]), y - metre * float(obs[0]))
    draw.ellipse((x - metre, y - metre, x + metre, y + metre), outline=LINE, width=_thin(metre))
    _rod(draw, (x, y), tip, 0.16 * metre, ACCENT if up else MUTED)
    _disc(draw, (x, y), 0.05 * metre, PAPER)


def _mountain_car(
    image: Image.Image, box: Box, obs: np.ndarray, *, up: bool, small: bool, goal: float
) -> None:
    """A car in a valley, and the flag on the hill."""
    draw = ImageDraw.Draw(image)
    left, top, width, height = box
    metre = min(0.94 * width / 1.8, 0.8 * height / 1.15)
    x0, y0 = left + width / 2 + 0.3 * metre, top + 0.94 * height

    def place(position: float) -> tuple[float, float]:
        return x0 + metre * position, y0 - metre * (0.45 * np.sin(3 * position) + 0.55)

    draw.line([place(p) for p in np.linspace(-1.2, 0.6, 60)], MUTED, _thin(metre), joint="curve")
    x, y = place(goal)
    draw.line([x, y, x, y - 0.2 * metre], INK, _thin(metre))
    flag = [(x, y - 0.2 * metre), (x + 0.11 * metre, y - 0.16 * metre), (x, y - 0.12 * metre)]
    draw.polygon(flag, CHANNELS[2])
    position, size = float(obs[0]), 0.05 * metre
    x, y = place(position)
    along = np.array([1.0, -1.35 * np.cos(3 * position)])
    along /= np.linalg.norm(along)
    above = np.array([along[1], -along[0]])
    back, front = (
        np.array([x, y]) + 1.3 * size * above + side * 1.3 * size * along for side in (-1, 1)
    )
    _rod(draw, tuple(back), tuple(front), 1.5 * size, ACCENT if up else MUTED)
    for wheel in (back, front):
        _disc(draw, tuple(wheel - 0.7 * size * above), 0.6 * size, INK)


def _grid(
    image: Image.Image, box: Box, obs: np.ndarray, *, up: bool, small: bool, shape: tuple[int, ...]
) -> None:
    """An observation that is a grid: a colour for each channel, the stronger the larger it is."""
    planes = np.maximum(np.nan_to_num(obs.reshape(*shape[:2], -1)), 0.0)
    planes = planes / max(1.0, float(planes.max()))
    cells = np.broadcast_to(np.array(PAPER, float), (*shape[:2], 3))
    for i in range(planes.shape[-1]):
        share = planes[..., i, None]
        cells = cells * (1.0 - share) + share * np.array(CHANNELS[i % len(CHANNELS)], float)
    _paste(image, box, cells)


def _maze(
    image: Image.Image, box: Box, seen: tuple, *, up: bool, small: bool, walls: np.ndarray
) -> None:
    """Walls, where one is, and where to go."""
    cells = np.where(walls[..., None], np.array(MUTED), np.array(PAPER))
    (row, column), goal = (np.asarray(x).astype(int) for x in seen)
    cells[goal[0], goal[1]] = CHANNELS[2]
    cells[row, column] = ACCENT
    _paste(image, box, cells)


def _frozen_lake(
    image: Image.Image, box: Box, seen: np.ndarray, *, up: bool, small: bool, tiles: np.ndarray
) -> None:
    """Ice, holes, where one is, and where to go."""
    colours = np.array([PAPER, PAPER, MUTED, CHANNELS[2]])  # start, frozen, hole, goal
    cells = colours[tiles]
    cells[np.unravel_index(int(seen), tiles.shape)] = ACCENT
    _paste(image, box, cells)


def _rod(
    draw: ImageDraw.ImageDraw, start: tuple, end: tuple, thick: float, colour: tuple[int, int, int]
) -> None:
    """A rod with round ends, the first a little larger."""
    (x0, y0), (x1, y1) = start, end
    length = float(np.hypot(x1 - x0, y1 - y0)) or 1.0
    across = (0.5 * thick * (y0 - y1) / length, 0.5 * thick * (x1 - x0) / length)
    corners = [
        (point[0] + side * across[0], point[1] + side * across[1])
        for point, side in ((start, 1), (end, 1), (end, -1), (start, -1))
    ]
    draw.polygon(corners, colour)
    _disc(draw, start, 0.62 * thick, colour)
    _disc(draw, end, 0.5 * thick, colour)


def _disc(
    draw: ImageDraw.ImageDraw, at: tuple, radius: float, colour: tuple[int, int, int]
) -> None:
    x, y = at
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _paste(image: Image.Image, box: Box, cells: np.ndarray) -> None:
    """Cells [rows, columns, 3] as squares, as large as the box has room for, with a line around."""
    left, top, width, height = box
    rows, columns = cells.shape[:2]
    side = max(1, int(min(0.94 * width / columns, 0.94 * height / rows)))
    picture = Image.fromarray(cells.round().astype(np.uint8)).resize(
        (side * columns, side * rows), Image.Resampling.NEAREST
    )
    x, y = left + (width - picture.width) // 2, top + (height - picture.height) // 2
    right, bottom = x + picture.width + SMOOTH - 1, y + picture.height + SMOOTH - 1
    ImageDraw.Draw(image).rectangle((x - SMOOTH, y - SMOOTH, right, bottom), fill=LINE)
    image.paste(picture, (x, y))


def _center(box: Box) -> tuple[float, float]:
    left, top, width, height = box
    return left + width / 2, top + height / 2


def _thin(metre: float) -> int:
    return max(SMOOTH, round(0.03 * metre))


def _inner_maze(state: EnvState) -> tuple[Any, Any]:
    return state.inner.pos, state.inner.goal


def _of_maze(gym: Any) -> Drawing:
    walls = np.asarray(gym.occupied_map, bool)
    return Drawing(partial(_maze, walls=walls), _inner_maze, 100, colours=CHANNELS)


def _of_frozen_lake(gym: Any) -> Drawing:
    draw = partial(_frozen_lake, tiles=np.asarray(gym.desc))
    return Drawing(draw, lambda state: state.inner.position, 200, colours=CHANNELS)


_HILL = Drawing(partial(_mountain_car, goal=0.5), step_ms=30, cell=(96, 66), colours=CHANNELS[2:3])
DRAWINGS = {
    "CartPole-v1": Drawing(_cartpole, _obs, 20, 2, (96, 66), "fall", "up", _fall),
    "Acrobot-v1": Drawing(_acrobot),
    "MountainCar-v0": _HILL,
    "MountainCarContinuous-v0": _HILL._replace(draw=partial(_mountain_car, goal=0.45)),
    "Pendulum-v1": Drawing(_pendulum),
}
MAPS: dict[str, Callable[[Any], Drawing]] = {  # of the gymnax environment, which has the map
    "FourRooms-misc": _of_maze,
    "MetaMaze-misc": _of_maze,
    "FrozenLake-misc": _of_frozen_lake,
}
