"""Advantages: each estimator against its definition as a plain sum, and against the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compare import assert_close
from jax.test_util import check_grads

import torch_ref.advantages as twin
from jaxpg.core import advantages

# A scan outside jit compiles at every call, and other functions operation by operation.
discount_from_start = jax.jit(advantages.discount_from_start)
leave_one_out = jax.jit(advantages.leave_one_out)
normalize = jax.jit(advantages.normalize)
td_error = jax.jit(advantages.td_error)
discounted_return = jax.jit(advantages.discounted_return)
total_return = jax.jit(advantages.total_return)
gae = jax.jit(advantages.gae)

T, N = 12, 40
GAMMA, LAMBDA = 0.9, 0.7
NO = jnp.zeros((3, 1), bool)


def column(*values):
    """One environment, [T, 1]."""
    return jnp.array(values)[:, None]


def batch(float_type="float64", seed=0):
    """T steps of N environments with every kind of end: (reward, value, next_value, ends).

    Some steps both terminate and truncate, some columns end at the last row, some not at all.
    """
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, T, N)).astype(float_type)
    terminated, truncated = rng.random((2, T, N)) < 0.15
    terminated[:, :4] = truncated[:, 2:6] = False
    terminated[-1, 6], truncated[-1, 7] = True, True
    terminated[3, 8] = truncated[3, 8] = True
    return reward, value, next_value, terminated, truncated


def episode_end(terminated, truncated, t, i):
    """The row at which the episode of row t ends, or the last one."""
    done = np.nonzero(terminated[t:, i] | truncated[t:, i])[0]
    return t + (done[0] if len(done) else T - 1 - t)


# Discounted return


def test_discounted_return_worked_by_hand():
    """γ = ½, rewards 1, 2, 4, and the view cut after them, where V = 8.

    G_2 = 4 + ½ · 8 = 8;  G_1 = 2 + ½ · 8 = 6;  G_0 = 1 + ½ · 6 = 4
    """
    reward, next_value = column(1.0, 2.0, 4.0), column(99.0, 6.0, 8.0)
    returns = discounted_return(reward, next_value, NO, NO, gamma=0.5)
    assert returns.ravel().tolist() == [4.0, 6.0, 8.0]
    # Row 1 terminates: G_1 = 2 and G_0 = 1 + ½ · 2. Truncated with V = 6: 2 + ½ · 6, 1 + ½ · 5.
    end = column(False, True, False)
    returns = discounted_return(reward, next_value, end, NO, gamma=0.5)
    assert returns.ravel().tolist() == [2.0, 2.0, 8.0]
    returns = discounted_return(reward, next_value, NO, end, gamma=0.5)
    assert returns.ravel().tolist() == [3.5, 5.0, 8.0]
    # Both at once: the task ended, nothing follows.
    returns = discounted_return(reward, next_value, end, end, gamma=0.5)
    assert returns.ravel().tolist() == [2.0, 2.0, 8.0]


def test_discounted_return_is_its_definition(x64):
    """Σ γ^(k-t) r_k to the episode's last row, and γ^n V after it unless the task ended there."""
    reward, _, next_value, terminated, truncated = batch()
    expected = np.zeros((T, N))
    for t, i in np.ndindex(T, N):
        end = episode_end(terminated, truncated, t, i)
        steps = np.arange(end - t + 1)
        expected[t, i] = np.sum(GAMMA**steps * reward[t : end + 1, i])
        if not terminated[end, i]:
            expected[t, i] += GAMMA ** (end - t + 1) * next_value[end, i]
    actual = discounted_return(reward, next_value, terminated, truncated, gamma=GAMMA)
    assert_close(actual, expected, 1e-14)


def test_gamma_zero_sees_one_reward_and_gamma_one_the_plain_sum(x64):
    reward, _, next_value, terminated, truncated = batch()
    returns = discounted_return(reward, next_value, terminated, truncated, gamma=0.0)
    np.testing.assert_array_equal(returns, reward)
    none = np.zeros_like(terminated)
    returns = discounted_return(reward, np.zeros((T, N)), none, none, gamma=1.0)
    assert_close(returns[0], reward.sum(axis=0), 1e-14)


def test_total_return_is_the_first_reward_to_go_at_every_step(x64):
    inputs = batch()
    inputs = (inputs[0], *inputs[2:])
    returns = discounted_return(*inputs, gamma=GAMMA)
    actual = total_return(*inputs, gamma=GAMMA)
    np.testing.assert_array_equal(actual, np.tile(returns[0], (T, 1)))


# TD error and GAE


def test_td_error_worked_by_hand():
    """γ = ½: 1 + ½ · 4 - 2 = 1; terminated: 1 - 2 = -1."""
    inputs = column(1.0, 1.0), column(2.0, 2.0), column(4.0, 4.0)
    delta = td_error(*inputs, column(False, True), gamma=0.5)
    assert delta.ravel().tolist() == [1.0, -1.0]


def test_gae_worked_by_hand():
    """γ = ½, λ = ½, so γλ = ¼; V(s) = 0, V(s') = 2: δ = r + ½ · 2 for rewards 1, 3, 7.

    A_2 = δ_2 = 8;  A_1 = 4 + ¼ · 8 = 6;  A_0 = 2 + ¼ · 6 = 3.5
    """
    zero, next_value = jnp.zeros((3, 1)), jnp.full((3, 1), 2.0)
    inputs = (column(1.0, 3.0, 7.0), zero, next_value)
    coefficients = {"gamma": 0.5, "gae_lambda": 0.5}
    assert gae(*inputs, NO, NO, **coefficients).ravel().tolist() == [3.5, 6.0, 8.0]
    # Row 1 terminates: A_1 = 3, A_0 = 2 + ¼ · 3. Row 1 truncates: A_1 = 4, A_0 = 2 + ¼ · 4.
    end = column(False, True, False)
    assert gae(*inputs, end, NO, **coefficients).ravel().tolist() == [2.75, 3.0, 8.0]
    assert gae(*inputs, NO, end, **coefficients).ravel().tolist() == [3.0, 4.0, 8.0]
    assert gae(*inputs, end, end, **coefficients).ravel().tolist() == [2.75, 3.0, 8.0]


def test_gae_is_its_definition(x64):
    """Σ (γλ)^l δ_{t+l} to the episode's last row."""
    reward, value, next_value, terminated, truncated = batch()
    delta = reward + GAMMA * np.where(terminated, 0.0, next_value) - value
    expected = np.zeros((T, N))
    for t, i in np.ndindex(T, N):
        end = episode_end(terminated, truncated, t, i)
        steps = np.arange(end - t + 1)
        expected[t, i] = np.sum((GAMMA * LAMBDA) ** steps * delta[t : end + 1, i])
    assert_close(gae(*batch(), gamma=GAMMA, gae_lambda=LAMBDA), expected, 1e-14)


def test_gae_at_lambda_zero_is_the_td_error(x64):
    reward, value, next_value, terminated, truncated = batch()
    actual = gae(reward, value, next_value, terminated, truncated, gamma=GAMMA, gae_lambda=0.0)
    assert_close(actual, td_error(reward, value, next_value, terminated, gamma=GAMMA), 1e-14)


def consistent_values():
    """A batch as of a rollout: V(s_{t+1}) is the next row's V wherever the episode goes on."""
    reward, value, next_value, terminated, truncated = batch()
    goes_on = ~(terminated | truncated)[:-1]
    next_value[:-1] = np.where(goes_on, value[1:], next_value[:-1])
    return reward, value, next_value, terminated, truncated


def test_gae_at_lambda_one_plus_the_value_is_the_discounted_return(x64):
    """The values in between cancel, if each stands once as V(s') and once as V(s)."""
    reward, value, next_value, terminated, truncated = consistent_values()
    ends = (terminated, truncated)
    advantage = gae(reward, value, next_value, *ends, gamma=GAMMA, gae_lambda=1.0)
    expected = discounted_return(reward, next_value, *ends, gamma=GAMMA)
    assert_close(advantage + value, expected, 1e-14)


def test_gae_is_zero_where_the_values_are_exact(x64):
    """If V is the discounted return of the one thing that can happen, no action surprises."""
    reward, _, next_value, terminated, truncated = batch()
    truncated[:] = False
    value = np.asarray(discounted_return(reward, next_value, terminated, truncated, gamma=GAMMA))
    next_value[:-1] = value[1:]
    for gae_lambda in (0.0, 0.5, 1.0):
        advantage = gae(
            reward, value, next_value, terminated, truncated, gamma=GAMMA, gae_lambda=gae_lambda
        )
        np.testing.assert_allclose(advantage, np.zeros((T, N)), atol=1e-14)


def test_potential_based_shaping_changes_no_advantage(x64):
    """r + γ Φ(s') - Φ(s) with V - Φ is the same as r with V; Φ is 0 after a termination."""
    reward, value, next_value, terminated, truncated = batch()
    potential, next_potential = np.random.default_rng(9).normal(size=(2, T, N))
    shaped = reward + GAMMA * np.where(terminated, 0.0, next_potential) - potential
    ends, coefficients = (terminated, truncated), {"gamma": GAMMA, "gae_lambda": LAMBDA}
    actual = gae(shaped, value - potential, next_value - next_potential, *ends, **coefficients)
    assert_close(actual, gae(reward, value, next_value, *ends, **coefficients), 1e-14)


# What may not matter

ESTIMATORS = {
    "discounted_return": lambda f, r, v, nv, te, tr: f(r, nv, te, tr, gamma=GAMMA),
    "total_return": lambda f, r, v, nv, te, tr: f(r, nv, te, tr, gamma=GAMMA),
    "td_error": lambda f, r, v, nv, te, tr: f(r, v, nv, te, gamma=GAMMA),
    "gae": lambda f, r, v, nv, te, tr: f(r, v, nv, te, tr, gamma=GAMMA, gae_lambda=LAMBDA),
}


def estimate(name, *inputs):
    return ESTIMATORS[name](globals()[name], *inputs)


def twin_estimate(name, *inputs):
    return ESTIMATORS[name](getattr(twin, name), *map(torch.tensor, inputs)).numpy()


AFTER_THE_END = [(name, bad) for name in ESTIMATORS for bad in (np.nan, np.inf, 1e9)]


@pytest.mark.parametrize(("name", "bad"), AFTER_THE_END)
@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("estimate", [estimate, twin_estimate])
def test_what_stands_after_the_end_of_an_episode_does_not_reach_it(estimate, name, end, bad):
    """Whether padding or another episode, in the same column or another."""
    inputs = batch("float32")
    inputs[3][5], inputs[4][5] = end == "terminated", end == "truncated"
    expected = estimate(name, *inputs)
    after = np.zeros((T, N), bool)
    after[6:, ::2] = True
    planted = [np.where(after, np.float32(bad), array) for array in inputs[:3]]
    actual = estimate(name, *planted, *inputs[3:])
    np.testing.assert_array_equal(actual[:6], expected[:6])
    if name != "total_return":  # of which every column is one episode from row 0
        np.testing.assert_array_equal(actual[:, 1::2], expected[:, 1::2])


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("estimate", [estimate, twin_estimate])
def test_the_value_after_a_termination_is_never_read(estimate, name):
    reward, value, next_value, terminated, truncated = batch("float32")
    expected = estimate(name, reward, value, next_value, terminated, truncated)
    next_value = np.where(terminated, np.float32(np.nan), next_value)
    actual = estimate(name, reward, value, next_value, terminated, truncated)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batch_axes_are_a_loop_and_jit_changes_nothing(name, x64):
    inputs = batch()
    whole = estimate(name, *inputs)
    with jax.disable_jit():
        assert_close(estimate(name, *inputs), whole, 1e-14)
    for i in range(0, N, 7):
        assert_close(whole[:, i], estimate(name, *(array[:, i] for array in inputs)), 1e-14)
    two_axes = estimate(name, *(array.reshape(T, 5, 8) for array in inputs))
    np.testing.assert_array_equal(two_axes.reshape(T, N), whole)


def test_vmap_over_gamma_and_lambda_traces_once(x64):
    """Hyperparameters are numbers that flow through: thousands of them are one program."""
    traces = []

    def f(gamma, gae_lambda):
        traces.append(gamma)
        return gae(*batch(), gamma=gamma, gae_lambda=gae_lambda)

    gammas, lambdas = jnp.array([0.5, 0.99]), jnp.array([1.0, 0.0])
    batched = jax.jit(jax.vmap(f))(gammas, lambdas)
    assert len(traces) == 1
    for i in range(2):
        alone = gae(*batch(), gamma=float(gammas[i]), gae_lambda=float(lambdas[i]))
        assert_close(batched[i], alone, 1e-14)


def test_gradients_are_the_numerical_ones(x64):
    """Estimators are linear in rewards and values, and smooth in γ and λ."""
    reward, value, next_value, *ends = (array[:, :3] for array in batch())

    def f(reward, value, next_value, gamma, gae_lambda):
        advantage = gae(reward, value, next_value, *ends, gamma=gamma, gae_lambda=gae_lambda)
        return advantage + discounted_return(reward, next_value, *ends, gamma=gamma)

    check_grads(jax.jit(f), (reward, value, next_value, GAMMA, LAMBDA), order=1, modes=["rev"])


# Baseline, discounting, normalisation


def test_leave_one_out_worked_by_hand():
    """(2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2"""
    assert leave_one_out(jnp.array([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]
    assert leave_one_out(jnp.array([3.0, 5.0])).tolist() == [5.0, 3.0]


def test_leave_one_out_is_the_mean_of_the_others(x64):
    returns = np.random.default_rng(0).normal(size=9)
    others = [np.delete(returns, i).mean() for i in range(9)]
    assert_close(leave_one_out(jnp.array(returns)), others, 1e-14)


def test_relative_to_the_group_worked_by_hand(x64):
    """Returns 1, 2, 6: mean 3, deviation √((4 + 1 + 9) / 3)."""
    returns = jnp.array([1.0, 2.0, 6.0])
    psi = jnp.array([[1.0, 2.0, 6.0], [0.0, 3.0, 6.0]])
    expected = np.array([[-2.0, -1.0, 3.0], [-3.0, 0.0, 3.0]])
    assert_close(advantages.relative_to_group(psi, returns, std=False), expected, 1e-14)
    found = advantages.relative_to_group(psi, returns, std=True)
    assert_close(found, expected / np.sqrt(14 / 3), 1e-8)


def test_the_groups_mean_shortens_the_leave_one_out_by_one_in_n(x64):
    """R_i - mean = (1 - 1/N) (R_i - the mean of the others)."""
    returns = jnp.array(np.random.default_rng(0).normal(size=9))
    relative = advantages.relative_to_group(returns[None], returns, std=False)[0]
    assert_close(relative, (1 - 1 / 9) * (returns - leave_one_out(returns)), 1e-14)


def test_discount_from_start_worked_by_hand():
    """γ^t, with 0^0 = 1."""
    time = jnp.array([[0, 3], [1, 0], [2, 1]], jnp.int32)
    expected = [[1.0, 0.125], [0.5, 1.0], [0.25, 0.5]]
    assert discount_from_start(time, gamma=0.5).tolist() == expected
    assert discount_from_start(time, gamma=0.0).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert discount_from_start(time, gamma=1.0).tolist() == [[1, 1], [1, 1], [1, 1]]


def test_absolute_discounting_is_relative_discounting_from_the_start(x64):
    """γ^t Σ_{k≥t} γ^(k-t) r_k = Σ_{k≥t} γ^k r_k."""
    reward = batch()[0]
    none, time = np.zeros((T, N), bool), np.tile(np.arange(T, dtype=np.int32)[:, None], (1, N))
    relative = discounted_return(reward, np.zeros((T, N)), none, none, gamma=GAMMA)
    actual = discount_from_start(jnp.array(time), gamma=GAMMA) * relative
    absolute = np.cumsum((GAMMA**time * reward)[::-1], axis=0)[::-1]
    assert_close(actual, absolute, 1e-14)


def test_normalize_worked_by_hand(x64):
    """1, 3, 5 have mean 3 and variance (4 + 0 + 4) / 3: ddof 0."""
    valid = column(True, True, False, True)
    actual = normalize(column(1.0, 3.0, 999.0, 5.0), valid)
    expected = column(-2.0, 0.0, 0.0, 2.0) / np.sqrt(8 / 3)
    np.testing.assert_allclose(actual, expected, rtol=1e-7)
    # ε = 1e-8 is added to the standard deviation: ±1e-8 / (1e-8 + 1e-8).
    tiny = normalize(column(1e-8, 3e-8), column(True, True))
    np.testing.assert_allclose(tiny, column(-0.5, 0.5), rtol=1e-12)


def masked_batch():
    rng = np.random.default_rng(3)
    return rng.normal(2.0, 5.0, size=(T, N)), rng.random((T, N)) < 0.6


def test_normalized_steps_have_mean_zero_and_deviation_one(x64):
    advantage, valid = masked_batch()
    actual = np.asarray(normalize(jnp.array(advantage), jnp.array(valid)))
    assert abs(actual[valid].mean()) < 1e-14
    assert abs(actual[valid].std() - 1.0) < 1e-8
    np.testing.assert_array_equal(actual[~valid], np.zeros(np.sum(~valid)))
    rescaled = normalize(3.0 * advantage - 7.0, jnp.array(valid))
    np.testing.assert_allclose(rescaled, actual, atol=1e-8)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e9])
def test_padding_has_no_part_in_normalisation(bad):
    advantage, valid = map(jnp.array, masked_batch())
    expected = normalize(advantage, valid)
    planted = jnp.where(valid, advantage, bad)
    np.testing.assert_array_equal(normalize(planted, valid), expected)
    in_torch = [torch.tensor(np.asarray(array)) for array in (planted, valid)]
    assert_close(twin.normalize(*in_torch), expected, 1e-6)


def test_normalize_of_equal_steps_is_zero():
    valid = jnp.array([[True, False], [True, True]])
    np.testing.assert_array_equal(normalize(jnp.full((2, 2), 0.75), valid), np.zeros((2, 2)))


@pytest.mark.parametrize("x", [0.1, -39.4994, 99.3429, 499.7])
def test_what_rounds_otherwise_than_its_mean_is_equal_all_the_same(x):
    """In float32 the mean of so many equal numbers is another one, and their deviation not 0."""
    psi, valid = jnp.full((37, 16), x, jnp.float32), jnp.ones((37, 16), bool)
    returns, zero = psi[0], np.zeros((37, 16))
    assert jnp.any(jnp.mean(psi) != psi) or jnp.any(jnp.mean(returns) != returns)
    np.testing.assert_array_equal(normalize(psi, valid), zero)
    np.testing.assert_array_equal(advantages.relative_to_group(psi, returns, std=True), zero)
    np.testing.assert_array_equal(advantages.relative_to_group(psi - 1.0, returns, std=True), zero)
    in_torch = [torch.tensor(np.asarray(array)) for array in (psi, valid, returns)]
    np.testing.assert_array_equal(twin.normalize(*in_torch[:2]), zero)
    np.testing.assert_array_equal(twin.relative_to_group(in_torch[0], in_torch[2], std=True), zero)


def test_what_is_not_a_number_is_not_hidden():
    """A seed that diverges is found by it."""
    psi = jnp.full((2, 2), jnp.nan)
    assert np.isnan(normalize(psi, jnp.ones((2, 2), bool))).all()
    assert np.isnan(advantages.relative_to_group(psi, psi[0], std=True)).all()


# Mistakes that broadcasting would hide

REWARD, FLAG = jnp.zeros((3, 2)), jnp.zeros((3, 2), bool)
MISTAKES = {
    "reward without the batch axis": (gae, (REWARD[:, 0], REWARD, REWARD, FLAG, FLAG)),
    "one value for all environments": (gae, (REWARD, REWARD[:, :1], REWARD, FLAG, FLAG)),
    "truncated of another shape": (gae, (REWARD, REWARD, REWARD, FLAG, FLAG[:1])),
    "terminated as a number": (gae, (REWARD, REWARD, REWARD, REWARD, FLAG)),
    "truncated as a number": (gae, (REWARD, REWARD, REWARD, FLAG, REWARD)),
    "td_error, value of another shape": (td_error, (REWARD, REWARD[:1], REWARD, FLAG)),
    "td_error, flag as a number": (td_error, (REWARD, REWARD, REWARD, REWARD)),
    "return, next_value of another shape": (discounted_return, (REWARD, REWARD[:1], FLAG, FLAG)),
    "return, terminated as a number": (discounted_return, (REWARD, REWARD, REWARD, FLAG)),
    "return, truncated as a number": (discounted_return, (REWARD, REWARD, FLAG, REWARD)),
    "leave_one_out of a matrix": (leave_one_out, (REWARD,)),
    "normalize with a mask of another shape": (normalize, (REWARD, FLAG[:1])),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_shapes_and_types_are_refused_by_both_packages(mistake):
    f, arguments = MISTAKES[mistake]
    twins = [torch.tensor(np.asarray(array)) for array in arguments]
    coefficients = {"gamma": 0.9} if f in (td_error, discounted_return) else {}
    coefficients |= {"gamma": 0.9, "gae_lambda": 0.9} if f is gae else {}
    with pytest.raises(AssertionError):
        f(*arguments, **coefficients)
    with pytest.raises(AssertionError):
        getattr(twin, f.__name__)(*twins, **coefficients)


# The twin


def cases(float_type):
    """name -> arguments and hyperparameters, numpy."""
    reward, value, next_value, terminated, truncated = batch(float_type)
    scalar = np.dtype(float_type).type
    gamma, gae_lambda = {"gamma": scalar(GAMMA)}, {"gae_lambda": scalar(LAMBDA)}
    time = np.random.default_rng(1).integers(0, 500, (T, N)).astype(np.int32)
    ends = (terminated, truncated)
    return {
        "discounted_return": ((reward, next_value, *ends), gamma),
        "total_return": ((reward, next_value, *ends), gamma),
        "td_error": ((reward, value, next_value, terminated), gamma),
        "gae": ((reward, value, next_value, *ends), gamma | gae_lambda),
        "leave_one_out": ((reward[0],), {}),
        "discount_from_start": ((time,), gamma),
        "normalize": ((reward, ~terminated), {}),
    }


@pytest.mark.parametrize(("float_type", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("name", cases("float32"))
def test_twin_is_equal(name, float_type, tolerance):
    arguments, coefficients = cases(float_type)[name]
    with jax.enable_x64(float_type == "float64"):
        ours = globals()[name](*map(jnp.array, arguments), **jax.tree.map(jnp.array, coefficients))
    theirs = getattr(twin, name)(
        *map(torch.tensor, arguments),
        **{name: torch.tensor(value) for name, value in coefficients.items()},
    )
    assert ours.dtype == float_type
    assert theirs.dtype == getattr(torch, float_type)
    assert_close(theirs, ours, tolerance)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (_, coefficients) in cases("float32").items()
        if coefficients and name != "discount_from_start"  # which takes an array
    ],
)
def test_twin_is_equal_with_python_numbers(name, x64):
    arguments, coefficients = cases("float64")[name]
    coefficients = {key: float(value) for key, value in coefficients.items()}
    ours = globals()[name](*map(jnp.array, arguments), **coefficients)
    theirs = getattr(twin, name)(*map(torch.tensor, arguments), **coefficients)
    assert_close(theirs, ours, 1e-14)
