"""rollout: on an environment that only counts, so that every row can be predicted by hand."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxpg.core.types
import torch_ref
import torch_ref.rollout
import torch_ref.types
from jaxpg.core import algorithms, learner, noise, rollout, training
from jaxpg.core.config import Config
from torch_ref import noise as torch_noise
from torch_ref.training import as_tensors

LIMIT, MIN_STEPS = 5, 2


class Counter(NamedTuple):
    """The environment's own state: steps taken, and steps until it terminates."""

    count: Any  # int32 [N]
    length: Any  # int32 [N]


def counting_env(package):
    """It pays 1 + action; the reset noise [N, 1] is the length of the episode that begins."""
    xp, types, integer = (
        (jnp, jaxpg.core.types, jnp.int32)
        if package == "jaxpg"
        else (torch, torch_ref.types, torch.int32)
    )

    def as_float(x):
        return xp.asarray(x, dtype=xp.float32)

    def state_of(inner, time, episode_return):
        obs = as_float(xp.stack([inner.count, inner.length], -1))
        return types.EnvState(inner, obs, time, episode_return)

    def reset(noise, env_params=None):
        length = xp.asarray(noise[..., 0], dtype=integer)
        zero = xp.zeros_like(length)
        return state_of(Counter(zero, length), zero, as_float(zero))

    def step(key, state, action):
        inner = state.inner._replace(count=state.inner.count + 1)
        reward = as_float(1 + action)
        terminated = inner.count >= inner.length
        truncated = (state.time + 1 >= LIMIT) & ~terminated
        state = state_of(inner, state.time + 1, state.episode_return + reward)
        return state, reward, terminated, truncated

    def restart(state, done, noise):
        fresh = reset(noise)

        def choose(new, old):
            return xp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), new, old)

        inner = Counter(*map(choose, fresh.inner, state.inner))
        names = ("obs", "time", "episode_return")
        return state._replace(
            inner=inner,
            **{name: choose(getattr(fresh, name), getattr(state, name)) for name in names},
        )

    spec = types.EnvSpec(
        obs_size=2,
        num_actions=2,
        discrete=True,
        time_limit=LIMIT,
        min_episode_steps=MIN_STEPS,
        reset_uniforms=1,
    )
    return types.Env(spec, reset, step, restart)


def act(threshold, obs, uniform):
    """Action 1 where the uniform reaches the policy's only parameter."""
    return uniform >= threshold


def act_in(package):
    """With a log-probability that tells what it is of: the uniform less 2."""
    if package == "torch_ref":
        return lambda *inputs: (act(*inputs).long(), inputs[2] - 2)
    return lambda *inputs: (act(*inputs).astype(jnp.int32), inputs[2] - 2)


def noise_of(package, lengths, uniforms):
    """Reset lengths [R, N] and action uniforms [T, N] as a Noise."""
    array, types = (
        (jnp.asarray, jaxpg.core.types) if package == "jaxpg" else (torch.tensor, torch_ref.types)
    )
    lengths = np.array(lengths, np.float32)[..., None]
    uniforms = np.array(uniforms, np.float32)
    keys = np.zeros((*uniforms.shape, 2), np.uint32)
    return types.Noise(array(lengths), array(uniforms), array(keys), None)


def functions(package):
    return rollout if package == "jaxpg" else torch_ref.rollout


def started(package, lengths):
    array = jnp.asarray if package == "jaxpg" else torch.tensor
    return counting_env(package).reset(array(np.array(lengths, np.float32)[:, None]))


def assert_rows(trajectory, **expected):
    for name, rows in expected.items():
        np.testing.assert_array_equal(getattr(trajectory, name), np.array(rows), err_msg=name)


# Two environments, six steps. Environment 0 begins with length 3, restarts at t=2 (block 1 =
# steps 2 and 3) with length 2, and at t=4 (block 2) with length 4. Environment 1 has length 9, so
# the limit of 5 truncates it at t=4, and it restarts with length 7.
LENGTHS = [[8, 8], [2, 8], [4, 7]]  # 8 is never used
VALID = [[True, True]] * 3 + [[False, True]] * 2  # of whole episodes of 3 and 5 steps
UNIFORMS = [[0.1, 0.9], [0.9, 0.1], [0.9, 0.9], [0.1, 0.1], [0.9, 0.9], [0.1, 0.9]]


@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_steps_restart_when_an_episode_ends(package):
    _, trajectory = functions(package).collect_steps(
        counting_env(package),
        act_in(package),
        0.5,
        started(package, [3, 9]),
        noise_of(package, LENGTHS, UNIFORMS),
    )
    count = [[0, 0], [1, 1], [2, 2], [0, 3], [1, 4], [0, 0]]
    length = [[3, 9], [3, 9], [3, 9], [2, 9], [2, 9], [4, 7]]
    yes, no = True, False
    assert_rows(
        trajectory,
        obs=np.stack([count, length], -1),
        next_obs=np.stack([np.array(count) + 1, length], -1),  # the true successor
        time=count,
        terminated=[[no, no], [no, no], [yes, no], [no, no], [yes, no], [no, no]],
        truncated=[[no, no], [no, no], [no, no], [no, no], [no, yes], [no, no]],
        valid=[[yes, yes]] * 6,
        action=[[0, 1], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]],
        log_prob=np.array(UNIFORMS, np.float32) - 2,
        reward=[[1, 2], [2, 1], [2, 2], [1, 1], [2, 2], [1, 2]],
        episode_return=[[1, 2], [3, 3], [5, 5], [1, 6], [3, 8], [1, 2]],
    )


@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_steps_go_on_where_the_last_call_stopped(package):
    """Six steps at once are two and then four, if the blocks of resets are the same."""
    environment, collect = counting_env(package), functions(package).collect_steps
    inputs = (environment, act_in(package), 0.5)
    whole_state, whole = collect(
        *inputs, started(package, [3, 9]), noise_of(package, LENGTHS, UNIFORMS)
    )
    state, first = collect(
        *inputs, started(package, [3, 9]), noise_of(package, LENGTHS[:1], UNIFORMS[:2])
    )
    state, second = collect(*inputs, state, noise_of(package, LENGTHS[1:], UNIFORMS[2:]))
    for name in whole._fields:
        parts = [np.asarray(getattr(part, name)) for part in (first, second)]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, name))
    for actual, expected in zip(state[1:], whole_state[1:], strict=True):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(state.inner.count, [1, 1])
    np.testing.assert_array_equal(state.inner.length, [4, 7])


@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_episodes_are_masked_after_their_end(package):
    """Lengths 3 and 9 at a limit of 5: three rows and a termination, five and a truncation."""
    state, trajectory = functions(package).collect_episodes(
        counting_env(package),
        act_in(package),
        0.5,
        started(package, [7, 7]),  # any state: every environment starts anew
        noise_of(package, [[3, 9]], UNIFORMS[:LIMIT]),
    )
    yes, no = True, False
    assert_rows(
        trajectory,
        obs=[
            [[0, 3], [0, 9]],
            [[1, 3], [1, 9]],
            [[2, 3], [2, 9]],
            [[0, 0], [3, 9]],
            [[0, 0], [4, 9]],
        ],
        next_obs=[
            [[1, 3], [1, 9]],
            [[2, 3], [2, 9]],
            [[3, 3], [3, 9]],
            [[0, 0], [4, 9]],
            [[0, 0], [5, 9]],
        ],
        time=[[0, 0], [1, 1], [2, 2], [0, 3], [0, 4]],
        terminated=[[no, no], [no, no], [yes, no], [no, no], [no, no]],
        truncated=[[no, no], [no, no], [no, no], [no, no], [no, yes]],
        valid=[[yes, yes], [yes, yes], [yes, yes], [no, yes], [no, yes]],
        action=[[0, 1], [1, 0], [1, 1], [0, 0], [0, 1]],
        log_prob=np.where(VALID, np.array(UNIFORMS[:LIMIT], np.float32) - 2, 0),
        reward=[[1, 2], [2, 1], [2, 2], [0, 1], [0, 2]],
        episode_return=[[1, 2], [3, 3], [5, 5], [0, 6], [0, 8]],
    )
    np.testing.assert_array_equal(state.inner.count, [3, 5])  # frozen at the end


@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_episodes_stop_with_the_longest(package):
    """Lengths 2 and 3 at a limit of 5: after three steps nothing is done any more."""
    environment, steps = counting_env(package), []

    def counted(key, state, action):
        if package == "jaxpg":
            jax.debug.callback(lambda: steps.append(1))
        else:
            steps.append(1)
        return environment.step(key, state, action)

    _, trajectory = functions(package).collect_episodes(
        environment._replace(step=counted),
        act_in(package),
        0.5,
        started(package, [9, 9]),
        noise_of(package, [[2, 3]], UNIFORMS[:LIMIT]),
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(np.sum(np.asarray(trajectory.valid), axis=0), [2, 3])
    assert len(steps) == 3
    assert trajectory.obs.shape == (LIMIT, 2, 2)


# vmap = loop. Episode lengths differ from lane to lane, so the loop of `collect_episodes` ends
# at another step in each.

COLLECT = {"steps": rollout.collect_steps, "episodes": rollout.collect_episodes}
SEEDS, SETTINGS = 4, 3
THRESHOLDS = jnp.array([0.2, 0.5, 0.8])


def seeds_noise():
    rng = np.random.default_rng(0)
    lengths = rng.integers(MIN_STEPS, 8, (SEEDS, 3, 2)).astype(np.float32)[..., None]
    lengths[0, 0] = MIN_STEPS  # one lane ends long before the others
    uniforms = rng.random((SEEDS, LIMIT, 2), np.float32)
    keys = np.zeros((SEEDS, LIMIT, 2, 2), np.uint32)
    return jaxpg.core.types.Noise(*map(jnp.asarray, (lengths, uniforms, keys)), None)


def counting_rollout(collect):
    environment = counting_env("jaxpg")

    def run(threshold, draws):
        state = environment.reset(draws.reset[0])
        return COLLECT[collect](environment, act_in("jaxpg"), threshold, state, draws)

    return run


def lane(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("collect", ["steps", "episodes"])
def test_vmap_over_seeds_is_a_loop(collect):
    """The parameters are not batched."""
    run, draws = counting_rollout(collect), seeds_noise()
    together, one = jax.jit(jax.vmap(run, in_axes=(None, 0)))(0.5, draws), jax.jit(run)
    for seed in range(SEEDS):
        assert_same(lane(together, seed), one(0.5, lane(draws, seed)))


@pytest.mark.parametrize("collect", ["steps", "episodes"])
@pytest.mark.parametrize("outer", ["seeds", "settings"])
def test_nested_vmap_over_seeds_and_settings_is_a_loop(collect, outer):
    run, draws = counting_rollout(collect), seeds_noise()
    one = jax.jit(run)
    if outer == "seeds":
        inner = jax.vmap(run, in_axes=(0, None))
        together = jax.jit(jax.vmap(inner, in_axes=(None, 0)))(THRESHOLDS, draws)
    else:
        inner = jax.vmap(run, in_axes=(None, 0))
        together = jax.jit(jax.vmap(inner, in_axes=(0, None)))(THRESHOLDS, draws)
    for seed in range(SEEDS):
        for setting in range(SETTINGS):
            index = (seed, setting) if outer == "seeds" else (setting, seed)
            expected = one(THRESHOLDS[setting], lane(draws, seed))
            assert_same(lane(together, *index), expected)


def test_a_long_lane_changes_nothing_in_a_short_one():
    run, draws = counting_rollout("episodes"), seeds_noise()
    short = lane(draws, slice(0, 2))
    long = short._replace(reset=short.reset.at[1].set(9.0))
    lanes = jax.jit(jax.vmap(run, in_axes=(None, 0)))
    alone, beside = (lanes(0.5, x) for x in (short, long))
    assert_same(lane(alone, 0), lane(beside, 0))
    assert np.sum(beside[1].valid[1]) > np.sum(alone[1].valid[1])


# CartPole with a network, on the float32 grid.


def cartpole_config(collect):
    return Config(
        arithmetic="float32_grid",
        collect=collect,
        num_envs=3,
        num_steps=50,
        max_episode_steps=40,
        hidden_sizes=(8,),
        total_steps=300,
        total_episodes=3,
    )


def cartpole_rollout(config):
    """(seed key) -> trajectory, by jaxpg."""
    traced = training.as_arrays(config)
    algorithm = algorithms.build(traced)

    def run(key):
        state = learner.init(traced, key, algorithm)
        steps = learner.max_steps(traced, algorithm.env.spec)
        draws = noise.draw(state.key, 0, traced, algorithm.env.spec, steps)

        return learner.collect(algorithm, state.params, state.env_state, draws)

    return run


@pytest.mark.as_users_run(2)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("collect", ["steps", "episodes"])
def test_each_seed_of_a_vmap_is_the_twin_alone_bit_by_bit(collect):
    config = cartpole_config(collect)
    together = jax.jit(jax.vmap(cartpole_rollout(config)))(noise.keys(range(3)))

    twin = as_tensors(torch_ref.Config(**vars(config)))
    algorithm = torch_ref.build(twin)
    steps = torch_ref.learner.max_steps(twin, algorithm.env.spec)
    for seed in range(3):
        start = torch_ref.init(twin, torch_noise.key(seed), algorithm)
        draws = torch_noise.draw(start.key, 0, twin, algorithm.env.spec, steps)
        twin_state, expected = torch_ref.learner.collect(
            algorithm, start.params, start.env_state, draws
        )
        state, trajectory = lane(together, seed)
        for name in expected._fields:
            actual, wanted = getattr(trajectory, name), getattr(expected, name)
            if name == "log_prob":  # off the grid: nothing is carried on from it
                np.testing.assert_allclose(actual, wanted, rtol=1e-13)
            else:
                np.testing.assert_array_equal(actual, wanted, name)
        for actual, wanted in zip(state[1:], twin_state[1:], strict=True):
            np.testing.assert_array_equal(actual, wanted)
        assert expected.terminated.any()
