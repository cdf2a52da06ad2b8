"""The commands that take trained policies away: evaluate, render, export."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg, create_mutex_group

from jaxpg import files
from jaxpg.cli import machine
from jaxpg.cli.arguments import Changed, Directory, File, Setting, setting_suffix
from jaxpg.cli.streams import say
from jaxpg.core.config import Config, ConfigError, nearest
from jaxpg.errors import RunError
from jaxpg.population.evaluations import MOST_EPISODES
from jaxpg.report import terminal
from jaxpg.runs import manifests
from jaxpg.words import environment, parameters, returned, seeds, share

if TYPE_CHECKING:
    from jaxpg.policies.evaluate import Evaluation
    from jaxpg.runs.load import Run

EXPORTS = ("torch", "onnx", "stablehlo", "safetensors")
EVALUATED, RENDERED = create_mutex_group(required=False), create_mutex_group(required=False)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Let trained policies act in fresh episodes, greedily and sampled.

    In gymnax, and in gymnasium's own environment of the same name, to see that they transfer.
    """

    dir: Directory
    """The directory of a finished run."""
    episodes: Annotated[int, arg(metavar="N")] = 100
    """Of each seed."""
    seed: Annotated[str | None, EVALUATED, arg(metavar="SEED", help_behavior_hint="")] = None
    """One: a number, best, worst or median."""
    seeds: Annotated[str, EVALUATED, arg(metavar="SEEDS")] = "all"
    """all, a range FIRST:END, or a list 3,17,42."""
    gymnasium_seeds: Annotated[str, arg(metavar="N")] = "some"
    """How many seeds also act in gymnasium, which is slow: a number, 0 for none, all, or some (what
    takes under a minute)."""
    setting: Setting = None
    evaluation_seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the episodes' random numbers."""
    json: File = None
    """For the numbers."""
    changed_algorithm: Changed = False


def evaluate(options: Evaluate) -> None:
    """jaxpg evaluate."""
    if not 1 <= options.episodes <= MOST_EPISODES:
        raise ConfigError(f"--episodes must be in [1, {MOST_EPISODES:,}]; got {options.episodes}")
    check_seed("--evaluation-seed", options.evaluation_seed)
    files.check(options.json, "--json")
    run = loaded(options.dir, options.changed_algorithm)
    from jaxpg.policies import evaluate as evaluation
    from jaxpg.population.evaluations import MODES

    setting = run.which(options.setting)
    chosen = chosen_seeds(run, options.seed, options.seeds, setting)
    config = run.config_of(setting)
    count, why = gymnasium_seeds(config, options.gymnasium_seeds, len(chosen), options.episodes)
    found: list[Evaluation] = []
    for name, simulator, some in (
        ("gymnax", evaluation.in_gymnax, chosen),
        ("gymnasium", evaluation.in_gymnasium, chosen[:count]),
    ):
        for mode in MODES if some else ():
            say(f"{name}, {mode}: {seeds(len(some))} …")
            settings = {"setting": setting, "evaluation_seed": options.evaluation_seed}
            found.append(simulator(run, some, options.episodes, mode, **settings))
    diverged = (run.population.setting == setting) & (run.population.frozen_at >= 0)
    gone = run.population.seeds[diverged].tolist()
    results = [evaluation.summarize(each, run.config, gone) for each in found]
    if options.json:
        content = {
            "run": str(options.dir),
            "manifest": run.summary["manifest"],
            "env": run.config.env,
            "env_params": config.env_params,
            "setting": setting,
            "evaluation_seed": options.evaluation_seed,
            "results": results,
        }
        files.save(options.json, files.as_json(content))
    called = run.manifest.called
    if len(run.settings) > 1:
        values = parameters(run.settings[setting])
        called += f", setting {setting} of {len(run.settings)} ({values})"
    _print_table(called, config, results, options.episodes)
    gone = results[0]["diverged"]
    if gone:
        print(
            f"{seeds(len(gone))} diverged, the first of them seed {gone[0]}: whatever the last "
            "finite parameters reach, it is not counted as solved"
        )
    if count:
        print(_transfer(results, count))
    if count and run.manifest.build is not None:
        print(f"gymnasium's is its own {config.env}, whatever env {run.manifest.build} has")
    if why:
        print(why)
    if options.json:
        print(options.json)


@dataclasses.dataclass(frozen=True)
class Render:
    """Draw an episode of a trained policy, or of many at once, as a GIF.

    Of classic control, mazes, and whatever observes a grid; where ffmpeg is installed, an mp4 too.
    """

    dir: Directory
    """The directory of a finished run."""
    seed: Annotated[str, RENDERED, arg(metavar="SEED")] = "best"
    """A number, best, worst or median."""
    sheet: Annotated[int | None, RENDERED, arg(metavar="N", help_behavior_hint="")] = None
    """The first N seeds at once; a GIF of at most 3 MB."""
    before: bool = False
    """Show what the same seed was before training: beside it, or in a sheet first."""
    greedy: bool = False
    """Take the most probable action (of a continuous policy the mean) instead of sampling."""
    setting: Setting = None
    episode_seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the episode's random numbers."""
    out: File = None
    """.gif or .mp4; in DIR if not given."""
    changed_algorithm: Changed = False


def render(options: Render) -> None:
    """jaxpg render."""
    check_seed("--episode-seed", options.episode_seed)
    if options.out and options.out.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"--out must end in .gif or .mp4; got {options.out}")
    files.check(options.out, "--out")
    run = loaded(options.dir, options.changed_algorithm)
    from jaxpg.policies import drawings
    from jaxpg.policies import render as pictures

    drawings.find(run.config)
    setting = run.which(options.setting)
    choice: dict[str, Any] = {
        "mode": "greedy" if options.greedy else "sampled",
        "before": options.before,
        "setting": setting,
        "episode_seed": options.episode_seed,
    }
    suffix = setting_suffix(setting, len(run.settings)) + ("-before" if options.before else "")
    if options.out and options.out.suffix == ".mp4":
        pictures.ffmpeg()
    if options.sheet is not None:
        if not 1 <= options.sheet <= len(run.seeds):
            raise ConfigError(
                f"--sheet must be in [1, {len(run.seeds)}], the run's seeds; got {options.sheet}"
            )
        out = options.out or options.dir / f"sheet-{options.sheet}{suffix}.gif"
        shown = run.seeds[: options.sheet]
        if out.suffix == ".gif":
            content = pictures.small_sheet(run, shown, **choice)
        else:
            content = pictures.to_mp4(pictures.sheet(run, shown, **choice))
    else:
        seed = one_seed(run, options.seed, setting)
        say_if_diverged(run, seed, setting)
        out = options.out or options.dir / f"seed-{seed}{suffix}.gif"
        to_file = pictures.to_gif if out.suffix == ".gif" else pictures.to_mp4
        content = to_file(pictures.one(run, seed, **choice))
    files.save(out, content)
    print(f"{out}: {len(content) / 1e3:,.0f} kB")


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the trained policy of one seed as a file for another runtime.

    Prints the lines that load it there.
    """

    dir: Directory
    """The directory of a finished run."""
    to: Annotated[str, arg(metavar="RUNTIME")]
    """torch, onnx, stablehlo or safetensors."""
    seed: Annotated[str, arg(metavar="SEED")] = "best"
    """A number, best, worst or median."""
    setting: Setting = None
    out: File = None
    """DIR/seed-SEED.SUFFIX if not given, with the setting where there are several."""
    changed_algorithm: Changed = False


def export(options: Export) -> None:
    """jaxpg export."""
    if options.to not in EXPORTS:
        raise ConfigError(f"--to is {options.to!r}{nearest(options.to, EXPORTS)}")
    files.check(options.out, "--out")
    run = loaded(options.dir, options.changed_algorithm)
    from jaxpg.policies import export as exports

    setting = run.which(options.setting)
    seed = one_seed(run, options.seed, setting)
    say_if_diverged(run, seed, setting)
    suffix = setting_suffix(setting, len(run.settings)) + exports.SUFFIXES[options.to]
    out = options.out or options.dir / f"seed-{seed}{suffix}"
    files.save(out, exports.export(run, seed, options.to, setting=setting))
    print(f"{out}: seed {seed} of {run.manifest.called} on {run.config.env}. To load it:\n")
    print(exports.how_to_load(run, options.to, str(out)))
    if run.manifest.build is not None:
        print(
            f"\nIt sees and acts as in {run.config.env}: what an env part of {run.manifest.build} "
            "makes of observations and actions is not in the file."
        )


def loaded(directory: Path, changed_algorithm: bool) -> "Run":
    """The run, with jax set up for it."""
    manifest = manifests.read(directory)
    machine.prepare(manifest.config)
    from jaxpg.runs.load import load

    build = manifests.algorithm(directory, manifest, changed_algorithm)
    return load(directory, build, changed_algorithm=True)  # it has just been checked, if wanted


def one_seed(run: "Run", text: str, setting: int) -> int:
    """The seed that a command line names: a number, best, worst or median.

    Raises:
      RunError: if the run has none.
    """
    row = run.row(int(text) if _is_count(text) else text, setting)
    return int(run.population.seeds[row])


def say_if_diverged(run: "Run", seed: int, setting: int) -> None:
    """Say of a seed that its policy is not what training ended with."""
    update = int(run.population.frozen_at[run.row(seed, setting)])
    if update >= 0:
        say(f"seed {seed} diverged in update {update}: its policy is the last finite one")


def chosen_seeds(run: "Run", seed: str | None, seeds: str, setting: int) -> Sequence[int]:
    """What --seed or --seeds names.

    Raises:
      RunError: if the run has not all of them.
    """
    if seed is not None:
        return [one_seed(run, seed, setting)]
    if seeds == "all":
        return run.seeds
    if not any(character in seeds for character in ":,"):
        hint = nearest(seeds, ("all",)) if not seeds.isdecimal() else "; one seed is --seed"
        raise ConfigError(f"--seeds must be all, FIRST:END or a list; got {seeds!r}{hint}")
    wanted = manifests.parse_seeds(seeds)
    unknown = sorted(set(wanted) - set(run.seeds))
    if unknown:
        parts = ",".join(run.manifest.parts)
        raise RunError(f"{run.directory} has no seed {unknown[0]}; its seeds are {parts}")
    return wanted


def _is_count(text: str) -> bool:
    """Whether it is a number of so many digits as seeds may have."""
    return text.isdecimal() and len(text) <= 10


def check_seed(argument: str, seed: int) -> None:
    """Raise ConfigError unless it is in [0, 2^32)."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"{argument} must be an integer in [0, 2^32); got {seed}")


def gymnasium_seeds(config: Config, text: str, available: int, episodes: int) -> tuple[int, str]:
    """How many seeds to evaluate in gymnasium, and a sentence if they are not all."""
    from jaxpg.policies.evaluate import default_gymnasium_seeds, gymnasium_maker

    if text != "some":
        if text != "all" and not _is_count(text):
            raise ConfigError(f"--gymnasium-seeds must be a number or all; got {text!r:.60}")
        count = available if text == "all" else min(int(text), available)
        if count:
            gymnasium_maker(config)
        return count, ""
    try:
        gymnasium_maker(config)
    except ConfigError as error:
        return 0, f"in gymnax alone: {error}"
    count = default_gymnasium_seeds(config, episodes)
    if count >= available:
        return available, ""
    if not count:
        return 0, (
            "in gymnax alone: gymnasium takes a step at a time, and one seed's episodes longer "
            "than a minute; --gymnasium-seeds 1 waits for it"
        )
    return count, (
        f"gymnasium takes a step at a time, so there it was the first {seeds(count)} of "
        f"{available}; --gymnasium-seeds all takes them all"
    )


def _transfer(results: list[dict[str, Any]], count: int) -> str:
    """What the seeds that were in both simulators did in each."""
    means = {
        (row["mode"], row["simulator"]): sum(row["mean_return"][:count]) / count for row in results
    }
    parts = [
        f"{mode} {' and '.join(returned(means[mode, x]) for x in ('gymnax', 'gymnasium'))}"
        for mode in ("greedy", "sampled")
    ]
    return f"the same {seeds(count)} in gymnax and in gymnasium, mean return: {', '.join(parts)}"


def _interval(row: dict[str, Any]) -> str:
    if row["ci95_low"] is None:
        return returned(row["iqm"])
    value, low, high = (returned(row[x]) for x in ("iqm", "ci95_low", "ci95_high"))
    return f"{value} [{low}, {high}] over {row['interval_over']}"


def _print_table(
    algorithm: str, config: Config, results: list[dict[str, Any]], episodes: int
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from jaxpg.analysis.measures import of_few

    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("simulator")
    table.add_column("policy")
    table.add_column("seeds", justify="right")
    table.add_column("IQM return [95 %]", justify="right")
    table.add_column("worst seed", justify="right")
    table.add_column("worst episode", justify="right")
    if results[0]["solved_at"] is not None:
        table.add_column(f"seeds ≥ {results[0]['solved_at']:g}", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("seconds", justify="right")
    for row in results:
        cells = [
            row["simulator"],
            row["mode"],
            str(len(row["seeds"])),
            _interval(row),
            f"{returned(row['worst_seed_return'])} (seed {row['worst_seed']})",
            returned(row["worst_episode"]),
        ]
        if row["solved_at"] is not None:
            cells.append(share(row["solved_fraction"]))
        table.add_row(*cells, f"{row['steps']:,}", f"{row['seconds']:.1f}")
    print(f"{algorithm} on {environment(config)}, fresh episodes of each seed: {episodes:,}")
    terminal.console().print(table)
    for line in of_few(len(results[0]["seeds"])):
        print(line)
