"""Running statistics: against numpy, by hand, in an update, and the twin's."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_close, assert_trees_close
from compiled import fitted, init
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpg
import torch_ref.statistics as twin
from jaxpg.core import algorithms, learner, networks, statistics, training
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.types import RewardScale
from jaxpg.proof import synthetic

merge = jax.jit(statistics.merge)
normalize_obs = jax.jit(statistics.normalize_obs)
scale_reward = jax.jit(statistics.scale_reward)
return_so_far = jax.jit(statistics.return_so_far)

pytestmark = pytest.mark.usefixtures("x64")


def nothing(shape=()):
    return statistics.of_nothing(shape, "float64")


def moments(count, mean, var):
    return {"count": jnp.float64(count), "mean": jnp.asarray(mean), "var": jnp.asarray(var)}


def in_torch(tree):
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x)), tree)


# Moments.


def test_moments_worked_by_hand():
    """1 and 3, and a padding of 9; then 8: mean (1 + 3 + 8) / 3, var (3² + 1² + 4²) / 3."""
    first = merge(nothing(), jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[True, True, False]]))
    assert {name: float(x) for name, x in first.items()} == {"count": 2, "mean": 2, "var": 1}
    second = merge(first, jnp.array([[8.0]]), jnp.ones((1, 1), bool))
    assert_trees_close(second, moments(3, 4.0, 26 / 3), 1e-15)


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e4]), st.lists(st.integers(1, 4), min_size=1)
)
def test_parts_have_the_moments_of_the_whole(seed, offset, steps):
    """However a stream is cut, and far from 0, where a sum of squares would cancel."""
    rng = np.random.default_rng(seed)
    found, rows = nothing((2,)), []
    for _ in steps:
        x, valid = offset + rng.normal(size=(2, 3, 2)), rng.random((2, 3)) < 0.7
        valid[0, 0] = True
        found = merge(found, x, valid)
        rows.append(x[valid])
    whole = np.concatenate(rows)
    assert found["count"] == len(whole)
    assert_close(found["mean"], whole.mean(axis=0), 1e-13)
    assert_close(found["var"], whole.var(axis=0), 1e-9)


@pytest.mark.parametrize("number", [0.3, 1000.3])
def test_what_does_not_vary_is_0(number):
    """The mean of 777 times 1000.3, in float32, is another number."""
    rows = np.full((37, 21, 1), number, np.float32)
    start = {name: x.astype(np.float32) for name, x in nothing((1,)).items()}
    ours = merge(merge(start, rows, np.ones((37, 21), bool)), rows[:2], np.ones((2, 21), bool))
    theirs = in_torch(start)
    for part in (rows, rows[:2]):
        theirs = twin.merge(theirs, torch.tensor(part), torch.ones(part.shape[:2], dtype=bool))
    for found in (ours, theirs):
        assert np.asarray(found["mean"]) == np.float32(number)
        assert np.asarray(found["var"]) == 0.0
    assert (normalize_obs(ours, rows) == 0.0).all()
    assert np.isfinite(normalize_obs(ours, jnp.ones((2, 1), np.float32))).all()


# Observations.


def test_normalized_worked_by_hand():
    """(5 - 1) / √4 = 2, (-99 - 1) / √4 = -50, which counts as -10."""
    known = moments(7, [1.0, 1.0], [4.0 - statistics.EPSILON] * 2)
    np.testing.assert_array_equal(normalize_obs(known, jnp.array([[5.0, -99.0]])), [[2.0, -10.0]])


def test_before_anything_was_met_observations_are_what_they_are():
    obs = np.array([[3.0, -4.5, 11.0]], np.float32)
    same = normalize_obs(statistics.of_nothing((3,), "float32"), obs)
    np.testing.assert_array_equal(same, [[3.0, -4.5, 10.0]])


def test_moments_are_constants_of_a_gradient():
    known = moments(7, [1.0], [0.25])
    in_moments = jax.grad(lambda known: jnp.sum(statistics.normalize_obs(known, jnp.ones((3, 1)))))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(in_moments(known)))
    in_obs = jax.grad(lambda obs: jnp.sum(statistics.normalize_obs(known, obs)))(jnp.ones((3, 1)))
    assert_close(in_obs, np.full((3, 1), 2.0), 1e-7)


# Rewards.


def test_return_so_far_worked_by_hand():
    """γ = ½, 4 so far: 1 + ½ · 4 = 3, 2 + ½ · 3 = 3.5, the end; then 5, and 5 so far."""
    reward, done = jnp.array([[1.0], [2.0], [5.0]]), jnp.array([[False], [True], [False]])
    returns, following = return_so_far(reward, done, jnp.array([4.0]), gamma=0.5)
    assert returns[:, 0].tolist() == [3.0, 3.5, 5.0]
    assert following.tolist() == [5.0]


def trajectory(layout):
    return synthetic.for_jax(synthetic.arrays(layout, "categorical"), "float64")


@pytest.mark.parametrize("layout", ["steps", "episodes"])
def test_rewards_are_divided_by_the_deviation_of_all_returns_so_far(layout):
    """Of two trajectories, the second of which goes on where the first ends."""
    first, second = (synthetic.arrays(layout, "categorical", seed) for seed in (0, 1))
    scale, found = RewardScale(jnp.zeros(synthetic.N), nothing()), []
    for fields in (first, second):
        scale, scaled = scale_reward(scale, synthetic.for_jax(fields, "float64"), gamma=0.9)
        found.append(scaled)
    met, returns = np.zeros(synthetic.N), []
    for fields in (first, second):
        for t in range(synthetic.T):
            met = fields["reward"][t] + 0.9 * met
            returns += met[fields["valid"][t]].tolist()
            met[fields["terminated"][t] | fields["truncated"][t]] = 0.0
    assert_close(scale.returns, met, 1e-12, scale=np.ones(1))
    assert scale.moments["count"] == len(returns)
    assert_close(scale.moments["var"], np.var(returns), 1e-12)
    assert_close(found[1].reward, second["reward"] / np.std(returns), 1e-7)
    np.testing.assert_array_equal(found[1].episode_return, second["episode_return"])
    if layout == "episodes":  # which all end
        assert not np.any(scale.returns)
        assert not np.any(found[1].reward[~second["valid"]])


def test_a_reward_beyond_every_return_so_far_is_clipped():
    many = RewardScale(jnp.zeros(1), moments(1e6, 0.0, 1.0))
    one = jax.tree.map(lambda x: x[:1, :1], trajectory("steps"))
    _, scaled = scale_reward(many, one._replace(reward=jnp.full((1, 1), -30.0)), gamma=0.9)
    assert scaled.reward.tolist() == [[-10.0]]


# In an update.


SMALL = Config(
    num_envs=4,
    num_steps=16,
    total_steps=64 * 4,
    hidden_sizes=(5,),
    value_steps=2,
    normalize_obs=True,
    normalize_reward=True,
    arithmetic="float64",
)
OTHERS = {
    "separate": {},
    "joint": {"joint_loss": True, "value_steps": 1},
    "ppo": {"fit": "ppo", "minibatches": 2, "value_steps": 1, "target_kl": 1e-6},
    "ppo, shared": {"fit": "ppo", "networks": "shared", "minibatches": 2, "value_steps": 1},
    "trpo": {"fit": "trpo"},
    "episodes, replay": {
        "collect": "episodes",
        "total_episodes": 16,
        "max_episode_steps": 30,
        "value_data": "replay",
        "value_target": "td0",
        "buffer_size": 40,
        "batch_size": 16,
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_update_has_the_moments_that_it_began_with(name):
    config = dataclasses.replace(SMALL, **OTHERS[name])
    algorithm = algorithms.build(config)
    state = init(config, 1)
    known = moments(50, [0.1, -0.2, 0.0, 0.3], [0.1, 0.5, 0.01, 2.0])
    state = state._replace(params={**state.params, "obs": known})
    arrays = training.as_arrays(config)
    after, seen = jax.jit(partial(learner.watch, algorithm=algorithm))(arrays, state)
    valid = np.asarray(seen.trajectory.valid)
    outputs = algorithm.networks.policy(state.params, seen.trajectory.obs)
    log_prob = algorithm.distribution.log_prob(outputs, seen.trajectory.action)
    assert_close(seen.trajectory.log_prob[valid], log_prob[valid], 1e-12)
    assert_trees_close(after.params["obs"], merge(known, seen.trajectory.obs, valid), 1e-12)
    assert {*after.params} == {*state.params}
    paths = [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.opt_state)]
    assert paths
    assert not any("'obs'" in path for path in paths)
    plain = algorithm.networks.value(state.params, seen.trajectory.obs)
    assert_close(seen.batch.value[valid], plain[valid], 1e-12)
    if config.replays:  # what it holds are the rewards that the critic learns from
        _, scaled = scale_reward(state.reward_scale, seen.trajectory, gamma=config.gamma)
        held = np.asarray(after.replay.rows[1])[: int(after.replay.filled)]
        assert_close(held, np.asarray(scaled.reward)[valid][-40:], 1e-12)
        assert 0 < held.max() < 1


def test_what_is_reported_are_the_environments_own_rewards():
    """In the first update nothing has been learned, and observations are what they are."""
    (_, _, plain), (_, after, scaled) = (
        fitted(dataclasses.replace(SMALL, normalize_reward=scaled)) for scaled in (False, True)
    )
    for name in ("reward", "episode_return", "obs"):
        mine, other = (getattr(seen.trajectory, name) for seen in (scaled, plain))
        np.testing.assert_array_equal(mine, other, err_msg=name)
    assert scaled.metrics.return_sum == plain.metrics.return_sum > 0
    assert scaled.metrics.value_loss < plain.metrics.value_loss / 2
    assert after.reward_scale.moments["count"] == 64


def test_without_them_nothing_is_kept():
    state = init(dataclasses.replace(SMALL, normalize_obs=False, normalize_reward=False), 0)
    assert {*state.params} == {"policy", "value"}
    assert state.reward_scale is None


def test_networks_of_ones_own_are_wrapped_or_refused():
    algorithm = algorithms.build(SMALL)
    plain = networks.make(dataclasses.replace(SMALL, normalize_obs=False), algorithm.env.spec)
    arrays = training.as_arrays(SMALL)
    with pytest.raises(ConfigError, match=r"hand yours to networks\.normalized; got parameters of"):
        learner.init(arrays, jaxpg.key(0), algorithm._replace(networks=plain))
    wrapped = networks.normalized(plain, SMALL, algorithm.env.spec)
    own = learner.init(arrays, jaxpg.key(0), algorithm._replace(networks=wrapped)).params
    for mine, other in zip(*map(jax.tree.leaves, (own, init(SMALL, 0).params)), strict=True):
        np.testing.assert_array_equal(mine, other)


# The twin.


@pytest.mark.parametrize("layout", ["steps", "episodes"])
def test_the_twin_computes_the_same(layout):
    fields = synthetic.arrays(layout, "categorical")
    ours, theirs = synthetic.for_jax(fields, "float64"), synthetic.for_torch(fields, "float64")
    known = moments(40, np.linspace(-1.0, 1.0, 4), np.geomspace(1e-3, 2.0, 4))
    merged = merge(known, ours.obs, ours.valid)
    assert_trees_close(twin.merge(in_torch(known), theirs.obs, theirs.valid), merged, 1e-13)
    normalized = normalize_obs(known, ours.obs)
    assert np.max(np.abs(normalized)) == 10.0
    assert_close(twin.normalize_obs(in_torch(known), theirs.obs), normalized, 1e-15)
    scale = RewardScale(jnp.linspace(-1.0, 1.0, synthetic.N), moments(40, 0.3, 0.02))
    scale_, scaled = scale_reward(scale, ours, gamma=0.9)
    their_scale, their_scaled = twin.scale_reward(
        twin.RewardScale(*in_torch(scale)), theirs, gamma=0.9
    )
    assert_close(their_scaled.reward, scaled.reward, 1e-13)
    assert_close(their_scale.returns, scale_.returns, 1e-13, scale=np.ones(1))
    assert_trees_close(their_scale.moments, scale_.moments, 1e-13)
