"""PPO with a penalty on the KL: when its weight changes, and what it does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_close
from compiled import fitted, run

import torch_ref.penalty as twin
from jaxpg.core import algorithms, learner, penalty, training
from jaxpg.core.distributions import categorical_kl
from jaxpg.core.noise import key
from jaxpg.proof import batch as shared
from tests.core.test_ppo import CONFIG as PPO

CONFIG = dataclasses.replace(PPO, fit="ppo_penalty", total_steps=12 * 32)


@pytest.fixture(autouse=True)
def _in_float64(x64):
    """All of this module's numbers are float64."""


@pytest.mark.parametrize(
    ("weight", "kl", "expected"),
    [
        (3.0, 0.0, 1.5),
        (3.0, 0.0199, 1.5),  # less than 0.03 / 1.5
        (3.0, 0.0201, 3.0),
        (3.0, 0.0449, 3.0),
        (3.0, 0.0451, 6.0),  # more than 0.03 · 1.5
        (3.0, 7.0, 6.0),
        (1.5 * 2.0**-40, 0.0, 2.0**-40),
        (1.5 * 2.0**39, 7.0, 2.0**40),
    ],
)
def test_the_next_weight_worked_by_hand(weight, kl, expected):
    ours = penalty.adapted_weight(jnp.float32(weight), kl, desired_kl=0.03)
    assert ours == expected
    assert ours.dtype == "float32"
    weight, kl = torch.tensor(weight), torch.tensor(kl)
    theirs = twin.adapted_weight(weight, kl, desired_kl=torch.tensor(0.03))
    assert theirs == expected
    assert theirs.dtype == torch.float32


def test_a_state_can_be_donated_beside_its_config():
    """Its first weight was the config's own buffer."""
    config = training.as_arrays(CONFIG)
    made = algorithms.build(config)
    state = learner.init(config, key(3), made)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(config)]
    assert state.fit_state == config.kl_coef
    assert state.fit_state.unsafe_buffer_pointer() not in buffers


def test_the_weight_is_handed_from_update_to_update():
    """Each is made of the one before it and the KL that was reported with it."""
    config = dataclasses.replace(CONFIG, kl_coef=0.7)
    train = jax.jit(lambda config: training.train(config, key(3)))
    state, metrics = train(training.as_arrays(config))
    weights = [*map(float, metrics.kl_weight), float(state.fit_state)]
    assert weights[0] == 0.7
    for before, kl, after in zip(weights[:-1], metrics.kl, weights[1:], strict=True):
        assert after == penalty.adapted_weight(jnp.float64(before), kl, desired_kl=0.01)
    steps = np.sign(np.diff(weights))
    assert {*steps} == {-1, 0, 1}, "it falls, stays and rises"


def test_the_kl_is_that_of_the_whole_update():
    """In closed form, over the batch, between the policies before and after all its steps."""
    before, after, seen = fitted(CONFIG)
    old, new = (run(_logits, CONFIG, s.params, seen.trajectory.obs) for s in (before, after))
    assert_close(seen.metrics.kl, jnp.mean(categorical_kl(old, new)), 1e-12)
    assert seen.metrics.kl > 1e-4


def test_where_the_policies_are_one_the_penalty_has_no_slope():
    """So the first step of an update is the policy gradient's, whatever β is."""
    side = shared.jax_side(shared.small(CONFIG))
    params, inputs = side.state.params, (side.state.params, side.trajectory)
    slopes = [run(_slope, shared.small(CONFIG), *inputs, params, beta) for beta in (0.0, 9.0)]
    for ours, other in zip(*map(jax.tree.leaves, slopes), strict=True):
        assert_close(ours, other, 1e-12)
    elsewhere = jax.tree.map(lambda x: 0.5 * x, params)
    away = run(_slope, shared.small(CONFIG), *inputs, elsewhere, 9.0)
    assert (
        np.abs(
            away["policy"]["hidden_0"]["kernel"] - slopes[0]["policy"]["hidden_0"]["kernel"]
        ).max()
        > 0.1
    )


def test_a_large_weight_holds_the_policy_where_it_is():
    moved = [
        float(fitted(dataclasses.replace(CONFIG, kl_coef=weight))[2].metrics.kl)
        for weight in (1e-3, 100.0)
    ]
    assert moved[1] < 0.1 * moved[0]


def test_without_a_penalty_it_is_ppo_without_a_clip():
    """Two roads to the same steps: a β of almost 0, and an ε that no ratio reaches."""
    free = dataclasses.replace(CONFIG, kl_coef=2.0**-40)
    unclipped = dataclasses.replace(CONFIG, fit="ppo", clip_coef=1e9)
    ours, others = (fitted(config)[1].params for config in (free, unclipped))
    for one, other in zip(*map(jax.tree.leaves, (ours, others)), strict=True):
        assert_close(one, other, 1e-9)


def _logits(config, algorithm, params, obs):
    return algorithm.networks.policy(params, obs)


def _slope(config, algorithm, params, trajectory, old, beta):
    batch = learner.estimate(config, algorithm, params, trajectory)

    def loss(params):
        inputs = (config, algorithm, params, batch)
        return penalty.surrogate_objective(*inputs, old=old, beta=beta)[0]

    return jax.grad(loss)(params)
