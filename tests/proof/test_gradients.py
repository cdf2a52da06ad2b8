"""jaxpg against torch_ref on shared synthetic batches: loss, every gradient leaf, one update.

Every combination of choices, on `jaxpg.proof.batch`. That faults are seen is `test_proof`'s to
show. One step of the policy gradient runs op by op, with scans as Python loops, which takes less
than compiling it; that jit changes nothing is `test_learner`'s to show.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_ref
from jaxpg import fast, parity
from jaxpg.core import learner
from jaxpg.core.algorithms import PLAIN
from jaxpg.core.config import TRAITS, Config, ConfigError
from jaxpg.core.noise import ROUNDS
from jaxpg.core.rules import validate
from jaxpg.core.types import Learned
from jaxpg.names import to_torch
from jaxpg.proof import batch, pairs, synthetic

# Relative to each leaf's norm. In float32 the leaves of a gradient that cancel lose most: where
# 60 terms of norm 1 add to 0.1, rounding by 6e-8 each is 4e-5 of the sum.
TOLERANCE = {"float32": 5e-5, "float64": 1e-12}
# RMSprop and Adam divide by |g| + 1e-8: a rounding error of 4e-17 in an entry of 8e-8, the rest of
# its leaf near 1, becomes 3e-12 in the parameter (one of the 13,968 combinations).
STEP_TOLERANCE = {"float32": 5e-5, "float64": 1e-11}

# "env" stands for the distribution: Pendulum's is a Gaussian, with a sigma of either kind, or
# squashed; Dials' is of choices at once, some of them masked.
CHOICES: dict[str, tuple] = {
    "estimator": ("total_return", "reward_to_go", "td_error", "gae"),
    "baseline": ("none", "constant", "value"),
    "discounting": ("relative", "absolute"),
    "collect": ("steps", "episodes"),
    "value_target": ("monte_carlo", "td0", "lambda_return"),
    "value_data": ("batch", "replay"),
    "networks": ("separate", "shared"),
    "env": (
        "CartPole-v1",
        "Pendulum-v1 free",
        "Pendulum-v1 state",
        "Pendulum-v1 squashed",
        synthetic.DIALS,
    ),
    "reduction": ("steps", "trajectories"),
    "normalize_advantage": (False, True),
    "optimizer": ("sgd", "adam", "rmsprop"),
    "max_grad_norm": (None, 0.02),  # 0.02 is below every gradient's norm here: active
    "ent_coef": (0.0, 0.1),
}
# Those that decide whether a combination has a meaning; any values of the others go with them.
MEANING = (
    "estimator",
    "baseline",
    "discounting",
    "collect",
    "value_target",
    "value_data",
    "networks",
)
# What the other fits see of a config; Ψ is a constant to them, whatever it was estimated from.
FITS: dict[str, tuple] = {
    "fit": ("ppo", "ppo_penalty", "npg", "trpo"),
    "collect": ("steps", "episodes"),
    "reduction": ("steps", "trajectories", "trajectory_means"),
    "networks": ("separate", "joint", "shared"),
    "baseline": ("value", "none"),
    "normalized": ("not", "batch", "minibatch"),
    "clip_value": (None, 0.05),
    "target_kl": (None, 0.1),
    "env": CHOICES["env"],
    "optimizer": CHOICES["optimizer"],
    "max_grad_norm": CHOICES["max_grad_norm"],
    "ent_coef": CHOICES["ent_coef"],
}
USUAL = {
    "collect": "episodes",
    "value_target": "monte_carlo",
    "value_data": "batch",
    "env": "CartPole-v1",
    "normalize_advantage": False,
    "optimizer": "sgd",
    "max_grad_norm": None,
    "ent_coef": 0.1,
}


def config_of(choices: dict[str, Any], **changes: Any) -> Config:
    """The config that a choice for each of CHOICES names, with numbers for small batches."""
    env, *how = choices["env"].split()
    return Config(
        **{
            **choices,
            "env": env,
            "sigma": "state" if how == ["state"] else "free",
            "squash": how == ["squashed"],
            "num_envs": synthetic.N,
            "num_steps": synthetic.T,
            "max_episode_steps": synthetic.T,
            "total_steps": 4 * synthetic.N * synthetic.T,
            "total_episodes": 4 * synthetic.N,  # four updates, so that the schedule shows
            "gamma": 0.9,
            "gae_lambda": 0.8,
            "value_steps": 1 if choices["networks"] == "shared" else 2,
            "buffer_size": 20,  # fewer than a batch's valid rows: the ring wraps
            "batch_size": 16,
            "hidden_sizes": (5,),
            "activation": "tanh",
            "learning_rate": 1e-2,
            "value_learning_rate": 3e-2,
            **changes,
        }
    )


def config_of_fit(choices: dict[str, Any]) -> Config:
    """The same for FITS: two epochs of a few minibatches, or a few steps of conjugate gradients."""
    fields = dict(choices)
    normalized, networks = fields.pop("normalized"), fields["networks"]
    if networks == "joint":
        fields |= {"networks": "separate", "joint_loss": True}
    if TRAITS[fields["fit"]].minibatched:
        fields |= {"epochs": 2, "minibatches": 2 if fields["collect"] == "steps" else synthetic.N}
    critic = fields["baseline"] == "value"
    return config_of(
        fields,
        estimator="gae" if critic else "reward_to_go",
        value_target="lambda_return" if critic else "monte_carlo",
        normalize_advantage=normalized != "not",
        normalize_over="minibatch" if normalized == "minibatch" else "batch",
        value_steps=1 if "epochs" in fields or networks != "separate" else 2,
        cg_steps=4,
        max_kl=0.1,
        arithmetic="float64",
    )


def exists(choices: dict[str, Any]) -> bool:
    """Whether the combination has a meaning, and is not another one by a different name."""
    try:
        config = validate((config_of_fit if "fit" in choices else config_of)(choices))
    except ConfigError:
        return False
    one_name = config.value_target == "monte_carlo" and config.value_data == "batch"
    return config.critic or one_name


def combinations(**fixed: Any) -> list[dict[str, Any]]:
    """Every combination of CHOICES that exists and agrees with `fixed`, whose values are tuples."""
    return meaningful({**CHOICES, **fixed}, MEANING)


def meaningful(axes: dict[str, tuple], meaning: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination that exists, where only choices of `meaning` decide whether it does."""
    free = {name: values for name, values in axes.items() if name not in meaning}
    some = {name: values[0] for name, values in free.items()}
    return [
        {**choices, **rest}
        for choices in product({name: axes[name] for name in meaning})
        if exists({**choices, **some})
        for rest in product(free)
    ]


def product(axes: dict[str, tuple]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def pairwise(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few of them that hold every pair of choices that any of them holds (greedy cover)."""
    numbers = [
        np.unique([str(c[name]) for c in candidates], return_inverse=True)[1]
        for name in candidates[0]
    ]
    most = max(map(np.max, numbers)) + 1
    pairs = np.stack(
        [
            (place * most + one) * most + other
            for place, (one, other) in enumerate(itertools.combinations(numbers, 2))
        ],
        axis=1,
    )
    missing, chosen = np.zeros(pairs.max() + 1, bool), []
    missing[pairs] = True
    while missing.any():
        best = missing[pairs].sum(axis=1).argmax()
        missing[pairs[best]] = False
        chosen.append(candidates[best])
    return chosen


def name_of(choices: dict[str, Any]) -> str:
    return "-".join(str(value) for value in choices.values())


def assert_results(
    actual: dict[str, Any],
    expected: dict[str, Any],
    config: Config,
    tolerances: dict[str, float] = TOLERANCE,
    **options: Any,
) -> None:
    """Arrays by their norm; scalars, sums of terms of size 1 that may cancel, by at least 1."""
    scale = {
        name: np.asarray(leaf) if np.ndim(leaf) and np.any(leaf) else max(1.0, np.abs(leaf).max())
        for name, leaf in actual.items()
    }
    tolerance = tolerances[config.float_type]
    parity.assert_close(actual, expected, tolerance=tolerance, scale=scale, **options)


def assert_gradients_agree(config: Config) -> None:
    """Ψ, target, objectives and gradient leaves are those of the twin, and no leaf is zero."""
    with jax.enable_x64(config.float_type == "float64"):
        side = batch.jax_side(config)
        inputs = (side.config, side.algorithm, side.state.params, side.trajectory)
        results, gradient = batch.gradients(*inputs)
        expected, their_gradient = batch.torch_gradients(batch.torch_side(config))
        assert_results(results, expected, config)
        assert_results(to_torch(gradient), their_gradient, config)


def assert_updates_agree(config: Config, count: int = 2) -> None:
    """Parameters and metrics after some updates are those of the twin."""
    with jax.enable_x64(config.float_type == "float64"):
        ours, theirs = batch.jax_side(config), batch.torch_side(config)
        state, twin = ours.state, theirs.state
        for _ in range(count):
            state, metrics = learner.update(ours.config, state, ours.algorithm)
            twin, expected = torch_ref.update(theirs.config, twin, theirs.algorithm)
        assert_results(metrics.named(), expected.named(), config, allow_zero="value_*")
        tolerances = TOLERANCE if config.optimizer == "sgd" else STEP_TOLERANCE
        assert_results(to_torch(state.params), twin.params.state_dict(), config, tolerances)
        if config.max_grad_norm is not None:
            assert expected.policy_grad_norm > config.max_grad_norm, "clipping is not active"


def assert_fits_agree(choices: dict[str, Any]) -> None:
    """Every gradient that an optimizer is given, every metric, parameter and what a fit keeps are
    the twin's."""
    config = config_of_fit(choices)
    bits = np.random.default_rng(1).integers(2**32, size=(config.epochs, ROUNDS), dtype=np.uint32)
    order = bits if config.minibatched else None
    with jax.enable_x64(True):
        side = batch.jax_side(config)

        @jax.jit
        def learn(config: Config, *inputs: Any) -> tuple:
            return learner.learn(config, side.algorithm, *inputs)

        start = Learned(side.state.params, side.state.opt_state, jnp.int32(1), side.state.fit_state)
        inputs = (side.config, start, side.trajectory, None)
        learned, _, ours = learn(*inputs, None if order is None else jnp.asarray(order))
    twin = batch.torch_side(config)
    state = twin.state
    begin = torch_ref.types.Learned(state.params, state.opt_state, 1, state.fit_state)
    inputs = (twin.config, twin.algorithm, begin, twin.trajectory, None)
    after, _, theirs = torch_ref.learner.learn(*inputs, order)

    gradients = pairs.our_gradients_by_step(ours.gradients)
    expected = pairs.their_gradients_by_step(theirs.gradients)
    assert_results(gradients, expected, config, allow_zero=True)  # that of a step that is left out
    names = {name.partition(".")[2] for name in gradients}
    assert names == {leaf.partition(".")[2] for leaf, x in gradients.items() if np.any(x)}
    assert_results(ours.losses, theirs.losses, config, allow_zero=True)
    tolerances = TOLERANCE if config.optimizer == "sgd" else STEP_TOLERANCE
    assert_results(to_torch(learned.params), twin.state.params.state_dict(), config, tolerances)
    if learned.fit_state is not None:
        assert float(learned.fit_state) == float(after.fit_state)


@pytest.fixture
def op_by_op(monkeypatch):
    """Plain primitives, and loops in Python (tests/fast has the others)."""

    def scan(step, carry, inputs=None, length=None, reverse=False):
        length = len(jax.tree.leaves(inputs)[0]) if length is None else length
        outputs = [None] * length
        for t in reversed(range(length)) if reverse else range(length):
            carry, outputs[t] = step(carry, jax.tree.map(lambda x: x[t], inputs))
        return carry, jax.tree.map(lambda *rows: jnp.stack(rows), *outputs)

    uncompiled = PLAIN._replace(scan=scan, steps=scan)
    monkeypatch.setattr(fast, "primitives", lambda config: uncompiled)


EAGER = pytest.mark.usefixtures("op_by_op")
USUALLY = {name: (value,) for name, value in USUAL.items()}
EXISTING = combinations(**USUALLY)
PAIRS = pairwise(combinations())
OF_FITS = tuple(
    name for name in FITS if name not in ("env", "optimizer", "max_grad_norm", "ent_coef")
)
EVERY_FIT = meaningful(FITS, OF_FITS)
PAIRS_OF_FITS = pairwise(EVERY_FIT)


@EAGER
@pytest.mark.parametrize("float_type", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("choices", PAIRS, ids=name_of)
def test_every_pair_of_choices(choices, float_type):
    config = config_of(choices, arithmetic=float_type)
    assert_gradients_agree(config)
    assert_updates_agree(config)


@pytest.mark.parametrize("choices", PAIRS_OF_FITS, ids=name_of)
def test_every_pair_of_choices_of_the_other_fits(choices):
    assert_fits_agree(choices)


@EAGER
def test_a_replay_ring_that_is_still_filling():
    """60 rows in a ring of 150: the first batch of 100 has 40 rows that do not count."""
    choices = {**EXISTING[-1], "value_target": "td0", "value_data": "replay", "collect": "steps"}
    choices |= {"estimator": "td_error", "baseline": "value", "networks": "separate"}
    sizes = {"buffer_size": 150, "batch_size": 100}
    assert_updates_agree(config_of(choices, arithmetic="float64", **sizes), count=4)


def test_the_pairs_are_covered():
    """A few of 23,280 combinations hold each pair of choices that any of them holds."""

    def pairs_of(some):
        return {pair for choices in some for pair in itertools.combinations(choices.items(), 2)}

    every = combinations()
    assert pairs_of(PAIRS) == pairs_of(every)
    assert len(PAIRS) < 30 < 10_000 < len(every)
    assert pairs_of(PAIRS_OF_FITS) == pairs_of(EVERY_FIT)
    assert len(PAIRS_OF_FITS) < 30 < 5_000 < len(EVERY_FIT)


GROUPED_BY = ("estimator", "baseline", "discounting", "networks")
GROUPS = sorted({tuple(choices[name] for name in GROUPED_BY) for choices in EXISTING})


@EAGER
@pytest.mark.slow
@pytest.mark.parametrize(GROUPED_BY, GROUPS, ids=map("-".join, GROUPS))
def test_every_combination_that_exists(estimator, baseline, discounting, networks):
    """13,968 in all, with three of the distributions; gradients do not depend on what is done with
    them, updates do.
    """
    fixed = {
        "estimator": (estimator,),
        "baseline": (baseline,),
        "discounting": (discounting,),
        "networks": (networks,),
        "env": CHOICES["env"][:3],
    }
    alone = {"value_data": "batch", "optimizer": "sgd", "max_grad_norm": None}
    for choices in combinations(**fixed):
        config = config_of(choices, arithmetic="float64")
        try:
            if alone.items() <= choices.items():
                assert_gradients_agree(config)
            assert_updates_agree(config, count=1)
        except AssertionError as error:
            raise AssertionError(name_of(choices)) from error


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS["fit"])
def test_every_combination_that_a_fit_sees(fit):
    """Optimizers, clipped or not, by turns: what is done with gradients is another test's."""
    steps = itertools.cycle(itertools.product(FITS["optimizer"], FITS["max_grad_norm"]))
    some = {**FITS, "fit": (fit,), "optimizer": ("sgd",), "max_grad_norm": (None,)}
    for choices in meaningful(some, OF_FITS):
        optimizer, bound = next(steps)
        choices |= {"optimizer": optimizer, "max_grad_norm": bound}
        try:
            assert_fits_agree(choices)
        except AssertionError as error:
            raise AssertionError(name_of(choices)) from error
