"""What a run leaves behind, and what it says when something is missing."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load
from safetensors.torch import load_file

from jaxpg.analysis.curves import curve_points
from jaxpg.core.config import Config
from jaxpg.core.types import Metrics
from jaxpg.files import safetensors
from jaxpg.names import to_torch
from jaxpg.population.chunks import metric_names
from jaxpg.population.population import Population
from jaxpg.runs import manifests, results

pytestmark = pytest.mark.usefixtures("programs_kept")

CONFIG = Config(num_envs=2, num_steps=10, total_steps=20 * 6)
WHAT = manifests.Manifest("vpg", CONFIG, ("3,1,7",), 16, 1, ({},), {"device": {"platform": "cpu"}})


def population(final_return, frozen_at=None) -> Population:
    """Three seeds and six updates, in each of which 20 episodes end with return 30 + update."""
    shape = (len(final_return), 6)
    fields = {name: np.zeros(shape, np.float32) for name in metric_names(CONFIG)}
    fields["episodes"] = np.full(shape, 20, np.int32)
    fields["return_sum"] = np.broadcast_to(20.0 * (30 + np.arange(6)), shape).copy()
    fields["env_steps"] = np.full(shape, 20, np.int32)
    layer = {"kernel": np.zeros((shape[0], 4, 2), np.float32), "bias": np.zeros((shape[0], 2))}
    return Population(
        seeds=np.array([3, 1, 7, *range(100, 120)][: shape[0]], np.uint32),
        setting=np.zeros(shape[0], np.int32),
        params={"policy": {"output": layer}},
        metrics=Metrics(**fields),
        final_return=np.array(final_return, np.float32),
        frozen_at=np.array([-1] * shape[0] if frozen_at is None else frozen_at),
        cause=np.array([0] * shape[0] if frozen_at is None else np.array(frozen_at) >= 0, np.int32),
        lanes=16,
        compile_seconds=1.0,
        wall_seconds=2.0,
    )


def save(directory, some):
    """In a run's directory."""
    manifests.write(directory, WHAT)
    return results.save(directory, WHAT, some)


def test_summary_numbers():
    summary = results.summarize(WHAT, population([480.0, 470.0, 500.0]))
    assert summary["seeds"] == 3
    assert summary["total_env_steps"] == 3 * 6 * 20
    assert summary["env_steps_per_second"] == 180
    assert summary["solved_fraction"] == pytest.approx(2 / 3)
    assert summary["final_return"]["median"] == 480.0
    assert summary["config"]["gamma"] == 0.99
    json.dumps(summary, allow_nan=False)


def test_a_seed_without_an_episode_is_named_and_has_not_solved():
    some = population([500.0, np.nan, 500.0])
    some.metrics.episodes[1] = 0
    summary = results.summarize(WHAT, some)
    assert summary["seeds_without_episode"] == [{"seed": 1, "setting": 0}]
    assert summary["solved_fraction"] == pytest.approx(2 / 3)
    assert summary["final_return"]["min"] == 30.0  # it counts as untrained


def test_a_diverged_seed_is_named_and_has_not_solved():
    diverged = population([500.0, 500.0, 500.0], frozen_at=[-1, -1, 4])
    summary = results.summarize(WHAT, diverged)
    assert summary["diverged"] == [{"seed": 7, "setting": 0, "update": 4, "cause": "policy_loss"}]
    assert summary["solved_fraction"] == pytest.approx(2 / 3)


def test_a_run_that_learnt_nothing_says_so_last(tmp_path):
    """Updates with returns 30 to 35 have; the same ones turned round have not."""
    learnt, lost = population([1.0, 1.0]), population([1.0, 1.0])
    lost.metrics.return_sum[:] = lost.metrics.return_sum[:, ::-1].copy()
    for some, shown in ((learnt, True), (lost, False)):
        summary = results.summarize(WHAT, some)
        assert summary["learning"]["shown"] == shown
        assert (summary["learning"]["warning"] is None) == shown
        assert summary["settings"][0]["learning"] == summary["learning"]
        last = results.closing(summary, tmp_path).splitlines()[-1]
        assert last.startswith("Nothing shows that it has learnt: ") != shown
    json.dumps(summary, allow_nan=False)


def test_the_last_lines_say_small_returns_and_round_once():
    said = results.closing(results.summarize(WHAT, population([0.5, 0.75, 0.25])), "out")
    assert "IQM 0.5 (95 % interval 0.25 to 0.75), worst seed 0.25, best 0.75" in said
    summary = results.summarize(WHAT, population([-164.35] * 8))
    assert summary["final_return"]["iqm"] == float(np.float32(-164.35))
    assert f"IQM {float(np.float32(-164.35)):.1f} (" in results.closing(summary, "out")


def test_one_seed_has_no_interval():
    summary = results.summarize(WHAT, population([0.5]))
    assert "IQM 0.5, worst seed 0.5, best 0.5" in results.closing(summary, "out")
    found = summary["final_return"]
    assert (found["iqm"], found["ci95_low"], found["ci95_high"]) == (0.5, None, None)
    both = population([0.5, 0.75])._replace(setting=np.int32([0, 1]))  # and of two settings
    two = WHAT._replace(settings=({"gamma": 0.9}, {"gamma": 0.99}))
    assert results.summarize(two, both)["final_return"]["ci95_low"] is None


def test_settings_are_resampled_each_on_its_own():
    """Eight seeds of about 100, and of about 400: the middle of both is known to a few."""
    some = population([*np.linspace(96, 104, 8), *np.linspace(396, 404, 8)])
    some = some._replace(setting=np.repeat(np.int32([0, 1]), 8))
    two = WHAT._replace(settings=({"gamma": 0.9}, {"gamma": 0.99}))
    found = results.summarize(two, some)["final_return"]
    assert found["iqm"] == pytest.approx(250)
    assert 245 < found["ci95_low"] < 250 < found["ci95_high"] < 255
    summary = results.summarize(two, some)
    assert "gamma" not in summary["config"]  # of which no value is that of all
    said = results.closing(summary, "out")
    assert "an interval is too narrow: those of the IQM cover the truth in about nine" in said
    assert "100 episodes, all settings together: IQM 250.0" in said


def test_seeds_that_all_failed_have_no_interval():
    """Their scores are the floor, which no other seeds would change."""
    gone = results.summarize(WHAT, population([500.0, 490.0, 480.0], frozen_at=[2, 3, 4]))
    assert (gone["final_return"]["iqm"], gone["final_return"]["ci95_low"]) == (30.0, None)
    assert gone["solved_fraction"] == 0.0
    assert "IQM 30.0, worst" in results.closing(gone, "out")


def test_who_solves_is_not_known_before_100_episodes():
    few = population([500.0, 490.0, 480.0])
    few.metrics.episodes[:] = 16
    summary = results.summarize(WHAT, few)
    assert (summary["solved_at"], summary["solved_fraction"]) == (475.0, None)
    said = "solved (>= 475): not known, for no seed has ended 100 episodes"
    assert said in results.closing(summary, "out")


def test_no_episode_at_all_is_null_not_nan():
    some = population([np.nan, np.nan])
    some.metrics.episodes[:] = 0
    summary = results.summarize(WHAT, some)
    assert summary["final_return"] is None
    json.dumps(summary, allow_nan=False)


def test_curve_averages_over_episodes_and_carries_on():
    """Updates in which no episode ended keep the last value; before the first it is NaN."""
    some = population([1.0, 1.0])
    some.metrics.episodes[0, 0] = some.metrics.return_sum[0, 0] = 0
    some.metrics.episodes[1, 3] = some.metrics.return_sum[1, 3] = 0
    amount, returns = curve_points(CONFIG, some)
    assert amount.tolist() == [20, 40, 60, 80, 100, 120]
    np.testing.assert_array_equal(returns, [[np.nan, 31, 32, 33, 34, 35], [30, 31, 32, 32, 34, 35]])


@pytest.mark.parametrize("silent", [1, 2])
def test_seeds_that_never_finish_an_episode_do_not_cost_the_others_their_results(tmp_path, silent):
    some = population([1.0, 1.0])
    some.metrics.episodes[:silent] = 0
    some.metrics.return_sum[:silent] = 0
    some.final_return[:silent] = np.nan
    summary = save(tmp_path, some)
    named = [{"seed": 3, "setting": 0}, {"seed": 1, "setting": 0}]
    assert summary["seeds_without_episode"] == named[:silent]
    assert {path.name for path in tmp_path.iterdir()} == {manifests.NAME, *results.FILES}


def test_files_are_complete_and_load_without_pickle(tmp_path):
    saved = population([480.0, np.nan, 500.0])
    save(tmp_path, saved)
    assert {path.name for path in tmp_path.iterdir()} == {manifests.NAME, *results.FILES}
    arrays = np.load(tmp_path / "results.npz", allow_pickle=False)
    own = {"seed", "setting", "final_return", "frozen_at", "cause"}
    assert set(arrays) == {*own, *metric_names(CONFIG)}
    np.testing.assert_array_equal(arrays["seed"], [3, 1, 7])
    weights = load_file(tmp_path / "params.safetensors")
    assert {name: tuple(x.shape) for name, x in weights.items()} == {
        "policy.output.weight": (3, 2, 4),
        "policy.output.bias": (3, 2),
    }


def test_equal_runs_are_equal_bytes(tmp_path):
    written = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        save(tmp_path / name, population([480.0, np.nan, 500.0]))
        written.add(tuple((tmp_path / name / file).read_bytes() for file in results.FILES))
    assert len(written) == 1


def test_the_bytes_of_safetensors_are_always_the_same(tmp_path):
    """The library's own are in one of 24 orders here."""
    arrays = {"b": np.arange(3, dtype=np.float32), "a": np.ones((0, 2)), "é": np.array(7)}
    metadata = {"seeds": "[1]", "setting": "[0]", "quoted": '"\n', "ü": "ü"}
    written = {safetensors(arrays, metadata) for _ in range(20)}
    assert len(written) == 1
    (content,) = written
    loaded = load(content)
    assert loaded.keys() == arrays.keys()
    for name, x in arrays.items():
        assert loaded[name].dtype == x.dtype
        np.testing.assert_array_equal(loaded[name], x)
    (tmp_path / "file").write_bytes(content)
    with safe_open(tmp_path / "file", framework="np") as file:
        assert file.metadata() == metadata


def test_names_are_those_of_the_twin():
    """A parameter of seed s loads into torch_ref's own network."""
    import torch_ref
    from torch_ref.networks import make
    from torch_ref.types import EnvSpec

    spec = EnvSpec(3, 2, False, 200, 1, 2)
    networks = make(torch_ref.Config(env="Pendulum-v1"), spec)
    module = networks.init(torch_ref.key(0), torch_ref.key(1))
    from jaxpg.core.networks import make as make_jax
    from jaxpg.core.noise import key

    params = jax.jit(make_jax(Config(env="Pendulum-v1"), spec).init)(key(0), key(1))
    named = {name: torch.from_numpy(x.copy()) for name, x in to_torch(params).items()}
    assert named.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, named[name]), name
