"""A run as a stream of named numpy arrays, to be compared with the twin's update by update.

`records` gives what every update met, estimated, descended and learned; `roundings` what one of
them rounded, before and after. The module is a command too:

    python -m torch_ref.trace '[{"config": {…}, "seeds": [0, 1], "updates": 25}]'

writes them to standard output: for each record a line of JSON, {"seed": 0, "bytes": n}, and n bytes
of npz; after each seed a line that names all packages that this process has imported. Without
"updates" it is the whole budget; an update's index as "explain" asks for its roundings instead.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from torch_ref import algorithms, arithmetic, learner, noise
from torch_ref.config import Config, of_json
from torch_ref.rules import validate
from torch_ref.training import as_tensors
from torch_ref.types import Algorithm, RewardScale, Seen

Record = dict[str, np.ndarray]
Sites = dict[str, list[tuple[Any, Any]]]  # where floats were rounded -> (before, after) each time
LAST = ("reward_scale", "obs")  # sites that an update rounds once, after a rollout or a fit


def records(
    config: Config, seed: int, updates: int | None = None, algorithm: Algorithm | None = None
) -> Iterator[Record]:
    """One record per update, in the order of computation.

    The trajectory's fields [T, N, ...]; `value`, `advantage` and `target` [T, N]; `gradient:NAME`,
    as each network's last optimizer step received it (so clipped); `params:NAME` after the update;
    `metrics:NAME`.

    Args:
      config: its traced fields are numbers.
      seed: an integer in [0, 2^32).
      updates: at most this many; None for the whole budget.
      algorithm: None for the one that the config names.

    Raises:
      ConfigError: if the config has no meaning.
    """
    config = validate(config)
    algorithm = algorithm or algorithms.build(config)
    tensors = as_tensors(config)
    state = learner.init(tensors, noise.key(seed), algorithm)
    count = config.num_updates if updates is None else min(updates, config.num_updates)
    for _ in range(count):
        state, seen = learner.watch(tensors, state, algorithm)
        yield record(state.params, seen)


def roundings(
    config: Config, seed: int, update: int, build: Callable[..., Algorithm] = algorithms.build
) -> Iterator[Record]:
    """Every rounding to the grid in one update: {name, name:before_rounding}.

    One record per environment step, then one per optimizer step (of the policy together with
    the critic's first). What is rounded once, of the rewards or of the observations, is in the last
    of either. The updates before it run as in `records`.

    Args:
      config: on a grid.
      seed: as in `records`.
      update: its index, from 0.
      build: makes the algorithm, from the config and what rounds to the grid.
    """
    config = validate(config)
    tensors = as_tensors(config)
    algorithm = build(config, arithmetic.round_floats)
    state = learner.init(tensors, noise.key(seed), algorithm)
    for _ in range(update):
        state, _ = learner.update(tensors, state, algorithm)
    sites: Sites = {}
    _, seen = learner.watch(tensors, state, _rounding_into(sites, config, build, state.params))
    yield from _events(sites, config, seen.gradients)


def record(params: nn.ModuleDict, seen: Seen) -> Record:
    """What `records` gives of one update, as numpy arrays.

    Args:
      params: after the update.
      seen: from `learner.watch`.
    """
    last = {
        name if network == "joint" else f"{network}.{name}": leaf
        for network, steps in seen.gradients.items()
        for name, leaf in steps[-1].items()
    }
    tensors = {
        **seen.trajectory._asdict(),
        "value": seen.batch.value,
        "advantage": seen.batch.advantage,
        "target": seen.batch.target,
        **{f"gradient:{name}": leaf for name, leaf in last.items()},
        **{f"params:{name}": leaf for name, leaf in params.named_parameters()},
        **{f"metrics:{name}": leaf for name, leaf in seen.metrics.named().items()},
    }
    return {name: _as_in_jax(leaf) for name, leaf in tensors.items()}


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
    torch.set_num_threads(1)  # the tensors are small: threads would wait for one another
    for job in json.loads(arguments[0]):
        _do(stream, **job)


def _do(
    stream: BinaryIO,
    config: Any,
    seeds: list,
    updates: int | None = None,
    explain: int | None = None,
) -> None:
    """One job: the records of each seed, and the names of the packages imported by then."""
    config = of_json(config)
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


def _as_in_jax(leaf: torch.Tensor) -> np.ndarray:
    """A copy, of jax's dtype: torch counts and indexes with int64."""
    array = leaf.detach().numpy().copy()
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _rounding_into(
    sites: Sites, config: Config, build: Callable, params: nn.ModuleDict
) -> Algorithm:
    """The algorithm, which when it runs fills `sites` with what is rounded where."""
    scope = [""]
    names = {id(param): f"params:{name}" for name, param in params.named_parameters()}

    def round_floats(tree: Any, mantissa_bits: int = 23) -> Any:
        rounded = arithmetic.round_floats(tree, mantissa_bits)
        site = scope[0] or _once(tree) or names[id(tree)]
        if site == "next_state" and isinstance(tree, torch.Tensor):
            site = "reward"
        sites.setdefault(site, []).append((_leaves(site, tree), _leaves(site, rounded)))
        return rounded

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
    networks = [name for name in sites if name.startswith("params:")]
    rollout = [name for name in sites if name not in (*networks, *LAST)]
    for group, last in zip((rollout, networks), LAST, strict=True):
        count = max((len(sites[name]) for name in group), default=0)
        for n in range(count):
            there = [name for name in group if n < len(sites[name])]
            found = [sites[name][n] for name in there]
            if n == count - 1 and last in sites:
                found.append(sites[last][0])
            event: Record = {}
            for before, after in found:
                event |= after
                event |= {f"{leaf}:before_rounding": x for leaf, x in before.items()}
            if group is networks:
                of_groups = {name.removeprefix("params:").partition(".")[0] for name in there}
                for name in ["joint"] if config.joint and there else sorted(of_groups):
                    event |= _gradients(gradients, name, n)
            yield event


def _gradients(gradients: Mapping[str, Any], group: str, n: int) -> Record:
    """What the optimizer of a group of parameters was given at its n-th step, by name."""
    prefix = "gradient:" if group == "joint" else f"gradient:{group}."
    return {f"{prefix}{name}": _as_in_jax(leaf) for name, leaf in gradients[group][n].items()}


def _leaves(site: str, tree: Any) -> Record:
    """Copies of the float leaves by name."""
    if site == "obs":
        return _leaves("params:obs", tree)
    if isinstance(tree, tuple | dict):
        named = tree if isinstance(tree, dict) else tree._asdict()  # type: ignore[attr-defined]
        return {k: v for name in named for k, v in _leaves(f"{site}.{name}", named[name]).items()}
    return {site: tree.detach().numpy().copy()} if tree.is_floating_point() else {}


if __name__ == "__main__":
    main(sys.argv[1:])
