"""The table of commands, from which usage, help, examples and dispatch are made. Imports no jax."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from jaxpg.cli import bench, environments, oracle, parity, policies, race, show, train
from jaxpg.cli.arguments import Command, parse
from jaxpg.core.config import ConfigError, nearest
from jaxpg.errors import REFUSED

COMMANDS = {
    "train": Command(
        train.Train,
        train.train,
        (
            "jaxpg train vpg --seeds 256 --out runs/cartpole",
            "jaxpg train reinforce --env Acrobot-v1 --learning-rate 3e-3 --seeds 1000:1032",
            "jaxpg train vpg --env-params gravity=12 masspole=0.3",
        ),
    ),
    "resume": Command(train.Resume, train.resume, ("jaxpg resume runs/cartpole",)),
    "status": Command(show.Status, show.status, ("jaxpg status runs/cartpole",)),
    "extend": Command(
        train.Extend, train.extend, ("jaxpg extend runs/long --total-steps 1000000",)
    ),
    "merge": Command(train.Merge, train.merge, ("jaxpg merge runs/a runs/b --out runs/both",)),
    "report": Command(show.Report, show.report, ("jaxpg report runs/cartpole",)),
    "compare": Command(
        show.Compare,
        show.compare,
        ("jaxpg compare runs/vpg runs/reinforce --picture compare.png",),
    ),
    "sweep": Command(
        train.Sweep,
        train.sweep,
        (
            "jaxpg sweep --grid learning_rate=1e-3,1e-2 gamma=0.95,0.99 --seeds 64",
            "jaxpg sweep reinforce --grid hidden_sizes=32,64x64 --out runs/sizes",
            "jaxpg sweep --grid env.gravity=5,9.8,20 --seeds 64",
        ),
    ),
    "race": Command(
        race.Race,
        race.race,
        (
            "jaxpg race vpg ppo --total-steps 100000 --max-seeds 1024",
            "jaxpg race vpg vpg,learning_rate=3e-3 vpg,hidden_sizes=64x64 --out runs/race",
        ),
    ),
    "retrace": Command(
        train.Retrace, train.retrace, ("jaxpg retrace runs/cartpole --seed 17 --update 40",)
    ),
    "bench": Command(
        bench.Bench,
        bench.bench,
        ("jaxpg bench vpg", "jaxpg bench vpg --hidden-sizes 128 128 --lanes 8 16 32"),
    ),
    "evaluate": Command(
        policies.Evaluate,
        policies.evaluate,
        ("jaxpg evaluate runs/cartpole --episodes 100 --json evaluation.json",),
    ),
    "render": Command(
        policies.Render,
        policies.render,
        ("jaxpg render runs/cartpole --seed best --before --out balancing.gif",),
    ),
    "export": Command(
        policies.Export, policies.export, ("jaxpg export runs/cartpole --seed best --to onnx",)
    ),
    "envs": Command(environments.Envs, environments.envs, ("jaxpg envs", "jaxpg envs brax")),
    "check-env": Command(
        environments.CheckEnv,
        environments.check_env,
        ("jaxpg check-env brax:ant", "jaxpg check-env my_environments:Echo-v0"),
    ),
    "presets": Command(show.Presets, show.presets, ("jaxpg presets", "jaxpg presets ppo")),
    "oracle": Command(
        oracle.Oracle,
        oracle.oracle,
        ("jaxpg oracle", "jaxpg oracle --horizon 10 --json oracle.json --out oracle.png"),
    ),
    "parity": Command(
        parity.Parity,
        parity.parity,
        (
            "jaxpg parity",
            "jaxpg parity --full --json parity.json",
            "jaxpg parity --level gradients faults",
            "jaxpg parity record golden",
        ),
    ),
    "parity record": Command(parity.Record, parity.record, ("jaxpg parity record golden",)),
}
FORMER = {"replay": "retrace"}  # names


def run(words: Sequence[str]) -> None:
    """Run the command that these words are."""
    try:
        _run(list(words))
    except REFUSED as error:
        print(f"jaxpg: {error}", file=sys.stderr)
        sys.exit(2)


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
    elif words[0] == "--version":
        print(f"jaxpg {version('jaxpg')}")
    else:
        name, rest = _named(words)
        command = COMMANDS[name]
        command.run(parse(name, command, rest))


def _named(words: list[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and what follows."""
    first = FORMER.get(words[0], words[0])
    if first != words[0]:
        print(f"jaxpg: {words[0]} is called {first} now", file=sys.stderr)
    for count in (2, 1):
        name = " ".join([first, *words[1:count]])
        if name in COMMANDS:
            return name, words[count:]
    raise ConfigError(f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}")


def usage() -> str:
    """What `jaxpg --help` says."""
    width = max(map(len, COMMANDS)) + 2
    commands = [f"  {name:{width}}{command.says}" for name, command in COMMANDS.items()]
    examples = [f"  {COMMANDS[name].examples[0]}" for name in ("train", "resume", "compare")]
    return "\n".join(
        [
            "usage: jaxpg COMMAND [options]",
            "",
            "Policy gradients you can trust at ten thousand seeds.",
            "",
            "commands:",
            *commands,
            "",
            "examples:",
            *examples,
            "  jaxpg train --help",
        ]
    )
