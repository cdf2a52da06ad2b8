"""Many seeds at once: the invariance contract, padding, reports and bad input."""

import dataclasses
import os
import subprocess
import sys
from itertools import pairwise

import jax
import numpy as np
import pytest

from jaxpg import noise
from jaxpg.config import Config, ConfigError
from jaxpg.population import Progress, train_population
from jaxpg.training import train

TINY = Config(num_envs=3, num_steps=24, total_steps=72 * 7, hidden_sizes=(6,), value_steps=2)


@pytest.fixture(scope="module")
def neighbours():
    """Seed 5 among others, in the last of three groups of lanes."""
    return train_population(TINY, [2, 9, 4, 0, 5], lanes=2)


def test_a_seed_does_not_depend_on_its_neighbours(neighbours):
    """Alone, the other lane is padding; the result is the same to the bit."""
    alone = train_population(TINY, [5], lanes=2, segments=3)
    for together, single in zip(
        jax.tree.leaves((neighbours.params, neighbours.metrics, neighbours.final_return)),
        jax.tree.leaves((alone.params, alone.metrics, alone.final_return)),
        strict=True,
    ):
        np.testing.assert_array_equal(together[4], single[0])


def trained_on(devices: int) -> str:
    """Seeds 5, 4 and 9 among four, on so many host devices; every bit of them, in hexadecimal."""
    code = (
        "import numpy as np, jax; from tests.test_population import TINY, train_population\n"
        f"assert jax.device_count() == {devices}\n"
        "population = train_population(TINY, [7, 5, 4, 9], lanes=2)\n"
        "leaves = jax.tree.leaves((population.params, population.metrics))\n"
        "print(np.concatenate([leaf[1:4].ravel() for leaf in leaves]).tobytes().hex())"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_seed_does_not_depend_on_how_many_devices_there_are_beyond_one():
    """One device alone runs a program of its own, whose last bits differ."""
    assert trained_on(2) == trained_on(3)


def test_it_agrees_with_train(neighbours):
    """Another compiled program: equal up to float32 rounding, over a few updates."""
    short = dataclasses.replace(TINY, lr_schedule="constant", total_steps=72 * 2)
    population = train_population(short, [5, 6], lanes=2)
    state, metrics = jax.jit(lambda key: train(short, key))(noise.key(5))
    for ours, theirs in zip(
        jax.tree.leaves(population.params), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(population.metrics.episodes[0], metrics.episodes)


def test_shapes_and_bookkeeping(neighbours):
    assert neighbours.seeds.tolist() == [2, 9, 4, 0, 5]
    assert neighbours.metrics.env_steps.shape == (5, 7)
    assert (neighbours.metrics.env_steps == 72).all()
    assert neighbours.params["policy"]["hidden_0"]["kernel"].shape == (5, 4, 6)
    assert neighbours.finite.all()
    # Fewer than 100 episodes end in 7 updates, so final_return is the mean over all of them.
    episodes = neighbours.metrics.episodes.sum(axis=1)
    assert (episodes < 100).all()
    np.testing.assert_allclose(
        neighbours.final_return, neighbours.metrics.return_sum.sum(axis=1) / episodes, rtol=1e-5
    )


def test_a_diverged_seed_is_marked():
    """An absurd learning rate drives ReLU networks to infinity within a few updates."""
    reckless = dataclasses.replace(
        TINY, optimizer="sgd", learning_rate=1e30, value_learning_rate=1e30, max_grad_norm=None
    )
    assert not train_population(reckless, [1, 2], lanes=2).finite.any()


def test_progress_is_reported_to_the_end():
    reports: list[Progress] = []
    short = dataclasses.replace(TINY, total_steps=72 * 5)
    train_population(short, [1, 2, 3], lanes=2, segments=2, report=reports.append)
    assert reports[-1].fraction == 1.0
    assert reports[-1].env_steps == 3 * 5 * 72
    assert all(a.fraction < b.fraction for a, b in pairwise(reports))
    assert len(reports[-1].recent_return) == 3


@pytest.mark.parametrize(
    ("seeds", "lanes", "words"),
    [
        ([], None, "at least one"),
        ([1, 1], None, "different"),
        ([-1], None, "2^32"),
        ([True], None, "2^32"),
        ([1], 1, "lanes must be at least 2"),
    ],
)
def test_bad_input_is_refused(seeds, lanes, words):
    with pytest.raises(ConfigError, match=words.replace("^", r"\^")):
        train_population(TINY, seeds, lanes=lanes)
