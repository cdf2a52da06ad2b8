"""Many seeds: the training loop in fixed lanes, over every device, in segments of updates.

Seeds are trained L lanes at a time on each device, by one compiled program whose shape does not
depend on the number of seeds; the last lanes are padded. So a seed's result does not depend on its
neighbours: float reductions of another batch shape would round otherwise. It is the same on any
number of devices from two; XLA compiles for one device alone otherwise, and its last bits differ.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpg import algorithms, learner, noise, replay
from jaxpg.config import Config, ConfigError, validate
from jaxpg.training import as_arrays
from jaxpg.types import LearnerState, Metrics, Params

LANES = {"cpu": 8, "gpu": 256, "tpu": 256}  # seeds per device and call; measured on cpu only


class Population(NamedTuple):
    """What became of S seeds over U updates; numpy arrays."""

    seeds: np.ndarray  # uint32 [S]
    params: Params  # leaves [S, ...]
    metrics: Metrics  # leaves [S, U]
    final_return: np.ndarray  # [S], mean return of the last (up to) 100 episodes; NaN if none ended
    finite: np.ndarray  # bool [S], whether all parameters are finite
    lanes: int  # L; the result depends on it, in the last bits
    compile_seconds: float
    wall_seconds: float  # training, without compiling


class Progress(NamedTuple):
    """How far a population is, after a segment."""

    env_steps: int  # by all seeds
    fraction: float  # of all updates, in [0, 1]
    recent_return: np.ndarray  # mean return of the last 100 episodes, of every seed begun
    seconds: float  # since training began, compiling aside


def train_population(
    config: Config,
    seeds: Sequence[int],
    *,
    lanes: int | None = None,
    segments: int = 50,
    report: Callable[[Progress], None] | None = None,
) -> Population:
    """Train every seed for the whole budget.

    Args:
      config: what to train.
      seeds: S different integers in [0, 2^32).
      lanes: L ≥ 2, seeds that one device trains at once; None takes the backend's default. For a
        given L, seed k's result does not depend on the other seeds.
      segments: calls that each group of lanes is divided into, for the sake of `report`.
      report: called after each of them.

    Raises:
      ConfigError: if the config has no meaning, or the seeds are none, repeated or out of range.
    """
    config = as_arrays(validate(config))
    lanes = LANES.get(jax.default_backend(), LANES["cpu"]) if lanes is None else lanes
    if lanes < 2:  # XLA compiles a batch of one otherwise
        raise ConfigError(f"lanes must be at least 2; got {lanes}")
    if segments < 1:
        raise ConfigError(f"segments must be at least 1; got {segments}")
    if len(set(seeds)) != len(seeds) or not len(seeds):
        raise ConfigError(f"seeds must be different and at least one; got {len(seeds)} of them")
    mesh = Mesh(np.array(jax.devices()), ("seed",), axis_types=(AxisType.Auto,))
    keys = noise.keys(seeds)
    length = -(-config.num_updates // min(segments, config.num_updates))
    start, advance, compile_seconds = _compile(config, mesh, lanes, length)

    began = time.perf_counter()
    group_size = lanes * mesh.size
    groups: list[tuple[Params, Metrics, np.ndarray]] = []
    done_steps, done_updates = 0, 0
    all_updates = len(seeds) * config.num_updates
    for first in range(0, len(seeds), group_size):
        index = np.arange(first, first + group_size).clip(max=len(seeds) - 1)  # pads with the last
        real = min(group_size, len(seeds) - first)
        state = start(config, keys[index])
        history = []
        for done in range(0, config.num_updates, length):
            count = min(length, config.num_updates - done)
            state, metrics, recent = advance(config, state, jnp.int32(count))
            history.append(jax.tree.map(lambda x: np.asarray(x)[:real, :count], metrics))
            done_steps += int(history[-1].env_steps.sum())
            done_updates += real * count
            if report is not None:
                seconds = time.perf_counter() - began
                returns = np.concatenate([*(group[2] for group in groups), recent[:real]])
                report(Progress(done_steps, done_updates / all_updates, returns, seconds))
        params = jax.tree.map(lambda x: np.asarray(x)[:real], state.params)
        joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *history)
        groups.append((params, joined, np.asarray(recent)[:real]))
    wall_seconds = time.perf_counter() - began

    params, metrics, final_return = jax.tree.map(lambda *parts: np.concatenate(parts), *groups)
    finite = [np.isfinite(x).reshape(len(seeds), -1).all(1) for x in jax.tree.leaves(params)]
    return Population(
        seeds=np.array(seeds, np.uint32),
        params=params,
        metrics=metrics,
        final_return=final_return,
        finite=np.all(finite, axis=0),
        lanes=lanes,
        compile_seconds=compile_seconds,
        wall_seconds=wall_seconds,
    )


def _compile(config: Config, mesh: Mesh, lanes: int, length: int) -> tuple[Any, Any, float]:
    """The two programs, for lanes · devices seeds, and the seconds that it took.

    Returns:
      start: (config, keys) -> states.
      advance: (config, states, count) -> states, Metrics [seeds, length], recent returns [seeds];
        does count ≤ length updates.
      seconds: spent on tracing and compiling.
    """
    began = time.perf_counter()
    algorithm = algorithms.build(config)
    per_seed, everywhere = PartitionSpec("seed"), PartitionSpec()
    shard = partial(jax.shard_map, mesh=mesh, out_specs=per_seed, check_vma=False)

    def start(config: Config, keys: jax.Array) -> LearnerState:
        return jax.vmap(lambda key: learner.init(config, key, algorithm))(keys)

    def advance(config: Config, states: LearnerState, count: jax.Array) -> tuple:
        step = jax.vmap(lambda state: learner.update(config, state, algorithm))
        row = jax.eval_shape(step, states)[1]
        history = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), row)

        def body(i: jax.Array, carry: tuple) -> tuple:
            states, history = carry
            states, metrics = step(states)
            history = jax.tree.map(lambda rows, x: rows.at[i].set(x), history, metrics)
            return states, history

        # A traced count: a loop whose length is known would be compiled differently for length 1.
        states, history = jax.lax.fori_loop(0, count, body, (states, history))
        by_seed = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), history)
        return states, by_seed, jax.vmap(replay.mean)(states.recent_returns)

    jitted_start = jax.jit(shard(start, in_specs=(everywhere, per_seed)))
    jitted_advance = jax.jit(
        shard(advance, in_specs=(everywhere, per_seed, everywhere)), donate_argnums=1
    )
    sharding = NamedSharding(mesh, per_seed)
    keys = jax.device_put(noise.keys(range(lanes * mesh.size)), sharding)
    compiled_start = jitted_start.lower(config, keys).compile()
    states = jax.eval_shape(jitted_start, config, keys)
    states = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), states
    )
    compiled_advance = jitted_advance.lower(config, states, jnp.int32(0)).compile()

    def begin(config: Config, keys: jax.Array) -> LearnerState:
        return compiled_start(config, jax.device_put(keys, sharding))

    return begin, compiled_advance, time.perf_counter() - began
