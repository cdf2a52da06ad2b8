"""The commands that train: train, resume, extend, merge, sweep, retrace."""

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, arg, create_mutex_group

from jaxpg import words
from jaxpg.cli import machine
from jaxpg.cli.arguments import Changed, Directories, Directory, Preset, Setting, setting_suffix
from jaxpg.cli.launch import (
    Launch,
    Machines,
    check,
    import_callback,
    joined,
    to_the_end,
)
from jaxpg.cli.streams import attempt, say
from jaxpg.core.config import STATIC, Config, ConfigError
from jaxpg.core.presets import PRESETS
from jaxpg.core.rules import unused, validate
from jaxpg.errors import DoesNotFit, InUse
from jaxpg.population import evaluations, own
from jaxpg.population.settings import which, with_values
from jaxpg.runs import manifests, track
from jaxpg.runs import sweep as sweeps
from jaxpg.runs.manifests import parse_seeds
from jaxpg.runs.watch import EXIT_STOPPED

if TYPE_CHECKING:
    from jaxpg.population.cluster import Cluster
    from jaxpg.runs.manifests import Manifest
    from jaxpg.runs.starts import Start

BUDGET = create_mutex_group(required=True)


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained, and where to."""

    seeds: str = "256"
    """A number of seeds (0, 1, …), a range FIRST:END, or a list 3,17,42; integers in [0, 2^32)."""
    out: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/PRESET[-ENV][-sweep])")
    ] = None
    """Directory: new, empty, or that of this same run, which is then continued."""
    lanes: Annotated[
        int | None,
        arg(metavar="INT", help_behavior_hint="(default: 16, on a GPU 1024, on a TPU 512)"),
    ] = None
    """Seeds that a worker trains at once, >= 2; part of what makes a run reproducible."""
    track: Annotated[str | None, arg(metavar="TRACKER", help_behavior_hint="(default: none)")] = (
        None
    )
    """tensorboard (files in OUT/tensorboard), wandb or none; a run that is continued keeps
    its own if not given. progress.jsonl is written always."""


@dataclasses.dataclass(frozen=True)
class Own:
    """An algorithm of your own."""

    algorithm: Annotated[
        str | None, arg(metavar="MODULE:FUNCTION", help_behavior_hint="(default: jaxpg.build)")
    ] = None
    """Makes the algorithm from a config, as jaxpg.build does; imported. Its source is part of the
    run."""
    option: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """Set its options, as scale=0.5; the others keep their defaults."""


@dataclasses.dataclass(frozen=True)
class During:
    """What a run starts from, and what is seen of it while it trains."""

    from_: Annotated[Path | None, arg(name="from", metavar="RUN", help_behavior_hint="")] = None
    """A finished run: every seed starts from the same seed's parameters there, which are copied,
    with an optimizer and noise of its own."""
    evaluate_every: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """Evaluate each seed's policy before training and after every N environment steps (or episodes)
    of its budget, which N must divide; in fresh episodes, greedy and sampled."""
    evaluate_episodes: Annotated[int, arg(metavar="M")] = evaluations.EPISODES
    """Episodes per evaluation, for greedy and sampled each."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train many seeds in parallel into a run directory, or continue it."""

    preset: Preset = "vpg"
    """Where the options start from: vpg, ppo, reinforce, … (jaxpg presets)."""
    run: OmitArgPrefixes[Run] = Run()
    during: OmitArgPrefixes[During] = During()
    own: OmitArgPrefixes[Own] = Own()
    launch: OmitArgPrefixes[Launch] = Launch()
    machines: OmitArgPrefixes[Machines] = Machines()
    config: OmitArgPrefixes[Config] = PRESETS["vpg"]


def train(options: Train) -> None:
    """jaxpg train."""
    config = validate(options.config)
    seeds = parse_seeds(options.run.seeds)
    check(options.launch)
    say_of_unused(options)
    if options.run.track is not None:
        track.check(options.run.track)
    during, given = options.during, own.parse(options.own.option)
    evaluating = evaluations.asked(config, during.evaluate_every, during.evaluate_episodes)
    out = options.run.out or default_out(options.preset, config)
    machine.prepare(config, here=options.machines.here)
    with joined(options.machines) as nodes:
        from jaxpg.population.cluster import device_of
        from jaxpg.runs import directories, planning
        from jaxpg.runs.python import start_of

        directories.check_usable(out)
        import_callback(options.launch)
        build = own.find(options.own.algorithm, given)
        start, device = start_of(during.from_), device_of(nodes)
        say_of_another_env(start, config)
        say_of_the_diverged(start, seeds)

        def begin(lanes: int | None) -> None:
            planned = planning.plan(
                options.preset,
                config,
                seeds,
                lanes,
                build=build,
                start=start,
                evaluating=evaluating,
                device=device,
            )
            planning.check_parts(planned, build)
            if lanes is None and not (out / manifests.NAME).exists():
                say_of_idle_lanes(planned, nodes)
            directories.begin(out, planned, start)
            track.choose(out, options.run.track)
            to_the_end(out, options.launch, options.machines, nodes)

        planning.with_lanes_that_fit(out, options.run.lanes, begin, say)


def say_of_idle_lanes(planned: "Manifest", nodes: "Cluster | None") -> None:
    """Say how few seeds would train faster, if nobody has chosen the lanes."""
    from jaxpg.population import devices, population

    workers = max(1, nodes.size) if nodes else len(devices.workers())
    rows = len(planned.rows)
    enough = population.enough_lanes(rows, workers)
    if enough < planned.lanes:
        say(
            f"{words.seeds(rows)} cannot fill {planned.lanes} lanes for each core or accelerator "
            f"(here {workers}): --lanes {enough} would be faster (the last bits then differ)"
        )


@dataclasses.dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped or killed."""

    dir: Directory
    """A run directory."""
    changed_algorithm: Changed = False
    launch: OmitArgPrefixes[Launch] = Launch()
    machines: OmitArgPrefixes[Machines] = Machines()


def resume(options: Resume) -> None:
    """jaxpg resume."""
    check(options.launch)
    config = manifests.read(options.dir).config
    machine.prepare(config, here=options.machines.here)
    with joined(options.machines) as nodes:
        from jaxpg.runs import directories

        import_callback(options.launch)
        if not directories.is_finished(options.dir):
            take_algorithm(options.dir, options.changed_algorithm)
        elif options.changed_algorithm:
            say("--changed-algorithm changes nothing: it is finished")
        to_the_end(options.dir, options.launch, options.machines, nodes)


@dataclasses.dataclass(frozen=True)
class Extend:
    """Give a run a larger budget and train on.

    Equal, to the bit, to a run that had it from the start; so the learning rate must be constant.
    """

    dir: Directory
    """A run directory."""
    total_steps: Annotated[int | None, BUDGET, arg(metavar="N")] = None
    """Per seed, in all."""
    total_episodes: Annotated[int | None, BUDGET, arg(metavar="N")] = None
    """Per seed, in all."""
    launch: OmitArgPrefixes[Launch] = Launch()


def extend(options: Extend) -> None:
    """jaxpg extend."""
    check(options.launch)
    manifest = manifests.read(options.dir)
    machine.prepare(manifest.config)
    from jaxpg.runs import edit

    import_callback(options.launch)
    build = manifests.algorithm(options.dir, manifest)
    edit.extend(options.dir, options.total_steps, options.total_episodes, build)
    to_the_end(options.dir, options.launch)


@dataclasses.dataclass(frozen=True)
class Merge:
    """Join runs, finished or not, of different seeds of one config into a new run."""

    dirs: Directories
    """Run directories."""
    out: Annotated[Path, arg(metavar="DIR")]
    """New or empty."""
    launch: OmitArgPrefixes[Launch] = Launch()


def merge(options: Merge) -> None:
    """jaxpg merge."""
    check(options.launch)
    if not options.dirs:
        raise ConfigError("merge needs at least one run directory; got none")
    manifest = manifests.read(options.dirs[0])
    machine.prepare(manifest.config)
    from jaxpg.runs import directories, edit

    import_callback(options.launch)
    manifests.algorithm(options.dirs[0], manifest)
    edit.merge(options.dirs, options.out)
    for directory in options.dirs:
        if not directories.has_checkpoints(directory):
            say(f"{directory} has no checkpoints: its seeds are trained from their start")
    to_the_end(options.out, options.launch)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train a grid of hyperparameters, or continue it.

    Begun by one process; others can take runs of it: jaxpg resume DIR/NAME.
    """

    preset: Preset = "vpg"
    """Where the options start from: vpg, ppo, reinforce, … (jaxpg presets)."""
    grid: Annotated[tuple[str, ...], arg(metavar="FIELD=VALUE,…", help_behavior_hint="")] = ()
    """FIELD=VALUE,VALUE… for each field that is swept, as in learning_rate=1e-3,3e-3
    hidden_sizes=32,64x64 max_grad_norm=0.5,none env.gravity=5,9.8 option.scale=0.5,1; every
    combination is trained."""
    run: OmitArgPrefixes[Run] = Run()
    during: OmitArgPrefixes[During] = During()
    own: OmitArgPrefixes[Own] = Own()
    launch: OmitArgPrefixes[Launch] = Launch()
    machines: OmitArgPrefixes[Machines] = Machines()
    config: OmitArgPrefixes[Config] = PRESETS["vpg"]


def sweep(options: Sweep) -> None:
    """jaxpg sweep."""
    check(options.launch)
    if options.run.track is not None:
        track.check(options.run.track)
    grid, given = sweeps.parse_grid(options.grid), own.parse(options.own.option)
    during = options.during
    config = validate(options.config)  # the plan asks the environment for its parameters
    if not {*grid}.intersection(STATIC):  # else a point may have a use for what the others have not
        say_of_unused(options, grid)
    machine.prepare(config, here=options.machines.here)
    launch = dataclasses.replace(options.launch, report=False)
    with joined(options.machines) as nodes:
        from jaxpg.population.cluster import device_of
        from jaxpg.runs.directories import is_finished
        from jaxpg.runs.python import start_of

        import_callback(options.launch)
        start = start_of(during.from_)
        asked = sweeps.plan(
            options.preset,
            options.config,
            grid,
            options.run.seeds,
            options.run.lanes,
            build=options.own.algorithm,
            options=given,
            start=start,
            evaluate_every=during.evaluate_every,
            evaluate_episodes=during.evaluate_episodes,
        )
        say_of_another_env(start, asked.config, asked.combinations)
        say_of_the_diverged(start, parse_seeds(asked.seeds))
        out = options.run.out or default_out(options.preset, asked.config, "-sweep")
        directories = sweeps.begin(out, asked, device_of(nodes), start)
        again, elsewhere = "the same line", []
        for i, directory in enumerate(directories, 1):
            print(f"sweep: run {i} of {len(directories)}: {directory}", flush=True)
            try:
                track.choose(directory, options.run.track)
                stopped = to_the_end(directory, launch, options.machines, nodes, again)
            except InUse as problem:
                say(str(problem))
                elsewhere.append(directory)
                continue
            except DoesNotFit as problem:
                raise DoesNotFit(
                    f"{problem}; all runs of a sweep have the same lanes: other lanes are another "
                    "sweep, with an --out of its own"
                ) from None
            if stopped and i < len(directories):
                say(f"stopped before run {i + 1}; continue with: {again}")
                sys.exit(EXIT_STOPPED)
        if not all(map(is_finished, elsewhere)):
            say(f"other processes train what is left; when they have ended, give {again} again")
            sys.exit(EXIT_STOPPED)
    from jaxpg.report import sweep as sweep_report

    found = sweep_report.load_sweep(out)
    sweep_report.show(found)
    if options.launch.report:
        with attempt("the report could not be made"):
            print(f"report: {sweep_report.make(found)}")


@dataclasses.dataclass(frozen=True)
class Retrace:
    """Train one seed of a run again, alone, and write each update's trajectory and gradients."""

    dir: Directory
    """A run directory, finished or not."""
    seed: int
    """One of the run's."""
    setting: Setting = None
    update: Annotated[int | None, arg(metavar="U")] = None
    """Only this one, from 0; all if not given."""
    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """New or empty; DIR-seed-SEED if not given."""
    changed_algorithm: Changed = False


def retrace(options: Retrace) -> None:
    """jaxpg retrace."""
    manifest = manifests.read(options.dir)
    machine.prepare(manifest.config)
    from jaxpg.runs.retrace import retrace as again

    build = manifests.algorithm(options.dir, manifest, options.changed_algorithm)
    name = options.dir.resolve().name + f"-seed-{options.seed}"
    setting = which(options.setting, manifest.settings)
    name += setting_suffix(setting, len(manifest.settings))
    out = options.out or options.dir.resolve().with_name(name)
    print(again(options.dir, options.seed, setting, options.update, out, build))


def say_of_unused(options: "Train | Sweep", varied: Collection[str] = ()) -> None:
    """Which fields that are not the preset's have no effect; one's own algorithm may use any."""
    if options.own.algorithm is not None:
        return
    usual = PRESETS[options.preset]
    for name, needed in unused(options.config).items():
        if name not in varied and getattr(options.config, name) != getattr(usual, name):
            say(f"--{name.replace('_', '-')} has no effect: it needs {needed}")


def say_of_the_diverged(start: "Start | None", seeds: Sequence[int]) -> None:
    """That some seeds start from where others had failed."""
    from jaxpg.runs.starts import of_the_diverged

    if sentence := of_the_diverged(start, seeds):
        say(sentence)


def say_of_another_env(
    start: "Start | None", config: Config, points: Sequence[Mapping[str, Any]] = ({},)
) -> None:
    """That the seeds of some points start from what was trained elsewhere."""
    if start is None or start.origin.env is None:
        return
    from jaxpg.core.env import settle

    config = settle(config)  # 12 for gravity is 12.0 in a manifest
    here = dict.fromkeys(words.world(with_values(config, point)) for point in points)
    others = [world for world in here if world != start.origin.env]
    if others:
        said = others[0] + (f" and {len(others) - 1} more" if len(others) > 1 else "")
        say(f"{start.called} was trained on {start.origin.env}, and this is {said}")


def default_out(name: str, config: Config, suffix: str = "") -> Path:
    """runs/PRESET, with the environment where it is not the preset's."""
    env = config.env.rpartition(":")[2]
    other = "" if config.env == PRESETS[name].env else f"-{env}"
    return Path("runs") / f"{name}{other}{suffix}"


def take_algorithm(directory: Path, changed: bool) -> None:
    """Go on with what makes the algorithm as it is now, if that is allowed or nothing was trained.

    Raises:
      RunError: if it is not.
    """
    from jaxpg.runs import directories, edit

    changed = changed or directories.is_empty(directory)
    manifest = manifests.read(directory)
    edit.adopt(directory, manifests.algorithm(directory, manifest, changed))
