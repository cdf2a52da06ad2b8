"""Losses: worked by hand, their gradients, and that padding has no part in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch
from compare import assert_close
from jax.test_util import check_grads

import torch_ref.losses as twin
from jaxpg.core import losses
from jaxpg.core.distributions import categorical_log_prob

# Outside jit each of their operations is compiled by itself.
masked_mean = jax.jit(losses.masked_mean)
policy_loss_steps = jax.jit(losses.policy_loss_steps)
policy_loss_trajectories = jax.jit(losses.policy_loss_trajectories)
policy_loss_trajectory_means = jax.jit(losses.policy_loss_trajectory_means)
value_loss = jax.jit(losses.value_loss)

POLICY_LOSSES = [policy_loss_steps, policy_loss_trajectories, policy_loss_trajectory_means]
LOSSES = [*POLICY_LOSSES, value_loss]  # each takes (differentiated, constant, valid)


def batch(float_type="float64", shape=(15, 6)):
    """(log_prob or value, advantage or target, valid); a step in three is padding."""
    rng = np.random.default_rng(0)
    x, constant = rng.normal(size=(2, *shape)).astype(float_type)
    return x, constant, rng.random(shape) < 2 / 3


@pytest.fixture
def hand():
    """Two steps of two trajectories, the second of which is over after one step."""
    log_prob = jnp.array([[-1.0, -2.0], [-3.0, -5.0]])
    advantage = jnp.array([[2.0, 4.0], [-1.0, 7.0]])
    valid = jnp.array([[True, True], [True, False]])
    return log_prob, advantage, valid


def test_policy_losses_worked_by_hand(hand):
    """Σ log π Ψ = -1 · 2 - 2 · 4 + 3 · 1 = -7: over 3 valid steps, or over 2 trajectories.

    By their lengths: (-2 + 3) / 2 and -8 / 1, of which the mean is -3.75.
    """
    assert_close(policy_loss_steps(*hand), 7 / 3, 1e-6)
    assert_close(policy_loss_trajectories(*hand), 7 / 2, 1e-6)
    assert_close(policy_loss_trajectory_means(*hand), 3.75, 1e-6)


def test_value_loss_worked_by_hand(hand):
    """No ½: ((-1 - 2)² + (-2 - 4)² + (-3 + 1)²) / 3 = (9 + 36 + 4) / 3."""
    assert_close(value_loss(*hand), 49 / 3, 1e-6)


def test_masked_mean_worked_by_hand():
    """(1 + 2 + 6) / 3"""
    x, valid = jnp.array([1.0, 99.0, 2.0, 6.0]), jnp.array([True, False, True, True])
    assert masked_mean(x, valid) == 3.0


def test_policy_losses_differ_by_valid_steps_per_trajectory(x64):
    log_prob, advantage, valid = map(jnp.array, batch())
    per_trajectory = np.sum(valid) / valid.shape[1]
    assert_close(
        policy_loss_trajectories(log_prob, advantage, valid),
        per_trajectory * policy_loss_steps(log_prob, advantage, valid),
        1e-14,
    )


def test_value_loss_is_zero_at_the_target_alone(x64):
    _, target, valid = batch()
    assert value_loss(target, target, valid) == 0.0
    assert_close(value_loss(target + 0.5, target, valid), 0.25, 1e-12)


def test_value_loss_of_a_replayed_batch_has_one_axis(x64):
    value, target, valid = batch()
    flat = value_loss(value.ravel(), target.ravel(), valid.ravel())
    assert_close(flat, value_loss(value, target, valid), 1e-14)


# Gradients


def test_gradient_of_the_policy_losses_is_minus_psi_over_the_count(x64):
    log_prob, advantage, valid = batch()
    psi = np.where(valid, advantage, 0.0)
    for loss, count in ((policy_loss_steps, valid.sum()), (policy_loss_trajectories, 6)):
        assert_close(jax.jit(jax.grad(loss))(log_prob, advantage, valid), -psi / count, 1e-14)


def test_gradient_of_the_value_loss_is_twice_the_mean_error(x64):
    value, target, valid = batch()
    expected = np.where(valid, 2.0 * (value - target), 0.0) / valid.sum()
    assert_close(jax.jit(jax.grad(value_loss))(value, target, valid), expected, 1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_flows_into_advantages_and_targets(loss):
    x, constant, valid = map(jnp.array, batch("float32"))
    gradient = jax.jit(jax.grad(loss, argnums=1))(x, constant, valid)
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    leaf = torch.tensor(np.asarray(constant), requires_grad=True)
    x = torch.tensor(np.asarray(x), requires_grad=True)
    getattr(twin, loss.__name__)(x, leaf, torch.tensor(np.asarray(valid))).backward()
    assert leaf.grad is None
    assert x.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_the_numerical_ones(loss, x64):
    x, constant, valid = map(jnp.array, batch(shape=(4, 3)))
    check_grads(jax.jit(lambda x: loss(x, constant, valid)), (x,), order=1, modes=["rev"])


def test_a_step_against_the_gradient_makes_good_actions_likelier(x64):
    """∂loss/∂logits = -(onehot(a) - π) Ψ / count, so Ψ > 0 raises the logit of a."""
    logits = jnp.array([[[0.3, -0.2, 0.1]], [[1.0, 0.0, -1.0]]])
    action, psi = jnp.array([[2], [0]]), jnp.array([[4.0], [-1.0]])

    @jax.jit
    def loss(logits):
        log_prob = categorical_log_prob(logits, action)
        return policy_loss_steps(log_prob, psi, jnp.ones((2, 1), bool))

    onehot = np.eye(3)[np.array(action)]
    expected = -(onehot - scipy.special.softmax(logits, axis=-1)) * np.array(psi)[..., None] / 2
    assert_close(jax.grad(loss)(logits), expected, 1e-12)
    check_grads(loss, (logits,), order=1, modes=["rev"])


# Padding


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
@pytest.mark.parametrize("loss", LOSSES)
def test_padding_has_no_part_in_a_loss(loss, bad):
    x, constant, valid = batch("float32")
    expected = loss(x, constant, valid)
    bad = np.float32(bad)
    planted = (np.where(valid, x, bad), np.where(valid, constant, -bad), valid)
    np.testing.assert_array_equal(loss(*planted), expected)
    in_torch = [torch.tensor(np.asarray(array)) for array in planted]
    assert_close(getattr(twin, loss.__name__)(*in_torch), expected, 1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_has_no_gradient_and_no_part_in_that_of_others(loss):
    """Finite padding, as the rollout makes it: 0 times NaN would be NaN."""
    x, constant, valid = batch("float32")
    differentiate = jax.jit(jax.grad(loss))
    expected = np.asarray(differentiate(x, constant, valid))
    assert expected[valid].all()
    assert not expected[~valid].any()
    planted = np.where(valid, x, np.float32(1e9)), np.where(valid, constant, np.float32(-1e9))
    np.testing.assert_array_equal(differentiate(*planted, valid), expected)
    leaf = torch.tensor(planted[0], requires_grad=True)
    getattr(twin, loss.__name__)(leaf, *map(torch.tensor, (planted[1], valid))).backward()
    assert_close(leaf.grad, expected, 1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_wrong_shapes_are_refused_by_both_packages(loss, wrong):
    """(T, N) against (T, 1) or (T,) would broadcast, the mistake of the article's script."""
    arrays = batch("float32")
    for narrow in (lambda array: array[:, :1], lambda array: array[:, 0]):
        arguments = [narrow(a) if i == wrong else a for i, a in enumerate(arrays)]
        with pytest.raises(AssertionError):
            loss(*map(jnp.array, arguments))
        with pytest.raises(AssertionError):
            getattr(twin, loss.__name__)(*map(torch.tensor, arguments))


# jit, vmap, and the twin


@pytest.mark.parametrize("loss", LOSSES)
def test_jit_and_vmap_change_nothing(loss, x64):
    x, constant, valid = batch(shape=(3, 15, 6))
    batched = jax.jit(jax.vmap(loss))(x, constant, valid)
    plain = getattr(losses, loss.__name__)
    for i in range(3):
        assert_close(batched[i], plain(x[i], constant[i], valid[i]), 1e-14)


@pytest.mark.parametrize(("float_type", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("loss", LOSSES)
def test_twin_has_equal_values_and_gradients(loss, float_type, tolerance):
    x, constant, valid = batch(float_type, shape=(300, 8))
    with jax.enable_x64(float_type == "float64"):
        value, gradient = jax.jit(jax.value_and_grad(loss))(x, constant, valid)
        magnitude = loss(-np.abs(x), np.abs(constant), valid)
    leaf = torch.tensor(x, requires_grad=True)
    twin_value = getattr(twin, loss.__name__)(leaf, torch.tensor(constant), torch.tensor(valid))
    twin_value.backward()
    assert value.dtype == gradient.dtype == float_type
    assert np.asarray(gradient)[valid].all()
    assert_close(twin_value, value, tolerance, scale=magnitude)
    assert_close(leaf.grad, gradient, tolerance)
