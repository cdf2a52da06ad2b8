"""PPO: formulas by hand, orders that are permutations, and what a fit reduces to."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from compare import assert_close
from compiled import fitted, run
from jax.test_util import check_grads

import torch_ref
import torch_ref.ppo as twin
from jaxpg.core import algorithms, gradient, learner, losses, noise, ppo, types
from jaxpg.core.config import Config
from jaxpg.core.types import Batch
from jaxpg.proof import batch as shared
from jaxpg.proof import pairs

CONFIG = Config(
    fit="ppo",
    epochs=4,
    minibatches=4,
    num_envs=2,
    num_steps=16,
    total_steps=4 * 32,
    value_steps=1,
    hidden_sizes=(8,),
    learning_rate=0.05,
    value_learning_rate=0.03,
    arithmetic="float64",
)


@pytest.fixture(autouse=True)
def _in_float64(x64):
    """All of this module's numbers are float64."""


def test_the_clipped_ratio_worked_by_hand():
    """ε = 0.2. Ψ ≥ 0: min(ρ, 1.2); Ψ < 0: max(ρ, 0.8)."""
    ratio = jnp.array([0.5, 1.1, 1.5, 0.5, 0.9, 1.5])
    advantage = jnp.array([1.0, 0.0, 2.0, -1.0, -3.0, -2.0])
    found = ppo.clipped_ratio(jnp.log(ratio), advantage, clip_coef=0.2)
    assert_close(found, [0.5, 1.1, 1.2, 0.8, 0.9, 1.5], 1e-15)


def test_the_clipped_ratio_times_psi_is_the_papers_minimum():
    rng = np.random.default_rng(0)
    log_ratio, advantage = rng.normal(size=(2, 500)) * [[0.3], [1.0]]
    ratio = np.exp(log_ratio)
    expected = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    found = ppo.clipped_ratio(log_ratio, advantage, clip_coef=0.2) * advantage
    assert_close(found, expected, 1e-14)


def test_a_ratio_that_went_far_enough_has_no_slope():
    """ρ Ψ where the minimum is not clipped, 0 where it is; at ρ = 1 the policy gradient's Ψ."""
    log_ratio = np.log([1.3, 0.7, 1.3, 0.7, 1.0])
    advantage = np.array([2.0, 2.0, -2.0, -2.0, 5.0])

    @jax.jit
    def total(log_ratio):
        return jnp.sum(ppo.clipped_ratio(log_ratio, advantage, clip_coef=0.2) * advantage)

    assert_close(jax.grad(total)(log_ratio), [0.0, 1.4, -2.6, 0.0, 5.0], 1e-14)
    check_grads(total, (log_ratio,), order=1, modes="rev")


def test_the_clipped_value_loss_worked_by_hand():
    """c = 1, V_old = 0, target 3.

    V = 0.5: (2.5², the same) -> 6.25. V = 2: (1, (1 - 3)²) -> 4, clipped and flat. V = -2: (25, 16)
    -> 25. Padding has no part. (6.25 + 4 + 25) / 3
    """
    value = np.array([0.5, 2.0, -2.0, 100.0])
    valid = np.array([True, True, True, False])

    @jax.jit
    def loss(value):
        old, target = np.zeros(4), np.full(4, 3.0)
        return losses.clipped_value_loss(value, old, target, valid, clip_value=1.0)

    assert_close(loss(value), 35.25 / 3, 1e-14)
    assert_close(jax.grad(loss)(value), np.array([-5.0, 0.0, -10.0, 0.0]) / 3, 1e-14)


def test_the_estimate_of_the_divergence_is_that_of_many_samples():
    """Of N(0, 1) against N(0.3, 1) it is 0.3² / 2; and it is never negative."""
    action = np.random.default_rng(0).normal(size=400_000)
    log_ratio = -0.5 * (action - 0.3) ** 2 + 0.5 * action**2
    valid = np.ones(action.shape, bool)
    estimate = jax.jit(ppo.approximate_kl)
    assert abs(estimate(log_ratio, valid) - 0.045) < 5 * 0.07 / np.sqrt(400_000)
    each = jax.jit(jax.vmap(ppo.approximate_kl))(log_ratio[:, None], valid[:, None])
    assert each.min() > -1e-15
    assert estimate(np.zeros(3), np.ones(3, bool)) == 0.0


def test_explained_variance_worked_by_hand():
    """Targets 1, 2, 3 vary by 2/3; V = 1, 2, 4 misses by 0, 0, -1, which vary by 2/9."""
    value, target = np.array([1.0, 2.0, 4.0, 50.0]), np.array([1.0, 2.0, 3.0, -50.0])
    valid = np.array([True, True, True, False])
    explained = jax.jit(ppo.explained_variance)
    assert_close(explained(value, target, valid), 1 - (2 / 9) / (2 / 3), 1e-14)
    assert explained(target, target, valid) == 1.0
    assert explained(value, np.ones(4), valid) == 0.0
    alike = np.full(592, 99.3429, np.float32)  # whose mean, rounded, is another number
    assert explained(np.linspace(0.0, 1.0, 592), alike, alike > 0.0) == 0.0


def numbered(config):
    """A batch in which every valid step says which it is."""
    steps, envs = 6, config.num_envs
    index = np.arange(float(steps * envs)).reshape(steps, envs)
    zeros = np.zeros_like(index)
    return Batch(
        obs=index[..., None],
        action=index.astype(np.int32),
        log_prob=zeros,
        valid=np.ones_like(zeros, bool),
        advantage=index,
        value=zeros,
        target=zeros,
        samples=None,
        order=noise.bits(noise.key(0), (2, noise.ROUNDS)),
    )


@partial(jax.jit, static_argnums=0)
def ppo_minibatches(config, batch, round_keys):
    return ppo.minibatches(config, batch, round_keys)


@pytest.mark.parametrize("package", [ppo, twin], ids=["jaxpg", "torch_ref"])
def test_minibatches_hold_every_step_once_in_another_order_each_epoch(package):
    config = dataclasses.replace(CONFIG, minibatches=3)
    batch, seen = numbered(config), []
    if package is twin:
        tensor = {k: torch.from_numpy(np.array(v)) for k, v in batch._asdict().items()
                  if k not in ("samples", "order")}  # fmt: skip
        batch = batch._replace(**tensor, order=np.array(batch.order))
    cut = ppo_minibatches if package is ppo else twin.minibatches
    for round_keys in batch.order:
        parts = cut(config, batch, round_keys)
        if package is twin:
            psi, obs = (np.stack([getattr(part, name).numpy() for part in parts])
                        for name in ("advantage", "obs"))  # fmt: skip
        else:
            psi, obs = np.array(parts.advantage), np.array(parts.obs)
        assert psi.shape == (3, 1, 4)
        np.testing.assert_array_equal(obs[..., 0], psi)  # rows stay together
        assert sorted(psi.ravel()) == list(range(12))
        seen.append(psi.ravel().tolist())
    assert seen[0] != seen[1] != sorted(seen[1])


def test_minibatches_of_episodes_keep_them_whole():
    config = dataclasses.replace(CONFIG, collect="episodes", num_envs=4, minibatches=2)
    parts = ppo_minibatches(config, numbered(config), numbered(config).order[0])
    assert parts.advantage.shape == (2, 6, 2)
    columns = np.array(parts.advantage).swapaxes(0, 1).reshape(6, 4)
    assert sorted(columns[0]) == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.diff(columns, axis=0), 4)


def assert_alike(tree, other, tolerance):
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert_close(one, two, tolerance)


@pytest.mark.parametrize("joint", [False, True])
def test_one_step_on_the_whole_batch_is_the_policy_gradients(joint):
    """Where ρ = 1 the surrogate's slope is Ψ ∇ log π."""
    one = dataclasses.replace(CONFIG, epochs=1, minibatches=1, joint_loss=joint)
    _, state, seen = fitted(one)
    plain = dataclasses.replace(one, fit="gradient", clip_coef=0.2)
    _, expected, met = fitted(plain)
    assert_alike(state.params, expected.params, 1e-12)
    assert_alike(seen.gradients, met.gradients, 1e-12)
    assert seen.metrics.clip_fraction == 0.0
    assert abs(seen.metrics.approx_kl) < 1e-15
    assert met.metrics.approx_kl is None


def test_every_step_is_taken_and_reported():
    *_, seen = fitted(CONFIG)
    for steps in seen.gradients.values():
        for leaf in jax.tree.leaves(steps):
            assert leaf.shape[0] == 16
    norms = [optax.tree.norm(jax.tree.map(lambda x, i=i: x[i], seen.gradients["policy"]))
             for i in range(16)]  # fmt: skip
    assert min(norms) > 0.0
    assert 0.0 < seen.metrics.approx_kl < 1.0
    assert 0.0 <= seen.metrics.clip_fraction <= 1.0
    target, value = np.array(seen.batch.target), np.array(seen.batch.value)
    explained = 1.0 - np.var(target - value) / np.var(target)
    assert_close(seen.metrics.explained_variance, explained, 1e-12)


def test_a_target_divergence_leaves_out_the_rest_of_an_update():
    """Of 16 steps: all under a bound that is never reached, the first alone under the smallest."""

    def taken(target_kl):
        _, state, seen = fitted(dataclasses.replace(CONFIG, target_kl=target_kl))
        size = jax.tree.map(lambda x: np.abs(x).reshape(16, -1).sum(axis=1), seen.gradients)
        each = np.sum(jax.tree.leaves(size), axis=0) > 0
        return state, seen, each

    everything, _, all_taken = taken(1e9)
    assert all_taken.all()
    assert_alike(everything.params, fitted(CONFIG)[1].params, 1e-13)
    _, seen, first = taken(1e-12)
    assert first.tolist() == [True] + [False] * 15
    assert abs(seen.metrics.approx_kl) < 1e-12
    state, _, some = taken(0.02)
    assert 1 < some.sum() < 16
    assert some.tolist() == sorted(some, reverse=True)  # none is taken after one that is left out
    assert state.opt_state["policy"].count == some.sum()
    assert state.opt_state["value"].count == some.sum()


def test_a_part_of_ones_own_is_used_on_every_minibatch():
    shapes = []

    def loss(log_prob, advantage, valid):
        shapes.append(log_prob.shape)
        return jnp.sum(log_prob) * 0.0

    before, state, _ = fitted(dataclasses.replace(CONFIG, joint_loss=False), policy_loss=loss)
    assert set(shapes) == {(1, 8)}
    assert_alike(state.params["policy"], before.params["policy"], 0.0)


def hurried(package):
    def objective(*inputs):
        loss, parts = package.surrogate_objective(*inputs)
        return loss - 3.0 * parts["approx_kl"], {**parts, "approx_kl": 2.0 * parts["approx_kl"]}

    return objective


def eager(package):
    def objective(*inputs):
        loss, parts = package.value_objective(*inputs)
        return 3.0 * loss, parts

    return objective


@pytest.mark.parametrize(("joint_loss", "target_kl"), [(True, None), (False, 0.4)])
def test_objectives_of_ones_own_are_descended_in_both_packages(joint_loss, target_kl):
    """On every minibatch; and its own divergence is what a target leaves steps out for."""
    fields = {"joint_loss": joint_loss, "target_kl": target_kl, "max_grad_norm": None}
    config = dataclasses.replace(shared.small(CONFIG), **fields)
    order = noise.bits(noise.key(1), (config.epochs, noise.ROUNDS))
    ours, theirs = shared.jax_side(config), shared.torch_side(config)
    start = types.Learned(ours.state.params, ours.state.opt_state, jnp.int32(1))
    begin = torch_ref.types.Learned(theirs.state.params, theirs.state.opt_state, 1)

    def ours_with(**objectives):
        mine = ours.algorithm._replace(fit=partial(ppo.fit, **objectives))
        learn = jax.jit(lambda config, *inputs: learner.learn(config, mine, *inputs))
        return learn(ours.config, start, ours.trajectory, None, order)[2]

    own = {"policy_objective": hurried(twin), "value_objective": eager(torch_ref.gradient)}
    mine = theirs.algorithm._replace(fit=partial(twin.fit, **own))
    inputs = (theirs.config, mine, begin, theirs.trajectory, None, np.asarray(order))
    expected = torch_ref.learner.learn(*inputs)[2]
    found = ours_with(policy_objective=hurried(ppo), value_objective=eager(gradient))
    usual = ours_with()
    gradients, before = (pairs.our_gradients_by_step(x.gradients) for x in (found, usual))
    for name, theirs_of_it in pairs.their_gradients_by_step(expected.gradients).items():
        assert_close(gradients[name], theirs_of_it, 1e-9)
    first = "gradient_0.value.output.bias"
    assert_close(gradients[first], 3.0 * before[first], 1e-12)
    assert found.losses["approx_kl"] > 1.1 * usual.losses["approx_kl"]
    left_out = sum(not np.any(x) for name, x in gradients.items() if "output.bias" in name)
    assert (left_out > 0) == (target_kl is not None)


def test_normalising_by_minibatch_and_by_batch_differ():
    """And each minibatch's Ψ has mean 0: what is constant in it has no part in its gradient."""
    over = {
        name: dataclasses.replace(CONFIG, normalize_advantage=True, normalize_over=name)
        for name in ("batch", "minibatch")
    }
    states = {name: fitted(config)[1] for name, config in over.items()}
    with pytest.raises(AssertionError):
        assert_alike(states["batch"].params, states["minibatch"].params, 1e-6)

    def shifted(*inputs, **rest):
        return algorithms.make_advantage(over["minibatch"])(*inputs, **rest) + 7.0

    _, same, _ = fitted(over["minibatch"], advantage=shifted)
    assert_alike(same.params["policy"], states["minibatch"].params["policy"], 1e-9)


def test_the_shared_batch_has_ratios_on_both_sides_of_the_clip():
    """So that parity on it means something."""
    config = dataclasses.replace(shared.small(CONFIG), arithmetic="float64")
    side = shared.jax_side(config)
    ratio = np.exp(run(_log_ratio, config, side.state.params, side.trajectory))
    assert (ratio > 1.2).any()
    assert (ratio < 0.8).any()
    assert ((ratio > 0.8) & (ratio < 1.2)).any()


def test_what_is_beyond_the_clip_is_counted_by_ratio():
    """|ρ - 1| > ε, which |log ρ| > ε is not."""
    config = dataclasses.replace(shared.small(CONFIG), clip_coef=0.5)
    side = shared.jax_side(config)
    batch = run(learner.estimate, config, side.state.params, side.trajectory)
    _, met = run(ppo.surrogate_objective, config, side.state.params, batch)
    log_ratio = np.array(run(_log_ratio, config, side.state.params, side.trajectory))
    beyond = np.abs(np.exp(log_ratio) - 1.0) > 0.5
    assert_close(met["clip_fraction"], beyond.mean(), 1e-14)
    assert beyond.mean() != np.mean(np.abs(log_ratio) > 0.5)


@pytest.mark.parametrize("fit", ["ppo", "npg"])
def test_a_ratio_of_padding_has_no_part_in_a_gradient(fit):
    """However large, as of densities in many dimensions: 0 times an infinite slope is NaN."""
    joint = {} if fit == "ppo" else {"epochs": 1, "minibatches": 1}
    config = dataclasses.replace(CONFIG, fit=fit, collect="episodes", env="Pendulum-v1", **joint)
    config = shared.small(config)
    side = shared.jax_side(config)
    valid = np.array(side.trajectory.valid)
    assert not valid.all()
    huge = side.trajectory._replace(log_prob=np.where(valid, side.trajectory.log_prob, -1e4))
    found = [
        run(shared.gradients, config, side.state.params, x)[1] for x in (side.trajectory, huge)
    ]
    assert_alike(found[1], found[0], 0.0)
    sides = [shared.torch_side(config) for _ in found]
    where = torch.from_numpy(valid)
    log_prob = sides[1].trajectory.log_prob.where(where, -1e4)
    sides[1] = sides[1]._replace(trajectory=sides[1].trajectory._replace(log_prob=log_prob))
    found = [shared.torch_gradients(side)[1] for side in sides]
    for name, leaf in found[0].items():
        np.testing.assert_array_equal(found[1][name], leaf)


def _log_ratio(config, algorithm, params, trajectory):
    outputs = algorithm.networks.policy(params, trajectory.obs)
    return algorithm.distribution.log_prob(outputs, trajectory.action) - trajectory.log_prob
