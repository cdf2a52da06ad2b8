"""Parameters of an environment: both packages by hand, what follows from them, what is refused."""

import dataclasses
import math
from functools import partial

import gymnax
import gymnax.wrappers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_close
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.classic_control.cartpole import CartPole
from gymnax.environments.classic_control.cartpole import EnvParams as CartPoleParams

import jaxpg
import torch_ref
from benchmarks import readme
from jaxpg import fast, world
from jaxpg.core import config as configs
from jaxpg.core import env, learner, noise, rollout, training
from jaxpg.core.config import Config, ConfigError, EnvParams
from jaxpg.core.rules import validate
from jaxpg.fast import lanes
from jaxpg.runs import planning
from tests import pages
from torch_ref import dynamics as torch_dynamics
from torch_ref import env as torch_env
from torch_ref.config import EnvParams as TorchEnvParams

HEAVY = {"gravity": 12.0, "masscart": 0.8, "masspole": 0.3, "length": 0.7, "force_mag": 8.0}
HEAVY |= {"tau": 0.03, "theta_threshold_radians": 0.3, "x_threshold": 1.5}
STRONG = {"g": 9.0, "m": 0.8, "l": 1.3, "dt": 0.04, "max_torque": 5.0, "max_speed": 6.0}


def cartpole_by_hand(values, actions, p):
    """Barto, Sutton and Anderson's equations, with the two masses and the pole's half length."""
    _, x_dot, theta, theta_dot = values.T
    mass = p["masscart"] + p["masspole"]
    force = np.where(actions == 1, p["force_mag"], -p["force_mag"])
    pull = p["masspole"] * p["length"]
    temp = (force + pull * theta_dot**2 * np.sin(theta)) / mass
    inertia = p["length"] * (4 / 3 - p["masspole"] * np.cos(theta) ** 2 / mass)
    theta_acc = (p["gravity"] * np.sin(theta) - np.cos(theta) * temp) / inertia
    x_acc = temp - pull * theta_acc * np.cos(theta) / mass
    rates = np.stack([x_dot, x_acc, theta_dot, theta_acc], -1)
    after = values + p["tau"] * rates
    fallen = (abs(after[:, 0]) > p["x_threshold"]) | (
        abs(after[:, 2]) > p["theta_threshold_radians"]
    )
    return after, fallen


def pendulum_by_hand(values, actions, p):
    """θ'' = 3 g / (2 l) sin θ + 3 u / (m l²), the torque and the speed within their bounds."""
    theta, speed = values.T
    torque = np.clip(actions[:, 0], -p["max_torque"], p["max_torque"])
    acc = 1.5 * p["g"] / p["l"] * np.sin(theta) + 3 * torque / (p["m"] * p["l"] ** 2)
    speed = np.clip(speed + acc * p["dt"], -p["max_speed"], p["max_speed"])
    return np.stack([theta + speed * p["dt"], speed], -1), np.zeros(len(values), bool)


def start(name, count=40):
    rng = np.random.default_rng(0)
    if name == "CartPole-v1":
        return rng.uniform(-1, 1, (count, 4)) * [1.6, 3, 0.32, 3], rng.integers(2, size=count)
    return rng.uniform(-1, 1, (count, 2)) * [9, 6], rng.uniform(-7, 7, (count, 1))


def steps(name, values, actions, given):
    """(state [N, fields], terminated) of one step in jaxpg and in torch_ref."""
    world = env.make(name, float_type="float64", env_params=EnvParams(given))
    size = values.shape[1]
    state = world.reset(jnp.full((len(values), size), 0.5, "float32"), EnvParams(given))
    fields = ("x", "x_dot", "theta", "theta_dot") if size == 4 else ("theta", "theta_dot")
    placed = state.inner.replace(**{f: jnp.asarray(values[:, i]) for i, f in enumerate(fields)})
    keys = noise.split(noise.key(0), len(values))
    after, _, ended, _ = world.step(keys, state._replace(inner=placed), jnp.asarray(actions))
    ours = np.stack([getattr(after.inner, f) for f in fields], -1)

    twin = torch_env.make(name, float_type="float64", env_params=TorchEnvParams(given))
    theirs = twin.reset(torch.full(values.shape, 0.5), TorchEnvParams(given))
    theirs = theirs._replace(inner=type(theirs.inner)(*torch.tensor(values).unbind(-1)))
    theirs, _, over, _ = twin.step(None, theirs, torch.tensor(actions))
    return (ours, ended), (torch.stack(tuple(theirs.inner), -1), over)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "by_hand", "given"),
    [
        ("CartPole-v1", cartpole_by_hand, HEAVY),
        ("Pendulum-v1", pendulum_by_hand, STRONG),
        ("CartPole-v1", cartpole_by_hand, {"masspole": 0.3}),  # what is made of it follows
        ("Pendulum-v1", pendulum_by_hand, {"max_torque": 0.5}),
    ],
    ids=["cartpole", "pendulum", "one of cartpole's", "one of pendulum's"],
)
def test_a_step_is_that_of_the_equations_in_both_packages(name, by_hand, given):
    kind = torch_dynamics.CartPoleParams if name == "CartPole-v1" else torch_dynamics.PendulumParams
    values, actions = start(name)
    expected, over = by_hand(values, actions, kind()._asdict() | given)
    for found, ended in steps(name, values, actions, given):
        assert_close(found, expected, 1e-13, "state")
        np.testing.assert_array_equal(ended, over)
    usual, _ = by_hand(values, actions, kind()._asdict())
    assert abs(usual - expected).max() > 0.01  # it makes a difference


def test_what_the_twin_has_by_default_is_gymnaxs():
    for name, kind in (
        ("CartPole-v1", torch_dynamics.CartPoleParams),
        ("Pendulum-v1", torch_dynamics.PendulumParams),
    ):
        theirs = vars(gymnax.make(name)[1])
        follow = torch_env._written()[name].follow
        assert set(theirs) == {*kind._fields, *follow, "max_steps_in_episode"}
        for key, value in kind()._asdict().items():
            assert value == pytest.approx(theirs[key], rel=1e-15)


def test_lanes_of_other_gravities_are_rows_of_one_batch():
    """Under vmap each lane has its own value, through custom_vmap too."""
    given = EnvParams({"gravity": 0.0})
    gravities = jnp.array([5.0, 9.8, 20.0])
    uniforms = jnp.asarray(np.random.default_rng(0).random((3, 4, 4), np.float32))
    keys = noise.split(noise.key(0), 4)

    @partial(jax.jit, static_argnums=0)
    def speeds(rows, gravity, uniform):
        world = env.make("CartPole-v1", env_params=given, rows=rows)
        state = world.reset(uniform, EnvParams({"gravity": gravity}))
        state, *_ = world.step(keys, state, jnp.zeros(4, jnp.int32))
        state = world.restart(state, jnp.array([True, False, True, False]), uniform)
        state, *_ = world.step(keys, state, jnp.zeros(4, jnp.int32))
        return state.inner.theta_dot

    plain, batched = (
        jax.vmap(partial(speeds, rows))(gravities, uniforms) for rows in (jax.vmap, lanes.rows)
    )
    np.testing.assert_array_equal(plain, batched)
    for i, gravity in enumerate(gravities):
        assert_close(plain[i], speeds(jax.vmap, gravity, uniforms[i]), 1e-6, "one lane")
    assert len(np.unique(np.asarray(speeds(jax.vmap, 5.0, uniforms[0])))) == 4


def test_no_start_of_an_episode_is_used_twice():
    """Poles that fall at once: each step has a reset of its own, of CartPole's own eight have."""
    config = Config(num_envs=2, num_steps=16, env_params={"theta_threshold_radians": 1e-9})
    world = env.make(config.env, env_params=config.env_params)

    @jax.jit
    def met(key):
        draws = noise.draw(key, 0, config, world.spec, config.num_steps)
        state = world.reset(noise.first_reset(key, config, world.spec), config.env_params)
        push = jnp.zeros(2, jnp.int32), jnp.zeros(2)
        return rollout.collect_steps(world, lambda *_: push, {}, state, draws)[1]

    trajectory = met(noise.key(0))
    assert trajectory.terminated.all()
    starts = np.asarray(trajectory.obs).reshape(-1, 4)
    assert len(np.unique(starts, axis=0)) == len(starts)
    assert env.make("CartPole-v1").spec.min_episode_steps == 8


def test_bounds_of_an_action_follow():
    interface = env.interface("Pendulum-v1", env_params=EnvParams({"max_torque": 5.0}))
    assert interface.decode(jnp.array([7.0])).tolist() == [5.0]
    assert env.interface("Pendulum-v1").decode(jnp.array([7.0])).tolist() == [2.0]


def test_an_integer_is_static_and_changes_the_environment():
    """A memory of n steps is asked for in the n-th."""
    for length in (2, 4):
        given = EnvParams({"memory_length": length})
        world = env.make("MemoryChain-bsuite", env_params=given)
        keys = noise.split(noise.key(0), 1)
        state, ends = world.reset(keys, given), []
        for _ in range(6):
            state, _, terminated, _ = world.step(keys, state, jnp.zeros(1, jnp.int32))
            ends.append(bool(terminated[0]))
        assert ends.index(True) == length
        config = Config(env="MemoryChain-bsuite", env_params=given)
        assert len(jax.tree.leaves(config)) == len(jax.tree.leaves(Config()))


def test_whole_numbers_are_taken_where_there_are_fractions():
    config = Config(env_params={"gravity": 12, "masspole": 0.3})
    assert config.env_params.static == {"gravity"}
    assert env.settle(config).env_params.traced == {"gravity": 12.0, "masspole": 0.3}
    arrays = training.as_arrays(config).env_params
    assert {name: x.dtype for name, x in arrays.items()} == dict.fromkeys(arrays, jnp.float32)
    assert fast.static(training.as_arrays(config)).env_params == {"gravity": 0.0, "masspole": 0.0}


CARTPOLES = "gravity, masscart, masspole, length, force_mag, tau, theta_threshold_radians"
REFUSED = [
    ("CartPole-v1", {"gravty": 9.0}, r"'gravty'; did you mean 'gravity'\? Allowed: " + CARTPOLES),
    ("CartPole-v1", {"total_mass": 2.0}, r"is computed as masscart \+ masspole"),
    ("CartPole-v1", {"polemass_length": 2.0}, r"masspole \* length: set those instead"),
    ("CartPole-v1", {"gravity": True}, "gravity of CartPole-v1 must be a number; got True"),
    ("Pendulum-v1", {"gravity": 9.0}, "Pendulum-v1 has no parameter 'gravity'"),
]
REFUSED_BY_GYMNAX = [
    ("Catch-bsuite", {"gravity": 9.0}, "no parameter 'gravity', nor any other to set"),
    ("MemoryChain-bsuite", {"memory_length": 2.5}, "must be an integer, which is static; got 2.5"),
    ("FourRooms-misc", {"resample_init_pos": 1}, "must be true or false; got 1"),
    ("Acrobot-v1", {"available_torque": 2.0}, "no parameter 'available_torque'"),
]


@pytest.mark.parametrize(
    ("package", "name", "given", "sentence"),
    [
        *(("jaxpg", *case) for case in REFUSED + REFUSED_BY_GYMNAX),
        *(("torch_ref", *case) for case in REFUSED),
        ("torch_ref", "Acrobot-v1", {"dt": 0.1}, "gymnasium's Acrobot-v1 takes no env_params here"),
    ],
)
def test_what_is_no_parameter_is_refused_in_a_sentence(package, name, given, sentence):
    if package == "jaxpg":
        with pytest.raises(ConfigError, match=sentence):
            env.make(name, env_params=EnvParams(given))
        with pytest.raises(ConfigError, match=sentence):
            training.as_arrays(Config(env=name, env_params=given))
    else:
        config = torch_ref.config.Config(env=name, env_params=given)
        with pytest.raises(torch_ref.config.ConfigError, match=sentence):
            torch_ref.training.as_tensors(config)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_steps_in_episode": 200}, r"is max_episode_steps \(--max-episode-steps\); got 200"),
        ({"gravity": "strong"}, "gravity must be a number; got 'strong'"),
        ({"gravity": math.nan}, "gravity must be finite; got nan"),
        ({3: 4.0}, "must be numbers by name; got 3: 4.0"),
        ([("gravity", 3.0)], "must be a dictionary"),
    ],
)
def test_values_without_a_meaning_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        validate(Config(env_params=given))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gravity"], "NAME=VALUE, each name once; got 'gravity'"),
        (["g=1", "g=2"], "each name once; got 'g=2'"),
        (["g=high"], "g must be a number, true or false; got 'high'"),
    ],
)
def test_words_that_are_no_parameters_are_refused(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        configs.parse_env_params(words)


def test_words_are_read_by_what_they_look_like():
    found = configs.parse_env_params(["a=12", "b=1e-3", "c=true", "d=False"])
    assert [*map(repr, found.values())] == ["12", "0.001", "True", "False"]
    assert found.static == {"a", "c", "d"}


def test_an_algorithm_of_another_config_is_refused():
    """It would train with the environment's own parameters in silence."""
    config = Config(num_envs=2, num_steps=16, total_steps=64, env_params={"gravity": 3.0})
    algorithm = fast.build(dataclasses.replace(config, env_params={}))
    with pytest.raises(ConfigError, match=r"built for env_params \[\], and is given \['gravity'\]"):
        learner.init(training.as_arrays(config), noise.key(0), algorithm)
    twin = torch_ref.config.Config(**dataclasses.asdict(config))
    own = torch_ref.algorithms.build(dataclasses.replace(twin, env_params={}))
    with pytest.raises(torch_ref.config.ConfigError, match=r"given \['gravity'\]"):
        torch_ref.learner.init(torch_ref.training.as_tensors(twin), torch_ref.noise.key(0), own)


def test_so_is_one_of_another_static_value():
    maze = Config(env="MetaMaze-misc", num_envs=2, env_params={"normalize_time": True})
    other = dataclasses.replace(maze, env_params={"normalize_time": False})
    words = (
        r"built for env_params \['normalize_time=True'\], and is given \['normalize_time=False'\]"
    )
    with pytest.raises(ConfigError, match=words):
        learner.init(training.as_arrays(other), noise.key(0), fast.build(maze))


def test_the_page_is_true():
    assert pages.run(readme.ROOT / "docs" / "environments.md") == 2


class Moody(CartPole):
    """Decides in Python how strong it is."""

    def step_env(self, key, state, action, params):
        if params.force_mag > 10.0:
            params = params.replace(gravity=0.0)
        return super().step_env(key, state, action, params)


def test_an_environment_that_decides_in_python_says_so(monkeypatch):
    monkeypatch.setitem(gymnax.registration._registry, "Moody-v0", Moody)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Moody-v0"])
    env.make("Moody-v0")
    with pytest.raises(ConfigError, match="Moody-v0 decides in Python by a parameter, so"):
        env.make("Moody-v0", env_params=EnvParams({"force_mag": 3.0}))


class Harder(CartPole):
    """Another environment, of the same parameters."""


def test_a_whole_number_for_a_float_is_that_number_on_every_way():
    """`init`, given a config as it is, kept the environment's own gravity."""
    config = Config(env_params={"gravity": 12})
    for package in (jaxpg, torch_ref):
        made = package.build(config)
        state = package.init(config, package.key(0), made)
        np.testing.assert_array_equal(state.env_state.env_params["gravity"], [12.0] * 8)


def test_what_is_made_of_a_parameter_follows_wherever_the_parameters_are(monkeypatch):
    """In a subclass and in a wrapper the physics is that of the parameters, too."""
    sticky = gymnax.wrappers.StickyActionWrapper
    kinds = {"Harder-v0": Harder, "Wrapped-v0": lambda: sticky(CartPole(), 0.0)}
    for name, make in kinds.items():
        monkeypatch.setitem(gymnax.registration._registry, name, make)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, *kinds])
    for name in ("CartPole-v1", *kinds):
        one = world.find(name).with_params({"masspole": 1.0}).params
        assert (one.total_mass, one.polemass_length) == (2.0, 0.5)
        with pytest.raises(ConfigError, match=r"total_mass of .* is computed as masscart"):
            env.make(name, env_params=EnvParams({"total_mass": 5.0}))


class Clock(CartPole):
    """It is seen how many steps have been taken, of as many as there may be."""

    def get_obs(self, state, params=None, key=None):
        return state.time

    def observation_space(self, params):
        return spaces.Discrete(params.max_steps_in_episode + 1)


def test_a_clock_that_is_observed_is_as_long_as_the_limit(monkeypatch):
    monkeypatch.setitem(gymnax.registration._registry, "Clock-v0", Clock)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Clock-v0"])
    made = env.make("Clock-v0", max_episode_steps=9)
    assert made.spec.obs_size == 10
    assert made.reset(noise.keys(range(2))).obs.shape == (2, 10)
    assert env.interface("Clock-v0", max_episode_steps=9).encode(jnp.int32(3)).shape == (10,)


@struct.dataclass
class OfAnyKind(CartPoleParams):
    """Parameters as JAX environments have them."""

    literal: float = 1
    of_numpy: float = np.float32(2.0)
    of_jax: jax.Array = struct.field(default_factory=lambda: jnp.array(3.0))
    counted: jax.Array = struct.field(default_factory=lambda: jnp.int32(4))
    several: jax.Array = struct.field(default_factory=lambda: jnp.ones(2))
    max_steps_in_episode: jax.Array = struct.field(default_factory=lambda: jnp.int32(20))


class Various(CartPole):
    """CartPole with them."""

    default_params = property(lambda self: OfAnyKind())

    def step_env(self, key, state, action, params):
        obs, state, _, done, info = super().step_env(key, state, action, params)
        reward = params.literal + 10 * params.of_numpy + 100 * params.of_jax + 1000 * params.counted
        return obs, state, jnp.asarray(reward, float), done, info


@pytest.fixture
def various(monkeypatch):
    monkeypatch.setitem(gymnax.registration._registry, "Various-v0", Various)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Various-v0"])
    return "Various-v0"


def test_a_parameter_is_a_number_of_python_numpy_or_jax(various):
    given = {"literal": 1.5, "of_numpy": 2.5, "of_jax": 3.5, "counted": 5}
    settled = env.settle(Config(env=various, env_params=EnvParams(given), num_envs=1))
    assert settled.env_params.static == {"counted"}
    made = env.make(various, env_params=settled.env_params)
    assert made.spec.time_limit == 20
    key = noise.key(0)
    state = made.reset(noise.first_reset(key, settled, made.spec), settled.env_params)
    _, reward, _, _ = made.step(noise.split(key, 1), state, jnp.zeros(1, jnp.int32))
    assert reward[0] == 1.5 + 25.0 + 350.0 + 5000.0
    with pytest.raises(ConfigError, match="Various-v0 has no parameter 'several'"):
        env.make(various, env_params=EnvParams({"several": 1.0}))


def test_a_setting_may_have_an_integer_but_no_two_differ_in_it(various):
    config = Config(env=various, num_envs=2, num_steps=4, total_steps=16)
    planned = planning.plan("custom", config, [0], 2, [{"env.counted": 3, "env.of_jax": 1}])
    assert planned.config.env_params == {"counted": 3, "of_jax": 1.0}
    assert planned.config.env_params.static == {"counted"}
    with pytest.raises(ConfigError, match=r"env.counted is static, .* got 3 and 4"):
        planning.plan("custom", config, [0], 2, [{"env.counted": 3}, {"env.counted": 4}])


def test_they_are_leaves_whose_kind_stays():
    """A tree of flags, as custom_vmap makes, has the structure of the numbers."""
    params = EnvParams({"gravity": 9.0, "memory": 3, "noisy": True})
    flags = jax.tree.map(lambda _: True, params)
    assert jax.tree.structure(flags) == jax.tree.structure(params)
    assert flags == {"gravity": True, "memory": 3, "noisy": True}
    assert jax.tree.structure(EnvParams({"gravity": 9.0, "memory": 4, "noisy": True})) != (
        jax.tree.structure(params)
    )
    assert hash(Config(env_params=params)) == hash(Config(env_params=EnvParams(params)))
