"""Arithmetic: what the grid rounds, how, and that both packages round alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import torch_ref.arithmetic as twin
import torch_ref.distributions
import torch_ref.types
from jaxpg.core import distributions, types
from jaxpg.core.arithmetic import grid_distribution, grid_env, round_floats

SPEC = (2, 1, False, 10, 1, 0)
STEP = 2.0**-23  # between the float32 numbers in [1, 2)


@pytest.mark.parametrize(
    ("x", "rounded"),
    [
        (1.0 + 0.25 * STEP, 1.0),
        (1.0 + 0.75 * STEP, 1.0 + STEP),
        (1.0 + 0.5 * STEP, 1.0),  # a tie goes to the even neighbour: down …
        (1.0 + 1.5 * STEP, 1.0 + 2.0 * STEP),  # … and up
        (1.0 + 0.5 * STEP + 2.0**-52, 1.0 + STEP),  # just beyond the tie
        (-1.0 - 1.5 * STEP, -1.0 - 2.0 * STEP),
        (2.0 - 0.5 * STEP, 2.0),  # carries into the exponent
        (0.1, 13421773 * 2.0**-27),
        (0.0, 0.0),
        (-0.0, -0.0),
        (2.0**-126, 2.0**-126),  # the smallest normal number
        ((2.0 - STEP) * 2.0**127, (2.0 - STEP) * 2.0**127),  # the largest
        (1e39, np.inf),
        (-np.inf, -np.inf),
        (np.nan, np.nan),
    ],
)
def test_rounding_worked_by_hand(x, rounded, x64):
    for actual in (
        round_floats(jnp.float64(x)),
        jax.jit(round_floats)(jnp.float64(x)),  # XLA must not drop the round trip
        twin.round_floats(torch.tensor(x, dtype=torch.float64)),
    ):
        actual = np.asarray(actual)
        assert actual.dtype == np.float64
        np.testing.assert_array_equal(actual, rounded)
        assert np.signbit(actual) == np.signbit(rounded)


@pytest.mark.parametrize("bits", [15, 23])
def test_both_packages_round_to_any_bits_as_written_out(bits, x64):
    """With the sizes of neighbours, ties to even; the ends are float32's."""
    rng = np.random.default_rng(1)
    magnitude = 2.0 ** rng.integers(-126, 127, 2000)
    whole = 2**bits + rng.integers(0, 2**bits, 2000)  # of the mantissa
    part = rng.choice([0.0, 0.25, 0.5, 0.75, 0.5 + 2.0 ** (bits - 51)], 2000)
    x = (whole + part) * 2.0**-bits * magnitude
    up = (part > 0.5) | ((part == 0.5) & (whole % 2 == 1))
    expected = (whole + up) * 2.0**-bits * magnitude
    ends = np.array([2.0**-126 * (1 - 2.0 ** -(bits + 2)), 2.0**-126 * (1 - 2.0**-bits), 2.0**128])
    x = np.concatenate([x, -x, ends, [2.0**128 * (1 - 2.0 ** -(bits + 2)), np.nan, -np.inf]])
    expected = np.concatenate(
        [expected, -expected, [2.0**-126, 0.0, np.inf], [np.inf, np.nan, -np.inf]]
    )
    ours, theirs = round_floats(jnp.array(x), bits), twin.round_floats(torch.tensor(x), bits)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(theirs, expected)
    np.testing.assert_array_equal(np.signbit(np.asarray(theirs)), np.signbit(ours))


def wide(shape=(10_000,)):
    """Float64 numbers of every magnitude of float32's normal numbers."""
    rng = np.random.default_rng(0)
    return rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-37.5, 38.5, shape)


def test_both_packages_round_as_numpy_does_and_only_once(x64):
    x = wide()
    expected = x.astype(np.float32).astype(np.float64)
    rounded = round_floats(jnp.array(x))
    np.testing.assert_array_equal(rounded, expected)
    np.testing.assert_array_equal(twin.round_floats(torch.tensor(x)), expected)
    np.testing.assert_array_equal(round_floats(rounded), expected)
    assert np.any(x != expected)


def test_both_packages_round_tiny_numbers_alike(x64):
    x = np.array([1e-38, -1e-40, 2.0**-149])
    ours, theirs = round_floats(jnp.array(x)), twin.round_floats(torch.tensor(x))
    np.testing.assert_array_equal(theirs, ours)


def test_rounding_erases_differences_of_the_last_bits(x64):
    """What the grid is for: two libraries' results, 1e-15 apart, become one number."""
    x = wide()
    other = x * (1.0 + 1e-15)
    assert np.all(x != other)
    np.testing.assert_array_equal(round_floats(jnp.array(other)), round_floats(jnp.array(x)))


class Pair(types.NamedTuple):
    first: object
    second: object


def test_only_floats_are_rounded(x64):
    """In any tree; integers, flags and bits pass, float32 is on the grid already."""
    leaves = {
        "int": jnp.array(2**53 + 1),
        "bits": jnp.array(2**32 - 1, jnp.uint32),
        "bool": jnp.array(True),
        "float32": jnp.float32(0.1),
    }
    rounded = round_floats(Pair(leaves, [jnp.float64(0.1)]))
    assert isinstance(rounded, Pair)
    for name, leaf in leaves.items():
        assert rounded.first[name].dtype == leaf.dtype
        assert rounded.first[name] == leaf
    assert rounded.second[0] == np.float64(np.float32(0.1))


def test_twin_rounds_only_floats_too():
    leaves = Pair(torch.tensor(2**53 + 1), Pair(torch.tensor(True), torch.tensor(0.1).double()))
    off_grid = leaves._replace(second=leaves.second._replace(second=torch.tensor(0.1).double() / 3))
    rounded = twin.round_floats(off_grid)
    assert isinstance(rounded, Pair)
    assert isinstance(rounded.second, Pair)
    assert rounded.first == 2**53 + 1
    assert rounded.first.dtype == torch.int64
    assert rounded.second.first.dtype == torch.bool
    assert rounded.second.second == np.float64(np.float32(off_grid.second.second))
    assert rounded.second.second != off_grid.second.second


def off_grid_env(package, asarray):
    """Two environments that divide by 3 and 7, and so leave the grid with every number."""

    def state(obs):
        inner = Pair(obs / 7, asarray(np.array([3, 4])))
        return package.EnvState(inner, obs, asarray(np.zeros(2, np.int32)), obs[:, 0])

    def step(key, old, action):
        reward = old.obs[:, 0] * 0 + 1 / 3
        flag = asarray(np.array([True, False]))
        return state(old.obs / 3 + action), reward, flag, ~flag

    return package.Env(
        spec=package.EnvSpec(*SPEC),
        reset=lambda noise: state(noise / 3),
        step=step,
        restart=lambda old, done, noise: state(old.obs / 3 + noise / 3),
    )


def run(grid, env, asarray):
    """Everything that an environment on the grid puts out, flat, as numpy."""
    env = grid(env)
    noise = asarray(np.array([[1.0, 2.0], [4.0, 5.0]]))
    start = env.reset(noise)
    state, reward, terminated, truncated = env.step(None, start, noise / 9)
    again = env.restart(state, terminated, noise)
    states = [leaf for s in (start, state, again) for leaf in (*s.inner, *s[1:])]
    return [np.asarray(leaf) for leaf in (*states, reward, terminated, truncated)]


def test_environment_is_on_the_grid_after_reset_step_and_restart(x64):
    ours = run(grid_env, off_grid_env(types, jnp.array), jnp.array)
    free = run(lambda env: env, off_grid_env(types, jnp.array), jnp.array)
    theirs = run(twin.grid_env, off_grid_env(torch_ref.types, torch.tensor), torch.tensor)
    floats = 0
    for leaf, before, their_leaf in zip(ours, free, theirs, strict=True):
        assert leaf.dtype == before.dtype == their_leaf.dtype
        np.testing.assert_array_equal(leaf, their_leaf)
        if leaf.dtype == np.float64:
            np.testing.assert_array_equal(leaf, leaf.astype(np.float32))
            assert np.any(before != before.astype(np.float32))
            floats += 1
    assert floats == 3 * 3 + 1  # inner, obs and return of three states; the reward


def test_grid_environment_keeps_its_spec():
    env = off_grid_env(types, jnp.array)
    assert grid_env(env).spec == env.spec


def test_continuous_actions_are_on_the_grid_and_equal_in_both_packages(x64):
    """erf⁻¹ of the two libraries differs in its last bits."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(2000, 4))
    uniform = (rng.integers(0, 2**23, (2000, 2)) * 2.0**-23).astype(np.float32)
    free = distributions.gaussian.sample(jnp.array(outputs), jnp.array(uniform))
    ours = grid_distribution(distributions.gaussian).sample(jnp.array(outputs), jnp.array(uniform))
    theirs = twin.grid_distribution(torch_ref.distributions.gaussian).sample(
        torch.tensor(outputs), torch.tensor(uniform)
    )
    assert ours.dtype == jnp.float64
    np.testing.assert_array_equal(ours, np.asarray(free).astype(np.float32))
    np.testing.assert_array_equal(theirs, ours)
    assert np.any(free != ours)


def test_grid_distribution_changes_nothing_but_the_actions():
    categorical = grid_distribution(distributions.categorical)
    action = categorical.sample(jnp.zeros((2, 2)), jnp.array([0.1, 0.9]))
    assert action.dtype == jnp.int32
    assert action.tolist() == [0, 1]
    assert categorical.log_prob is distributions.categorical.log_prob
    assert categorical.entropy is distributions.categorical.entropy
