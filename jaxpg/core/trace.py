"""A run as a stream of named numpy arrays, to be compared with the twin's update by update.

`records` gives what every update met, estimated, descended and learned; `roundings` what one of
them rounded, before and after. The module is a command too:

    python -m jaxpg.core.trace '[{"config": {…}, "seeds": [0, 1], "updates": 25}]'

writes them to standard output: for each record a line of JSON, {"seed": 0, "bytes": n}, and n bytes
of npz; after each seed a line that names all packages that this process has imported. Without
"updates" it is the whole budget; an update's index as "explain" asks for its roundings instead.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, BinaryIO

import jax
import numpy as np

from jaxpg.core import algorithms, arithmetic, learner, noise
from jaxpg.core.config import Config, of_json
from jaxpg.core.rules import validate
from jaxpg.core.training import as_arrays
from jaxpg.core.types import Algorithm, Params, RewardScale, Seen
from jaxpg.names import to_torch

Record = dict[str, np.ndarray]
Sites = dict[str, list[tuple[Any, Any]]]  # where floats were rounded -> (before, after) each time
LAST = ("reward_scale", "obs")  # sites that an update rounds once, after a rollout or a fit


def records(
    config: Config, seed: int, updates: int | None = None, algorithm: Algorithm | None = None
) -> Iterator[Record]:
    """One record per update, with torch's names, in the order of computation.

    The trajectory's fields [T, N, ...]; `value`, `advantage` and `target` [T, N]; `gradient:NAME`,
    as each network's last optimizer step received it (so clipped); `params:NAME` after the update;
    `metrics:NAME`.

    The program is compiled once for each config and algorithm object.

    Args:
      config: its traced fields are numbers.
      seed: an integer in [0, 2^32).
      updates: at most this many; None for the whole budget.
      algorithm: None for the plain one that the config names.

    Raises:
      ConfigError: if the config has no meaning, or needs JAX's 64-bit mode, which is off.
    """
    config = validate(config)
    algorithm = algorithm or algorithms.build(config)
    arrays, init, watch = _program(config, algorithm)
    state = init(arrays, noise.key(seed))
    count = config.num_updates if updates is None else min(updates, config.num_updates)
    for _ in range(count):
        state, seen = watch(arrays, state)
        yield record(state.params, seen)


def roundings(
    config: Config, seed: int, update: int, build: Callable[..., Algorithm] = algorithms.build
) -> Iterator[Record]:
    """Every rounding to the grid in one update: {name, name:before_rounding}.

    One record per environment step, then one per optimizer step (of the policy together with
    the critic's first). What is rounded once, of the rewards or of the observations, is in the last
    of either. The updates before it run as in `records`.

    Args:
      config: on a grid. JAX's 64-bit mode must be on in all threads, by
        `jax.config.update`: values come back in another one.
      seed: as in `records`.
      update: its index, from 0.
      build: makes the algorithm, from the config and what rounds to the grid.
    """
    config = validate(config)
    arrays, init, run = _program(config, build(config, arithmetic.round_floats))
    state = init(arrays, noise.key(seed))
    for _ in range(update):
        state, _ = run(arrays, state)
    sites: Sites = {}
    watched = _rounding_into(sites, config, build, state.params)
    _, seen = jax.block_until_ready(
        jax.jit(partial(learner.watch, algorithm=watched))(arrays, state)
    )
    jax.effects_barrier()
    yield from _events(sites, config, seen.gradients)


def record(params: Params, seen: Seen) -> Record:
    """What `records` gives of one update, as numpy arrays.

    Args:
      params: after the update.
      seen: from `learner.watch`.
    """
    last = {name: jax.tree.map(lambda x: x[-1], steps) for name, steps in seen.gradients.items()}
    tensors = {
        **seen.trajectory._asdict(),
        "value": seen.batch.value,
        "advantage": seen.batch.advantage,
        "target": seen.batch.target,
        **{f"gradient:{name}": leaf for name, leaf in to_torch(last.get("joint", last)).items()},
        **{f"params:{name}": leaf for name, leaf in to_torch(params).items()},
        **{f"metrics:{name}": leaf for name, leaf in seen.metrics.named().items()},
    }
    return {name: np.asarray(leaf) for name, leaf in tensors.items()}


def send(stream: BinaryIO, seed: int, record: Record) -> None:
    """Write one record: a line of JSON with the payload's length, and an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **record)  # type: ignore[arg-type]
    payload = buffer.getvalue()
    stream.write(json.dumps({"seed": seed, "bytes": len(payload)}).encode() + b"\n" + payload)
    stream.flush()


def main(arguments: list[str], build: Callable[..., Algorithm] = algorithms.build) -> None:
    """Do the jobs, given as JSON; standard output carries nothing but the stream.

    Args:
      build: makes the algorithm that is traced, as in `roundings`.
    """
    # Not sys.stdout.buffer: under PYTHONUNBUFFERED its writes are cut short when the process is
    # stopped and continued.
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for job in json.loads(arguments[0]):
        _do(stream, build, **job)


def _do(
    stream: BinaryIO,
    build: Callable,
    config: Any,
    seeds: list,
    updates: int | None = None,
    explain: int | None = None,
) -> None:
    """One job: the records of each seed, and the names of the packages imported by then."""
    config = of_json(config)
    jax.config.update("jax_enable_x64", config.float_type == "float64")
    algorithm = build(validate(config))
    for seed in seeds:
        if explain is None:
            run = records(config, seed, updates, algorithm)
        else:
            run = roundings(config, seed, explain, build)
        for record in run:
            send(stream, seed, record)
        packages = sorted({name.partition(".")[0] for name in sys.modules})
        stream.write(json.dumps({"seed": seed, "packages": packages}).encode() + b"\n")
        stream.flush()


@lru_cache(maxsize=8)
def _program(config: Config, algorithm: Algorithm) -> tuple[Config, Callable, Callable]:
    """The config as arrays, and the compiled `init` and `watch` that take them."""
    init, watch = (partial(f, algorithm=algorithm) for f in (learner.init, learner.watch))
    return as_arrays(config), jax.jit(init), jax.jit(watch)


def _rounding_into(sites: Sites, config: Config, build: Callable, params: Params) -> Algorithm:
    """The algorithm, which when it runs fills `sites` with what is rounded where."""
    scope = [""]
    learned, _ = learner.apart(config, params)
    networks = {"policy": learned} if config.joint else learned
    shapes = {name: jax.tree.map(np.shape, network) for name, network in networks.items()}

    def round_floats(tree: Any, mantissa_bits: int = 23) -> Any:
        rounded = arithmetic.round_floats(tree, mantissa_bits)
        site = scope[0] or _once(tree) or whose(tree)
        if site == "next_state" and isinstance(tree, jax.Array):
            site = "reward"
        times = sites.setdefault(site, [])  # as it is traced, hence in order
        jax.debug.callback(lambda *pair: times.append(pair), tree, rounded)
        return rounded

    def whose(tree: Any) -> str:
        """Whose parameters they are; of two networks alike the policy's are rounded first."""
        alike = [name for name, shape in shapes.items() if shape == jax.tree.map(np.shape, tree)]
        if len(alike) == 1:
            return alike[0]
        return "value" if "policy" in sites else "policy"

    def within(name: str, part: Callable) -> Callable:
        def scoped(*inputs: Any) -> Any:
            scope[0] = name
            result = part(*inputs)
            scope[0] = ""
            return result

        return scoped

    algorithm = build(config, round_floats)
    env, distribution = algorithm.env, algorithm.distribution
    env = env._replace(step=within("next_state", env.step), restart=within("restart", env.restart))
    distribution = distribution._replace(sample=within("action", distribution.sample))
    return algorithm._replace(env=env, distribution=distribution)


def _once(tree: Any) -> str | None:
    """Which of LAST it is, or None."""
    if isinstance(tree, RewardScale):
        return "reward_scale"
    return "obs" if isinstance(tree, dict) and tree.keys() == {"count", "mean", "var"} else None


def _events(sites: Sites, config: Config, gradients: Mapping[str, Any]) -> Iterator[Record]:
    """The n-th roundings of all sites of the rollout, n = 0, 1, …; then those of the networks, and
    the gradients of these steps."""
    networks = [name for name in sites if name in ("policy", "value")]
    rollout = [name for name in sites if name not in (*networks, *LAST)]
    for group, last in zip((rollout, networks), LAST, strict=True):
        count = max((len(sites[name]) for name in group), default=0)
        for n in range(count):
            found = [(name, sites[name][n]) for name in group if n < len(sites[name])]
            if n == count - 1 and last in sites:
                found.append((last, sites[last][0]))
            event: Record = {}
            for name, pair in found:
                before, after = (_leaves(name, tree, config) for tree in pair)
                event |= after
                event |= {f"{leaf}:before_rounding": x for leaf, x in before.items()}
                if name in networks:
                    event |= _gradients(gradients, "joint" if config.joint else name, n)
            yield event


def _gradients(gradients: Mapping[str, Any], group: str, n: int) -> Record:
    """What the optimizer of a group of parameters was given at its n-th step, by name."""
    step = jax.tree.map(lambda x: x[n], gradients[group])
    tree = step if group == "joint" else {group: step}
    return {f"gradient:{name}": np.asarray(leaf) for name, leaf in to_torch(tree).items()}


def _leaves(site: str, tree: Any, config: Config) -> Record:
    """The float leaves by name."""
    if site in ("policy", "value", "obs"):
        networks = tree if config.joint and site != "obs" else {site: tree}
        return {f"params:{name}": leaf for name, leaf in to_torch(networks).items()}
    paths = jax.tree_util.tree_leaves_with_path(tree)
    keys = [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
    named = {f"{site}.{key}" if key else site: np.asarray(leaf) for key, leaf in keys}
    return {name: leaf for name, leaf in named.items() if leaf.dtype.kind == "f"}


if __name__ == "__main__":
    main(sys.argv[1:])
