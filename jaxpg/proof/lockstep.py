"""Lockstep: the same run in both frameworks, compared bit by bit at every update.

On the grid, `python -m jaxpg.proof.trace` and `python -m torch_ref.trace`, given one config
and one integer seed, must produce the same bits. Each runs in its own process, proves that it has
not imported the other's framework, and streams its records here. numpy only.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import numbers
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxpg import parity
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.rules import check_one_number, validate

Record = dict[str, np.ndarray]
Pair = tuple[Iterable[Record], Iterable[Record]]  # jaxpg's and torch_ref's
MODULES = {"jaxpg": "jaxpg.proof.trace", "torch_ref": "torch_ref.trace"}

FOREIGN = {
    "jaxpg": {"torch", "torch_ref"},
    "torch_ref": {"jax", "jaxlib", "jaxpg", "flax", "optax", "gymnax", "chex"},
}
TOLERANCE = 1e-12  # of what is not rounded to the grid, relative to the leaf's largest norm so far
LONGEST = 2**16  # bytes of a line before a record
ROLLOUT = (
    "obs", "action", "reward", "next_obs", "terminated", "truncated", "valid", "time",
    "episode_return",
)  # fmt: skip
IN_UNITS = ("log_prob", "value", "target")  # of a nat or of the return, whatever Ψ was divided by
HASHED = {"actions": "action", "obs": "obs", "returns": "episode_return", "params": "params:"}


class Lockstep(NamedTuple):
    """How one seed of one config compares in the two frameworks."""

    seed: int
    updates: int  # that both sides gave and that were compared
    env_steps: int  # in them
    verdict: str  # "equal", "straddle", "fault" or "incomparable"
    split: parity.Split | None  # where the two part, or why the run proves nothing
    gradient: float  # worst error of any gradient leaf at any update, as `compare_runs` defines it
    sha256: dict[str, tuple[str, str]]  # of all actions, …: (jaxpg's, torch_ref's)


class TraceError(RuntimeError):
    """One of the two processes has failed, or what it sent cannot be believed."""


class Job(NamedTuple):
    """What a process traces."""

    config: Config
    seeds: Sequence[int]
    updates: int | None = None  # of each seed, at most; None for the whole budget
    explain: int | None = None  # an update whose roundings to trace instead


def lockstep(
    config: Config,
    seeds: Sequence[int],
    updates: int | None = None,
    report: Callable[[Lockstep], None] | None = None,
) -> list[Lockstep]:
    """Run some seeds in both frameworks at once, in two processes, and compare them.

    Args:
      config: on a grid (any other arithmetic parts sooner or later).
      seeds: integers in [0, 2^32).
      updates: of each seed, at most this many; None for the whole budget.
      report: called with each seed's result as soon as it is known.

    Raises:
      ConfigError: if the config has no meaning, or there is nothing to run.
      TraceError: if a process fails, is cut short, or has imported the other's framework.
    """
    if not len(seeds):
        raise ConfigError("lockstep needs at least one seed; got none")
    if updates is not None and (not isinstance(updates, numbers.Integral) or updates < 1):
        raise ConfigError(f"updates must be an integer of at least 1; got {updates!r}")
    return next(iter(locksteps([Job(config, seeds, updates)], report)))


def locksteps(
    jobs: Sequence[Job], report: Callable[[Lockstep], None] | None = None
) -> list[list[Lockstep]]:
    """`lockstep` of several configs by the same two processes; starting them takes seconds."""
    results: list[list[Lockstep]] = []
    with traced(jobs) as (ours, theirs):
        for job in jobs:
            results.append([])
            for seed in job.seeds:
                runs = ours(seed), theirs(seed)
                explain = partial(_roundings, job.config, seed)
                result = compare_runs(
                    *runs,
                    seed=seed,
                    normalized=job.config.normalize_advantage,
                    joint=job.config.joint,
                    explain=explain,
                )
                is_last = job is jobs[-1] and seed == job.seeds[-1]
                if result.split is None or not is_last:
                    for run in runs:  # what follows a split, and the proof of what is imported
                        for _ in run:
                            pass
                results[-1].append(result)
                if report is not None:
                    report(result)
    return results


def compare_runs(
    ours: Iterable[Record],
    theirs: Iterable[Record],
    *,
    seed: int,
    normalized: bool = False,
    joint: bool = False,
    explain: Callable[[int], Pair] | None = None,
) -> Lockstep:
    """Compare the records of two runs, up to the first difference.

    The rollout, counters and parameters must be equal to the bit. Values, advantages, targets and
    gradients are not rounded to the grid, and late in training they are what is left of terms that
    cancel (a value of 100 against a target of 100), so each may differ by 1e-12 of the largest norm
    that it has had in the run so far:

        error_u = ||a_u - b_u|| / max_{v ≤ u} ||b_v||

    A normalised advantage has been divided by a spread σ_u, and with it what that cancelling left
    of rounding. So it and the gradients count as what they were before:

        error_u = σ_u ||a_u - b_u|| / max_{v ≤ u} σ_v ||b_v||,    σ = std(target - V) + 1e-8

    Nothing is proven, and the verdict is "incomparable", if a run ends before the other or lacks a
    tensor, at a NaN, if no episode ended, or if a gradient was zero at every update.

    Args:
      ours, theirs: from `jaxpg.core.trace.records` and `torch_ref.trace.records`.
      seed: for the result.
      normalized: whether Ψ is, over a batch or a minibatch.
      joint: whether one optimizer has the parameters of all networks; else what one of them has
        rounded explains nothing of another.
      explain: (update) -> both sides' roundings in that update. Where the runs part, they tell a
        straddle from a fault; what they do not show to be a straddle is a fault.
    """
    hashes = {name: (hashlib.sha256(), hashlib.sha256()) for name in HASHED}
    count = env_steps = episodes = 0
    gradient, norms, split = 0.0, dict[str, float](), None
    former: Record = {}
    for a, b in itertools.zip_longest(ours, theirs):
        if a is None or b is None:
            split = _nothing(count, f"{'jaxpg' if a is None else 'torch_ref'} has ended first")
            break
        for side, record in enumerate((a, b)):
            _hash(hashes, side, record)
        split, error, scale = _first_difference(a, b, norms, normalized)
        if split is not None:
            split = split._replace(update=count)
            if explain is not None and (split.verdict == "different" or _is_of_a_gradient(split)):
                split = _judge(split, former, *explain(count), scale=scale, joint=joint)
            break
        former = {name: x for name, x in b.items() if name.startswith("params:")}
        gradient = max(gradient, error)
        env_steps += int(a["metrics:env_steps"])
        episodes += int(a["metrics:episodes"])
        count += 1
    if split is None:
        split = _shows_nothing(count, episodes, norms)
    verdict = "equal" if split is None else _VERDICTS.get(split.verdict, split.verdict)
    sha256 = {name: (x.hexdigest(), y.hexdigest()) for name, (x, y) in hashes.items()}
    return Lockstep(seed, count, env_steps, verdict, split, gradient, sha256)


def lockstep_commands(
    a: Sequence[str], b: Sequence[str], *, timeout: float | None = None, **options: Any
) -> parity.Split | None:
    """Run two trainers of one's own side by side, and compare what they stream.

    Each writes a record an update to standard output, and nothing else: a line of JSON with the
    length of what follows, {"bytes": n}, and n bytes of `np.savez`, arrays by name in the order of
    computation. It ends with status 0. Nothing is said of the language that it is written in. Both,
    and what they have started, are stopped where the runs part or one of them fails.

    Args:
      a, b: the commands, as lists of words.
      timeout: seconds that a process may send nothing; None for any time.
      options: tolerance, names, transpose, steps, only and same_dtype of `jaxpg.parity.bisect`;
        without a tolerance all values must be equal. Arrays named NAME:before_rounding tell a
        straddle from a fault, as there.

    Returns:
      Where the runs part; None if they are equal.

    Raises:
      TraceError: if a command fails, sends what is no record, or nothing for so long.
      ValueError: if a command is no list of words, if there is nothing to compare, and as `bisect`
        does.
    """
    commands = [[] if isinstance(command, str) else list(command) for command in (a, b)]
    for given, words in zip((a, b), commands, strict=True):
        if not words or not all(isinstance(word, str | os.PathLike) for word in words):
            raise ValueError(f"a command must be a list of words; got {given!r}")
    with contextlib.ExitStack() as stack:
        sides = list[_Side]()
        for words, name in zip(commands, ("first", "second"), strict=True):
            stack.enter_context(_process(words, name, {}, sides, timeout))
        return parity.bisect(*map(_until_it_ends, sides), **options)


@contextlib.contextmanager
def traced(
    jobs: Sequence[Job],
    *,
    packages: tuple[str, str] = ("jaxpg", "torch_ref"),
    environments: tuple[dict[str, str], dict[str, str]] = ({}, {}),
) -> Iterator[tuple[Callable[[int], Iterator[Record]], ...]]:
    """Two processes that trace the same jobs, side by side; both are gone afterwards.

    Args:
      jobs: done one after another.
      packages: which package each process runs.
      environments: variables to set for each.

    Yields:
      For each process a function of the seed, to be called in the jobs' order, that iterates
      over its records.
    """
    listed = []
    for job in jobs:
        check_one_number(validate(job.config))
        seeds = [int(seed) for seed in job.seeds]
        listed.append({**job._asdict(), "config": dataclasses.asdict(job.config), "seeds": seeds})
    text = json.dumps(listed, default=lambda x: x.item())  # numbers of numpy's, jax's or torch's
    with contextlib.ExitStack() as stack:
        sides = list[_Side]()
        for package, variables in zip(packages, environments, strict=True):
            command = [sys.executable, "-m", MODULES[package], text]
            variables = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), **variables}
            stack.enter_context(_process(command, package, variables, sides))
        yield tuple(partial(_run, side) for side in sides)


class _Side(NamedTuple):
    """A process that sends records."""

    package: str
    process: subprocess.Popen
    stderr: BinaryIO
    sides: list["_Side"]  # this one and the other
    timeout: float | None


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    package: str,
    variables: dict[str, str],
    sides: list[_Side],
    timeout: float | None = None,
) -> Iterator[None]:
    """Adds one to `sides`; it and what it has started are gone afterwards."""
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, stdin=subprocess.DEVNULL,
                env={**os.environ, **variables}, bufsize=0, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise TraceError(f"the {package} process cannot be started: {error}") from None
        with process:
            try:
                sides.append(_Side(package, process, stderr, sides, timeout))
                yield
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _run(side: _Side, seed: int) -> Iterator[Record]:
    """The records of one seed, and then the proof that they come from one framework alone."""
    while True:
        header = _header(side, _line(side))
        sent, packages = header.get("seed"), header.get("packages")
        if sent != seed:
            raise _failure(side, f"sent seed {sent} where seed {seed} was due")
        if packages is not None:
            if foreign := FOREIGN[side.package] & set(packages):
                raise _failure(side, f"has imported {', '.join(sorted(foreign))}")
            return
        yield _record(side, header)


def _until_it_ends(side: _Side) -> Iterator[Record]:
    """The records of a command of one's own."""
    while line := _line(side):
        header = _header(side, line)
        if "packages" not in header:  # as jaxpg.proof.trace ends a seed
            yield _record(side, header)
    began = time.monotonic()
    while side.process.poll() is None:
        _check_alive(side, began, "has closed its output for")
        time.sleep(0.01)
    if side.process.returncode:
        raise _failure(side, "failed")


def _line(side: _Side) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < LONGEST and (byte := _read(side, 1)):
        line += byte
    return bytes(line)


def _read(side: _Side, size: int) -> bytes:
    """Up to so many bytes, as soon as there are any; none at the end."""
    assert side.process.stdout is not None
    began = time.monotonic()
    while not select.select([side.process.stdout], [], [], 0.5)[0]:
        _check_alive(side, began, "has sent nothing for")
    return os.read(side.process.stdout.fileno(), size)


def _check_alive(side: _Side, began: float, what: str) -> None:
    """Raise if a process has failed, or what this one does takes too long."""
    for one in side.sides:
        if one.process.poll():
            raise _failure(one, "failed")
    if side.timeout is not None and time.monotonic() - began > side.timeout:
        raise _failure(side, f"{what} {side.timeout:g} s")


def _header(side: _Side, line: bytes) -> dict[str, Any]:
    """Of a record, or what follows the last one of a seed."""
    try:
        header = json.loads(line)
        if "packages" not in header and not (type(header["bytes"]) is int and header["bytes"] >= 0):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _failure(side, f"sent {line[:40]!r} where a record begins") from None
    return header


def _record(side: _Side, header: dict[str, Any]) -> Record:
    payload, size = bytearray(), header["bytes"]
    while len(payload) < size and (some := _read(side, min(size - len(payload), 2**20))):
        payload += some
    if len(payload) < size:
        raise _failure(side, f"sent {len(payload)} of a record's {size} bytes")
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            if len(set(arrays.files)) < len(arrays.files):
                raise ValueError(f"two arrays have one name: {', '.join(arrays.files)}")
            return {name: arrays[name] for name in arrays.files}
    except Exception as problem:  # bytes that are no npz can fail anywhere in zipfile, zlib, numpy
        raise _failure(side, f"sent a record that cannot be read ({problem})") from None


def _failure(side: _Side, what: str) -> TraceError:
    """What went wrong and the end of what the process said about it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        side.process.wait(timeout=1.0)
    status = side.process.poll()
    state = "still runs" if status is None else f"ended with status {status}"
    side.stderr.seek(0)
    last = side.stderr.read().decode(errors="replace").strip().splitlines()[-5:]
    said = "; its standard error is empty" if not last else ":\n  " + "\n  ".join(last)
    return TraceError(f"the {side.package} process {what} and {state}{said}")


def _hash(hashes: dict[str, tuple], side: int, record: Record) -> None:
    """Add to one side's running hashes; the sides may name their tensors in another order."""
    for name, prefix in HASHED.items():
        for tensor in sorted(record):
            if tensor == prefix or (prefix.endswith(":") and tensor.startswith(prefix)):
                hashes[name][side].update(np.ascontiguousarray(record[tensor]))


def _is_gradient(name: str) -> bool:
    return name.startswith("gradient:")


def _is_of_a_gradient(split: parity.Split) -> bool:
    """Whether two gradients are further apart than they may be."""
    return split.verdict == "fault" and _is_gradient(split.leaf.name)


def _is_rounded(name: str) -> bool:
    """Whether a tensor is on the grid, or exact."""
    exact = ("metrics:env_steps", "metrics:episodes", "metrics:kl_weight")
    return name in ROLLOUT or name in exact or name.startswith("params:")


def _is_close(name: str) -> bool:
    """Whether a tensor is compared to the tolerance; sums such as losses follow from the rest."""
    return name in (*IN_UNITS, "advantage") or _is_gradient(name)


def _spread(record: Record) -> float:
    """σ of `compare_runs`: about what a normalised advantage was divided by."""
    error = record["target"] - record["value"]
    return float(np.std(error[record["valid"]])) + 1e-8


def _first_difference(
    a: Record, b: Record, norms: dict[str, float], normalized: bool
) -> tuple[parity.Split | None, float, dict[str, float]]:
    """Where two records differ, as if at update 0; the worst error of a gradient; and by what the
    errors of what is compared to the tolerance were divided.

    `norms`, the largest so far of each tensor that is compared to the tolerance, are brought up to
    date.
    """
    if missing := sorted(a.keys() ^ b.keys()):
        side = "torch_ref" if missing[0] in a else "jaxpg"
        return _nothing(0, f"{side} has no tensor {missing[0]!r}"), math.inf, {}
    for name in a:  # what is compared is looked at there
        compared = _is_rounded(name) or _is_close(name)
        if not (compared or (np.isfinite(a[name]).all() and np.isfinite(b[name]).all())):
            return _nothing(0, f"there is a NaN or an infinity in {name!r}"), math.inf, {}
    rounded = [{name: x[name] for name in x if _is_rounded(name)} for x in (a, b)]
    close = [{name: x[name] for name in x if _is_close(name)} for x in (a, b)]
    spread = _spread(b) if normalized else 1.0
    scale = {}
    for name, x in close[1].items():
        unit = 1.0 if name in IN_UNITS else spread
        norms[name] = max(norms.get(name, 0.0), unit * float(np.linalg.norm(x)))
        scale[name] = norms[name] / unit or 1e-150  # positive, and so must be its square
    try:
        split = parity.bisect(*([x] for x in rounded), steps=[x for x in ROLLOUT if x in a])
        report = parity.compare(*close, tolerance=TOLERANCE, scale=scale, allow_zero=True)
    except ValueError as problem:
        return _nothing(0, str(problem)), math.inf, {}
    if split is None or split.leaf.name not in ROLLOUT:
        failed = [leaf for leaf in report.leaves if leaf.reason]
        if failed:  # the cause comes before the parameters that it moved
            unfit = math.isinf(failed[0].difference)
            verdict = "incomparable" if unfit else "fault"
            split = parity.Split(0, None, failed[0], None, verdict)
    if split is None:
        split = _other_bits(*rounded)
    worst = max((leaf.error for leaf in report.leaves if _is_gradient(leaf.name)), default=0.0)
    return split, worst, scale


def _other_bits(a: Record, b: Record) -> parity.Split | None:
    """The first tensor whose values are equal and whose bits are not."""
    for name, x in a.items():
        y = b[name]
        if x.dtype != y.dtype or x.tobytes() != y.tobytes():
            reason = f"equal values in other bits: -0.0, or {x.dtype} and {y.dtype}"
            leaf = parity.Leaf(name, str(x.dtype), x.shape, reason)
            return parity.Split(0, None, leaf, None, "fault")
    return None


def _shows_nothing(count: int, episodes: int, norms: dict[str, float]) -> parity.Split | None:
    """Why two equal runs prove nothing, if so."""
    gradients = list(filter(_is_gradient, norms))
    still = [name for name in gradients if not norms[name]]
    if not count:
        return _nothing(count, "neither run has an update")
    if not episodes:
        return _nothing(count, "no episode ended, so the runs show too little")
    if not gradients:
        return _nothing(count, "there are no gradients")
    if still:
        return _nothing(count, f"{still[0]!r} is zero at every update")
    return None


def _nothing(update: int, reason: str) -> parity.Split:
    return parity.Split(update, None, parity.Leaf("", "", (), reason), None, "incomparable")


_VERDICTS = {"different": "fault"}  # nothing has shown it to be a straddle


def _roundings(config: Config, seed: int, update: int) -> Pair:
    """Both sides' roundings in one update."""
    if config.grid_bits is None:
        return [], []
    with traced([Job(config, [seed], explain=update)]) as (ours, theirs):
        return list(ours(seed)), list(theirs(seed))


def _judge(
    split: parity.Split,
    former: Record,
    ours: Iterable[Record],
    theirs: Iterable[Record],
    scale: dict[str, float],
    joint: bool,
) -> parity.Split:
    """The split with the values before the first rounding that differs, and their verdict.

    A gradient is explained by what was rounded before it, at an earlier step of its optimizer; and
    no rounding of parameters explains anything if a gradient of its optimizer had differed by then.

    Args:
      former: the parameters before the update, where it is not the first.
    """
    network = None if joint else _network(split.leaf.name)
    ours, theirs = (_of_network(events, network) for events in (ours, theirs))
    first, last = _first_rounding(former, ours, theirs), min(len(ours), len(theirs)) - 1
    too_late = first is not None and _is_of_a_gradient(split) and first.update == last
    if first is None or too_late or not _alike(ours, theirs, first.update + 1, scale):
        reason = f"{split.leaf.reason}, and no rounding explains it"
        return split._replace(leaf=split.leaf._replace(reason=reason), verdict="fault")
    in_rollout = not first.leaf.name.startswith("params:")
    return first._replace(update=split.update, step=first.update if in_rollout else None)


def _network(name: str) -> str | None:
    """Whose parameter or gradient a tensor is; None of the rollout's."""
    kind, _, leaf = name.removesuffix(parity.BEFORE_ROUNDING).partition(":")
    return leaf.partition(".")[0] if kind in ("params", "gradient") else None


def _of_network(events: Iterable[Record], network: str | None) -> list[Record]:
    """What they hold of one network, without events that hold nothing of it; of None all."""
    if network is None:
        return list(events)
    own = [{name: x for name, x in e.items() if _network(name) == network} for e in events]
    return [event for event in own if event]


def _alike(ours: Sequence[Record], theirs: Sequence[Record], count: int, scale: Any) -> bool:
    """Whether the gradients of so many events are as close as those of equal runs."""
    for pair in zip(ours[:count], theirs[:count], strict=True):
        a, b = ({name: x for name, x in e.items() if _is_gradient(name)} for e in pair)
        if not a:
            continue  # of the rollout
        divided = {name: scale[name] for name in a} if a.keys() <= scale.keys() else None
        report = parity.compare(a, b, tolerance=TOLERANCE, scale=divided, allow_zero=True)
        if any(leaf.reason for leaf in report.leaves):
            return False
    return True


def _first_rounding(
    former: Record, ours: Iterable[Record], theirs: Iterable[Record]
) -> parity.Split | None:
    """The first that differs, of those that both sides make (gymnax keeps a pendulum's torque)."""
    rounded = (map(_without_gradients, events) for events in (ours, theirs))
    pairs = [
        [{name: x for name, x in one.items() if name in a and name in b} for one in (a, b)]
        for a, b in zip(*rounded, strict=False)
    ]
    if not pairs:
        return None
    begun = {**former, **{name + parity.BEFORE_ROUNDING: x for name, x in former.items()}}
    events = [[begun, begun], *pairs] if begun else pairs
    split = parity.bisect(*zip(*events, strict=True))
    return split and split._replace(update=split.update - (len(events) - len(pairs)))


def _without_gradients(event: Record) -> Record:
    return {name: x for name, x in event.items() if not _is_gradient(name)}
