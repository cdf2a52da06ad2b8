"""The oracle against hand-worked numbers; the library's estimators and planted faults against it.

Everything here is exact: an unbiased estimator is off by less than 1e-12 of the gradient's norm,
and a fault in the library's code must make that fail.
"""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxpg.cli.main import main
from jaxpg.core import advantages, algorithms, noise
from jaxpg.core.config import ConfigError
from jaxpg.core.distributions import categorical
from jaxpg.core.rollout import collect_episodes
from jaxpg.core.training import as_arrays
from jaxpg.proof import family, finding, oracle, problems, tables

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def wide(x64):
    """Every test here is float64."""


@pytest.fixture(scope="module")
def chain():
    """The random MDP with 2 steps, its initial parameters."""
    with jax.enable_x64(True):
        problem = problems.tabular(2)
        return problem, problem.networks.init(*noise.split(noise.key(1), 2))


@pytest.fixture(scope="module")
def pole():
    """CartPole with 4 steps, its initial parameters."""
    with jax.enable_x64(True):
        problem = problems.cartpole(4)
        return problem, problem.networks.init(*noise.split(noise.key(1), 2))


@pytest.fixture(scope="module")
def masked():
    """The random MDP with a mask and 2 steps, its initial parameters."""
    with jax.enable_x64(True):
        problem = problems.tabular(2, masked=True)
        return problem, problem.networks.init(*noise.split(noise.key(1), 2))


@pytest.fixture(scope="module")
def rows(chain):
    """Every estimator on the random MDP with 2 steps."""
    told: list[str] = []
    found = oracle.rows([chain[0]], report=told.append)
    assert told[0] == f"{chain[0].name}, random parameters: 0 of {len(found) // 2} estimators"
    assert len(told) == 2 * -(-len(found) // 2 // oracle.TOLD)
    return found


def config(**fields):
    return dataclasses.replace(oracle.BASE, normalize_advantage=False, **fields)


REINFORCE = {"estimator": "reward_to_go", "baseline": "none", "reduction": "trajectories"}
CRITIC = {**REINFORCE, "baseline": "value"}
DISCOUNTED = {"gamma": 0.9, "discounting": "absolute"}


def test_all_trajectories_are_there_once(chain, pole):
    # CartPole falls after LR at the soonest in 3 steps: of 16 sequences of 4 actions, those that
    # differ only after the fall are one. The MDP: 2·3 outcomes at the last step; before it 2 that
    # end and 4 that go on, so 2 + 4·6 = 26.
    lengths = np.asarray(pole[0].trajectory.valid.sum(0))
    assert np.sum(2.0**-lengths) == 1.0  # a full binary tree
    assert lengths.min() == 3
    assert chain[0].trajectory.valid.shape == (2, 26)
    for problem, _ in (chain, pole):
        t = problem.trajectory
        columns = np.concatenate([np.asarray(t.action), np.asarray(t.obs).sum(-1)]).T
        assert len(np.unique(columns, axis=0)) <= columns.shape[0]
        assert np.array_equal(t.terminated.sum(0), np.ones(t.valid.shape[1]))
        assert not t.truncated.any()
        for leaf in jax.tree.leaves(t):  # padding as collect_episodes leaves it
            assert not np.any(np.asarray(leaf)[~np.asarray(t.valid)])


def test_probabilities_sum_to_one(chain, pole, masked):
    for problem, params in (chain, pole, masked):
        assert float(problems.probability(problem, params).sum()) == pytest.approx(1.0, abs=1e-14)


def test_only_what_a_mask_allows_is_a_trajectory(masked):
    """Two of three actions are allowed in either state: 26 of them, as without a mask."""
    t = masked[0].trajectory
    valid, action = (np.asarray(x) for x in (t.valid, t.action))
    assert valid.shape == (2, 26)
    assert np.all(action[valid] != np.argmax(t.obs[..., :3], axis=-1)[valid])
    assert set(action[valid].tolist()) == {0, 1, 2}


def test_under_a_mask_estimators_are_as_unbiased_as_without(masked, monkeypatch):
    """And REINFORCE's log π of all actions, as if none were masked, is not."""
    problem, params = masked
    truth = oracle.Truth.of(problem, params, 0.9)
    for choice, kind in ((REINFORCE, "none"), (CRITIC, "exact V"), (CRITIC, "wrong V")):
        row = oracle.hold(problem, "random", params, config(**choice, **DISCOUNTED), kind, truth)
        assert row.unbiased_by_theory
        assert row.relative_bias < oracle.TOLERANCE
    unmasked = problems.networks.make(oracle.BASE, problem.env.spec._replace(masked=False))
    found = oracle.inputs(dataclasses.replace(problem, networks=unmasked), params)
    monkeypatch.setattr(oracle, "inputs", lambda *_: found)
    row = oracle.hold(problem, "random", params, config(**REINFORCE, **DISCOUNTED), "none", truth)
    assert row.relative_bias > 0.01


@pytest.mark.parametrize("gamma", oracle.GAMMAS)
def test_gradient_by_finite_differences(chain, pole, masked, gamma):
    for problem, params in (chain, pole, masked):
        flat, unravel = ravel_pytree(params)

        def utility(theta, problem=problem, unravel=unravel):
            return float(problems.utility(problem, unravel(theta), gamma))

        step = 1e-5
        moves = step * np.eye(len(flat))
        numeric = [(utility(flat + m) - utility(flat - m)) / (2 * step) for m in moves]
        exact = problems.exact_gradient(problem, params, gamma)
        assert np.linalg.norm(exact) > 0.01
        np.testing.assert_allclose(exact, numeric, atol=1e-9)


def test_exact_value_by_backward_induction(chain):
    problem, params = chain
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), size=(3, 2))
    r = rng.normal(size=(3, 2, 3))
    gamma, value = 0.9, np.zeros((3, 3))  # [t, s]; 0 at the horizon and in the final state 2
    for t in (1, 0):
        for s in (0, 1):
            obs = np.concatenate([np.eye(3)[s], np.eye(2)[t]])
            policy = np.asarray(jax.nn.softmax(problem.networks.policy(params, jnp.asarray(obs))))
            q = (p[s] * (r[s] + gamma * value[t + 1])).sum(-1)
            value[t, s] = policy @ q
    found, following = problems.exact_value(problem, params, gamma)
    t = problem.trajectory
    valid, goes_on = np.asarray(t.valid), np.asarray(t.valid & ~t.terminated)
    s = np.asarray(t.obs[..., :3].argmax(-1))
    np.testing.assert_allclose(found[valid], value[np.asarray(t.time), s][valid], atol=1e-14)
    after = np.asarray(t.next_obs[..., :3].argmax(-1))
    expected = value[np.asarray(t.time) + 1, after]
    np.testing.assert_allclose(following[goes_on], expected[goes_on], atol=1e-14)


def test_one_step_bandit_by_hand():
    # One step: U = Σ_a π_a Q_a with Q_a = Σ_s' p(s'|a) r(a, s'), so ∂U/∂z_a = π_a (Q_a - U), and
    # the output layer's bias is added to the logits z. The variance of R(τ) ∇_z log π in z is
    # Σ_a,s' π_a p r² |e_a - π|² - |∂U/∂z|².
    problem = problems.tabular(1)
    params = jax.jit(problem.networks.init)(*noise.split(noise.key(0), 2))
    rng = np.random.default_rng(0)
    p, r = rng.dirichlet(np.ones(3), size=(3, 2))[0], rng.normal(size=(3, 2, 3))[0]
    obs = jnp.asarray([1.0, 0.0, 0.0, 1.0])
    policy = np.asarray(jax.nn.softmax(problem.networks.policy(params, obs)))
    q = (p * r).sum(-1)
    by_hand = policy * (q - policy @ q)
    _, unravel = ravel_pytree(params)

    def output_bias(flat):
        return unravel(jnp.asarray(flat))["policy"]["output"]["bias"]

    assert problem.trajectory.valid.shape == (1, 6)
    assert float(problems.utility(problem, params, 1.0)) == pytest.approx(policy @ q, abs=1e-15)
    exact = output_bias(problems.exact_gradient(problem, params, 1.0))
    np.testing.assert_allclose(exact, by_hand, atol=1e-15)
    moments = oracle.expectation(problem, params, config(**REINFORCE, gamma=1.0))
    np.testing.assert_allclose(output_bias(moments.mean), by_hand, atol=1e-15)

    only_bias = jax.tree.map(jnp.zeros_like, params)  # with zero weights ĝ moves the bias alone
    moments = oracle.expectation(problem, only_bias, config(**REINFORCE, gamma=1.0))
    half = np.array([0.5, 0.5])
    spread = np.sum(half[:, None] * p * r**2 * 0.5) - np.sum((half * (q - half @ q)) ** 2)
    assert moments.variance == pytest.approx(spread, rel=1e-13)


def test_unbiased_estimators_are_exact(rows):
    unbiased = [row for row in rows if row.unbiased_by_theory]
    # total return 4 baselines, reward-to-go 2·4, TD 2·1, GAE(0.5) 2·1, GAE(1) 2·2 at γ = 1, and
    # 4, 4, 1, 1, 2 with absolute discounting at γ = 0.9; each at two sets of parameters.
    assert len(unbiased) == 2 * (20 + 12)
    assert len(rows) == 2 * 200
    assert max(row.relative_bias for row in unbiased) < oracle.TOLERANCE


def test_biased_estimators_are_seen_to_be(rows):
    biased = [row for row in rows if not row.unbiased_by_theory]
    assert min(row.relative_bias for row in biased) > 1e-4
    assert all(row.note for row in biased)


def test_only_what_should_be_unbiased_can_contradict_theory(rows):
    assert all(map(oracle.as_theory_says, rows))
    unbiased = find(rows, estimator="reward_to_go", baseline="wrong V")
    biased = find(rows, estimator="td_error", baseline="wrong V")
    for amount in (2.0 * oracle.TOLERANCE, float("nan")):
        assert not oracle.as_theory_says(unbiased._replace(relative_bias=amount))
        assert oracle.as_theory_says(biased._replace(relative_bias=amount))


def find(rows, **fields):
    """The one row with these fields, at random parameters, γ = 1 and no tricks."""
    defaults = {
        "parameters": "random",
        "gamma": 1.0,
        "discounting": "absolute",
        "reduction": "trajectories",
        "normalized": False,
    }
    wanted = {**defaults, **fields}
    (found,) = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    return found


def test_relations_between_estimators(rows):
    go = partial(find, rows, estimator="reward_to_go")
    gae = partial(find, rows, estimator="gae")
    for baseline in ("exact V", "wrong V"):  # GAE(1) is the reward-to-go less V
        for gamma in oracle.GAMMAS:
            same = gae(baseline=baseline, gae_lambda=1.0, gamma=gamma)
            assert same.variance == pytest.approx(
                go(baseline=baseline, gamma=gamma).variance, rel=1e-12
            )
    td = find(rows, estimator="td_error", baseline="exact V")
    middle = gae(baseline="exact V", gae_lambda=0.5)
    # With V exact the later TD errors have mean 0 given the past and only add noise here.
    assert td.variance < middle.variance < go(baseline="exact V").variance
    assert (
        go(baseline="none").variance
        < find(rows, estimator="total_return", baseline="none").variance
    )
    assert go(baseline="exact V").variance < go(baseline="none").variance
    # Normalising removes the mean of a batch, so a constant b for all its steps drops out.
    total = partial(find, rows, estimator="total_return", reduction="trajectories")
    assert total(baseline="none", normalized=True).trajectories == 2


def test_the_relative_gradient_is_that_of_the_relative_reward_to_go(chain, pole):
    for problem, params in (chain, pole):
        estimator = config(**REINFORCE, gamma=0.9, discounting="relative")
        expected = oracle.expectation(problem, params, estimator).mean
        found = problems.relative_gradient(problem, params, 0.9)
        np.testing.assert_allclose(found, expected, atol=1e-14)
        undiscounted = problems.relative_gradient(problem, params, 1.0)
        exact = problems.exact_gradient(problem, params, 1.0)
        np.testing.assert_allclose(undiscounted, exact, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(problems.tabular, 8), r"in \[1, 6\], since all 6\^horizon .* got 8"),
        (partial(problems.tabular, 6, masked=True), r"in \[1, 5\], since all 9\^horizon .* got 6"),
        (partial(problems.tabular, 0), r"horizon must be an integer in \[1, 6\].* got 0"),
        (partial(problems.cartpole, 10**9), r"in \[1, 16\], since all 2\^horizon .* got 10+"),
        (partial(problems.cartpole, 2.5), "horizon must be an integer .* got 2.5"),
    ],
)
def test_a_horizon_is_refused_before_anything_is_enumerated(monkeypatch, make, message):
    monkeypatch.setattr(problems, "_enumerate", None)
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_truth_of_zero_is_compared_with_is_nothing():
    problem = problems.cartpole(2)  # every return is 2
    params = problem.networks.init(*noise.split(noise.key(1), 2))
    with pytest.raises(ValueError, match="CartPole, 2 steps: ∇U is 0 to rounding at γ = 1,"):
        oracle.hold(problem, "", params, config(**REINFORCE, gamma=1.0), "none")


def test_a_share_shows_a_digit():
    amounts = (0.123, 0.0006, 0.0004, 1e-8, 1e-13, 0.0)
    shown = [tables.share(amount, tolerance=oracle.TOLERANCE) for amount in amounts]
    assert shown == ["12.3%", "0.1%", "4e-04", "1e-08", "1e-13", "0e+00"]
    assert tables.share(0.0004, tolerance=oracle.TOLERANCE, digits=2) == "0.04%"


def test_relative_discounting_is_biased_by_the_lost_weight(chain):
    # At γ → 1 the weight γ^t is lost no more; at γ = 0 only the first reward counts in either way
    # of discounting, but the relative one still follows the later ones.
    problem, params = chain
    bias = {}
    for gamma in (0.0, 0.5, 1.0):
        estimator = config(**REINFORCE, gamma=gamma, discounting="relative")
        bias[gamma] = oracle.hold(problem, "", params, estimator, "none").relative_bias
    assert bias[0.0] > bias[0.5] > 1e-2
    assert bias[1.0] < oracle.TOLERANCE


def test_the_mean_over_steps_of_one_cartpole_episode_learns_nothing(pole):
    # R(τ) is the episode's length, so the mean over its steps weights each ∇log π with R / R = 1:
    # E ĝ = E Σ_t ∇log π = 0. A baseline breaks the tie.
    problem, params = pole
    fields = {"estimator": "total_return", "reduction": "steps", **DISCOUNTED, "gamma": 1.0}
    bare = oracle.expectation(problem, params, config(**fields, baseline="none"))
    based = oracle.expectation(problem, params, config(**fields, baseline="value"))
    scale = np.linalg.norm(problems.exact_gradient(problem, params, 1.0))
    assert np.linalg.norm(bare.mean) < oracle.TOLERANCE * scale
    assert np.linalg.norm(based.mean) > 0.01 * scale


def test_sampled_episodes_agree(pole):
    """Real episodes through collect_episodes: their mean gradient is ∇U within its error."""
    problem, params = pole
    estimator = as_arrays(config(**CRITIC, **DISCOUNTED))
    count = 20_000
    draws = noise.draw(
        noise.key(3),
        0,
        dataclasses.replace(estimator, num_envs=count),
        problem.env.spec,
        problem.horizon,
    )
    start = problem.env.reset(draws.reset[0])

    def act(params, obs, uniform):
        return categorical.sample(problem.networks.policy(params, obs), uniform), None

    @jax.jit
    def sample(params):
        t = collect_episodes(problem.env, act, params, start, draws)[1]
        value = problem.networks.value(params, t.obs)
        next_value = problem.networks.value(params, t.next_obs)
        psi = algorithms.make_advantage(estimator)(
            t, value, next_value, gamma=estimator.gamma, gae_lambda=estimator.gae_lambda
        )

        def loss(flat, obs, action, psi, valid):
            log_prob = categorical.log_prob(problem.networks.policy(unravel(flat), obs), action)
            policy_loss = algorithms.POLICY_LOSSES["trajectories"]
            return policy_loss(log_prob[:, None], psi[:, None], valid[:, None])

        flat, unravel = ravel_pytree(params)
        columns = (t.obs, t.action, psi, t.valid)
        return -jax.vmap(jax.grad(loss), (None, 1, 1, 1, 1))(flat, *columns)

    gradients = np.asarray(sample(params))
    moments = oracle.expectation(problem, params, estimator)
    exact = problems.exact_gradient(problem, params, 0.9)
    error = gradients.std(0) / np.sqrt(count)
    moving = error > 0
    assert np.all(np.abs(gradients.mean(0) - exact)[moving] < 5 * error[moving])
    assert not np.any(exact[~moving])
    assert gradients.var(0).sum() == pytest.approx(moments.variance, rel=0.05)


# Faults, each planted in the library's own code. `caught` is the unbiased estimator that shows it.


def planted(monkeypatch, where, name, fault):
    put = monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr
    original = where[name] if isinstance(where, dict) else getattr(where, name)
    put(where, name, partial(fault, original))


def late(original, reward, next_value, terminated, truncated, **coefficients):
    """Reward-to-go without the reward of the step itself."""
    return original(reward, next_value, terminated, truncated, **coefficients) - reward


def follows(original, reward, *args, **coefficients):
    """A baseline that looks ahead: the next reward is taken off."""
    ahead = jnp.concatenate([reward[1:], jnp.zeros_like(reward[:1])])
    return original(reward, *args, **coefficients) - ahead


def one_more(original, time, *, gamma):
    """γ^(t+1)."""
    return original(time + 1, gamma=gamma)


def less(original, time, *, gamma):
    """γ + 1e-9."""
    return original(time, gamma=gamma + 1e-9)


def included(original, returns):
    """An average that includes the own return."""
    return jnp.broadcast_to(jnp.mean(returns), returns.shape)


def unending(original, reward, value, next_value, terminated, truncated, **coefficients):
    """GAE whose δ and decay do not see the termination."""
    never = jnp.zeros_like(terminated)
    return original(reward, value, next_value, never, truncated, **coefficients)


def decaying(original, *args, gamma, gae_lambda, **scan):
    """A decay of λ where it should be γλ."""
    return original(*args, gamma=gamma, gae_lambda=gae_lambda / gamma, **scan)


def bootstrapped(original, reward, value, next_value, terminated, *, gamma):
    """A TD error with V after the end."""
    return original(reward, value, next_value, jnp.zeros_like(terminated), gamma=gamma)


def attached(original, log_prob, advantage, valid):
    """A gradient through the baseline."""
    return -jnp.sum(jnp.where(valid, log_prob * advantage, 0.0)) / log_prob.shape[1]


def unmasked(original, log_prob, advantage, valid):
    """Padding in the loss."""
    return original(log_prob, advantage, jnp.ones_like(valid))


def by_row(original, log_prob, advantage, valid):
    """A mean over all T rows and N trajectories."""
    return original(log_prob, advantage, valid) / log_prob.shape[0]


def broadcast(original, log_prob, advantage, valid):
    """The (T, T) product of a forgotten axis: each step is weighted by every Ψ."""
    return original(log_prob, jnp.broadcast_to(advantage.sum(0), advantage.shape), valid)


LOSSES = algorithms.POLICY_LOSSES
LOO = {**REINFORCE, "estimator": "total_return", "baseline": "constant", "num_envs": 2}
GAE = {**CRITIC, "estimator": "gae"}
FAULTS = {
    "reward-to-go starts late": (advantages, "discounted_return", late, REINFORCE, "none"),
    "baseline looks ahead": (advantages, "discounted_return", follows, REINFORCE, "none"),
    "discount weight one step off": (
        advantages,
        "discount_from_start",
        one_more,
        CRITIC,
        "exact V",
    ),
    "discount weight 1e-9 off": (advantages, "discount_from_start", less, CRITIC, "exact V"),
    "leave-one-out includes itself": (advantages, "leave_one_out", included, LOO, "constant"),
    "GAE ignores termination": (advantages, "gae", unending, GAE, "wrong V"),
    "GAE decays by λ alone": (advantages, "gae", decaying, {**GAE, "gae_lambda": 1.0}, "wrong V"),
    "TD error bootstraps past the end": (
        *(advantages, "td_error", bootstrapped),
        *({**CRITIC, "estimator": "td_error"}, "exact V"),
    ),
    "baseline with a gradient": (LOSSES, "trajectories", attached, CRITIC, "wrong V"),
    "padding in the loss": (LOSSES, "trajectories", unmasked, CRITIC, "wrong V"),
    "mean over rows": (LOSSES, "trajectories", by_row, REINFORCE, "none"),
    "broadcast over steps": (LOSSES, "trajectories", broadcast, CRITIC, "wrong V"),
}


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": "group"},
        {"baseline": "group", "group_std": True},
        {"reduction": "trajectory_means"},
    ],
)
def test_theory_knows_the_biases_of_groups_and_lengths(chain, changes):
    choice = config(**{**REINFORCE, **DISCOUNTED, "num_envs": 2, **changes})
    row = oracle.hold(chain[0], "", chain[1], choice, choice.baseline)
    assert row.relative_bias > 0.01
    assert not row.unbiased_by_theory
    assert oracle.as_theory_says(row)


@pytest.mark.parametrize(
    ("fields", "baseline", "words"),
    [
        (CRITIC, "value", "must be 'exact V' or 'wrong V'; got 'value'"),
        (REINFORCE, "exact V", "with baseline='none' it must be 'none'; got 'exact V'"),
        (
            {**REINFORCE, "fit": "ppo", "normalize_over": "minibatch"},
            "none",
            "normalize_over must be 'batch'",
        ),
    ],
)
def test_what_hold_would_take_for_something_else_is_refused(chain, fields, baseline, words):
    choice = dataclasses.replace(oracle.BASE, **{"normalize_advantage": True, **fields})
    with pytest.raises(ValueError, match=words):
        oracle.hold(chain[0], "", chain[1], choice, baseline)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(chain, monkeypatch, fault):
    where, name, change, fields, baseline = FAULTS[fault]
    estimator = config(**{"gae_lambda": 1.0, **fields, **DISCOUNTED})
    assert not oracle.why_biased(estimator, baseline)
    oracle._psi.clear_cache()  # a compiled program would hide the fault
    planted(monkeypatch, where, name, change)
    try:
        row = oracle.hold(chain[0], "", chain[1], estimator, baseline)
    finally:
        monkeypatch.undo()
        oracle._psi.clear_cache()
        oracle._value_slopes.clear_cache()
    assert row.relative_bias > 100 * oracle.TOLERANCE
    if fault.startswith("leave-one-out"):  # (1 - 1/N) ∇U
        assert row.relative_bias == pytest.approx(0.5, rel=1e-12)
        assert row.cosine == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--horizon", "3"], "--horizon must be an integer in [4, 12]; got 3"),
        (["--json", f"{__file__}/rows.json"], "can be written"),
    ],
)
def test_bad_input_is_a_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["oracle", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_a_fit_normalises_in_minibatches_is_not_normalised_over_the_batch(chain):
    bare = config(**REINFORCE, num_envs=2)
    for_fit = {"fit": "ppo", "normalize_advantage": True, "normalize_over": "minibatch"}
    found, wanted = (
        oracle.expectation(*chain, one).mean for one in (dataclasses.replace(bare, **for_fit), bare)
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["normalize_obs", "normalize_reward"])
def test_what_depends_on_earlier_batches_has_no_exact_expectation(chain, name):
    with pytest.raises(ConfigError, match="needs normalize_obs and normalize_reward False; got"):
        oracle.expectation(*chain, dataclasses.replace(oracle.BASE, **{name: True}))


def test_the_command(monkeypatch, capsys, tmp_path, chain, rows):
    monkeypatch.setattr(oracle, "cartpole", lambda horizon: chain[0])
    monkeypatch.setattr(oracle, "tabular", lambda: None)
    monkeypatch.setattr(oracle, "rows", lambda problems, report: rows)
    right = finding.Finding("groups", "MDP", "mean", None, "∇U", 0.5, 1.0, 0.5, None, 0.5)
    monkeypatch.setattr(family, "findings", lambda report: [right])
    files = {"--json": tmp_path / "rows.json", "--out": tmp_path / "rows.png"}
    main(["oracle", *(str(word) for pair in files.items() for word in pair)])
    assert "theory calls 64" in capsys.readouterr().out
    written = json.loads(files["--json"].read_text())
    assert [oracle.Row(**row) for row in written["estimators"]] == rows
    assert [finding.Finding(**fields) for fields in written["family"]] == [right]
    assert files["--out"].read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(family, "findings", lambda report: [right._replace(amount=0.6)])
    with pytest.raises(SystemExit) as stop:
        main(["oracle"])
    assert stop.value.code == 1
    assert "1 findings are not what theory says" in capsys.readouterr().out

    off = [row._replace(relative_bias=float("nan")) for row in rows]
    monkeypatch.setattr(oracle, "rows", lambda problems, report: off)
    monkeypatch.setattr(family, "findings", lambda report: [right])
    with pytest.raises(SystemExit) as stop:
        main(["oracle"])
    assert stop.value.code == 1


def test_the_page_shows_its_numbers():
    listed = json.loads((DOCS / "oracle.json").read_text(encoding="utf-8"))["estimators"]
    rows = [oracle.Row(**row) for row in listed]
    page = (DOCS / "oracle.md").read_text()
    (shown,) = re.findall(r"<!-- table -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert shown.strip() == tables.markdown(oracle.tables(rows)).strip()
    assert max(row.relative_bias for row in rows if row.unbiased_by_theory) < oracle.TOLERANCE


@pytest.mark.slow
def test_the_command_finds_what_the_pages_show(tmp_path):
    main(["oracle", "--json", str(tmp_path / "oracle.json")])
    found, shown = (json.loads((at / "oracle.json").read_text()) for at in (tmp_path, DOCS))
    assert found.keys() == shown.keys()
    for part in shown:
        for ours, theirs in zip(found[part], shown[part], strict=True):
            numbers = {name: x for name, x in theirs.items() if isinstance(x, float)}
            close = {name: pytest.approx(x, rel=1e-6, abs=1e-9) for name, x in numbers.items()}
            assert ours == theirs | close
