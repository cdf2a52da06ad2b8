"""Distributions: the inverse CDF to its last grid point, densities, entropies, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from compare import assert_close
from jax.test_util import check_grads

import torch_ref.distributions as twin
from jaxpg.core import distributions
from jaxpg.core.types import Distribution

# Outside jit each of their operations is compiled by itself.
categorical, gaussian, squashed = (
    Distribution(*map(jax.jit, getattr(distributions, name)))
    for name in ("categorical", "gaussian", "squashed")
)
categorical_sample, _, categorical_log_prob, categorical_entropy, categorical_kl = categorical
gaussian_sample, _, gaussian_log_prob, gaussian_entropy, gaussian_kl = gaussian

LAST = 1.0 - 2.0**-23  # the largest uniform draw
GRID_ENDS = np.array([0.0, 2.0**-23, 0.5 - 2.0**-23, 0.5, 1.0 - 2.0**-22, LAST], np.float32)
NEVER = -1000.0  # a logit whose probability is exactly 0, even in float64

FLOAT_TYPES = [("float32", 1e-5), ("float64", 1e-12)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Categorical


@pytest.mark.parametrize(
    ("logits", "uniform", "action"),
    [
        # The CDF is (0, 1): u = 0 stands exactly on its first step and belongs to action 1, so
        # an action of probability 0 is never taken.
        ([NEVER, 0.0], 0.0, 1),
        ([NEVER, NEVER, 0.0], 0.0, 2),
        # The CDF is (1, 1): every u is below.
        ([0.0, NEVER], 0.0, 0),
        ([0.0, NEVER], LAST, 0),
        # The CDF is (½, ½, 1): ½ belongs to action 2, the draw before it to action 0.
        ([0.0, NEVER, 0.0], 0.5, 2),
        ([0.0, NEVER, 0.0], 0.5 - 2.0**-23, 0),
        # The CDF is (0.1, 0.3, 0.6, 1).
        (np.log([0.1, 0.2, 0.3, 0.4]), 0.05, 0),
        (np.log([0.1, 0.2, 0.3, 0.4]), 0.15, 1),
        (np.log([0.1, 0.2, 0.3, 0.4]), 0.55, 2),
        (np.log([0.1, 0.2, 0.3, 0.4]), LAST, 3),
        ([3.0], LAST, 0),  # one action
        # Neither the first nor the last is allowed.
        ([distributions.NEVER, 0.0, 0.0, distributions.NEVER], 0.0, 1),
        ([distributions.NEVER, 0.0, 0.0, distributions.NEVER], LAST, 2),
    ],
)
@pytest.mark.parametrize("float_type", ["float32", "float64"])
def test_categorical_sample_worked_by_hand(logits, uniform, action, float_type):
    with jax.enable_x64(float_type == "float64"):
        sampled = categorical_sample(jnp.asarray(logits, float_type), jnp.float32(uniform))
    assert sampled.dtype == jnp.int32
    assert sampled == action
    logits = torch.tensor(np.asarray(logits), dtype=getattr(torch, float_type))
    assert twin.categorical_sample(logits, torch.tensor(uniform, dtype=torch.float32)) == action


def test_no_action_beyond_the_last_where_probabilities_add_up_to_less_than_one(rng):
    """In float32 the CDF can end below the largest u."""
    logits = rng.normal(size=(5000, 12)).astype(np.float32)
    probabilities = scipy.special.softmax(logits, axis=-1)
    assert np.any(np.cumsum(probabilities, axis=-1)[:, -1] < LAST)
    uniform = np.full(5000, LAST, np.float32)
    assert np.all(categorical_sample(jnp.array(logits), jnp.array(uniform)) == 11)
    assert torch.all(twin.categorical_sample(torch.tensor(logits), torch.tensor(uniform)) == 11)
    logits[:, 9:] = distributions.NEVER  # the last that is allowed takes what is left
    assert np.all(categorical_sample(jnp.array(logits), jnp.array(uniform)) == 8)
    assert torch.all(twin.categorical_sample(torch.tensor(logits), torch.tensor(uniform)) == 8)


def test_frequencies_of_the_inverse_cdf_are_the_probabilities():
    """Of n evenly spaced u, each interval of length π holds π n ± 1; one in the last is sure."""
    probabilities = np.array([0.5, 0.05, 0.0001, 0.3, 0.1499])
    n = 2**16
    uniform = np.arange(n, dtype=np.float32) / n
    logits = np.broadcast_to(np.log(probabilities) + 7.0, (n, 5)).astype(np.float32)
    actions = np.asarray(categorical_sample(logits, uniform))
    counts = np.bincount(actions, minlength=5)
    np.testing.assert_allclose(counts, probabilities * n, atol=1.0)
    assert np.all(np.diff(actions) >= 0)  # a larger u never takes an earlier action


def test_categorical_log_prob_and_entropy_are_scipys(rng, x64):
    logits = rng.normal(scale=3.0, size=(20, 5))
    log_probs = scipy.special.log_softmax(logits, axis=-1)
    for action in range(5):
        actions = np.full((20,), action, np.int32)
        assert_close(categorical_log_prob(jnp.array(logits), actions), log_probs[:, action], 1e-14)
    entropy = scipy.stats.entropy(np.exp(log_probs), axis=-1)
    assert_close(categorical_entropy(jnp.array(logits)), entropy, 1e-14)


def test_categorical_entropy_worked_by_hand():
    """Uniform over A: log A. (½, ¼, ¼): ½ · 1 + 2 · ¼ · 2 = 3/2 bits."""
    assert_close(categorical_entropy(np.zeros((3, 4))), np.full(3, np.log(4.0)), 1e-6)
    halves = np.log([0.5, 0.25, 0.25])
    assert_close(categorical_entropy(halves), 1.5 * np.log(2.0), 1e-6)
    assert categorical_entropy(jnp.array([0.0, NEVER])) == 0.0


def test_categorical_is_unchanged_by_a_constant_in_the_logits(rng, x64):
    logits, action = rng.normal(size=(6, 4)), np.arange(6) % 4
    for f in (categorical_entropy, lambda logits: categorical_log_prob(logits, action)):
        assert_close(f(logits + 100.0), f(logits), 1e-12)


def test_score_has_mean_zero_and_its_gradient_is_that_of_the_entropy(rng, x64):
    """Σ π ∇log π = 0, and ∇H = -Σ π log π ∇log π, with all actions enumerated."""
    logits = jnp.array(rng.normal(size=4))
    actions = np.arange(4)
    log_probs = jax.jit(jax.vmap(categorical_log_prob, (None, 0)))(logits, actions)
    scores = jax.jit(jax.vmap(jax.grad(categorical_log_prob), (None, 0)))(logits, actions)
    np.testing.assert_allclose(np.exp(log_probs) @ scores, np.zeros(4), atol=1e-15)
    expected = -(np.exp(log_probs) * log_probs) @ np.array(scores)
    assert_close(jax.jit(jax.grad(categorical_entropy))(logits), expected, 1e-12)


@pytest.mark.parametrize("float_type", ["float32", "float64"])
def test_saturated_categorical_stays_finite_and_keeps_its_gradient(float_type):
    """torch's Categorical(probs) clamps here: log-prob -15.9 and no gradient at all."""
    with jax.enable_x64(float_type == "float64"):
        logits = jnp.array([1e4, -1e4, 0.0], float_type)
        log_prob, gradient = jax.value_and_grad(categorical_log_prob)(logits, jnp.int32(1))
        # log π = -1e4 - 1e4; its gradient is onehot(1) - π = (0, 1, 0) - (1, 0, 0).
        np.testing.assert_array_equal(log_prob, -2e4)
        np.testing.assert_array_equal(gradient, [-1.0, 1.0, 0.0])
        entropy, gradient = jax.value_and_grad(categorical_entropy)(logits)
        np.testing.assert_array_equal(entropy, 0.0)
        np.testing.assert_array_equal(gradient, np.zeros(3))


def test_categorical_gradients_are_the_numerical_ones(rng, x64):
    logits, action = jnp.array(rng.normal(size=(3, 4))), jnp.array([0, 3, 1])
    check_grads(
        jax.jit(lambda x: categorical_log_prob(x, action)), (logits,), order=1, modes=["rev"]
    )
    check_grads(jax.jit(categorical_entropy), (logits,), order=1, modes=["rev"])


# Gaussian


def test_gaussian_sample_is_the_quantile_at_the_middle_of_the_draws_cell(rng, x64):
    """u stands for the cell [u, u + 2^-23) of the unit interval."""
    mean, log_std = np.array([1.0, -2.0, 0.0]), np.array([0.7, 0.0, -1.0])
    uniform = np.concatenate([GRID_ENDS, rng.integers(0, 2**23, 100) * np.float32(2.0**-23)])
    for u in uniform:
        outputs = np.concatenate([mean, log_std])
        sampled = gaussian_sample(outputs, np.full(3, u, np.float32))
        expected = scipy.stats.norm.ppf(float(u) + 2.0**-24, mean, np.exp(log_std))
        assert_close(sampled, expected, 1e-9)


@pytest.mark.parametrize("float_type", ["float32", "float64"])
def test_gaussian_sample_is_symmetric_and_finite_on_the_whole_grid(float_type):
    """u and 1 - 2^-23 - u lie opposite one another, so their samples average to the mean."""
    with jax.enable_x64(float_type == "float64"):
        outputs = np.zeros((len(GRID_ENDS), 2), float_type)
        lower = gaussian_sample(outputs, GRID_ENDS[:, None])
        upper = gaussian_sample(outputs, (np.float32(LAST) - GRID_ENDS)[:, None])
    np.testing.assert_array_equal(lower, -np.array(upper))
    # The cells at the ends are half a grid step from 0 and 1: Φ⁻¹(2^-24) = -5.2947.
    np.testing.assert_allclose(lower[0], scipy.stats.norm.ppf(2.0**-24), rtol=1e-4)
    np.testing.assert_allclose(lower[-1], -scipy.stats.norm.ppf(2.0**-24), rtol=1e-4)


def test_gaussian_sample_has_the_moments_of_its_parameters(x64):
    """Over all quantiles of an even grid, μ = 3 and σ = e^½."""
    uniform = np.arange(2**14, dtype=np.float32)[:, None] / 2**14 + np.float32(2.0**-15)
    outputs = np.broadcast_to([3.0, 0.5], (2**14, 2))
    samples = gaussian_sample(outputs, uniform)
    assert samples.shape == (2**14, 1)
    assert_close(np.mean(samples), 3.0, 1e-6)
    assert_close(np.var(samples), np.exp(1.0), 1e-3)


def test_gaussian_log_prob_and_entropy_are_scipys(rng, x64):
    mean, log_std, action = rng.normal(size=(3, 20, 2)) * np.array([2.0, 1.0, 4.0])[:, None, None]
    outputs = np.concatenate([mean, log_std], axis=-1)
    log_prob = scipy.stats.norm.logpdf(action, mean, np.exp(log_std)).sum(-1)
    assert_close(gaussian_log_prob(outputs, jnp.array(action)), log_prob, 1e-14)
    entropy = scipy.stats.norm.entropy(mean, np.exp(log_std)).sum(-1)
    assert_close(gaussian_entropy(outputs), entropy, 1e-14)


def test_gaussian_worked_by_hand():
    """One σ from the mean, σ = 2: -½ - log 2 - ½ log 2π = -2.112086."""
    outputs = jnp.array([1.0, np.log(2.0)], jnp.float32)
    assert_close(gaussian_log_prob(outputs, jnp.array([3.0])), -2.112086, 1e-6)
    assert_close(gaussian_entropy(outputs), 0.5 + 2.112086 - 0.5, 1e-6)


def test_gaussian_gradients_are_the_numerical_ones(rng, x64):
    outputs, action = jnp.array(rng.normal(size=(3, 4))), jnp.array(rng.normal(size=(3, 2)))
    log_prob = jax.jit(lambda x: gaussian_log_prob(x, action))
    check_grads(log_prob, (outputs,), order=1, modes=["rev"])
    check_grads(jax.jit(gaussian_entropy), (outputs,), order=1, modes=["rev"])


# Both


def inputs_of(kind, rng, shape, float_type):
    """Outputs of a network, uniform draws and actions, as numpy arrays."""
    width = 3
    if kind == "categorical":
        outputs = rng.normal(scale=2.0, size=(*shape, width))
        return outputs.astype(float_type), uniforms(rng, shape), rng.integers(0, width, shape)
    outputs = rng.normal(size=(*shape, 2 * width)).astype(float_type)
    action = rng.normal(scale=2.0, size=(*shape, width)).astype(float_type)
    return outputs, uniforms(rng, (*shape, width)), action


def uniforms(rng, shape):
    return (rng.integers(0, 2**23, shape) * 2.0**-23).astype(np.float32)


KINDS = {
    "categorical": (categorical, twin.categorical),
    "gaussian": (gaussian, twin.gaussian),
    "squashed": (squashed, twin.squashed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batch_under_jit_and_vmap_is_a_loop(kind, rng, x64):
    distribution = getattr(distributions, kind)
    outputs, uniform, action = inputs_of(kind, rng, (3, 2), "float64")
    batched = {
        "sample": distribution.sample(outputs, uniform),
        "log_prob": jax.jit(distribution.log_prob)(outputs, action),
        "entropy": jax.vmap(distribution.entropy)(outputs),
    }
    for i, j in np.ndindex(3, 2):
        single = {
            "sample": distribution.sample(outputs[i, j], jnp.array(uniform[i, j])),
            "log_prob": distribution.log_prob(outputs[i, j], jnp.array(action[i, j])),
            "entropy": distribution.entropy(outputs[i, j]),
        }
        for name in single:
            assert_close(batched[name][i, j], single[name], 1e-14, name)


@pytest.mark.parametrize(("float_type", "tolerance"), FLOAT_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_twin_has_equal_values_and_gradients(kind, float_type, tolerance, rng):
    ours, theirs = KINDS[kind]
    outputs, _, action = inputs_of(kind, rng, (50, 4), float_type)
    weight = rng.normal(size=(50, 4)).astype(float_type)  # every sample counts differently
    for name, arguments in {"log_prob": (action,), "entropy": ()}.items():
        with jax.enable_x64(float_type == "float64"):
            f = getattr(ours, name)
            value, pullback = jax.vjp(jax.jit(lambda x: f(x, *arguments)), jnp.array(outputs))
            (gradient,) = pullback(jnp.array(weight))
        leaf = torch.tensor(outputs, requires_grad=True)
        twin_value = getattr(theirs, name)(leaf, *map(torch.tensor, arguments))
        twin_value.backward(torch.tensor(weight))
        assert value.dtype == gradient.dtype == float_type
        assert np.all(np.any(np.asarray(gradient) != 0, axis=-1))
        assert_close(twin_value, value, tolerance, name)
        assert_close(leaf.grad, gradient, tolerance, f"gradient of {name}")


@pytest.mark.parametrize(("float_type", "tolerance"), FLOAT_TYPES)
def test_twin_takes_the_same_gaussian_actions(float_type, tolerance, rng):
    outputs, uniform, _ = inputs_of("gaussian", rng, (500,), float_type)
    uniform[: len(GRID_ENDS)] = GRID_ENDS[:, None]
    with jax.enable_x64(float_type == "float64"):
        ours = gaussian_sample(jnp.array(outputs), jnp.array(uniform))
    theirs = twin.gaussian_sample(torch.tensor(outputs), torch.tensor(uniform))
    # At the ends of the grid erf(y) rounds away ε e^(y²) of y, which torch 2.14 does not win back.
    assert_close(theirs, ours, max(tolerance, 1e-11))


def test_twin_takes_the_same_categorical_actions(rng, x64):
    outputs, uniform, _ = inputs_of("categorical", rng, (100, 100), "float64")
    ours = categorical_sample(jnp.array(outputs), jnp.array(uniform))
    theirs = twin.categorical_sample(torch.tensor(outputs), torch.tensor(uniform))
    np.testing.assert_array_equal(ours, theirs)
    assert np.unique(ours).tolist() == [0, 1, 2]


# Masks


@pytest.mark.parametrize("name", ["categorical", "clamped"])
@pytest.mark.parametrize("float_type", ["float32", "float64"])
def test_masked_logits_are_the_distribution_over_what_is_allowed(name, float_type, rng):
    """Its log π, entropy and KL, and their slopes, which are 0 in what is not."""
    allowed = np.array([False, True, False, True, True, False])
    tolerance = {"float32": 1e-5, "float64": 1e-13}[float_type]
    with jax.enable_x64(float_type == "float64"):
        new, old = (jnp.asarray(rng.normal(size=6), float_type) for _ in range(2))
        of = getattr(distributions, name)
        quantities = {
            "log_prob": lambda new, old, action: of.log_prob(new, action),
            "entropy": lambda new, old, action: of.entropy(new),
            "kl": lambda new, old, action: of.kl(old, new),
        }
        for what, function in quantities.items():

            def masked(new, function=function):
                logits = (distributions.allowed_only(x, allowed) for x in (new, old))
                return function(*logits, jnp.int32(3))  # the second of those that are allowed

            value, slope = jax.jit(jax.value_and_grad(masked))(new)
            few = (new[allowed], old[allowed])
            expected = jax.value_and_grad(lambda new, f=function: f(new, few[1], jnp.int32(1)))
            wanted, wanted_slope = expected(few[0])
            assert_close(value, wanted, tolerance, what)
            assert_close(slope[allowed], wanted_slope, tolerance, what)
            assert np.all(slope[~allowed] == 0.0), what


@pytest.mark.parametrize("float_type", ["float32", "float64"])
def test_where_nothing_is_allowed_all_are_equally_probable_and_nothing_is_nan(float_type):
    with jax.enable_x64(float_type == "float64"):
        logits = jnp.asarray([3.0, -1e4, 0.5], float_type)

        def total(logits):
            none = distributions.allowed_only(logits, jnp.zeros(3, bool))
            return (
                categorical_log_prob(none, jnp.int32(2)),
                categorical_entropy(none),
                categorical_kl(none, none),
            )

        log_prob, entropy, kl = total(logits)
        assert_close(log_prob, -np.log(3.0), 1e-6)
        assert_close(entropy, np.log(3.0), 1e-6)
        assert kl == 0.0
        slopes = jax.jacobian(total)(logits)
        assert np.all(np.asarray(slopes) == 0.0)


# Several choices at once


def test_choices_at_once_are_one_choice_among_their_combinations(rng, x64):
    """Of logits x_i + y_j; and each choice by its own draw."""
    first, second, others = (
        rng.normal(size=(5, 3)),
        rng.normal(size=(5, 2)),
        rng.normal(size=(5, 5)),
    )
    outputs = np.concatenate([first, second], axis=-1)
    both = distributions.several(categorical, (3, 2))
    action = rng.integers((3, 2), size=(5, 2))

    def combined(outputs):
        first, second = np.split(outputs, [3], axis=-1)
        return (first[:, :, None] + second[:, None, :]).reshape(5, 6)

    joint = combined(outputs)
    number = action[:, 0] * 2 + action[:, 1]
    assert_close(both.log_prob(outputs, action), categorical_log_prob(joint, number), 1e-13)
    assert_close(both.entropy(outputs), categorical_entropy(joint), 1e-13)
    assert_close(both.kl(others, outputs), categorical_kl(combined(others), joint), 1e-13)
    best = np.asarray(both.mode(outputs))
    assert np.array_equal(best[:, 0] * 2 + best[:, 1], np.argmax(joint, axis=-1))
    uniform = uniforms(rng, (5, 2))
    sampled = both.sample(outputs, uniform)
    assert sampled.dtype == jnp.int32
    assert np.array_equal(sampled[:, 0], categorical_sample(first, uniform[:, 0]))
    assert np.array_equal(sampled[:, 1], categorical_sample(second, uniform[:, 1]))


# Squashed


def test_the_density_of_a_squashed_action_is_that_of_its_tanh(x64):
    """It adds up to 1 over (-1, 1), and below tanh(a) to the Gaussian's Φ((a - μ) / σ)."""
    mean, std = 0.3, 0.7
    outputs = np.array([mean, np.log(std)])

    def density(y):
        return np.exp(float(squashed.log_prob(outputs, np.arctanh([y]))))

    for a in (0.5, 8.0):
        below, _ = scipy.integrate.quad(density, -1.0, np.tanh(a))
        assert below == pytest.approx(scipy.stats.norm.cdf(a, mean, std), abs=1e-9)


def test_a_squashed_action_whose_tanh_is_one_has_a_density():
    """-½ 20² - ½ log 2π + 2 · 20 - 2 log 2, and what is left of the slope is 4 e^-40."""
    found = squashed.log_prob(jnp.zeros(2), jnp.array([-20.0]))
    expected = -200.0 - 0.5 * np.log(2 * np.pi) + 40.0 - 2 * np.log(2.0)
    assert_close(found, expected, 1e-6)


@pytest.mark.parametrize("log_std", np.log([0.05, 0.5, 1.5, 3.0]))
def test_the_entropy_of_a_squashed_gaussian_is_its_integral(log_std, x64):
    """And so are its slopes, by central differences, within what the docstring says."""
    tolerance = 1e-6 if log_std <= np.log(1.5) else 1e-3
    z = np.linspace(-9.0, 9.0, 20_001)

    def integral(outputs):
        a = outputs[0] + np.exp(outputs[1]) * z
        log_density = scipy.stats.norm.logpdf(z) - outputs[1]
        slope = 2 * (np.log(2) - a - np.logaddexp(0, -2 * a))
        weight = scipy.stats.norm.pdf(z) * (z[1] - z[0])
        return -np.sum(weight * (log_density - slope))

    for mean in (0.0, -0.7, 4.0):
        outputs = np.array([mean, log_std])
        value, slope = jax.value_and_grad(squashed.entropy)(outputs)
        assert value == pytest.approx(integral(outputs), abs=tolerance)
        moves = 1e-5 * np.eye(2)
        numeric = [(integral(outputs + m) - integral(outputs - m)) / 2e-5 for m in moves]
        np.testing.assert_allclose(slope, numeric, atol=10 * tolerance)


def test_no_entropy_is_above_that_of_the_uniform_distribution(x64):
    """log 2 of each number in (-1, 1); the Gaussian's own grows for ever."""
    outputs = np.stack(np.meshgrid(np.linspace(-3, 3, 13), np.linspace(-3, 1, 41)), axis=-1)
    entropy = np.asarray(squashed.entropy(outputs))
    assert 0.97 * np.log(2.0) < entropy.max() < np.log(2.0)
    two = squashed.entropy(outputs.reshape(-1, 2)[:, [0, 0, 1, 1]])
    assert_close(two, 2 * entropy.reshape(-1), 1e-13)


# KL


def test_the_categorical_kl_worked_by_hand():
    """Of (½, ½) against (¼, ¾): ½ log 2 + ½ log ⅔ = ½ log 4/3; the other way
    ¼ log ½ + ¾ log 3/2.
    """
    half, quarter = np.zeros(2), np.log([1.0, 3.0])
    assert_close(categorical_kl(half, quarter), 0.5 * np.log(4 / 3), 1e-6)
    assert_close(categorical_kl(quarter, half), 0.25 * np.log(0.5) + 0.75 * np.log(1.5), 1e-6)
    assert categorical_kl(quarter, quarter) == 0.0


@pytest.mark.parametrize("package", [distributions, twin])
def test_the_categorical_kl_of_what_becomes_nine_times_as_probable(package):
    """Of (0.9, 0.1) against (0.1, 0.9): 0.9 log 9 - 0.1 log 9; a ratio beyond which it is computed
    otherwise.
    """
    given = np.log([[0.9, 0.1], [0.1, 0.9]])
    arrays = map(jnp.array if package is distributions else torch.tensor, given)
    assert_close(float(package.categorical_kl(*arrays)), 0.8 * np.log(9.0), 1e-6)


@pytest.mark.parametrize("package", [distributions, twin])
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [(-300.0, -200.0, 0.0), (-100.0, -5.0, np.log1p(np.exp(-5.0))), (-90.0, 0.0, np.log(2.0))],
)
def test_the_categorical_kl_where_a_ratio_is_too_large_for_a_number(old, new, expected, package):
    """In float32, of (0, old) against (0, new): Σ π_old log π_old / π; and its slope is π."""
    logits = np.array([[0.0, old], [0.0, new]], np.float32)
    if package is twin:
        given = torch.tensor(logits, requires_grad=True)
        kl = package.categorical_kl(*given)
        slope = torch.autograd.grad(kl, given)[0][1]
        kl = kl.detach()
    else:
        kl, slope = jax.value_and_grad(package.categorical_kl, argnums=1)(*jnp.array(logits))
    np.testing.assert_allclose(float(kl), expected, rtol=1e-5, atol=1e-30)
    odds = np.exp(new)
    np.testing.assert_allclose(float(slope[1]), odds / (1.0 + odds), rtol=1e-5, atol=1e-30)


def test_the_gaussian_kl_worked_by_hand():
    """Of N(0, 1) against N(3, 2²): log 2 + (1 + 9) / 8 - ½; of N(3, 2²) against N(0, 1):
    -log 2 + (4 + 9) / 2 - ½; independent numbers' KLs add up.
    """
    one, other = np.zeros(2), np.array([3.0, np.log(2.0)])
    there, back = np.log(2.0) + 10 / 8 - 0.5, -np.log(2.0) + 13 / 2 - 0.5
    assert_close(gaussian_kl(one, other), there, 1e-6)
    assert_close(gaussian_kl(other, one), back, 1e-6)
    both = [np.array([x[0], y[0], x[1], y[1]]) for x, y in ((one, other), (other, one))]
    assert_close(gaussian_kl(*both), there + back, 1e-6)
    assert gaussian_kl(other, other) == 0.0


@pytest.mark.parametrize("name", KINDS)
def test_the_kls_are_what_samples_say_and_the_twins(name, rng, x64):
    """E[log π_old(a) - log π(a)] over a ~ π_old, and its numerical slopes."""
    ours, theirs = KINDS[name]
    old, new = rng.normal(size=(2, 4)) * 0.5
    uniform = rng.integers(2**23, size=(200_000, 2)[: 1 + (name != "categorical")]) * 2.0**-23
    outputs = [np.broadcast_to(x, (200_000, 4)) for x in (old, new)]
    action = ours.sample(outputs[0], uniform.astype(np.float32))
    log_old, log_new = (ours.log_prob(x, action) for x in outputs)
    sampled = np.subtract(log_old, log_new)
    found = ours.kl(old, new)
    assert abs(sampled.mean() - found) < 5 * sampled.std() / np.sqrt(sampled.size)
    assert_close(theirs.kl(*map(torch.from_numpy, (old, new))), found, 1e-14)
    check_grads(ours.kl, tuple(map(jnp.asarray, (old, new))), order=2)


@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_the_curvature_of_a_kl_is_the_fisher_matrix(name, rng, x64):
    """Of logits diag(π) - π πᵀ; of (μ, log σ) diag(1/σ², 2); and it has no slope at itself."""
    outputs = jnp.asarray(rng.normal(size=4))
    ours = {"categorical": categorical, "gaussian": gaussian}[name]
    pi = scipy.special.softmax(outputs)
    by_hand = {
        "categorical": np.diag(pi) - np.outer(pi, pi),
        "gaussian": np.diag([*np.exp(-2.0 * outputs[2:]), 2.0, 2.0]),
    }
    slope = jax.jit(jax.grad(ours.kl, argnums=1))
    assert_close(jax.jit(jax.jacfwd(slope, argnums=1))(outputs, outputs), by_hand[name], 1e-13)
    assert np.abs(slope(outputs, outputs)).max() < 1e-15
