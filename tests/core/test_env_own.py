"""Environments of one's own: wrappers are heeded, states keep their types, limits are limits.

Each is registered under a name of its own and met by jaxpg as a user's would be.
"""

import importlib
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from gymnax.environments.classic_control.cartpole import CartPole
from gymnax.wrappers import purerl

import jaxpg
from jaxpg.core import env, learner, noise, rollout, training
from jaxpg.core.config import Config, ConfigError
from jaxpg.world import find


@pytest.fixture
def register(monkeypatch):
    """gymnax.register for one test; a name that is taken may be taken anew."""
    registry = gymnax.registration._registry

    def add(name, factory):
        monkeypatch.setitem(registry, name, factory)
        if name not in gymnax.registered_envs:
            monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, name])

    return add


class State(NamedTuple):
    time: Any
    x: Any


class Walk(environment.Environment):
    """It goes 0.4 to the right for action 1; the observation is where it is."""

    default_params = environment.EnvParams(max_steps_in_episode=6)
    start: Any = 0  # a Python int

    def reset_env(self, key, params):
        return self.see(self.start), State(0, self.start)

    def step_env(self, key, state, action, params):
        x = state.x + 0.4 * action
        return self.see(x), State(state.time + 1, x), x, x > 1.9, {}

    def see(self, x):
        return jnp.reshape(jnp.asarray(x, jnp.float32), (1,))

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (1,), jnp.float32)

    def action_space(self, params):
        return spaces.Discrete(2)


class Float(Walk):
    """The same as gymnax's own step, which selects between two states, can have it."""

    start = jnp.float32(0.0)

    def reset_env(self, key, params):
        return self.see(self.start), State(jnp.int32(0), self.start)

    def step_env(self, key, state, action, params):
        obs, state, reward, terminated, info = super().step_env(key, state, action, params)
        return obs, state._replace(x=jnp.float32(state.x)), reward, terminated, info


class TenTimes(purerl.GymnaxWrapper):
    """A wrapper that overrides `step`, as gymnax's own do."""

    def step(self, key, state, action, params=None):
        obs, state, reward, *rest = self._env.step(key, state, action, params)
        return obs, state, 10.0 * reward, *rest


class Elsewhere(purerl.GymnaxWrapper):
    """A wrapper that overrides `reset` alone."""

    def reset(self, key, params=None):
        _, state = self._env.reset(key, params)
        state = state._replace(x=jnp.float32(1.2))
        return self._env.see(state.x), state


def right(params, obs, uniform):
    return jnp.ones(len(obs), jnp.int32), jnp.zeros(len(obs))


def walked(name, steps=8, **options):
    """One environment that always goes right, as a trajectory; it starts anew at its ends."""
    made = env.make(name, **options)
    config = Config(num_envs=1, num_steps=steps, total_steps=steps)
    draws = noise.draw(noise.key(0), 0, config, made.spec, steps)
    state = made.reset(noise.first_reset(noise.key(0), config, made.spec))
    _, trajectory = jax.jit(lambda: rollout.collect_steps(made, right, None, state, draws))()
    return jax.tree.map(lambda x: np.asarray(x)[:, 0], trajectory)


def test_a_state_that_is_reset_to_an_int_is_stepped_by_fractions(register):
    """It was cast back to an int at every step, and stayed 0."""
    register("Walk-v0", Walk)
    rows = walked("Walk-v0")
    np.testing.assert_allclose(rows.obs[:6, 0], [0.0, 0.4, 0.8, 1.2, 1.6, 0.0], atol=1e-6)
    np.testing.assert_allclose(rows.next_obs[:5, 0], [0.4, 0.8, 1.2, 1.6, 2.0], atol=1e-6)
    assert rows.terminated.tolist() == [False] * 4 + [True] + [False] * 3


@pytest.mark.parametrize("start", [0, 0.0, jnp.int32(0), jnp.float32(0.0), np.float64(0.0)])
def test_whatever_a_state_is_reset_to(register, start):
    register("Walk-v0", type("Started", (Walk,), {"start": start}))
    np.testing.assert_allclose(walked("Walk-v0").reward[:3], [0.4, 0.8, 1.2], atol=1e-6)


class Growing(Walk):
    """A state that becomes another with its first step."""

    after: Any = None

    def reset_env(self, key, params):
        return self.see(0.0), {"x": jnp.float32(0.0)}

    def step_env(self, key, state, action, params):
        x = jnp.sum(state["x"]) + 0.4 * action
        return self.see(x), type(self).after(x), x, False, {}


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda x: {"x": x[None]}, r"turns \['x'\] of float32\[\] into float32\[1\]"),
        (lambda x: {"x": x, "more": x}, "must leave a state of the kind that it is given"),
    ],
)
def test_a_state_that_changes_its_shape_or_structure_is_refused(register, after, message):
    register("Growing-v0", type("Grown", (Growing,), {"after": staticmethod(after)}))
    with pytest.raises(ConfigError, match=message):
        env.make("Growing-v0")


# gymnax's wrappers.


class SaysTruncated(Float):
    """As gymnasium's older environments do."""

    def step_env(self, *inputs):
        *outcome, info = super().step_env(*inputs)
        return *outcome, {**info, "TimeLimit.truncated": True}


class SaysTruncation(Float):
    """As brax's do."""

    def step_env(self, *inputs):
        *outcome, info = super().step_env(*inputs)
        return *outcome, {**info, "truncation": True}


class SaysNothing(Float):
    """Its info is none."""

    def step_env(self, *inputs):
        *outcome, _ = super().step_env(*inputs)
        return *outcome, None


class TurnsAround(Float):
    """A step's observation has the axes of a reset's in another order."""

    def reset_env(self, key, params):
        _, state = super().reset_env(key, params)
        return jnp.zeros((2, 3)), state

    def see(self, x):
        return jnp.zeros((3, 2)) + x

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (2, 3), jnp.float32)


class LiesOtherwise(Float):
    """Its space has the axes of its observations in another order."""

    def see(self, x):
        return jnp.zeros((3, 2)) + x

    def observation_space(self, params):
        return spaces.Box(-10.0, 10.0, (2, 3), jnp.float32)


class WholeNumbers(Float):
    """Its actions are integers in bounds."""

    def action_space(self, params):
        return spaces.Box(0, 3, (1,), jnp.int32)


class FiveValues(purerl.GymnaxWrapper):
    """A wrapper of gymnax before 1.0, whose step says `done`."""

    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, _, info = self._env.step(key, state, action, params)
        return obs, state, reward, terminated, info


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (SaysTruncation, r"says in info\['truncation'\] .* must have is_truncated"),
        (SaysTruncated, r"says in info\['TimeLimit.truncated'\] .* must have is_truncated"),
        (LiesOtherwise, r"observes \[3, 2\], and its observation_space says \[2, 3\]"),
        (TurnsAround, r"observes \[3, 2\], and its observation_space says \[2, 3\]"),
        (WholeNumbers, "acts in a Box of int32, and policies choose fractions"),
        (lambda: FiveValues(Float()), "must give observation, .*, truncated and info with final"),
    ],
)
def test_what_would_be_misread_is_refused(register, made, words):
    register("Odd-v0", made)
    with pytest.raises(ConfigError, match=f"Odd-v0 .*{words}") as error:
        env.make("Odd-v0")
    assert "\n" not in str(error.value)


def test_an_info_that_is_none_says_nothing(register):
    register("Silent-v0", SaysNothing)
    assert env.make("Silent-v0").spec.obs_size == 1


def test_truncation_of_ones_own_is_heeded_whatever_info_says(register):
    register("Own-v0", type("Own", (SaysTruncated,), {"is_truncated": lambda *_: True}))
    world = env.make("Own-v0")
    state = world.reset(noise.keys([0]))
    *_, terminated, truncated = world.step(noise.keys([1]), state, jnp.int32([0]))
    assert (terminated.tolist(), truncated.tolist()) == ([False], [True])


def test_a_wrapper_of_step_is_heeded(register):
    """The reward is ten times, and the last observation the true one."""
    register("Walk-v0", Float)
    register("Ten-v0", lambda: TenTimes(Float()))
    plain, wrapped = walked("Walk-v0"), walked("Ten-v0")
    np.testing.assert_array_equal(wrapped.reward, 10.0 * plain.reward)
    for name in ("obs", "next_obs", "terminated", "truncated", "time"):
        np.testing.assert_array_equal(getattr(wrapped, name), getattr(plain, name), name)


def test_a_wrapper_of_reset_is_heeded_at_every_start(register):
    register("Elsewhere-v0", lambda: Elsewhere(Float()))
    rows = walked("Elsewhere-v0", steps=4)
    np.testing.assert_allclose(rows.obs[:, 0], [1.2, 1.6, 1.2, 1.6], atol=1e-6)


def test_wrappers_of_wrappers_are_heeded(register):
    register("Both-v0", lambda: TenTimes(Elsewhere(purerl.GymnaxWrapper(Float()))))
    rows = walked("Both-v0", steps=2)
    np.testing.assert_allclose(rows.reward, [16.0, 20.0], atol=1e-5)


def test_gymnaxs_own_wrapper_is_heeded(register):
    """Sticky actions: with probability 1 the first action, 0, is taken for ever."""
    register("Sticky-v0", lambda: purerl.StickyActionWrapper(Float(), sticky_action_prob=1.0))
    assert not walked("Sticky-v0").reward.any()


def test_a_time_limit_inside_a_wrapper_is_a_truncation(register):
    register("Ten-v0", lambda: TenTimes(Float()))
    rows = walked("Ten-v0", max_episode_steps=3)
    assert rows.truncated.tolist() == [False, False, True] * 2 + [False, False]
    np.testing.assert_allclose(rows.next_obs[[2, 5], 0], 1.2, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_wrapper_needs_float32(register):
    register("Ten-v0", lambda: TenTimes(Float()))
    with pytest.raises(
        ConfigError, match=r"Ten-v0 has its own step.* arithmetic must be 'float32'"
    ):
        env.make("Ten-v0", float_type="float64")


def test_cartpole_with_ten_times_the_reward_returns_ten_times_as_much(register):
    """The report that this comes from, in a few updates of the command's own program."""
    register("Ten-v1", lambda: TenTimes(CartPole()))
    config = Config(env="Ten-v1", num_envs=4, num_steps=32, total_steps=4 * 128, hidden_sizes=(8,))
    metrics = jaxpg.train_population(config, range(2), lanes=2).metrics
    # No pole falls within 8 steps; CartPole itself returned 18 in the same updates.
    assert metrics.return_sum.sum() / metrics.episodes.sum() >= 80.0


# Names that are taken anew, and parameters that are missing.


class Light(CartPole):
    """Another CartPole under CartPole's name: it starts where gymnax says, and falls sooner."""

    def reset_env(self, key, params):
        _, state = super().reset_env(key, params)
        state = state.replace(theta=jnp.float32(0.2))
        return self.get_obs(state), state


def test_what_is_known_of_cartpole_is_not_believed_of_others(register):
    """Its starts and its shortest episode go with the class, not with the name."""
    assert env.make("CartPole-v1").spec.min_episode_steps == 8
    register("CartPole-v1", Light)
    made = env.make("CartPole-v1")
    assert (made.spec.min_episode_steps, made.spec.reset_uniforms) == (1, 0)
    assert float(made.reset(noise.keys([0])).obs[0, 2]) == pytest.approx(0.2)


@struct.dataclass
class NoLimit:
    push: float = 0.4


class Endless(Walk):
    """Its parameters have no time limit, its state no time."""

    default_params = NoLimit()

    def reset_env(self, key, params):
        return self.see(0.0), {"x": jnp.float32(0.0)}

    def step_env(self, key, state, action, params):
        x = state["x"] + params.push * action
        return self.see(x), {"x": x}, x, False, {}


def test_what_an_environment_draws_for_itself_is_no_setting_of_the_process():
    plain = gymnax.make("DeepSea-bsuite")[0].action_mapping
    with jax.default_prng_impl("rbg"), jax.threefry_partitionable(False):
        np.testing.assert_array_equal(find("DeepSea-bsuite").gym.action_mapping, plain)


def test_a_name_that_two_modules_have_is_the_first_ones(register, tmp_path, monkeypatch):
    """The second would be trained as the first, under its own name."""
    source = "from gymnax.environments.classic_control.cartpole import CartPole\n"
    for module in ("first_env", "second_env"):
        (tmp_path / f"{module}.py").write_text(source + "class Mine(CartPole):\n    pass\n")
    (tmp_path / "only_looks.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    first, second = (importlib.import_module(name) for name in ("first_env", "second_env"))
    register("Mine-v0", first.Mine)
    assert find("first_env:Mine-v0").classes[-1] is find("only_looks:Mine-v0").classes[-1]
    with pytest.raises(ConfigError, match="'Mine-v0' is registered as that of first_env, and seco"):
        find("second_env:Mine-v0")
    register("Mine-v0", second.Mine)
    assert find("second_env:Mine-v0").name == "Mine-v0"


def test_without_a_time_limit_one_must_be_given(register):
    register("Endless-v0", Endless)
    with pytest.raises(ConfigError, match=r"Endless-v0 has no time limit .*give max_episode_steps"):
        env.make("Endless-v0")
    rows = walked("Endless-v0", max_episode_steps=3)
    assert rows.truncated.tolist() == [False, False, True] * 2 + [False, False]


def test_a_limit_in_another_type_is_kept_in_it():
    """BernoulliBandit has its limit as a float, and cannot do with an int."""
    assert env.make("BernoulliBandit-misc", max_episode_steps=5).spec.time_limit == 5


@pytest.mark.usefixtures("x64")
def test_what_gymnax_computes_in_32_bits_only_is_refused_in_64():
    with pytest.raises(ConfigError, match="Breakout-MinAtar only runs with arithmetic='float32'"):
        env.make("Breakout-MinAtar", float_type="float64")


def test_an_environment_of_ones_own_is_trained_by_update(register):
    """From its state to the learner's, in the plain core."""
    register("Walk-v0", Walk)
    config = training.as_arrays(Config(env="Walk-v0", num_envs=2, num_steps=4, total_steps=16))
    algorithm = jaxpg.core.algorithms.build(config)
    state = jax.jit(lambda key: learner.init(config, key, algorithm))(noise.key(0))
    _, metrics = jax.jit(lambda state: learner.update(config, state, algorithm))(state)
    assert metrics.env_steps == 8
