"""How closely do jaxpg and torch_ref agree, level by level?

    python -m benchmarks.parity [--smoke]

Prints a table and writes benchmarks/results/parity-cpu.json. Both packages run in this process on
the CPU; exit code 1 if a level misses its tolerance.
"""

import argparse
import dataclasses
import math
import sys
import time
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

import torch_ref
from benchmarks.record import markdown, write
from jaxpg import algorithms, learner, noise, training
from jaxpg.config import PRESETS, Config
from jaxpg.names import to_torch
from torch_ref import algorithms as torch_algorithms
from torch_ref import learner as torch_learner
from torch_ref import noise as torch_noise
from torch_ref import training as torch_training
from torch_ref.types import Trajectory

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)

VARIANTS = {
    "vpg": PRESETS["vpg"],
    "reinforce": PRESETS["reinforce"],
    "actor-critic": PRESETS["actor-critic"],
    "shared torso, RMSprop": dataclasses.replace(
        PRESETS["actor-critic"],
        networks="shared",
        value_steps=1,
        optimizer="rmsprop",
        ent_coef=0.01,
    ),
    "replay, SGD": dataclasses.replace(
        PRESETS["actor-critic"],
        value_data="replay",
        value_steps=2,
        optimizer="sgd",
        learning_rate=0.1,
        value_learning_rate=1e-4,
    ),
    "Gaussian, Pendulum": dataclasses.replace(PRESETS["vpg"], env="Pendulum-v1"),
}


class Level(NamedTuple):
    """One row of the table."""

    level: str
    what: str
    worst: float  # 0 means equal to the bit
    tolerance: float
    seconds: float


def main() -> None:
    """Measure every level, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds, for CI")
    smoke = parser.parse_args().smoke
    levels = [level(smoke) for level in (noise_bits, initial_bits, gradients, free_run, lockstep)]
    columns = ["level", "compared", "worst relative difference", "tolerance"]
    shown = [
        [row.level, row.what, f"{row.worst:.1e}" if row.worst else "0 (bits)", _bound(row)]
        for row in levels
    ]
    print(table := markdown(columns, shown))
    if not smoke:
        rows = [row._asdict() for row in levels]
        write("parity", {"torch": torch.__version__, "levels": rows, "table": table})
    sys.exit(any(not row.worst <= row.tolerance for row in levels))


def noise_bits(smoke: bool) -> Level:
    """Every draw of an update of `vpg`: actions, resets and environment keys."""
    began, worst, seeds = time.perf_counter(), 0.0, 5 if smoke else 1_000
    config, spec = PRESETS["vpg"], algorithms.build(PRESETS["vpg"]).env.spec
    draw = jax.jit(lambda key, update: noise.draw(key, update, config, spec, 128))
    for seed in range(seeds):
        ours = draw(noise.streams(noise.key(seed))[2], seed)
        theirs = torch_noise.draw(
            torch_noise.streams(torch_noise.key(seed))[2], seed, config, spec, 128
        )
        for a, b in (
            (ours.action, theirs.action),
            (ours.reset, theirs.reset),
            (jax.random.key_data(ours.env), theirs.env),
        ):
            worst = max(worst, _difference(np.asarray(a), np.asarray(b)))
    return Level(
        "noise",
        f"actions, resets and keys of a `vpg` update, {seeds} seeds",
        worst,
        0.0,
        _since(began),
    )


def initial_bits(smoke: bool) -> Level:
    """Initial parameters of every kind of network."""
    began, worst, seeds = time.perf_counter(), 0.0, 2 if smoke else 100
    for config in VARIANTS.values():
        ours, theirs = _build(config)
        for seed in range(seeds):
            a, b = _init(config, seed, ours, theirs)
            worst = max(worst, _params_difference(a.params, b.params))
    what = f"{len(VARIANTS)} kinds of networks, {seeds} seeds"
    return Level("initial parameters", what, worst, 0.0, _since(began))


def gradients(smoke: bool) -> Level:
    """Every gradient leaf on a shared batch: one SGD step with learning rate 1, float64."""
    began, worst, seeds = time.perf_counter(), 0.0, 1 if smoke else 5
    for config in VARIANTS.values():
        step = {"optimizer": "sgd", "learning_rate": 1.0, "value_learning_rate": 1.0}
        config = dataclasses.replace(
            config, **step, lr_schedule="constant", value_steps=1, arithmetic="float64",
            max_grad_norm=None,
        )  # fmt: skip
        for seed in range(seeds):
            ours, theirs = _build(config)
            batch = _batch(config, seed, ours)
            ours = ours._replace(collect=lambda env, act, params, state, _: (state, batch[0]))
            theirs = theirs._replace(collect=lambda env, act, params, state, _: (state, batch[1]))
            a, b = _init(config, seed, ours, theirs)
            before = to_torch(a.params)
            a, _ = learner.update(training.as_arrays(config), a, ours)
            b, _ = torch_learner.update(torch_training.as_tensors(config), b, theirs)
            after, other = to_torch(a.params), b.params.state_dict()
            for name, start in before.items():
                gradient, reference = start - after[name], start - other[name].numpy()
                assert np.any(gradient), f"{name} has no gradient"
                worst = max(worst, _difference(gradient, reference))
    what = f"every leaf, one batch, float64, {len(VARIANTS)} variants × {seeds} seeds"
    return Level("gradients", what, worst, 1e-12, _since(began))


def free_run(smoke: bool) -> Level:
    """Parameters after the first updates of two runs that share only the seed, float64."""
    began, updates, seeds = time.perf_counter(), 2 if smoke else 10, 1 if smoke else 3
    worst = max(
        _run(dataclasses.replace(config, arithmetic="float64"), seed, updates)[0]
        for config in VARIANTS.values()
        for seed in range(seeds)
    )
    what = f"parameters after {updates} updates, float64, {len(VARIANTS)} variants × {seeds} seeds"
    return Level("free-running", what, worst, 1e-10, _since(began))


def lockstep(smoke: bool) -> Level:
    """Parameters at every update of two runs on the float32 grid that share only the seed."""
    began, updates, seeds = time.perf_counter(), 3 if smoke else 50, 1 if smoke else 2
    runs = [
        _run(dataclasses.replace(config, arithmetic="float32_grid"), seed, updates)
        for config in VARIANTS.values()
        for seed in range(seeds)
    ]
    steps = sum(steps for _, steps in runs)
    what = (
        f"parameters at each of {updates} updates, float32 grid, {len(VARIANTS)} variants × "
        f"{seeds} seeds, {steps:,} environment steps"
    )
    return Level("lockstep", what, max(worst for worst, _ in runs), 0.0, _since(began))


def _build(config: Config) -> tuple[Any, Any]:
    return algorithms.build(config), torch_algorithms.build(config)


def _init(config: Config, seed: int, ours: Any, theirs: Any) -> tuple[Any, Any]:
    a = learner.init(training.as_arrays(config), noise.key(seed), ours)
    b = torch_learner.init(torch_training.as_tensors(config), torch_noise.key(seed), theirs)
    return a, b


def _batch(config: Config, seed: int, algorithm: Any) -> tuple[Any, Trajectory]:
    """A first update's trajectory, for either package."""
    spec = algorithm.env.spec
    state = learner.init(training.as_arrays(config), noise.key(seed), algorithm)
    draws = noise.draw(state.key, 0, config, spec, learner.max_steps(config, spec))

    def act(params: Any, obs: Any, uniform: Any) -> Any:
        return algorithm.distribution.sample(algorithm.networks.policy(params, obs), uniform)

    collect = jax.jit(partial(algorithm.collect, algorithm.env, act))
    _, trajectory = collect(state.params, state.env_state, draws)
    tensors = [torch.from_numpy(np.array(leaf)) for leaf in trajectory]
    as_index = tensors[1].long() if spec.discrete else tensors[1]
    return trajectory, Trajectory(*tensors)._replace(action=as_index)


def _run(config: Config, seed: int, updates: int) -> tuple[float, int]:
    """Worst difference of any parameter at any update, and environment steps compared."""
    init, update = _compiled(config)
    state = init(noise.key(seed))
    worst, steps = 0.0, 0
    theirs = torch_training.updates(config, torch_ref.key(seed))
    for _, (other, metrics) in zip(range(updates), theirs, strict=False):
        state, _ = update(state=state)
        worst = max(worst, _params_difference(state.params, other.params))
        steps += int(metrics.env_steps)
    return worst, steps


@lru_cache
def _compiled(config: Config) -> tuple[Any, Any]:
    """init and update, once for all seeds."""
    algorithm, arrays = algorithms.build(config), training.as_arrays(config)
    init = jax.jit(partial(learner.init, arrays, algorithm=algorithm))
    return init, jax.jit(partial(learner.update, arrays, algorithm=algorithm))


def _params_difference(params: Any, module: torch.nn.Module) -> float:
    ours, theirs = to_torch(params), module.state_dict()
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return max(_difference(ours[name], theirs[name].numpy()) for name in ours)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """‖a - b‖ / ‖b‖; 0 only for equal bits, infinite where there is no such number."""
    assert (a.shape, a.dtype) == (b.shape, b.dtype), (a.shape, a.dtype, b.shape, b.dtype)
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    if not np.isfinite(a).all():
        return math.inf
    if a.tobytes() == b.tobytes():
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    return error if math.isfinite(error) else math.inf


def _bound(row: Level) -> str:
    return f"{row.tolerance:.0e}" if row.tolerance else "0 (bits)"


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 1)


if __name__ == "__main__":
    main()
