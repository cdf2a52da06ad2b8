"""Policies to act with: greedy and sampled, single and batched, numpy and jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpg
from jaxpg.core import algorithms, noise
from jaxpg.core.config import Config, ConfigError
from jaxpg.population.policy import Policy


def fresh(**options) -> Policy:
    """An untrained policy."""
    config = Config(**{"hidden_sizes": (7,), **options})
    params = algorithms.build(config).networks.init(noise.key(0), noise.key(1))
    return Policy.of(config, params)


def test_greedy_is_the_most_probable_action(trained):
    policy = jaxpg.load(trained).policy(9)
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    # By hand: relu(W x + b), then the larger of two logits.
    layers = policy.params["policy"]
    hidden = np.maximum(obs @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"], 0)
    logits = hidden @ layers["output"]["kernel"] + layers["output"]["bias"]
    actions = policy.act(obs)
    np.testing.assert_array_equal(actions, logits.argmax(axis=1))
    assert set(actions.tolist()) == {0, 1}
    assert actions.dtype == np.int32


def test_samples_are_as_frequent_as_they_are_probable():
    policy = fresh()
    obs = jnp.broadcast_to(jnp.array([1.0, -2.0, 0.5, 0.3]), (20_000, 4))
    share = float(policy.act(obs, jaxpg.key(0)).mean())
    expected = float(jax.nn.softmax(policy.actor.outputs(policy.params, obs[0]))[1])
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 20_000)
    assert 0.2 < expected < 0.8
    again = policy.act(obs, jaxpg.key(0))
    np.testing.assert_array_equal(again, policy.act(obs, jaxpg.key(0)))
    assert (again != policy.act(obs, jaxpg.key(1))).any()


def test_any_leading_axes_and_any_kind_of_array():
    policy = fresh()
    obs = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)
    batch = policy.act(obs)
    assert batch.shape == (3, 5)
    assert policy.act(obs[0, 0]).shape == ()
    for i, j in np.ndindex(3, 5):
        assert policy.act(obs[i, j]) == batch[i, j]
    assert isinstance(batch, np.ndarray)
    assert isinstance(policy.act([0.0, 0.0, 0.0, 0.0]), np.ndarray)
    assert isinstance(policy.act(jnp.asarray(obs)), jax.Array)
    np.testing.assert_array_equal(jax.jit(policy.act)(jnp.asarray(obs)), batch)
    np.testing.assert_array_equal(
        jax.jit(lambda key: policy.act(obs, key))(jaxpg.key(0)), policy.act(obs, jaxpg.key(0))
    )


def test_a_continuous_action_is_clipped_and_shaped():
    """Pendulum's torque is in [-2, 2]; a large bias would exceed it."""
    policy = fresh(env="Pendulum-v1")
    obs = np.ones((6, 3), np.float32)
    greedy = policy.act(obs)
    assert greedy.shape == (6, 1)
    mean = policy.actor.outputs(policy.params, jnp.asarray(obs))[:, :1]
    np.testing.assert_array_equal(greedy, mean)
    sampled = policy.act(obs, jaxpg.key(0))
    assert len(np.unique(sampled)) == 6
    policy.params["policy"]["output"]["bias"] += 100.0
    assert (policy.act(obs) == 2.0).all()


def test_gymnasium_takes_its_actions(trained):
    gymnasium = pytest.importorskip("gymnasium")
    policy = jaxpg.load(trained).policy("best")
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        obs, *_ = env.step(policy.act(obs))
    env.close()


@pytest.mark.parametrize("shape", [(), (3,), (4, 5), (2, 4, 1)])
def test_other_shapes_get_a_sentence(shape):
    with pytest.raises(ValueError, match=r"must have the shape \(…, 4\); got"):
        fresh().act(np.zeros(shape, np.float32))


def test_float64_needs_the_64_bit_mode():
    with pytest.raises(ConfigError, match="64-bit mode"):
        Policy.of(Config(arithmetic="float64"), {})
