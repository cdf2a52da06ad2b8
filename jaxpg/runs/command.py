"""The commands that work on run directories. Imports jax only once one of them computes."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpg.config import ConfigError
from jaxpg.runs import Stopped
from jaxpg.runs import manifest as manifests
from jaxpg.runs.watch import EXIT_STOPPED

if TYPE_CHECKING:
    from jaxpg.population import Progress

STALL_SECONDS = 600.0


def resume(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg resume: go on where a run was stopped.

    Args:
      prepare: sets up jax for a config; called before jax is imported.
    """
    parser = command_parser("resume", "Continue a run that was stopped or killed.", "runs/cartpole")
    parser.add_argument("dir", type=Path)
    _add_stall(parser)
    options = parser.parse_args(arguments)
    manifest = manifests.read(options.dir)
    prepare(manifest.config)
    train(options.dir, options.stall_seconds)


def status(arguments: Sequence[str]) -> None:
    """jaxpg status: say what is in a run directory; reads nothing but names and JSON."""
    parser = command_parser("status", "Say what a run is and how far it has come.", "runs/cartpole")
    parser.add_argument("dir", type=Path)
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
    parser.add_argument("dir", type=Path)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--total-steps", type=int, metavar="N", help="per seed, in all")
    budget.add_argument("--total-episodes", type=int, metavar="N", help="per seed, in all")
    _add_stall(parser)
    options = parser.parse_args(arguments)
    prepare(manifests.read(options.dir).config)
    from jaxpg.runs import edit

    edit.extend(options.dir, options.total_steps, options.total_episodes)
    train(options.dir, options.stall_seconds)


def merge(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg merge: runs of different seeds of one config as one run."""
    parser = command_parser(
        "merge",
        "Join runs of different seeds of one config into a new run, finished or not.",
        "runs/a runs/b --out runs/both",
    )
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, help="new or empty")
    _add_stall(parser)
    options = parser.parse_args(arguments)
    prepare(manifests.read(options.dirs[0]).config)
    from jaxpg.runs import edit

    edit.merge(options.dirs, options.out)
    train(options.out, options.stall_seconds)


def replay(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg replay: one seed of a run again, alone, with its trajectories and gradients."""
    parser = command_parser(
        "replay",
        "Train one seed of a run again, alone, and write what each update met and descended.",
        "runs/cartpole --seed 17 --update 40",
    )
    parser.add_argument("dir", type=Path)
    parser.add_argument("--seed", type=int, required=True, help="one of the run's")
    parser.add_argument("--update", type=int, metavar="U", help="only this one, from 0; all if not")
    parser.add_argument("--out", type=Path, help="new or empty; DIR-seed-SEED if not given")
    options = parser.parse_args(arguments)
    manifest = manifests.read(options.dir)
    prepare(manifest.config)
    from jaxpg.runs import replay as replays

    name = options.dir.resolve().name + f"-seed-{options.seed}"
    out = options.out or options.dir.resolve().with_name(name)
    print(replays.replay(options.dir, options.seed, options.update, out))


def train(directory: Path, stall_seconds: float = STALL_SECONDS) -> None:
    """Train a run to its end, with progress; exits with EXIT_STOPPED if it was stopped."""
    from jaxpg import track
    from jaxpg.progress import progress
    from jaxpg.results import closing
    from jaxpg.runs import run

    check_stall(stall_seconds)
    manifest = manifests.read(directory)
    if run.is_finished(directory):
        track.log_results(directory)
        print(f"{directory} is finished: {describe(directory)}")
        return
    try:
        with (
            track.tracking(directory) as tell,
            progress(manifest.config, len(manifest.seeds)) as show,
        ):

            def report(at: "Progress") -> None:
                tell(at)
                show(at)

            summary = run.train(directory, report=report, note=_note, stall_seconds=stall_seconds)
    except Stopped:
        print(f"jaxpg: stopped and saved; continue with: jaxpg resume {directory}", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    track.log_results(directory)
    print(closing(summary, directory))


def check_stall(seconds: float) -> None:
    """Raise ConfigError unless the watchdog can wait so long."""
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--stall-seconds must be finite and greater than 0; got {seconds:g}")


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
    return (
        f"{manifest.preset} on {config.env}, seeds {','.join(manifest.parts)}: {state}\n"
        f"{share:.1%} of the updates are saved: {ended} of {total} chunks of {manifest.lanes} "
        f"lanes are done, {len(done) - ended} are begun"
    )


def _note(sentence: str) -> None:
    print(f"jaxpg: {sentence}", file=sys.stderr, flush=True)


def command_parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"jaxpg {name}",
        description=description,
        epilog=f"example: jaxpg {name} {example}",
        allow_abbrev=False,
    )


def _add_stall(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stall-seconds",
        type=float,
        default=STALL_SECONDS,
        metavar="S",
        help="end with code 76 if a segment takes longer (default: %(default)g)",
    )
