"""Moving pictures: what they show, that they are GIFs, and what cannot be drawn."""

import dataclasses
import io
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

import jaxpg
from jaxpg.cli.main import main
from jaxpg.core.config import ConfigError
from jaxpg.policies import render


@pytest.fixture(scope="module")
def run(trained):
    return jaxpg.load(trained)


def test_the_untrained_parameters_are_those_that_training_began_with(run):
    """Seed by seed as `jaxpg.init` makes them, and not the trained ones."""
    ours = render.initial_params(run.config, [9, 4])
    algorithm = jaxpg.build(run.config)
    for i, seed in enumerate([9, 4]):
        state = jaxpg.init(run.config, jaxpg.key(seed), algorithm)
        jax.tree.map(
            lambda one, many: np.testing.assert_allclose(one, many[i], rtol=1e-6),
            state.params,
            ours,
        )
    trained = run.params(9)["policy"]["output"]["kernel"]
    assert not np.allclose(ours["policy"]["output"]["kernel"][0], trained)


def test_a_fall_is_drawn_on_to_the_ground():
    """From 12.1° to the right and turning, the rod reaches 90° within the time that is shown."""
    obs = np.zeros((4, 4))
    obs[3] = [0.5, 1.0, 12.1 * np.pi / 180, 0.8]
    motion = render._motion(obs, 3)
    assert len(motion.x) == 4 + render.FALL
    assert motion.up.tolist() == [True] * 3 + [False] * (1 + render.FALL)
    assert motion.theta[-1] == np.pi / 2
    assert (np.diff(motion.theta[3:]) >= 0).all()
    # Speed falls by a tenth each step: it rolls on for 0.02 · (0.9 + 0.9² + …) < 0.18 m.
    assert 0.5 < motion.x[-1] < 0.68
    assert motion.step.max() == 3
    assert motion.falls.tolist() == [0] * 3 + [1] * (1 + render.FALL)


def test_an_episode_that_lasts_has_no_fall():
    motion = render._motion(np.zeros((501, 4)), 500)
    assert len(motion.x) == 501
    assert motion.up.all()
    assert motion.falls.max() == 0


def test_untrained_episodes_follow_one_another(run):
    motion = render._again_and_again(run.config, 9, 300, "sampled", 0)
    assert len(motion.x) == 300
    assert motion.falls[-1] >= 2
    assert (np.diff(motion.falls) >= 0).all()


def pixels(image, colour):
    return int((np.asarray(image.convert("RGB")) == colour).all(axis=-1).sum())


def test_a_standing_pole_is_blue_and_a_fallen_one_red():
    obs = np.zeros((4, 4))
    obs[3, 2] = 0.3
    motion = render._motion(obs, 3)
    up, down = render._panel("one", motion, 0), render._panel("one", motion, len(motion.x) - 1)
    assert pixels(up, render.ACCENT) > 500
    assert pixels(up, render.FALLEN) == 0
    assert pixels(down, render.ACCENT) == 0
    assert pixels(down, render.FALLEN) > 500


def test_a_gif_keeps_its_frames_times_and_colours():
    obs = np.zeros((30, 4))
    obs[:, 0] = np.linspace(-1, 1, 30)
    motion = render._motion(obs, 29)
    frames = [render._panel("one", motion, i) for i in range(0, 30, 2)]
    gif = Image.open(io.BytesIO(render.to_gif(frames)))
    assert gif.n_frames == 15
    assert gif.info["duration"] == 40
    assert gif.info["loop"] == 0
    gif.seek(14)
    error = np.abs(np.asarray(gif.convert("RGB"), int) - np.asarray(frames[14], int))
    assert error.mean() < 1.0
    assert pixels(gif, render.ACCENT) > 500


@pytest.mark.slow
def test_a_sheet_is_made_smaller_until_it_fits(run, monkeypatch):
    monkeypatch.setattr(render, "TRAINED", 24)
    monkeypatch.setattr(render, "UNTRAINED", 12)
    options = {"mode": "greedy", "before": True}
    frames = render.sheet(run, run.seeds, **options)
    assert len(frames) == 12 + 6
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


def test_other_environments_are_named(run):
    with pytest.raises(ConfigError, match="only CartPole-v1 can be rendered; this run is of Acro"):
        render.check(dataclasses.replace(run.config, env="Acrobot-v1"))


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
        render.to_mp4([Image.new("RGB", (4, 4))])


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_an_mp4_has_all_frames(tmp_path):
    frames = [Image.new("RGB", (33, 20), (i * 20, 0, 0)) for i in range(10)]
    path = tmp_path / "film.mp4"
    path.write_bytes(render.to_mp4(frames))
    command = ["ffmpeg", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert len(done.stdout) == 10 * 34 * 20 * 3
