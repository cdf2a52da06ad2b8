"""Moving pictures: what they show, that they are GIFs, and what cannot be drawn."""

import dataclasses
import io
import shutil
import subprocess
from functools import partial

import gymnax
import handmade
import jax
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from PIL import Image

import jaxpg
from jaxpg.cli.main import main
from jaxpg.core.config import Config, ConfigError, EnvParams
from jaxpg.policies import drawings, render
from jaxpg.policies.drawings import ACCENT, CHANNELS, FALLEN, MUTED
from jaxpg.policies.evaluate import Recorded

CARTPOLE = drawings.DRAWINGS["CartPole-v1"]


@pytest.fixture(scope="module")
def run(trained):
    return jaxpg.load(trained)


@struct.dataclass
class Size(environment.EnvParams):
    size: int = 5
    max_steps_in_episode: int = 20


class Square(environment.Environment):
    """Its parameter says how large a grid is observed."""

    default_params = Size()

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (params.size, params.size))

    def action_space(self, params):
        return spaces.Discrete(2)


def test_a_grid_is_as_large_as_its_parameters_say(monkeypatch):
    monkeypatch.setitem(gymnax.registration._registry, "Square-v0", Square)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Square-v0"])
    config = Config(env="Square-v0", env_params=EnvParams({"size": 8}))
    assert drawings.find(config).draw.keywords["shape"] == (8, 8)


def test_the_untrained_parameters_are_those_that_training_began_with(run):
    """Seed by seed as `jaxpg.init` makes them, and not the trained ones."""
    ours = render.initial_params(run.config, [9, 4])
    init = jax.jit(partial(jaxpg.init, run.config, algorithm=jaxpg.build(run.config)))
    for i, seed in enumerate([9, 4]):
        state = init(jaxpg.key(seed))
        jax.tree.map(
            lambda one, many: np.testing.assert_allclose(one, many[i], rtol=1e-6),
            state.params,
            ours,
        )
    trained = run.params(9)["policy"]["output"]["kernel"]
    assert not np.allclose(ours["policy"]["output"]["kernel"][0], trained)


def recorded(obs, drawing="CartPole-v1") -> render.Motion:
    """One seed's one episode with these observations [T + 1, D], a reward of 1 for each step."""
    steps = len(obs) - 1
    returns = np.arange(steps + 1.0)[:, None, None]
    record = Recorded(obs[:, None, None], returns, np.array([[steps]]), steps)
    return render._motion(drawings.DRAWINGS[drawing], record, 0, 0)


def test_a_fall_is_drawn_on_to_the_ground():
    """From 12.1° to the right and turning, the rod reaches 90° within the time that is shown."""
    obs = np.zeros((4, 4))
    obs[3] = [0.5, 1.0, 12.1 * np.pi / 180, 0.8]
    motion = recorded(obs)
    x, theta = motion.seen[:, 0], motion.seen[:, 2]
    assert len(x) == 4 + drawings.FALL
    assert motion.up.tolist() == [True] * 3 + [False] * (1 + drawings.FALL)
    assert theta[-1] == np.pi / 2
    assert (np.diff(theta[3:]) >= 0).all()
    # Speed falls by a tenth each step: it rolls on for 0.02 · (0.9 + 0.9² + …) < 0.18 m.
    assert 0.5 < x[-1] < 0.68
    assert motion.step.max() == motion.returns.max() == 3
    assert motion.ends.tolist() == [0] * 3 + [1] * (1 + drawings.FALL)


def test_an_episode_that_lasts_has_no_fall():
    motion = recorded(np.zeros((501, 4)))
    assert len(motion.seen) == 501
    assert motion.up.all()
    assert motion.ends.max() == 0


def test_another_end_is_shown_for_a_while():
    motion = recorded(np.zeros((9, 6)), "Acrobot-v1")
    assert motion.up.tolist() == [True] * 8 + [False] * (1 + 600 // 50)
    assert motion.step.tolist() == [*range(8), *[8] * 13]


def untrained(run):
    acting = render.Acting(run.config, "sampled", None)
    params = render.first_params(run, acting, [9])
    return render._again_and_again(acting, CARTPOLE, params, 9, 300, 0)


def test_untrained_episodes_follow_one_another(run):
    motion = untrained(run)
    assert len(motion.seen) == len(motion.up) == 300
    assert motion.ends[-1] >= 2
    assert (np.diff(motion.ends) >= 0).all()


def test_many_short_untrained_episodes_are_drawn_in_batches(run, monkeypatch):
    """The episodes are the same, however many are simulated at a time."""
    wanted = untrained(run)
    monkeypatch.setattr(render, "BATCH", 2)
    found = untrained(run)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def pixels(image, colour):
    return int((np.asarray(image.convert("RGB")) == colour).all(axis=-1).sum())


def test_a_standing_pole_is_blue_and_a_fallen_one_red():
    obs = np.zeros((4, 4))
    obs[3, 2] = 0.3
    motion = recorded(obs)
    up, down = (render._panel(CARTPOLE, "one", motion, at) for at in (0, 99))
    assert pixels(up, ACCENT) > 500
    assert pixels(up, FALLEN) == 0
    assert pixels(down, ACCENT) == 0
    assert pixels(down, FALLEN) > 500


@pytest.mark.parametrize("name", ["vpg", "ppo-mountain-car-continuous", "my_module:" + 60 * "f"])
def test_a_title_leaves_its_seed_and_the_numbers_readable(name):
    title, size = render._fitted(f"{name}, seed 4294967290", 290)
    assert render._width(title, size, bold=True) <= 290
    assert title.endswith(", seed 4294967290")
    assert (size == 15) == (name == "vpg")


def test_a_sheet_of_few_seeds_has_room_for_its_title():
    motion = render.Motion(np.zeros((1, 4)), np.ones(1, bool), *(np.zeros(1, int) for _ in "123"))
    frame = render._sheet_frame(CARTPOLE, "", [motion], 0, widest=600)
    assert frame.width == 600 + 2 * 16


def test_a_gif_keeps_its_frames_times_and_colours():
    obs = np.zeros((30, 4))
    obs[:, 0] = np.linspace(-1, 1, 30)
    motion = recorded(obs)
    frames = [render._panel(CARTPOLE, "one", motion, i) for i in range(0, 30, 2)]
    gif = Image.open(io.BytesIO(render.to_gif(render.Film(frames, 40))))
    assert gif.n_frames == 15
    assert gif.info["duration"] == 40
    assert gif.info["loop"] == 0
    gif.seek(14)
    error = np.abs(np.asarray(gif.convert("RGB"), int) - np.asarray(frames[14], int))
    assert error.mean() < 1.0
    assert pixels(gif, ACCENT) > 500


def test_a_flag_stands_where_the_goal_is():
    for name, given, goal in (
        ("MountainCar-v0", {}, 0.5),
        ("MountainCarContinuous-v0", {}, 0.45),
        ("MountainCar-v0", {"goal_position": 0.3}, 0.3),
        ("MountainCarContinuous-v0", {"goal_position": 0.2, "power": 0.002}, 0.2),
    ):
        config = Config(env=name, env_params=EnvParams(given))
        assert drawings.find(config).draw.keywords["goal"] == goal


def test_a_sheet_says_the_budget_whatever_the_first_seed_took(run, monkeypatch):
    """Seeds that diverge take less, and in episodes each takes its own."""
    monkeypatch.setattr(render, "TRAINED", 2)
    config = dataclasses.replace(run.config, collect="episodes", total_episodes=12)
    some = handmade.with_manifest(run, run.manifest._replace(config=config))
    (part,) = render._sheet_parts(some, CARTPOLE, [9], "greedy", False, None, 0)
    assert part.title == "1 seed, trained for 12 episodes each"


@pytest.mark.slow
def test_a_sheet_is_made_smaller_until_it_fits(run, monkeypatch):
    monkeypatch.setattr(render, "TRAINED", 24)
    monkeypatch.setattr(render, "UNTRAINED", 12)
    options = {"mode": "greedy", "before": True}
    film = render.sheet(run, run.seeds, **options)
    assert len(film.frames) == 12 + 6
    whole = render.small_sheet(run, run.seeds, **options)
    assert Image.open(io.BytesIO(whole)).n_frames == 18
    monkeypatch.setattr(render, "LARGEST_SHEET", len(whole) - 1)
    assert Image.open(io.BytesIO(render.small_sheet(run, run.seeds, **options))).n_frames == 12
    monkeypatch.setattr(render, "LARGEST_SHEET", 10)
    with pytest.raises(ConfigError, match="at most 10 bytes; 5 seeds need more"):
        render.small_sheet(run, run.seeds, **options)


def test_the_command_writes_a_picture(trained, tmp_path, capsys):
    out = tmp_path / "one.gif"
    main(["render", str(trained), "--seed", "9", "--before", "--greedy", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.size == (962, 270)
        assert image.n_frames > 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "3"], "has no seed 3; its seeds are 2,9,4,0,5"),
        (["--seed", "wrost"], "did you mean 'worst'"),
        (["--sheet", "6"], "--sheet must be in [1, 5]"),
        (["--out", "a.avi"], "--out must end in .gif or .mp4; got a.avi"),
        (["--episode-seed", "-1"], "--episode-seed must be an integer in [0, 2^32); got -1"),
    ],
)
def test_bad_options_get_one_sentence(trained, capsys, options, words):
    with pytest.raises(SystemExit) as exit_:
        main(["render", str(trained), *options])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def drawn(drawing, seen, *, up=True, small=False) -> np.ndarray:
    """A state in a box of 300 × 200 pixels, RGB [200, 300, 3]."""
    image = Image.new("RGB", (300, 200), drawings.PAPER)
    drawing.draw(image, (0, 0, 300, 200), seen, up=up, small=small)
    return np.asarray(image)


def places(picture, colour) -> np.ndarray:
    """Where a colour is: [n, 2] of row and column."""
    found = np.argwhere((picture == np.array(colour)).all(axis=-1))
    assert len(found)
    return found


def test_an_acrobat_hangs_bends_and_stands():
    acrobot = drawings.DRAWINGS["Acrobot-v1"]
    hanging = places(drawn(acrobot, np.array([1.0, 0, 1, 0, 0, 0])), ACCENT).mean(axis=0)
    assert hanging[0] > 130  # below the pivot, which is in the middle
    assert hanging[1] == pytest.approx(149.5, abs=1)
    standing = places(drawn(acrobot, np.array([-1.0, 0, 1, 0, 0, 0])), ACCENT).mean(axis=0)
    assert standing[0] == pytest.approx(199 - hanging[0], abs=2)
    # The first link to the right, and the second a right angle further: upwards.
    bent = places(drawn(acrobot, np.array([0.0, 1, 0, 1, 0, 0])), ACCENT).mean(axis=0)
    assert bent[0] < 90
    assert bent[1] > 180
    over = drawn(acrobot, np.array([-1.0, 0, 1, 0, 0, 0]), up=False)
    assert len(places(over, MUTED))


def test_a_pendulum_is_where_its_angle_says():
    pendulum = drawings.DRAWINGS["Pendulum-v1"]
    above = places(drawn(pendulum, np.array([1.0, 0.0, 0.0])), ACCENT).mean(axis=0)
    below = places(drawn(pendulum, np.array([-1.0, 0.0, 0.0])), ACCENT).mean(axis=0)
    assert above[0] < 90 < 110 < below[0]
    left = places(drawn(pendulum, np.array([0.0, 1.0, 0.0])), ACCENT).mean(axis=0)
    assert left[1] < 130  # as gymnasium draws it, counterclockwise


@pytest.mark.parametrize("name", ["MountainCar-v0", "MountainCarContinuous-v0"])
def test_a_car_is_in_the_valley_and_comes_to_the_flag(name):
    car = drawings.DRAWINGS[name]
    valley = places(drawn(car, np.array([-0.5236, 0.0])), ACCENT).mean(axis=0)
    hill = drawn(car, np.array([0.5, 0.0]))
    top, flag = places(hill, ACCENT).mean(axis=0), places(hill, CHANNELS[2]).mean(axis=0)
    assert valley[0] > 150
    assert top[0] < 80
    assert valley[1] < top[1] - 100
    assert abs(flag[1] - top[1]) < 30


def test_an_observation_that_is_a_grid_is_drawn_cell_by_cell():
    breakout = drawings.find(Config(env="Breakout-MinAtar"))
    obs = np.zeros((10, 10, 4))
    obs[9, 4, 0] = obs[3, 7, 1] = obs[0, :, 3] = 1.0
    picture = drawn(breakout, obs.reshape(-1))
    side = 18  # of a cell: 0.94 · 200 / 10, in the middle of 300 × 200
    for (row, column), colour in (
        ((9, 4), CHANNELS[0]),
        ((3, 7), CHANNELS[1]),
        ((0, 0), CHANNELS[3]),
        ((5, 5), drawings.PAPER),
    ):
        at = picture[10 + side * row + 9, 60 + side * column + 9]
        assert tuple(at) == colour, (row, column)
    # Two dimensions are one channel, and half of its largest value is half of its colour.
    catch = drawings.find(Config(env="Catch-bsuite"))
    obs = np.zeros((10, 5))
    obs[0, 0], obs[9, 4] = 4.0, 2.0
    picture = drawn(catch, obs.reshape(-1))
    assert tuple(picture[10 + 9, 105 + 9]) == ACCENT
    half = np.round((np.array(drawings.PAPER) + ACCENT) / 2)
    assert (picture[10 + side * 9 + 9, 105 + side * 4 + 9] == half).all()


def test_a_maze_has_its_walls_the_goal_and_who_is_in_it():
    rooms = drawings.find(Config(env="FourRooms-misc"))
    picture = drawn(rooms, (np.array([4, 1]), np.array([8, 9])))
    side = 14  # 0.94 · 200 / 13
    corner = (200 - 13 * side) // 2, (300 - 13 * side) // 2
    for (row, column), colour in (((4, 1), ACCENT), ((8, 9), CHANNELS[2]), ((0, 0), MUTED)):
        at = picture[corner[0] + side * row + 7, corner[1] + side * column + 7]
        assert tuple(at) == colour
    lake = drawn(drawings.find(Config(env="FrozenLake-misc")), np.array(4))  # row 1, column 0
    found = places(lake, ACCENT).mean(axis=0)
    assert found[0] == pytest.approx(75, abs=5)
    assert found[1] == pytest.approx(80, abs=5)


KINDS = ("MountainCarContinuous-v0", "Catch-bsuite", "MetaMaze-misc")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_films_and_sheets(name):
    """An episode beside an untrained one, and all seeds at once; with the time limit at 12."""
    config = dataclasses.replace(
        Config(num_envs=2, num_steps=16, total_steps=32, hidden_sizes=(4,)),
        env=name,
        max_episode_steps=12,
    )
    run = handmade.in_memory(config, render.initial_params(config, [3, 1]), [3, 1])
    film = render.one(run, 3, mode="sampled", before=True)
    assert {frame.size for frame in film.frames} == {(962, 270)}
    assert 5 < len(film.frames) <= 13 + 600 // (film.milliseconds)
    gif = Image.open(io.BytesIO(render.to_gif(film)))
    assert gif.info["duration"] == film.milliseconds
    error = np.abs(np.asarray(gif.convert("RGB"), int) - np.asarray(film.frames[0], int))
    assert error.mean() < 0.5  # its colours are in the palette
    sheet = Image.open(io.BytesIO(render.small_sheet(run, [3, 1], mode="sampled", before=False)))
    assert sheet.n_frames > 2


def test_a_long_episode_is_shown_in_so_many_frames(run, monkeypatch):
    monkeypatch.setattr(render, "LONGEST", 4)
    film = render.one(run, 9, mode="sampled", before=False)
    assert len(film.frames) in (3, 4)


def test_what_cannot_be_drawn_is_told_what_can():
    drawings.find(Config(env="SpaceInvaders-MinAtar"))
    with pytest.raises(
        ConfigError, match=r"^MemoryChain-bsuite cannot be drawn; what can is Cart"
    ) as no:
        drawings.find(Config(env="MemoryChain-bsuite"))
    for name in (*drawings.DRAWINGS, *drawings.MAPS, "observes a grid", "observes [3]"):
        assert name in str(no.value)
    with pytest.raises(ConfigError, match=r"observes \[1, 1\]"):
        drawings.find(Config(env="SimpleBandit-bsuite"))


def test_an_mp4_without_ffmpeg_gets_a_sentence(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        main(["render", str(trained), "--out", str(tmp_path / "one.mp4")])
    assert exit_.value.code == 2
    assert "an mp4 needs ffmpeg" in capsys.readouterr().err
    assert not (tmp_path / "one.mp4").exists()


def test_what_ffmpeg_says_is_passed_on(tmp_path, monkeypatch):
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\ncat > /dev/null\necho no such codec >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match="ffmpeg failed: no such codec"):
        render.to_mp4(render.Film([Image.new("RGB", (4, 4))], 40))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_an_mp4_has_all_frames(tmp_path):
    frames = [Image.new("RGB", (33, 20), (i * 20, 0, 0)) for i in range(10)]
    path = tmp_path / "film.mp4"
    path.write_bytes(render.to_mp4(render.Film(frames, 40)))
    command = ["ffmpeg", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert len(done.stdout) == 10 * 34 * 20 * 3
