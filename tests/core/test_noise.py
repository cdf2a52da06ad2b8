"""Noise: the bits of jax.random in both packages, which key draws what, and no key twice."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpg
import jaxpg.core.noise
import torch_ref
import torch_ref.noise
from jaxpg.core.types import Config, EnvSpec

SEEDS = (0, 1, 12345, 2**31 - 1, 2**31, 2**32 - 1)
SHAPES = ((), (3, 5))

CARTPOLE = EnvSpec(4, 2, True, time_limit=500, min_episode_steps=8, reset_uniforms=4)
KEYED = EnvSpec(3, 2, False, time_limit=9, min_episode_steps=1, reset_uniforms=0)


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def both_modes(request):
    """JAX without and with 64-bit mode."""
    with jax.enable_x64(request.param):
        yield


def words(array):
    """Random keys or draws of either package as numpy."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


def assert_same_bits(actual, expected):
    actual, expected = words(actual), words(expected)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected, strict=True)


# Seeds


@pytest.mark.parametrize("package", [jaxpg.core.noise, torch_ref.noise])
@pytest.mark.parametrize("seed", [-1, 2**32, True, np.True_, 1.5, 1.0, "a", None, [1]])
def test_anything_but_a_32_bit_integer_is_no_seed(package, seed):
    """jax.random.key would take -1 for 2^32 - 1, and True for 1."""
    words = r"a seed must be an integer in \[0, 2\^32\)"
    error = (jaxpg.core.config.ConfigError, torch_ref.config.ConfigError)
    with pytest.raises(error, match=words):
        package.key(seed)
    with pytest.raises(error, match=words):
        package.keys([0, seed])


@pytest.mark.parametrize("package", [jaxpg.core.noise, torch_ref.noise])
def test_keys_are_of_several(package):
    with pytest.raises(ValueError, match=r"keys are of several seeds, as of range\(8\); got 8"):
        package.keys(8)


@pytest.mark.parametrize("package", [jaxpg, torch_ref])
def test_what_is_no_key_of_one_seed_starts_no_run(package):
    """An integer, or many keys without vmap, would end in an error of JAX's own."""
    of_jax = [jax.random.key(0, impl="rbg"), jnp.zeros(2)] if package is jaxpg else []
    for wrong in [0, None, "0", package.keys([0, 1]), np.zeros(2), *of_jax]:
        with pytest.raises(package.ConfigError, match=r"a seed's key must be .*\.key\(seed\)"):
            package.train(package.preset("vpg"), wrong)


def test_a_key_of_jax_random_is_one_of_a_seed():
    streams = jaxpg.core.noise.streams
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        assert_same_bits(streams(key), streams(jaxpg.key(3)))


@pytest.mark.parametrize("seed", SEEDS)
def test_key_is_that_of_jax_random(seed, both_modes):
    assert_same_bits(jaxpg.core.noise.key(seed), jax.random.key(seed, impl="threefry2x32"))
    assert_same_bits(torch_ref.noise.key(seed), jaxpg.core.noise.key(seed))
    assert_same_bits(jaxpg.core.noise.key(np.uint32(seed)), jaxpg.core.noise.key(seed))


def test_key_of_a_seed_does_not_depend_on_its_position():
    forwards, backwards = jaxpg.core.noise.keys(SEEDS), jaxpg.core.noise.keys(SEEDS[::-1])
    assert_same_bits(forwards, backwards[::-1])
    for i, seed in enumerate(SEEDS):
        assert_same_bits(forwards[i], jaxpg.core.noise.key(seed))
    assert_same_bits(torch_ref.noise.keys(SEEDS), forwards)
    assert words(jaxpg.core.noise.keys([])).shape == torch_ref.noise.keys([]).shape == (0, 2)


# Draws


def test_known_answer_of_threefry():
    """Random123's kat_vectors: threefry2x32, 20 rounds, counter 0 and key 0."""
    expected = np.array([0x6B200159, 0x99BA4EFE], np.uint32)
    assert_same_bits(torch_ref.noise.fold_in(torch_ref.noise.key(0), 0), expected)
    assert_same_bits(jaxpg.core.noise.fold_in(jaxpg.core.noise.key(0), 0), expected)


@pytest.mark.as_users_run(4)
@pytest.mark.parametrize("seed", SEEDS)
def test_draws_are_bit_equal_to_jax_random_in_both_packages(seed, both_modes):
    key, twin_key = jaxpg.core.noise.key(seed), torch_ref.noise.key(seed)
    for shape in SHAPES:
        expected = {
            "bits": jax.random.bits(key, shape, jnp.uint32),
            "uniform": jax.random.uniform(key, shape, jnp.float32),
            "split": jax.random.split(key, shape),
        }
        for name in expected:
            assert_same_bits(getattr(jaxpg.core.noise, name)(key, shape), expected[name])
            assert_same_bits(getattr(torch_ref.noise, name)(twin_key, shape), expected[name])
    assert_same_bits(torch_ref.noise.split(twin_key, 5), jaxpg.core.noise.split(key, 5))


@pytest.mark.parametrize("index", [0, 1, 999, 2**31 - 1, 2**31, 2**32 - 1])
def test_fold_in_is_bit_equal(index, both_modes):
    for seed in SEEDS:
        expected = jax.random.fold_in(jax.random.key(seed), index)
        assert_same_bits(jaxpg.core.noise.fold_in(jaxpg.core.noise.key(seed), index), expected)
        assert_same_bits(torch_ref.noise.fold_in(torch_ref.noise.key(seed), index), expected)


def test_uniforms_lie_on_the_grid_of_the_half_open_interval(both_modes):
    u = words(jaxpg.core.noise.uniform(jaxpg.core.noise.key(3), (100_000,)))
    assert_same_bits(torch_ref.noise.uniform(torch_ref.noise.key(3), (100_000,)), u)
    assert u.dtype == np.float32
    assert u.min() >= 0.0
    assert u.max() < 1.0
    steps = u.astype(np.float64) * 2**23
    np.testing.assert_array_equal(steps, np.round(steps))
    assert np.any(steps % 2 == 1)  # the finest grid step is used
    # The mean of n draws has standard deviation 1/√(12 n) = 0.0009, their variance 1/√(180 n).
    assert abs(u.mean(dtype=np.float64) - 1 / 2) < 4 * 0.0009
    assert abs(u.var(dtype=np.float64) - 1 / 12) < 4 * 0.00024


@pytest.mark.parametrize("name", ["bits", "uniform", "split"])
def test_a_longer_draw_begins_with_the_shorter_one(name):
    """Noise can be drawn block by block."""
    key = jaxpg.core.noise.key(5)
    draw = getattr(jaxpg.core.noise, name)
    assert_same_bits(draw(key, (6, 5))[:3], draw(key, (3, 5)))


def test_vmap_over_keys_is_a_loop():
    seeds_keys = jaxpg.core.noise.keys(SEEDS)
    batched = jax.jit(jax.vmap(lambda key: jaxpg.core.noise.uniform(key, (3, 5))))(seeds_keys)
    for i, seed in enumerate(SEEDS):
        assert_same_bits(batched[i], jaxpg.core.noise.uniform(jaxpg.core.noise.key(seed), (3, 5)))


# The noise of an update

REPLAY = {"value_data": "replay", "value_target": "td0", "buffer_size": 11, "batch_size": 4}
CASES = {
    "cartpole": (Config(num_envs=3), CARTPOLE),
    "keys and replay": (Config(num_envs=3, value_steps=5, **REPLAY), KEYED),
}


def run_keys(seed):
    """key_run of either package."""
    return [
        package.streams(package.key(seed))[2] for package in (jaxpg.core.noise, torch_ref.noise)
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_streams_are_bit_equal_and_distinct(seed, both_modes):
    streams = jaxpg.core.noise.streams(jaxpg.core.noise.key(seed))
    assert_same_bits(torch_ref.noise.streams(torch_ref.noise.key(seed)), streams)
    assert len(np.unique(words(streams), axis=0)) == 3


@pytest.mark.as_users_run(2)
@pytest.mark.parametrize("case", CASES)
def test_noise_of_an_update_is_bit_equal(case):
    """The index of the update is traced in jaxpg, as it is in a scan of updates."""
    config, spec = CASES[case]
    draw = jax.jit(lambda key, update: jaxpg.core.noise.draw(key, update, config, spec, 20))
    for seed in (0, 2**31, 2**32 - 1):
        key_run, twin_key_run = run_keys(seed)
        assert_same_bits(
            torch_ref.noise.first_reset(twin_key_run, config, spec),
            jaxpg.core.noise.first_reset(key_run, config, spec),
        )
        for update in (0, 1, 1000):
            ours = draw(key_run, jnp.int32(update))
            twin = torch_ref.noise.draw(twin_key_run, update, config, spec, 20)
            assert (twin.replay is None) == (ours.replay is None)
            for name in ("reset", "action", "env", "replay"):
                if getattr(ours, name) is not None:
                    assert_same_bits(getattr(twin, name), getattr(ours, name))


def test_noise_does_not_depend_on_jit_or_on_the_working_dtype():
    config, spec = CASES["keys and replay"]
    narrow = jaxpg.core.noise.draw(run_keys(4)[0], 3, config, spec, 20)
    with jax.enable_x64(True):
        draw = jax.jit(lambda key: jaxpg.core.noise.draw(key, 3, config, spec, 20))
        jax.tree.map(assert_same_bits, draw(run_keys(4)[0]), narrow)
    assert narrow.action.dtype == jnp.float32


def test_noise_does_not_depend_on_the_settings_of_jax_random():
    draw = partial(jaxpg.core.noise.draw, run_keys(4)[0], 3, *CASES["keys and replay"], 20)
    expected = draw()
    with jax.threefry_partitionable(False):
        jax.tree.map(assert_same_bits, draw(), expected)


def test_shapes_of_the_noise():
    """T = 20 steps are ⌈20 / 8⌉ = 3 blocks, in each of which an environment can end once."""
    key_run, _ = run_keys(0)

    def shapes(case, num_steps):
        draw = partial(jaxpg.core.noise.draw, config=CASES[case][0], spec=CASES[case][1])
        return jax.eval_shape(partial(draw, num_steps=num_steps), key_run, jnp.int32(0))

    discrete = shapes("cartpole", 20)
    assert discrete.reset.shape == (3, 3, 4)
    assert discrete.action.shape == (20, 3)
    assert discrete.env.shape == (20, 3)
    assert discrete.replay is None
    assert shapes("cartpole", 24).reset.shape == (3, 3, 4)
    assert shapes("cartpole", 25).reset.shape == (4, 3, 4)
    continuous = shapes("keys and replay", 20)
    assert continuous.reset.shape == (20, 3)
    assert continuous.action.shape == (20, 3, 2)
    assert continuous.replay.shape == (5, jaxpg.core.noise.ROUNDS)


def test_every_key_of_a_run_is_used_once(monkeypatch):
    """No two draws, splits or environments of a run's first updates share a key."""
    used = []
    for name in ("bits", "split"):  # uniform draws bits
        spend(monkeypatch, name, used)
    seed_keys = jaxpg.core.noise.keys([0, 1])
    for key in seed_keys:
        _, _, key_run = jaxpg.core.noise.streams(key)
        config, spec = CASES["keys and replay"]
        used.extend(words(jaxpg.core.noise.first_reset(key_run, config, spec)).reshape(-1, 2))
        for update in range(3):
            drawn = jaxpg.core.noise.draw(key_run, update, config, spec, 20)
            used.extend(words(drawn.reset).reshape(-1, 2))
            used.extend(words(drawn.env).reshape(-1, 2))
    # Per seed: streams 1, then four updates' (the first reset's too) split 1 and reset 1; three
    # updates' action, env split and replay 3; and keys for environments: resets 3 + 3 · 20 · 3 and
    # steps 3 · 20 · 3.
    assert len(used) == 2 * (1 + 4 * 2 + 3 * 3 + 3 + 180 + 180)
    assert len(np.unique(np.stack(used), axis=0)) == len(used)


def spend(monkeypatch, name, used):
    """Let a function of the noise module write down the keys that it consumes."""
    original = getattr(jaxpg.core.noise, name)

    def spent(key, shape):
        used.append(words(key))
        return original(key, shape)

    monkeypatch.setattr(jaxpg.core.noise, name, spent)


def test_no_two_updates_share_their_noise():
    key_run, _ = run_keys(0)
    config, spec = CASES["keys and replay"]
    actions = [words(jaxpg.core.noise.draw(key_run, u, config, spec, 20).action) for u in range(20)]
    assert len(np.unique(np.stack(actions).reshape(20, -1), axis=0)) == 20
