"""The `jaxpg` command. Imports jax only once a command needs it."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from jaxpg.config import PRESET_NOTES, PRESETS, Config, ConfigError, nearest, preset, validate
from jaxpg.files import begin_directory

USAGE = """\
usage: jaxpg COMMAND [options]

Policy gradients you can trust at ten thousand seeds.

commands:
  train [PRESET]   train many seeds in parallel and write their results
  presets          list the presets and what they set
  oracle           hold every estimator against the exact policy gradient
  parity           hold everything against the PyTorch twin, and see planted faults caught

examples:
  jaxpg train vpg --seeds 256 --out runs/cartpole
  jaxpg train reinforce --env Acrobot-v1 --learning-rate 3e-3 --seeds 32
  jaxpg train --help
"""
COMMANDS = ("train", "presets", "oracle", "parity")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, or with 2 after one sentence on what was wrong."""
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
        elif command == "oracle":
            from jaxpg import oracle

            oracle.main(rest)
        elif command == "parity":
            _parity(rest)
        else:
            raise ConfigError(f"unknown command {command!r}{nearest(command, COMMANDS)}")
    except ConfigError as error:
        print(f"jaxpg: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("jaxpg: interrupted", file=sys.stderr)
        sys.exit(130)


def _presets(arguments: list[str]) -> None:
    if arguments not in ([], ["-h"], ["--help"]):
        raise ConfigError(f"presets takes no arguments; got {' '.join(arguments)}")
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
    out = Path(os.path.abspath(options.out or Path("runs") / name))
    partial = begin_directory(out, "--out")
    try:
        population = _run(config, seeds, options.lanes)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    from jaxpg import results

    try:
        summary = results.save(partial, name, config, population)
        partial.rename(out)
    except OSError as error:
        raise ConfigError(
            f"--out could not be written ({error}); what there is lies in {partial}"
        ) from error
    print(_closing(summary, options.out or out))


def _run(config: Config, seeds: list[int], lanes: int | None) -> Any:
    """Train, with progress on standard error; returns a Population."""
    _prepare_jax()
    if config.float_type == "float64":
        os.environ["JAX_ENABLE_X64"] = "1"

    from jaxpg.population import train_population
    from jaxpg.progress import progress

    with progress(config, len(seeds)) as report:
        return train_population(config, seeds, lanes=lanes, report=report)


def _parity(arguments: list[str]) -> None:
    """float64 throughout, hence on the CPU."""
    _prepare_jax()
    os.environ.update(JAX_PLATFORMS="cpu", JAX_ENABLE_X64="1")

    from jaxpg.proof import command

    command.main(arguments)


def _parse_train(arguments: list[str]) -> tuple[str, Any]:
    """The preset's name, and an object with config, seeds, out and lanes."""
    import tyro

    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    base = preset(name or "vpg")

    @dataclasses.dataclass(frozen=True)
    class Train:
        config: tyro.conf.OmitArgPrefixes[Config]
        seeds: str = "256"
        """How many (0, 1, …), a range FIRST:END, or a list 3,17,42; integers in [0, 2^32)."""
        out: Path | None = None
        """Directory for the results, new or empty; runs/PRESET if not given."""
        lanes: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
        """Seeds that a device trains at once, >= 2; part of what makes a run reproducible."""

    options = tyro.cli(
        Train,
        prog=f"jaxpg train {name or '[PRESET]'}",
        description=f"Train many seeds in parallel. Presets: {', '.join(PRESETS)} (default: vpg). "
        f"The defaults below are those of {name or 'vpg'}.",
        args=arguments[1:] if name else arguments,
        default=Train(config=base),
        config=(tyro.conf.AvoidSubcommands,),
    )
    return name or "vpg", options


def parse_seeds(text: str) -> list[int]:
    """The seeds of '256', '1000:2000' or '3,17,42'.

    Raises:
      ConfigError: if it is none of these, or empty, or a seed is repeated or not in [0, 2^32).
    """
    seeds: Sequence[int]
    try:
        if "," in text:
            seeds = [int(part) for part in text.split(",")]
        elif ":" in text:
            first, end = map(int, text.split(":"))
            seeds = range(first, end)
        else:
            seeds = range(int(text))
    except ValueError:
        seeds = []
    different = isinstance(seeds, range) or len(set(seeds)) == len(seeds)
    extremes = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds
    if not seeds or not different or not all(0 <= seed < 2**32 for seed in extremes):
        raise ConfigError(
            "--seeds must be a count of at least 1, FIRST:END, or a list of different integers "
            f"in [0, 2^32); got {text!r}"
        )
    return list(seeds)


def _prepare_jax() -> None:
    """Single-threaded programs on a CPU, one at a time on each core; compiled ones are kept.

    Must come before jax starts its backend. What the environment says already stands.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxpg" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))


def _closing(summary: dict[str, Any], out: Path) -> str:
    speed = summary["env_steps_per_second"] / 1e6
    lines = [
        f"{summary['seeds']} seeds, {summary['total_env_steps']:,} environment steps in "
        f"{summary['wall_seconds']:.0f} s ({speed:.2f} M steps/s; compiling took "
        f"{summary['compile_seconds']:.0f} s)"
    ]
    spread = summary["final_return"]
    if spread is None:
        lines.append("no episode ended: there is no return to report")
    else:
        lines.append(
            f"return over the last 100 episodes: IQM {spread['iqm']:.1f} "
            f"(95 % interval {spread['ci95_low']:.1f} to {spread['ci95_high']:.1f}), "
            f"worst seed {spread['min']:.1f}, best {spread['max']:.1f}"
        )
    if summary["solved_fraction"] is not None:
        lines.append(f"solved (>= {summary['solved_at']:g}): {summary['solved_fraction']:.1%}")
    diverged = summary["diverged"]
    if diverged:
        first = diverged[0]
        lines.append(
            f"{len(diverged)} diverged and were frozen at their last finite state, the first of "
            f"them seed {first['seed']} at update {first['update']} ({first['cause']})"
        )
    lines.append(f"{out}: summary.json results.npz params.safetensors curve.png")
    return "\n".join(lines)
