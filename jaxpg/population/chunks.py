"""Chunks: L lanes that one compiled program trains together, a segment of updates at a time.

The program's shape depends on the number of lanes alone, each chunk runs on one device, and every
worker runs that same program: so what becomes of a lane depends neither on the other lanes, nor on
how many chunks, devices or workers there are. (A float reduction of another batch shape, or of a
program that XLA partitions over devices, would round otherwise.)

A worker is a thread with a device of its own; a core of a CPU is one.

JAX's 64-bit mode changes how float32 programs are compiled, and so their last bits: it is on here
for float64 arithmetic and off for float32, whatever the process has (`own_jax`).
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpg import fast, words
from jaxpg.core import learner, noise, ring
from jaxpg.core.config import OWN_PARAMS, Config, ConfigError, EnvParams
from jaxpg.core.types import LearnerState, Metrics, Params
from jaxpg.errors import DoesNotFit
from jaxpg.population import devices, memory
from jaxpg.population.episodes import play
from jaxpg.population.evaluations import MODES, Evaluating, points
from jaxpg.population.own import Build

# Why a lane is frozen: the first of these that is not finite. 0 is a lane that is not frozen.
CAUSES = ("", *learner.LOSSES, "params")  # an index of it is what a file says
COUNTED = ("env_steps", "episodes")  # metrics that are integers
SUMS = (*COUNTED, "return_sum")  # and those that add up; a frozen lane has 0 of them


class Chunk(NamedTuple):
    """What L lanes train; numpy."""

    config: Config  # traced leaves [L], of the working dtype
    keys: np.ndarray  # uint32 [L, 2], the data of each seed's key
    real: int  # lanes before the padding
    options: EnvParams = OWN_PARAMS  # of an algorithm of one's own; traced ones [L]
    params: Params | None = None  # to start from, leaves [L, ...]; None: those that are drawn
    evaluating: Evaluating | None = None
    evaluation_keys: np.ndarray | None = None  # uint32 [L, 2], the data of each seed's


class Lane(NamedTuple):
    """One lane between two updates, of plain arrays, which every file and numpy can hold."""

    state: LearnerState  # its key as data, uint32 [2]; typed keys of others as `KeyData`
    cause: jax.Array  # int32, index in CAUSES; if not 0, `state` is the last finite one


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyData:
    """A typed key that an environment or an optimizer of one's own keeps."""

    data: jax.Array  # uint32
    impl: Any = dataclasses.field(metadata={"static": True})  # what made it, as jax names that


class Snapshot(NamedTuple):
    """A chunk after u of its updates."""

    lanes: Lane  # leaves [L, ...]
    history: list[Metrics]  # of consecutive updates, u in all; numpy, leaves [L, ...]
    recent_return: np.ndarray  # [L], mean of the last (up to) 100 episodes; NaN if none ended
    # [L, K, 2], mean returns at all K `points` until then, by mode; None if there are no such
    evaluations: np.ndarray | None = None

    @property
    def update(self) -> int:
        """u."""
        return sum(part.env_steps.shape[1] for part in self.history)


class Program(NamedTuple):
    """The compiled functions of one worker."""

    device: Any
    # (config, options, keys, params) -> lanes; all cores share the first one's
    start: Callable[..., Lane]
    # (config, options, lanes, count) -> lanes, metrics [L, length], recent
    advance: Callable[..., tuple]
    length: int  # updates that a call of `advance` does at most
    # (config, options, params, evaluation keys, updates done) -> returns [L, 2, M]; a program of
    # its own, so that training is the same to the bit with it and without
    evaluate: Callable[..., jax.Array] | None = None


# Trains a chunk until it has done so many updates, from a snapshot of it or None on: `advance`, by
# somebody.
Advance = Callable[[Chunk, int, Snapshot | None], Iterator[Snapshot]]


@contextmanager
def own_jax(config: Config) -> Iterator[None]:
    """JAX as our programs rely on it, in this thread, whatever the process has set.

    That is the 64-bit mode that the config's arithmetic needs, the usual kind and layout of random
    bits, products as exact as their factors where an environment or a part of one's own says
    nothing else (a GPU would round the factors to 10 bits, a TPU to 7), and none of the settings
    with which people look for faults in programs of their own: they refuse what is meant here (NaN
    is a metric where no episode ended, a host array is an argument) or cannot compile.
    """
    with (
        jax.enable_x64(config.float_type == "float64"),
        jax.threefry_partitionable(True),  # what environments draw depends on it,
        jax.default_prng_impl("threefry2x32"),  # and on this, if they make keys
        jax.default_matmul_precision("highest"),
        jax.disable_jit(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
        jax.check_tracer_leaks(False),
        jax.debug_key_reuse(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield


def compile_programs(
    chunk: Chunk, length: int, workers: int | None = None, build: Build = fast.build
) -> list[Program]:
    """The program for chunks like this one, for every worker; it is traced once.

    Args:
      length: updates that a call of it does at most.
      workers: at most so many; None for all that there can be.
      build: makes the algorithm.

    Raises:
      DoesNotFit: if the compiler finds that a device has no room for it, as a TPU's does.
    """
    with own_jax(chunk.config), _room_for(len(chunk.keys)):
        start, advance = _functions(length, build)
        start, advance = jax.jit(start), jax.jit(advance, donate_argnums=2)
        of_chunk = (chunk.config, chunk.options)
        arguments = (*of_chunk, chunk.keys, chunk.params)
        lanes = jax.eval_shape(start, *arguments)
        on = devices.workers()[:workers]
        # It runs once a chunk: one core's is enough, but an accelerator has memory of its own.
        starters = on[:1] if on[0].platform == "cpu" else on
        starts = devices.compile_on_each(start, arguments, starters) * (len(on) // len(starters))
        advances = devices.compile_on_each(advance, (*of_chunk, lanes, np.int32(0)), on)
        evaluates: list[Any] = [None] * len(on)
        if chunk.evaluating is not None:
            evaluate = jax.jit(_evaluator(chunk.evaluating.episodes, build))
            inputs = (*of_chunk, lanes.state.params, chunk.evaluation_keys, np.int32(0))
            evaluates = devices.compile_on_each(evaluate, inputs, on)
    return [
        Program(device, begin, each, length, evaluate)
        for device, begin, each, evaluate in zip(on, starts, advances, evaluates, strict=True)
    ]


@contextmanager
def _room_for(lanes: int, refused: Callable[..., DoesNotFit] = memory.no_room) -> Iterator[None]:
    """Raise `refused(lanes, what jax says)` where a device's memory runs out."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise refused(lanes, words.line(error)) from error


@contextmanager
def _computing(chunk: Chunk) -> Iterator[None]:
    """Where a chunk's programs run, and a device may have less room than it seemed to have."""
    with own_jax(chunk.config), _room_for(len(chunk.keys), memory.ran_out):
        yield


def lane_shapes(chunk: Chunk, build: Build = fast.build) -> Lane:
    """The shapes and dtypes of a chunk's lanes, without computing anything."""
    with own_jax(chunk.config):
        start, _ = _functions(1, build)
        return jax.eval_shape(start, chunk.config, chunk.options, chunk.keys, chunk.params)


def trace_update(chunk: Chunk, lanes: Lane, build: Build) -> None:
    """Trace an update of a chunk's lanes, given as shapes, for the errors that there are."""
    with own_jax(chunk.config):
        _, advance = _functions(1, build)
        jax.eval_shape(advance, chunk.config, chunk.options, lanes, np.int32(0))


def programs_text(chunk: Chunk, build: Build) -> str:
    """The programs that begin a chunk's lanes and update them, as text: equal texts train to equal
    bits."""
    lanes, of_chunk = lane_shapes(chunk, build), (chunk.config, chunk.options)
    with own_jax(chunk.config):
        start, advance = _functions(1, build)
        begins = jax.jit(start).lower(*of_chunk, chunk.keys, chunk.params)
        updates = jax.jit(advance).lower(*of_chunk, lanes, np.int32(0))
        return f"{begins.as_text()}{updates.as_text()}"


def check_memory(
    programs: Sequence[Program],
    shapes: Lane,
    all_chunks: Sequence[Chunk],
    updates: int,
    writes: bool,
    elsewhere: int = 0,
) -> str:
    """What training these chunks takes of this process's memory at its peak, in a line.

    Args:
      writes: whether the results become files.
      elsewhere: how many others train chunks at once, whose ends this process keeps.

    Raises:
      DoesNotFit: if it is more than there is.
    """
    numbers = updates * len(metric_names(all_chunks[0].config))
    numbers += len(MODES) * len(points_of(all_chunks[0]))
    need = memory.predict(programs, shapes, len(all_chunks), numbers, writes, elsewhere)
    return memory.check(need, len(all_chunks[0].keys), [program.device for program in programs])


def start(program: Program, chunk: Chunk) -> Lane:
    """The lanes before their first update."""
    with _computing(chunk):
        lanes = program.start(chunk.config, chunk.options, chunk.keys, chunk.params)
        return jax.device_put(lanes, program.device)


def advance(
    program: Program, chunk: Chunk, updates: int, at: Snapshot | None
) -> Iterator[Snapshot]:
    """Train a chunk until it has done so many updates; a snapshot after each segment.

    Args:
      updates: in all, at least those that `at` has done.
      at: where to go on; None for the start.

    Yields:
      The snapshot after each segment; its lanes are valid until the next one is asked for.

    Raises:
      DoesNotFit: if the device's memory runs out.
    """
    with _computing(chunk):
        of_chunk = jax.device_put((chunk.config, chunk.options), program.device)
        lanes = start(program, chunk) if at is None else jax.device_put(at.lanes, program.device)
    history = [] if at is None else list(at.history)
    found = [] if at is None or at.evaluations is None else [at.evaluations]
    done = 0 if at is None else at.update
    due = points_of(chunk)
    if due and not found:
        found.append(_evaluate(program, chunk, of_chunk, lanes, done))
    while done < updates:
        end = min([done + program.length, updates, *(point for point in due if point > done)])
        count, done = end - done, end
        with _computing(chunk):
            lanes, metrics, recent = program.advance(
                *of_chunk, lanes, jax.device_put(np.int32(count), program.device)
            )
            history.append(jax.tree.map(lambda x, n=count: np.array(x)[:, :n], metrics))
        if done in due:
            found.append(_evaluate(program, chunk, of_chunk, lanes, done))
        evaluations = np.concatenate(found, axis=1) if found else None
        yield Snapshot(lanes, history, np.array(recent), evaluations)


def points_of(chunk: Chunk) -> list[int]:
    """Updates after which its policies are evaluated."""
    return [] if chunk.evaluating is None else points(chunk.config, chunk.evaluating.every)


def restored(state: LearnerState) -> LearnerState:
    """The state of a lane as an update takes it, with typed keys."""

    def typed(x: Any) -> Any:
        return jax.random.wrap_key_data(x.data, impl=x.impl) if isinstance(x, KeyData) else x

    whole = jax.tree.map(typed, state, is_leaf=lambda x: isinstance(x, KeyData))
    return whole._replace(key=noise.typed(state.key))


def join_metrics(parts: Sequence[Metrics]) -> Metrics:
    """Metrics of consecutive updates, joined along the updates."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)


def work(
    programs: Sequence[Program],
    jobs: Sequence[int],
    job: Callable[[Advance, int], None],
    stop: threading.Event,
) -> None:
    """Do `job(advance, i)` for each i of the jobs, every worker taking the next one.

    The first exception, in a worker or (Ctrl-C) here, sets `stop`; it is raised once every worker
    has left its job. No further job is begun once `stop` is set.
    """
    left, lock = iter(jobs), threading.Lock()

    def take_turns(program: Program) -> None:
        try:
            while not stop.is_set():
                with lock:
                    i = next(left, None)
                if i is None:
                    return
                job(partial(advance, program), i)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(programs)) as pool:
        try:
            futures = [pool.submit(take_turns, program) for program in programs]
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            stop.set()
            raise
    for future in futures:
        future.result()


def _evaluate(
    program: Program, chunk: Chunk, of_chunk: tuple, lanes: Lane, done: int
) -> np.ndarray:
    """Mean returns of the lanes' policies after so many updates, [L, 1, 2]."""
    assert program.evaluate is not None
    with _computing(chunk):
        given = jax.device_put((chunk.evaluation_keys, np.int32(done)), program.device)
        returns = np.asarray(program.evaluate(*of_chunk, lanes.state.params, *given))
    return returns.mean(axis=-1, dtype=np.float64).astype(returns.dtype)[:, None]


def _functions(length: int, build: Build) -> tuple[Callable[..., Lane], Callable[..., tuple]]:
    """`start` and `advance` of a Program."""

    def start(
        config: Config, options: EnvParams, key_data: jax.Array, params: Params | None
    ) -> Lane:
        algorithm = build(config, **options)
        if params is not None:
            given = algorithm.rounded(params)
            networks = algorithm.networks._replace(init=lambda *keys: given)
            algorithm = algorithm._replace(networks=networks)
        state = learner.init(config, noise.typed(key_data), algorithm)
        return Lane(_stored(state), jnp.int32(0))

    def update(config: Config, options: EnvParams, lane: Lane) -> tuple[Lane, Metrics]:
        state, metrics = learner.update(config, restored(lane.state), build(config, **options))
        after = _stored(state)
        _check_leaves(lane.state, after)
        cause = jnp.where(lane.cause > 0, lane.cause, _cause(after, metrics))
        frozen = cause > 0
        kept = jax.tree.map(lambda old, new: jnp.where(frozen, old, new), lane.state, after)
        return Lane(kept, cause), _blank(metrics, frozen)

    def advance(config: Config, options: EnvParams, lanes: Lane, count: jax.Array) -> tuple:
        step = jax.jit(jax.vmap(update))  # traced once for both uses
        row = jax.eval_shape(step, config, options, lanes)[1]
        history = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), row)

        def body(i: jax.Array, carry: tuple) -> tuple:
            lanes, history = carry
            lanes, metrics = step(config, options, lanes)
            return lanes, jax.tree.map(lambda rows, x: rows.at[i].set(x), history, metrics)

        # A traced count: a loop whose length is known would be compiled differently for length 1.
        lanes, history = jax.lax.fori_loop(0, count, body, (lanes, history))
        by_lane = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), history)
        return lanes, by_lane, jax.vmap(ring.mean)(lanes.state.recent_returns)

    return jax.vmap(start), advance


def _evaluator(episodes: int, build: Build) -> Callable[..., jax.Array]:
    """`evaluate` of a Program.

    An episode is decided by its seed, the updates done and its own index: not by how often, nor
    beside whom, or in how many episodes, a policy is evaluated.
    """

    def of_lane(
        config: Config, options: EnvParams, params: Params, key_data: jax.Array, done: jax.Array
    ) -> jax.Array:
        algorithm = build(config, **options)
        key = noise.fold_in(noise.typed(key_data), done)
        keys = jax.vmap(noise.fold_in, (None, 0))(key, jnp.arange(episodes))
        played = [play(algorithm, mode, params, keys, config.env_params) for mode in MODES]
        return jnp.stack([returns for returns, _ in played])

    return jax.vmap(of_lane, (0, 0, 0, 0, None))


def _stored(state: LearnerState) -> LearnerState:
    """What `restored` takes."""

    def plain(x: Any) -> Any:
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return KeyData(jax.random.key_data(x), jax.random.key_impl(x)) if is_key else x

    return jax.tree.map(plain, state)._replace(key=jax.random.key_data(state.key))


def _check_leaves(before: LearnerState, after: LearnerState) -> None:
    """Raise ConfigError unless an update gives back what it was given: the same leaves, of the same
    shapes and dtypes; with parts of one's own it may not."""

    def kinds(state: LearnerState) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {jax.tree_util.keystr(path): jax.typeof(x).str_short() for path, x in leaves}

    was, now = kinds(before), kinds(after)
    new, missing = sorted(now.keys() - was.keys()), sorted(was.keys() - now.keys())
    problems = [f"{name} is new" for name in new] + [f"{name} is missing" for name in missing]
    problems += [
        f"{name} is {now[name]}, and was {kind}"
        for name, kind in was.items()
        if now.get(name, kind) != kind
    ]
    if problems:
        raise ConfigError(
            f"an update must return the state that it was given; {', '.join(problems)}"
        )


def metric_names(config: Config) -> tuple[str, ...]:
    """Of what an update of this config reports."""
    everybody = [name for name in Metrics._fields if name not in Metrics._field_defaults]
    return (*everybody, *config.reports)


def _cause(state: LearnerState, metrics: Metrics) -> jax.Array:
    """The first of CAUSES that is not finite, or 0; what scales rewards and what a fit keeps are
    parameters, too."""
    finite = [jnp.isfinite(getattr(metrics, name)) for name in learner.LOSSES]
    leaves = jax.tree.leaves((state.params, state.reward_scale, state.fit_state))
    finite.append(jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])))
    broken = jnp.logical_not(jnp.stack(finite))
    return jnp.where(jnp.any(broken), jnp.argmax(broken).astype(jnp.int32) + 1, 0)


def _blank(metrics: Metrics, frozen: jax.Array) -> Metrics:
    """A frozen lane takes no steps and has no losses: 0 for what is counted, NaN for the rest."""
    return Metrics(
        **{
            name: jnp.where(frozen, 0 if name in SUMS else jnp.nan, x).astype(x.dtype)
            for name, x in metrics.named().items()
        }
    )
