"""env: one step against gymnasium, the twins against each other, time limits and restarts."""

import itertools
import math
import subprocess
import sys
from functools import cache

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_close
from gymnax.environments.classic_control.cartpole import CartPole

from jaxpg.core import arithmetic, dynamics, env, noise
from jaxpg.core.config import ConfigError
from jaxpg.core.types import EnvSpec
from torch_ref import arithmetic as torch_arithmetic
from torch_ref import dynamics as torch_dynamics
from torch_ref import env as torch_env
from torch_ref import noise as torch_noise
from torch_ref import training as torch_training
from torch_ref.config import Config as TorchConfig
from torch_ref.config import ConfigError as TorchConfigError

CARTPOLE_FIELDS = ("x", "x_dot", "theta", "theta_dot")
CARTPOLE_REACH = np.array([2.4, 4.0, 12 * 2 * math.pi / 360, 4.0])  # position, speed: what occurs
FIELDS = {"CartPole-v1": CARTPOLE_FIELDS, "Pendulum-v1": ("theta", "theta_dot")}
NUM_STATES = 200


@cache
def made(name, **options):
    """An environment whose functions are programs."""
    plain = env.make(name, **options)
    functions = {part: jax.jit(getattr(plain, part)) for part in ("reset", "step", "restart")}
    return plain._replace(**functions)


def jax_state(environment, fields, values, time=0):
    """The jax environments, N of them, placed at `values` [N, len(fields)]."""
    state = environment.reset(np.full((len(values), len(fields)), 0.5, np.float32))
    columns = {name: jnp.asarray(values[:, i], state.obs.dtype) for i, name in enumerate(fields)}
    clock = jnp.asarray(np.full(len(values), time, np.int32))
    return state._replace(inner=state.inner.replace(time=clock, **columns), time=clock)


def torch_state(environment, values, time=0):
    """The torch environments, N of them, placed at `values` [N, fields]."""
    state = environment.reset(torch.full(values.shape, 0.5))
    inner = type(state.inner)(*torch.tensor(values, dtype=state.obs.dtype).unbind(-1))
    return state._replace(inner=inner, time=torch.full((len(values),), time, dtype=torch.int32))


def env_keys(count):
    return noise.split(noise.key(0), count)


def random_start(name, rng, count=NUM_STATES):
    """States inside the task's limits, many of them one step from its end, and actions."""
    if name == "CartPole-v1":
        values = rng.uniform(-1, 1, (count, 4)) * CARTPOLE_REACH
        return np.repeat(values, 2, axis=0), np.tile([0, 1], count)
    values = rng.uniform(-1, 1, (count, 2)) * [4 * math.pi, 8.0]
    return values, rng.uniform(-3.0, 3.0, (count, 1))  # a third of the torques is out of range


def gymnasium_step(name, values, actions):
    """States, observations, rewards and terminations of gymnasium's own environment."""
    reference = gymnasium.make(name).unwrapped
    reference.reset(seed=0)
    rows = []
    for value, action in zip(values, actions, strict=True):
        reference.state = np.array(value)
        if name == "CartPole-v1":
            reference.steps_beyond_terminated = None
        obs, reward, terminated, _, _ = reference.step(action)
        rows.append((np.array(reference.state), obs, reward, terminated))
    return tuple(map(np.array, zip(*rows, strict=True)))


def step_both(name, float_type, values, actions, limit=None):
    """One step of both packages from the same states; each (state [N, fields], obs, …)."""
    ours = made(name, float_type=float_type, max_episode_steps=limit)
    twin = torch_env.make(name, float_type=float_type, max_episode_steps=limit)
    dtype = jnp.int32 if name == "CartPole-v1" else float_type
    start = jax_state(ours, FIELDS[name], values)
    state, *results = ours.step(env_keys(len(values)), start, jnp.asarray(actions, dtype))
    fields = np.stack([getattr(state.inner, field) for field in FIELDS[name]], axis=-1)
    torch_actions = torch.tensor(actions)
    if name != "CartPole-v1":
        torch_actions = torch_actions.to(getattr(torch, float_type))
    twin_state, *twin_results = twin.step(None, torch_state(twin, values), torch_actions)
    twin_fields = torch.stack(tuple(twin_state.inner), dim=-1)
    return (fields, state.obs, *results), (twin_fields, twin_state.obs, *twin_results)


@pytest.mark.parametrize("float_type", ["float32", "float64"])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_one_step_is_gymnasiums(name, float_type):
    values, actions = random_start(name, np.random.default_rng(0))
    expected = gymnasium_step(name, values, actions)
    with jax.enable_x64(float_type == "float64"):
        both = step_both(name, float_type, values, actions)
    state_tolerance = 1e-14 if float_type == "float64" else 1e-6
    for fields, obs, reward, terminated, _ in both:
        assert_close(fields, expected[0], state_tolerance, "state")
        assert_close(obs, expected[1], 1e-6, "obs")  # gymnasium's is float32
        assert_close(reward, expected[2], state_tolerance, "reward")
        np.testing.assert_array_equal(terminated, expected[3])
    if name == "CartPole-v1":
        assert 20 < expected[3].sum() < len(values) - 20  # both outcomes were tried


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_a_squashed_action_is_scaled_to_the_bounds(package):
    """Pendulum's are ±2, and -1 and 3 here: -1 + 4 (1 + tanh a) / 2. No end of them is passed."""
    ours = package == "jaxpg"
    module, array = (dynamics, jnp.array) if ours else (torch_dynamics, torch.tensor)
    for a, low, high, expected in (
        (0.5, -2.0, 2.0, 2 * math.tanh(0.5)),
        (-1.5, -2.0, 2.0, 2 * math.tanh(-1.5)),
        (0.5, -1.0, 3.0, 1 + 2 * math.tanh(0.5)),
        (50.0, -0.1, 0.7, 0.7),
        (-50.0, -0.7, 0.1, -0.7),
    ):
        action = array([a])
        squashed = module.bounded(action, array([low]), array([high]), True)
        assert_close(squashed, [expected], 1e-7)
        assert low <= float(squashed[0]) <= high
        clipped = module.bounded(action, array([low]), array([high]), False)
        assert_close(clipped, [np.clip(a, low, high)], 1e-7)


@pytest.mark.usefixtures("x64")
def test_the_environment_squashes_what_the_policy_sampled():
    """One step of Pendulum with the torque 2 tanh(0.8) is one with the action 0.8."""
    values = np.array([[0.3, -0.1]])
    plain, squashing = (
        env.make("Pendulum-v1", float_type="float64", squash=squash) for squash in (False, True)
    )
    twin = torch_env.make("Pendulum-v1", float_type="float64", squash=True)
    state = jax_state(plain, FIELDS["Pendulum-v1"], values)
    _, expected, *_ = plain.step(env_keys(1), state, jnp.array([[2 * math.tanh(0.8)]]))
    _, reward, *_ = squashing.step(env_keys(1), state, jnp.array([[0.8]]))
    assert_close(reward, expected, 1e-15)
    state = torch_state(twin, values)
    _, reward, *_ = twin.step(None, state, torch.tensor([[0.8]], dtype=torch.float64))
    assert_close(reward, expected, 1e-15)


@pytest.mark.usefixtures("x64")
def test_the_dials_are_the_twins():
    """All that is allowed in every state, and what a step says of it; from the first states on."""
    ours = env.make("jaxpg.proof.dials:Dials-v0", float_type="float64")
    twin = torch_env.make("jaxpg.proof.dials:Dials-v0", float_type="float64")
    assert ours.spec == EnvSpec(**twin.spec._asdict())
    values = np.array(list(itertools.product(range(4), range(4), range(3), range(2))))
    state = ours.reset(env_keys(len(values)))
    first, second = (jnp.asarray(values[:, i], jnp.int32) for i in range(2))
    state = state._replace(inner=state.inner.replace(first=first, second=second))
    twin_state = twin.reset(np.zeros((len(values), 2), np.uint32))
    np.testing.assert_array_equal(twin_state.obs, np.tile([0, 0, 0, 1, 1, 1, 1], (96, 1)))
    inner = twin_state.inner._replace(
        first=torch.tensor(values[:, 0], dtype=torch.int32),
        second=torch.tensor(values[:, 1], dtype=torch.int32),
    )
    found = jax.jit(ours.step)(env_keys(len(values)), state, jnp.asarray(values[:, 2:]))
    theirs = twin.step(None, twin_state._replace(inner=inner), torch.tensor(values[:, 2:]))
    assert_close(found[0].obs, theirs[0].obs, 1e-15)
    for one, other in zip(found[1:], theirs[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[2].sum() == 4  # up from (2, 2), (3, 2), (2, 3) and, not at all, (3, 3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_one_step_is_the_twins(name):
    values, actions = random_start(name, np.random.default_rng(1))
    ours, twin = step_both(name, "float64", values, actions, limit=1)
    for label, actual, expected in zip(
        ("state", "obs", "reward", "terminated", "truncated"), ours, twin, strict=True
    ):
        assert_close(actual, expected, 1e-12, label)
    assert np.any(ours[-1])  # with a limit of one step, whatever did not fall is truncated


@pytest.mark.as_users_run(1)
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_200_steps_on_the_float32_grid_are_bit_equal_to_the_twin(name):
    """Open loop, with restarts; float32 alone would differ by 0.3 after as many steps."""
    num_envs, rng = 16, np.random.default_rng(2)
    ours = arithmetic.grid_env(env.make(name, float_type="float64", max_episode_steps=60))
    twin = torch_arithmetic.grid_env(
        torch_env.make(name, float_type="float64", max_episode_steps=60)
    )
    step, restart = jax.jit(ours.step), jax.jit(ours.restart)
    uniforms = rng.random((201, num_envs, ours.spec.reset_uniforms), np.float32)
    state, twin_state = ours.reset(jnp.asarray(uniforms[0])), twin.reset(torch.tensor(uniforms[0]))
    episodes = 0
    for uniform in uniforms[1:]:
        if ours.spec.discrete:
            action = rng.integers(2, size=num_envs)
        else:
            action = rng.uniform(-2.5, 2.5, (num_envs, 1)).astype(np.float32).astype(np.float64)
        state, *results = step(env_keys(num_envs), state, jnp.asarray(action))
        twin_state, *twin_results = twin.step(None, twin_state, torch.tensor(action))
        for actual, expected in zip(
            (state.obs, *results), (twin_state.obs, *twin_results), strict=True
        ):
            np.testing.assert_array_equal(actual, expected)
        done = np.logical_or(*results[1:])
        episodes += done.sum()
        state = restart(state, jnp.asarray(done), jnp.asarray(uniform))
        twin_state = twin.restart(twin_state, torch.tensor(done), torch.tensor(uniform))
        for actual, expected in zip(state[1:], twin_state[1:], strict=True):
            np.testing.assert_array_equal(actual, expected)
    assert episodes >= num_envs


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("field", ["x", "theta"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_cartpole_ends_just_beyond_its_thresholds(field, sign):
    """Resting at p, a step moves p by 0.02 · 0 = 0: the position after it is p itself."""
    threshold = {"x": 2.4, "theta": 12 * 2 * math.pi / 360}[field]
    values = np.zeros((3, 4))
    offsets = [-1e-9, 0.0, 1e-9]  # gymnasium compares strictly: at the threshold it goes on
    values[:, CARTPOLE_FIELDS.index(field)] = sign * (threshold + np.array(offsets))
    for *_, terminated, _ in step_both("CartPole-v1", "float64", values, np.zeros(3, int)):
        np.testing.assert_array_equal(terminated, [False, False, True])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_the_time_limit_truncates_unless_the_task_ended_in_that_step(package):
    """Three poles: upright in step 4, upright in step 5 = limit, falling in step 5 = limit."""
    values = np.zeros((3, 4))
    values[2] = [0.0, 0.0, 0.2, 3.0]  # 0.2 + 0.02 · 3 = 0.26 rad > 0.209
    clock = np.array([3, 4, 4])
    if package == "jaxpg":
        environment = made("CartPole-v1", float_type="float64", max_episode_steps=5)
        state = jax_state(environment, CARTPOLE_FIELDS, values, time=clock)
        action = np.zeros(3, np.int32)
    else:
        environment = torch_env.make("CartPole-v1", float_type="float64", max_episode_steps=5)
        state = torch_state(environment, values)._replace(time=torch.tensor(clock))
        action = torch.zeros(3, dtype=torch.int64)
    assert environment.spec.time_limit == 5
    state, reward, terminated, truncated = environment.step(env_keys(3), state, action)
    np.testing.assert_array_equal(terminated, [False, False, True])
    np.testing.assert_array_equal(truncated, [False, True, False])
    np.testing.assert_array_equal(state.time, [4, 5, 5])
    np.testing.assert_array_equal(reward, [1.0, 1.0, 1.0])


@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_restart_touches_only_the_environments_that_are_done(package):
    module, draws = (env, noise) if package == "jaxpg" else (torch_env, torch_noise)
    array = jnp.asarray if package == "jaxpg" else torch.tensor
    environment = made("CartPole-v1") if package == "jaxpg" else module.make("CartPole-v1")
    uniforms = np.random.default_rng(3).random((2, 4, 4), np.float32)
    old = environment.reset(array(uniforms[0]))
    keys = draws.split(draws.key(0), 4)
    old, *_ = environment.step(keys, old, array(np.array([0, 1, 0, 1])))
    fresh = environment.reset(array(uniforms[1]))
    new = environment.restart(old, array(np.array([False, True, False, True])), array(uniforms[1]))
    for name in ("obs", "time", "episode_return"):
        rows = [np.asarray(getattr(state, name)) for state in (new, old, fresh)]
        np.testing.assert_array_equal(rows[0][[0, 2]], rows[1][[0, 2]])
        np.testing.assert_array_equal(rows[0][[1, 3]], rows[2][[1, 3]])
        assert not np.array_equal(rows[1], rows[2])
    inner_rows = np.stack([np.asarray(getattr(new.inner, f)) for f in CARTPOLE_FIELDS], -1)
    np.testing.assert_array_equal(inner_rows, new.obs)


@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_a_step_reports_the_true_last_observation_and_never_restarts(package):
    """A falling pole's next observation lies beyond the threshold, not at a fresh start."""
    values = np.array([[0.0, 0.0, 0.2, 3.0]])  # next θ: 0.2 + 0.02 · 3
    ours, twin = step_both("CartPole-v1", "float32", values, np.array([1]))
    _, obs, _, terminated, _ = ours if package == "jaxpg" else twin
    assert bool(terminated[0])
    assert float(obs[0, 2]) == pytest.approx(0.26, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "reach"), [("CartPole-v1", [0.05] * 4), ("Pendulum-v1", [math.pi, 1.0])]
)
def test_resets_fill_their_range(name, reach):
    """The lowest and highest uniform give the ends of the range, ½ gives 0."""
    low, middle, high = 0.0, 0.5, 1.0 - 2.0**-23
    uniforms = np.array([[low] * len(reach), [middle] * len(reach), [high] * len(reach)])
    uniforms = uniforms.astype(np.float32)
    state = made(name).reset(uniforms)
    twin_state = torch_env.make(name).reset(torch.tensor(uniforms))
    for i, (field, bound) in enumerate(zip(FIELDS[name], reach, strict=True)):
        expected = [-bound, 0.0, bound]
        np.testing.assert_allclose(getattr(state.inner, field), expected, atol=1e-6)
        np.testing.assert_allclose(twin_state.inner[i], expected, atol=1e-6)
    np.testing.assert_array_equal(state.time, 0)
    np.testing.assert_array_equal(state.episode_return, 0.0)


@pytest.mark.usefixtures("x64")
def test_no_cartpole_episode_is_shorter_than_its_stated_minimum():
    """Every sequence of actions from every corner of the starts: 7 steps never end, 8 can."""
    environment = made("CartPole-v1", float_type="float64")
    limit = environment.spec.min_episode_steps
    assert limit == torch_dynamics.CARTPOLE_MIN_STEPS == 8
    corners = np.array(list(itertools.product([-0.05, 0.05], repeat=4)))
    plans = np.array(list(itertools.product([0, 1], repeat=limit)))
    values = np.repeat(corners, len(plans), axis=0)
    actions = jnp.asarray(np.tile(plans, (len(corners), 1)).T)
    keys = env_keys(len(values))

    def step(state, action):
        state, _, terminated, _ = environment.step(keys, state, action)
        return state, terminated

    state = jax_state(environment, CARTPOLE_FIELDS, values)
    _, ended = jax.jit(lambda state: jax.lax.scan(step, state, actions))(state)
    assert not np.any(ended[:-1])
    assert np.any(ended[-1])


def rollout_of(name, steps=5):
    """A reset, some steps and a restart as one function of a key, and the state's types."""
    environment = env.make(name)
    spec, num_envs = environment.spec, 2

    def run(key):
        key_reset, key_step = noise.split(key, 2)
        draws = (
            noise.uniform(key_reset, (num_envs, spec.reset_uniforms))
            if spec.reset_uniforms
            else noise.split(key_reset, num_envs)
        )
        shape = (num_envs, *spec.action_shape)
        action = jnp.zeros(shape, jnp.int32) if spec.discrete else jnp.full(shape, 0.1)

        def step(state, key):
            state, reward, terminated, truncated = environment.step(
                noise.split(key, num_envs), state, action
            )
            done = jnp.logical_or(terminated, truncated)
            outputs = (state.obs, reward, jnp.logical_and(terminated, truncated))
            return environment.restart(state, done, draws), outputs

        state = environment.reset(draws)
        return jax.lax.scan(step, state, noise.split(key_step, steps))

    return spec, run


NEEDS_NETWORK = {"MNISTBandit-bsuite"}  # downloads its pictures when it is made
BROADCASTS = {"Swimmer-misc"}  # its dynamics promote ranks silently, which conftest forbids us
FAST = ("-v0", "-v1", "SimpleBandit-bsuite", "DeepSea-bsuite", "Reacher-misc", "FrozenLake-misc")
REGISTERED = [
    pytest.param(name, marks=() if name.endswith(FAST) else pytest.mark.slow)
    for name in gymnax.registered_envs
    if name not in NEEDS_NETWORK
]


@pytest.mark.parametrize("name", REGISTERED)
def test_every_gymnax_environment_runs_under_jit(name):
    with jax.numpy_rank_promotion("allow" if name in BROADCASTS else "raise"):
        spec, run = rollout_of(name)
        state, (obs, reward, both) = jax.jit(run)(noise.key(0))
    assert obs.shape == (5, 2, spec.obs_size)
    assert obs.dtype == reward.dtype == jnp.float32
    assert reward.shape == (5, 2)
    assert np.all(np.isfinite(obs))
    assert np.all(np.isfinite(reward))
    assert not np.any(both)  # terminated and truncated
    assert state.time.shape == (2,)


def test_what_gymnax_draws_with_is_imported_by_its_first_use():
    code = (
        "import sys\n"
        "from jaxpg.core import env\n"
        "env.make('CartPole-v1')\n"
        "late = ('seaborn', 'matplotlib.pyplot', 'scipy.stats', 'pandas')\n"
        "assert not any(name in sys.modules for name in late)\n"
        "from gymnax.environments.misc import pong\n"
        "assert len(pong.sns.color_palette('cubehelix', 3)) == 3\n"
        "pong.plt.figure()\n"
        "import seaborn, matplotlib.pyplot\n"
        "assert type(seaborn).__name__ == type(matplotlib.pyplot).__name__ == 'module'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["jaxpg", "torch_ref"])
def test_an_unknown_environment_is_refused_with_a_suggestion(package):
    make, error = (
        (env.make, ConfigError) if package == "jaxpg" else (torch_env.make, TorchConfigError)
    )
    with pytest.raises(error, match="unknown environment 'CartPole-v7'; did you mean 'CartPole-v"):
        make("CartPole-v7")


def test_one_that_gymnasium_has_is_pointed_at_the_twin():
    with pytest.raises(
        ConfigError, match=r"'CartPole-v0', but python -m torch_ref.train trains .*; did you mean"
    ):
        env.make("CartPole-v0")


class DictObs(type(gymnax.make("CartPole-v1")[0])):
    """CartPole with a dictionary of spaces for an observation."""

    def observation_space(self, params):
        return gymnax.environments.spaces.Dict({})


def test_an_environment_with_unsupported_spaces_is_refused():
    gymnax.register("DictObs-test", DictObs)
    with pytest.raises(ConfigError, match=r"DictObs-test observes .*allowed are Box and Discrete"):
        env.make("DictObs-test")


class BadMask(type(gymnax.make("CartPole-v1")[0])):
    """CartPole with a mask for more actions than it observes numbers."""

    masks_actions = True

    def action_space(self, params=None):
        return gymnax.environments.spaces.Discrete(5)


class Unbounded(type(gymnax.make("Pendulum-v1")[0])):
    """Pendulum that takes any torque upwards."""

    def action_space(self, params=None):
        return gymnax.environments.spaces.Box(-2.0, jnp.inf, (1,))


def test_what_cannot_be_masked_or_squashed_is_refused():
    gymnax.register("BadMask-test", BadMask)
    with pytest.raises(ConfigError, match=r"BadMask-test masks actions .* must end with a number"):
        env.make("BadMask-test")
    gymnax.register("Unbounded-test", Unbounded)
    assert env.make("Unbounded-test").spec.num_actions == 1
    with pytest.raises(ConfigError, match=r"needs actions with finite bounds; Unbounded-test acts"):
        env.make("Unbounded-test", squash=True)


@pytest.mark.parametrize("limit", [math.inf, 2**31, 0, -1])
def test_a_limit_that_counts_no_steps_is_refused(limit, monkeypatch):
    class Limited(CartPole):
        @property
        def default_params(self):
            return super().default_params.replace(max_steps_in_episode=limit)

    monkeypatch.setitem(gymnax.registration._registry, "Limited-v0", Limited)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Limited-v0"])
    with pytest.raises(ConfigError, match=f"has a time limit of {limit} of its own; give max_epis"):
        env.make("Limited-v0")
    assert env.make("Limited-v0", max_episode_steps=20).spec.time_limit == 20


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ((np.array([0.1]), 1, np.array([False])), None),
        ((np.float64(0.1), np.True_, 0), None),
        ((np.ones(2), False, False), r"must give one number as reward; got array\(\[1., 1.\]\)"),
        ((None, False, False), "must give one number as reward; got None"),
        ((np.nan, False, False), "must give one number as reward; got nan"),
        ((0.1, None, [True, False]), r"must give one number as truncated; got \[True, False\]"),
    ],
)
def test_what_a_step_of_gymnasium_gives_the_twin(outcome, words, monkeypatch):
    class Odd(gymnasium.Env):
        observation_space = gymnasium.spaces.Discrete(3)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.array(1), {}

        def step(self, action):
            return np.array(2), *outcome, {}

    spec = gymnasium.envs.registration.EnvSpec(
        "Odd-v0", entry_point=Odd, max_episode_steps=5, disable_env_checker=True
    )
    monkeypatch.setitem(gymnasium.registry, "Odd-v0", spec)
    odd = torch_env.make("Odd-v0", float_type="float64")
    state = odd.reset(torch_noise.split(torch_noise.key(0), 2))
    if words:
        with pytest.raises(TorchConfigError, match=words):
            odd.step(None, state, torch.tensor([0, 1]))
        return
    state, reward, terminated, truncated = odd.step(None, state, torch.tensor([0, 1]))
    assert reward.tolist() == [0.1, 0.1]
    assert (terminated.tolist(), truncated.tolist()) == ([True, True], [False, False])
    assert state.obs.tolist() == [[0, 0, 1]] * 2


def test_what_gymnasium_takes_in_the_twin():
    """Choices at once, each from its own start; bounds that a squashed action is scaled to."""

    class Seen(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-9.0, 9.0, (2,))
        action_space = gymnasium.spaces.MultiDiscrete([3, 2], start=[0, 5])

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), {}

        def step(self, action):
            assert self.action_space.contains(action)
            return np.asarray(action, np.float32), 0.0, False, False, {}

    class Box(Seen):
        action_space = gymnasium.spaces.Box(np.float32([-1, 2]), np.float32([1, 6]))

    class Endless(Seen):
        action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))

    class Whole(Seen):
        action_space = gymnasium.spaces.Box(0, 4, (2,), np.int32)

    class Lacking(Seen):
        def __init__(self):
            raise ModuleNotFoundError("No module named 'physics'")

    made = {"Seen": Seen, "SeenBox": Box, "Endless": Endless, "Whole": Whole, "Lacking": Lacking}
    for name, environment in made.items():
        gymnasium.register(f"{name}-v0", environment, max_episode_steps=5)

    def observed(world, action):
        return world.step(None, world.reset(torch_noise.split(torch_noise.key(0), 1)), action)[
            0
        ].obs

    world = torch_env.make("Seen-v0")
    assert (world.spec.choices, world.spec.num_actions, world.spec.action_shape) == (
        (3, 2),
        5,
        (2,),
    )
    assert observed(world, torch.tensor([[2, 1]])).tolist() == [[2.0, 6.0]]
    world = torch_env.make("SeenBox-v0", squash=True)
    seen = observed(world, torch.tensor([[0.5, 0.5]]))
    assert_close(seen, [[math.tanh(0.5), 4 + 2 * math.tanh(0.5)]], 1e-6)
    with pytest.raises(TorchConfigError, match="finite bounds; Endless-v0 acts in Box"):
        torch_env.make("Endless-v0", squash=True)
    with pytest.raises(TorchConfigError, match=r"int32\), and policies choose fractions in a Box"):
        torch_env.make("Whole-v0")
    with pytest.raises(TorchConfigError, match="Lacking-v0 could not be made: No module named"):
        torch_env.make("Lacking-v0")


def test_an_episode_of_gymnasiums_that_is_over_is_not_stepped_on():
    """Where whole episodes are collected the others go on."""

    class Counting(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-9.0, 9.0, (1,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            self.left = 1 + seed % 3
            return np.zeros(1, np.float32), {}

        def step(self, action):
            assert self.left > 0, "stepped after its end"
            self.left -= 1
            return np.ones(1, np.float32), 1.0, self.left == 0, False, {}

    gymnasium.register("Counting-v0", Counting, max_episode_steps=5)
    config = TorchConfig(
        env="Counting-v0", collect="episodes", num_envs=4, total_episodes=8, hidden_sizes=(4,)
    )
    _, metrics = torch_training.train(config, torch_noise.key(0))
    assert metrics.episodes.tolist() == [4, 4]
    assert metrics.return_sum.tolist() == metrics.env_steps.tolist()  # a reward of 1 a step
    assert (metrics.env_steps > 4).all()  # the second episodes are not the ends of the first


@pytest.mark.parametrize("name", ["Acrobot-v1", "MountainCarContinuous-v0"])
def test_gymnasium_environments_run_in_the_twin(name):
    """A few steps of two environments with a limit of three: truncation, then a restart."""
    environment = torch_env.make(name, max_episode_steps=3)
    spec, key = environment.spec, torch_noise.key(0)
    state = environment.reset(torch_noise.split(key, 2))
    action = (
        torch.ones(2, dtype=torch.int64)
        if spec.discrete
        else torch.full((2, spec.num_actions), 9.0)
    )
    for t in range(1, 4):
        before = state
        state, reward, terminated, truncated = environment.step(None, state, action)
        assert state.obs.shape == (2, spec.obs_size)
        assert state.obs.dtype == reward.dtype == torch.float32
        assert not torch.equal(state.obs, before.obs)
        np.testing.assert_array_equal(state.time, t)
        np.testing.assert_array_equal(truncated, [t == 3] * 2)
        assert not terminated.any()
    done = torch.tensor([False, True])
    new = environment.restart(state, done, torch_noise.split(torch_noise.key(1), 2))
    assert torch.equal(new.obs[0], state.obs[0])
    assert not torch.equal(new.obs[1], state.obs[1])
    np.testing.assert_array_equal(new.time, [3, 0])
