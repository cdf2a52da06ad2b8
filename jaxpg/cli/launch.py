"""How a run is trained to its end by a command: on which machines, watched by whom."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from jaxpg import words
from jaxpg.cli.arguments import Callback
from jaxpg.cli.show import describe
from jaxpg.cli.streams import attempt, say
from jaxpg.core.config import ConfigError
from jaxpg.errors import Stopped
from jaxpg.population import own
from jaxpg.runs import manifests, track
from jaxpg.runs.manifests import Manifest
from jaxpg.runs.watch import EXIT_STOPPED, Watchdog

if TYPE_CHECKING:
    from jaxpg.population.cluster import Cluster
    from jaxpg.population.progress import Progress

PATIENCE = 60.0  # seconds that a tracker has for a report
RESULTS_PATIENCE = 600.0  # and for all results
HEAD_ASKED = 1.0  # seconds from one question to a cluster's head to the next
HEAD_SECONDS = 30.0  # that it may be silent: after 60 Ray ends this process, as failed


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a run is trained; none of it changes a bit of the results."""

    stall_seconds: float = 600.0
    """End with code 76 if a segment takes longer."""
    report: bool = True
    """Write report.html at the end."""
    callback: Callback = None
    """Called after each commit with the directory and the progress; imported."""

    @property
    def line(self) -> list[str]:
        """These options, the callback aside, as they are given."""
        usual, seconds = Launch.stall_seconds, self.stall_seconds
        patience = [] if seconds == usual else ["--stall-seconds", f"{seconds:g}"]
        return patience if self.report else [*patience, "--no-report"]


@dataclasses.dataclass(frozen=True)
class Machines:
    """Where a run is trained."""

    cluster: Annotated[
        str | None, arg(metavar="HOST:PORT", help_behavior_hint="(default: this machine alone)")
    ] = None
    """Train on a Ray cluster: HOST:PORT of its first node, or auto for the one that this machine
    belongs to; this process alone writes."""
    mixed: bool = False
    """Let nodes with other versions or processors train, too; last bits may differ there."""

    @property
    def here(self) -> bool:
        """Whether this machine trains, and no cluster is asked for."""
        return self == Machines()

    @property
    def line(self) -> list[str]:
        """These options, as they are given."""
        cluster = [] if self.cluster is None else ["--cluster", self.cluster]
        return [*cluster, "--mixed"] if self.mixed else cluster


def check(launch: Launch) -> None:
    """Raise ConfigError unless the options have a meaning."""
    if not 0 < launch.stall_seconds < math.inf:
        seconds = launch.stall_seconds
        raise ConfigError(f"--stall-seconds must be finite and greater than 0; got {seconds:g}")


def import_callback(launch: Launch) -> Callable[..., None] | None:
    """What is called after each commit, or None; must come before anything is written.

    Raises:
      ConfigError: if there is no such function.
    """
    return None if launch.callback is None else own.imported(launch.callback, "--callback")


@contextmanager
def joined(machines: Machines) -> Iterator["Cluster | None"]:
    """In the cluster, if one is asked for; comes before anything that starts jax."""
    if machines.here:
        yield None
        return
    import jax

    from jaxpg.population import cluster

    with cluster.joined(machines.cluster, machines.mixed, say) as nodes:
        assert nodes is not None
        jax.config.update("jax_platforms", "cpu")  # an accelerator here is a worker's
        with _head_watched(nodes):
            yield nodes


@contextmanager
def _head_watched(nodes: "Cluster") -> Iterator[None]:
    """End the process with EXIT_STALLED if the cluster's head is silent for HEAD_SECONDS."""
    ended = Event()
    with Watchdog(HEAD_SECONDS, "the head of the cluster has not answered") as watchdog:

        def ask() -> None:
            while not ended.wait(HEAD_ASKED):
                if nodes.answers():
                    watchdog.beat(0)

        watchdog.beat(0)
        asking = Thread(target=ask, daemon=True)
        asking.start()
        try:
            yield
        finally:
            ended.set()
            asking.join()


def to_the_end(
    directory: Path,
    launch: Launch,
    machines: Machines = Machines(),
    nodes: "Cluster | None" = None,
    again: str | None = None,
) -> bool:
    """Train a run to its end, with progress; exits with EXIT_STOPPED if it was stopped.

    Args:
      machines: by which `nodes` were joined.
      nodes: the cluster that trains; None for this machine.
      again: what continues it, for people; `jaxpg resume DIR` if not given.

    Returns:
      Whether it was asked to stop when there was nothing left to train.
    """
    from jaxpg.population.progress import shown
    from jaxpg.runs import directories, run
    from jaxpg.runs.results import closing

    manifest = manifests.read(directory)
    if directories.is_finished(directory):
        print(f"{directory} is finished: {describe(directory)}")
        draw(directory, launch.report, anew=False)
        _log_results(directory)
        return False
    build = manifests.algorithm(directory, manifest)
    call = _callback(directory, launch)
    again = again or manifests.resume_line(
        directory, launch.callback, [*machines.line, *launch.line]
    )
    stop, silent = Event(), Event()
    try:
        patience = min(PATIENCE, launch.stall_seconds / 2)  # before its own watchdog loses it
        with _tracked(directory, patience, silent) as tell, shown(_title(manifest)) as show:

            def report(at: "Progress") -> None:
                tell(at)
                call(at)
                show(at)

            summary = run.train(
                directory,
                report=report,
                note=say,
                stall_seconds=launch.stall_seconds,
                build=build,
                nodes=nodes,
                stop=stop,
            )
    except Stopped:
        saved = "and saved" if directories.has_checkpoints(directory) else "before it trained"
        say(f"stopped {saved}; continue with: {again}")
        sys.exit(EXIT_STOPPED)
    print(closing(summary, directory))
    draw(directory, launch.report, anew=True)
    if not silent.is_set():
        _log_results(directory)
    return stop.is_set()


def draw(directory: Path, report: bool, anew: bool) -> None:
    """Make curve.png and the report of a finished run, where they are missing.

    Args:
      anew: whether those of before are replaced.
    """
    from jaxpg.report import figures, page
    from jaxpg.runs.load import load

    curve = directory / "curve.png"
    if anew or not curve.exists():
        with attempt("its curve.png could not be drawn"):
            run = load(directory)
            figures.learning_curve(run, curve)
    if report and (anew or not (directory / page.NAME).exists()):
        with attempt("the report could not be made"):
            print(f"report: {page.make(directory)}")


@contextmanager
def _tracked(
    directory: Path, seconds: float, silent: Event
) -> Iterator[Callable[["Progress"], None]]:
    """A reporter to the run's tracker, which its first report opens: before it another process may
    have the run. Where that fails, training goes on without it, and where it takes longer than so
    many seconds, too: then `silent` is set, and it is not closed."""
    stack = ExitStack()
    tell: Callable[[Progress], None] | None = None

    def open_and_tell(at: "Progress") -> None:
        nonlocal tell
        tell = tell or stack.enter_context(track.tracking(directory))
        tell(at)

    def in_time(call: Callable[[], None]) -> None:
        try:
            _within(seconds, call, stack)
        except NoAnswer:
            silent.set()
            raise

    try:
        yield _until_it_fails(lambda at: in_time(partial(open_and_tell, at)), "its tracker")
    finally:
        with attempt("its tracker could not be closed"):
            if not silent.is_set():
                in_time(stack.close)


class NoAnswer(TimeoutError):
    """A tracker has not come back from a call."""


def _within(seconds: float, call: Callable[[], None], kept: object = None) -> None:
    """Call, in a thread of its own.

    Args:
      kept: what nobody closes as long as the call lasts.

    Raises:
      NoAnswer: if it lasts longer.
    """
    told = Future[None]()
    Thread(target=_do, args=(told, call, kept), daemon=True).start()
    try:
        told.result(seconds)
    except TimeoutError:
        if told.done():
            return told.result()  # it came just now, or the tracker itself has raised it
        raise NoAnswer(f"it has not answered for {seconds:g} s") from None


def _do(told: "Future[None]", call: Callable[[], None], kept: object) -> None:
    """Call, and tell whoever waits how it ended; until then nobody closes what is kept."""
    try:
        call()
        told.set_result(None)
    except BaseException as error:
        told.set_exception(error)


def _callback(directory: Path, launch: Launch) -> Callable[["Progress"], None]:
    """A reporter to a function of one's own; where that fails, training goes on without it."""
    function = import_callback(launch)
    tell = None if function is None else partial(function, directory)
    return _until_it_fails(tell, f"the callback {launch.callback}")


def _until_it_fails(
    tell: Callable[["Progress"], None] | None, who: str
) -> Callable[["Progress"], None]:
    """A reporter to somebody who must not end training: who fails is told nothing more."""

    def report(at: "Progress") -> None:
        nonlocal tell
        with attempt(f"{who} failed, and is told nothing more"):
            now, tell = tell, None
            if now is not None:
                now(at)
                tell = now

    return report


def _log_results(directory: Path) -> None:
    with attempt("its tracker could not be told the results"):
        _within(RESULTS_PATIENCE, partial(track.log_results, directory))


def _title(manifest: Manifest) -> str:
    title = f"{manifest.config.env}, {words.seeds(len(manifest.seeds))}"
    if len(manifest.settings) > 1:
        title += f" × {len(manifest.settings)} settings"
    return title
