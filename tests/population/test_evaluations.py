"""Evaluations while training: when, of what, and that nobody else notices."""

import dataclasses
import json

import handmade
import jax
import numpy as np
import pytest

import jaxpg
from jaxpg.analysis import measures
from jaxpg.analysis.outcomes import evaluated
from jaxpg.core import algorithms, noise
from jaxpg.core.config import Config, ConfigError
from jaxpg.policies.evaluate import player_of
from jaxpg.population import evaluations
from jaxpg.population.evaluations import MODES, Evaluations
from jaxpg.runs import results
from jaxpg.runs.manifests import Manifest, Origin

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = Config(
    num_envs=3, num_steps=24, total_steps=72 * 7, hidden_sizes=(6,), lr_schedule="constant"
)
EVERY = 168  # after 168 / 72 = 2.3, 4.7 and 7 updates
SEEDS = [2, 9, 4, 0, 5]


def train(seeds=SEEDS, every=EVERY, lanes=2, config=TINY, **options):
    given = {"evaluate_every": every, "evaluate_episodes": 3, **options}
    return jaxpg.train_population(config, seeds, lanes=lanes, **given)


@pytest.fixture(scope="module")
def whole():
    return train()


def test_they_are_after_the_updates_that_so_much_pays_for(whole):
    assert evaluations.points(TINY, EVERY) == [0, 2, 4, 7]
    assert evaluations.points(TINY, 504) == [0, 7]
    assert evaluations.points(dataclasses.replace(TINY, total_steps=510), 255) == [0, 3, 7]
    assert whole.evaluations.update.tolist() == [0, 2, 4, 7]
    episodes = jaxpg.preset("reinforce")  # 4,000 episodes, 16 in an update
    assert evaluations.points(episodes, 1000) == [0, 62, 125, 187, 250]


def test_they_interrupt_a_segment():
    seen = train([2, 9], segments=1).evaluations
    assert seen.update.tolist() == [0, 2, 4, 7]
    assert seen.greedy.shape == seen.sampled.shape == (2, 4)


@pytest.mark.parametrize(
    ("every", "episodes", "words"),
    [
        (0, 3, r"evaluate_every must be an integer in \[1, 504\]; got 0"),
        (1000, 3, r"evaluate_every must be an integer in \[1, 504\]; got 1000"),
        (True, 3, "evaluate_every must be an integer"),
        (168.0, 3, "evaluate_every must be an integer"),
        (71, 3, "at least what an update takes, 72 environment steps; got 71"),
        (
            100,
            3,
            "must divide total_steps, 504, so that the last evaluation is of the end; got 100",
        ),
        (168, 0, r"evaluate_episodes must be an integer in \[1, 100,000\]; got 0"),
    ],
)
def test_what_means_nothing_is_refused(every, episodes, words):
    with pytest.raises(ConfigError, match=words):
        jaxpg.train_population(TINY, [1], evaluate_every=every, evaluate_episodes=episodes)
    with pytest.raises(ConfigError, match=words):
        jaxpg.train_grid(
            TINY, [1], {"gamma": [0.9]}, evaluate_every=every, evaluate_episodes=episodes
        )


def test_episodes_alone_are_refused_and_numbers_of_numpy_are_not():
    with pytest.raises(ConfigError, match="evaluate_episodes needs evaluate_every; got 3 alone"):
        jaxpg.train_population(TINY, [1], evaluate_episodes=3)
    asked = evaluations.asked(TINY, np.int64(EVERY), np.uint8(3))
    assert asked == (EVERY, 3)
    assert {type(number) for number in asked} == {int}


@pytest.mark.as_users_run(1)
def test_training_is_the_same_to_the_bit(whole):
    without = jaxpg.train_population(TINY, SEEDS, lanes=2)
    ours, theirs = ((x.params, x.metrics, x.final_return) for x in (whole, without))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert without.evaluations is None


@pytest.mark.as_users_run(1)
def test_an_evaluation_depends_on_its_seed_and_the_updates_alone(whole):
    """Not on its neighbours, nor on how often there is one."""
    alone = train([5, 4], every=72).evaluations
    for mode in MODES:
        found = getattr(whole.evaluations, mode)
        np.testing.assert_array_equal(getattr(alone, mode)[:, [0, 2, 4, 7]], found[[4, 2]])
        assert len(np.unique(found)) > 4  # seeds and times differ


@pytest.mark.as_users_run(1)
def test_they_are_the_episodes_of_jaxpg_evaluate_with_other_keys(whole):
    """Of a key for each: the seed's, the updates done, the episode's index."""
    algorithm, fold = algorithms.build(TINY), jax.vmap(noise.fold_in, (None, 0))
    keys = [fold(noise.fold_in(key, 7), np.arange(3)) for key in noise.keys(SEEDS, "validation")]
    for mode in MODES:
        found, _ = player_of(algorithm, mode)(whole.params, jax.numpy.stack(keys), TINY.env_params)
        mean = np.asarray(found).mean(axis=1, dtype=np.float64)
        np.testing.assert_array_equal(getattr(whole.evaluations, mode)[:, -1], mean.astype("f4"))


def test_settings_are_evaluated_as_what_they_train():
    """A pole that may not lean has fallen as it begins, without a reward; the other's has not."""
    settings = [{"env.theta_threshold_radians": angle} for angle in (1e-9, 0.2)]
    config = dataclasses.replace(TINY, env_params={"theta_threshold_radians": 0.2})
    found = train([3, 1], every=504, config=config, settings=settings).evaluations
    for returns in (found.greedy, found.sampled):
        assert (returns[:2] == 0).all()
        assert (returns[2:] >= 8).all()


def test_who_has_diverged_counts_as_before_training():
    """With the mean of all then, or the lowest at the end if that is lower."""
    population = handmade.population(
        Config(num_envs=2, num_steps=10, total_steps=80, hidden_sizes=(3,)),
        np.full((3, 4), 50.0),
        frozen_at={1: 2},
    )
    greedy = np.array([[10, 40, 50, 60], [20, 70, 80, 90], [30, 40, 5, 73]], np.float32)
    sampled = np.array([[10, 4, 3, 6], [20, 7, 8, 9], [30, np.nan, 5, 7]], np.float32)
    seen = Evaluations(np.array([0, 2, 3, 4], np.int32), greedy, sampled)
    found = evaluated(population._replace(evaluations=seen))
    # Frozen before the update of index 2, it has done two: what is seen after them is its own.
    assert found.greedy.tolist() == [[10, 40, 50, 60], [20, 70, 20, 20], [30, 40, 5, 73]]
    assert found.sampled.tolist() == [[10, 4, 3, 6], [20, 7, 6, 6], [30, 6, 5, 7]]
    config = Config(num_envs=2, num_steps=10, total_steps=80)
    summary = results.evaluations(config, population._replace(evaluations=seen))
    assert summary["greedy"]["best"]["at"] == 80
    assert summary["greedy"]["last"]["min"] == 20
    assert summary["sampled"]["best"]["at"] == 0
    assert summary["sampled"]["best"]["iqm"] == 20
    origin = Origin("runs/first", "", "", env=config.env, untrained=9.0)
    what = Manifest("vpg", config, ("3",), 2, 1, ({},), {}, start=origin)
    further = evaluated(population._replace(evaluations=seen, manifest=what))
    assert further.greedy[1].tolist() == [20, 70, 9, 9]  # not 20: that was trained before
    nothing = seen._replace(greedy=np.full((3, 4), np.nan, np.float32))
    assert results.evaluations(config, population._replace(evaluations=nothing)) is None


def test_where_all_have_diverged_an_evaluation_has_no_interval():
    """They count with one number, which none of them has returned; before, they had their own."""
    config = Config(num_envs=2, num_steps=10, total_steps=40, hidden_sizes=(3,))
    gone = handmade.population(config, np.full((9, 2), 50.0), frozen_at=dict.fromkeys(range(9), 1))
    returns = np.arange(18, dtype=np.float32).reshape(9, 2)
    seen = Evaluations(np.array([0, 2], np.int32), returns, -returns)
    gone = gone._replace(evaluations=seen)
    some = gone._replace(frozen_at=np.where(np.arange(9) < 8, 1, -1).astype(np.int32))
    for population, known in ((gone, False), (some, True)):
        assert np.isfinite(measures.last_evaluation(population)["greedy"].low) == known
        told = results.evaluations(config, population)["greedy"]
        assert (told["last"]["ci95_low"] is not None) == known
    assert results.evaluations(config, gone)["sampled"]["best"]["ci95_low"] is not None


def test_progress_tells_the_newest_of_every_row_begun():
    """In the order in which the chunks have begun."""
    told = []
    found = train(report=told.append).evaluations
    newest = zip(found.greedy[:, -1].tolist(), found.sampled[:, -1].tolist(), strict=True)
    assert sorted(map(tuple, told[-1].evaluations.tolist())) == sorted(newest)
    assert [len(at.evaluations) for at in told] == [len(at.recent_return) for at in told]


def test_no_number_is_lost_on_the_way_to_the_disk(whole, tmp_path):
    whole.save(tmp_path / "run")
    loaded = jaxpg.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, loaded.population.evaluations, whole.evaluations)
    said = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluations"]
    assert said["greedy"]["last"]["at"] == 504
    assert said == loaded.population.summary["evaluations"]
    assert said["sampled"]["best"]["iqm"] >= said["sampled"]["last"]["iqm"]
    with np.load(tmp_path / "run" / "results.npz") as arrays:
        assert arrays["evaluated_at"].tolist() == [0, 2, 4, 7]
        assert arrays["greedy_return"].shape == arrays["sampled_return"].shape == (5, 4)
