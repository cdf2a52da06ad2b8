"""`estimator_bias` against the oracle's own rows, in three frameworks; and the page with it."""

import dataclasses
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpg.core import advantages, losses, noise
from jaxpg.oracle import draw_bias, estimator_bias
from jaxpg.proof import oracle, problems
from tests import pages

CHAIN = partial(problems.tabular, 2)
PLAIN = {"discounting": "absolute", "reduction": "trajectories", "normalize_advantage": False}
PAGE = Path(__file__).parents[2] / "docs" / "oracle.md"


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
    found = estimator_bias(gae, CHAIN, gae_lambda=0.5)
    fields = {"estimator": "gae", "gae_lambda": 0.5, "baseline": "value", "gamma": 1.0}
    expected = rows_of_the_oracle(("exact V", "wrong V"), **fields)
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-10, atol=1e-13)
    assert [(row.parameters, row.value) for row in found.rows] == [
        *(("random", "exact"), ("random", "wrong"), ("trained", "exact"), ("trained", "wrong"))
    ]
    assert found.unbiased
    assert min(row.bias for row in found.rows if row.value == "wrong") > 0.01


@pytest.mark.parametrize("framework", IN)
def test_every_framework_has_the_same_row(framework):
    """A reward-to-go at γ = 0.9 drops γ^t, whatever V is."""
    advantage, arrays = IN[framework]
    found = estimator_bias(advantage, CHAIN, gamma=0.9, arrays=arrays)
    fields = {"estimator": "reward_to_go", "baseline": "none", "gamma": 0.9}
    expected = rows_of_the_oracle(("none", "none"), **fields | {"discounting": "relative"})
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-10)
    assert not found.unbiased


def torch_loss(log_prob, psi, valid):
    return -(log_prob * psi)[valid].mean()


@pytest.mark.parametrize(
    ("framework", "loss"), [("jax", losses.policy_loss_steps), ("torch", torch_loss)]
)
def test_a_loss_that_couples_trajectories(framework, loss):
    advantage, arrays = IN[framework]
    found = estimator_bias(advantage, CHAIN, loss=loss, trajectories=2, arrays=arrays)
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
        (gae, {"trajectories": 0}, "from 1 on, .*; 0 makes 1"),
        (gae, {"trajectories": 4}, "at most 20,000 batches; 4 makes 456,976"),
    ],
)
def test_what_is_no_estimator_is_refused(advantage, options, message):
    with pytest.raises(ValueError, match=message):
        estimator_bias(advantage, CHAIN, **options)


def test_the_picture(tmp_path):
    found = estimator_bias(gae, CHAIN)
    draw_bias({"mine": found, "other": found}, tmp_path / "bias.png")
    assert (tmp_path / "bias.png").stat().st_size > 10_000


def same(shown, printed):
    """But for what is rounding."""
    return re.sub(r"\de-1\d", "0", shown) == re.sub(r"\de-1\d", "0", printed)


@pytest.mark.slow
def test_the_page_s_own_estimators():
    assert pages.run(PAGE, same) == 2
