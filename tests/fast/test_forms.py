"""Whatever is replaced, every form trains with the numbers of the plain page.

Each part of an algorithm is replaced by parts that a user might write, alone and in pairs; two
updates of a few lanes are then the same in every form. What the twin can be given is given to it,
too.
"""

import dataclasses
import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import torch_ref
from jaxpg import fast
from jaxpg.core import algorithms, learner, noise, rollout, training
from jaxpg.core.config import Config
from jaxpg.core.types import Networks
from jaxpg.fast import kernels
from jaxpg.names import to_torch
from jaxpg.proof.synthetic import DIALS
from tests.compare import assert_close, assert_trees_close

pytestmark = pytest.mark.usefixtures("x64")

SMALL = {
    "num_envs": 3,
    "num_steps": 10,
    "hidden_sizes": (12,),
    "value_steps": 2,
    "arithmetic": "float64",
    "ent_coef": 0.1,
    "learning_rate": 0.1,
    "total_steps": 60,
}
CONFIG = Config(**SMALL)
OTHERS = {
    "shared": dataclasses.replace(  # with parameters, which every form must hand on
        CONFIG, networks="shared", value_steps=1, env_params={"gravity": 12.0, "masspole": 0.3}
    ),
    "natural, replay": dataclasses.replace(
        CONFIG,
        fit="trpo",
        init="orthogonal",
        value_data="replay",
        value_target="td0",
        buffer_size=40,
        batch_size=20,
    ),
    "natural episodes": dataclasses.replace(
        CONFIG,
        collect="episodes",
        fit="npg",
        max_episode_steps=40,
        total_episodes=6,
        hidden_sizes=(12, 9),
        activation="tanh",
    ),
    "deep, continuous": dataclasses.replace(
        CONFIG,
        env="Pendulum-v1",
        hidden_sizes=(12, 9),
        activation="tanh",
        squash=True,
        value_steps=1,
        optimizer="rmsprop",
        normalize_obs=True,
        normalize_reward=True,
    ),
    "episodes": dataclasses.replace(
        CONFIG,
        collect="episodes",
        estimator="reward_to_go",
        reduction="trajectories",
        max_episode_steps=40,
        optimizer="sgd",
        total_episodes=6,
        normalize_obs=True,
        normalize_reward=True,
    ),
    "ppo": dataclasses.replace(
        CONFIG,
        fit="ppo",
        epochs=2,
        minibatches=3,
        value_steps=1,
        learning_rate=0.01,
        normalize_advantage=True,
        normalize_over="minibatch",
        joint_loss=True,
        clip_value=0.1,
        target_kl=0.05,
    ),
    "convolutions": dataclasses.replace(
        CONFIG, env="Catch-bsuite", conv_features=(3, 2), hidden_sizes=(6,), frame_stack=2
    ),
    "convolutions, natural": dataclasses.replace(
        CONFIG, env="Catch-bsuite", conv_features=(3,), hidden_sizes=(6,), fit="npg"
    ),
    "penalty, episodes, masked choices": dataclasses.replace(
        CONFIG,
        env=DIALS,
        collect="episodes",
        fit="ppo_penalty",
        desired_kl=1e-3,
        epochs=2,
        minibatches=3,
        value_steps=1,
        max_episode_steps=40,
        total_episodes=6,
    ),
}


class Normed(nn.Module):
    """A network with a layer that ours has not."""

    outputs: int

    @nn.compact
    def __call__(self, obs):
        x = nn.LayerNorm(param_dtype=jnp.float64)(nn.silu(self._layer(7)(obs)))
        return self._layer(self.outputs)(x)

    def _layer(self, size):
        return nn.Dense(size, param_dtype=jnp.float64)


def normed_networks(algorithm):
    policy, critic, obs = Normed(2), Normed(1), jnp.zeros(4)
    return Networks(
        init=lambda key, key_value: {
            "policy": policy.init(key, obs),
            "value": critic.init(key_value, obs),
        },
        policy=lambda params, obs: policy.apply(params["policy"], obs),
        value=lambda params, obs: critic.apply(params["value"], obs)[..., 0],
    )


def looking_around(algorithm):
    """Networks whose outputs for a row depend on the others, and on what they close over."""
    networks, weight = algorithm.networks, jnp.array([0.3, -0.2, 0.5, 0.1])

    def centred(obs):
        mean = jnp.mean(obs, axis=tuple(range(obs.ndim - 1)))
        return obs - jnp.broadcast_to(0.5 * mean * weight, obs.shape)

    return networks._replace(
        policy=lambda params, obs: networks.policy(params, centred(obs)),
        value=lambda params, obs: networks.value(params, centred(obs)),
    )


def rewarded(algorithm):
    """Ten times the reward, less for what is far from the middle."""
    env = algorithm.env

    def step(key, state, action):
        state, reward, *ends = env.step(key, state, action)
        return state, 10.0 * reward - state.obs[:, 0] ** 2, *ends

    return env._replace(step=step)


def rewarded_above_the_others(algorithm):
    """Rewards that depend on those of the other environments."""
    env = algorithm.env

    def step(key, state, action):
        state, reward, *ends = env.step(key, state, action)
        reward = reward - state.obs[:, 0]
        return state, reward - jnp.broadcast_to(jnp.mean(reward), reward.shape), *ends

    return env._replace(step=step)


def warmer(algorithm):
    """The distribution of outputs that are read otherwise."""
    own = algorithm.distribution
    return own._replace(
        sample=lambda outputs, uniform: own.sample(0.3 * outputs**3, uniform),
        log_prob=lambda outputs, action: own.log_prob(0.3 * outputs**3, action),
        entropy=lambda outputs: own.entropy(0.3 * outputs**3),
    )


def acting_on_scaled_observations(algorithm):
    def collect(env, act, params, state, draws):
        def on_scaled(params, obs, uniform):
            return act(params, 10.0 * obs, uniform)

        return rollout.collect_steps(env, on_scaled, params, state, draws)

    return collect


def showing_other_observations(algorithm):
    def collect(*inputs):
        state, trajectory = algorithm.collect(*inputs)
        return state, trajectory._replace(obs=trajectory.obs[::-1])

    return collect


def ranked(trajectory, value, next_value, *, gamma, gae_lambda):
    """Ψ that looks at the whole batch."""
    error = trajectory.reward + gamma * next_value - value
    return (error - jnp.mean(error)) / jnp.max(jnp.abs(error)) + gae_lambda * jnp.sort(
        error, axis=0
    )


def squared_loss(log_prob, advantage, valid):
    return jnp.mean(jnp.where(valid, (log_prob + advantage) ** 2, 0.0))


def twice(algorithm):
    """A fit that takes its step twice."""

    def fit(config, algorithm_, learned, batch):
        learned, _ = algorithm.fit(config, algorithm_, learned, batch)
        return algorithm.fit(config, algorithm_, learned, batch)

    return fit


REPLACED = {
    "rewards": ("env", rewarded),
    "rewards above the others'": ("env", rewarded_above_the_others),
    "a layer norm": ("networks", normed_networks),
    "networks that look around": ("networks", looking_around),
    "a distribution": ("distribution", warmer),
    "acting on scaled observations": ("collect", acting_on_scaled_observations),
    "other observations": ("collect", showing_other_observations),
    "an advantage": ("advantage", lambda _: ranked),
    "a value target": ("value_target", lambda _: ranked),
    "a loss": ("policy_loss", lambda _: squared_loss),
    "an optimizer": ("optimizer", lambda _: lambda config: optax.scale_by_lion()),
    "a fit": ("fit", twice),
}
# Each of them, in three programs: what a form does with its own network, and with another.
TOGETHER = [
    (
        "rewards",
        "a distribution",
        "acting on scaled observations",
        "an advantage",
        "a value target",
        "a loss",
        "an optimizer",
    ),
    ("a layer norm", "other observations", "a fit"),
    ("networks that look around", "rewards above the others'"),
]
PAIRS = [
    (one, other)
    for one, other in itertools.combinations(REPLACED, 2)
    if REPLACED[one][0] != REPLACED[other][0]
]


def replace(algorithm, *names):
    for part, make in map(REPLACED.get, names):
        algorithm = algorithm._replace(**{part: make(algorithm)})
    return algorithm


def after_two_updates(config, algorithm, lanes=2):
    """Parameters and metrics, of a few lanes."""
    assert config.num_updates == 2
    train = jax.jit(jax.vmap(partial(training.train, config, algorithm=algorithm)))
    state, metrics = train(noise.keys(range(lanes)))
    return state.params, metrics


@pytest.fixture(params=["cpu", pytest.param("fused", marks=pytest.mark.slow)])
def form(request, monkeypatch):
    """A form; interpreted kernels take XLA a minute to compile (tests/fast/test_kernels.py)."""
    monkeypatch.setenv("JAXPG_FORM", request.param)
    return request.param


def assert_the_form_is_plain(config, *names):
    plain = after_two_updates(config, replace(algorithms.build(config), *names))
    found = after_two_updates(config, replace(fast.build(config), *names))
    for mine, other in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
        assert_close(mine, other, 1e-12)


@pytest.mark.as_users_run(3)
@pytest.mark.parametrize("names", TOGETHER, ids=" and ".join)
def test_what_is_replaced_is_used(names, form):
    assert_the_form_is_plain(CONFIG, *names)


@pytest.mark.parametrize(
    ("names", "kernels_used"),
    [
        ((), 1),
        (("an advantage", "a loss", "a fit", "other observations"), 1),
        (("rewards",), 0),
        (("networks that look around",), 0),
        (("a distribution",), 0),
        (("acting on scaled observations",), 0),
    ],
)
def test_a_rollout_is_one_kernel_of_own_parts_alone(names, kernels_used, monkeypatch):
    """It has one environment at a time; what is replaced may look at all of them."""
    monkeypatch.setenv("JAXPG_FORM", "fused")
    used = []
    monkeypatch.setattr(
        kernels, "over_time", lambda *inputs: used.append(inputs) or rollout.over_time(*inputs)
    )
    arrays, algorithm = training.as_arrays(CONFIG), replace(fast.build(CONFIG), *names)

    def collected(key):
        state = learner.init(arrays, key, algorithm)
        draws = noise.draw(key, 0, CONFIG, algorithm.env.spec, CONFIG.num_steps)
        return learner.collect(algorithm, state.params, state.env_state, draws)

    jax.eval_shape(collected, noise.key(0))
    assert len(used) == kernels_used


def seeing_whole_numbers(algorithm):
    """Observations of another type, which flax's layers would promote."""
    env = algorithm.env

    def rounded(state):
        return state._replace(obs=jnp.round(4.0 * state.obs).astype(jnp.int8))

    return env._replace(
        reset=lambda *inputs: rounded(env.reset(*inputs)),
        step=lambda *inputs: (lambda state, *rest: (rounded(state), *rest))(*env.step(*inputs)),
        restart=lambda *inputs: rounded(env.restart(*inputs)),
    )


def without_a_critic(algorithm):
    """V is what is known of the task; its group has no parameters."""
    networks = algorithm.networks
    return networks._replace(
        init=lambda *keys: {"policy": networks.init(*keys)["policy"], "value": {}},
        value=lambda params, obs: 1.0 - obs[..., 2] ** 2,
    )


@pytest.mark.parametrize(
    ("part", "make"), [("env", seeing_whole_numbers), ("networks", without_a_critic)]
)
def test_what_the_plain_page_takes_every_form_takes(part, make, monkeypatch):
    monkeypatch.setenv("JAXPG_FORM", "cpu")

    def trained(algorithm):
        return after_two_updates(CONFIG, algorithm._replace(**{part: make(algorithm)}))

    for mine, other in zip(
        *map(jax.tree.leaves, map(trained, (fast.build(CONFIG), algorithms.build(CONFIG)))),
        strict=True,
    ):
        assert_close(mine, other, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLACED)
def test_each_that_is_replaced_is_used(name, form):
    assert_the_form_is_plain(CONFIG, name)


@pytest.mark.as_users_run(20)
@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_pairs_of_what_is_replaced(names, form):
    assert_the_form_is_plain(CONFIG, *names)


def test_what_is_replaced_may_differ_from_lane_to_lane(form):
    """As options of an algorithm of one's own do, which its parts close over."""

    def scaled(algorithm, scale):
        env, networks, own = algorithm.env, algorithm.networks, algorithm.distribution

        def step(key, state, action):
            state, reward, *ends = env.step(key, state, action)
            return state, scale * reward, *ends

        return algorithm._replace(
            env=env._replace(step=step),
            networks=networks._replace(value=lambda *inputs: scale * networks.value(*inputs)),
            distribution=own._replace(sample=lambda logits, u: own.sample(scale * logits, u)),
            advantage=lambda *inputs, **rest: scale + algorithm.advantage(*inputs, **rest),
            policy_loss=lambda *inputs: scale * algorithm.policy_loss(*inputs),
        )

    def after_two(build):
        arrays = training.as_arrays(CONFIG)

        def run(key, scale):
            algorithm = scaled(build(CONFIG), scale)
            state = learner.init(arrays, key, algorithm)
            return jax.lax.fori_loop(
                0, 2, lambda i, state: learner.update(arrays, state, algorithm)[0], state
            ).params

        return jax.jit(jax.vmap(run))(noise.keys(range(3)), jnp.array([0.5, 1.0, 2.0]))

    found, plain = after_two(fast.build), after_two(algorithms.build)
    for mine, other in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
        assert_close(mine, other, 1e-12)


@pytest.mark.as_users_run(10)
@pytest.mark.parametrize("name", OTHERS)
def test_other_algorithms(name, form):
    """Held against the twin, which is plain, and needs no program."""
    config = OTHERS[name]
    params, metrics = after_two_updates(config, fast.build(config))
    twins = torch_ref.Config(**dataclasses.asdict(config))
    for lane in range(2):
        state, expected = torch_ref.train(twins, torch_ref.key(lane))
        of_lane = partial(jax.tree.map, lambda x, lane=lane: x[lane])
        assert_trees_close(to_torch(of_lane(params)), state.params.state_dict(), 1e-12)
        assert_trees_close(of_lane(metrics).named(), expected.named(), 1e-12)


def test_what_is_replaced_trains_as_the_twin(monkeypatch):
    """Where it can be written in both: the environment's reward, and observations to act on."""
    names = ("rewards", "acting on scaled observations")
    monkeypatch.setenv("JAXPG_FORM", "cpu")
    (params, metrics) = after_two_updates(CONFIG, replace(fast.build(CONFIG), *names), lanes=2)
    config = torch_ref.training.as_tensors(torch_ref.Config(**SMALL))
    twin = replace(torch_ref.build(config), "rewards")

    def collect(env, act, *inputs):
        return torch_ref.rollout.collect_steps(
            env, lambda params, obs, uniform: act(params, 10.0 * obs, uniform), *inputs
        )

    twin = twin._replace(collect=collect)
    state = torch_ref.init(config, torch_ref.key(1), twin)
    for _ in range(config.num_updates):
        state, expected = torch_ref.update(config, state, twin)
    second = partial(jax.tree.map, lambda x: x[1])
    for name, leaf in to_torch(second(params)).items():
        assert_close(leaf, state.params.state_dict()[name].numpy(), 1e-10, name)
    assert_close(second(metrics).return_sum[-1], expected.return_sum.numpy(), 1e-12)


@pytest.mark.as_users_run(3)
@pytest.mark.parametrize("name", ["deep, continuous", "episodes", "shared"])
def test_what_is_differentiated_is_right(name, form):
    """A network's outputs in its observations: the plain network's slope, and never a zero."""
    config = OTHERS[name]
    params = jax.jit(algorithms.build(config).networks.init)(noise.key(0), noise.key(1))
    size = 3 if config.env == "Pendulum-v1" else 4
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(70, 3, size)))

    def slopes(networks):
        def total(obs):
            outputs = networks.policy(params, obs)
            return jnp.sum(outputs[..., 0] ** 2) + jnp.sum(jnp.sin(networks.value(params, obs)))

        return jax.jit(jax.grad(total))(obs)

    expected = slopes(algorithms.build(config).networks)
    assert np.abs(expected).max() > 0
    assert_close(slopes(fast.build(config).networks), expected, 1e-12)
