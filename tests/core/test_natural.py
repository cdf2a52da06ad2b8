"""Natural gradients: against the exact Fisher matrix, by hand, and by relations."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch
from compare import assert_close
from compiled import algorithm as built
from compiled import fitted, run
from jax.flatten_util import ravel_pytree

import torch_ref.learner
import torch_ref.natural as twin
from jaxpg import fast
from jaxpg.core import learner, natural, noise
from jaxpg.core.config import Config
from jaxpg.names import to_torch
from jaxpg.proof import batch as shared

CONFIG = Config(
    fit="trpo",
    num_envs=2,
    num_steps=24,
    total_steps=4 * 48,
    value_steps=2,
    hidden_sizes=(5,),
    activation="tanh",
    cg_steps=60,
    learning_rate=0.5,
    arithmetic="float64",
)
PENDULUM = dataclasses.replace(CONFIG, env="Pendulum-v1")
EPISODES = dataclasses.replace(CONFIG, collect="episodes")
CONVOLUTIONS = dataclasses.replace(CONFIG, env="Catch-bsuite", conv_features=(3, 2), frame_stack=2)


@pytest.fixture(autouse=True)
def _in_float64(x64):
    """All of this module's numbers are float64."""


@cache
def estimated(config, seed=0):
    """What a fit of the shared batch is given: config, parameters, batch."""
    side = shared.jax_side(shared.small(config), seed)
    params = side.state.params
    return side.config, params, run(learner.estimate, side.config, params, side.trajectory)


def solved(config, params, batch):
    """The natural gradient."""
    return run(natural.natural_gradient, config, params, batch)


def fisher(config, params, batch):
    """The whole matrix [P, P], a column for each parameter."""
    return np.array(run(_fisher, config, params, batch))


def _fisher(config, algorithm, params, batch):
    size = natural.as_vector(params).size
    return jax.vmap(natural.fisher_product(algorithm, params, batch))(jnp.eye(size)).T


def mean_kl(config, algorithm, start, params, batch):
    """KL(π of `start` ‖ π), the mean over the batch."""
    return natural.mean_kl(algorithm, algorithm.networks.policy(start, batch.obs), params, batch)


def in_vectors(params):
    """(policy's vector) -> params."""
    _, unravel = ravel_pytree(params["policy"])
    return lambda vector: {**params, "policy": unravel(vector)}


# Conjugate gradients


def test_conjugate_gradients_worked_by_hand():
    """A = diag(1, 3), b = (1, 1). α = 2/4, x = (½, ½), r = (½, -½), p = r + (½ / 2) b = (¾, -¼);
    α = ½ / (9/16 + 3/16) = ⅔, x = (1, ⅓).
    """
    matrix, b = jnp.diag(jnp.array([1.0, 3.0])), jnp.ones(2)

    def solve(steps, **options):
        return natural.conjugate_gradients(lambda v: matrix @ v, b, steps=steps, **options)

    assert_close(solve(1), [0.5, 0.5], 1e-15)
    assert_close(solve(2), [1.0, 1.0 / 3.0], 1e-15)
    assert_close(solve(50), [1.0, 1.0 / 3.0], 1e-15)  # it has stopped
    assert_close(solve(50, tolerance=0.5), [0.5, 0.5], 1e-15)  # |r|² is ½ after the first
    assert_close(solve(50, tolerance=2.0), [0.0, 0.0], 1e-15)  # and 2 before it


def test_the_bound_on_the_residual_is_absolute():
    """A right side as small as the bound has no solution but 0, one twice as large has."""
    small = jnp.full(4, np.sqrt(natural.RESIDUAL / 4))
    assert not natural.conjugate_gradients(lambda v: v, 0.999 * small, steps=9).any()
    assert_close(natural.conjugate_gradients(lambda v: v, 2.0 * small, steps=9), 2 * small, 1e-15)


def test_the_number_of_steps_may_be_traced():
    """One program for many of them, each of which ends as if it were alone; as in the twin."""
    side = np.random.default_rng(0).normal(size=(9, 9))
    matrix, b = jnp.asarray(side @ side.T + np.eye(9)), jnp.arange(1.0, 10.0)

    def solve(steps):
        return natural.conjugate_gradients(lambda v: matrix @ v, b, steps=steps)

    counts = np.array([0, 1, 4, 9], np.int32)
    together = jax.jit(jax.vmap(solve))(counts)
    assert len(np.unique(np.asarray(together), axis=0)) == len(counts)
    for steps, x in zip(counts, together, strict=True):
        assert_close(x, solve(int(steps)), 1e-14)
        theirs = twin.conjugate_gradients(
            lambda v: torch.tensor(np.asarray(matrix)) @ v,
            torch.tensor(np.asarray(b)),
            steps=torch.tensor(steps),
        )
        assert_close(x, theirs, 1e-13)


def test_what_is_not_finite_is_not_hidden():
    found = natural.conjugate_gradients(lambda v: v, jnp.array([1.0, jnp.nan]), steps=3)
    assert np.isnan(found).any()


@jax.jit
def to_the_end(matrix, b):
    """Of conjugate gradients, with a bound that nothing meets."""
    return natural.conjugate_gradients(
        partial(jnp.matmul, matrix), b, steps=b.size, tolerance=1e-30
    )


@pytest.mark.parametrize("config", [CONFIG, PENDULUM, EPISODES])
@pytest.mark.parametrize("damping", [0.1, 1e-3])
def test_the_direction_is_that_of_the_exact_fisher_matrix(config, damping):
    config, params, batch = estimated(dataclasses.replace(config, damping=damping))
    found = solved(config, params, batch)
    g = ravel_pytree(jax.tree.map(np.array, found.gradient))[0]
    damped = fisher(config, params, batch) + damping * np.eye(g.size)
    exact = np.linalg.solve(damped, g)
    assert_close(to_the_end(damped, g), exact, 1e-10)
    assert_close(found.direction, exact, 2e-5 / damping / np.linalg.norm(exact))  # |r| ≤ 1e-5
    assert_close(found.curvature, exact @ damped @ exact, 1e-3)
    assert_close(found.norm, np.linalg.norm(g), 1e-14)


@pytest.mark.parametrize("seed", [0, 1])
def test_rounding_does_not_grow_from_step_to_step(seed):
    """On the batch on which plain conjugate gradients multiply it by 10^12."""
    config = dataclasses.replace(
        PENDULUM, sigma="state", hidden_sizes=(64,), activation="relu", cg_steps=10
    )
    config, params, batch = estimated(config, seed)
    g = natural.as_vector({"policy": solved(config, params, batch).gradient})
    disturbed, plain = (run(_disturbed, config, params, batch, g, by) for by in (1e-15, 0.0))
    assert_close(disturbed, plain, 1e-12)


def _disturbed(config, algorithm, params, batch, g, by):
    """The solution with products that are rounded otherwise."""
    product = natural.fisher_product(algorithm, params, batch)

    def disturbed(v):
        return (product(v) + 0.1 * v) * (1.0 + by * jnp.cos(jnp.arange(v.size)))

    return natural.conjugate_gradients(disturbed, g, steps=10)


# The Fisher matrix


@pytest.mark.parametrize("config", [CONFIG, EPISODES])
def test_fisher_products_are_expectations_over_the_actions(config):
    """Σ_s Σ_a π(a|s) ∇ log π(a|s) ∇ log π(a|s)ᵀ / (number of valid steps), action by action."""
    config, params, batch = estimated(config)
    expected, valid = 0.0, np.array(batch.valid)
    for action in (0, 1):
        actions = np.full(batch.action.shape, action, np.int32)
        score, log_prob = map(np.array, run(_scores, config, params, batch.obs, actions))
        weight = np.exp(log_prob) * valid
        expected += np.einsum("tni,tnj,tn->ij", score, score, weight) / valid.sum()
    found = fisher(config, params, batch)
    assert_close(found, expected, 1e-13)
    assert np.linalg.eigvalsh(found).min() > -1e-14


def _scores(config, algorithm, params, obs, actions):
    """∇ log π of actions, and log π."""

    def log_prob(vector):
        outputs = algorithm.networks.policy(in_vectors(params)(vector), obs)
        return algorithm.distribution.log_prob(outputs, actions)

    vector = natural.as_vector(params)
    return jax.jacrev(log_prob)(vector), log_prob(vector)


@pytest.mark.parametrize("config", [CONFIG, PENDULUM])
def test_the_fisher_matrix_is_the_curvature_of_the_kl(config):
    """KL(θ, θ + h v) = ½ h² vᵀ F v + O(h³)."""
    config, params, batch = estimated(config)
    v = np.random.default_rng(0).normal(size=natural.as_vector(params).size)
    curvature = v @ fisher(config, params, batch) @ v
    around = [run(_kl_beside, config, params, batch, h * v) for h in (-1e-4, 1e-4)]
    assert_close(sum(around) / 1e-8, curvature, 1e-6)  # the odd terms cancel


def _kl_beside(config, algorithm, params, batch, step):
    there = in_vectors(params)(natural.as_vector(params) + step)
    return mean_kl(config, algorithm, params, there, batch)


def test_padding_has_no_part_in_it():
    config, params, batch = estimated(EPISODES)
    valid = np.array(batch.valid)
    assert not valid.all()
    other = np.where(valid[..., None], batch.obs, 7.0)
    found = fisher(config, params, batch._replace(obs=other))
    assert_close(found, fisher(config, params, batch), 1e-14)


def test_the_kl_is_that_of_the_old_policy_to_the_new():
    """Σ_a π_old (log π_old - log π), the mean over the steps."""
    config, params, batch = estimated(CONFIG)
    there = {**params, "policy": jax.tree.map(lambda x: np.array(x) + 0.3, params["policy"])}
    old, new = (
        scipy.special.log_softmax(run(_logits, config, p, batch.obs), axis=-1)
        for p in (params, there)
    )
    expected, reverse = (np.mean(np.sum(np.exp(p) * (p - q), axis=-1))
                         for p, q in ((old, new), (new, old)))  # fmt: skip
    assert abs(expected - reverse) > 0.01 * expected
    assert_close(run(mean_kl, config, params, there, batch), expected, 1e-12)


def _logits(config, algorithm, params, obs):
    return algorithm.networks.policy(params, obs)


def test_the_entropy_bonus_is_taken_off_the_surrogates_loss():
    """Of the mean of -ρ Ψ."""
    config, params, batch = estimated(dataclasses.replace(CONFIG, ent_coef=0.3))
    loss, parts = run(natural.surrogate_objective, config, params, batch)
    log_p = scipy.special.log_softmax(run(_logits, config, params, batch.obs), axis=-1)
    entropy = -np.mean(np.sum(np.exp(log_p) * log_p, axis=-1))
    chosen = np.take_along_axis(log_p, np.array(batch.action)[..., None], axis=-1)[..., 0]
    surrogate = -np.mean(np.exp(chosen - batch.log_prob) * np.array(batch.advantage))
    assert_close(parts["policy_loss"], surrogate, 1e-12)
    assert_close(loss, surrogate - 0.3 * entropy, 1e-12)


# The steps


@pytest.mark.parametrize("fit", ["npg", "trpo"])
def test_the_optimizer_is_the_critics(fit):
    before, state, seen = fitted(dataclasses.replace(CONFIG, fit=fit))
    assert set(state.opt_state) == {"value"}
    plain = dataclasses.replace(CONFIG, fit="gradient", cg_steps=10)
    _, expected, met = fitted(plain)
    for name in ("value_loss", "value_grad_norm", "policy_grad_norm"):
        assert_close(getattr(seen.metrics, name), getattr(met.metrics, name), 1e-12)
    value, other = (ravel_pytree(x.params["value"])[0] for x in (state, expected))
    assert_close(value, other, 1e-13)
    assert_close(ravel_pytree(seen.gradients["value"])[0], ravel_pytree(met.gradients["value"])[0],
                 1e-12)  # fmt: skip
    assert not np.array_equal(natural.as_vector(before.params), natural.as_vector(state.params))


def test_npg_takes_its_rate_times_the_direction():
    """The second of four updates has ¾ of the learning rate."""
    config, params, batch = estimated(dataclasses.replace(CONFIG, fit="npg"))
    found = solved(config, params, batch)
    state = learner.init(config, noise.key(0), built(fast.static(config)))
    learned = learner.Learned(params, state.opt_state, jnp.int32(1))
    after, fit = run(natural.fit_npg, config, learned, batch)
    moved = natural.as_vector(params) - natural.as_vector(after.params)
    assert_close(moved, 0.75 * config.learning_rate * found.direction, 1e-10)
    assert fit.losses["kl"] > 0


def test_one_step_of_conjugate_gradients_goes_along_the_gradient():
    """x = g · |g|² / gᵀ (F + c I) g: TRPO's is then steepest descent to KL δ."""
    config = dataclasses.replace(CONFIG, cg_steps=1)
    config, params, batch = estimated(config)
    found = solved(config, params, batch)
    g, _ = ravel_pytree(found.gradient)
    damped = fisher(config, params, batch) + config.damping * np.eye(g.size)
    assert_close(found.direction, g * (g @ g) / (g @ damped @ g), 1e-12)


def test_a_lot_of_damping_leaves_the_gradient():
    """c x → g as c → ∞."""
    config, params, batch = estimated(dataclasses.replace(CONFIG, damping=1e9))
    found = solved(config, params, batch._replace(advantage=1e6 * batch.advantage))
    assert_close(1e9 * found.direction, ravel_pytree(found.gradient)[0], 1e-8)


def test_the_direction_does_not_depend_on_how_the_policy_is_parametrised():
    """Without damping: with θ = M φ the step in φ is M⁻¹ times that in θ. A tabular softmax."""
    rng = np.random.default_rng(0)
    transform = jnp.asarray(np.eye(4) + 0.3 * rng.normal(size=(4, 4)))
    config, params, batch = estimated(dataclasses.replace(CONFIG, damping=0.0))
    algorithm = built(fast.static(config))

    @jax.jit
    def direction(transform):
        """Of a policy with the logits (obs · θ, 0), whose Fisher matrix is not singular."""

        def policy(params, obs):
            logit = obs @ (transform @ params["policy"]["weight"])
            return jnp.stack([logit, jnp.zeros_like(logit)], axis=-1)

        given = algorithm._replace(networks=algorithm.networks._replace(policy=policy))
        start = jnp.linalg.solve(transform, jnp.array([0.2, -0.4, 0.1, 0.3]))
        mine = {**params, "policy": {"weight": start}}
        return natural.natural_gradient(config, given, mine, batch).direction

    plain = direction(jnp.eye(4))
    assert_close(transform @ direction(transform), plain, 1e-4)  # |r|² ≤ 1e-10
    assert np.linalg.norm(direction(transform) - plain) > 0.05 * np.linalg.norm(plain)


@pytest.mark.parametrize("config", [CONFIG, PENDULUM, EPISODES])
@pytest.mark.parametrize("max_kl", [1e-3, 0.1, 3.0])
def test_trpo_accepts_what_is_near_and_better(config, max_kl):
    config = dataclasses.replace(config, max_kl=max_kl, damping=1e-4)
    config, params, batch = estimated(config)
    found = solved(config, params, batch)
    step = natural.step_length(found.curvature, max_kl=max_kl) * found.direction
    after, told = run(natural.line_search, config, params, batch, step)
    assert_close(run(mean_kl, config, params, after, batch), told["kl"], 1e-10)
    assert told["kl"] <= max_kl
    moved = natural.as_vector(params) - natural.as_vector(after)
    losses = [run(natural.surrogate_objective, config, p, batch)[0] for p in (params, after)]
    if told["accepted"]:
        share = np.linalg.norm(moved) / np.linalg.norm(step)
        tried = np.log(share) / np.log(natural.SHRINK)
        assert abs(tried - round(tried)) < 1e-9
        assert_close(moved, share * step, 1e-9)
        assert losses[1] < losses[0]
    else:
        assert not moved.any()
        assert told["kl"] == 0.0
    assert_close(0.5 * step @ (fisher(config, params, batch) @ step)
                 + 0.5 * 1e-4 * step @ step, max_kl, 1e-9)  # fmt: skip


def test_no_step_where_nothing_can_improve():
    """Ψ = 0: there is no gradient. Ψ > 0 for actions that are certain: nor one that helps."""
    config, params, batch = estimated(CONFIG)
    nothing = batch._replace(advantage=np.zeros_like(batch.advantage))
    found = solved(config, params, nothing)
    assert natural.step_length(found.curvature, max_kl=0.01) == 0.0
    uphill = -solved(config, params, batch).direction
    for step, given in ((found.direction, nothing), (1e-3 * uphill, batch)):
        after, told = run(natural.line_search, config, params, given, step)
        assert told["accepted"] == 0.0
        np.testing.assert_array_equal(natural.as_vector(after), natural.as_vector(params))


def test_the_line_search_takes_the_first_length_that_is_near_enough():
    """A step ten times too long is shortened; with one attempt it is refused."""
    config, params, batch = estimated(CONFIG)
    found = solved(config, params, batch)
    step = 3.0 * natural.step_length(found.curvature, max_kl=config.max_kl) * found.direction
    _, told = run(natural.line_search, config, params, batch, step)
    assert told["accepted"] == 1.0
    assert told["kl"] <= config.max_kl < told["full_kl"]
    once = dataclasses.replace(config, backtrack_steps=1)
    after, told = run(natural.line_search, once, params, batch, step)
    assert (told["accepted"], told["kl"]) == (0.0, 0.0)
    np.testing.assert_array_equal(natural.as_vector(after), natural.as_vector(params))


def test_metrics_are_those_that_the_config_announces():
    for fit in ("npg", "trpo"):
        config = dataclasses.replace(CONFIG, fit=fit)
        _, _, seen = fitted(config)
        assert all(np.isfinite(getattr(seen.metrics, name)) for name in config.reports)
        named = set(seen.metrics.named())
        assert named - set(config.reports) == set(seen.metrics._fields) - set(
            seen.metrics._field_defaults
        )


# The twin


@pytest.mark.parametrize("config", [CONFIG, PENDULUM, EPISODES, CONVOLUTIONS])
def test_the_twins_direction_is_the_same(config):
    config = dataclasses.replace(config, cg_steps=10, damping=1e-3)
    traced, params, batch = estimated(config)
    found = solved(traced, params, batch)
    side = shared.torch_side(shared.small(config))
    met = torch_ref.learner.estimate(
        side.config, side.algorithm, side.state.params, side.trajectory
    )
    theirs = twin.natural_gradient(side.config, side.algorithm, side.state.params, met)
    _, unravel = ravel_pytree(params["policy"])
    ours = to_torch({"policy": unravel(found.direction)})
    names = [f"policy.{name}" for name, _ in side.state.params["policy"].named_parameters()]
    expected = np.concatenate([np.array(ours[name]).ravel() for name in names])
    assert_close(theirs.direction, expected, 1e-12)
    assert_close(theirs.curvature, found.curvature, 1e-12)
    v = torch.from_numpy(np.random.default_rng(0).normal(size=expected.size))
    product = twin.fisher_product(side.algorithm, side.state.params, met)
    assert_close(product(2.0 * v), 2.0 * product(v), 1e-14)  # and it may be asked again
