"""algorithms: every Ψ and every target by hand, and algorithms with parts of one's own.

Two episodes, γ = λ = ½. The first ends with a termination, so a row of padding follows; the time
limit truncates the second.

           episode 0 (terminated)     episode 1 (truncated)
    t       0    1    padding          0    1    2
    r       2    4    0                1    2    1
    V       1    2    9                4    2    0
    V next  2    8    9                2    0    6      (8 is beyond the end: it must not matter)

Without a critic V is 0 everywhere, so

    G       4    4                     2¼   2½   1      2 + ½·4, 4; 1 + ½·2½, 2 + ½·1, 1
    R       4                          2¼               b = 2¼ and 4, the other one's

and with it, bootstrapped with V = 6 where episode 1 was cut,

    G       4    4                     3    4    4      1 + ½·4, 2 + ½·4, 1 + ½·6
    δ       2    2                    -2    0    4      2+½·2-1, 4-2; 1+½·2-4, 2+½·0-2, 1+½·6-0
    A       2½   2                    -1¾   1    4      2+¼·2, 2; -2+¼·1, 0+¼·4, 4
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxpg
import jaxpg.core.losses
import torch_ref
import torch_ref.types
from jaxpg.core import algorithms, learner, noise, training
from jaxpg.core.config import BUILT_OF, STATIC, Config, ConfigError
from jaxpg.proof import synthetic
from torch_ref import algorithms as torch_algorithms
from torch_ref import noise as torch_noise
from torch_ref.training import as_tensors

REWARD = [[2, 1], [4, 2], [0, 1]]
VALUE = [[1, 4], [2, 2], [9, 0]]
NEXT_VALUE = [[2, 2], [8, 0], [9, 6]]
TERMINATED = [[0, 0], [1, 0], [0, 0]]
TRUNCATED = [[0, 0], [0, 0], [0, 1]]
VALID = [[1, 1], [1, 1], [0, 1]]
TIME = [[0, 0], [1, 1], [0, 2]]

# Ψ on the five valid steps: episode 0 and then episode 1. Absolute: times 1, ½, ¼.
PSI = {
    ("total_return", "none", "absolute"): [4, 4, 2.25, 2.25, 2.25],
    ("total_return", "constant", "absolute"): [1.75, 1.75, -1.75, -1.75, -1.75],
    # R - γ^t V: 4-1, 4-½·2; 3-4, 3-½·2, 3-¼·0
    ("total_return", "value", "absolute"): [3, 3, -1, 2, 3],
    ("reward_to_go", "none", "relative"): [4, 4, 2.25, 2.5, 1],
    ("reward_to_go", "none", "absolute"): [4, 2, 2.25, 1.25, 0.25],
    # 4-2¼, 4-2¼; 2¼-4, 2½-4, 1-4
    ("reward_to_go", "constant", "relative"): [1.75, 1.75, -1.75, -1.5, -3],
    ("reward_to_go", "constant", "absolute"): [1.75, 0.875, -1.75, -0.75, -0.75],
    ("reward_to_go", "value", "relative"): [3, 2, -1, 2, 4],
    ("reward_to_go", "value", "absolute"): [3, 1, -1, 1, 1],
    ("td_error", "value", "relative"): [2, 2, -2, 0, 4],
    ("td_error", "value", "absolute"): [2, 1, -2, 0, 1],
    ("gae", "value", "relative"): [2.5, 2, -1.75, 1, 4],
    ("gae", "value", "absolute"): [2.5, 1, -1.75, 0.5, 1],
}
TARGETS = {
    "monte_carlo": [4, 4, 3, 4, 4],
    "td0": [3, 4, 2, 2, 4],  # δ + V
    "lambda_return": [3.5, 4, 2.25, 3, 4],  # A + V
}
PACKAGES = {
    "jaxpg": (algorithms, jaxpg.core.types, jnp.asarray),
    "torch_ref": (torch_algorithms, torch_ref.types, torch.tensor),
}
packages = pytest.mark.parametrize("package", PACKAGES)


def inputs(package, *, critic, time=TIME):
    """The two episodes, and V of their steps (0 without a critic)."""
    _, types, array = PACKAGES[package]
    obs = np.zeros((3, 2, 1), np.float32)
    fields = {
        "obs": obs,
        "action": np.zeros((3, 2), int),
        "log_prob": np.zeros((3, 2), np.float32),
        "reward": np.array(REWARD, np.float32),
        "next_obs": obs,
        "terminated": np.array(TERMINATED, bool),
        "truncated": np.array(TRUNCATED, bool),
        "valid": np.array(VALID, bool),
        "time": np.array(time, np.int32),
        "episode_return": np.zeros((3, 2), np.float32),
    }
    values = [np.array(value, np.float32) * critic for value in (VALUE, NEXT_VALUE)]
    trajectory = types.Trajectory(**{name: array(field) for name, field in fields.items()})
    return trajectory, *map(array, values)


def on_valid_steps(package, part, *inputs):
    _, _, array = PACKAGES[package]
    half = array(np.float32(0.5))
    result = np.asarray(part(*inputs, gamma=half, gae_lambda=half))
    assert result.shape == (3, 2)
    return result.T[np.array(VALID, bool).T]


def config_of(estimator, baseline, discounting, **changes):
    return Config(
        estimator=estimator,
        baseline=baseline,
        discounting=discounting,
        **{"collect": "episodes", "normalize_advantage": False, **changes},
    )


@packages
@pytest.mark.parametrize(("choice", "expected"), PSI.items(), ids=map("-".join, PSI))
def test_psi_by_hand(package, choice, expected):
    advantage = PACKAGES[package][0].make_advantage(config_of(*choice))
    rows = inputs(package, critic=choice[1] == "value")
    np.testing.assert_allclose(on_valid_steps(package, advantage, *rows), expected, rtol=1e-6)


@packages
@pytest.mark.parametrize(("name", "expected"), TARGETS.items())
def test_value_targets_by_hand(package, name, expected):
    target = PACKAGES[package][0].VALUE_TARGETS[name]
    rows = inputs(package, critic=True)
    np.testing.assert_allclose(on_valid_steps(package, target, *rows), expected, rtol=1e-6)


@packages
def test_absolute_discounting_counts_from_the_episodes_start_not_the_batchs(package):
    """The second episode began three steps ago: ⅛, 1/16 and 1/32 of δ = -2, 0, 4."""
    time = [[0, 3], [1, 4], [0, 5]]
    advantage = PACKAGES[package][0].make_advantage(config_of("td_error", "value", "absolute"))
    psi = on_valid_steps(package, advantage, *inputs(package, critic=True, time=time))
    np.testing.assert_allclose(psi, [2, 1, -0.25, 0, 0.125], rtol=1e-6)


@packages
def test_whatever_advantage_gives_is_normalised_but_for_padding(package):
    """Of δ = 2, 2, -2, 0, 4: mean 6/5, variance (4+4+4+0+16)/5 - 36/25 = 4.16."""
    algorithms = PACKAGES[package][0]
    estimate = (learner if package == "jaxpg" else torch_ref.learner).estimate
    trajectory, *values = inputs(package, critic=True)
    own = algorithms.make_advantage(config_of("td_error", "value", "relative"))
    config = dataclasses.replace(
        config_of("reward_to_go", "none", "relative", normalize_advantage=True), gamma=0.5
    )
    algorithm = algorithms.build(config)._replace(
        advantage=lambda trajectory, *_, **rest: own(trajectory, *values, **rest)
    )

    def psi(trajectory, **_):
        return estimate(config, algorithm, None, trajectory).advantage

    expected = (np.array([2, 2, -2, 0, 4]) - 1.2) / np.sqrt(4.16)
    np.testing.assert_allclose(on_valid_steps(package, psi, trajectory), expected, rtol=1e-6)


@packages
@pytest.mark.parametrize("given", [{"squash": True}, {"sigma": "state"}, {"log_std_init": -1.0}])
def test_what_is_of_continuous_actions_alone_is_refused(package, given):
    with pytest.raises(ValueError, match=r"needs continuous actions; CartPole-v1 has none"):
        PACKAGES[package][0].build(Config(**given))


def test_an_algorithm_needs_a_known_environment():
    with pytest.raises(ConfigError, match="did you mean 'CartPole-v1'"):
        algorithms.build(Config(env="CartPole"))


def built_of(config_class, changes):
    """The static fields of a config that its algorithm looks at while another is trained."""
    read = set()

    class Watched(config_class):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    given = {"num_envs": 2, "num_steps": 4, "total_steps": 8, "total_episodes": 2, **changes}
    watched, config = Watched(**given), config_class(**given)
    read.clear()
    if config_class is Config:
        algorithm, config = algorithms.build(watched), training.as_arrays(config)
        jax.eval_shape(partial(training.train, config, algorithm=algorithm), noise.key(0))
    else:
        torch_ref.train(config, torch_noise.key(0), torch_ref.build(watched))
    return read & {*STATIC}


@pytest.mark.parametrize("config_class", [Config, torch_ref.Config], ids=["jaxpg", "torch_ref"])
def test_it_is_built_of_what_its_parts_look_at(config_class, monkeypatch):
    for module in (algorithms, torch_algorithms):
        monkeypatch.setattr(module, "BUILT_OF", ())  # `build` looks at them all, to note them
    choices = [
        {},
        {"env": "Pendulum-v1", "sigma": "state", "squash": True, "normalize_obs": True},
        {
            "collect": "episodes",
            "estimator": "reward_to_go",
            "baseline": "group",
            "max_episode_steps": 4,
        },
        {"env": "Catch-bsuite", "conv_features": (2,), "frame_stack": 2},
    ]
    looked_at = set.union(*(built_of(config_class, changes) for changes in choices))
    assert looked_at == {*BUILT_OF}


@packages
def test_an_algorithm_of_another_config_is_refused(package):
    """It would train by its own, in silence: one estimator under another's name."""
    ours, typed, run = {
        "jaxpg": (jaxpg, training.as_arrays, jax.eval_shape),  # tracing is enough
        "torch_ref": (torch_ref, as_tensors, lambda function: function()),
    }[package]
    config = typed(ours.Config(num_envs=2, num_steps=4, total_steps=8))
    other = dataclasses.replace(config, estimator="td_error")
    algorithm, key = ours.build(config), ours.key(0)
    state = run(lambda: ours.init(config, key, algorithm))
    for refused in (
        lambda: ours.init(other, key, algorithm),
        lambda: ours.update(other, state, algorithm),
        lambda: ours.train(other, key, algorithm),
    ):
        with pytest.raises(ValueError, match=r"built with estimator='gae'.* estimator='td_error'"):
            run(refused)
    longer = dataclasses.replace(config, num_steps=6, total_steps=24, learning_rate=config.gamma)
    for config, meant in ((longer, algorithm), (other, algorithm._replace(built_of=()))):
        run(partial(ours.train, config, key, meant))


# Parts of one's own.


def policy_step(package, **parts):
    """By how much one SGD update of a rate of 1 moves the policy, with some parts replaced."""
    config = Config(
        num_envs=synthetic.N,
        num_steps=synthetic.T,
        total_steps=synthetic.N * synthetic.T,
        optimizer="sgd",
        learning_rate=1.0,
        max_grad_norm=None,
        hidden_sizes=(5,),
    )
    fields = synthetic.arrays("steps", "categorical")
    if package == "jaxpg":
        config, batch = training.as_arrays(config), synthetic.for_jax(fields, "float32")
        algorithm = algorithms.build(config)._replace(collect=lambda *args: (args[3], batch))
        state = jax.jit(partial(learner.init, config, algorithm=algorithm))(noise.key(0))
        update = partial(learner.update, config, algorithm=algorithm._replace(**parts))
        after, _ = jax.jit(update)(state)
        kernels = [s.params["policy"]["output"]["kernel"] for s in (state, after)]
    else:
        config = as_tensors(torch_ref.Config(**dataclasses.asdict(config)))
        batch = synthetic.for_torch(fields, "float32")
        algorithm = torch_ref.build(config)._replace(collect=lambda *args: (args[3], batch))
        state = torch_ref.init(config, torch_noise.key(0), algorithm)
        weight = state.params["policy"].output.weight
        kernels = [weight.detach().clone()]
        torch_ref.update(config, state, algorithm._replace(**parts))
        kernels.append(weight.detach())
    return np.asarray(kernels[1]) - np.asarray(kernels[0])


@packages
@pytest.mark.thin(2)
def test_an_advantage_of_ones_own(package):
    """Ψ = 0: nothing to learn."""
    zeros = jnp.zeros_like if package == "jaxpg" else torch.zeros_like
    step = policy_step(package, advantage=lambda t, v, w, *, gamma, gae_lambda: zeros(v))
    assert np.any(policy_step(package))
    np.testing.assert_array_equal(step, 0.0)


@packages
def test_a_policy_loss_of_ones_own(package):
    """Twice the loss is twice the step."""
    module = jaxpg.core.losses if package == "jaxpg" else torch_ref.losses
    double = policy_step(package, policy_loss=lambda *a: 2.0 * module.policy_loss_steps(*a))
    np.testing.assert_allclose(double, 2.0 * policy_step(package), rtol=1e-4, atol=1e-7)
