"""`estimator_bias` against the oracle's own rows, in three frameworks; and the page with it."""

import dataclasses
import inspect
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpg.core import advantages, algorithms, losses, noise
from jaxpg.oracle import draw_bias, estimator_bias
from jaxpg.proof import oracle, problems
from tests import pages

CHAIN = partial(problems.tabular, 2)
PLAIN = {"discounting": "absolute", "reduction": "trajectories", "normalize_advantage": False}
PAGE = Path(__file__).parents[2] / "docs" / "oracle.md"


@pytest.fixture(scope="module")
def usual():
    """The problems that a call takes by itself, made once."""
    makers = inspect.signature(estimator_bias).parameters["problem"].default
    assert makers == (problems.cartpole, problems.tabular)
    with jax.enable_x64(True):
        return [partial(lambda made: made, make()) for make in makers]


def gae(trajectory, value, next_value, *, gamma, gae_lambda):
    ends = (trajectory.terminated, trajectory.truncated)
    inputs = (trajectory.reward, value, next_value, *ends)
    return advantages.gae(*inputs, gamma=gamma, gae_lambda=gae_lambda)


def reward_to_go(zeros_like, stack, trajectory, value, next_value, *, gamma, gae_lambda):
    following, rows = zeros_like(value[0]), []
    for t in reversed(range(len(value))):
        following = trajectory.reward[t] + gamma * following
        rows.insert(0, following)
    return stack(rows)


IN = {
    "jax": (partial(reward_to_go, jnp.zeros_like, jnp.stack), None),
    "numpy": (partial(reward_to_go, np.zeros_like, np.stack), np.asarray),
    "torch": (partial(reward_to_go, torch.zeros_like, torch.stack), torch.from_numpy),
}


def rows_of_the_oracle(baselines, **fields):
    """(bias, cosine, variance) as `oracle.hold` has them, in the order of `estimator_bias`."""
    with jax.enable_x64(True):
        problem = CHAIN()
        start = problem.networks.init(*noise.split(noise.key(0), 2))
        config = dataclasses.replace(problems.BASE, **PLAIN | fields)
        found = []
        for params in (start, problems.ascend(problem, start)):
            for baseline in baselines:
                row = oracle.hold(problem, "", params, config, baseline)
                found.append((row.relative_bias, row.cosine, row.variance))
        return np.array(found)


def numbers(found):
    return np.array([(row.bias, row.cosine, row.variance) for row in found.rows])


def test_the_library_s_gae_has_the_row_that_the_oracle_gives_it():
    found = estimator_bias(gae, CHAIN, gamma=1.0, gae_lambda=0.5)
    fields = {"estimator": "gae", "gae_lambda": 0.5, "baseline": "value", "gamma": 1.0}
    expected = rows_of_the_oracle(("exact V", "wrong V"), **fields)
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-10, atol=1e-13)
    assert [(row.parameters, row.value) for row in found.rows] == [
        *(("random", "exact"), ("random", "wrong"), ("trained", "exact"), ("trained", "wrong"))
    ]
    assert found.unbiased
    assert found.is_gae
    assert min(row.bias for row in found.rows if row.value == "wrong") > 0.01


@pytest.mark.parametrize("framework", IN)
def test_every_framework_has_the_same_row(framework):
    """A reward-to-go at γ = 0.9 drops γ^t, whatever V is, and is unbiased of what that leaves."""
    advantage, arrays = IN[framework]
    found = estimator_bias(advantage, CHAIN, gamma=0.9, arrays=arrays)
    fields = {"estimator": "reward_to_go", "baseline": "none", "gamma": 0.9}
    expected = rows_of_the_oracle(("none", "none"), **fields | {"discounting": "relative"})
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-10)
    assert found.unbiased
    assert {row.equals[0] for row in found.rows} == {"∇U without γ^t"}


@pytest.mark.parametrize(
    ("estimator", "baseline", "discounting"),
    [
        ("total_return", "none", "absolute"),
        ("reward_to_go", "none", "absolute"),
        ("reward_to_go", "none", "relative"),
        ("td_error", "value", "absolute"),
        ("td_error", "value", "relative"),
        ("gae", "value", "absolute"),
        ("gae", "value", "relative"),
    ],
)
def test_what_is_unbiased_is_so_by_default_and_of_what_is_said(
    usual, estimator, baseline, discounting
):
    of = {"absolute": "∇U", "relative": "∇U without γ^t"}[discounting]
    fields = {"estimator": estimator, "baseline": baseline, "discounting": discounting}
    config = dataclasses.replace(problems.BASE, **PLAIN | fields)
    found = estimator_bias(algorithms.make_advantage(config), usual)
    assert found.unbiased
    assert {row.equals[0] for row in found.rows if row.value == "exact"} == {of}
    assert found.is_gae == (estimator == "gae")
    assert len({row.problem for row in found.rows}) == 2


def changed(change):
    """A reward-to-go of a changed trajectory or γ."""

    def advantage(trajectory, *values, gamma, gae_lambda):
        trajectory, gamma = change(trajectory, gamma)
        return IN["jax"][0](trajectory, *values, gamma=gamma, gae_lambda=gae_lambda)

    return advantage


def late(trajectory, value, next_value, **coefficients):
    return IN["jax"][0](trajectory, value, next_value, **coefficients) - trajectory.reward


def without_the_last(log_prob, psi, valid):
    goes_on = jnp.concatenate([valid[1:], jnp.zeros_like(valid[:1])])
    return -jnp.sum(jnp.where(goes_on, log_prob * psi, 0.0)) / log_prob.shape[1]


FAULTS = {
    "rewards a step late": (late, None),
    "rewards ignored": (changed(lambda t, g: (t._replace(reward=1.0 * t.valid), g)), None),
    "signs of rewards": (changed(lambda t, g: (t._replace(reward=jnp.sign(t.reward)), g)), None),
    "γ²": (changed(lambda t, g: (t, g**2)), None),
    "γ + 1e-9": (changed(lambda t, g: (t, g + 1e-9)), None),
    "no last steps": (IN["jax"][0], without_the_last),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_usual_problems_γ_and_λ_see_a_fault(usual, fault):
    advantage, loss = FAULTS[fault]
    assert not estimator_bias(advantage, usual, loss=loss).unbiased


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_recursion_that_is_not_cut_is_seen(usual, gamma):
    """With one V for both steps of padding its TD errors are 0 there at γ = 1."""

    def uncut(trajectory, value, next_value, **coefficients):
        never = jnp.zeros_like(trajectory.terminated)
        bootstrapped = jnp.where(trajectory.terminated, 0.0, next_value)
        t = trajectory._replace(terminated=never, truncated=never)
        return algorithms.gae(t, value, bootstrapped, **coefficients)

    found = estimator_bias(uncut, usual, gamma=gamma)
    assert not found.unbiased
    assert not found.is_gae


def test_columns_that_are_mixed_up_show_with_two(usual):
    def mixed(trajectory, value, next_value, **coefficients):
        return gae(trajectory, value, jnp.roll(next_value, 1, axis=1), **coefficients)

    assert estimator_bias(mixed, CHAIN).unbiased
    assert not estimator_bias(mixed, CHAIN, trajectories=2).unbiased


@pytest.mark.parametrize("given", [{"gamma": 1.5}, {"gamma": -1.0}, {"gae_lambda": float("nan")}])
def test_a_discount_beyond_its_range_is_refused(given):
    (name,) = given
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]; got"):
        estimator_bias(gae, CHAIN, **given)


@pytest.mark.parametrize("weights", [lambda γ, λ: (γ, λ**3), lambda γ, λ: (γ, λ / γ)])
def test_other_weights_of_td_errors_are_unbiased_but_no_gae(usual, weights):
    """λ³, and a decay of λ where it should be γλ: with V_π every TD error has the mean 0."""

    def other(trajectory, *values, gamma, gae_lambda):
        gamma, gae_lambda = weights(gamma, gae_lambda)
        return gae(trajectory, *values, gamma=gamma, gae_lambda=gae_lambda)

    found = estimator_bias(other, usual)
    assert found.unbiased
    assert not found.is_gae
    assert {row.equals for row in found.rows if row.value == "wrong"} == {()}


def test_what_cancels_is_no_bias():
    def far(*inputs, **coefficients):
        return IN["jax"][0](*inputs, **coefficients) - 1e4

    found = estimator_bias(far, CHAIN, gamma=1.0)
    assert max(row.bias for row in found.rows) > oracle.TOLERANCE
    assert found.unbiased
    assert "%" not in str(found)


def torch_loss(log_prob, psi, valid):
    return -(log_prob * psi)[valid].mean()


@pytest.mark.parametrize(
    ("framework", "loss"), [("jax", losses.policy_loss_steps), ("torch", torch_loss)]
)
def test_a_loss_that_couples_trajectories(framework, loss):
    advantage, arrays = IN[framework]
    options = {"loss": loss, "trajectories": 2, "arrays": arrays}
    found = estimator_bias(advantage, CHAIN, gamma=1.0, **options)
    fields = {"estimator": "reward_to_go", "baseline": "none", "gamma": 1.0, "reduction": "steps"}
    expected = rows_of_the_oracle(("none", "none"), **fields, num_envs=2)
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-10)


def test_what_padding_holds_has_no_part():
    def careless(trajectory, value, next_value, **coefficients):
        psi = gae(trajectory, value, next_value, **coefficients)
        return jnp.where(trajectory.valid, psi, jnp.nan)

    assert estimator_bias(careless, CHAIN) == estimator_bias(gae, CHAIN)


@pytest.mark.parametrize(
    ("advantage", "options", "message"),
    [
        (
            lambda *_, **__: jnp.zeros((2, 1, 1)),
            {},
            r"must give \[T, N\], \(2, 1\); got \(2, 1, 1\)",
        ),
        (lambda *_, **__: jnp.zeros(()), {}, r"must give \[T, N\], .*; got \(\)"),
        (lambda *_, **__: [0.0], {}, r"must give \[T, N\], .*; got list"),
        (
            lambda *_, **__: np.zeros(2),
            {"arrays": np.asarray},
            r"must give \[T, N\], .*; got \(2,\)",
        ),
        (gae, {"loss": lambda log_prob, psi, _: log_prob * psi}, "loss must give a scalar; got"),
        (
            gae,
            {"loss": torch_loss, "arrays": np.asarray},
            "must be torch.from_numpy; it makes ndarray",
        ),
        (
            IN["torch"][0],
            {"loss": lambda _, psi, __: psi.sum(), "arrays": torch.from_numpy},
            "does not depend on log_prob",
        ),
        (lambda trajectory, *_, **__: trajectory.reward / 0, {}, "a NaN or an infinity"),
        (lambda t, *_, **__: t.reward + 1e13, {}, "times as long as ∇U .* rounding would hide"),
        (gae, {"loss": lambda x, psi, _: jnp.sum(jnp.sqrt(x) * psi)}, "slope of loss .* a valid"),
        (gae, {"loss": lambda x, _, valid: jnp.sum(x / valid)}, "slope .* that is not valid"),
        (
            IN["torch"][0],
            {"loss": lambda x, psi, _: (x.sqrt() * psi).sum(), "arrays": torch.from_numpy},
            "slope of loss .* a valid",
        ),
        (gae, {"trajectories": 0}, r"in \[1, 3\] for random MDP, 2 steps: of its 26 .*; got 0"),
        (gae, {"trajectories": 4}, "at most 20,000 batches are held; got 4"),
    ],
)
def test_what_is_no_estimator_is_refused(advantage, options, message):
    with pytest.raises(ValueError, match=message):
        estimator_bias(advantage, CHAIN, **options)


@pytest.mark.parametrize(
    ("horizon", "gamma"), [(2, 0.9), (4, 0.0)]
)  # every return is the same: 2 rewards of 1, or the first
def test_without_a_gradient_nothing_is_compared(horizon, gamma):
    with pytest.raises(ValueError, match=f"CartPole, {horizon} steps: ∇U is 0 to rounding at"):
        estimator_bias(gae, partial(problems.cartpole, horizon), gamma=gamma)


def test_the_picture(tmp_path):
    found = estimator_bias(gae, CHAIN)
    draw_bias({"mine": found, "other": found}, tmp_path / "bias.png")
    assert (tmp_path / "bias.png").stat().st_size > 10_000


def same(shown, printed):
    """But for what is rounding."""
    return re.sub(r"\de-1\d", "0", shown) == re.sub(r"\de-1\d", "0", printed)


@pytest.mark.slow
def test_the_page_s_own_estimators():
    assert pages.run(PAGE, same) == 3
