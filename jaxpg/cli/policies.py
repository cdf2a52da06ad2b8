"""The commands that take trained policies away. They import jax only once they compute."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpg import files
from jaxpg.cli.arguments import add_run, command_parser
from jaxpg.core.config import ConfigError, nearest
from jaxpg.errors import RunError
from jaxpg.runs import manifest as manifests

if TYPE_CHECKING:
    from jaxpg.policies.evaluate import Evaluation
    from jaxpg.runs.load import Run

EXPORTS = ("torch", "onnx", "stablehlo", "safetensors")


def evaluate(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg evaluate: fresh episodes of trained policies, greedy and sampled.

    Args:
      prepare: sets up jax for a config; called before jax is imported.
    """
    parser = command_parser(
        "evaluate",
        "Let trained policies act in fresh episodes, greedily and sampled: in gymnax, and in "
        "gymnasium's own environment of the same name, to see that they transfer.",
        "runs/cartpole --episodes 100 --json evaluation.json",
    )
    add_run(parser, "the directory of a finished run")
    parser.add_argument(
        "--episodes", type=int, default=100, metavar="N", help="of each seed (default: %(default)s)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", metavar="SEED", help="one: a number, best, worst or median")
    which.add_argument(
        "--seeds",
        default="all",
        help="all (the default), a range FIRST:END, or a list 3,17,42",
    )
    parser.add_argument(
        "--gymnasium-seeds",
        default="some",
        metavar="N",
        help="how many of them in gymnasium, which is slow: a number, 0 to leave it out, or all; "
        "if not given, as many as take less than a minute",
    )
    add_setting(parser)
    parser.add_argument(
        "--evaluation-seed",
        type=int,
        default=0,
        metavar="N",
        help="of the episodes' own randomness (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    options = parser.parse_args(arguments)
    if options.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1; got {options.episodes}")
    check_seed("--evaluation-seed", options.evaluation_seed)
    run = load(options.dir, prepare)
    from jaxpg.policies import evaluate as evaluation

    seeds = chosen_seeds(run, options.seed, options.seeds, options.setting)
    count, why = _gymnasium_seeds(run, options.gymnasium_seeds, len(seeds), options.episodes)
    found: list[Evaluation] = []
    for simulator, some in (
        (evaluation.in_gymnax, seeds),
        (evaluation.in_gymnasium, seeds[:count]),
    ):
        for mode in evaluation.MODES if some else ():
            say(f"{simulator.__name__[3:]}, {mode}: {_count(len(some))} …")
            settings = {"setting": options.setting, "key": options.evaluation_seed}
            found.append(simulator(run, some, options.episodes, mode, **settings))
    results = [evaluation.summarize(each, run.config.env) for each in found]
    _print_table(run, results, options.episodes)
    if count:
        print(_transfer(results, count))
    if why:
        print(why)
    if options.json:
        content = {
            "run": str(options.dir),
            "manifest": run.summary["manifest"],
            "env": run.config.env,
            "setting": options.setting,
            "evaluation_seed": options.evaluation_seed,
            "results": results,
        }
        files.save(options.json, json.dumps(content, indent=2, allow_nan=False) + "\n")
        print(options.json)


def render(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg render: a moving picture of trained policies in CartPole."""
    parser = command_parser(
        "render",
        "Draw an episode of a trained policy in CartPole-v1, or of many at once, as a GIF (or, "
        "where ffmpeg is installed, an mp4).",
        "runs/cartpole --seed best --before --out balancing.gif",
    )
    add_run(parser, "the directory of a finished run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--seed", default="best", help="a number, best, worst or median (default: best)"
    )
    which.add_argument(
        "--sheet", type=int, metavar="N", help="the first N seeds at once; a GIF of at most 3 MB"
    )
    parser.add_argument(
        "--before",
        action="store_true",
        help="show what the same seed was before training: beside it, or in a sheet first",
    )
    parser.add_argument(
        "--greedy", action="store_true", help="take the most probable action instead of sampling"
    )
    add_setting(parser)
    parser.add_argument(
        "--episode-seed", type=int, default=0, metavar="N", help="another episode (default: 0)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=".gif or .mp4; in DIR if not given"
    )
    options = parser.parse_args(arguments)
    check_seed("--episode-seed", options.episode_seed)
    if options.out and options.out.suffix not in (".gif", ".mp4"):
        raise ConfigError(f"--out must end in .gif or .mp4; got {options.out}")
    run = load(options.dir, prepare)
    from jaxpg.policies import render as pictures

    pictures.check(run.config)
    choice: dict[str, Any] = {
        "mode": "greedy" if options.greedy else "sampled",
        "before": options.before,
        "setting": options.setting,
        "key": options.episode_seed,
    }
    run.row(run.seeds[0], options.setting)
    before = "-before" if options.before else ""
    if options.out and options.out.suffix == ".mp4":
        pictures.ffmpeg()
    if options.sheet is not None:
        if not 1 <= options.sheet <= len(run.seeds):
            raise ConfigError(
                f"--sheet must be in [1, {len(run.seeds)}], the run's seeds; got {options.sheet}"
            )
        out = options.out or options.dir / f"sheet-{options.sheet}{before}.gif"
        seeds = run.seeds[: options.sheet]
        if out.suffix == ".gif":
            content = pictures.small_sheet(run, seeds, **choice)
        else:
            content = pictures.to_mp4(pictures.sheet(run, seeds, **choice))
    else:
        seed = one_seed(run, options.seed, options.setting)
        out = options.out or options.dir / f"seed-{seed}{before}.gif"
        to_file = pictures.to_gif if out.suffix == ".gif" else pictures.to_mp4
        content = to_file(pictures.one(run, seed, **choice))
    files.save(out, content)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def export(arguments: Sequence[str], prepare: Callable[[Any], None]) -> None:
    """jaxpg export: a trained policy as a file for another runtime."""
    parser = command_parser(
        "export",
        "Write the trained policy of one seed as a file for another runtime, and print the lines "
        "that load it there.",
        "runs/cartpole --seed best --to onnx",
    )
    add_run(parser, "the directory of a finished run")
    parser.add_argument(
        "--seed", default="best", help="a number, best, worst or median (default: best)"
    )
    parser.add_argument("--to", required=True, help=f"one of {', '.join(EXPORTS)}")
    add_setting(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="DIR/seed-SEED.SUFFIX if not given"
    )
    options = parser.parse_args(arguments)
    if options.to not in EXPORTS:
        raise ConfigError(f"--to is {options.to!r}{nearest(options.to, EXPORTS)}")
    run = load(options.dir, prepare)
    from jaxpg.policies import export as exports

    seed = one_seed(run, options.seed, options.setting)
    out = options.out or options.dir / f"seed-{seed}{exports.SUFFIXES[options.to]}"
    content = exports.export(run, seed, options.to, setting=options.setting)
    files.save(out, content)
    print(f"{out}: seed {seed} of {run.manifest.preset} on {run.config.env}. To load it:\n")
    print(exports.how_to_load(run, options.to, str(out)))


def load(directory: Path, prepare: Callable[[Any], None]) -> "Run":
    """The run, with jax set up for it."""
    prepare(manifests.read(directory).config)
    from jaxpg.runs.load import load

    return load(directory)


def add_setting(parser: argparse.ArgumentParser) -> None:
    """--setting, for runs of several."""
    parser.add_argument(
        "--setting", type=int, default=0, metavar="K", help="of a sweep, from 0 (default: 0)"
    )


def one_seed(run: "Run", text: str, setting: int) -> int:
    """The seed that a command line names: a number, best, worst or median.

    Raises:
      RunError: if the run has none.
    """
    row = run.row(int(text) if text.isdecimal() else text, setting)
    return int(run.population.seeds[row])


def chosen_seeds(run: "Run", seed: str | None, seeds: str, setting: int) -> list[int]:
    """What --seed or --seeds names.

    Raises:
      RunError: if the run has not all of them, or no such setting.
    """
    run.row(run.seeds[0], setting)
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


def check_seed(argument: str, seed: int) -> None:
    """Raise ConfigError unless it is in [0, 2^32)."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"{argument} must be an integer in [0, 2^32); got {seed}")


def say(sentence: str) -> None:
    """Progress, on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def _gymnasium_seeds(run: "Run", text: str, available: int, episodes: int) -> tuple[int, str]:
    """How many seeds to evaluate in gymnasium, and a sentence if they are not all."""
    from jaxpg.policies.evaluate import default_gymnasium_seeds, gymnasium_maker

    if text == "all":
        gymnasium_maker(run.config)
        return available, ""
    if text != "some":
        if not text.isdecimal():
            raise ConfigError(f"--gymnasium-seeds must be a number or all; got {text!r}")
        if int(text):
            gymnasium_maker(run.config)
        return min(int(text), available), ""
    try:
        gymnasium_maker(run.config)
    except ConfigError as error:
        return 0, f"in gymnax alone: {error}"
    count = default_gymnasium_seeds(run.config, episodes)
    if count >= available:
        return available, ""
    return count, (
        f"gymnasium takes a step at a time, so there it was the first {_count(count)} of "
        f"{available}; --gymnasium-seeds all takes them all"
    )


def _transfer(results: list[dict[str, Any]], count: int) -> str:
    """What the seeds that were in both simulators did in each."""
    means = {
        (row["mode"], row["simulator"]): sum(row["mean_return"][:count]) / count for row in results
    }
    parts = [
        f"{mode} {means[mode, 'gymnax']:.1f} and {means[mode, 'gymnasium']:.1f}"
        for mode in ("greedy", "sampled")
    ]
    return f"the same {_count(count)} in gymnax and in gymnasium, mean return: {', '.join(parts)}"


def _count(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _print_table(run: "Run", results: list[dict[str, Any]], episodes: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    over = results[0]["interval_over"]
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("simulator")
    table.add_column("policy")
    table.add_column("seeds", justify="right")
    table.add_column(f"IQM return [95 % over {over}]", justify="right")
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
            f"{row['iqm']:.1f} [{row['ci95_low']:.1f}, {row['ci95_high']:.1f}]",
            f"{row['worst_seed_return']:.1f} (seed {row['worst_seed']})",
            f"{row['worst_episode']:.1f}",
        ]
        if row["solved_at"] is not None:
            cells.append(f"{row['solved_fraction']:.1%}")
        table.add_row(*cells, f"{row['steps']:,}", f"{row['seconds']:.1f}")
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width
        console = Console(width=140)
    print(f"{run.manifest.preset} on {run.config.env}, {episodes} fresh episodes of each seed")
    console.print(table)
