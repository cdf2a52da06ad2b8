"""Probes: five tiny tasks, each of which only a correct part of the learner can solve.

From the debugging tradition of deep reinforcement learning (Andy Jones, "Debugging RL, without the
agonizing pain", 2021): the first that fails says which part is wrong. All seeds must succeed.
"""

from functools import partial
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces

from jaxpg.core import algorithms, noise
from jaxpg.core.config import Config
from jaxpg.core.training import train

SEEDS = 8


@struct.dataclass
class State:
    sign: jax.Array  # -1, 0 or 1: what is observed, until the last step of a longer episode
    time: jax.Array


class Task(NamedTuple):
    """What tells one probe from another."""

    actions: int
    steps: int  # per episode
    random: bool  # whether the observation is ±1, or 0
    reward: str  # the last step's: "one", "sign", "action" or "product"


class Probe(environment.Environment):
    """An episode of `steps` steps with one number to see, and one reward at its end."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=10)

    def reset_env(self, key, params):
        sign = jnp.where(self.task.random, jax.random.rademacher(key, (), jnp.float32), 0.0)
        state = State(sign, jnp.int32(0))
        return self.get_obs(state), state

    def step_env(self, key, state, action, params):
        side = 2.0 * action - 1.0  # -1 or 1
        rewards = {"one": 1.0, "sign": state.sign, "action": side, "product": side * state.sign}
        state = state.replace(time=state.time + 1)
        end = state.time >= self.task.steps
        reward = jnp.where(end, rewards[self.task.reward], 0.0)
        return self.get_obs(state), state, reward, end, {}

    def get_obs(self, state, params=None, key=None):
        """The sign plus the time: 0 and then 1 in the two steps of the third probe."""
        return (state.sign + state.time)[None]

    def action_space(self, params):
        return spaces.Discrete(self.task.actions)

    def observation_space(self, params):
        return spaces.Box(-2.0, 2.0, (1,))


TASKS = {
    "one-reward": Task(actions=1, steps=1, random=False, reward="one"),
    "sign": Task(actions=1, steps=1, random=True, reward="sign"),
    "two-steps": Task(actions=1, steps=2, random=False, reward="one"),
    "action": Task(actions=2, steps=1, random=False, reward="action"),
    "product": Task(actions=2, steps=1, random=True, reward="product"),
}
GAMMA = 0.5
ALGORITHMS = {
    "gae": {"estimator": "gae", "value_target": "lambda_return"},
    "td-error": {"estimator": "td_error", "value_target": "td0"},
    "shared": {"networks": "shared", "value_steps": 1},
}
FIRST_IS_FAST = ["gae", *(pytest.param(x, marks=pytest.mark.slow) for x in ("td-error", "shared"))]


@pytest.fixture(scope="module", autouse=True)
def probes():
    for name, task in TASKS.items():
        gymnax.register(f"Probe-{name}", lambda task=task: Probe(task))


def trained(name, observations, **changes):
    """V [S, O] and π [S, O, A] of some seeds on some observations, after training."""
    config = Config(
        env=f"Probe-{name}",
        num_envs=8,
        num_steps=8,
        total_steps=150 * 64,
        gamma=GAMMA,
        hidden_sizes=(16,),
        **changes,
    )
    state, _ = jax.jit(jax.vmap(partial(train, config)))(noise.keys(range(SEEDS)))
    networks = algorithms.build(config).networks
    obs = jnp.array(observations)[:, None]
    value = jax.vmap(networks.value, in_axes=(0, None))(state.params, obs)
    logits = jax.vmap(networks.policy, in_axes=(0, None))(state.params, obs)
    return value, jax.nn.softmax(logits)


def assert_all(actual, expected, tolerance):
    np.testing.assert_allclose(actual, np.broadcast_to(expected, actual.shape), atol=tolerance)


@pytest.mark.slow
def test_one_reward_is_the_value():
    """Value loss and its optimizer: V(0) = 1."""
    value, _ = trained("one-reward", [0.0])
    assert_all(value, [1.0], 0.01)


@pytest.mark.slow
def test_the_value_follows_the_observation():
    """Backpropagation through the value network: V(±1) = ±1."""
    value, _ = trained("sign", [-1.0, 1.0])
    assert_all(value, [-1.0, 1.0], 0.02)


@pytest.mark.parametrize("algorithm", ["td-error", pytest.param("gae", marks=pytest.mark.slow)])
def test_a_later_reward_is_discounted(algorithm):
    """Bootstrapping and γ: V(1) = 1 before the last step, V(0) = γ · 1 before the first."""
    value, _ = trained("two-steps", [0.0, 1.0], **ALGORITHMS[algorithm])
    assert_all(value, [GAMMA, 1.0], 0.02)


@pytest.mark.thin(2)
@pytest.mark.parametrize("algorithm", FIRST_IS_FAST)
def test_the_better_action_is_chosen(algorithm):
    """The policy loss: action 1 pays 1, action 0 pays -1. V becomes the better one's."""
    value, policy = trained("action", [0.0], **ALGORITHMS[algorithm])
    assert np.all(policy[:, 0, 1] > 0.95)
    assert_all(value, [1.0], 0.1)


@pytest.mark.thin(2)
@pytest.mark.parametrize("algorithm", FIRST_IS_FAST)
def test_the_action_follows_the_observation(algorithm):
    """Policy and value together: action 1 is right at 1, action 0 at -1, and both pay 1."""
    value, policy = trained("product", [-1.0, 1.0], **ALGORITHMS[algorithm])
    assert np.all(policy[:, 0, 0] > 0.95)
    assert np.all(policy[:, 1, 1] > 0.95)
    assert_all(value, [1.0, 1.0], 0.1)


def test_whole_episodes_learn_it_too():
    """REINFORCE with the leave-one-out baseline, without a critic."""
    changes = {
        "collect": "episodes",
        "num_envs": 16,
        "total_episodes": 200 * 16,
        "estimator": "reward_to_go",
        "baseline": "constant",
    }
    config = Config(env="Probe-product", max_episode_steps=1, hidden_sizes=(16,), **changes)
    _, metrics = jax.jit(jax.vmap(partial(train, config)))(noise.keys(range(SEEDS)))
    np.testing.assert_array_equal(metrics.episodes, 16)
    last = np.asarray(metrics.return_sum)[:, -20:].mean(axis=1) / 16
    assert np.all(last > 0.9)  # a reward of 1 in each, but for exploration
