"""Runs that see images and stacked observations, from the command line to another runtime."""

import json
import shutil

import handmade
import numpy as np
import pytest

import jaxpg
from jaxpg.cli.main import main
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.env import make
from jaxpg.core.presets import PRESETS
from jaxpg.core.wrappers import newest
from jaxpg.errors import RunError
from jaxpg.policies import evaluate, render
from jaxpg.policies.evaluate import recorder
from jaxpg.runs import sweep
from jaxpg.runs.manifests import parse_config
from tests.runs.test_loading import change_params

SIZES = ["--num-envs", "2", "--num-steps", "24", "--total-steps", "96", "--seeds", "2"]
SEEN = ["--conv-features", "3", "2", "--hidden-sizes", "5", "--frame-stack", "2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    out = tmp_path_factory.mktemp("images") / "run"
    line = ["train", "vpg", "--env", "Catch-bsuite", "--normalize-obs", "--lanes", "2"]
    main([*line, *SEEN, *SIZES, "--out", str(out), "--no-report"])
    return out


def test_its_parameters_are_loaded_and_act(images):
    run = jaxpg.load(images)
    assert (run.config.conv_features, run.config.frame_stack) == ((3, 2), 2)
    kernels = {name: run.params(1)["policy"][name]["kernel"].shape for name in ("conv_0", "conv_1")}
    assert kernels == {"conv_0": (3, 3, 2, 3), "conv_1": (3, 3, 3, 2)}
    assert run.params(1)["obs"]["mean"].shape == (100,)
    assert run.policy(1).act(np.zeros((7, 2, 10, 5))).shape == (7,)


def test_a_kernel_of_another_size_is_refused(images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "copy")
    kernel = "policy.conv_1.weight"
    change_params(**{kernel: lambda weight: weight[..., :2]})(copy)
    with pytest.raises(RunError, match=rf"'{kernel}' is .*3, 2\), .*3, 3, 3\)"):
        jaxpg.load(copy)


def test_it_is_evaluated_drawn_and_exported(images, tmp_path):
    import onnxruntime

    found, film, file = (tmp_path / name for name in ("found.json", "film.gif", "policy.onnx"))
    main(["evaluate", str(images), "--episodes", "3", "--json", str(found)])
    results = json.loads(found.read_text())["results"]
    assert all(-1.0 <= row["iqm"] <= 1.0 for row in results)
    assert {row["steps"] for row in results} == {2 * 3 * 9}  # a ball falls for nine steps
    main(["render", str(images), "--seed", "1", "--out", str(film)])
    assert film.stat().st_size > 0
    main(["export", str(images), "--seed", "1", "--to", "onnx", "--out", str(file)])
    frames = np.random.default_rng(0).integers(2, size=(50, 2, 10, 5)).astype(np.float32)
    rows = frames.transpose(0, 2, 3, 1).reshape(50, 100)
    (acted,) = onnxruntime.InferenceSession(file).run(["action"], {"observation": rows})
    np.testing.assert_array_equal(acted, jaxpg.load(images).policy(1).act(frames))


def test_gymnasiums_frames_are_in_the_order_of_training(monkeypatch):
    """The oldest first; before the first step all are the one that there is."""
    shown = []

    chooser = evaluate._chooser

    def showing(act, mode):
        choose = chooser(act, mode)

        def choose_what_is_shown(params, obs, keys, t):
            shown.append(np.array(obs))
            return choose(params, obs, keys, t)

        return choose_what_is_shown

    monkeypatch.setattr(evaluate, "_chooser", showing)
    config = Config(hidden_sizes=(2,), frame_stack=3, num_envs=2, num_steps=8, total_steps=16)
    run = handmade.in_memory(config, render.initial_params(config, [4]), [4])
    evaluate.in_gymnasium(run, [4], 2, "greedy")
    seen = np.stack(shown)  # [T, 1, 2, 3, 4]
    np.testing.assert_array_equal(seen[0], seen[0][:, :, :1].repeat(3, axis=2))
    assert len(seen) >= 8
    np.testing.assert_array_equal(seen[1:8, :, :, :2], seen[:7, :, :, 1:])
    assert (seen[1:8, :, :, 2] != seen[:7, :, :, 2]).any(axis=-1).all()


def test_what_is_drawn_is_the_last_observation():
    config = Config(env="Catch-bsuite", hidden_sizes=(2,), frame_stack=3)
    algorithm = jaxpg.build(config)
    params = algorithm.networks.init(*map(jaxpg.key, (0, 1)))
    stacked = {name: {k: {n: x[None] for n, x in layer.items()} for k, layer in group.items()}
               for name, group in params.items()}  # fmt: skip
    seen = recorder(config, "greedy", lambda state: state.obs, 4)(stacked, [0], [0]).seen
    assert seen.shape == (5, 1, 1, 50)
    rows = seen.reshape(5, 10, 5).any(axis=2).argmax(axis=1)  # the ball's, above the paddle's
    np.testing.assert_array_equal(rows, range(5))
    spec = algorithm.env.spec
    assert newest(np.zeros((2, spec.obs_size)), spec, 3).shape == (2, 50)


def test_features_are_swept(tmp_path):
    asked = ["conv_features=none,4,4x2", "frame_stack=1,2"]
    grid = sweep.parse_grid(asked)
    assert grid == {"conv_features": [(), (4,), (4, 2)], "frame_stack": [1, 2]}
    assert [sweep.written(x) for x in grid["conv_features"]] == ["none", "4", "4x2"]
    plan = sweep.plan("vpg", Config(env="Catch-bsuite"), grid, "2", 2)
    sweep.begin(tmp_path / "sweep", plan)
    assert sweep.read(tmp_path / "sweep") == plan
    assert "1-conv_features=none,frame_stack=1" in {p.name for p in (tmp_path / "sweep").iterdir()}


def test_a_run_from_before_there_were_any_saw_one_vector():
    fields = {name: list(x) if isinstance(x, tuple) else x
              for name, x in vars(PRESETS["ppo"]).items()}  # fmt: skip
    del fields["conv_features"], fields["frame_stack"]
    assert parse_config(fields) == PRESETS["ppo"]


def test_convolutions_of_a_vector_are_refused_before_anything_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "vpg", "--conv-features", "4", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "conv_features needs an environment that observes an image" in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="takes 2 off an image's height and width"):
        jaxpg.build(Config(env="Catch-bsuite", conv_features=(1, 1, 1)))
    assert make("Catch-bsuite").spec.image == (10, 5, 1)
