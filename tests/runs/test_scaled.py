"""A run with observations and rewards normalised, from the command line to another runtime."""

import dataclasses
import json

import numpy as np
import pytest

import jaxpg
from jaxpg.cli.main import main
from jaxpg.core.statistics import CLIP, EPSILON

LINE = ["train", "ppo", "--env", "Pendulum-v1", "--normalize-obs", "--normalize-reward"]
SIZES = ["--num-steps", "25", "--total-steps", "600", "--max-episode-steps", "50"]
SEEDS = ["--seeds", "2", "--lanes", "2", "--hidden-sizes", "8", "--epochs", "2"]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    out = tmp_path_factory.mktemp("scaled") / "run"
    main([*LINE, *SIZES, *SEEDS, "--out", str(out), "--no-report"])
    return out


def observations():
    """Of a pendulum: cosine, sine, and a speed of up to 8 radians a second."""
    angle, speed = np.random.default_rng(0).uniform(-1, 1, (2, 500)) * [[np.pi], [8.0]]
    return np.stack([np.cos(angle), np.sin(angle), speed], axis=-1).astype(np.float32)


def test_its_policies_see_what_they_are_given_normalised(scaled):
    policy = jaxpg.load(scaled).policy(1)
    moments = policy.params["obs"]
    assert moments["count"] == 600
    assert 0.2 < moments["var"][2] < 40.0
    plain = jaxpg.Policy.of(
        dataclasses.replace(policy.config, normalize_obs=False),
        {name: group for name, group in policy.params.items() if name != "obs"},
    )
    obs = observations()
    by_hand = (obs - moments["mean"]) / np.sqrt(moments["var"] + EPSILON)
    acted = policy.act(obs)
    np.testing.assert_allclose(acted, plain.act(np.clip(by_hand, -CLIP, CLIP)), atol=1e-5)
    assert np.abs(acted - plain.act(obs)).max() > 1e-3


def test_its_returns_are_the_environments_own(scaled, tmp_path):
    """A pendulum that is left alone costs 5 a step or so: 50 of them are far below any scaled."""
    main(["evaluate", str(scaled), "--episodes", "3", "--json", str(tmp_path / "found.json")])
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert {row["simulator"] for row in results} == {"gymnax", "gymnasium"}
    assert all(row["iqm"] < -50.0 for row in results)
    assert jaxpg.load(scaled).population.final_return.max() < -50.0


def test_it_is_drawn_and_exported(scaled, tmp_path):
    import onnxruntime

    film, file = tmp_path / "film.gif", tmp_path / "policy.onnx"
    main(["render", str(scaled), "--seed", "1", "--before", "--out", str(film)])
    main(["export", str(scaled), "--seed", "1", "--to", "onnx", "--out", str(file)])
    assert film.stat().st_size > 0
    session, obs = onnxruntime.InferenceSession(file), observations()
    (acted,) = session.run(["action"], {"observation": obs})
    np.testing.assert_allclose(acted, jaxpg.load(scaled).policy(1).act(obs), atol=1e-5)
