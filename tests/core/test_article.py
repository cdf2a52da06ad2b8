"""The article's script, literally: each of its lines, computed naively, against our parts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxpg
import torch_ref
from jaxpg.core import advantages, algorithms, distributions, env, learner, training
from jaxpg.core.config import ConfigError
from jaxpg.core.presets import PRESETS
from jaxpg.core.types import Trajectory
from jaxpg.names import to_torch
from tests.compare import assert_close
from torch_ref import advantages as twin_advantages
from torch_ref import distributions as twin_distributions

ARTICLE = [name for name in PRESETS if name.startswith("article")]
LENGTHS = (7, 1, 30, 12)  # of the episodes in a batch of 30 rows
GAMMA = 0.99


def batch(seed=0):
    """Rewards, values, logits, actions and the mask of four episodes, [30, 4]; padding is 9.0."""
    rng = np.random.default_rng(seed)
    valid = np.arange(30)[:, None] < np.array(LENGTHS)
    reward, value = (np.where(valid, rng.normal(size=valid.shape), 9.0) for _ in range(2))
    logits = rng.normal(size=(*valid.shape, 2))
    return reward, value, logits, rng.integers(0, 2, valid.shape), valid


def naive_loss(reward, value, logits, action):
    """One episode's loss as the script has it: returns (T,), values (T, 1), and a sum."""
    steps = range(len(reward))
    returns = torch.tensor([sum(GAMMA**k * reward[k] for k in steps if k >= i) for i in steps])
    baseline = torch.tensor(value)[:, None]
    log_prob = torch.distributions.Categorical(logits=logits).log_prob(torch.tensor(action))
    terms = -log_prob * (returns - baseline)
    assert terms.shape == (len(reward), len(reward))
    return terms.sum()


def ours(package, log_prob):
    """The mean over the batch's episodes of the closed form, from the two packages' parts."""
    reward, value, _, _, valid = batch()
    module, array = {
        "jaxpg": (advantages, jnp.asarray),
        "torch_ref": (twin_advantages, torch.tensor),
    }[package]
    losses = {"jaxpg": jaxpg.core.losses, "torch_ref": torch_ref.losses}[package]
    ended = array(np.cumsum(valid[::-1], 0)[::-1] == 1) & array(valid)
    never = array(np.zeros_like(valid))
    gamma = array(np.float64(GAMMA))
    reward, value, valid = array(np.where(valid, reward, 0.0)), array(value), array(valid)
    returns = module.discounted_return(reward, 0.0 * reward, ended, never, gamma=gamma)
    time = array(np.broadcast_to(np.arange(30)[:, None], valid.shape).copy())
    weighted = module.discount_from_start(time, gamma=gamma) * returns
    psi = module.broadcast_baseline(weighted, value, valid)
    return losses.policy_loss_trajectories(log_prob, psi, valid)


def test_closed_form_is_the_broadcast_computed_the_naive_way():
    """Value and gradient with respect to the logits, in both packages, float64."""
    reward, value, logits, action, valid = batch()
    leaf = torch.tensor(logits, requires_grad=True)
    episodes = [
        naive_loss(reward[:n, i], value[:n, i], leaf[:n, i], action[:n, i])
        for i, n in enumerate(LENGTHS)
    ]
    expected = sum(episodes) / len(episodes)
    expected.backward()

    log_prob = twin_distributions.categorical.log_prob
    twin_leaf = torch.tensor(logits, requires_grad=True)
    theirs = ours("torch_ref", log_prob(twin_leaf, torch.tensor(action)))
    theirs.backward()
    assert_close(theirs.detach(), expected.detach(), 1e-12)
    assert_close(twin_leaf.grad, leaf.grad, 1e-12)

    with jax.enable_x64(True):

        def loss(logits):
            return ours("jaxpg", distributions.categorical.log_prob(logits, jnp.asarray(action)))

        result, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
        assert_close(result, expected.detach(), 1e-12)
        assert_close(gradient, leaf.grad, 1e-12)
    assert np.all(leaf.grad.numpy()[valid] != 0.0)


def test_the_broadcast_is_not_what_was_meant():
    """Ψ_t = T (G_t - mean V) and not G_t - V(s_t): another direction, not only another scale."""
    reward, value, _, _, valid = (torch.tensor(x) for x in batch())
    meant = torch.where(valid, reward - value, 0.0)[:, 2]
    literal = twin_advantages.broadcast_baseline(reward, value, valid)[:, 2]
    cosine = torch.nn.functional.cosine_similarity(meant, literal, dim=0)
    assert 0.1 < cosine < 0.9


# Clamped log-probabilities

EXTREME = np.array([[0.0, 0.0], [3.0, -2.0], [40.0, -40.0], [-16.5, 0.0], [0.0, 15.0], [90.0, 0.0]])


def test_clamped_log_prob_is_that_of_torch_categorical_in_float32():
    logits = torch.tensor(EXTREME, dtype=torch.float32)
    reference = torch.distributions.Categorical(torch.softmax(logits, -1))
    for action in (0, 1):
        index = torch.full((len(EXTREME),), action)
        expected = reference.log_prob(index)
        theirs = twin_distributions.clamped.log_prob(logits, index)
        mine = distributions.clamped.log_prob(jnp.asarray(logits.numpy()), jnp.asarray(index))
        assert_close(theirs, expected, 1e-6)
        assert_close(mine, expected, 1e-6)
    assert_close(twin_distributions.clamped.entropy(logits), reference.entropy(), 1e-6)
    assert float(expected.min()) == pytest.approx(-15.94, abs=0.01)  # log of 2^-23


def test_an_action_that_became_certain_is_never_unlearned():
    """Where a probability is clamped its log has no gradient; log_softmax's has."""
    with jax.enable_x64(True):
        logits = jnp.asarray(EXTREME)

        def gradient(distribution):
            return jax.grad(lambda x: distribution.log_prob(x, jnp.ones(6, int)).sum())(logits)

        clamped, exact = gradient(distributions.clamped), gradient(distributions.categorical)
    # π(1) is .5, .007, e^-80, 1 - 7e-8 (above 1 - 2^-23), 1 - 3e-7, e^-90.
    assert [bool(np.any(row)) for row in clamped] == [True, True, False, False, True, False]
    assert [bool(np.any(row)) for row in exact] == [True] * 6
    free = np.array([0, 1, 4])
    assert_close(clamped[free], exact[free], 1e-9)


@pytest.mark.parametrize("value", [2.0**-23, 1.0 - 2.0**-23])
def test_at_the_clamp_itself_the_gradient_is_that_of_log(value):
    """As torch.clamp has it; jnp.clip would give half."""
    leaf = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    twin_distributions._clamped_log(leaf).sum().backward()
    with jax.enable_x64(True):
        mine = jax.grad(lambda x: distributions._clamped_log(x).sum())(jnp.array([value]))
    assert leaf.grad.tolist() == mine.tolist() == [1.0 / value]


def test_clamped_needs_discrete_actions():
    config = dataclasses.replace(PRESETS["vpg"], env="Pendulum-v1", log_prob="clamped")
    for package in (jaxpg, torch_ref):
        with pytest.raises(ValueError, match="log_prob='clamped' needs discrete actions"):
            package.build(config)
    assert issubclass(ConfigError, ValueError)


# The value fit


def test_what_the_ring_remembers():
    rows = Trajectory(*range(10))
    rows = rows._replace(terminated=jnp.array([[True]]))
    corrected = algorithms.build(PRESETS["article-corrected"]).remember(rows)
    assert corrected == (rows.obs, rows.reward, rows.next_obs, rows.terminated)
    literal = algorithms.build(PRESETS["article"]).remember(rows)
    assert literal[:3] == (rows.next_obs, rows.reward, rows.next_obs)
    assert literal[3].tolist() == [[False]]


@pytest.mark.parametrize(("name", "value"), [("article", 100.0), ("article-corrected", 1.0)])
def test_the_wrong_state_drives_the_value_to_a_hundred(name, value):
    """Steps of reward 1 that all end the task: V should be 1, and is 1 / (1 - γ) if no one looks.

    A linear critic on the observation 1, in closed form: one weight and one bias.
    """
    config = dataclasses.replace(
        PRESETS[name], hidden_sizes=(1,), value_learning_rate=0.5, learning_rate=1e-9
    )
    build = algorithms.build(config)
    one = jnp.ones((30, 1))
    state = jnp.ones((30, 1, 4))
    never, valid = jnp.zeros((30, 1), bool), jnp.ones((30, 1), bool)
    trajectory = Trajectory(
        state,
        jnp.zeros((30, 1), int),
        -one,
        one,
        state,
        valid,
        never,
        valid,
        jnp.zeros((30, 1), int),
        one,
    )
    build = build._replace(
        collect=lambda env, act, params, env_state, noise: (env_state, trajectory),
        networks=build.networks._replace(
            value=lambda params, obs: params["value"]["output"]["bias"][0] * obs[..., 0]
        ),
    )
    arrays = training.as_arrays(config)
    first = jax.jit(partial(learner.init, arrays, algorithm=build))(jaxpg.key(0))
    step = jax.jit(lambda state: learner.update(arrays, state, build)[0])
    for _ in range(3000):
        first = step(first)
    assert float(first.params["value"]["output"]["bias"][0]) == pytest.approx(value, rel=1e-3)


# The time limit


@pytest.mark.parametrize("package", [jaxpg, torch_ref])
def test_the_time_limit_ends_the_task(package):
    config = dataclasses.replace(PRESETS["article"], max_episode_steps=3)
    plain = (env if package is jaxpg else torch_ref.env).make("CartPole-v1", max_episode_steps=3)
    wrapped = package.build(config).env
    array = jnp.asarray if package is jaxpg else torch.tensor
    noise = array(np.full((1, 4), 0.5, np.float32))
    ends = {}
    for name, environment in (("plain", plain), ("wrapped", wrapped)):
        state, key = environment.reset(noise), np.zeros((1, 2), np.uint32)
        if package is jaxpg:
            key = jaxpg.keys([0])
        for _ in range(3):
            state, _, terminated, truncated = environment.step(key, state, array(np.array([0])))
        ends[name] = bool(terminated[0]), bool(truncated[0])
    assert ends == {"plain": (False, True), "wrapped": (True, False)}
    assert plain.spec == wrapped.spec
    assert env.make("CartPole-v1").spec.time_limit == 500


# The presets


@pytest.mark.parametrize(
    ("name", "rate", "buffer", "batch", "episodes"),
    [("article", 3e-7, 5000, 512, 4000), ("article-text", 2e-7, 2000, 256, 5000)],
)
def test_literal_presets_have_the_articles_numbers(name, rate, buffer, batch, episodes):
    c = PRESETS[name]
    assert (c.learning_rate, c.value_learning_rate, c.gamma) == (rate, 1e-7, 0.99)
    assert (c.buffer_size, c.batch_size, c.num_updates) == (buffer, batch, episodes)
    assert (c.optimizer, c.hidden_sizes, c.activation) == ("sgd", (64,), "relu")


def literal_update(params, episode, buffer, chosen, config):
    """One turn of the script's loop, in torch, on its own episode and its own choice of rows."""
    policy, value = ({k: v.clone().requires_grad_() for k, v in p.items()} for p in params)

    def net(weights, x):
        hidden = torch.relu(x @ weights["hidden_0.weight"].T + weights["hidden_0.bias"])
        return hidden @ weights["output.weight"].T + weights["output.bias"]

    obs, action, reward, next_obs = episode
    steps = range(len(reward))
    returns = torch.tensor([sum(GAMMA**k * reward[k] for k in steps if k >= i) for i in steps])
    baseline = net(value, obs).detach()
    probs = torch.softmax(net(policy, obs), -1)
    clamped = probs.clamp(2.0**-23, 1 - 2.0**-23)
    log_prob = clamped.log().gather(1, action[:, None])[:, 0]
    (-log_prob * (returns - baseline)).sum().backward()

    obs, reward, next_obs = (torch.cat(part) for part in zip(*buffer, strict=True))
    next_obs, reward = next_obs[chosen], reward[chosen]
    prediction = net(value, next_obs)[:, 0]
    torch.nn.functional.mse_loss(prediction, reward + GAMMA * prediction.detach()).backward()
    rates = (config.learning_rate, config.value_learning_rate)
    return [
        {name: (leaf - rate * leaf.grad).detach() for name, leaf in weights.items()}
        for weights, rate in zip((policy, value), rates, strict=True)
    ]


def test_an_update_is_one_turn_of_the_scripts_loop():
    """Three episodes: the buffer still fills, so that the sample is everything that it holds."""
    config = dataclasses.replace(
        PRESETS["article"], arithmetic="float64", learning_rate=1e-3, value_learning_rate=1e-2
    )
    episodes = []
    algorithm = torch_ref.build(config)

    def collect(*args):
        state, trajectory = algorithm.collect(*args)
        episodes.append(trajectory)
        return state, trajectory

    runs = torch_ref.training.updates(config, torch_ref.key(5), algorithm._replace(collect=collect))
    state = torch_ref.init(torch_ref.training.as_tensors(config), torch_ref.key(5), algorithm)
    params = [
        {name: leaf.detach() for name, leaf in state.params[net].named_parameters()}
        for net in ("policy", "value")
    ]
    buffer = []
    for _, (after, metrics) in zip(range(3), runs, strict=False):
        t = episodes[-1]
        rows = t.valid[:, 0]
        obs, action, reward, next_obs = (
            x[:, 0][rows] for x in (t.obs, t.action, t.reward, t.next_obs)
        )
        buffer.append((obs, reward, next_obs))
        filled = sum(len(reward) for _, reward, _ in buffer)
        assert 8 < filled < config.batch_size
        params = literal_update(
            params, (obs, action, reward, next_obs), buffer, torch.arange(filled), config
        )
        for net, expected in zip(("policy", "value"), params, strict=True):
            for name, leaf in after.params[net].named_parameters():
                assert_close(leaf.detach(), expected[name], 1e-11, f"{net}.{name}")
        assert int(metrics.env_steps) == len(reward)


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", ARTICLE)
def test_both_packages_train_it_alike(name):
    """Free-running float64, four episodes from one integer."""
    config = dataclasses.replace(
        PRESETS[name], arithmetic="float64", total_episodes=4, max_episode_steps=40
    )
    with jax.enable_x64(True):
        ours, metrics = jax.jit(partial(jaxpg.train, config))(jaxpg.key(3))
        theirs, twin_metrics = torch_ref.train(config, torch_ref.key(3))
        for name_, leaf in to_torch(ours.params).items():
            assert_close(leaf, theirs.params.state_dict()[name_], 1e-11, name_)
        for field, other in twin_metrics.named().items():
            assert_close(metrics.named()[field], other, 1e-11, field)
        assert int(metrics.episodes.sum()) == 4
