"""Images and stacked observations: Catch by hand and in both packages, what lies where."""

import dataclasses

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from gymnax.environments.bsuite.catch import Catch

import jaxpg
from jaxpg.core import arithmetic, env, noise, wrappers
from torch_ref import arithmetic as torch_arithmetic
from torch_ref import env as torch_env
from torch_ref import wrappers as torch_wrappers

PACKAGES = {
    "jaxpg": (env, wrappers, jnp.asarray),
    "torch_ref": (torch_env, torch_wrappers, torch.tensor),
}
BOTH = pytest.mark.parametrize("package", PACKAGES)


def keys(count):
    return noise.split(noise.key(0), count)


def board(ball, paddle):
    """Catch's: ten rows of five, a one at (row, column) of the ball, another in the last row."""
    cells = np.zeros((10, 5), np.float32)
    cells[ball] = cells[9, paddle] = 1.0
    return cells.reshape(-1)


@BOTH
def test_catch_by_hand(package):
    """A uniform of 0.5 drops the ball in column 2 of 5, one of 0.99 in column 4."""
    module, _, array = PACKAGES[package]
    world = module.make("Catch-bsuite")
    assert world.spec.image == (10, 5, 1)
    state = world.reset(array(np.array([[0.5], [0.99]], np.float32)))
    np.testing.assert_array_equal(state.obs, [board((0, 2), 2), board((0, 4), 2)])
    for t in range(1, 10):
        right = array(np.array([1, 2], np.int32))  # stays, and goes right as far as there is
        state, reward, terminated, truncated = world.step(keys(2), state, right)
        paddle = min(2 + t, 4)
        np.testing.assert_array_equal(state.obs, [board((t, 2), 2), board((t, 4), paddle)])
        np.testing.assert_array_equal(terminated, [t == 9] * 2)
        np.testing.assert_array_equal(reward, [float(t == 9)] * 2)
        assert not truncated.any()


@BOTH
def test_a_ball_that_is_missed_costs_one(package):
    module, _, array = PACKAGES[package]
    world = module.make("Catch-bsuite")
    state = world.reset(array(np.array([[0.0], [0.5]], np.float32)))
    for _ in range(9):
        left = array(np.array([1, 0], np.int32))
        state, reward, *_ = world.step(keys(2), state, left)
    np.testing.assert_array_equal(reward, [-1.0, -1.0])
    np.testing.assert_array_equal(state.episode_return, [-1.0, -1.0])


def test_a_catch_of_another_size_is_another_environment():
    """What is known of one of ten rows and five columns would be wrong."""
    gymnax.register("WideCatch-test", lambda: Catch(rows=7, columns=9))
    spec = env.make("WideCatch-test").spec
    assert (spec.image, spec.min_episode_steps, spec.reset_uniforms) == ((7, 9, 1), 1, 0)


@pytest.mark.as_users_run(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "count"), [("Catch-bsuite", 1), ("Catch-bsuite", 3),
                                             ("CartPole-v1", 2)])  # fmt: skip
def test_the_twins_see_the_same_bits(name, count):
    """60 steps with restarts, on the grid."""
    num_envs, rng = 6, np.random.default_rng(0)
    ours, theirs = (
        module.make(name, float_type="float64", max_episode_steps=20) for module in (env, torch_env)
    )
    if count > 1:
        ours, theirs = (
            wrappers.stack_frames(ours, count),
            torch_wrappers.stack_frames(theirs, count),
        )
    assert ours.spec == theirs.spec
    ours, theirs = arithmetic.grid_env(ours), torch_arithmetic.grid_env(theirs)
    step, restart = jax.jit(ours.step), jax.jit(ours.restart)
    uniforms = rng.random((61, num_envs, ours.spec.reset_uniforms), np.float32)
    state, twin = ours.reset(jnp.asarray(uniforms[0])), theirs.reset(torch.tensor(uniforms[0]))
    ends = 0
    for uniform in uniforms[1:]:
        action = rng.integers(ours.spec.num_actions, size=num_envs)
        state, *results = step(keys(num_envs), state, jnp.asarray(action, jnp.int32))
        twin, *twin_results = theirs.step(None, twin, torch.tensor(action))
        done = np.logical_or(*results[1:])
        ends += done.sum()
        pairs = zip((*state[1:4], *results), (*twin[1:4], *twin_results), strict=True)
        for mine, other in pairs:
            np.testing.assert_array_equal(mine, other)
        state = restart(state, jnp.asarray(done), jnp.asarray(uniform))
        twin = theirs.restart(twin, torch.tensor(done), torch.tensor(uniform))
        np.testing.assert_array_equal(state.obs, twin.obs)
    assert ends > 2 * num_envs


@BOTH
def test_stacked_observations_by_hand(package):
    """Of CartPole the last three, the oldest first; an episode's first one stands for those before
    it, and what follows its end shows nothing of it."""
    module, around, array = PACKAGES[package]
    plain = module.make("CartPole-v1")
    stacked = around.stack_frames(plain, 3)
    assert stacked.spec == plain.spec._replace(obs_size=12)
    start, again = np.random.default_rng(0).random((2, 2, 4), np.float32)
    state, single = stacked.reset(array(start)), plain.reset(array(start))
    seen = [np.asarray(single.obs)] * 3
    np.testing.assert_array_equal(state.obs, np.concatenate(seen, axis=-1))
    for move in (0, 1, 1, 0):
        action = array(np.array([move, 1 - move], np.int32))
        state, *_ = stacked.step(keys(2), state, action)
        single, *_ = plain.step(keys(2), single, action)
        seen.append(np.asarray(single.obs))
        np.testing.assert_array_equal(state.obs, np.concatenate(seen[-3:], axis=-1))
    np.testing.assert_array_equal(around.newest(state.obs, stacked.spec, 3), seen[-1])
    done = array(np.array([True, False]))
    state = stacked.restart(state, done, array(again))
    fresh = np.asarray(plain.reset(array(again)).obs)
    expected = [np.tile(fresh[0], 3), np.concatenate(seen[-3:], axis=-1)[1]]
    np.testing.assert_array_equal(state.obs, expected)
    np.testing.assert_array_equal(state.time, [0, 4])


@BOTH
def test_stacked_images_lie_behind_one_another(package):
    """Pixel by pixel: an image [10, 5, 2], whose first channel is what was seen before."""
    module, around, array = PACKAGES[package]
    stacked = around.stack_frames(module.make("Catch-bsuite"), 2)
    assert stacked.spec.image == (10, 5, 2)
    state = stacked.reset(array(np.array([[0.5]], np.float32)))
    state, *_ = stacked.step(keys(1), state, array(np.array([0], np.int32)))
    image = np.asarray(state.obs).reshape(10, 5, 2)
    np.testing.assert_array_equal(image[..., 0].reshape(-1), board((0, 2), 2))
    np.testing.assert_array_equal(image[..., 1].reshape(-1), board((1, 2), 1))


def test_what_stacks_keeps_the_contract():
    world = env.make("Catch-bsuite", max_episode_steps=12)
    checked = jaxpg.check_env(wrappers.stack_frames(world, 2), steps=60)
    assert checked.terminated > 0


def test_a_stack_of_channels_keeps_those_of_an_image_together():
    stacked = wrappers.stack_frames(env.make("Breakout-MinAtar"), 2)
    assert stacked.spec.image == (10, 10, 8)
    assert stacked.spec.obs_size == 800
    state = stacked.reset(keys(1))
    image = state.obs.reshape(10, 10, 2, 4)
    np.testing.assert_array_equal(image[:, :, 0], image[:, :, 1])
    np.testing.assert_array_equal(
        wrappers.newest(state.obs, stacked.spec, 2)[0], image[:, :, 1].ravel()
    )


def test_whoever_acts_gives_the_last_observations_the_oldest_first():
    """[frame_stack, *shape], as the environment gives each, is what the networks are trained on."""
    config = jaxpg.Config(env="Catch-bsuite", conv_features=(3,), hidden_sizes=(4,), frame_stack=2)
    algorithm = jaxpg.build(config)
    params = algorithm.networks.init(*noise.keys([0, 1]))
    policy = jaxpg.Policy.of(config, params)
    before, now = board((3, 1), 2), board((4, 1), 1)
    frames = np.stack([before, now]).reshape(2, 10, 5)
    together = np.stack([before, now], axis=-1).reshape(-1)
    interface = policy.actor.interface
    np.testing.assert_array_equal(interface.encode(jnp.asarray(frames)), together)
    acted = int(np.argmax(algorithm.networks.policy(params, jnp.asarray(together))))
    assert policy.act(frames) == acted
    assert policy.act(np.stack([frames] * 3)).tolist() == [acted] * 3
    with pytest.raises(ValueError, match=r"must have the shape \(…, 2, 10, 5\); got \(10, 5\)"):
        policy.act(now.reshape(10, 5))
    flat = dataclasses.replace(config, env="CartPole-v1", conv_features=())
    encode = jaxpg.Policy.of(flat, {}).actor.interface.encode
    np.testing.assert_array_equal(encode(jnp.arange(8.0).reshape(2, 4)), np.arange(8.0))


class Masking(type(gymnax.make("CartPole-v1")[0])):
    """CartPole that observes two rows of four numbers, the last two of which mask its actions."""

    masks_actions = True

    def get_obs(self, state, params=None, key=None):
        mask = jnp.array([state.x > 0, True], jnp.float32)
        rows = [super().get_obs(state), jnp.full(2, state.time), mask]
        return jnp.concatenate(rows).reshape(2, 4)

    def observation_space(self, params):
        return gymnax.environments.spaces.Box(-jnp.inf, jnp.inf, (2, 4))


def test_rows_with_a_mask_are_no_image_to_whoever_acts():
    """They lie one after the other, as in training, so that the mask is the end of the newest."""
    gymnax.register("Masking-test", Masking)
    one, stacked = (env.make("Masking-test") for _ in range(2))
    stacked = wrappers.stack_frames(stacked, 2)
    before = one.reset(keys(1))
    now, *_ = one.step(keys(1), before, jnp.array([1]))
    then, *_ = stacked.step(keys(1), stacked.reset(keys(1)), jnp.array([1]))
    frames = jnp.stack([before.obs[0], now.obs[0]]).reshape(2, 2, 4)
    encode = env.interface("Masking-test", frame_stack=2).encode
    np.testing.assert_array_equal(encode(frames), then.obs[0])
    assert stacked.spec.image == ()
