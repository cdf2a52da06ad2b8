"""One seed of a run again, alone: what each update met, estimated and descended.

The seed is trained by the very program of the run, so its state at every update is the run's, to
the bit. What an update met is then computed from that state by a second program, which also gives
out its trajectory and gradients.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpg import fast, files
from jaxpg.core import learner, trace
from jaxpg.core.config import Config, EnvParams
from jaxpg.core.types import LearnerState, Metrics
from jaxpg.errors import RunError
from jaxpg.names import to_torch
from jaxpg.population import chunks, population
from jaxpg.population.chunks import CAUSES, Chunk, Lane, Program, Snapshot
from jaxpg.population.own import Build
from jaxpg.population.settings import which
from jaxpg.runs import checkpoints, manifests, starts
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.planning import make_chunks
from jaxpg.runs.starts import Start


def retrace(
    directory: Path,
    seed: int,
    setting: int | None,
    update: int | None,
    out: Path,
    build: Build = fast.build,
) -> str:
    """Write one npz per update, and retrace.json, which says how well they agree with the run.

    Of a seed that diverged the last update is the one that it did not survive.

    Args:
      directory: a run, finished or not.
      seed: one of its seeds.
      setting: index of one of its settings; None for the only one.
      update: the only one to write, from 0; None for all.
      out: new or empty; complete or not there.
      build: makes the algorithm; the same that the run was begun with.

    Returns:
      A sentence on what was found.

    Raises:
      RunError: if the run has no such seed, setting or update, the seed diverged before it, or
        `out` holds something.
    """
    manifest = manifests.read(directory)
    manifests.check_same_bits(directory, manifest)
    updates = manifest.config.num_updates
    if seed not in manifest.seeds:
        raise RunError(f"{directory} has no seed {seed}; its seeds are {','.join(manifest.parts)}")
    setting = which(setting, manifest.settings)
    if update is not None and not 0 <= update < updates:
        raise RunError(f"--update must be in [0, {updates}); got {update}")
    wanted = range(updates) if update is None else range(update, update + 1)
    start = starts.read(directory, manifest)
    saved = _saved_metrics(directory, manifest, start, seed, setting, build)
    what = (manifest.config, [seed], [manifest.settings[setting]], manifest.lanes)
    (lane,) = population.make_chunks(
        *what, manifest.options, start and starts.of_seeds(start, [seed])
    )
    known = 0 if saved is None else saved.env_steps.shape[0]
    with files.whole_directory(out, "--out") as partial:
        same_end, differs, end, died = 0, [], wanted.start, 0
        for u, record, metrics, params, cause in _records(manifest, lane, wanted, build):
            end, died = u + 1, cause
            with (partial / f"update-{u:06d}.npz").open("wb") as file:
                np.savez(file, **record)  # type: ignore[arg-type]
            same_end += all(
                np.array_equal(record[f"params:{name}"], x) for name, x in params.items()
            )
            if u < known and not _equal(metrics, saved, u):
                differs.append(u)
        if end == wanted.start:
            raise RunError(f"there is no update {end} of seed {seed}: it had diverged before")
        compared = max(0, min(end, known) - wanted.start)
        report = {
            "seed": seed,
            "setting": manifest.settings[setting],
            "updates": [wanted.start, end],
            "diverged": CAUSES[died] if died else None,
            "compared_with_run": compared,
            "differ_from_run": differs,
            "records_that_end_in_the_parameters_of_the_run": same_end,
        }
        files.write(partial / "retrace.json", files.as_json(report))
    verdict = f"update {differs[0]} differs from it" if differs else "all are equal to the bit"
    return (
        f"{out}: seed {seed}, updates [{wanted.start}, {end}); {compared} could be "
        "compared with the run"
        + (f", and {verdict}" if compared else "")
        + (f"; it diverged in the last of them ({CAUSES[died]})" if died else "")
    )


def _records(
    manifest: Manifest, chunk: Chunk, wanted: range, build: Build
) -> Iterator[tuple[int, dict[str, np.ndarray], Metrics, dict[str, np.ndarray], int]]:
    """Of the chunk's first lane, of each wanted update until it has diverged: (update, record, the
    run's metrics, the run's parameters after it, why it diverged in it, as an index in CAUSES)."""
    (program,) = chunks.compile_programs(chunk, manifest.segment, 1, build)

    @jax.jit
    @jax.vmap
    def watch(config: Config, options: EnvParams, state: LearnerState) -> tuple:
        return learner.watch(config, state, build(config, **options))

    lanes, done = jax.tree.map(np.array, chunks.start(program, chunk)), 0
    for u in wanted:
        if u > done:
            lanes, _ = _advance(program, chunk, lanes, u - done)
        if lanes.cause[0]:
            return
        after, metrics = _advance(program, chunk, lanes, 1)
        with chunks.own_jax(manifest.config):
            state = chunks.restored(lanes.state)
            watched, seen = watch(chunk.config, chunk.options, state)
            record = trace.record(*jax.tree.map(lambda x: x[0], (watched.params, seen)))
        params = jax.tree.map(lambda x: x[0], after.state.params)
        of_run = jax.tree.map(lambda x: x[0, 0], metrics)
        yield u, record, of_run, to_torch(params), int(after.cause[0])
        lanes, done = after, u + 1


def _advance(program: Program, chunk: Chunk, lanes: Lane, count: int) -> tuple[Lane, Metrics]:
    """The lanes after count ≥ 1 more updates, and the metrics of the last segment of them."""
    *_, reached = chunks.advance(program, chunk, count, Snapshot(lanes, [], np.zeros(0)))
    return jax.tree.map(np.array, reached.lanes), reached.history[-1]


def _equal(metrics: Metrics, saved: Metrics, update: int) -> bool:
    """Whether an update's metrics, scalars, are those of the run, leaves [u], to the bit."""
    pairs = zip(metrics.named().values(), saved.named().values(), strict=True)
    return all(np.array_equal(ours, theirs[update], equal_nan=True) for ours, theirs in pairs)


def _saved_metrics(
    directory: Path,
    manifest: Manifest,
    start: Start | None,
    seed: int,
    setting: int,
    build: Build,
) -> Any:
    """The run's metrics of this seed with this setting, leaves [u], or None if there are none."""
    all_chunks = make_chunks(manifest, start)
    i, lane = 0, manifest.rows.index((seed, setting))
    while lane >= all_chunks[i].real:
        lane, i = lane - all_chunks[i].real, i + 1
    shapes = chunks.lane_shapes(all_chunks[i], build)
    for at in reversed(checkpoints.listed(directory).get(i, [])):
        try:
            loaded = checkpoints.load(at, all_chunks[i], shapes, manifest.config.num_updates)
        except RunError:
            continue  # the one before it says the same of fewer updates
        return jax.tree.map(lambda x: x[lane], loaded.snapshot.history[0])
    return None
