"""The commands that show what is there: status, report, compare, presets; how all of them speak."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from jaxpg import files, words
from jaxpg.cli.arguments import Directories, Directory, File
from jaxpg.core.config import ConfigError
from jaxpg.core.presets import PRESET_NOTES, PRESETS, preset
from jaxpg.runs import manifests

Solved = Annotated[float | None, arg(metavar="RETURN", help_behavior_hint="")]


@dataclasses.dataclass(frozen=True)
class Status:
    """Say what a run is and how far it has come."""

    dir: Directory
    """A run directory."""


def status(options: Status) -> None:
    """jaxpg status; reads nothing but names and JSON."""
    print(describe(options.dir))


@dataclasses.dataclass(frozen=True)
class Report:
    """Write a finished run or sweep as one page, report.html, with figures/ as PNG and SVG."""

    dir: Directory
    """The directory of a finished run, or of a sweep."""
    solved: Solved = None
    """What counts as solved; gymnasium's threshold if not given."""


def report(options: Report) -> None:
    """jaxpg report."""
    from jaxpg.report.page import make

    _check_solved(options.solved)
    print(make(options.dir, options.solved))


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare finished runs of one environment, with intervals.

    The settings of a run count as runs of their own; all are compared with one of them.
    """

    dirs: Directories
    """Directories of finished runs."""
    solved: Solved = None
    """What counts as solved; gymnasium's threshold if not given."""
    against: Annotated[str, arg(metavar="LETTER")] = "A"
    """What the others are compared with: A is the first of them, B the second."""
    label: Annotated[tuple[str, ...], arg(metavar="NAME …", help_behavior_hint="")] = ()
    """What to call them, in their order; directories and settings if not given."""
    json: File = None
    """For all numbers."""
    picture: File = None
    """For the picture, as .png, .svg or .pdf."""


def compare(options: Compare) -> None:
    """jaxpg compare."""
    from jaxpg.report import compare

    if options.picture is not None and options.picture.suffix not in compare.KINDS:
        kinds = ", ".join(compare.KINDS)
        raise ConfigError(f"--picture must end in {kinds}; got {options.picture}")
    _check_solved(options.solved)
    files.check(options.json, "--json")
    files.check(options.picture, "--picture")
    some = compare.entries(options.dirs, options.solved, options.label)
    held = compare.pairs(some, options.against)
    if options.json is not None:
        files.save(options.json, files.as_json(compare.as_object(some, held)))
    compare.show(some, held)
    if options.json is not None:
        print(f"numbers: {options.json}")
    if options.picture is not None:
        compare.draw(some, options.picture)
        print(f"picture: {options.picture}")


def _check_solved(solved: float | None) -> None:
    """Raise ConfigError unless it is a return, or None."""
    if solved is not None and not math.isfinite(solved):
        raise ConfigError(f"--solved must be finite; got {solved}")


@dataclasses.dataclass(frozen=True)
class Presets:
    """List the presets, and what they set; or all values of one."""

    name: Annotated[str | None, Positional, arg(metavar="[PRESET]")] = None
    """Only this one, including the values that it leaves at their defaults."""


def presets(options: Presets) -> None:
    """jaxpg presets."""
    if options.name is not None:
        _preset(options.name, dataclasses.asdict(preset(options.name)))
        return
    for name, config in PRESETS.items():
        values = dataclasses.asdict(config)
        if name != "vpg":
            usual = dataclasses.asdict(PRESETS["vpg"])
            values = {field: x for field, x in values.items() if x != usual[field]}
        _preset(name, values)
        if name != "vpg":
            print("    (the rest as in vpg)")


def _preset(name: str, values: dict[str, Any]) -> None:
    print(f"{name}\n  {PRESET_NOTES[name]}")
    for field, value in values.items():
        print(f"    {field} = {value}")


def describe(directory: Path) -> str:
    """A run in a few lines."""
    from jaxpg.runs import checkpoints, directories

    manifest = manifests.read(directory)
    config, updates = manifest.config, manifest.config.num_updates
    total = manifests.num_chunks(manifest)
    done = [chain[-1].update for chain in checkpoints.listed(directory).values()]
    share = sum(done) / (total * updates)
    ended = sum(update == updates for update in done)
    finished = directories.is_finished(directory)
    state = "finished" if finished else "not finished"
    times = f", {len(manifest.settings)} settings each" if len(manifest.settings) > 1 else ""
    what = f"{manifest.called} on {words.environment(config, manifest.varied)}"
    origin = manifest.start
    begun = f", from {origin.run or 'a population in memory'}" if origin else ""
    said = f"{what}{begun}, seeds {','.join(manifest.parts)}{times}: {state}"
    if finished and not done:
        return f"{said}\nit was saved from memory, without checkpoints"
    again = "" if finished else f"\ncontinue with: {manifests.resume_line(directory)}"
    return (
        f"{said}\n{words.share(share)} of the updates are saved: {ended} of {total} chunks of "
        f"{manifest.lanes} lanes are done, {len(done) - ended} are begun{again}"
    )
