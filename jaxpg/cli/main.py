"""The `jaxpg` command. Imports jax only once a command needs it."""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from jaxpg import files
from jaxpg.cli import policies as policy_commands
from jaxpg.cli import runs
from jaxpg.cli.arguments import command_parser, with_examples
from jaxpg.core.config import PRESET_NOTES, PRESETS, Config, ConfigError, nearest, preset, validate
from jaxpg.errors import REFUSED, DoesNotFit
from jaxpg.runs import manifest, sweep, track
from jaxpg.runs.manifest import parse_seeds

USAGE = """\
usage: jaxpg COMMAND [options]

Policy gradients you can trust at ten thousand seeds.

commands:
  train [PRESET]   train many seeds in parallel into a run directory, or continue it
  resume DIR       continue a run that was stopped or killed
  status DIR       say what a run is and how far it has come
  extend DIR       give a run a larger budget
  merge DIR…       join runs of different seeds
  report DIR       a run on one page: report.html, and its figures as PNG and SVG
  compare DIR DIR… runs side by side, with intervals
  sweep [PRESET]   train a grid of hyperparameters, or continue it
  replay DIR       one seed again, with its trajectories and gradients
  bench [PRESET]   how fast a config trains here, with how many lanes, in how much memory
  evaluate DIR     fresh episodes of trained policies, in gymnax and in gymnasium
  render DIR       a moving picture of trained policies
  export DIR       a policy for PyTorch, ONNX, StableHLO or safetensors
  presets          list the presets and what they set
  oracle           hold every estimator against the exact policy gradient
  parity           hold everything against the PyTorch twin, and see planted faults caught

examples:
  jaxpg train vpg --seeds 256 --out runs/cartpole
  jaxpg resume runs/cartpole
  jaxpg train reinforce --env Acrobot-v1 --learning-rate 3e-3 --seeds 32
  jaxpg train --help
"""
COMMANDS = (
    "train",
    "resume",
    "status",
    "extend",
    "merge",
    "report",
    "compare",
    "sweep",
    "replay",
    "bench",
    "evaluate",
    "render",
    "export",
    "presets",
    "oracle",
    "parity",
)
EXAMPLES = {
    "train": (
        "jaxpg train vpg --seeds 256 --out runs/cartpole",
        "jaxpg train reinforce --env Acrobot-v1 --learning-rate 3e-3 --seeds 1000:1032",
    ),
    "sweep": (
        "jaxpg sweep --grid learning_rate=1e-3,1e-2 gamma=0.95,0.99 --seeds 64",
        "jaxpg sweep reinforce --grid hidden_sizes=32,64x64 --out runs/sizes",
    ),
    "bench": ("jaxpg bench vpg", "jaxpg bench vpg --hidden-sizes 128 128 --lanes 8 16 32"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, or with 2 after one sentence on what was wrong.

    A run that was asked to stop exits with 75, one that hangs with 76.
    """
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if command in ("-h", "--help"):
            print(USAGE, end="")
        elif command == "--version":
            from jaxpg import __version__

            print(f"jaxpg {__version__}")
        elif command == "presets":
            _presets(rest)
        elif command == "train":
            _train(rest)
        elif command == "bench":
            _bench(rest)
        elif command == "sweep":
            _sweep(rest)
        elif command == "status":
            runs.status(rest)
        elif command in ("resume", "extend", "merge", "replay"):
            getattr(runs, command)(rest, _prepare)
        elif command in ("report", "compare"):
            import_module(f"jaxpg.report.{'page' if command == 'report' else command}").main(rest)
        elif command in ("evaluate", "render", "export"):
            getattr(policy_commands, command)(rest, _prepare)
        elif command == "oracle":
            from jaxpg.proof import oracle

            oracle.main(rest)
        elif command == "parity":
            _parity(rest)
        else:
            raise ConfigError(f"unknown command {command!r}{nearest(command, COMMANDS)}")
    except REFUSED as error:
        print(f"jaxpg: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("jaxpg: interrupted", file=sys.stderr)
        sys.exit(130)


def _presets(arguments: list[str]) -> None:
    command_parser("presets", "List the presets, and what they set.", "").parse_args(arguments)
    for name, config in PRESETS.items():
        print(f"{name}\n  {PRESET_NOTES[name]}")
        for field in dataclasses.fields(Config):
            value = getattr(config, field.name)
            if name == "vpg" or value != field.default:
                print(f"    {field.name} = {value}")
        if name != "vpg":
            print("    (the rest as in vpg)")


def _train(arguments: list[str]) -> None:
    name, options = _parse_train(arguments)
    config = validate(options.config)
    seeds = parse_seeds(options.seeds)
    launch = runs.check_launch(options.launch)
    out = options.out or Path("runs") / name
    if options.track is not None:
        track.check(options.track)
    _prepare(config)
    whose = runs.join(launch)
    from jaxpg.runs import run

    run.check_usable(out)
    runs.wait_for_first(out, launch, whose)
    lanes, is_new = options.lanes, not (out / manifest.NAME).exists()
    if lanes is None and not is_new:
        lanes = manifest.read(out).lanes
    (run.check_same if whose.process else run.begin)(out, run.plan(name, config, seeds, lanes))
    if not whose.process:
        track.choose(out, options.track)
    try:
        runs.train(out, launch, whose)
    except DoesNotFit as problem:
        if whose.processes > 1:
            raise  # the others have begun it too
        if is_new:
            run.withdraw(out)
        if lanes is not None or problem.lanes is None:
            raise
        print(f"jaxpg: {problem}, and is taken", file=sys.stderr)
        run.begin(out, run.plan(name, config, seeds, problem.lanes))
        track.choose(out, options.track)
        runs.train(out, launch, whose)


def _bench(arguments: list[str]) -> None:
    """What `jaxpg train` would take here; writes nothing but --json."""
    import json

    import tyro

    @dataclasses.dataclass(frozen=True)
    class Bench:
        config: tyro.conf.OmitArgPrefixes[Config]
        lanes: tuple[int, ...] = ()
        """Numbers of lanes to try, >= 2 each; a few that fit the backend if not given."""
        rounds: int = 3
        """Measurements of each, by turns; >= 1."""
        seconds: float = 2.0
        """That a measurement takes at least."""
        json: Path | None = None
        """File for all that was measured."""

    says = "Measure how fast a config trains on this machine."
    _, options = _parse("bench", says, Bench, arguments)
    config = validate(options.config)
    if options.rounds < 1 or not 0 < options.seconds < math.inf:
        raise ConfigError(
            "--rounds must be at least 1, and --seconds finite and greater than 0; got "
            f"{options.rounds} and {options.seconds:g}"
        )
    files.check(options.json, "--json")
    _prepare(config)
    from jaxpg.population import bench

    def note(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    lanes = options.lanes or bench.lanes_to_try()
    measured = bench.measure(config, lanes, options.rounds, options.seconds, note)
    print(bench.table(measured))
    if options.json is not None:
        files.save(options.json, json.dumps(measured, indent=2, allow_nan=False) + "\n")


def _prepare(config: Config) -> None:
    """Set up jax for a config; must come before jax is imported."""
    _prepare_jax()
    os.environ["JAX_ENABLE_X64"] = "1" if config.float_type == "float64" else "0"


def _parity(arguments: list[str]) -> None:
    """float64 throughout, hence on the CPU."""
    _prepare_jax()
    os.environ.update(JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")

    from jaxpg.cli import parity as command

    command.main(arguments)


def _sweep(arguments: list[str]) -> None:
    name, options = _parse_sweep(arguments)
    if options.launch.distributed:
        raise ConfigError(
            "a sweep is begun by one process; others can take runs of it: jaxpg resume DIR/NAME"
        )
    runs.check_launch(options.launch)
    grid = sweep.parse_grid(options.grid)
    plan = sweep.plan(name, options.config, grid, options.seeds, options.lanes)
    _prepare(plan.config)
    runs.sweep(plan, options.launch, options.out or Path("runs") / f"{name}-sweep")


def _parse_train(arguments: list[str]) -> tuple[str, Any]:
    """The preset's name, and an object with config, seeds, out, lanes and launch."""
    return _parse("train", "Train many seeds in parallel.", _train_options(), arguments)


def _parse_sweep(arguments: list[str]) -> tuple[str, Any]:
    """The same with a grid."""

    @dataclasses.dataclass(frozen=True)
    class Sweep(_train_options()):  # type: ignore[misc]
        grid: tuple[str, ...] = ()
        """FIELD=VALUE,VALUE… for each field that is swept, as in learning_rate=1e-3,3e-3
        hidden_sizes=32,64x64 max_grad_norm=0.5,none; every combination is trained."""

    return _parse("sweep", "Train a grid of hyperparameters, or continue it.", Sweep, arguments)


def _train_options() -> Any:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Train:
        config: tyro.conf.OmitArgPrefixes[Config]
        seeds: str = "256"
        """How many (0, 1, …), a range FIRST:END, or a list 3,17,42; integers in [0, 2^32)."""
        out: Path | None = None
        """Directory: new, or empty, or of this very run, which is then continued; runs/PRESET (of a
        sweep runs/PRESET-sweep) if not given."""
        lanes: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
        """Seeds that a worker trains at once, >= 2; part of what makes a run reproducible."""
        launch: tyro.conf.OmitArgPrefixes[runs.Launch] = dataclasses.field(
            default_factory=runs.Launch
        )
        track: Annotated[str | None, tyro.conf.arg(metavar="TRACKER")] = None
        """tensorboard (files in OUT/tensorboard), wandb or none; a run that is continued keeps
        its own if not given. progress.jsonl is written always."""

    return Train


def _parse(command: str, says: str, options: Any, arguments: list[str]) -> tuple[str, Any]:
    """The preset's name, and the options as a dataclass."""
    import tyro

    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    base = preset(name or "vpg")
    parsed = tyro.cli(
        options,
        prog=f"jaxpg {command} {name or '[PRESET]'}",
        description=with_examples(
            f"{says} Presets: {', '.join(PRESETS)} (default: vpg). "
            f"The defaults below are those of {name or 'vpg'}.",
            EXAMPLES[command],
        ),
        args=arguments[1:] if name else arguments,
        default=options(config=base),
        config=(tyro.conf.AvoidSubcommands,),
    )
    return name or "vpg", parsed


def _prepare_jax() -> None:
    """Compiled programs are kept. Must come before jax starts its backend."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxpg" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
