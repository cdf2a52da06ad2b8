"""The commands that work on run directories. Imports jax only once one of them computes."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpg.cli.arguments import add_run, command_parser
from jaxpg.core.config import ConfigError
from jaxpg.errors import Stopped
from jaxpg.runs import manifest as manifests
from jaxpg.runs import share
from jaxpg.runs.sweep import Plan, begin
from jaxpg.runs.watch import EXIT_STOPPED

if TYPE_CHECKING:
    from jaxpg.population.population import Progress

STALL_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a run is trained; none of it changes a bit of the results."""

    stall_seconds: float = STALL_SECONDS
    """End with code 76 if a segment takes longer."""
    distributed: bool = False
    """Share the run with the other processes that are started so, each on its own machine or not;
    Slurm, Kubernetes, MPI and TPU pods are detected. All must see --out."""
    coordinator: str | None = None
    """HOST:PORT of the first process, where no cluster is detected; with --distributed."""
    num_processes: int | None = None
    """How many there are; with --coordinator."""
    process_id: int | None = None
    """Which this one is, from 0; with --coordinator."""
    peer_seconds: float = share.PEER_SECONDS
    """Stop and save, with code 75, if another process shows no sign of life for so long."""
    report: bool = True
    """Write report.html at the end."""


def resume(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg resume: go on where a run was stopped.

    Args:
      prepare: sets up jax for a config; called before jax is imported.
    """
    parser = command_parser("resume", "Continue a run that was stopped or killed.", "runs/cartpole")
    add_run(parser)
    _add_training(parser)
    parser.add_argument("--distributed", action="store_true", help="share it with other processes")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
    parser.add_argument("--num-processes", type=int, metavar="N", help="with --coordinator")
    parser.add_argument("--process-id", type=int, metavar="I", help="with --coordinator")
    parser.add_argument(
        "--peer-seconds",
        type=float,
        default=share.PEER_SECONDS,
        metavar="S",
        help="stop if another process is silent for so long (default: %(default)g)",
    )
    fields = vars(parser.parse_args(arguments))
    directory = fields.pop("dir")
    launch = check_launch(Launch(**fields))
    prepare(manifests.read(directory).config)
    whose = join(launch)
    wait_for_first(directory, launch, whose)
    train(directory, launch, whose)


def status(arguments: Sequence[str]) -> None:
    """jaxpg status: say what is in a run directory; reads nothing but names and JSON."""
    parser = command_parser("status", "Say what a run is and how far it has come.", "runs/cartpole")
    add_run(parser)
    options = parser.parse_args(arguments)
    print(describe(options.dir))


def extend(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg extend: a larger budget for a run; equal to the run that had it from the start."""
    parser = command_parser(
        "extend",
        "Give a run a larger budget and train on. Equal, to the bit, to a run that had it from the "
        "start; so the learning rate must be constant.",
        "runs/cartpole --total-steps 1000000",
    )
    add_run(parser)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--total-steps", type=int, metavar="N", help="per seed, in all")
    budget.add_argument("--total-episodes", type=int, metavar="N", help="per seed, in all")
    _add_training(parser)
    options = parser.parse_args(arguments)
    launch = check_launch(Launch(options.stall_seconds, report=options.report))
    prepare(manifests.read(options.dir).config)
    from jaxpg.runs import edit

    edit.extend(options.dir, options.total_steps, options.total_episodes)
    train(options.dir, launch)


def merge(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg merge: runs of different seeds of one config as one run."""
    parser = command_parser(
        "merge",
        "Join runs of different seeds of one config into a new run, finished or not.",
        "runs/a runs/b --out runs/both",
    )
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="run directories")
    parser.add_argument("--out", type=Path, required=True, help="new or empty")
    _add_training(parser)
    options = parser.parse_args(arguments)
    launch = check_launch(Launch(options.stall_seconds, report=options.report))
    prepare(manifests.read(options.dirs[0]).config)
    from jaxpg.runs import edit

    edit.merge(options.dirs, options.out)
    train(options.out, launch)


def replay(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg replay: one seed of a run again, alone, with its trajectories and gradients."""
    parser = command_parser(
        "replay",
        "Train one seed of a run again, alone, and write what each update met and descended.",
        "runs/cartpole --seed 17 --update 40",
    )
    add_run(parser)
    parser.add_argument("--seed", type=int, required=True, help="one of the run's")
    parser.add_argument(
        "--setting", type=int, default=0, metavar="K", help="of a sweep: which setting, from 0"
    )
    parser.add_argument("--update", type=int, metavar="U", help="only this one, from 0; all if not")
    parser.add_argument("--out", type=Path, help="new or empty; DIR-seed-SEED if not given")
    options = parser.parse_args(arguments)
    manifest = manifests.read(options.dir)
    prepare(manifest.config)
    from jaxpg.runs import retrace as replays

    name = options.dir.resolve().name + f"-seed-{options.seed}"
    if options.setting:
        name += f"-setting-{options.setting}"
    out = options.out or options.dir.resolve().with_name(name)
    print(replays.replay(options.dir, options.seed, options.setting, options.update, out))


def sweep(asked: Plan, launch: Launch, out: Path) -> None:
    """Train a sweep, or continue it; then its table and report.

    Raises:
      ConfigError: if a point has no meaning; nothing is written.
      RunError: if the directory holds something else.
    """
    directories = begin(out, asked)
    for i, directory in enumerate(directories, 1):
        print(f"sweep: run {i} of {len(directories)}: {directory}", flush=True)
        train(directory, dataclasses.replace(launch, report=False), again="the same line")
    from jaxpg.report import sweep as sweep_report

    found = sweep_report.load_sweep(out)
    sweep_report.show(found)
    if launch.report:
        print(f"report: {sweep_report.make(found)}")


def join(launch: Launch) -> share.Share:
    """Which of the processes this is; must come before anything else uses jax."""
    if not launch.distributed:
        return share.ALONE
    return share.join(launch.coordinator, launch.num_processes, launch.process_id)


def wait_for_first(directory: Path, launch: Launch, whose: share.Share) -> None:
    """If this is not the first process, wait until that works in the directory, or has finished."""
    from jaxpg.runs import run

    share.wait_for_first(directory, whose, launch.peer_seconds, run.is_finished)


def train(
    directory: Path, launch: Launch, whose: share.Share = share.ALONE, again: str | None = None
) -> None:
    """Train a run to its end, with progress; exits with EXIT_STOPPED if it was stopped.

    Args:
      whose: share of the run this process trains.
      again: what continues it, for people; `jaxpg resume DIR` if not given.
    """
    from jaxpg.cli.progress import progress
    from jaxpg.runs import run, track
    from jaxpg.runs.results import closing

    manifest = manifests.read(directory)
    if run.is_finished(directory):
        track.log_results(directory)
        print(f"{directory} is finished: {describe(directory)}")
        if not whose.process:
            _curve(directory, again=False)
        if launch.report and not whose.process:
            _report(directory, again=False)
        return
    try:
        with (
            track.tracking(directory, not whose.process) as tell,
            progress(_title(manifest, whose)) as show,
        ):

            def report(at: "Progress") -> None:
                tell(at)
                show(at)

            summary = run.train(
                directory,
                report=report,
                note=_note,
                stall_seconds=launch.stall_seconds,
                share=whose,
                peer_seconds=launch.peer_seconds,
            )
    except Stopped:
        again = again or f"jaxpg resume {directory}"
        print(f"jaxpg: stopped and saved; continue with: {again}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    if summary is None:
        print(f"{directory} is finished; this was process {whose.process} of {whose.processes}")
    else:
        track.log_results(directory)
        print(closing(summary, directory))
        _curve(directory, again=True)
        if launch.report:
            _report(directory, again=True)


def _curve(directory: Path, again: bool) -> None:
    """Draw curve.png."""
    if again or not (directory / "curve.png").exists():
        from jaxpg.report.figures import learning_curve
        from jaxpg.runs.load import load

        run = load(directory)
        learning_curve(run.config, run.population, directory / "curve.png")


def _report(directory: Path, again: bool) -> None:
    """Write the report, and say where it is."""
    from jaxpg.report import page as report

    if again or not (directory / report.NAME).exists():
        print(f"report: {report.make(directory)}")


def check_launch(launch: Launch) -> Launch:
    """Raise ConfigError unless the options have a meaning together."""
    for name in ("stall_seconds", "peer_seconds"):
        seconds = getattr(launch, name)
        if not 0 < seconds < math.inf:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} must be finite and greater than 0; got {seconds:g}")
    count, index = launch.num_processes, launch.process_id
    if not launch.distributed and (launch.coordinator, count, index) != (None, None, None):
        raise ConfigError(
            "--coordinator, --num-processes and --process-id need --distributed, which is missing"
        )
    if count is not None and count < 1:
        raise ConfigError(f"--num-processes must be at least 1; got {count}")
    if index is not None and not 0 <= index < (math.inf if count is None else count):
        raise ConfigError(f"--process-id must be in [0, --num-processes); got {index}")
    if launch.coordinator is not None:
        host, _, port = launch.coordinator.rpartition(":")
        if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
            raise ConfigError(f"--coordinator must be HOST:PORT; got {launch.coordinator!r}")
    return launch


def describe(directory: Path) -> str:
    """A run in a few lines."""
    from jaxpg.runs import checkpoints, run

    manifest = manifests.read(directory)
    config, updates = manifest.config, manifest.config.num_updates
    total = manifests.num_chunks(manifest)
    done = [chain[-1].update for chain in checkpoints.listed(directory).values()]
    share = sum(done) / (total * updates)
    ended = sum(update == updates for update in done)
    state = "finished" if run.is_finished(directory) else "not finished"
    times = f", {len(manifest.settings)} settings each" if len(manifest.settings) > 1 else ""
    return (
        f"{manifest.preset} on {config.env}, seeds {','.join(manifest.parts)}{times}: {state}\n"
        f"{share:.1%} of the updates are saved: {ended} of {total} chunks of {manifest.lanes} "
        f"lanes are done, {len(done) - ended} are begun"
    )


def _title(manifest: manifests.Manifest, whose: share.Share) -> str:
    rows, settings = len(manifest.seeds), len(manifest.settings)
    title = f"{manifest.config.env}, {rows} seed{'s' * (rows > 1)}"
    if settings > 1:
        title += f" × {settings} settings"
    if whose.processes > 1:
        title += f", process {whose.process} of {whose.processes}"
    return title


def _note(sentence: str) -> None:
    print(f"jaxpg: {sentence}", file=sys.stderr, flush=True)


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="do not write report.html at the end",
    )
    parser.add_argument(
        "--stall-seconds",
        type=float,
        default=STALL_SECONDS,
        metavar="S",
        help="end with code 76 if a segment takes longer (default: %(default)g)",
    )
