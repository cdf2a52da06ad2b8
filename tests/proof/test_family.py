"""The family against its exact truths; planted faults against that.

Each question is asked once, of problems as small as they can be; what it finds must be what theory
says, and a fault in the library's code must make that fail.
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

from jaxpg.core import advantages, natural, noise, ppo, ring
from jaxpg.core.training import as_arrays
from jaxpg.proof import (
    cuts,
    epochs,
    family,
    finding,
    fisher,
    groups,
    judged,
    oracle,
    problems,
    tables,
)
from jaxpg.report.oracle import draw_family

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def wide(x64):
    """Every test here is float64."""


def started(problem):
    return problem, problem.networks.init(*noise.split(noise.key(1), 2))


@pytest.fixture(scope="module")
def pole():
    with jax.enable_x64(True):
        return started(problems.cartpole(4))


@pytest.fixture(scope="module")
def chain():
    with jax.enable_x64(True):
        return started(problems.tabular(2))


@pytest.fixture
def asked(monkeypatch):
    """What a question finds, by case (and x), on a problem; little of it."""
    monkeypatch.setattr(epochs, "ESTIMATORS", [epochs.ESTIMATORS[i] for i in (1, 2, 4)])
    monkeypatch.setattr(epochs, "RATES", (0.05, 0.1))
    monkeypatch.setattr(epochs, "FORMS", {"no clip": epochs.FORMS["no clip"]})
    monkeypatch.setattr(epochs, "EPOCHS", 2)
    monkeypatch.setattr(groups, "GROUP_SIZES", (2,))
    monkeypatch.setattr(fisher, "DAMPINGS", (0.0, 0.1))
    monkeypatch.setattr(fisher, "ITERATIONS", (1,))

    def ask(question, problem):
        found = [f._replace(question=question) for f in family.QUESTIONS[question][0](*problem)]
        return {(f.case, f.x) if f.x is not None else f.case: f for f in found}

    return ask


def wrong(found):
    return [case for case, f in found.items() if not finding.as_theory_says(f)]


def test_what_acting_writes_down_is_what_was_enumerated(chain, pole):
    for problem, params in (chain, pole):
        config = as_arrays(judged.PLAIN)
        t = problems.written(problem, params, judged.build(problem, config))
        log_prob = np.sum(np.asarray(t.log_prob), axis=0)  # of whole trajectories
        np.testing.assert_allclose(
            np.exp(log_prob + problem.log_dynamics),
            problems.probability(problem, params),
            rtol=1e-13,
        )
        same = problem.trajectory._replace(log_prob=t.log_prob)
        jax.tree.map(np.testing.assert_array_equal, t, same)


def test_orders_are_orders():
    assert sorted(judged.orders(2)) == [(0, 1), (1, 0)]
    pairs = {frozenset(order[:2]) for order in judged.orders(6)}
    assert len(pairs) == 15  # 6 · 5 / 2


def test_the_first_minibatch_is_unbiased_where_the_estimator_is(chain, asked):
    found = asked("first minibatch", chain)
    assert not wrong(found)
    # 3 estimators at 2 γ, of which one bootstraps from a wrong V.
    assert sum(f.expected == 0.0 for f in found.values()) == 2 * 2
    assert found["reward-to-go, none, normalised per minibatch"].amount > 0.01


def test_single_steps_say_what_the_whole_batch_says(pole, asked):
    found = asked("first steps", pole)
    assert not wrong(found)
    assert [f.expected for f in found.values()] == [0.0, 0.0, None]


def test_epochs_are_biased_by_their_step(chain, asked):
    found = asked("epochs", chain)
    assert not wrong(found)

    def bias(rate, case="epoch 2, no clip"):
        return found[case, rate].amount

    # To first order in the rate; what the batch adds by judging itself is one over its size.
    assert bias(0.1) / bias(0.05) == pytest.approx(2.0, rel=0.1)
    assert found["epoch 1, no clip", 0.1].kl == 0.0
    assert found["epoch 2, no clip", 0.1].kl > 0.0
    alone = bias(0.1, "epoch 2, no clip, batches of 1")
    assert alone > bias(0.1) > bias(0.1, "epoch 2, no clip, fresh")


def test_a_penalty_pulls_back_what_has_gone_too_far(chain, asked, monkeypatch):
    """In proportion to its weight; with almost none it is PPO without a clip."""
    forms = {
        f"penalty {weight:g}": {"fit": "ppo_penalty", "kl_coef": weight}
        for weight in (2.0**-40, 1.0, 2.0)
    }
    monkeypatch.setattr(epochs, "FORMS", {**epochs.FORMS, **forms})
    found = asked("epochs", chain)
    assert not wrong(found)
    for what in ("", ", fresh"):
        none, one, two = (found[f"epoch 2, {form}{what}", 0.1] for form in forms)
        assert none.amount == pytest.approx(found[f"epoch 2, no clip{what}", 0.1].amount, rel=1e-9)
        assert none.length - one.length == pytest.approx(one.length - two.length, rel=0.05)
        assert two.length < one.length < none.length


@pytest.mark.parametrize("fit", ["ppo", "ppo_penalty"])
def test_epochs_go_where_the_fit_goes(chain, fit):
    """The parameters at which an epoch is judged are those that the fit ends at."""
    problem, params = chain
    config = judged.config(
        estimator="reward_to_go", fit=fit, epochs=2, num_envs=1, learning_rate=0.1
    )
    batch = judged.estimate(problem, config, params, oracle.every_batch(problem, 1))
    after, gradients = judged.fit(problem, config, params, batch, judged.orders(1)[(0,)])
    start = np.asarray(natural.as_vector(params))
    np.testing.assert_allclose(start + 0.1 * gradients.sum(1), after, atol=1e-15)


def test_the_natural_direction_is_exact(chain, asked):
    found = asked("natural direction", chain)
    assert not wrong(found)
    undamped = {x: f for (case, x), f in (k for k in found.items() if isinstance(k[0], tuple))
                if case == "conjugate gradients, damping 0"}  # fmt: skip
    assert len(undamped) == 2
    assert undamped[1].amount > 0.01
    # One iteration goes along the gradient itself.
    problem, params = chain
    weight = np.asarray(problems.probability(problem, params))
    gradient = judged.gradient(problem, params, 1.0)
    direction = fisher.solve(fisher.matrix(problem, params, weight), gradient, 0.0)
    cosine = gradient @ direction / np.linalg.norm(gradient) / np.linalg.norm(direction)
    assert undamped[1].cosine == pytest.approx(cosine, abs=1e-12)


def test_the_exact_fisher_matrix_is_the_curvature_of_the_kl(chain):
    problem, params = chain
    weight = np.asarray(problems.probability(problem, params))
    start = natural.as_vector(params)
    outputs = problem.networks.policy(params, problem.trajectory.obs)
    valid = np.asarray(problem.trajectory.valid)

    def kl(policy):
        there = problem.networks.policy(judged.as_policy(params, policy), problem.trajectory.obs)
        old, new = jax.nn.log_softmax(outputs), jax.nn.log_softmax(there)
        each = jnp.sum(jnp.exp(old) * (old - new), axis=-1)
        return weight @ jnp.sum(jnp.where(valid, each, 0.0), axis=0) / np.sum(weight * valid)

    found = fisher.matrix(problem, params, weight)
    np.testing.assert_allclose(found, jax.jit(jax.hessian(kl))(start), atol=1e-13)


def test_group_baselines(chain, asked):
    found = asked("groups", chain)
    assert not wrong(found)
    assert found["mean, groups of 2"].amount == pytest.approx(0.5, abs=1e-12)
    assert found["mean, groups of 2"].cosine == pytest.approx(1.0, abs=1e-12)
    assert found["mean and deviation, groups of 2"].cosine < 0.999


def test_weights_before_a_cut(pole, asked):
    found = asked("weights before a cut", pole)
    assert not wrong(found)
    assert found["GAE(0.8): the weight of the longest", 3].length == pytest.approx(0.64, abs=1e-15)


def test_bias_before_a_cut(pole, asked, monkeypatch):
    monkeypatch.setattr(cuts, "CUTS", (2, 3, 4))
    found = asked("bias before a cut", pole)
    assert not wrong(found)
    assert found["GAE(1), wrong V", 3].amount > found["GAE(1), wrong V", 4].amount


def test_a_view_that_is_cut_is_what_collect_steps_sees(pole):
    """The first D rows of the trajectories are what `collect_steps` writes down in D steps."""
    problem, params = pole
    config = judged.config(collect="steps", num_steps=3, estimator="gae")
    cut = dataclasses.replace(problem, choices=problem.choices[:3])
    seen = problems.written(cut, params, judged.build(problem, config))
    whole = judged.trajectories(problem, params)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-14), seen, jax.tree.map(lambda x: x[:3], whole)
    )


# Faults, each planted in the library's own code, with the question that shows it.


def forgotten(original, config, algorithm, params, batch):
    """π in the place of π / π_old."""
    batch = batch._replace(log_prob=jnp.zeros_like(batch.log_prob))
    return original(config, algorithm, params, batch)


def upside_down(original, log_ratio, advantage, **clip):
    """π_old / π."""
    return original(-log_ratio, advantage, **clip)


def in_order(original, config, batch, round_keys):
    """Minibatches of neighbours: no permutation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "permute", lambda index, *_: index)
        return original(config, batch, round_keys)


def over_padding(original, x, valid):
    """A mean over all rows."""
    return original(jnp.where(valid, x, 0.0), jnp.ones_like(valid))


def twice(original, algorithm, params, batch):
    """Twice the Fisher matrix: the KL's curvature without its ½."""
    product = original(algorithm, params, batch)
    return lambda vector: 2.0 * product(vector)


def short(original, product, b, *, steps, **tolerance):
    """Conjugate gradients that stop after two steps."""
    return original(product, b, steps=jnp.minimum(steps, 2), **tolerance)


def included(original, returns):
    """An average of the others that includes one's own return."""
    return jnp.broadcast_to(jnp.mean(returns), returns.shape)


def left_out(original, psi, returns, *, std):
    """GRPO's mean without one's own return."""
    return (
        original(psi, returns, std=True) if std else psi - advantages.leave_one_out(returns)[None]
    )


def dead(original, reward, value, next_value, terminated, truncated, **coefficients):
    """A cut taken for the end of the task."""
    terminated = terminated.at[-1].set(True)
    return original(reward, value, next_value, terminated, truncated, **coefficients)


def summing_to_one(original, reward, value, next_value, terminated, truncated, **coefficients):
    """A cut that leaves the longest estimator the weight that it has without one."""
    gae_lambda = coefficients["gae_lambda"]
    next_value = next_value.at[-1].multiply(1.0 - gae_lambda)
    return original(reward, value, next_value, terminated, truncated, **coefficients)


FAULTS = {
    "old log π forgotten": (ppo, "surrogate_objective", forgotten, "first minibatch"),
    "ratio upside down": (ppo, "clipped_ratio", upside_down, "epochs"),
    "no permutation": (ppo, "minibatches", in_order, "first steps"),
    "KL over padding": (natural, "masked_mean", over_padding, "natural direction"),
    "Fisher matrix twice": (natural, "fisher_product", twice, "natural direction"),
    "two iterations": (natural, "conjugate_gradients", short, "natural direction"),
    "leave-one-out includes itself": (advantages, "leave_one_out", included, "groups"),
    "GRPO's mean leaves one out": (advantages, "relative_to_group", left_out, "groups"),
    "a cut is an end": (advantages, "gae", dead, "weights before a cut"),
    "a cut is an end of a step": (advantages, "gae", dead, "bias before a cut"),
    "the longest weighs as if uncut": (advantages, "gae", summing_to_one, "weights before a cut"),
}
PROGRAMS = (judged._estimates, judged._fits, fisher._conjugate, fisher._natural, cuts._weights)


@pytest.mark.thin(3)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault, chain, pole, asked, monkeypatch):
    where, name, change, question = FAULTS[fault]
    monkeypatch.setattr(epochs, "ESTIMATORS", epochs.ESTIMATORS[:1])
    for program in PROGRAMS:  # a compiled one would hide the fault
        program.clear_cache()
    put = monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr
    original = where[name] if isinstance(where, dict) else getattr(where, name)
    put(where, name, partial(change, original))
    on_pole = question in ("first steps", "weights before a cut", "bias before a cut")
    found = asked(question, pole if on_pole else chain)
    for program in PROGRAMS:
        program.clear_cache()
    assert wrong(found)


def on_the_page(found):
    """The tables as Markdown; there a question's title begins with a capital."""
    capital = [t._replace(title=t.title[0].upper() + t.title[1:]) for t in finding.tables(found)]
    return tables.markdown(capital)


def test_the_page_shows_its_numbers(tmp_path):
    listed = json.loads((DOCS / "oracle.json").read_text(encoding="utf-8"))["family"]
    found = [finding.Finding(**fields) for fields in listed]
    assert all(map(finding.as_theory_says, found))
    assert {f.question for f in found} == set(family.QUESTIONS)
    page = (DOCS / "oracle-family.md").read_text(encoding="utf-8")
    shown = re.findall(r"<!-- table -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert "\n".join(part.strip() + "\n" for part in shown).strip() == on_the_page(found).strip()
    draw_family(found, tmp_path / "family.png")
    assert (tmp_path / "family.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_what_theory_says_is_marked():
    right = finding.Finding("groups", "MDP", "mean", None, "∇U", 0.5, 1.0, 0.5, None, 0.5)
    assert finding.as_theory_says(right)
    for wrong in (right._replace(amount=0.6), right._replace(amount=float("nan"))):
        assert not finding.as_theory_says(wrong)
        assert "(!)" in on_the_page([wrong])
    assert not finding.as_theory_says(right._replace(amount=0.0, expected=None))
    assert "(!)" not in on_the_page([right])
