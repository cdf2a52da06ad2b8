"""jaxpg against torch_ref on shared synthetic batches: loss, every gradient leaf, one update.

`collect` is replaced by a function that returns the batch; the starting parameters go through
`torch_ref.convert`. jax runs op by op with scans as Python loops, because compiling a program for
each configuration would take seconds; that jit changes nothing is `test_learner`'s to show.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
import torch
from compare import assert_close

import jaxpg.training
import torch_ref.advantages
import torch_ref.algorithms
import torch_ref.learner
import torch_ref.losses
import torch_ref.training
from jaxpg import algorithms, learner, losses, noise
from jaxpg.config import Config, ConfigError, validate
from torch_ref import convert
from torch_ref import noise as torch_noise

# Relative to each leaf's norm. In float32 the leaves of a gradient that cancel lose most: where
# 60 terms of norm 1 add to 0.1, rounding by 6e-8 each is 4e-5 of the sum.
TOLERANCE = {"float32": 5e-5, "float64": 1e-12}

# "env" stands for the distribution: Pendulum's is a Gaussian, with a sigma of either kind.
CHOICES: dict[str, tuple] = {
    "estimator": ("total_return", "reward_to_go", "td_error", "gae"),
    "baseline": ("none", "constant", "value"),
    "discounting": ("relative", "absolute"),
    "collect": ("steps", "episodes"),
    "value_target": ("monte_carlo", "td0", "lambda_return"),
    "value_data": ("batch", "replay"),
    "networks": ("separate", "shared"),
    "env": ("CartPole-v1", "Pendulum-v1 free", "Pendulum-v1 state"),
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
    env, *sigma = choices["env"].split()
    return Config(
        **{
            **choices,
            "env": env,
            "sigma": sigma[0] if sigma else "free",
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


def exists(choices: dict[str, Any]) -> bool:
    """Whether the combination has a meaning, and is not another one by a different name."""
    try:
        config = validate(config_of(choices))
    except ConfigError:
        return False
    one_name = config.value_target == "monte_carlo" and config.value_data == "batch"
    return config.critic or one_name


def combinations(**fixed: Any) -> list[dict[str, Any]]:
    """Every combination that exists and agrees with `fixed`, whose values are tuples."""
    axes = {**CHOICES, **fixed}
    meaning = {name: axes[name] for name in MEANING}
    free = {name: values for name, values in axes.items() if name not in MEANING}
    some = {name: values[0] for name, values in free.items()}
    return [
        {**choices, **rest}
        for choices in product(meaning)
        if exists({**choices, **some})
        for rest in product(free)
    ]


def product(axes: dict[str, tuple]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def pairwise(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few of them that hold every pair of choices that any of them holds (greedy cover)."""
    numbers: dict[tuple, int] = {}
    pairs = np.array(
        [
            [
                numbers.setdefault(pair, len(numbers))
                for pair in itertools.combinations(c.items(), 2)
            ]
            for c in candidates
        ]
    )
    missing, chosen = np.ones(len(numbers), bool), []
    while missing.any():
        best = missing[pairs].sum(axis=1).argmax()
        missing[pairs[best]] = False
        chosen.append(candidates[best])
    return chosen


def name_of(choices: dict[str, Any]) -> str:
    return "-".join(str(value) for value in choices.values())


class Side(NamedTuple):
    """One package, ready to update."""

    config: Any
    algorithm: Any
    state: Any
    trajectory: Any


def both_sides(config: Config) -> tuple[Side, Side]:
    """jaxpg and torch_ref with the same parameters and the same synthetic batch."""
    distribution = "categorical" if config.env == "CartPole-v1" else "gaussian"
    fields = synthetic.arrays(config.collect, distribution)
    ours = jax_side(config, synthetic.for_jax(fields, config.float_type))
    batch = synthetic.for_torch(fields, config.float_type)
    return ours, torch_side(config, batch, ours.state.params)


def jax_side(config: Config, trajectory: Any) -> Side:
    traced = jaxpg.training.as_arrays(validate(config))
    algorithm = algorithms.build(traced)._replace(collect=replay(trajectory))
    state = learner.init(traced, noise.key(0), algorithm)
    rng = np.random.default_rng(1)
    params = jax.tree.map(  # away from the start, where log σ is 0
        lambda x: x + jnp.asarray(rng.normal(size=x.shape, scale=0.2), x.dtype), state.params
    )
    return Side(traced, algorithm, state._replace(params=params), trajectory)


def torch_side(config: Config, trajectory: Any, params: Any) -> Side:
    fields = dataclasses.asdict(config)
    traced = torch_ref.training.as_tensors(torch_ref.config.validate(torch_ref.Config(**fields)))
    algorithm = torch_ref.build(traced)._replace(collect=replay(trajectory))
    state = torch_ref.init(traced, torch_noise.key(0), algorithm)
    state.params.load_state_dict(convert.to_torch(params))
    return Side(traced, algorithm, state, trajectory)


def replay(trajectory: Any) -> Any:
    """A `collect` that returns this trajectory."""
    return lambda env, act, params, state, noise: (state, trajectory)


def flat(tree: Any) -> dict[str, Any]:
    """{"network/layer/leaf": array}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def jax_gradients(side: Side) -> dict[str, Any]:
    """Ψ, the target, the objective(s) and each gradient leaf."""
    config, algorithm, state, trajectory = side
    params = state.params
    advantage, target = learner.estimate(config, algorithm, params, trajectory)

    def policy(params):
        return learner.policy_objective(config, algorithm, params, trajectory, advantage)[0]

    def value(params):
        value = algorithm.networks.value(params, trajectory.obs)
        return losses.value_loss(value, target, trajectory.valid)

    def joint(params):
        return learner.joint_objective(config, algorithm, params, trajectory, advantage, target)[0]

    objectives = {"joint": joint} if config.networks == "shared" else {"policy": policy}
    if config.critic and config.networks == "separate":
        objectives["value"] = value
    results = {"advantage": advantage, "target": target}
    for name, objective in objectives.items():
        results[name], gradient = jax.value_and_grad(objective)(params)
        mine = gradient if name == "joint" else {name: gradient[name]}
        results |= {f"grad {leaf}": array for leaf, array in flat(mine).items()}
    return results


def torch_gradients(side: Side) -> dict[str, Any]:
    """The same by torch's autograd."""
    config, algorithm, state, trajectory = side
    module, params = torch_ref.learner, state.params
    advantage, target = module.estimate(config, algorithm, params, trajectory)
    inputs = (config, algorithm, params, trajectory, advantage)
    if config.networks == "shared":
        objectives = {"joint": module.joint_objective(*inputs, target)[0]}
    else:
        objectives = {"policy": module.policy_objective(*inputs)[0]}
        if config.critic:
            value = algorithm.networks.value(params, trajectory.obs)
            objectives["value"] = torch_ref.losses.value_loss(value, target, trajectory.valid)
    sum(objectives.values()).backward()
    gradients = {name: param.grad for name, param in params.named_parameters()}
    scalars = {name: objective.detach() for name, objective in objectives.items()}
    results = {"advantage": advantage, "target": target, **scalars}
    return results | {f"grad {k}": v for k, v in flat(convert.to_flax(gradients)).items()}


def jax_updates(side: Side, count: int) -> dict[str, Any]:
    """Parameters and metrics after `count` updates on the same batch."""
    state = side.state
    for _ in range(count):
        state, metrics = learner.update(side.config, state, side.algorithm)
    return {**flat(state.params), **metrics._asdict()}


def torch_updates(side: Side, count: int) -> dict[str, Any]:
    state = side.state
    for _ in range(count):
        state, metrics = torch_ref.update(side.config, state, side.algorithm)
    return {**flat(convert.to_flax(state.params.state_dict())), **metrics._asdict()}


def assert_results(actual: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Arrays by their norm; scalars, sums of terms of size 1 that may cancel, by at least 1."""
    assert sorted(actual) == sorted(expected)
    for name, leaf in expected.items():
        scale = max(1.0, abs(float(leaf))) if np.ndim(leaf) == 0 else None
        assert_close(actual[name], leaf, tolerance, name, scale=scale)


def assert_gradients_agree(config: Config, plant: Any = lambda twin: twin) -> None:
    """Ψ, target, losses and gradient leaves are those of the twin; `plant` may spoil it first."""
    with jax.enable_x64(config.float_type == "float64"):
        ours, twin = both_sides(config)
        expected = torch_gradients(plant(twin))
        assert_results(jax_gradients(ours), expected, TOLERANCE[config.float_type])
        for name, leaf in expected.items():
            assert not name.startswith("grad") or np.any(leaf), f"{name} is 0 and shows nothing"


def assert_updates_agree(config: Config, plant: Any = lambda twin: twin, count: int = 2) -> None:
    """Parameters and metrics after some updates are those of the twin."""
    with jax.enable_x64(config.float_type == "float64"):
        ours, twin = both_sides(config)
        expected = torch_updates(plant(twin), count)
        assert_results(jax_updates(ours, count), expected, TOLERANCE[config.float_type])
        if config.max_grad_norm is not None:
            assert expected["policy_grad_norm"] > config.max_grad_norm, "clipping is not active"


@pytest.fixture(autouse=True)
def scans_are_loops(monkeypatch):
    """jax.lax.scan as a Python loop, which compiles nothing."""

    def scan(step, carry, inputs=None, length=None, reverse=False):
        length = len(jax.tree.leaves(inputs)[0]) if length is None else length
        outputs = [None] * length
        for t in reversed(range(length)) if reverse else range(length):
            carry, outputs[t] = step(carry, jax.tree.map(lambda x: x[t], inputs))
        return carry, jax.tree.map(lambda *rows: jnp.stack(rows), *outputs)

    monkeypatch.setattr(jax.lax, "scan", scan)


USUALLY = {name: (value,) for name, value in USUAL.items()}
FIRST = combinations(**USUALLY)
SECOND = combinations(
    **{**USUALLY, "optimizer": CHOICES["optimizer"], "max_grad_norm": CHOICES["max_grad_norm"]},
    estimator=("gae",),
    discounting=("relative",),
    reduction=("steps",),
)
THIRD = pairwise(combinations())


@pytest.mark.parametrize("choices", FIRST, ids=name_of)
def test_estimator_baseline_discounting_loss_and_network(choices):
    config = config_of(choices, arithmetic="float64")
    assert_gradients_agree(config)
    assert_updates_agree(config, count=1)


@pytest.mark.parametrize("choices", SECOND, ids=name_of)
def test_optimizer_clipping_and_network(choices):
    assert_updates_agree(config_of(choices, arithmetic="float64"), count=3)


@pytest.mark.parametrize("float_type", ["float64", "float32"])
@pytest.mark.parametrize("choices", THIRD, ids=name_of)
def test_every_pair_of_choices(choices, float_type):
    config = config_of(choices, arithmetic=float_type)
    assert_gradients_agree(config)
    assert_updates_agree(config)


def test_a_replay_ring_that_is_still_filling():
    """60 rows in a ring of 150: the first batch of 100 has 40 rows that do not count."""
    choices = {**FIRST[-1], "value_target": "td0", "value_data": "replay", "collect": "steps"}
    choices |= {"estimator": "td_error", "baseline": "value", "networks": "separate"}
    sizes = {"buffer_size": 150, "batch_size": 100}
    assert_updates_agree(config_of(choices, arithmetic="float64", **sizes), count=4)


def test_the_pairs_are_covered():
    """20 of 13,968 combinations hold each pair of choices that any of them holds."""

    def pairs(some):
        return {pair for choices in some for pair in itertools.combinations(choices.items(), 2)}

    every = combinations()
    assert pairs(THIRD) == pairs(every)
    assert len(THIRD) < 30 < 10_000 < len(every)


GROUPED_BY = ("estimator", "baseline", "discounting", "networks")
GROUPS = sorted({tuple(choices[name] for name in GROUPED_BY) for choices in FIRST})


@pytest.mark.slow
@pytest.mark.parametrize(GROUPED_BY, GROUPS, ids=map("-".join, GROUPS))
def test_every_combination_that_exists(estimator, baseline, discounting, networks):
    """13,968 in all; gradients do not depend on what is done with them, updates do."""
    fixed = {
        "estimator": (estimator,),
        "baseline": (baseline,),
        "discounting": (discounting,),
        "networks": (networks,),
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


# Negative controls: a fault planted in the twin must be seen.


def with_config(twin: Side, **changes: Any) -> Side:
    return twin._replace(config=dataclasses.replace(twin.config, **changes))


def with_part(twin: Side, **parts: Any) -> Side:
    return twin._replace(algorithm=twin.algorithm._replace(**parts))


def with_rows(twin: Side, **fields: Any) -> Side:
    trajectory = twin.trajectory._replace(**fields)
    return with_part(twin, collect=replay(trajectory))._replace(trajectory=trajectory)


def gamma_off_by_1e_7(twin: Side) -> Side:
    return with_config(twin, gamma=twin.config.gamma + 1e-7)


def lambda_off_by_1e_7(twin: Side) -> Side:
    return with_config(twin, gae_lambda=twin.config.gae_lambda + 1e-7)


def truncation_as_termination(twin: Side) -> Side:
    t = twin.trajectory
    ended = t.terminated | t.truncated
    return with_rows(twin, terminated=ended, truncated=torch.zeros_like(ended))


def next_row_as_successor(twin: Side) -> Side:
    return with_rows(twin, next_obs=twin.trajectory.obs.roll(-1, 0))


def mask_off_by_one(twin: Side) -> Side:
    return with_rows(twin, valid=twin.trajectory.valid.roll(1, 0))


def time_off_by_one(twin: Side) -> Side:
    return with_rows(twin, time=twin.trajectory.time + 1)


def entropy_sign(twin: Side) -> Side:
    d = twin.algorithm.distribution
    return with_part(twin, distribution=d._replace(entropy=lambda outputs: -d.entropy(outputs)))


def mean_instead_of_sum(twin: Side) -> Side:
    return with_part(twin, policy_loss=torch_ref.losses.policy_loss_steps)


def normalized(twin: Side, normalize: Any) -> Side:
    """The twin with another `normalize` of the Ψ that it would not have normalised."""
    config = dataclasses.replace(twin.config, normalize_advantage=False)
    plain = torch_ref.algorithms.make_advantage(config)

    def advantage(trajectory: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        psi, valid = plain(trajectory, *args, **kwargs), trajectory.valid
        return torch.where(valid, normalize(psi, psi[valid]), 0.0)

    return with_part(twin, advantage=advantage)


def ddof_1(twin: Side) -> Side:
    return normalized(twin, lambda psi, some: (psi - some.mean()) / (some.std() + 1e-8))


def epsilon_inside_the_root(twin: Side) -> Side:
    return normalized(
        twin, lambda psi, some: (psi - some.mean()) / (some.var(correction=0) + 1e-8).sqrt()
    )


def transposed_kernel(twin: Side) -> Side:
    weight = twin.state.params["policy"].hidden_1.weight
    weight.data = weight.data.T.clone()
    return twin


def learning_rate_off_by_1e_6(twin: Side) -> Side:
    return with_config(twin, learning_rate=twin.config.learning_rate * (1 + 1e-6))


def clip_off_by_1e_6(twin: Side) -> Side:
    return with_config(twin, max_grad_norm=twin.config.max_grad_norm + 1e-6)


def one_value_step_too_many(twin: Side) -> Side:
    return with_config(twin, value_steps=twin.config.value_steps + 1)


def adam_epsilon_1e_7(twin: Side) -> Side:
    for optimizer in twin.state.opt_state.values():
        optimizer.param_groups[0]["eps"] = 1e-7
    return twin


def schedule_one_update_late(twin: Side) -> Side:
    return twin._replace(state=twin.state._replace(update=1))


IN_GRADIENTS = [
    gamma_off_by_1e_7,
    lambda_off_by_1e_7,
    truncation_as_termination,
    next_row_as_successor,
    mask_off_by_one,
    time_off_by_one,
    entropy_sign,
    mean_instead_of_sum,
    ddof_1,
    epsilon_inside_the_root,
    transposed_kernel,
]
IN_UPDATES = [
    learning_rate_off_by_1e_6,
    clip_off_by_1e_6,
    one_value_step_too_many,
    adam_epsilon_1e_7,
    schedule_one_update_late,
]
CONTROL = {
    **USUAL,
    "estimator": "gae",
    "baseline": "value",
    "discounting": "absolute",
    "networks": "separate",
    "value_target": "lambda_return",
    "reduction": "trajectories",
    "normalize_advantage": True,
    "optimizer": "adam",
    "max_grad_norm": 0.02,
}


@pytest.fixture
def control():
    return config_of(CONTROL, arithmetic="float64", hidden_sizes=(5, 5))


def test_the_control_agrees_while_nothing_is_planted(control):
    assert_gradients_agree(control)
    assert_updates_agree(control)


@pytest.mark.parametrize("fault", IN_GRADIENTS)
def test_a_fault_in_the_gradient_is_seen(control, fault):
    with pytest.raises(AssertionError, match="exceeds"):
        assert_gradients_agree(control, fault)


@pytest.mark.parametrize("fault", IN_UPDATES)
def test_a_fault_in_the_update_is_seen(control, fault):
    with pytest.raises(AssertionError, match="exceeds"):
        assert_updates_agree(control, fault)


def test_a_gradient_that_flows_into_the_baseline_is_seen(control, monkeypatch):
    """The twin without `no_grad` around Ψ and the target, and without `detach` in the losses."""

    def leaking(log_prob, advantage, valid):
        return -torch.sum(torch.where(valid, log_prob * advantage, 0.0)) / log_prob.shape[1]

    monkeypatch.setattr(torch_ref.learner, "estimate", torch_ref.learner.estimate.__wrapped__)
    with pytest.raises(AssertionError, match=r"grad value/.* exceeds"):
        assert_gradients_agree(control, lambda twin: with_part(twin, policy_loss=leaking))


def test_the_comparison_is_strict_about_shapes():
    """(T,) against (T, 1) would broadcast to (T, T): the article's own fault."""
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.zeros(3), np.zeros((3, 1)), 1e-12)
