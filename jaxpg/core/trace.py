"""A run as a stream of named numpy arrays, to be compared with the twin's update by update.

`records` gives what every update met, estimated, descended and learned; `roundings` what one of
them rounded, before and after. The module is a command too:

    python -m jaxpg.core.trace '[{"config": {…}, "seeds": [0, 1], "updates": 25, "explain": null}]'

writes them to standard output: for each record a line of JSON, {"seed": 0, "bytes": n}, and n bytes
of npz; after each seed a line that names all packages that this process has imported. An update's
index as "explain" asks for its roundings instead.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, BinaryIO
from unittest import mock

import jax
import numpy as np

from jaxpg.core import algorithms, arithmetic, learner, noise
from jaxpg.core.config import Config, validate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Algorithm, LearnerState
from jaxpg.names import to_torch

Record = dict[str, np.ndarray]
Sites = dict[str, list[tuple[Any, Any]]]  # where floats were rounded -> (before, after) each time


def records(
    config: Config, seed: int, updates: int | None = None, algorithm: Algorithm | None = None
) -> Iterator[Record]:
    """One record per update, with torch's names, in the order of computation.

    The trajectory's fields [T, N, ...]; `advantage` and `target` [T, N]; `gradient:NAME`, as each
    network's last optimizer step received it (so clipped); `params:NAME` after the update;
    `metrics:NAME`.

    The program is compiled once for each config and algorithm object. After patching a function
    pass `algorithms.build(config)`, or the program without the patch may run.

    Args:
      config: its traced fields are numbers.
      seed: an integer in [0, 2^32).
      updates: at most this many; None for the whole budget.
      algorithm: with parts of your own; None for what the config names.

    Raises:
      ConfigError: if the config has no meaning, or needs JAX's 64-bit mode, which is off.
    """
    arrays, init, update = _program(validate(config), algorithm)
    state = init(arrays, noise.key(seed))
    count = config.num_updates if updates is None else min(updates, config.num_updates)
    for _ in range(count):
        state, seen = update(arrays, state)
        yield record(config, state, seen)


def roundings(
    config: Config, seed: int, update: int, algorithm: Algorithm | None = None
) -> Iterator[Record]:
    """Every rounding to the float32 grid in one update: {name, name:before_rounding}.

    One record per environment step, then one per optimizer step (of the policy together with
    the critic's first). The updates before it run as in `records`.

    Args:
      config: on the float32 grid. JAX's 64-bit mode must be on in all threads, by
        `jax.config.update`: values come back in another one.
      seed, algorithm: as in `records`.
      update: its index, from 0.
    """
    arrays, init, run = _program(validate(config), algorithm)
    state = init(arrays, noise.key(seed))
    for _ in range(update):
        state, _ = run(arrays, state)
    sites: Sites = {}
    with _roundings_into(sites, algorithm or algorithms.build(config)) as watched:
        jax.block_until_ready(jax.jit(partial(_update, algorithm=watched))(arrays, state))
        jax.effects_barrier()
    yield from _events(sites, config)


def watch(
    config: Config, state: LearnerState, algorithm: Algorithm
) -> tuple[LearnerState, dict[str, Any]]:
    """learner.update, and what it computed on the way; can be traced.

    Returns:
      The next state, each optimizer's part of it as (the last gradient it was given, its own
      state), and the trajectory, advantage, target and metrics.
    """
    groups = {"shared": state.params} if config.networks == "shared" else state.params
    kept = {
        name: (jax.tree.map(jax.numpy.zeros_like, groups[name]), own)
        for name, own in state.opt_state.items()
    }
    return _update(config, state._replace(opt_state=kept), algorithm)


def record(config: Config, state: LearnerState, seen: dict[str, Any]) -> Record:
    """What `records` gives, from what `watch` returned, as numpy arrays."""
    gradient = {name: kept for name, (kept, _) in state.opt_state.items()}
    gradient = gradient["shared"] if config.networks == "shared" else gradient
    tensors = {
        **{name: x for name, x in seen["trajectory"]._asdict().items() if x is not None},
        "advantage": seen["advantage"],
        "target": seen["target"],
        **{f"gradient:{name}": leaf for name, leaf in to_torch(gradient).items()},
        **{f"params:{name}": leaf for name, leaf in to_torch(state.params).items()},
        **{f"metrics:{name}": leaf for name, leaf in seen["metrics"]._asdict().items()},
    }
    return {name: np.asarray(leaf) for name, leaf in tensors.items()}


def send(stream: BinaryIO, seed: int, record: Record) -> None:
    """Write one record: a line of JSON with the payload's length, and an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **record)  # type: ignore[arg-type]
    payload = buffer.getvalue()
    stream.write(json.dumps({"seed": seed, "bytes": len(payload)}).encode() + b"\n" + payload)
    stream.flush()


def main(arguments: list[str]) -> None:
    """Do the jobs, given as JSON; standard output carries nothing but the stream."""
    # Not sys.stdout.buffer: under PYTHONUNBUFFERED its writes are cut short when the process is
    # stopped and continued.
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for job in json.loads(arguments[0]):
        _do(stream, **job)


def _do(
    stream: BinaryIO, config: Any, seeds: list, updates: int | None, explain: int | None
) -> None:
    """One job: the records of each seed, and the names of the packages imported by then."""
    config = Config(**{**config, "hidden_sizes": tuple(config["hidden_sizes"])})
    jax.config.update("jax_enable_x64", config.float_type == "float64")
    for seed in seeds:
        if explain is None:
            run = records(config, seed, updates)
        else:
            run = roundings(config, seed, explain)
        for record in run:
            send(stream, seed, record)
        packages = sorted({name.partition(".")[0] for name in sys.modules})
        stream.write(json.dumps({"seed": seed, "packages": packages}).encode() + b"\n")
        stream.flush()


@lru_cache(maxsize=8)
def _program(config: Config, algorithm: Algorithm | None) -> tuple[Config, Callable, Callable]:
    """The config as arrays, and the compiled `init` and `update` that take them."""
    algorithm = algorithm or algorithms.build(config)
    arrays = as_arrays(config)
    return (
        arrays,
        jax.jit(partial(_init, algorithm=algorithm)),
        jax.jit(partial(_update, algorithm=algorithm)),
    )


def _init(config: Config, key: jax.Array, algorithm: Algorithm) -> LearnerState:
    with _gradients_kept(config.optimizer):
        return learner.init(config, key, algorithm)


def _update(
    config: Config, state: LearnerState, algorithm: Algorithm
) -> tuple[LearnerState, dict[str, Any]]:
    """learner.update, and what it computed on the way."""
    seen: dict[str, Any] = {}

    def collect(*inputs: Any) -> tuple:
        env_state, trajectory = algorithm.collect(*inputs)
        seen["trajectory"] = trajectory._replace(acted=None)
        return env_state, trajectory

    with _gradients_kept(config.optimizer):
        after, metrics = learner.update(config, state, algorithm._replace(collect=collect))
    advantage, target = learner.estimate(config, algorithm, state.params, seen["trajectory"])
    return after, {**seen, "advantage": advantage, "target": target, "metrics": metrics}


@contextlib.contextmanager
def _gradients_kept(optimizer: str) -> Iterator[None]:
    """The optimizer's state is (the last gradient it was given, its own state)."""
    original = learner.OPTIMIZERS[optimizer]

    def init(params: Any) -> tuple:
        return jax.tree.map(jax.numpy.zeros_like, params), original.init(params)

    def update(gradient: Any, state: tuple, params: Any) -> tuple:
        direction, own = original.update(gradient, state[1], params)
        return direction, (gradient, own)

    keeping = original._replace(init=init, update=update)
    with mock.patch.dict(learner.OPTIMIZERS, {optimizer: keeping}):
        yield


@contextlib.contextmanager
def _roundings_into(sites: Sites, algorithm: Algorithm) -> Iterator[Algorithm]:
    """While the algorithm that this gives runs, `sites` fills with what is rounded where."""
    original, scope = arithmetic.round_floats, [""]

    def round_floats(tree: Any) -> Any:
        rounded = original(tree)
        site = scope[0] or ("value" if "policy" in sites else "policy")  # the policy is first
        if site == "next_state" and isinstance(tree, jax.Array):
            site = "reward"
        times = sites.setdefault(site, [])  # as it is traced, hence in order
        jax.debug.callback(lambda *pair: times.append(pair), tree, rounded)
        return rounded

    def within(name: str, part: Callable) -> Callable:
        def scoped(*inputs: Any) -> Any:
            scope[0] = name
            result = part(*inputs)
            scope[0] = ""
            return result

        return scoped

    env, distribution = algorithm.env, algorithm.distribution
    env = env._replace(step=within("next_state", env.step), restart=within("restart", env.restart))
    distribution = distribution._replace(sample=within("action", distribution.sample))
    with (
        mock.patch.object(arithmetic, "round_floats", round_floats),
        mock.patch.object(learner, "round_floats", round_floats),
    ):
        yield algorithm._replace(env=env, distribution=distribution)


def _events(sites: Sites, config: Config) -> Iterator[Record]:
    """The n-th roundings of all sites of the rollout, n = 0, 1, …; then those of the networks."""
    networks = [name for name in sites if name in ("policy", "value")]
    for group in ([name for name in sites if name not in networks], networks):
        for n in range(max((len(sites[name]) for name in group), default=0)):
            event: Record = {}
            for name in group:
                if n < len(sites[name]):
                    before, after = (_leaves(name, tree, config) for tree in sites[name][n])
                    event |= after
                    event |= {f"{leaf}:before_rounding": x for leaf, x in before.items()}
            yield event


def _leaves(site: str, tree: Any, config: Config) -> Record:
    """The float leaves by name."""
    if site in ("policy", "value"):
        networks = tree if config.networks == "shared" else {site: tree}
        return {f"params:{name}": leaf for name, leaf in to_torch(networks).items()}
    paths = jax.tree_util.tree_leaves_with_path(tree)
    named = {f"{site}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in paths}
    return {name: leaf for name, leaf in named.items() if leaf.dtype.kind == "f"}


if __name__ == "__main__":
    main(sys.argv[1:])
