"""The levels of the certificate: what both packages compute from one input, and how close it is.

A level runs one config and seed on each side and judges the two results. The same levels catch the
faults of `faults`. Whole runs of two separate processes are `lockstep`'s; here both packages share
one process.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple, get_args

import jax

from jaxpg import parity
from jaxpg.core.config import FIELDS, Config
from jaxpg.core.presets import PRESETS
from jaxpg.proof import batch, lockstep, pairs
from jaxpg.proof.synthetic import DIALS

REINFORCE, CRITIC, VPG = PRESETS["reinforce"], PRESETS["actor-critic"], PRESETS["vpg"]
PPO = dataclasses.replace(
    VPG,
    fit="ppo",
    epochs=3,
    minibatches=4,
    value_steps=1,
    num_steps=32,
    normalize_advantage=True,
    normalize_over="minibatch",
    optimizer_eps=1e-5,
)
PPO_OF_EPISODES = dataclasses.replace(
    REINFORCE,
    env="Pendulum-v1",
    fit="ppo",
    epochs=2,
    minibatches=2,
    num_envs=4,
    baseline="value",
    value_steps=1,
    normalize_advantage=True,
)
CASES = {
    **{name: config for name, config in PRESETS.items() if config.env == "CartPole-v1"},
    "constant baseline": dataclasses.replace(REINFORCE, baseline="constant"),
    "total return, SGD": dataclasses.replace(
        REINFORCE,
        estimator="total_return",
        discounting="absolute",
        gamma=0.99,
        optimizer="sgd",
        learning_rate=1e-4,
    ),
    "total return, critic": dataclasses.replace(
        REINFORCE,
        estimator="total_return",
        discounting="absolute",
        baseline="value",
        value_target="monte_carlo",
    ),
    "constant baseline, absolute": dataclasses.replace(
        REINFORCE, estimator="reward_to_go", baseline="constant", discounting="absolute"
    ),
    "steps, absolute": dataclasses.replace(VPG, discounting="absolute", value_target="monte_carlo"),
    "shared torso, RMSprop": dataclasses.replace(
        CRITIC, networks="shared", value_steps=1, optimizer="rmsprop", ent_coef=0.01
    ),
    "replay, SGD": dataclasses.replace(
        CRITIC,
        value_data="replay",
        value_steps=2,
        optimizer="sgd",
        learning_rate=0.1,
        value_learning_rate=1e-4,
    ),
    "Gaussian, normalised": dataclasses.replace(
        VPG, env="Pendulum-v1", normalize_advantage=True, activation="elu"
    ),
    "Gaussian, σ of the state": dataclasses.replace(
        REINFORCE, env="Pendulum-v1", sigma="state", baseline="value", num_envs=4
    ),
    "group, lengths": dataclasses.replace(
        REINFORCE, baseline="group", reduction="trajectory_means", estimator="reward_to_go"
    ),
    "PPO, joint loss, bounds": dataclasses.replace(
        PPO,
        joint_loss=True,
        clip_coef=0.3,
        clip_value=0.2,
        target_kl=0.01,
        ent_coef=0.01,
        hidden_sizes=(16, 16),
    ),
    "PPO, whole episodes, Gaussian": PPO_OF_EPISODES,
    "PPO, penalty, whole episodes, Gaussian": dataclasses.replace(
        PPO_OF_EPISODES, fit="ppo_penalty"
    ),
    "NPG, whole episodes, no critic": dataclasses.replace(REINFORCE, fit="npg"),
    "TRPO, Gaussian": dataclasses.replace(
        VPG,
        env="Pendulum-v1",
        fit="trpo",
        normalize_advantage=True,
        activation="silu",
        ent_coef=0.01,
    ),
    "TRPO, σ of the state": dataclasses.replace(
        REINFORCE, env="Pendulum-v1", sigma="state", fit="trpo", num_envs=4
    ),
    "PPO, shared torso, orthogonal": dataclasses.replace(
        PPO, networks="shared", normalize_over="batch", init="orthogonal"
    ),
    "PPO, observations and rewards normalised": dataclasses.replace(
        PPO, epochs=2, joint_loss=True, normalize_obs=True, normalize_reward=True
    ),
    "PPO, squashed Gaussian": dataclasses.replace(
        PPO,
        env="Pendulum-v1",
        max_episode_steps=60,  # so that some end
        squash=True,
        ent_coef=0.01,
        normalize_over="batch",
    ),
    "choices at once, masked": dataclasses.replace(VPG, env=DIALS, num_steps=32, ent_coef=0.01),
    "TRPO, choices at once, masked": dataclasses.replace(
        REINFORCE, env=DIALS, fit="trpo", num_envs=4, normalize_obs=True
    ),
    "episodes and replay, normalised": dataclasses.replace(
        CRITIC,
        collect="episodes",
        num_envs=4,
        value_data="replay",
        value_steps=2,
        normalize_obs=True,
        normalize_reward=True,
    ),
    "convolutions, stacked frames": dataclasses.replace(
        VPG, env="Catch-bsuite", conv_features=(4, 8), hidden_sizes=(16,), frame_stack=2
    ),
    "PPO, shared convolutions, orthogonal": dataclasses.replace(
        PPO,
        env="Catch-bsuite",
        networks="shared",
        conv_features=(8,),
        hidden_sizes=(16,),
        activation="tanh",
        init="orthogonal",
        normalize_obs=True,
    ),
    "whole episodes, stacked observations": dataclasses.replace(REINFORCE, frame_stack=3),
}
"""Every preset, and what else covers each optimizer, collect, network and distribution."""
OPTIMIZER_CASES = {
    f"{optimizer}, {'clipped' if clip else 'not clipped'}": dataclasses.replace(
        VPG, optimizer=optimizer, max_grad_norm=clip
    )
    for optimizer in get_args(FIELDS["optimizer"].type)
    for clip in (None, 0.5)
} | {"adam, other decay rates": dataclasses.replace(VPG, adam_b1=0.8, adam_b2=0.95)}


def _cases(*labels: str) -> dict[str, Config]:
    return {label: CASES[label] for label in labels}


NOISE_CASES = _cases(
    *("vpg", "reinforce", "article", "replay, SGD", "Gaussian, normalised"),
    *("PPO, joint loss, bounds", "choices at once, masked", "convolutions, stacked frames"),
)
NETWORK_CASES = _cases(
    *("vpg", "reinforce", "shared torso, RMSprop"),
    *("Gaussian, normalised", "Gaussian, σ of the state"),
    *("PPO, shared torso, orthogonal", "PPO, observations and rewards normalised"),
    *("convolutions, stacked frames", "PPO, shared convolutions, orthogonal"),
)
DISTRIBUTION_CASES = _cases(
    *("vpg", "article", "Gaussian, normalised"),
    *("PPO, squashed Gaussian", "choices at once, masked"),
)
FREE_CASES = _cases(
    *("vpg", "reinforce", "article-corrected", "shared torso, RMSprop"),
    *("replay, SGD", "Gaussian, σ of the state", "PPO, observations and rewards normalised"),
    *("PPO, squashed Gaussian", "choices at once, masked"),
    *("convolutions, stacked frames", "whole episodes, stacked observations"),
)
SGD_CASES = _cases("article-corrected", "total return, SGD", "replay, SGD")
MAY_BE_ZERO = (  # on both sides
    "update_*.gradient_*",  # of a step that is left out, or whose ratios are all clipped
    "*.log_std",  # at the start
    "obs.*",  # moments, at the start
    "*.bias",  # at the start, beside an orthogonal kernel
    "*kl",  # of a step that was not taken
    "*accepted",
    "*value_loss",  # without a critic
    "*value_grad_norm",
    "*explained_variance",
    "*clip_fraction",  # where every step is near the policy that acted
    "terminated",  # in an update in which no episode ends so
    "truncated",
)


class Outcome(NamedTuple):
    """What one comparison found."""

    passed: bool
    error: float  # of the worst leaf, relative; inf where there is no such number
    where: str  # that leaf, or the first that fails; in a run with its update
    raised: bool = False  # whether a side has raised instead


# How two results are judged.


def judge_tensors(tolerance: float, ours: dict[str, Any], theirs: dict[str, Any]) -> Outcome:
    """Every leaf within the tolerance; bits of the same width. Names the first leaf that is not."""
    ours = dict(ours)
    scale = ours.pop("scale", None)
    zeros = [name for name in ours if any(fnmatch(name, pattern) for pattern in MAY_BE_ZERO)]
    try:
        report = parity.compare(
            ours,
            theirs,
            tolerance=tolerance,
            scale=scale,
            allow_zero=zeros,
            same_dtype=not tolerance,
        )
    except ValueError as problem:
        return Outcome(False, math.inf, str(problem))
    failed = [leaf for leaf in report.leaves if leaf.reason]
    leaf = failed[0] if failed else report.worst
    assert leaf is not None
    unfit = "" if math.isfinite(leaf.error) else f": {leaf.reason}"
    return Outcome(report.ok, leaf.error, leaf.name + unfit)


def judge_free_run(tolerance: float, ours: list, theirs: Iterable) -> Outcome:
    """What was met and learned, within the tolerance at every update; flags and counts equal."""
    worst = Outcome(True, 0.0, "")
    for update, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        kept = [{name: x for name, x in side.items() if _was_met(name)} for side in (a, b)]
        found = judge_tensors(tolerance, *kept)
        found = found._replace(where=f"update {update}, {found.where}")
        if not found.passed:
            return found
        worst = max(worst, found, key=lambda outcome: outcome.error)
    return worst


def _was_met(name: str) -> bool:
    return name in lockstep.ROLLOUT or name.startswith("params:")


def judge_lockstep(tolerance: float, ours: list, theirs: Iterable) -> Outcome:
    """Bits at every update."""
    return _lockstep_outcome(lockstep.compare_runs(ours, theirs, seed=0))


def _lockstep_outcome(run: lockstep.Lockstep) -> Outcome:
    if run.split is None:
        return Outcome(True, 0.0, "")
    leaf, step = run.split.leaf, run.split.step
    place = [f"update {run.split.update}", *([] if step is None else [f"step {step}"])]
    what = leaf.name or leaf.reason
    return Outcome(False, leaf.error, f"{run.verdict} at {', '.join([*place, what])}")


class Level(NamedTuple):
    """Something that both packages compute from a config and a seed."""

    name: str
    compares: str
    tolerance: float  # 0: equal to the bit
    cases: Mapping[str, Config]  # by label
    adapt: Callable[[Config], Config]  # how this level runs a config
    pair: pairs.Pair
    judge: Callable[[float, Any, Any], Outcome] = judge_tensors  # (tolerance, ours, theirs)


class Row(NamedTuple):
    """One level over many configurations."""

    level: str
    compares: str
    configurations: int
    seeds: int  # of each
    worst: str  # configuration and leaf; empty where all is equal to the bit
    error: float  # relative
    tolerance: float
    passed: bool
    seconds: float


def measure(
    level: Level,
    cases: Mapping[str, Config],
    seeds: Sequence[int],
    report: Callable[[str], None],
) -> Row:
    """Run a level on several configs and seeds.

    Args:
      cases: configs by label, at least one.
      seeds: integers in [0, 2^32), at least one.
      report: told what is about to be compared.
    """
    began, found = time.perf_counter(), []
    for label, config in cases.items():
        report(f"{level.name}: {label}")
        for seed in seeds:
            outcome = attempt(level, config, seed)
            found.append(outcome._replace(where=f"{label}: {outcome.where}"))
    return _row(level.name, level.compares, level.tolerance, cases, seeds, found, began)


def measure_lockstep(cases: Mapping[str, Config], seeds: Sequence[int], updates: int) -> Row:
    """Whole runs on the 24-bit grid in two processes, which share nothing but the seed.

    Args:
      cases, seeds: as in `measure`.
      updates: at most this many of each run.
    """
    began, found, env_steps = time.perf_counter(), [], 0
    jobs = [lockstep.Job(_on_grid(config), seeds, updates) for config in cases.values()]
    try:
        for label, runs in zip(cases, lockstep.locksteps(jobs), strict=True):
            for run in runs:
                env_steps += run.env_steps
                outcome = _lockstep_outcome(run)
                found.append(outcome._replace(where=f"{label}: {outcome.where}"))
    except lockstep.TraceError as error:
        found.append(Outcome(False, math.inf, str(error)))
    compares = f"{updates} updates on the 24-bit grid, two processes, {env_steps:,} steps"
    return _row("lockstep", compares, 0.0, cases, seeds, found, began)


def attempt(level: Level, config: Config, seed: int) -> Outcome:
    """Compare one config and seed; a side that raises is a difference."""
    config = level.adapt(config)
    try:
        with jax.enable_x64(config.float_type == "float64"):
            ours = level.pair.ours(config, seed)
        return level.judge(level.tolerance, ours, level.pair.theirs(config, seed))
    except Exception as error:
        lines = str(error).splitlines() or ["no message"]
        return Outcome(False, math.inf, f"{type(error).__name__}: {lines[0]}", raised=True)


def _row(
    name: str,
    compares: str,
    tolerance: float,
    cases: Mapping[str, Config],
    seeds: Sequence[int],
    found: list[Outcome],
    began: float,
) -> Row:
    worst = max(found, key=lambda outcome: (not outcome.passed, outcome.error))
    passed = all(outcome.passed for outcome in found)
    seconds = round(time.perf_counter() - began, 1)
    where = "" if passed and not worst.error else worst.where
    return Row(
        name, compares, len(cases), len(seeds), where, worst.error, tolerance, passed, seconds
    )


# How a level runs a config.


def _as_is(config: Config) -> Config:
    return config


def _on_grid(config: Config) -> Config:
    return dataclasses.replace(config, arithmetic="float24_grid")


def _in_float64(config: Config) -> Config:
    return dataclasses.replace(config, arithmetic="float64")


def _in_float32(config: Config) -> Config:
    return dataclasses.replace(config, arithmetic="float32")


def _small_in_float64(config: Config) -> Config:
    return _in_float64(batch.small(config))


def _small_in_float32(config: Config) -> Config:
    return _in_float32(batch.small(config))


LEVELS = (
    Level("noise", "every draw of an update", 0.0, NOISE_CASES, _as_is, pairs.NOISE),
    Level("parameters", "every leaf at the start", 0.0, NETWORK_CASES, _as_is, pairs.PARAMETERS),
    Level(
        "distributions",
        "actions, log π, entropy, KL, their slopes; float64",
        1e-12,
        DISTRIBUTION_CASES,
        _in_float64,
        pairs.DISTRIBUTION,
    ),
    Level(
        "optimizer",
        "the movement of three steps on equal gradients, float64",
        1e-12,
        OPTIMIZER_CASES,
        _in_float64,
        pairs.STEPS,
    ),
    Level(
        "gradients",
        "Ψ, losses, every leaf; one batch, float64",
        1e-12,
        CASES,
        _small_in_float64,
        pairs.GRADIENTS,
    ),
    Level(
        "gradients-float32",
        "the same in float32, relative to the sum of absolute terms",
        1e-5,
        CASES,
        _small_in_float32,
        pairs.GRADIENTS,
    ),
    Level(
        "updates",
        "metrics, parameters after 2 updates; one batch, float64",
        1e-12,
        CASES,
        _small_in_float64,
        pairs.UPDATES,
    ),
    Level(
        "free-run",
        "5 updates from the seed alone, float64",
        1e-11,
        FREE_CASES,
        _in_float64,
        pairs.RUN,
        judge_free_run,
    ),
    Level(
        "free-run-float32",
        "3 updates from the seed alone, SGD",
        1e-5,
        SGD_CASES,
        _in_float32,
        pairs.RUN,
        judge_free_run,
    ),
    Level(
        "lockstep",
        "3 updates on the 24-bit grid",
        0.0,
        CASES,
        _on_grid,
        pairs.RUN,
        judge_lockstep,
    ),
)
"""In the order in which they are tried: where it is wrong, what comes first says it best."""
