"""Many seeds at once: the invariance contract, padding, reports and bad input."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpg import fast
from jaxpg.core import learner, noise
from jaxpg.core.config import Config, ConfigError, EnvParams
from jaxpg.core.training import train
from jaxpg.core.types import Metrics
from jaxpg.fast import backend
from jaxpg.population import chunks, population
from jaxpg.population.progress import Progress
from jaxpg.population.settings import check_alike
from jaxpg.runs.python import train_grid, train_population

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = Config(  # mostly with 2 lanes, in segments of 3 updates or its own: two programs
    num_envs=3,
    num_steps=24,
    total_steps=72 * 7,
    hidden_sizes=(6,),
    value_steps=2,
    lr_schedule="constant",
    env_params={"gravity": 9.8},  # as it is; so that settings of it are rows of these programs
)
EPISODES = Config(
    collect="episodes",
    num_envs=2,
    total_episodes=8,
    hidden_sizes=(6,),
    value_target="td0",
    value_data="replay",
    buffer_size=64,
    batch_size=16,
    optimizer="sgd",
    learning_rate=1e-3,
)


@pytest.fixture(scope="module")
def neighbours():
    """Seed 5 among others, in the last of three groups of lanes."""
    return train_population(TINY, [2, 9, 4, 0, 5], lanes=2)


def rows(population, index):
    """Every leaf of the rows at these places."""
    whole = (population.params, population.metrics, population.final_return)
    return [leaf[index] for leaf in jax.tree.leaves(whole)]


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.as_users_run(1)
def test_a_seed_does_not_depend_on_its_neighbours(neighbours):
    """Alone, the other lane is padding; the result is the same to the bit."""
    alone = train_population(TINY, [5], lanes=2, segments=3)
    assert_equal(rows(neighbours, 4), rows(alone, 0))


@pytest.mark.as_users_run(1)
def test_a_seed_does_not_depend_on_jaxs_64_bit_mode(neighbours, x64, compiled_anew):
    """Which belongs to the process; a config says itself what it computes in."""
    again = train_population(TINY, [2, 9, 4, 0, 5], lanes=2)
    assert_equal(rows(neighbours, slice(None)), rows(again, slice(None)))


@pytest.mark.as_users_run(1)
def test_other_settings_of_jax_change_nothing_either(neighbours, compiled_anew):
    """Those with which people look for faults in programs of their own, all at once."""
    with (
        jax.disable_jit(),
        jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
        jax.check_tracer_leaks(),
        jax.debug_key_reuse(True),
        jax.debug_nans(True),
    ):
        again = train_population(TINY, [5], lanes=2)
    assert_equal(rows(neighbours, 4), rows(again, 0))


def test_float64_needs_no_64_bit_mode_of_the_process():
    config = dataclasses.replace(TINY, arithmetic="float64", total_steps=72)
    trained = train_population(config, [0], lanes=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained.params)} == {np.dtype("float64")}


def assert_position_is_nothing(config, others, positions, lanes):
    """Seed 5000 alone, and at each position among so many others."""
    alone = train_population(config, [5000], lanes=lanes)
    for position in positions:
        seeds = [*range(position), 5000, *range(position, others)]
        together = train_population(config, seeds, lanes=lanes, segments=3)
        assert_equal(rows(together, position), rows(alone, 0))


@pytest.mark.as_users_run(1)
@pytest.mark.thin(2)
@pytest.mark.parametrize("config", [TINY, EPISODES], ids=["steps", "episodes"])
def test_a_seed_does_not_depend_on_its_position(config):
    """Among 64 others, in the first lane of a group."""
    assert_position_is_nothing(config, 64, [64], lanes=2)


@pytest.mark.as_users_run(1)
@pytest.mark.slow
@pytest.mark.parametrize("config", [TINY, EPISODES], ids=["steps", "episodes"])
def test_nor_on_a_thousand_others(config):
    assert_position_is_nothing(config, 7, range(8), lanes=8)
    assert_position_is_nothing(config, 64, range(0, 65, 9), lanes=8)
    assert_position_is_nothing(config, 1000, [0, 517, 1000], lanes=8)


def bits_of_three() -> str:
    """Seeds 5, 4 and 9 among many; every bit of them, hashed."""
    population = train_population(TINY, [7, 5, 4, 9, *range(20, 44)], lanes=2)
    leaves = rows(population, slice(1, 4))
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


def bits_on(devices: int, spread: bool) -> str:
    """The same in a process with so many host devices.

    Spread: over all of them, as if they were accelerators; otherwise on the cores.
    """
    code = (
        "import jax\n"
        "from jaxpg.population import devices\n"
        "from tests.population.test_population import bits_of_three\n"
        f"assert jax.device_count() == {devices}\n"
        + ("devices.workers = jax.local_devices\n" if spread else "")
        + "print(bits_of_three())"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.as_users_run(1)
def test_a_seed_does_not_depend_on_how_many_devices_there_are():
    assert jax.device_count() == 1
    assert bits_of_three() == bits_on(2, True)


@pytest.mark.as_users_run(1)
@pytest.mark.slow
@pytest.mark.parametrize(("devices", "spread"), [(1, False), (2, False), (4, False), (4, True)])
def test_nor_on_four(devices, spread):
    assert bits_of_three() == bits_on(devices, spread)


def test_no_program_has_a_collective():
    """Chunks never wait for one another."""
    config, text = TINY, []
    groups = population.make_chunks(config, [1, 2, 3], [{}], 2)
    for program in chunks.compile_programs(groups[0], 3):
        text += [program.start.as_text(), program.advance.as_text()]
    instruction = r" (all-[a-z]+|collective-[a-z]+|reduce-scatter|partition-id)[-a-z]*\("
    assert not re.search(instruction, "".join(text))
    assert re.search(r" while\(", "".join(text))  # the expression would find one


@pytest.mark.as_users_run(1)
def test_a_frozen_seed_keeps_its_last_finite_state_and_the_others_do_not_notice(
    monkeypatch, programs_kept
):
    """A NaN in the reward of update 3 of seed 37 of 64, the second of two lanes."""
    seed, shorter = 37, dataclasses.replace(TINY, total_steps=72 * 3)
    clean = train_population(TINY, range(64), lanes=2)
    short = train_population(shorter, [seed], lanes=2, segments=1)
    original = learner.update

    def planted(config, state, algorithm):
        def collect(*arguments):
            env_state, trajectory = algorithm.collect(*arguments)
            hit = jnp.logical_and(state.update == 3, jnp.all(state.key == target))
            reward = jnp.where(hit, jnp.nan, trajectory.reward)
            return env_state, trajectory._replace(reward=reward)

        return original(config, state, algorithm._replace(collect=collect))

    target = noise.streams(noise.key(seed))[2]
    monkeypatch.setattr(learner, "update", planted)
    monkeypatch.setattr(chunks, "compile_programs", programs_kept)  # not as they were
    hurt = train_population(TINY, range(64), lanes=2)
    assert hurt.frozen_at.tolist() == [3 if i == seed else -1 for i in range(64)]
    assert chunks.CAUSES[hurt.cause[seed]] == "policy_loss"
    others = [i for i in range(64) if i != seed]
    assert_equal(rows(hurt, others), rows(clean, others))
    before = [leaf[seed, :3] for leaf in jax.tree.leaves(clean.metrics)]
    assert_equal([leaf[seed, :3] for leaf in jax.tree.leaves(hurt.metrics)], before)
    assert (hurt.metrics.env_steps[seed, 3:] == 0).all()
    assert np.isnan(hurt.metrics.policy_loss[seed, 3:]).all()
    assert_equal(
        [leaf[seed] for leaf in jax.tree.leaves(hurt.params)],
        [leaf[0] for leaf in jax.tree.leaves(short.params)],
    )


@pytest.mark.as_users_run(1)
def test_gravities_are_rows_of_one_program():
    """Each (gravity, seed) equals the run of that gravity alone."""
    settings = [{"env.gravity": 5}, {"env.gravity": 20.0, "gamma": 0.5}]
    swept = train_population(TINY, [4, 1], settings=settings, lanes=2)
    own = dataclasses.replace(TINY, env_params={"gravity": 20.0}, gamma=0.5)
    alone = train_population(own, [1], lanes=2)
    assert_equal(rows(swept, 3), rows(alone, 0))
    assert any((a != b).any() for a, b in zip(rows(swept, 1), rows(swept, 3), strict=True))


def test_settings_without_a_parameter_that_others_have_are_refused():
    settings = [{"env.gravity": 5.0}, {"gamma": 0.5}]
    config = dataclasses.replace(TINY, env_params={})
    with pytest.raises(ConfigError, match=r"setting 1 has no env.gravity, which others have"):
        train_population(config, [4], settings=settings, lanes=2)
    with pytest.raises(ConfigError, match="did you mean 'gravity'"):
        train_population(TINY, [4], settings=[{"env.gravty": 5.0}], lanes=2)


@pytest.mark.as_users_run(1)
def test_settings_are_rows_of_one_program():
    """Each (setting, seed) equals the run of that setting alone."""
    settings = [{"learning_rate": 1e-3}, {"gamma": 0.5, "gae_lambda": 0.0}, {}]
    swept = train_population(TINY, [4, 1], settings=settings, lanes=2)
    assert swept.seeds.tolist() == [4, 1] * 3
    assert swept.setting.tolist() == [0, 0, 1, 1, 2, 2]
    for i, setting in enumerate(settings):
        alone = train_population(dataclasses.replace(TINY, **setting), [1], lanes=2)
        assert_equal(rows(swept, 2 * i + 1), rows(alone, 0))


@pytest.mark.as_users_run(1)
@pytest.mark.slow
def test_a_grid_is_one_program_for_each_static_combination():
    grid = {"gamma": [0.9, 0.99], "hidden_sizes": [(6,), (5,)]}
    points = train_grid(TINY, [3, 1], grid, lanes=4)
    assert [point.config.hidden_sizes for point in points] == [(6,), (5,)]
    assert [point.settings for point in points] == [[{"gamma": 0.9}, {"gamma": 0.99}]] * 2
    alone = train_population(dataclasses.replace(TINY, gamma=0.9), [1], lanes=4)
    assert_equal(rows(points[0].population, 1), rows(alone, 0))
    assert points[1].population.params["policy"]["hidden_0"]["kernel"].shape == (4, 4, 5)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"gama": [1]}, "did you mean 'gamma'"),
        ({"gamma": []}, "at least one"),
        ({"gamma": np.zeros(0)}, "at least one"),
        ({"gamma": 0.9}, "must have a list of values"),
        ({"activation": "relu"}, "must have a list of values"),
        ({"gamma": np.array([0.9, 1.9])}, "gamma must be in"),
        ({"ent_coef": [jnp.float32(-1)]}, "ent_coef must be finite and at least 0"),
        ({"num_envs": [0]}, "num_envs must be"),
        ({"fit": ["npg", "trpo"], "learning_rate": [0.1, 0.2]}, "another fit than 'trpo'"),
        ({"clip_coef": [0.1, 0.2]}, "clip_coef needs fit='ppo': runs that differ in it alone"),
    ],
)
def test_a_bad_grid_is_refused(grid, words):
    with pytest.raises(ConfigError, match=words):
        train_grid(TINY, [1], grid)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "at least one"),
        ([{"gama": 0.9}], "did you mean 'gamma'"),
        ([{"num_envs": 3}], "cannot be a setting"),
        ([{"gamma": 1.5}], "gamma must be in"),
        ([{"max_grad_norm": None}], "two programs"),
        ([{"gamma": jnp.float32(1.9)}], "gamma must be in"),
        ([{"learning_rate": np.array(-0.1)}], "learning_rate must be finite and greater than 0"),
        ([{"gamma": jnp.array([0.5, 0.9])}], "gamma must be one number"),
        ([{"vf_coef": 0.5}, {"vf_coef": 1.0}], "vf_coef needs joint_loss .* are the same"),
        ([{}, {"vf_coef": np.array(1.0)}], "vf_coef needs joint_loss .* are the same"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        train_population(TINY, [1], settings=settings)


@pytest.mark.slow
def test_it_agrees_with_train(neighbours):
    """Another compiled program: equal up to float32 rounding, over a few updates."""
    short = dataclasses.replace(TINY, total_steps=72 * 2)
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
    assert (neighbours.frozen_at == -1).all()
    # Fewer than 100 episodes end in 7 updates, so final_return is the mean over all of them.
    episodes = neighbours.metrics.episodes.sum(axis=1)
    assert (episodes < 100).all()
    np.testing.assert_allclose(
        neighbours.final_return, neighbours.metrics.return_sum.sum(axis=1) / episodes, rtol=1e-5
    )


@pytest.mark.slow
def test_a_seed_whose_rewards_have_no_finite_scale_is_frozen():
    """Of 1e30 float32 has no square: rewards would be 0, and nothing would tell."""
    config = dataclasses.replace(TINY, normalize_reward=True)
    costly = train_population(config, [1, 2], lanes=2, build=partial(paid, 1e30))
    assert costly.frozen_at.tolist() == [0, 0]
    assert {chunks.CAUSES[cause] for cause in costly.cause} == {"params"}


def paid(factor, config):
    """The algorithm, whose environment pays so many times as much."""
    algorithm = fast.build(config)
    env = algorithm.env

    def step(key, state, action):
        state, reward, *ends = env.step(key, state, action)
        return state, factor * reward, *ends

    return algorithm._replace(env=env._replace(step=step))


def test_a_diverged_seed_is_marked():
    """An absurd learning rate drives ReLU networks to infinity within a few updates."""
    reckless = dataclasses.replace(
        TINY, optimizer="sgd", learning_rate=1e30, value_learning_rate=1e30, max_grad_norm=None
    )
    assert (train_population(reckless, [1, 2], lanes=2).frozen_at >= 0).all()


def test_progress_is_reported_to_the_end():
    reports: list[Progress] = []
    train_population(TINY, [1, 2, 3], lanes=2, segments=3, report=reports.append)
    assert reports[-1].fraction == 1.0
    assert reports[-1].env_steps == 3 * 7 * 72
    assert all(a.fraction < b.fraction for a, b in pairwise(reports))
    assert len(reports[-1].recent_return) == 3


def test_rows_that_are_reported_are_in_the_order_of_the_run():
    """Whichever chunk reports first."""
    reports: list[Progress] = []
    groups = population.make_chunks(TINY, [0, 1, 2, 3], [{}], 2)
    tally = population.Tally(groups, TINY.num_updates, reports.append)
    for chunk in (1, 0):
        metrics = Metrics(**{name: np.zeros((2, 1)) for name in chunks.metric_names(TINY)})
        tally.add(chunk, chunks.Snapshot(None, [metrics], np.full(2, float(chunk)), None))
    assert [at.recent_return.tolist() for at in reports] == [[1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]


def test_a_grid_is_refused_on_a_tpu_which_emulates_float64(monkeypatch):
    tpu = SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    monkeypatch.setattr(backend, "devices", lambda: [tpu])
    on_grid = dataclasses.replace(TINY, arithmetic="float24_grid")
    with pytest.raises(ConfigError, match="a TPU only emulates and cannot round: take float32"):
        train_population(on_grid, [0, 1], lanes=2)
    assert len(population.make_chunks(TINY, [0, 1], [{}], 2)) == 1


def test_products_of_anybody_are_as_exact_as_their_factors():
    """Where an environment or a network says nothing else; a GPU rounds the factors by itself."""
    with jax.default_matmul_precision("bfloat16"), chunks.own_jax(TINY):
        found = str(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 2))))
    assert "Precision.HIGHEST" in found


@pytest.mark.parametrize(
    ("seeds", "lanes", "words"),
    [
        ([], None, "at least one"),
        ([7, 1, 7], None, "seeds must be different; got 7 twice"),
        ([-1], None, "2^32"),
        ([True], None, "2^32"),
        (np.array([True]), None, "2^32"),
        ([1.0], None, "2^32"),
        (np.arange(3.0), None, "2^32"),
        (np.ones((2, 2), int), None, "2^32"),
        (3, None, "2^32"),
        (np.array(3), None, "2^32"),
        (jnp.arange(0), None, "at least one"),
        (np.array([2**32]), None, "2^32"),
        ([1], 1, "lanes must be in"),
    ],
)
def test_bad_input_is_refused(seeds, lanes, words):
    with pytest.raises(ConfigError, match=words.replace("^", r"\^")):
        train_population(TINY, seeds, lanes=lanes)


def test_settings_of_other_static_values_are_refused():
    """Each is a program of its own; what differs in a number alone is not."""

    def config(**params):
        static = frozenset({"ramping"})
        return dataclasses.replace(TINY, env_params=EnvParams({"ramping": True, **params}, static))

    check_alike([config(gravity=9.8), config(gravity=12.0)])
    with pytest.raises(ConfigError, match=r"env.ramping is static, .*; got True and False"):
        check_alike([config(), config(ramping=False)])


def test_numbers_may_be_arrays(neighbours):
    """Seeds, settings, a grid's values and a config's own, of numpy and of jax."""
    config = dataclasses.replace(TINY, gamma=jnp.float32(TINY.gamma), num_envs=np.int64(3))
    settings = [{"gae_lambda": np.float32(TINY.gae_lambda)}]
    for seeds in (jnp.array([2, 9, 4, 0, 5]), np.array([2, 9, 4, 0, 5], np.uint32)):
        again = train_population(config, seeds, settings=settings, lanes=2)
        assert_equal(rows(neighbours, slice(None)), rows(again, slice(None)))
    (point,) = train_grid(config, jnp.array([2, 9]), {"gamma": np.array([0.99, 0.5])}, lanes=2)
    assert point.settings == [{"gamma": 0.99}, {"gamma": 0.5}]
    assert_equal(rows(neighbours, slice(2)), rows(point.population, slice(2)))


def test_a_config_out_of_range_is_refused_as_an_array_too():
    for name, value in (("gamma", jnp.float32(1.9)), ("learning_rate", np.array(-1.0))):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            train_population(dataclasses.replace(TINY, **{name: value}), [1], lanes=2)


SETTINGS = {
    "jax_disable_jit": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_check_tracer_leaks": True,
    "jax_debug_key_reuse": True,
    "jax_transfer_guard": "disallow",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_threefry_partitionable": False,
}


@pytest.fixture(scope="module")
def short():
    """Two updates of 8 steps, in which no episode ends: its mean return is NaN."""
    config = dataclasses.replace(
        TINY, env="MountainCar-v0", num_steps=8, total_steps=48, value_steps=1
    )
    return config, train_population(config, [5], lanes=2)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_process_change_nothing(short, name, compiled_anew):
    """Of the whole process: a thread that trains has no other."""
    config, expected = short
    before = getattr(jax.config, name)
    jax.config.update(name, SETTINGS[name])
    try:
        again = train_population(config, [5], lanes=2)
        acted = again.policy(5).act(np.zeros((3, 2)))
    finally:
        jax.config.update(name, before)
    assert_equal(rows(expected, slice(None)), rows(again, slice(None)))
    np.testing.assert_array_equal(acted, expected.policy(5).act(np.zeros((3, 2))))
