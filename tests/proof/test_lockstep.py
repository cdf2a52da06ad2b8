"""Lockstep: both packages in two processes, bit by bit; its verdicts, and what it refuses."""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxpg.core.algorithms
import jaxpg.core.arithmetic
import jaxpg.core.trace
import torch_ref
import torch_ref.algorithms
import torch_ref.arithmetic
import torch_ref.trace
from jaxpg import fast
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.presets import PRESETS
from jaxpg.proof import levels, lockstep
from jaxpg.proof.lockstep import (
    Job,
    TraceError,
    compare_runs,
    lockstep_commands,
    locksteps,
    traced,
)
from jaxpg.proof.synthetic import DIALS
from tests import pages

SMALL = {"num_steps": 16, "max_episode_steps": 20, "arithmetic": "float32_grid"}
SEEDS, UPDATES = [0, 1, 2**32 - 1], 25


OTHERS = sorted(levels.CASES.keys() & PRESETS.keys() - {"vpg"})


def cut(config, **changes):
    """The config on the grid, with short episodes and small batches."""
    return dataclasses.replace(config, **SMALL, num_envs=min(config.num_envs, 4), **changes)


PARTS = {
    "SGD, replay": cut(
        PRESETS["actor-critic"],
        value_data="replay",
        optimizer="sgd",
        learning_rate=0.1,
        value_learning_rate=1e-3,
        batch_size=128,
        buffer_size=300,  # it wraps
    ),
    "RMSprop, shared torso, entropy bonus, clipping, orthogonal": cut(
        PRESETS["vpg"],
        init="orthogonal",
        networks="shared",
        value_steps=1,
        optimizer="rmsprop",
        learning_rate=1e-3,
        ent_coef=0.01,
        normalize_advantage=True,
        max_grad_norm=0.02,
    ),
    "squashed Gaussian, Pendulum of other parameters": cut(
        PRESETS["vpg"],
        env="Pendulum-v1",
        env_params={"g": 9.0, "l": 1.2, "max_torque": 3.0},
        sigma="state",
        squash=True,
        ent_coef=0.01,
    ),
    "episodes, constant baseline, CartPole of other parameters": cut(
        PRESETS["reinforce"],
        estimator="total_return",
        discounting="absolute",
        baseline="constant",
        env_params={"gravity": 12, "masspole": 0.3, "masscart": 0.8, "length": 0.7, "tau": 0.03},
        ent_coef=0.1,
        max_grad_norm=0.5,
        activation="tanh",
    ),
    "PPO, Pendulum, observations and rewards normalised": cut(
        PRESETS["ppo"],
        env="Pendulum-v1",
        normalize_obs=True,
        normalize_reward=True,
    ),
    "choices at once, masked": cut(PRESETS["vpg"], env=DIALS, normalize_obs=True, ent_coef=0.01),
    "convolutions of stacked frames": cut(
        PRESETS["vpg"],
        env="Catch-bsuite",
        conv_features=(4, 3),
        hidden_sizes=(16,),
        frame_stack=2,
        learning_rate=1e-3,
    ),
    "episodes, replay, observations and rewards normalised": cut(
        PRESETS["article-corrected"],
        normalize_obs=True,
        normalize_reward=True,
    ),
}


def test_both_processes_are_given_the_numbers_of_the_config(monkeypatch):
    """Whosever they are: the fractions of numpy's float32 were cut off, on both sides alike."""
    given = []

    @contextlib.contextmanager
    def process(command, *_):
        given.append(json.loads(command[-1]))
        yield

    monkeypatch.setattr(lockstep, "_process", process)
    config = dataclasses.replace(
        PRESETS["vpg"],
        gamma=np.float32(0.75),
        ent_coef=jnp.float32(0.25),
        learning_rate=torch.tensor(0.5),
        env_params={"gravity": np.float32(9.5)},
    )
    with lockstep.traced([lockstep.Job(config, np.arange(2), np.int64(3))]):
        pass
    for (job,) in given:
        fields = job["config"]
        assert (fields["gamma"], fields["ent_coef"], fields["learning_rate"]) == (0.75, 0.25, 0.5)
        assert fields["env_params"] == {"gravity": 9.5}
        assert (job["seeds"], job["updates"]) == ([0, 1], 3)
    several = dataclasses.replace(config, gamma=np.array([0.5, 0.75]))
    with pytest.raises(ConfigError, match=r"one number; got an array of shape \(2,\)"):
        lockstep.traced([lockstep.Job(several, [0])]).__enter__()


@pytest.mark.parametrize(("seeds", "updates"), [([], 3), ([0], 0), ([0], 2.5)])
def test_nothing_to_run_is_refused(seeds, updates):
    with pytest.raises(ConfigError, match=r"must be an integer of at least 1|at least one seed"):
        lockstep.lockstep(PRESETS["vpg"], seeds, updates)


@pytest.mark.as_users_run(1)
@pytest.mark.thin(3)
@pytest.mark.parametrize(
    "configs",
    [{"vpg": cut(PRESETS["vpg"])}, {name: cut(PRESETS[name]) for name in OTHERS}, PARTS],
    ids=["vpg", "other presets", "parts"],
)
def test_two_processes_compute_the_same_bits(configs):
    jobs = [Job(config, SEEDS, UPDATES) for config in configs.values()]
    for name, runs in zip(configs, locksteps(jobs), strict=True):
        assert [run.seed for run in runs] == SEEDS
        for run in runs:
            assert (run.verdict, run.updates) == ("equal", UPDATES), f"{name}: {run.split}"
            assert 0 < run.gradient <= 1e-12
            assert all(ours == theirs for ours, theirs in run.sha256.values())
        assert len({run.sha256["params"] for run in runs}) == len(SEEDS)


@pytest.mark.slow
def test_processes_that_are_stopped_and_continued_lose_nothing(monkeypatch):
    """PYTHONUNBUFFERED leaves no buffer that would complete a write which a signal cut short."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    config = dataclasses.replace(PRESETS["actor-critic"], arithmetic="float32_grid")
    over = threading.Event()

    def pester(pids):
        while not over.wait(0.002):
            for signal_ in (signal.SIGSTOP, signal.SIGCONT):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):  # it has done its part
                        os.kill(pid, signal_)

    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    with traced([Job(config, [0], 10)]) as sides:
        records = [side(0) for side in sides]
        first = [next(run) for run in records]
        thread = threading.Thread(target=pester, args=([side.pid for side in started],))
        thread.start()
        try:
            rest = [list(run) for run in records]
        finally:
            over.set()
            thread.join()
    assert compare_runs([first[0], *rest[0]], [first[1], *rest[1]], seed=0).verdict == "equal"


def test_the_clipping_above_is_active():
    config = torch_ref.Config(
        **dataclasses.asdict(PARTS["RMSprop, shared torso, entropy bonus, clipping, orthogonal"])
    )
    for record in torch_ref.trace.records(config, 0, 3):
        assert record["metrics:policy_grad_norm"] > 0.02
        leaves = [x for name, x in record.items() if name.startswith("gradient:")]
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in leaves))
        np.testing.assert_allclose(norm, 0.02, rtol=1e-12)


# Verdicts, on records made by hand.


def run_of(updates=3):
    """Records like those of a trace: 4 steps of 2 environments, one parameter."""
    rng = np.random.default_rng(0)
    flags = np.array([[False, True], [False, False], [True, False], [False, False]])
    return [
        {
            "obs": rng.normal(size=(4, 2, 3)),
            "action": rng.integers(2, size=(4, 2), dtype=np.int32),
            "terminated": flags,
            "valid": np.ones((4, 2), bool),
            "episode_return": np.ones((4, 2)),
            "value": rng.normal(size=(4, 2)),
            "target": rng.normal(size=(4, 2)),
            "advantage": rng.normal(size=(4, 2)),
            "gradient:w": rng.normal(size=5),
            "params:b": rng.normal(size=2).astype(np.float32).astype(float),
            "params:w": rng.normal(size=5).astype(np.float32).astype(float),
            "metrics:env_steps": np.int32(8),
            "metrics:episodes": np.int32(2),
            "metrics:entropy": np.float64(0.6),
        }
        for _ in range(updates)
    ]


def changed(name, value, update=1):
    """`run_of` with one tensor of one update replaced."""
    run = run_of()
    run[update][name] = value(run[update][name])
    return run


def nudge(size):
    """Adds `size` to the entry in the middle."""

    def add(x):
        x = np.array(x)
        x.flat[x.size // 2] += size
        return x

    return add


def test_equal_runs_are_equal():
    result = compare_runs(run_of(), run_of(), seed=7)
    assert (result.seed, result.updates, result.env_steps) == (7, 3, 24)
    assert (result.verdict, result.split, result.gradient) == ("equal", None, 0.0)
    assert set(result.sha256) == {"actions", "obs", "returns", "params"}
    assert all(ours == theirs for ours, theirs in result.sha256.values())
    assert len(set(result.sha256.values())) == 4
    other_order = [dict(reversed(record.items())) for record in run_of()]
    assert compare_runs(run_of(), other_order, seed=7) == result


@pytest.mark.parametrize(
    ("name", "size", "step"),
    [
        ("obs", 1e-15, 2),
        ("action", 1, 2),
        ("episode_return", 1e-15, 2),
        ("value", 1e-10, None),
        ("advantage", 1e-10, None),
        ("gradient:w", 1e-10, None),
        ("params:w", 1e-15, None),
        ("metrics:episodes", 1, None),
    ],
)
def test_a_difference_is_named_and_is_a_fault(name, size, step):
    result = compare_runs(run_of(), changed(name, nudge(size)), seed=0)
    assert (result.verdict, result.updates) == ("fault", 1)
    assert (result.split.update, result.split.step, result.split.leaf.name) == (1, step, name)


def test_hashes_cover_the_update_that_differs():
    result = compare_runs(run_of(), changed("params:w", nudge(1e-15)), seed=0)
    differing = {name for name, (ours, theirs) in result.sha256.items() if ours != theirs}
    assert differing == {"params"}


def test_gradients_may_differ_by_1e_12_of_their_norm_and_the_worst_is_reported():
    result = compare_runs(run_of(), changed("gradient:w", lambda x: x * (1 + 5e-13)), seed=0)
    assert result.verdict == "equal"
    assert result.gradient == pytest.approx(5e-13, rel=1e-2)


@pytest.mark.parametrize("name", ["advantage", "gradient:w"])
def test_what_is_normalised_is_held_to_the_rounding_before_it_was_divided(name):
    """At update 1 the targets are nearer to V by 1e-3, so 1e-12 is 1e-9 of what follows."""

    def near(record):
        return record | {"target": record["value"] + 1e-3 * (record["target"] - record["value"])}

    def run(error):
        run = changed(name, lambda x: x * (1 + error))
        return [run[0], near(run[1]), run[2]]

    for normalized, error, verdict in (
        (True, 1e-10, "equal"),
        (True, 1e-8, "fault"),
        (False, 1e-10, "fault"),
    ):
        result = compare_runs(run(0.0), run(error), seed=0, normalized=normalized)
        assert result.verdict == verdict, (normalized, error)
    assert (
        compare_runs(
            run_of(), changed(name, lambda x: x * (1 + 1e-10)), seed=0, normalized=True
        ).verdict
        == "fault"
    )


def test_the_cause_is_named_before_its_consequences():
    theirs = changed("params:w", nudge(1e-3))
    theirs[1]["gradient:w"] = theirs[1]["gradient:w"] * 1.1
    assert compare_runs(run_of(), theirs, seed=0).split.leaf.name == "gradient:w"
    theirs[1]["advantage"] = theirs[1]["advantage"] * 1.1
    assert compare_runs(run_of(), theirs, seed=0).split.leaf.name == "advantage"
    theirs[1]["action"] = 1 - theirs[1]["action"]
    assert compare_runs(run_of(), theirs, seed=0).split.leaf.name == "action"


def test_equal_values_in_other_bits_are_a_fault():
    ours, theirs = changed("obs", lambda x: x * 0.0), changed("obs", lambda x: x * -0.0)
    result = compare_runs(ours, theirs, seed=0)
    assert (result.verdict, result.split.leaf.name) == ("fault", "obs")
    result = compare_runs(run_of(), changed("params:w", np.float32), seed=0)
    assert (result.verdict, result.split.leaf.name) == ("fault", "params:w")


def not_a_number(x):
    return x * np.nan


def without(name):
    run = run_of()
    del run[1][name]
    return run


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (run_of(2), run_of(3), "jaxpg has ended first"),
        (run_of(3), run_of(2), "torch_ref has ended first"),
        ([], [], "neither run has an update"),
        (without("obs"), run_of(), "jaxpg has no tensor 'obs'"),
        (run_of(), without("params:w"), "torch_ref has no tensor 'params:w'"),
        (changed("obs", not_a_number), changed("obs", not_a_number), "not finite in a and b"),
        (*[changed("gradient:w", not_a_number)] * 2, "not finite in a and b"),
        (run_of(), changed("obs", lambda x: x[:3]), "shape (4, 2, 3) is not (3, 2, 3)"),
        (run_of(), changed("action", np.float64), "kind int is not float"),
    ],
)
def test_what_cannot_be_compared_never_passes(ours, theirs, reason):
    result = compare_runs(ours, theirs, seed=0)
    assert result.verdict == "incomparable"
    assert reason in str(result.split)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("metrics:episodes", "no episode ended"), ("gradient:w", "'gradient:w' is zero at every")],
)
def test_runs_that_show_nothing_are_no_proof(name, reason):
    run = run_of()
    for record in run[:2]:
        record[name] = record[name] * 0
    assert compare_runs(run, run.copy(), seed=0).verdict == "equal"
    run[2][name] = run[2][name] * 0
    result = compare_runs(run, run.copy(), seed=0)
    assert result.verdict == "incomparable"
    assert reason in str(result.split)


def midpoint_events(at, count=3):
    """Roundings of so many optimizer steps, of which one straddles a midpoint."""
    low, high = np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(1))
    middle = (float(low) + float(high)) / 2
    sides = ([], [])
    for step in range(count):
        for side, (value, size) in zip(sides, ((low, -1e-15), (high, 1e-15)), strict=True):
            parted = step == at
            after = float(value if parted or step > at else low)
            before = middle + size if parted else after
            side.append(
                {"params:w": np.array([after]), "params:w:before_rounding": np.array([before])}
            )
    return sides


@pytest.mark.parametrize(("at", "verdict"), [(0, "straddle"), (1, "straddle"), (2, "fault")])
def test_a_gradient_is_explained_by_a_rounding_before_it_alone(at, verdict):
    """Of three steps the last one's gradient differs, which its own rounding cannot explain."""
    theirs = changed("gradient:w", lambda x: x * (1 + 1e-8))
    theirs[1]["params:w"] = theirs[1]["params:w"] * (1 + 1e-6)
    result = compare_runs(run_of(), theirs, seed=0, explain=lambda update: midpoint_events(at))
    assert (result.verdict, result.split.update) == (verdict, 1)
    expected = "params:w" if verdict == "straddle" else "gradient:w"
    assert result.split.leaf.name == expected


@pytest.mark.parametrize(
    ("was", "verdict"), [(1e-6, "fault"), (0.2, "straddle"), (0.0, "straddle"), (None, "straddle")]
)
def test_a_small_parameter_is_judged_by_what_it_is_and_was(was, verdict):
    """2e-15 are 2e-9 of 1e-6, beside a number of 8; what was 0, or is new, has the norm alone."""
    small = np.float32(1e-6)
    middle = (float(small) + float(np.nextafter(small, np.float32(1)))) / 2
    ours, theirs, sides = run_of(), run_of(), ([], [])
    for run, side, error in zip((ours, theirs), sides, (-1e-15, 1e-15), strict=True):
        before = np.array([8.0, middle + error])
        after = before.astype(np.float32).astype(float)
        side.append({"params:w": after, "params:w:before_rounding": before})
        for record in run:
            record["params:w"] = np.array([8.0, 0.5 if was is None else was])
        run[0 if was is None else 1]["params:w"] = after
    result = compare_runs(ours, theirs, seed=0, explain=lambda update: sides)
    assert (result.verdict, result.split.update) == (verdict, 0 if was is None else 1)


@pytest.mark.parametrize(
    ("error", "step", "verdict"),
    [(1e-14, 1, "straddle"), (1e-10, 1, "fault"), (1e-10, 0, "fault"), (1e-10, 2, "straddle")],
)
def test_a_straddle_is_none_after_a_gradient_that_was_wrong(error, step, verdict):
    """At the second of three steps, where the given one's gradient differs by so much."""
    theirs = run_of()
    theirs[1]["params:w"] = theirs[1]["params:w"] * (1 + 1e-6)
    sides = midpoint_events(1)
    for side, events in enumerate(sides):
        for n, event in enumerate(events):
            event["gradient:w"] = np.array([0.5 * (1 + error * (side and n == step))])
    result = compare_runs(run_of(), theirs, seed=0, explain=lambda update: sides)
    assert result.verdict == verdict


@pytest.mark.parametrize(("joint", "verdict"), [(False, "fault"), (True, "straddle")])
@pytest.mark.parametrize("kind", ["gradient", "params"])
def test_one_networks_rounding_explains_nothing_of_another(kind, joint, verdict):
    """The critic straddles a midpoint, and the policy differs; with one optimizer it might."""
    name = f"{kind}:policy.w"
    ours, theirs = run_of(), run_of()
    for record in (*ours, *theirs):
        record[name] = np.array([0.5])
    theirs[1][name] = np.array([0.6])
    renamed = {"params:w": "params:value.w"}
    renamed |= {f"{a}:before_rounding": f"{b}:before_rounding" for a, b in renamed.items()}
    sides = [[{renamed[k]: x for k, x in e.items()} for e in side] for side in midpoint_events(0)]
    for side in sides:
        for event in side:
            event |= {
                "params:policy.w": np.array([0.5]),
                "params:policy.w:before_rounding": np.array([0.5]),
            }
    result = compare_runs(ours, theirs, seed=0, joint=joint, explain=lambda update: sides)
    assert result.verdict == verdict


def test_what_is_streamed_and_not_compared_is_a_number():
    both = changed("metrics:entropy", lambda x: x * np.nan)
    result = compare_runs(both, both.copy(), seed=0)
    assert (result.verdict, "'metrics:entropy'" in str(result.split)) == ("incomparable", True)


def test_an_advantage_is_explained_by_no_rounding():
    theirs = changed("advantage", lambda x: x * (1 + 1e-8))
    result = compare_runs(run_of(), theirs, seed=0, explain=lambda update: midpoint_events(0))
    assert (result.verdict, result.split.leaf.name) == ("fault", "advantage")


# Straddles and faults, in real runs: one environment's position is planted at one step.

TINY = Config(num_envs=2, num_steps=12, hidden_sizes=(4,), value_steps=2, arithmetic="float32_grid")
AT = 5  # steps since an episode's start at which the position is planted
BELOW = np.float32(0.015)
MIDPOINT = (float(BELOW) + float(np.nextafter(BELOW, np.float32(1)))) / 2


@pytest.fixture
def x64_everywhere():
    """JAX's 64-bit mode in every thread."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def jaxpg_with(position):
    """Builds a jaxpg with a CartPole that is at `position` after AT steps."""
    arithmetic, algorithms = jaxpg.core.arithmetic, jaxpg.core.algorithms
    env = algorithms.env.make(TINY.env, float_type="float64")

    def step(key, state, action):
        state, *rest = env.step(key, state, action)
        x = jnp.where(state.time == AT, position, state.inner.x)
        return state._replace(inner=state.inner.replace(x=x)), *rest

    def build(config, round_floats=arithmetic.round_floats):
        planted = arithmetic.grid_env(env._replace(step=step), round_floats)
        return algorithms.build(config, round_floats)._replace(env=planted)

    return build


def torch_ref_with(position):
    """The same of torch_ref."""
    arithmetic, algorithms = torch_ref.arithmetic, torch_ref.algorithms
    env = algorithms.env.make(TINY.env, float_type="float64")

    def step(key, state, action):
        state, *rest = env.step(key, state, action)
        x = torch.where(
            state.time == AT, torch.tensor(position, dtype=torch.float64), state.inner.x
        )
        return state._replace(inner=state.inner._replace(x=x)), *rest

    def build(config, round_floats=arithmetic.round_floats):
        planted = arithmetic.grid_env(env._replace(step=step), round_floats)
        return algorithms.build(config, round_floats)._replace(env=planted)

    return build


def planted(ours, theirs, explained=None):
    """The result for CartPoles planted at these positions; `explained`: theirs in `explain`."""
    a, b = jaxpg_with(ours), torch_ref_with(theirs)
    again = torch_ref_with(theirs if explained is None else explained)
    config = torch_ref.Config(**dataclasses.asdict(TINY))
    return compare_runs(
        jaxpg.core.trace.records(TINY, 0, 3, a(TINY)),
        torch_ref.trace.records(config, 0, 3, b(config)),
        seed=0,
        explain=lambda update: (
            list(jaxpg.core.trace.roundings(TINY, 0, update, a)),
            list(torch_ref.trace.roundings(config, 0, update, again)),
        ),
    )


def test_both_sides_of_a_midpoint_are_a_straddle(x64_everywhere):
    assert planted(MIDPOINT - 2e-17, MIDPOINT - 1e-17).verdict == "equal"
    result = planted(MIDPOINT - 1e-17, MIDPOINT + 1e-17)
    assert result.verdict == "straddle"
    assert (result.split.update, result.split.step) == (0, AT - 1)
    assert result.split.leaf.name == "next_state.inner.x"
    assert result.split.before == (MIDPOINT - 1e-17, MIDPOINT + 1e-17)
    assert "on either side of the middle between a and b" in str(result.split)


def test_what_is_further_apart_is_a_fault(x64_everywhere):
    result = planted(MIDPOINT - 1e-17, MIDPOINT + 1e-10)
    assert (result.verdict, result.split.leaf.name) == ("fault", "next_state.inner.x")
    assert "A fault, not a straddle" in str(result.split)


def test_a_split_that_does_not_show_again_is_a_fault(x64_everywhere):
    result = planted(MIDPOINT - 1e-17, MIDPOINT + 1e-17, explained=MIDPOINT - 1e-17)
    assert result.verdict == "fault"
    assert "no rounding explains it" in str(result.split)


def test_a_split_is_explained_by_what_was_traced(x64_everywhere):
    made = []

    def build(config, *given):
        made.append(given)
        return jaxpg.core.algorithms.build(config, *given)

    jaxpg.core.trace._do(io.BytesIO(), build, dataclasses.asdict(TINY), [0], explain=0)
    assert [len(given) for given in made] == [0, 1, 1]  # two are told how to round


def test_a_fault_in_a_real_run_is_named_by_its_cause(x64):
    """γ off by 1e-7 moves the first advantages, and through them everything."""
    twin = torch_ref.Config(**{**dataclasses.asdict(TINY), "gamma": TINY.gamma + 1e-7})
    ours, theirs = jaxpg.core.trace.records(TINY, 0, 3), torch_ref.trace.records(twin, 0, 3)
    result = compare_runs(ours, theirs, seed=0)
    assert (result.verdict, result.updates) == ("fault", 0)
    assert result.split.leaf.name == "advantage"


@pytest.mark.thin(4)
@pytest.mark.parametrize(
    ("form", "env", "collect", "scaled"),
    [("cpu", "CartPole-v1", "episodes", True), ("plain", "Pendulum-v1", "steps", False)],
)
def test_all_roundings_of_an_update_are_seen_and_agree(
    form, env, collect, scaled, x64_everywhere, monkeypatch
):
    """Recorded, the update still ends where it ended; and both sides round the same things."""
    monkeypatch.setenv("JAXPG_FORM", form)
    config = dataclasses.replace(
        TINY,
        collect=collect,
        env=env,
        max_episode_steps=12,
        normalize_obs=scaled,
        normalize_reward=scaled,
    )
    twin = torch_ref.Config(**dataclasses.asdict(config))
    ours = list(jaxpg.core.trace.roundings(config, 3, 1, fast.build))
    theirs = list(torch_ref.trace.roundings(twin, 3, 1))
    *_, record = torch_ref.trace.records(twin, 3, 2)
    steps = int(record["valid"].any(axis=1).sum())
    assert len(ours) == len(theirs) == steps + config.value_steps
    assert lockstep._first_rounding({}, ours, theirs) is None
    for n in range(steps):
        for event in (ours[n], theirs[n]):
            before, after = event["next_state.obs:before_rounding"], event["next_state.obs"]
            np.testing.assert_array_equal(after, before.astype(np.float32))
            live = record["valid"][n]
            np.testing.assert_array_equal(after[live], record["next_obs"][n][live])
            assert ("action" in event) == (env == "Pendulum-v1")
    named = [("policy.hidden_0.weight", steps), ("value.hidden_0.weight", -1)]
    if scaled:
        named += [(f"obs.{name}", -1) for name in ("mean", "var")]
    for name, event in ((f"params:{name}", event) for name, event in named):
        for side in (ours, theirs):
            np.testing.assert_array_equal(side[event][name], record[name])
            assert np.any(side[event][name] != side[event][f"{name}:before_rounding"])
    for side in (ours, theirs):
        events = [n for n, event in enumerate(side) if "reward_scale.moments.var" in event]
        assert events == ([steps - 1] if scaled else [])


@pytest.mark.parametrize("joint", [True, False])
def test_the_roundings_of_every_minibatch_are_seen_in_their_order(
    joint, x64_everywhere, monkeypatch
):
    """A form in which the first step stands apart from the others traces each rounding twice: with
    one optimizer the second trace was taken for the critic's, with two the policy's was."""
    monkeypatch.setenv("JAXPG_FORM", "cpu")
    config = dataclasses.replace(levels.PPO, joint_loss=joint, arithmetic="float24_grid")
    twin = torch_ref.Config(**dataclasses.asdict(config))
    ours = list(jaxpg.core.trace.roundings(config, 3, 0, fast.build))
    theirs = list(torch_ref.trace.roundings(twin, 3, 0))
    assert len(ours) == len(theirs) == config.num_steps + config.epochs * config.minibatches
    assert lockstep._first_rounding({}, ours, theirs) is None
    (record,) = torch_ref.trace.records(twin, 3, 1)
    for side in (ours, theirs):
        for name, x in side[-1].items():
            if name in record and name.startswith("params:"):
                np.testing.assert_array_equal(x, record[name])
        assert {"params:policy.output.bias", "params:value.output.bias"} <= side[-1].keys()


# The processes and their streams.

JOBS = [Job(TINY, [3], 2)]


@pytest.fixture
def stand_in(tmp_path):
    """Makes the environment in which `jaxpg.proof.trace` is a program of our own."""

    def make(program):
        proof = tmp_path / "jaxpg" / "proof"
        proof.mkdir(parents=True)
        (proof.parent / "__init__.py").touch()
        (proof / "trace.py").write_text(program)
        return {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}  # before the checkout

    return make


HEADER = 'print(\'{"seed": 3, "bytes": 100}\');'
END = 'print(\'{"seed": 3, "packages": ["numpy"]}\')'


@pytest.mark.parametrize("command", ["python mine.py", [], ["python", 3]])
def test_a_command_is_words_and_no_line(command):
    with pytest.raises(ValueError, match="must be a list of words; got"):
        lockstep_commands(["python", "mine.py"], command)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise OSError('no more memory')", "ended with status 1:\n(.|\n)*OSError: no more memory"),
        ("import os; os._exit(9)", "ended with status 9; its standard error is empty"),
        (HEADER + "print('x' * 39)", "sent 40 of a record's 100 bytes and ended with status 0"),
        (HEADER + "print('x' * 99)", "sent a record that cannot be read"),
        ("print('hello')", "sent b'hello\\\\n' where a record begins"),
        (END.replace("3", "4"), "sent seed 4 where seed 3 was due"),
        (END.replace("numpy", "torch"), "the jaxpg process has imported torch"),
    ],
)
def test_a_process_that_fails_is_reported(stand_in, program, message):
    options = {"packages": ("jaxpg", "jaxpg"), "environments": (stand_in(program),) * 2}
    with pytest.raises(TraceError, match=message), traced(JOBS, **options) as (ours, _):
        list(ours(3))


def test_the_other_process_is_killed(stand_in, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    for name, value in stand_in("raise SystemExit(2)").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TraceError, match=r"the jaxpg process .* ended with status 2"):
        locksteps(JOBS)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_a_process_that_imports_the_other_framework_is_refused(stand_in, tmp_path):
    """Not beside one that does not; chex is an empty module here."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "chex.py").touch()
    (mixed / "sitecustomize.py").write_text("import chex")
    environments = (stand_in(END), {"PYTHONPATH": str(mixed)})
    with traced(JOBS, environments=environments) as (clean, refused):
        assert not list(clean(3))
        with pytest.raises(TraceError, match="the torch_ref process has imported chex"):
            list(refused(3))


def test_it_imports_no_framework():
    code = (
        "import sys, jaxpg.proof.lockstep; heavy = {'jax', 'torch', 'flax', 'torch_ref'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Commands of one's own.

WRITER = """
import io, json, sys
import numpy as np

def send(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    header = json.dumps({"bytes": len(file.getvalue())})
    sys.stdout.buffer.write(header.encode() + b"\\n" + file.getvalue())

"""
ONE_ARRAY = """
file = io.BytesIO()
np.save(file, np.ones(3))
print(json.dumps({"bytes": len(file.getvalue())}), flush=True)
sys.stdout.buffer.write(file.getvalue())
"""
DAMAGED = """
file = io.BytesIO()
np.savez_compressed(file, a=np.ones(999))
sent = bytearray(file.getvalue())
sent[60:70] = b"x" * 10
print(json.dumps({"bytes": len(sent)}), flush=True)
sys.stdout.buffer.write(sent)
"""
TWICE = """
import warnings, zipfile
warnings.simplefilter("ignore")
array, file = io.BytesIO(), io.BytesIO()
np.save(array, np.ones(3))
with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("a.npy", array.getvalue())
    archive.writestr("a.npy", array.getvalue())
print(json.dumps({"bytes": len(file.getvalue())}), flush=True)
sys.stdout.buffer.write(file.getvalue())
"""
COUNTS = "for update in range(3): send(b=np.full(2, update + 1.0), a=np.ones(1));"


def own(program):
    return [sys.executable, "-c", WRITER + program]


def test_two_commands_that_stream_the_same_are_equal():
    assert lockstep_commands(own(COUNTS), own(COUNTS)) is None


def test_the_first_array_that_differs_is_named_in_the_order_it_was_sent():
    other = (
        "for update in range(3): send(b=np.full(2, max(update, 1.0)), a=np.full(1, float(update)));"
    )
    split = lockstep_commands(own(COUNTS), own(other))
    assert (split.update, split.leaf.name, split.verdict) == (0, "a", "different")
    split = lockstep_commands(own(COUNTS), own(COUNTS.replace("+ 1.0", "* 2 + 1.0")))
    assert (split.update, split.leaf.name, split.leaf.at) == (1, "b", (0,))
    assert lockstep_commands(own(COUNTS), own(COUNTS.replace("1.0", "1.01")), tolerance=0.1) is None


def test_a_command_that_ends_first_is_no_proof():
    split = lockstep_commands(own(COUNTS), own(COUNTS.replace("3", "2")))
    assert (split.update, split.verdict) == (2, "incomparable")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            COUNTS + "\nraise OSError('no more memory')",
            "second .* status 1:\n(.|\n)*no more memory",
        ),
        (COUNTS + "\nprint('done')", r"the second process sent b'done\\n' where a record begins"),
        ("""print('{"bytes": 100}')""", "sent 0 of a record's 100 bytes"),
        ("""print('{"bytes": 1000000000000000}')""", "sent 0 of a record's 1000000000000000 bytes"),
        ("""print('{"bytes": -1}')""", "where a record begins"),
        ("""print('{"bytes": 3.7}')""", "where a record begins"),
        ("""print('{"bytes": 1e999}')""", "where a record begins"),
        ("print('[]')", "where a record begins"),
        ("print('[' * 100_000)", "where a record begins"),
        ("""print('{"bytes": 0}')""", "a record that cannot be read"),
        (ONE_ARRAY, "a record that cannot be read"),
        (DAMAGED, "a record that cannot be read"),
        (TWICE, r"a record that cannot be read \(two arrays have one name: a, a\)"),
    ],
)
def test_a_command_that_sends_no_record_is_refused(program, message):
    with pytest.raises(TraceError, match=message):
        lockstep_commands(own(COUNTS), own(program))


def test_a_command_that_hangs_is_given_up_after_a_time():
    hangs = COUNTS + "\nimport time; sys.stdout.flush(); time.sleep(100)"
    with pytest.raises(TraceError, match="the second process has sent nothing for 6 s"):
        lockstep_commands(own(COUNTS.replace("3", "9")), own(hangs), timeout=6)
    closes = hangs.replace("time.sleep", "sys.stdout.close(); import os; os.close(1); time.sleep")
    with pytest.raises(TraceError, match="the first process has closed its output for 6 s"):
        lockstep_commands(own(closes), own(COUNTS), timeout=6)


def test_nobody_waits_for_a_command_whose_other_has_failed(tmp_path):
    waited = tmp_path / "waited"
    slow = f"import pathlib, time; time.sleep(60); pathlib.Path({str(waited)!r}).touch()"
    with pytest.raises(TraceError, match=r"the second process failed .*\n.*a bad flag"):
        lockstep_commands(own(slow), own("sys.exit('a bad flag')"))
    assert not waited.exists()


def test_what_a_command_has_started_is_stopped_with_it(tmp_path):
    worker = tmp_path / "worker"
    starts = f"sleep 100 & echo $! > {worker}; wait"
    then = f"""
import pathlib, time
worker = pathlib.Path({str(worker)!r})
while not (worker.exists() and worker.read_text()):
    time.sleep(0.01)
sys.exit(1)
"""
    with pytest.raises(TraceError, match="the first process failed"):
        lockstep_commands(own(then), ["sh", "-c", starts])
    state = Path(f"/proc/{worker.read_text().strip()}/stat")
    for _ in range(100):
        try:
            if state.read_text().split()[2] == "Z":  # whoever adopted it has not noticed yet
                return
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("it still runs")


def test_commands_that_send_nothing_show_nothing():
    with pytest.raises(ValueError, match="no update was compared"):
        lockstep_commands(own(""), own(""))


def test_a_command_that_is_not_there():
    with pytest.raises(TraceError, match="the second process cannot be started"):
        lockstep_commands(own(COUNTS), ["./no-such-trainer"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heading", "files"),
    [
        ("Two trainers of your own", ["common.py", "in_torch.py", "in_jax.py"]),
        ("Your trainer against jaxpg's", ["mine.py"]),
    ],
)
def test_the_trainers_of_the_page(tmp_path, monkeypatch, capsys, heading, files):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "lockstep.md"
    _, _, after = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    section = Path("section.md")
    section.write_text(after.partition("\n## ")[0], encoding="utf-8")
    blocks = list(pages.blocks(section))
    *programs, run = [code for language, code, _ in blocks if language == "python"]
    assert [code.split()[:2] for code in programs] == [["#", name] for name in files]
    for name, code in zip(files, programs, strict=True):
        Path(name).write_text(code, encoding="utf-8")
    exec(compile(run, str(page), "exec"), {})
    (shown,) = [code for language, code, _ in blocks if language == "text"]
    printed, shown = (re.sub(r"(\d\.\d{5})\d+", r"\1", x) for x in (capsys.readouterr().out, shown))
    assert printed == shown
