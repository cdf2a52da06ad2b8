"""What breaks an environment's contract is found, and said in a sentence; what keeps it passes."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.environments.classic_control.cartpole import CartPole

import jaxpg
from jaxpg.cli.main import main
from jaxpg.core import env, noise, wrappers
from jaxpg.core.config import ConfigError, EnvParams
from jaxpg.envs.check import check_env

LIMIT = 20
STEPS = 60


@pytest.fixture(scope="module")
def cartpole():
    return env.make("CartPole-v1", max_episode_steps=LIMIT)


def stepping(change):
    """A fault in what `step` gives: change(key, before, *outcome) -> outcome."""

    def planted(world):
        def step(key, state, action):
            return change(key, state, *world.step(key, state, action))

        return world._replace(step=step)

    return planted


def beginning(change):
    """A fault in every state: change(state) -> state."""

    def planted(world):
        def step(key, state, action):
            after, *rest = world.step(key, state, action)
            return change(after), *rest

        return world._replace(
            reset=lambda *given: change(world.reset(*given)),
            step=step,
            restart=lambda *given: change(world.restart(*given)),
        )

    return planted


def with_reset(world, key, before, after, reward, terminated, truncated):
    """The state is the next episode's, but for what is counted."""
    done = jnp.logical_or(terminated, truncated)
    uniform = jax.vmap(lambda key: noise.uniform(key, (4,)))(key)
    new = world.restart(after, done, uniform)
    new = new._replace(time=after.time, episode_return=after.episode_return)
    return new, reward, terminated, truncated


def resets_at_random(world):
    return stepping(lambda *given: with_reset(world, *given))(world)


def resets_to_the_first(world):
    """As Brax's AutoResetWrapper: every episode begins where the first one did."""

    def reset(*given):
        start = world.reset(*given)
        return start._replace(inner=(start.inner, start))

    def step(key, state, action):
        inner, first = state.inner
        after, reward, *ends = world.step(key, state._replace(inner=inner), action)
        done = jnp.logical_or(*ends)

        def choose(new, old):
            return jnp.where(done.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        chosen = jax.tree.map(choose, first, after)
        after = after._replace(inner=(chosen.inner, first), obs=chosen.obs)
        return after, reward, *ends

    def restart(state, done, draws):
        inner, first = state.inner
        new = world.restart(state._replace(inner=inner), done, draws)
        obs = jnp.where(done[:, None], first.obs, new.obs)
        return new._replace(inner=(new.inner, first), obs=obs)

    return world._replace(reset=reset, step=step, restart=restart)


def unseeded(key, before, after, reward, *ends):
    return after, reward + np.random.default_rng().uniform(), *ends


def nan_below(key, before, after, reward, *ends):
    return after, jnp.where(after.time == 3, jnp.nan, reward), *ends


FAULTS = {
    "limit": (
        wrappers.terminate_at_limit,
        "a time limit must truncate: all episodes that reached 20",
    ),
    "both": (
        stepping(lambda key, old, after, reward, end, cut: (after, reward, end | cut, end | cut)),
        "must not be both terminated and truncated",
    ),
    "endless": (
        stepping(lambda key, old, after, reward, end, cut: (after, reward, end, cut & end)),
        "truncated after the time limit of 20 steps; one goes on after",
    ),
    "reset": (resets_at_random, "must not reset.*depends on the step's key"),
    "reset to the first": (resets_to_the_first, "must not reset.*always the episode's first"),
    "reset of time": (
        stepping(
            lambda key, old, after, reward, end, cut: (
                after._replace(time=jnp.where(end | cut, 0, after.time)), reward, end, cut
            )
        ),
        "time must be 0 after a reset and grow by 1",
    ),
    "return": (
        stepping(
            lambda key, old, after, reward, *ends: (
                after._replace(episode_return=old.episode_return), reward, *ends
            )
        ),
        "episode_return must be the sum of the rewards",
    ),
    "nan": (
        stepping(nan_below),
        "reward must be finite; after 3 steps reward is nan",
    ),
    "infinite": (
        beginning(lambda state: state._replace(obs=state.obs.at[:, 2].multiply(jnp.inf))),
        r"obs must be finite; after a reset obs\[2\] is -?(inf|nan)",
    ),
    "unseeded": (stepping(unseeded), "the key must decide everything; .*reward differs"),
    "short": (
        lambda world: world._replace(spec=world.spec._replace(min_episode_steps=15)),
        "no episode may be shorter than spec.min_episode_steps = 15; one ended after",
    ),
    "spec": (
        lambda world: world._replace(spec=world.spec._replace(num_actions=0)),
        "spec.num_actions must be at least 1; got 0",
    ),
    "restart of all": (
        lambda world: world._replace(
            restart=lambda state, done, draws: world.restart(state, done | True, draws)
        ),
        "restart must leave environments whose episode goes on",
    ),
    "restart of none": (
        lambda world: world._replace(restart=lambda state, done, draws: state),
        "restart must begin anew",
    ),
    "width": (
        lambda world: world._replace(spec=world.spec._replace(obs_size=3)),
        r"obs must be floats \[N, 3\], of N = 8; reset gives float32\[8,4\]",
    ),
    "integers": (
        beginning(lambda state: state._replace(obs=state.obs.astype(int))),
        r"obs must be floats \[N, 4\], of N = 8; reset gives int32\[8,4\]",
    ),
    "reward": (
        stepping(lambda key, old, after, reward, *ends: (after, reward.astype(int), *ends)),
        r"reward must be float32 \[N\], as obs, of N = 8; step gives int32\[8\]",
    ),
    "flag": (
        stepping(lambda key, old, after, reward, end, cut: (after, reward, end * 1.0, cut)),
        r"terminated must be bool \[N\], of N = 8; step gives float32\[8\]",
    ),
    "clock": (
        beginning(lambda state: state._replace(time=state.time * 1.0)),
        r"time must be int32 \[N\], of N = 8; reset gives float32\[8\]",
    ),
    "type": (
        stepping(
            lambda key, old, after, *rest: (
                after._replace(obs=after.obs.astype(jnp.float16)), *rest
            )
        ),
        r"step must keep shapes and types.* obs from float32\[8,4\] into float16\[8,4\]",
    ),
    "kind": (
        stepping(lambda key, old, after, *rest: (after._replace(inner=()), *rest)),
        "step must leave a state of the kind that it is given",
    ),
    "raises": (stepping(lambda *given: 1 / 0), "it cannot be run .ZeroDivisionError"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said(cartpole, fault):
    plant, sentence = FAULTS[fault]
    with pytest.raises(ConfigError, match=sentence):
        check_env(plant(cartpole), steps=STEPS)


def test_an_env_of_ones_own_that_keeps_it_passes(cartpole):
    found = jaxpg.check_env(cartpole, steps=STEPS)
    assert found.steps == 8 * STEPS
    assert found.terminated > 0
    assert found.truncated > 0


DIALS = "jaxpg.proof.dials:Dials-v0"


def masking(change):
    """A fault in the mask, the last five numbers: change(mask [N, 5], time [N, 1]) -> mask."""
    return beginning(
        lambda state: state._replace(
            obs=state.obs.at[:, 2:].set(change(state.obs[:, 2:], state.time[:, None]))
        )
    )


MASKS = {
    "nothing": (
        masking(lambda mask, time: jnp.where(time == 3, 0.0, mask)),
        "must allow an action while its episode goes on; after 3 steps it allows none of choice 1",
    ),
    "nothing at first": (
        masking(lambda mask, time: jnp.where(time == 0, mask.at[:, 3:].set(0.0), mask)),
        "after a reset it allows none of choice 2",
    ),
    "chances": (
        masking(lambda mask, time: mask / 2),
        r"the last 5 numbers of an observation, must be of zeros and ones; got 0\.5",
    ),
    "choices": (
        lambda world: world._replace(spec=world.spec._replace(choices=(3, 3))),
        r"spec.choices must .* add up to spec.num_actions = 5; got \(3, 3\)",
    ),
    "wide": (
        lambda world: world._replace(spec=world.spec._replace(obs_size=4)),
        "spec.masked is .*; got 5 actions and 4 numbers",
    ),
}


@pytest.mark.parametrize("fault", MASKS)
def test_a_mask_that_is_none_is_said(fault):
    plant, sentence = MASKS[fault]
    with pytest.raises(ConfigError, match=sentence):
        check_env(plant(env.make(DIALS)), steps=STEPS)


@pytest.mark.parametrize("frames", [1, 2])
def test_where_a_mask_is_given_nothing_else_is_done(frames):
    """No dial is ever beyond its stop, also where the mask is the newest of several."""
    world = wrappers.stack_frames(env.make(DIALS), frames)

    def turned(key, state, action):
        after, *rest = world.step(key, state, action)
        dials = jnp.stack([after.inner.first, after.inner.second])
        beyond = jnp.any((dials < 0) | (dials > 3), axis=0)
        return after._replace(time=after.time + beyond), *rest  # which check_env would see

    assert check_env(world._replace(step=turned), steps=STEPS).terminated > 0


def test_a_mask_of_the_last_observation_may_allow_nothing():
    def all_over(state, reward, terminated, truncated):
        done = jnp.logical_or(terminated, truncated)[:, None]
        mask = jnp.where(done, 0.0, state.obs[:, 2:])
        return state._replace(obs=state.obs.at[:, 2:].set(mask)), reward, terminated, truncated

    world = env.make(DIALS)
    found = world._replace(step=lambda *inputs: all_over(*world.step(*inputs)))
    assert check_env(found, steps=STEPS).terminated > 0


class Deadly(CartPole):
    """Its time limit is told as death, whatever it is."""

    def step_env(self, key, state, action, params):
        obs, state, reward, terminated, info = super().step_env(key, state, action, params)
        return obs, state, reward, terminated | (state.time >= params.max_steps_in_episode), info


class FiveSteps(CartPole):
    """Its task is over after five steps, whatever the limit is."""

    def step_env(self, key, state, action, params):
        obs, state, reward, _, info = super().step_env(key, state, action, params)
        return obs, state, reward, state.time >= 5, info


@pytest.fixture
def registered(monkeypatch):
    def add(name, factory):
        monkeypatch.setitem(gymnax.registration._registry, name, factory)
        monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, name])

    return add


def test_a_limit_that_kills_is_found_by_trying_others(registered):
    """Random actions never reach CartPole's limit of 500 steps."""
    registered("Deadly-v0", Deadly)
    with pytest.raises(ConfigError, match="Deadly-v0: a time limit must truncate"):
        check_env("Deadly-v0", steps=STEPS)


def test_a_task_of_five_steps_is_no_limit(registered):
    registered("Five-v0", FiveSteps)
    assert check_env("Five-v0", steps=STEPS).terminated == 8 * STEPS // 5


class FromOne(FiveSteps):
    """It observes 1 to 4 in a space of 0 to 3."""

    def get_obs(self, state, params=None, key=None):
        return jnp.int32(state.time % 4 + 1)

    def observation_space(self, params):
        return gymnax.environments.spaces.Discrete(4)


def test_numbers_that_the_space_has_not_are_said(registered):
    """One that is too large would be an observation of zeros."""
    registered("FromOne-v0", FromOne)
    with pytest.raises(ConfigError, match=r"must be one of 0 … 3, as observation_space says"):
        check_env("FromOne-v0", steps=STEPS)


def test_the_command(capsys):
    main(["check-env", "Pendulum-v1", "--steps", "210", "--env-params", "g=9"])
    assert capsys.readouterr().out == (
        "Pendulum-v1: 1,680 steps, 0 episodes terminated, 8 truncated; nothing is wrong\n"
    )


def test_the_command_says_what_is_wrong_and_fails(registered, capsys):
    registered("Deadly-v0", Deadly)
    with pytest.raises(SystemExit) as ended:
        main(["check-env", "Deadly-v0", "--steps", "20"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("jaxpg: Deadly-v0: a time limit must truncate")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"env_params": EnvParams({"gravty": 1.0})}, "CartPole-v1 has no parameter 'gravty'"),
        ({"max_episode_steps": 0}, "max_episode_steps must be .* got 0"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_env("CartPole-v1", **options)


def test_a_time_limit_of_what_has_its_own_is_refused():
    with pytest.raises(ConfigError, match="max_episode_steps is of an environment that is named"):
        check_env(env.make("CartPole-v1"), max_episode_steps=5)


NAMES = sorted(set(gymnax.registered_envs) - {"MNISTBandit-bsuite"})  # which downloads its images


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gymnax_keeps_it(name):
    with jax.numpy_rank_promotion("allow"):
        check_env(name, steps=200)


@pytest.mark.parametrize("wrong", ["six values", "shapes that do not fit"])
def test_what_cannot_be_traced_is_a_sentence(monkeypatch, wrong):
    from gymnax.environments.classic_control.pendulum import Pendulum

    class Wrong(Pendulum):
        def step_env(self, key, state, action, params):
            if wrong == "six values":
                return (*super().step_env(key, state, action, params), None)
            return super().step_env(key, state, action + jnp.zeros(2), params)

        def action_space(self, params):
            return spaces.Box(-1.0, 1.0, (3,))

    monkeypatch.setitem(gymnax.registration._registry, "Wrong-v0", Wrong)
    monkeypatch.setattr(gymnax, "registered_envs", [*gymnax.registered_envs, "Wrong-v0"])
    with pytest.raises(ConfigError, match=r"Wrong-v0: it cannot be run \((Value|Type)Error"):
        check_env("Wrong-v0", steps=STEPS)


def test_what_there_is_not_is_said_once():
    with pytest.raises(ConfigError, match=r"^unknown environment 'CartPol-v1'; did you mean"):
        check_env("CartPol-v1")
