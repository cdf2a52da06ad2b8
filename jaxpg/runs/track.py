"""Trackers: what a run reports, for TensorBoard or Weights & Biases, from the host.

    progress/…   after each commit: returns, losses, entropy and norms of the newest update, and
                 the newest evaluation, over all rows that have begun; speed
    curve/…      at the end, of all rows at the same update, evaluations too
    seeds/…      at the end, a histogram over the rows
    final/…      at the end, what summary.json says

All have one axis, environment steps per seed (of a sweep, per row). While several chunks of seeds
are trained one after another it is the mean over all of them, those that have not begun too.

DIR/tracker.json says which tracker a run has and what was written to it, so that a run that is
continued, by whatever command, goes on in the same one.
"""

import importlib.util
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpg import files, words
from jaxpg.analysis.curves import curve_points
from jaxpg.analysis.outcomes import evaluated, scores
from jaxpg.analysis.stats import iqm
from jaxpg.core.config import ConfigError, nearest
from jaxpg.errors import RunError
from jaxpg.population.evaluations import MODES
from jaxpg.runs import manifests
from jaxpg.runs.lock import locked

if TYPE_CHECKING:
    from jaxpg.population.progress import Progress
    from jaxpg.runs.load import Run

NAME = "tracker.json"
FOLDER = "tensorboard"
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "none": None}
POINTS = 100  # of a curve
BINS = 30  # of a histogram
AXIS = "env_steps_per_seed"  # what wandb calls the step

# (values by tag, step): floats, and arrays for histograms
Log = Callable[[Mapping[str, Any], int], None]


class State(NamedTuple):
    """tracker.json."""

    kind: str  # of PACKAGES
    id: str  # of the tracker's run
    manifest: str | None  # SHA-256 of the manifest whose results are logged
    updates: int  # that they had


NO_TRACKER = State("none", "", None, 0)


def choose(directory: Path, kind: str | None) -> None:
    """Remember which tracker a run has; None keeps the one that it has.

    Raises:
      ConfigError: if there is no such tracker, or its package is not installed.
      RunError: if it cannot be remembered, or another process has the run (InUse).
    """
    if kind is None:
        return
    check(kind)
    try:
        told = read(directory).kind
    except RunError:  # it is damaged, and gone with what is chosen now
        told = None
    if told != kind:
        with locked(directory):
            _write(directory, State(kind, secrets.token_hex(4), None, 0))


def check(kind: str) -> None:
    """Raise ConfigError unless there is such a tracker and its package."""
    if kind not in PACKAGES:
        raise ConfigError(f"--track is {kind!r}{nearest(kind, PACKAGES)}")
    package = PACKAGES[kind]
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"--track {kind} needs {package}, which is not installed: pip install {package}"
        )


def read(directory: Path) -> State:
    """What tracker.json says; kind "none" if there is none.

    Raises:
      RunError: if it is damaged.
    """
    path = directory / NAME
    try:
        fields = json.loads(path.read_bytes())
        newer = sorted(set(fields) - set(State._fields))
        if newer:
            raise RunError(f"{path} was made by a newer version of jaxpg: see {newer[0]!r:.60}")
        state = State(**fields)
        texts = isinstance(state.kind, str) and isinstance(state.id, str)
        if not texts or state.kind not in PACKAGES or not isinstance(state.updates, int):
            raise ValueError(f"it says {fields!r:.60}")
    except FileNotFoundError:
        return NO_TRACKER
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = words.line(error)
        raise RunError(f"{path} is damaged ({reason}): remove it, or give --track again") from None
    return state


@contextmanager
def tracking(directory: Path) -> Iterator[Callable[["Progress"], None]]:
    """A reporter that passes progress on to the run's tracker, which is open meanwhile.

    Raises:
      ConfigError: if its package is not installed.
      RunError: if tracker.json is damaged.
    """
    with _open(directory, read(directory)) as log:
        yield lambda at: log(_progress(at), round(at.env_steps_per_row))


def log_results(directory: Path) -> None:
    """Log a finished run's results, unless that was done."""
    state = read(directory)
    sha256 = manifests.sha256(directory)
    if state.kind == "none" or state.manifest == sha256:
        return
    from jaxpg.runs.load import load

    run = load(directory)
    with _open(directory, state) as log:
        for step, values in _results(run, after=state.updates):
            log(values, step)
    _write(directory, state._replace(manifest=sha256, updates=run.config.num_updates))


def _write(directory: Path, state: State) -> None:
    with files.writing(directory):
        files.write(directory / NAME, json.dumps(state._asdict()) + "\n")


def _open(directory: Path, state: State) -> AbstractContextManager[Log]:
    check(state.kind)
    if state.kind == "none":
        return nullcontext(lambda values, step: None)
    return {"tensorboard": _tensorboard, "wandb": _wandb}[state.kind](directory, state)


@contextmanager
def _tensorboard(directory: Path, state: State) -> Iterator[Log]:
    """An event file more in DIR/tensorboard, which TensorBoard reads as one run.

    Not by tensorboardX's SummaryWriter, whose thread dies of a full disk and leaves the caller
    waiting.
    """
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event

    with files.writing(directory):
        (directory / FOLDER).mkdir(exist_ok=True)
    unique = f".{secrets.token_hex(4)}"  # the rest of the name is the second that it was opened in
    writer = EventsWriter(str(directory / FOLDER / "events"), unique)

    def add(made: Any, step: int) -> None:
        writer.write_event(Event(wall_time=time.time(), step=step, summary=made))

    def log(values: Mapping[str, Any], step: int) -> None:
        for tag, value in values.items():
            if isinstance(value, float):
                add(summary.scalar(tag, value), step)
            else:
                add(summary.histogram(tag, value, BINS), step)
        writer.flush()

    with closing(writer):
        if not state.updates:
            manifest = (directory / manifests.NAME).read_text(encoding="utf-8")
            add(summary.text("manifest", f"```\n{manifest}\n```"), 0)
        yield log


@contextmanager
def _wandb(directory: Path, state: State) -> Iterator[Log]:
    """The wandb run of that id; WANDB_PROJECT, WANDB_MODE and its other variables are heeded."""
    import wandb

    from jaxpg.runs import results

    manifest = manifests.read(directory)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "jaxpg"),
        id=state.id,
        name=os.environ.get("WANDB_NAME", directory.resolve().name),
        dir=str(directory),
        resume="allow",
        config={
            "preset": manifest.preset,
            "algorithm": manifest.called,
            "seeds": ",".join(manifest.parts),
            "lanes": manifest.lanes,
            **results.shared(manifest),
            **({"settings": [*manifest.settings]} if manifest.varied else {}),
        },
    )
    try:
        run.define_metric("*", step_metric=AXIS)

        def log(values: Mapping[str, Any], step: int) -> None:
            shown = {
                tag: value if isinstance(value, float) else wandb.Histogram(value)
                for tag, value in values.items()
            }
            run.log({**shown, AXIS: step})

        yield log
    finally:
        run.finish()


def _progress(at: "Progress") -> dict[str, float]:
    values = {
        "progress/fraction": at.fraction,
        "progress/seconds": at.seconds,
        "progress/env_steps_per_second": at.env_steps / at.seconds,
        "progress/seeds_begun": float(len(at.recent_return)),
    }
    if at.return_iqm is not None:
        values |= {
            "progress/return_iqm": at.return_iqm,
            "progress/return_min": float(at.known.min()),
            "progress/return_max": float(at.known.max()),
        }
    if at.evaluations is not None:
        for mode, returns in zip(MODES, at.evaluations.T, strict=True):
            known = returns[np.isfinite(returns) & np.isfinite(at.metrics.policy_loss)]
            if len(known):  # of who has not diverged
                values[f"progress/{mode}_return_iqm"] = float(iqm(known))
    return values | {f"progress/{name}": x for name, x in _means(at.metrics.named()).items()}


def _results(run: "Run", after: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(environment steps per row, values by tag); of the curve what lies after so many updates."""
    population, updates = run.population, run.config.num_updates
    metrics, healthy = population.metrics, population.frozen_at < 0  # the others take no steps
    taken = metrics.env_steps[healthy] if healthy.any() else metrics.env_steps
    steps = np.cumsum(taken, axis=1, dtype=np.int64).mean(axis=0).round().astype(int)
    amount, returns = curve_points(run.config, population)
    at = np.round(amount * updates / amount[-1]).astype(int) if len(amount) else amount
    for i, update in enumerate(at):
        if update > after and np.isfinite(returns[:, i]).all():
            yield int(steps[update - 1]), {"curve/return_iqm": float(iqm(returns[:, i]))}
    for update in np.unique(np.linspace(0, updates - 1, min(POINTS, updates)).round().astype(int)):
        if update >= after:
            means = _means({name: x[:, update] for name, x in metrics.named().items()})
            yield int(steps[update]), {f"curve/{name}_mean": x for name, x in means.items()}
    seen = evaluated(population)
    for k, update in enumerate(seen.update.tolist() if seen else []):
        if update > after or not after:
            by_mode = {mode: float(iqm(getattr(seen, mode)[:, k])) for mode in MODES}
            values = {f"curve/{mode}_return_iqm": x for mode, x in by_mode.items()}
            yield int(steps[update - 1]) if update else 0, values
    final, last = scores(population), int(steps[-1])
    if np.isfinite(final).any():
        yield last, {"seeds/final_return": final[np.isfinite(final)]}
    spread = run.summary.get("final_return") or {}
    values = {f"final/return_{name}": float(x) for name, x in spread.items() if x is not None}
    if run.summary.get("solved_fraction") is not None:
        values["final/solved_fraction"] = float(run.summary["solved_fraction"])
    for mode, parts in (run.summary.get("evaluations") or {}).items():
        values |= {f"final/{mode}_return_{name}": float(x["iqm"]) for name, x in parts.items()}
    values["final/diverged"] = float((population.frozen_at >= 0).sum())
    yield last, values


def _means(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of the losses of rows that are not frozen; nothing of what no row has."""
    from jaxpg.population.chunks import SUMS

    known = {name: x[np.isfinite(x)] for name, x in metrics.items() if name not in SUMS}
    return {name: float(values.mean()) for name, values in known.items() if len(values)}
