"""Config: what is rejected and in which words, what is accepted, and what may be traced."""

import ast
import copy
import dataclasses
import importlib
import inspect
import math
import operator
import pickle
import re
from itertools import pairwise, product
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxpg.core.config
import torch_ref.config
from jaxpg.core import algorithms, noise, training
from jaxpg.core.config import FIELDS, OPTIONAL, STATIC, TRACED, TRAITS, WHOLE, ConfigError
from jaxpg.core.presets import PRESET_NOTES, PRESETS, preset
from jaxpg.core.rules import unused, validate
from jaxpg.core.types import Config, Metrics  # registered with jax


@pytest.mark.parametrize("name", ["config", "rules", "presets"])
def test_both_packages_have_the_same_file(name):
    ours, theirs = (
        Path(inspect.getfile(importlib.import_module(f"{package}.{name}"))).read_text()
        for package in ("jaxpg.core", "torch_ref")
    )
    assert ours.replace("jaxpg.core", "torch_ref") == theirs


def test_what_a_field_is_said_to_belong_to_are_the_fits_that_have_it():
    source = ast.parse(inspect.getsource(Config))
    body = source.body[0].body
    said = {
        field.target.id: set(re.findall(r"\bfit=(.*?) only\b", " ".join(text.value.value.split())))
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
    }
    for name, fits in said.items():
        have = [fit for fit, traits in TRAITS.items() if name in traits.fields]
        assert fits == ({" and ".join(have)} if have else set()), name


# Presets


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid_and_described(name):
    assert validate(preset(name)) is PRESETS[name]
    assert PRESET_NOTES[name]


def test_the_defaults_are_the_preset_vpg():
    assert preset("vpg") == Config()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("actorcritic", "actor-critic"), ("PPO", "ppo"), ("Actor-Crtic", "actor-critic")],
)
def test_unknown_preset_names_the_nearest_and_all(name, nearest):
    with pytest.raises(ConfigError, match=f"'{name}'; did you mean '{nearest}'") as error:
        preset(name)
    assert all(name in str(error.value) for name in PRESETS)


# Rejections: what is given, and words of the sentence

EPISODES = {"collect": "episodes"}
NO_CRITIC = {"baseline": "none"}
REINFORCE = EPISODES | NO_CRITIC | {"estimator": "reward_to_go"}
SHARED = {"networks": "shared", "value_steps": 1}
REPLAY = {"value_data": "replay", "value_target": "td0"}

COUNTS = (
    "num_envs",
    "num_steps",
    "total_steps",
    "total_episodes",
    "value_steps",
    "buffer_size",
    "batch_size",
    "max_episode_steps",
    "cg_steps",
    "backtrack_steps",
    "frame_stack",
)
CHOICES = {name: hint for name, hint in get_type_hints(Config).items() if "Literal" in str(hint)}


def bad_fields():
    for name in COUNTS:
        for bad in (0, -3, 2.0, True, "8"):
            yield {name: bad}, f"{name} must be an integer of at least 1; got {bad!r}"
    for bad in (0, 1.5, False):
        yield {"hidden_sizes": (64, bad)}, f"each of hidden_sizes must be .* got {bad!r}"
        yield {"conv_features": (16, bad)}, f"each of conv_features must be .* got {bad!r}"
    yield {"conv_features": 16}, "conv_features must be a tuple; got 16"
    yield {"hidden_sizes": ()}, "hidden_sizes must be a tuple of at least one width"
    yield {"cg_steps": 65}, "cg_steps must be at most 64; got 65"
    yield {"cg_steps": np.array([[5, 0]])}, "cg_steps must be an integer of at least 1; got 0"
    yield {"cg_steps": np.array([5.0])}, "cg_steps must be an integer of at least 1; got 5.0"
    for name in sorted(set(TRACED) - set(WHOLE)):
        for bad in ("0.5", True, None):
            if bad is not None or name not in OPTIONAL:
                yield {name: bad}, f"{name} must be a number; got {bad!r}"
        for bad in (math.nan, math.inf, -math.inf, -1.0):
            yield {name: bad}, f"{name} must be (in|finite and) .*; got {bad}"
    for name in ("gamma", "gae_lambda"):
        yield {name: 1.01}, rf"{name} must be in \[0, 1\]; got 1.01"
    for name in ("ent_coef", "vf_coef"):
        yield {name: -1e-9}, f"{name} must be finite and at least 0; got -1e-09"
    yield {"damping": -1e-9}, "damping must be finite and at least 0; got -1e-09"
    positive = ("learning_rate", "max_grad_norm", "clip_coef", "clip_value", "target_kl")
    for name in (*positive, "optimizer_eps", "max_kl", "desired_kl"):
        for bad in (0, 0.0):
            yield {name: bad}, f"{name} must be finite and greater than 0; got {bad}"
    for name in ("adam_b1", "adam_b2"):
        for bad in (-0.1, 1.0, 1.0 - 1e-9):  # which float32 rounds to 1
            rounded = ", in float32 1" if 0.0 < bad < 1.0 else ""
            yield {name: bad}, rf"{name} must be in \[0, 1\); got {bad}{rounded}$"
    for name in ("optimizer_eps", "desired_kl"):
        yield {name: 1e-46}, "greater than 0; got 1e-46, in float32 0"
    for bad in (math.nan, math.inf, -20.5, 21):
        yield {"log_std_init": bad}, rf"log_std_init must be in \[-20, 20\]; got {bad}"
    for bad in ("0.5", True, None, np.array(0.5)):
        yield {"log_std_init": bad}, "log_std_init must be a number; got "
    yield (
        {"log_std_init": -1.0, "sigma": "state"},
        "log_std_init needs sigma='free'; got -1.0 with sigma='state'",
    )
    for bad in (0.0, 2.0**-41, 2.0**41):
        yield {"kl_coef": bad}, rf"kl_coef must be in \[2\^-40, 2\^40\]; got {bad}"
    for name, hint in CHOICES.items():
        allowed = ", ".join(get_args(hint))
        yield {name: "zzz"}, f"{name} is 'zzz'. Allowed: {allowed}"
    yield {"estimator": "gea"}, "estimator is 'gea'; did you mean 'gae'"
    yield {"optimizer": None}, "optimizer is None"


PPO = {"fit": "ppo", "value_steps": 1}
OF_PPO, OF_PENALTY, OF_NATURAL = "clip_coef target_kl", "kl_coef desired_kl", "damping cg_steps"
OF_MINIBATCHES = "epochs minibatches normalize_over"
PPO_COMBINATIONS = [
    ({"epochs": 4}, "epochs needs fit='ppo' or 'ppo_penalty'; got 4 with fit='gradient'"),
    ({"minibatches": 2}, "minibatches needs fit='ppo' or 'ppo_penalty'; got 2"),
    ({"clip_value": 0.2}, "clip_value needs fit='ppo' or 'ppo_penalty'; got 0.2"),
    ({"target_kl": 0.01}, "target_kl needs fit='ppo'; got 0.01"),
    (
        PPO | {"fit": "ppo_penalty", "target_kl": 0.01},
        "target_kl needs fit='ppo'; got 0.01 with fit='ppo_penalty'",
    ),
    (
        {"normalize_over": "minibatch"},
        "normalize_over needs fit='ppo' or 'ppo_penalty'; got 'minibatch'",
    ),
    (
        PPO | {"minibatches": 1024} | {"normalize_advantage": True, "normalize_over": "minibatch"},
        "normalize_advantage needs at least 2 steps in each minibatch; got 1",
    ),
    ({"fit": "ppo"}, "value_data='batch' and value_steps=1; got 'batch' and 4"),
    (PPO | REPLAY, "value_data='batch' and value_steps=1; got 'replay' and 1"),
    (PPO | {"reduction": "trajectories"}, "needs reduction='steps'; got 'trajectories'"),
    (PPO | {"normalize_over": "minibatch"}, "needs normalize_advantage; got False"),
    (PPO | {"log_prob": "clamped"}, "log_prob='clamped', which are .* got 'value' and 'clamped'"),
    (PPO | REINFORCE | {"clip_value": 0.2}, "clip_value needs baseline='value'; got .*'none'"),
    (
        PPO | {"minibatches": 3},
        r"minibatches must divide the num_envs \* num_steps steps; got 3 and 1024",
    ),
    (
        PPO | EPISODES | {"num_envs": 6, "minibatches": 4},
        "minibatches must divide the num_envs episodes; got 4 and 6",
    ),
    (
        {"joint_loss": True, "value_steps": 1}
        | NO_CRITIC
        | {"estimator": "reward_to_go"}
        | EPISODES,
        "joint_loss needs baseline='value'; got baseline='none'",
    ),
    ({"joint_loss": True}, "joint_loss has one joint loss on one batch.* got 'batch' and 4"),
]
NATURAL_COMBINATIONS = [
    ({"fit": "npg", "backtrack_steps": 5}, "backtrack_steps needs fit='trpo'; got 5 with fit='npg"),
    (
        {"fit": "trpo", "epochs": 2},
        "epochs needs fit='ppo' or 'ppo_penalty'; got 2 with fit='trpo'",
    ),
    ({"fit": "trpo"} | SHARED, "fit='trpo' .* needs networks='separate' .* got 'shared' and False"),
    (
        {"fit": "npg", "joint_loss": True, "value_steps": 1},
        "fit='npg' .* joint_loss False; got 'separate' and True",
    ),
    (
        {"fit": "npg", "log_prob": "clamped"},
        "log_prob='clamped', which are .* got 'value' and 'clamped'",
    ),
]
BAD_COMBINATIONS = [
    (
        {"num_envs": 1, "num_steps": 1, "normalize_advantage": True},
        "normalize_advantage needs at least 2 steps in each batch; got 1",
    ),
    (
        {"num_envs": 8, "num_steps": 128, "total_steps": 1023},
        "total_steps must pay for at least one update of 1024; got 1023",
    ),
    (
        EPISODES | {"num_envs": 16, "total_episodes": 15},
        "total_episodes must pay for at least one update of 16; got 15",
    ),
    (
        {"estimator": "total_return", "discounting": "absolute"},
        "estimator='total_return' needs collect='episodes'",
    ),
    ({"estimator": "reward_to_go"} | NO_CRITIC, "needs baseline='value'.* got baseline='none'"),
    (
        {"estimator": "reward_to_go", "baseline": "constant"},
        "needs baseline='value'.* got baseline='constant'",
    ),
    (NO_CRITIC, "estimator='gae' needs baseline='value'; got baseline='none'"),
    (
        EPISODES | {"estimator": "td_error", "baseline": "constant"},
        "estimator='td_error' needs baseline='value'; got baseline='constant'",
    ),
    (
        EPISODES | {"estimator": "total_return"},
        "estimator='total_return' .* needs discounting='absolute'; got 'relative'",
    ),
    (
        REINFORCE | {"baseline": "constant", "num_envs": 1},
        "needs collect='episodes' and num_envs >= 2; got 'episodes' and 1",
    ),
    ({"baseline": "group", "estimator": "reward_to_go"}, "needs baseline='value'"),
    (REINFORCE | {"baseline": "group", "num_envs": 1}, "num_envs >= 2; got 'episodes' and 1"),
    (REINFORCE | {"group_std": True}, "group_std needs baseline='group'; got baseline='none'"),
    (
        {"reduction": "trajectory_means"},
        "reduction='trajectory_means' needs collect='episodes'; got 'steps'",
    ),
    (REINFORCE | SHARED, "networks='shared' needs baseline='value'; got baseline='none'"),
    (SHARED | REPLAY, "networks='shared' .* value_data='batch' .* got 'replay' and 1"),
    (SHARED | {"value_steps": 2}, "networks='shared' .* value_steps=1; got 'batch' and 2"),
    (
        REPLAY | {"value_target": "lambda_return"},
        "value_data='replay' .* needs value_target='td0'; got 'lambda_return'",
    ),
    (
        REPLAY | {"value_data": "replay_successor", "value_target": "monte_carlo"},
        "value_data='replay_successor' .* needs value_target='td0'; got 'monte_carlo'",
    ),
    (
        EPISODES | {"estimator": "td_error", "baseline": "broadcast_value"},
        "estimator='td_error' needs baseline='value'; got baseline='broadcast_value'",
    ),
    (
        REINFORCE | {"baseline": "broadcast_value", "discounting": "absolute"},
        "baseline='broadcast_value' .* got episodes, reward_to_go, absolute, steps",
    ),
    *PPO_COMBINATIONS,
    *NATURAL_COMBINATIONS,
    (
        REPLAY | {"buffer_size": 100, "batch_size": 101},
        "batch_size must be at most buffer_size; got 101 of 100",
    ),
]


@pytest.mark.parametrize(("given", "words"), [*bad_fields(), *BAD_COMBINATIONS])
def test_rejected_in_one_sentence(given, words):
    with pytest.raises(ConfigError, match=words) as error:
        validate(Config(**given))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"gamma": 0, "gae_lambda": 1},  # integers, and both ends of the range
        {"gamma": 1.0, "gae_lambda": 0.0, "ent_coef": 0, "vf_coef": 0.0},
        {"learning_rate": 1e-300, "max_grad_norm": 1e300},
        {"max_grad_norm": None, "max_episode_steps": 1},
        {"num_envs": 8, "num_steps": 128, "total_steps": 1024},
        REPLAY | {"buffer_size": 100, "batch_size": 100},
        REINFORCE | {"baseline": "constant", "num_envs": 2},
        PPO | {"minibatches": 1024, "epochs": 3, "target_kl": 1e-9, "clip_coef": 5.0},
        PPO | REINFORCE | {"num_envs": 6, "minibatches": 3, "reduction": "trajectories"},
        PPO | SHARED | {"joint_loss": True, "clip_value": 0.1},
        PPO  # Psi is 0 then; `jaxpg oracle` says how far that is from the gradient
        | REINFORCE
        | {"estimator": "total_return", "discounting": "absolute", "num_envs": 2, "minibatches": 2}
        | {"normalize_advantage": True, "normalize_over": "minibatch"},
        REINFORCE | {"fit": "npg", "damping": 0, "cg_steps": 1, "reduction": "trajectories"},
        REPLAY | {"fit": "trpo", "max_kl": 1e-9, "backtrack_steps": 1},
    ],
)
def test_accepted_at_the_edge(given):
    assert validate(Config(**given)) == Config(**given)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, f"{OF_PPO} {OF_PENALTY} {OF_NATURAL} max_kl clip_value vf_coef"),
        (
            PPO | REINFORCE | {"num_envs": 8},
            f"{OF_PENALTY} {OF_NATURAL} max_kl clip_value gae_lambda value_learning_rate vf_coef",
        ),
        (PPO | {"joint_loss": True}, f"{OF_PENALTY} {OF_NATURAL} max_kl value_learning_rate"),
        (PPO | {"fit": "ppo_penalty"}, f"{OF_PPO} {OF_NATURAL} max_kl vf_coef"),
        ({"fit": "trpo"}, f"{OF_PPO} {OF_PENALTY} clip_value learning_rate vf_coef"),
        ({"optimizer": "sgd", "estimator": "td_error", "value_target": "td0"},
         f"adam_b1 adam_b2 optimizer_eps gae_lambda {OF_PPO} {OF_PENALTY} {OF_NATURAL} max_kl "
         "clip_value vf_coef"),
        (REINFORCE | {"fit": "npg"}, "adam_b1 adam_b2 optimizer_eps max_grad_norm gae_lambda "
         f"{OF_PPO} {OF_PENALTY} clip_value max_kl value_learning_rate vf_coef"),
    ],
)  # fmt: skip
def test_what_nothing_depends_on(given, names):
    """By hand. It is not refused: a preset may have left it there, a part of one's own use it."""
    config = validate(Config(**given))
    assert sorted({*unused(config)} & {*TRACED}) == sorted(names.split())
    assert {*unused(config)} <= {*TRACED, *STATIC}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, f"{OF_MINIBATCHES} backtrack_steps batch_size buffer_size total_episodes"),
        (REPLAY, f"{OF_MINIBATCHES} backtrack_steps total_episodes"),
        (
            REPLAY | {"value_data": "replay_successor", "value_target": "td0"},
            f"{OF_MINIBATCHES} backtrack_steps total_episodes",
        ),
        (PPO, "backtrack_steps batch_size buffer_size total_episodes"),
        (
            REINFORCE | {"fit": "trpo"},
            f"{OF_MINIBATCHES} batch_size buffer_size lr_schedule num_steps optimizer time_limit "
            "total_steps value_data value_steps value_target",
        ),
    ],
)
def test_what_nothing_depends_on_of_static_fields(given, names):
    config = validate(Config(**given))
    assert sorted({*unused(config)} & {*STATIC}) == sorted(names.split())


# Of each field that is no choice a value that no preset has, and that a tiny run feels.
OTHER = {
    "max_episode_steps": 9, "frame_stack": 2, "num_envs": 8, "num_steps": 32, "total_steps": 640,
    "total_episodes": 32, "epochs": 2, "minibatches": 2, "value_steps": 3, "buffer_size": 24,
    "batch_size": 4, "hidden_sizes": (4,), "gamma": 0.7, "gae_lambda": 0.5, "ent_coef": 0.3,
    "clip_coef": 0.01, "clip_value": 0.01, "target_kl": 1e-4, "kl_coef": 30.0, "desired_kl": 1e-4,
    "max_kl": 1e-4, "damping": 3.0, "cg_steps": 1, "vf_coef": 5.0, "optimizer_eps": 0.1,
    "adam_b1": 0.1, "adam_b2": 0.1, "learning_rate": 1e-3, "value_learning_rate": 1e-3,
    "max_grad_norm": 0.01,
}  # fmt: skip
ELSEWHERE = {
    *("env", "arithmetic", "conv_features", "backtrack_steps", "log_prob"),
    *("sigma", "log_std_init", "squash"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["article", "vpg", "reinforce", "rloo", "npg", "trpo", "ppo", "ppo-penalty", "a2c"]
)
def test_a_field_has_an_effect_unless_it_is_said_to_have_none(name):
    """Whatever its value, where `unused` has it; else a tiny run ends with other parameters."""
    preset = PRESETS[name]
    small = {"num_envs": 4, "max_episode_steps": 20, "hidden_sizes": (8,), "gamma": 0.9}
    small |= {"num_steps": 16} if preset.collect == "steps" else {}
    small |= {preset.budget: 384 if preset.collect == "steps" else 24}
    small |= {"buffer_size": 64, "batch_size": 8} if preset.replays else {}
    config = validate(dataclasses.replace(preset, **small))
    ends, idle = _end(config), unused(config)
    for field in {*STATIC, *TRACED} - ELSEWHERE:
        choices = (False, True) if _is_bool(field) else get_args(get_type_hints(Config)[field])
        for value in (OTHER[field],) if field in OTHER else choices:
            other = dataclasses.replace(config, **{field: value})
            try:
                validate(other)
            except ConfigError:
                continue  # it has no meaning here
            if other != config:
                others = _end(other)
                same = len(ends) == len(others) and all(map(np.array_equal, ends, others))
                assert same == (field in idle), (field, value)


def _is_bool(field):
    return isinstance(getattr(Config(), field), bool)


def _end(config):
    """Parameters after the training of a seed, and the returns that were met."""
    made = algorithms.build(config)
    state, metrics = jax.jit(lambda key: training.train(config, key, made))(noise.key(3))
    return jax.tree.leaves((state.params, metrics.return_sum))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_with_another_fit_has_a_meaning(name):
    """Where its data and networks allow it: no number that it sets stands in the way."""
    for fit, traits in TRAITS.items():
        left = {"epochs": 1, "minibatches": 1, "normalize_over": "batch", "joint_loss": False}
        left |= {"networks": "separate", "clip_value": None, "target_kl": None}
        if traits.minibatched:
            left |= {"value_steps": 1, "value_data": "batch"}
            if PRESETS[name].collect == "steps":
                left["reduction"] = "steps"
        other = dataclasses.replace(PRESETS[name], fit=fit, **left)
        if fit == "gradient" or not name.startswith("article"):
            assert validate(other) is other


def test_what_is_said_of_fits_is_of_all_and_names_what_there_is():
    assert {*TRAITS} == {*get_args(get_type_hints(Config)["fit"])} == {*algorithms.FITS}
    assert {*algorithms.FIT_STATES} <= {*TRAITS}
    for traits in TRAITS.values():
        assert {*traits.fields} <= {*FIELDS}
        assert {*traits.reports} <= {*Metrics._field_defaults}


def test_number_of_accepted_combinations():
    """Counted by hand from the rules, part by part.

    Collecting, estimator, baseline and discounting; N is 1 or 8:
      steps     value      reward-to-go, TD error, GAE, each relative or absolute   6 · 2 N = 12
      episodes  value      those, and the total return (absolute only)              7 · 2 N = 14
      episodes  none       reward-to-go (2), total return (1)                       3 · 2 N =  6
      episodes  constant   the same, with N = 8 only                                3 · 1 N =  3
      episodes  group      the same                                                 3 · 1 N =  3
      episodes  broadcast  reward-to-go, absolute, summed over time only            1 · 2 N =  2
    The fit of the critic, with 1 or 4 value steps:
      separate  batch      3 targets · 2 = 6;   two kinds of replay   TD(0) only · 2 = 4      10
      shared    batch      3 targets · 1                                                       3
    With a critic, of steps 12 · (10 + 3) · 2 reductions = 312, of episodes 14 · 13 · 3 = 546; the
    article's 2 · (10 + 3) = 26. Without one, networks are separate and the other fields of the fit
    play no part: (6 + 3 + 3) · 3 · 3 · 2 · 3 reductions = 648. In all 1532.
    """
    free = {
        name: get_args(CHOICES[name])
        for name in (
            "collect",
            "estimator",
            "baseline",
            "discounting",
            "networks",
            "value_target",
            "value_data",
            "reduction",
        )
    } | {"num_envs": (1, 8), "value_steps": (1, 4)}
    given = [dict(zip(free, values, strict=True)) for values in product(*free.values())]
    complaints = [complaint(fields) for fields in given]
    assert len(complaints) == 17280
    assert complaints.count(None) == 1532
    for text in filter(None, complaints):
        assert any(name in text for name in free), f"names no field to change: {text}"


def complaint(fields):
    try:
        validate(Config(**fields))
    except ConfigError as error:
        return str(error)


# Static and traced fields


def test_the_real_numbers_and_what_bounds_a_loop_are_traced_and_all_else_is_static():
    hints = get_type_hints(Config)
    real = {name for name, hint in hints.items() if float in (hint, *get_args(hint))}
    real -= {"log_std_init"}  # networks are built of it
    assert set(WHOLE) == {"cg_steps"}
    assert set(TRACED) == real | set(WHOLE)
    assert set(STATIC) == set(FIELDS) - set(TRACED) - {"env_params"}  # which has both kinds


def test_leaves_are_the_traced_fields():
    config = Config(gamma=0.5, fit="ppo", value_steps=1, clip_value=0.1, target_kl=0.2)
    assert sorted(jax.tree.leaves(config)) == sorted(getattr(config, name) for name in TRACED)
    assert len(jax.tree.leaves(config)) == 18
    assert len(jax.tree.leaves(Config(max_grad_norm=None))) == 15  # nor are there PPO's two bounds
    doubled = jax.tree.map(lambda leaf: 2 * leaf, config)
    assert doubled == dataclasses.replace(
        config, **{name: 2 * getattr(config, name) for name in TRACED}
    )


def test_traced_fields_never_recompile_and_static_ones_do():
    traces = []

    @jax.jit
    def f(config):
        traces.append(config)
        return config.learning_rate * config.num_envs

    for rate in (1e-3, 1e-2, 1e-1):
        assert f(Config(learning_rate=rate)) == jnp.float32(rate) * 8
    assert len(traces) == 1
    assert f(Config(learning_rate=1.0, num_envs=4)) == 4
    assert len(traces) == 2
    f(Config(max_grad_norm=None))  # no clipping is another program
    assert len(traces) == 3


def test_vmap_over_stacked_learning_rates_traces_once():
    traces = []

    def f(config):
        traces.append(config)
        return validate(config).learning_rate * config.num_envs

    axes = jax.tree.map(lambda _: None, Config())
    axes = dataclasses.replace(axes, learning_rate=0)
    batched = jax.jit(jax.vmap(f, in_axes=(axes,)))
    for rates in (jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])):
        np.testing.assert_array_equal(batched(Config(learning_rate=rates)), 8 * rates)
    assert len(traces) == 1


ARRAYS = {"numpy": np.array, "jax": jnp.array, "torch": torch.tensor}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_numbers_in_arrays_are_checked(array):
    config = Config(learning_rate=array([2.0, 1.0]), gamma=array(0.5), max_grad_norm=array([[1.0]]))
    assert validate(config) is config
    for name, bad in (
        ("gamma", 1.9),
        ("gamma", [0.5, 1.5]),
        ("gae_lambda", [0.5, math.nan]),
        ("learning_rate", -0.5),
        ("ent_coef", [[math.inf]]),
    ):
        with pytest.raises(ConfigError, match=f"{name} must be (in|finite)"):
            validate(Config(**{name: array(bad)}))


def test_traced_numbers_have_no_values_to_check():
    rates = [0.5, 1.5]
    jax_rates = jax.jit(jax.vmap(lambda x: validate(Config(gamma=x)).gamma))(jnp.array(rates))
    torch_rates = torch.func.vmap(lambda x: validate(Config(gamma=x)).gamma)(torch.tensor(rates))
    assert jax_rates.tolist() == torch_rates.tolist() == rates


@pytest.mark.parametrize("bad", [object(), [0.5], {"gamma": 0.5}, "0.5"])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ConfigError, match="gamma must be a number; got"):
        validate(Config(gamma=bad))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_episode_steps": 3_000_000_000}, "max_episode_steps must be at most 2,147,483,647"),
        ({"num_envs": 2**31}, "num_envs must be at most 2,147,483,647; got 2,147,483,648"),
        (
            {"num_envs": 2**16, "num_steps": 2**15, "total_steps": 2**31},
            "in an update must be at most",
        ),
        (
            {"num_envs": 1, "num_steps": 1, "total_steps": 2**31},
            "updates that total_steps pays for",
        ),
        ({"hidden_sizes": (2**31,)}, "each of hidden_sizes must be at most"),
    ],
)
def test_what_an_int32_cannot_count_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        validate(Config(**given))


def test_a_budget_may_be_larger_than_an_int32():
    assert validate(Config(total_steps=2**40)).num_updates == 2**30


def test_what_the_budget_counts():
    steps, episodes = Config(), preset("reinforce")
    assert (steps.budget, steps.unit, steps.update_cost) == (
        "total_steps",
        "environment steps",
        1024,
    )
    assert (episodes.budget, episodes.unit, episodes.update_cost) == (
        "total_episodes",
        "episodes",
        16,
    )


def test_numpy_float64_is_checked_like_a_number():
    with pytest.raises(ConfigError, match="gamma must be in"):
        validate(Config(gamma=np.float64(1.5)))


@pytest.mark.parametrize(
    "given",
    [
        {"gamma": np.float32(1.5)},
        {"learning_rate": np.float32("nan")},
        {"hidden_sizes": 64},
        {"hidden_sizes": [64]},  # not hashable, so it fails later, in jit
        {"normalize_advantage": "no"},  # true
        {"env": None},
    ],
)
def test_wrong_types_are_rejected(given):
    with pytest.raises(ConfigError, match=next(iter(given))):
        validate(Config(**given))


@pytest.mark.parametrize("package", [jaxpg.core.config, torch_ref.config])
def test_parameters_of_the_environment_cannot_be_changed(package):
    """All configs that say nothing of them share one dictionary."""
    for shared in (
        package.OWN_PARAMS,
        package.Config(env_params={"gravity": 12.0}).env_params,
        package.EnvParams({"gravity": 12}, frozenset()),  # traced, whatever its type
    ):
        before = dict(shared)
        for change in (
            lambda x: x.__setitem__("gravity", 50.0),
            lambda x: x.update(gravity=50.0),
            lambda x: x.setdefault("masspole", 50.0),
            lambda x: x.pop("gravity"),
            lambda x: x.clear(),
            lambda x: operator.ior(x, {"gravity": 50.0}),
        ):
            with pytest.raises(TypeError, match=r"env_params cannot be changed: dataclasses.repl"):
                change(shared)
        assert dict(shared) == before
        for same in (pickle.loads(pickle.dumps(shared)), copy.deepcopy(shared)):
            assert (same, same.static, type(same)) == (shared, shared.static, package.EnvParams)


def test_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().gamma = 0.5
    assert hash(Config()) == hash(Config())


# Derived values


def test_num_updates_leaves_the_remainder_unspent():
    # 488 updates of 8 · 128 = 1024 steps make 499,712; a 489th would need 500,736.
    assert Config(total_steps=500_000, num_envs=8, num_steps=128).num_updates == 488
    # 4,000 = 266 · 15 + 10
    assert Config(**EPISODES, total_episodes=4_000, num_envs=15).num_updates == 266


@pytest.mark.parametrize(
    ("arithmetic", "float_type", "grid_bits"),
    [
        ("float32", "float32", None),
        ("float64", "float64", None),
        ("float32_grid", "float64", 23),
        ("float24_grid", "float64", 15),
    ],
)
def test_arithmetic(arithmetic, float_type, grid_bits):
    config = Config(arithmetic=arithmetic)
    assert (config.float_type, config.grid_bits) == (float_type, grid_bits)


@pytest.mark.parametrize(
    ("baseline", "critic"),
    [("none", False), ("constant", False), ("value", True), ("broadcast_value", True)],
)
def test_only_a_value_baseline_has_a_critic(baseline, critic):
    assert Config(baseline=baseline).critic is critic
