"""Policies to act with: greedy and sampled, single and batched, numpy and jax."""

import copy
import pickle
import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.classic_control.cartpole import CartPole

import jaxpg
from jaxpg.core import algorithms, noise
from jaxpg.core.config import Config, ConfigError
from jaxpg.population.policy import Policy


def fresh(**options) -> Policy:
    """An untrained policy."""
    config = Config(**{"hidden_sizes": (7,), **options})
    params = jax.jit(algorithms.build(config).networks.init)(noise.key(0), noise.key(1))
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


def test_a_squashed_action_is_within_its_bounds():
    """The most probable one is 2 tanh μ, of Pendulum with a torque of up to 2."""
    policy = fresh(env="Pendulum-v1", squash=True)
    policy.params["policy"]["output"]["bias"] += 1.0
    obs = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    mean = np.asarray(policy.actor.outputs(policy.params, obs))[:, :1]
    np.testing.assert_allclose(policy.act(obs), 2.0 * np.tanh(mean), rtol=1e-5)
    sampled = policy.act(obs, jaxpg.key(0))
    assert 1.9 < np.abs(sampled).max() <= 2.0


@pytest.mark.parametrize("key", [None, 0])
def test_choices_at_once_are_those_that_an_observation_allows(key):
    policy = fresh(env="jaxpg.proof.dials:Dials-v0")
    mask = np.random.default_rng(0).random((500, 5)) > 0.5
    mask[~mask[:, :3].any(axis=1), 0] = mask[~mask[:, 3:].any(axis=1), 3] = True
    obs = np.concatenate([np.zeros((500, 2)), mask], axis=-1).astype(np.float32)
    action = policy.act(obs, None if key is None else jaxpg.key(key))
    assert action.shape == (500, 2)
    assert action.dtype == np.int32
    taken = np.stack([action[:, 0], 3 + action[:, 1]], axis=-1)
    assert np.take_along_axis(mask, taken, axis=-1).all()
    assert {*action[:, 0].tolist()} == {0, 1, 2}


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


@pytest.mark.parametrize("frame_stack", [1, 2])
def test_an_observation_that_is_none_of_its_numbers_gets_a_sentence(frame_stack):
    """It would be seen as none of them: a vector of zeros."""
    policy = fresh(env="FrozenLake-misc", frame_stack=frame_stack)
    shape = policy.actor.interface.obs_shape
    for number in (0, 15):
        assert policy.act(np.full(shape, number)) in range(4)
    for number in (16, -1, 2.5, np.nan):
        with pytest.raises(ValueError, match=f"observation must be of 0 to 15; got {number}"):
            policy.act(np.full((3, *shape), number))


def test_float64_needs_the_64_bit_mode():
    with pytest.raises(ConfigError, match="64-bit mode"):
        Policy.of(Config(arithmetic="float64"), {})


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FourRooms-misc"])
@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 2)])
def test_an_empty_batch_gets_no_actions(env, batch):
    policy = fresh(env=env)
    obs = np.zeros((*batch, *policy.actor.interface.obs_shape), np.float32)
    one = policy.act(np.zeros((1, *obs.shape[len(batch) :]), np.float32))
    for key in (None, jaxpg.key(0)):
        actions = policy.act(obs, key)
        assert actions.shape == (*batch, *one.shape[1:])
        assert actions.dtype == one.dtype
    assert jax.jit(policy.act)(jnp.asarray(obs)).shape == actions.shape


def test_it_goes_to_another_process(trained, tmp_path):
    """As multiprocessing, joblib and Ray send it; the other one has compiled nothing yet."""
    policy = jaxpg.load(trained).policy(9)
    obs = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    expected = policy.act(obs), policy.act(obs, jaxpg.key(3))
    for sent in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy), copy.copy(policy)):
        np.testing.assert_array_equal(sent.act(obs), expected[0])
    (tmp_path / "policy").write_bytes(pickle.dumps((policy, obs, expected)))
    code = (
        "import pickle, sys, numpy as np, jaxpg\n"
        "policy, obs, expected = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert 'gymnax' not in sys.modules\n"
        "np.testing.assert_array_equal(policy.act(obs), expected[0])\n"
        "np.testing.assert_array_equal(policy.act(obs, jaxpg.key(3)), expected[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "policy")], check=True)


def test_so_does_a_run(trained):
    loaded = jaxpg.load(trained)
    again = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(again.population.final_return, loaded.population.final_return)


def test_an_environment_that_is_registered_anew_is_another(monkeypatch):
    """Under a name that was used before; what was made of the old one stays with it."""

    class Mirrored(CartPole):
        def action_space(self, params=None):
            return gymnax.environments.spaces.Discrete(3)

    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    gymnax.register("Anew-v0", CartPole)
    try:
        old = fresh(env="Anew-v0")
        assert old.actor.spec.num_actions == 2
        del gymnax.registration._registry["Anew-v0"]
        gymnax.register("Anew-v0", Mirrored)
        assert fresh(env="Anew-v0").actor.spec.num_actions == 3
        assert old.actor.spec.num_actions == 2
    finally:
        while "Anew-v0" in gymnax.registered_envs:
            gymnax.registered_envs.remove("Anew-v0")


def test_one_program_serves_all_settings():
    """A config whose numbers are arrays, which nothing can be looked up by, too."""
    one, other = fresh(gamma=0.5), fresh(gamma=jnp.float32(0.9), learning_rate=np.float32(0.1))
    assert one.actor is other.actor
    assert fresh(hidden_sizes=(8,)).actor is not one.actor
