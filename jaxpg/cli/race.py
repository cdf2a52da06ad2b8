"""jaxpg race."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from jaxpg import words
from jaxpg.analysis import race as analysis
from jaxpg.cli import machine
from jaxpg.cli.arguments import Callback, Contenders, Given
from jaxpg.cli.launch import Launch, check, import_callback, to_the_end
from jaxpg.cli.streams import attempt, say
from jaxpg.core.config import FIELDS, Config
from jaxpg.core.presets import PRESETS
from jaxpg.runs import manifests
from jaxpg.runs import race as races
from jaxpg.runs.watch import EXIT_STOPPED


@dataclasses.dataclass(frozen=True)
class Race:
    """Train contenders in rounds of seeds until it is decided which is better, or continue it.

    The chance of declaring equal contenders different, over all rounds and pairs, is at most
    --alpha. An option applies to every contender unless its own FIELD=VALUE overrides it; the rest
    is its preset's. If stopped or killed, the same command continues it.
    """

    contenders: Contenders
    """Presets, with fields that are to be otherwise: vpg ppo vpg,learning_rate=3e-3,gamma=0.95; an
    algorithm of your own as vpg,algorithm=MODULE:FUNCTION,option.NAME=VALUE."""
    max_seeds: Annotated[int, arg(metavar="N")] = 256
    """Of each contender, if it is not decided before."""
    first_round: Annotated[int, arg(metavar="N")] = 16
    """Seeds of each contender in the first round, at least; later rounds are larger."""
    alpha: float = analysis.ALPHA
    """Chance of telling alike contenders apart, in (0, 1)."""
    start_seed: Annotated[int, arg(metavar="SEED")] = 0
    """The first seed; choose one beyond the seeds on which the contenders were chosen."""
    out: Annotated[
        Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/race-PRESET-PRESET…)")
    ] = None
    """Directory: new, or empty, or of this very race, which is then continued."""
    lanes: Annotated[
        int | None,
        arg(metavar="INT", help_behavior_hint="(default: as of train, or what a round fills)"),
    ] = None
    """Seeds that a worker trains at once, >= 2."""
    stall_seconds: float = Launch.stall_seconds
    """End with code 76 if a segment takes longer."""
    callback: Callback = None
    """Called after each commit with the contender's directory and the progress; imported."""
    given: Given = ()
    shared: OmitArgPrefixes[Config] = PRESETS["vpg"]


def race(options: Race) -> None:
    """jaxpg race."""
    launch = Launch(options.stall_seconds, report=False, callback=options.callback)
    check(launch)
    asked = settle(options)
    presets = "-".join(one.preset for one in asked.contenders)
    out = options.out or Path("runs") / f"race-{presets}"
    machine.prepare(asked.contenders[0].config)
    import_callback(launch)
    from jaxpg.report import race as report
    from jaxpg.runs import directories

    asked = races.begin(out, asked)
    told, stopped = 0, False
    while True:
        scores = races.scores(out, asked)
        found = analysis.race(asked.plan, scores)
        for number, at in enumerate(found[told:], told + 1):
            print(report.line(asked, number, at), flush=True)
        if found and not found[-1].running:
            break
        if stopped:
            say("stopped before the race is over; continue with: the same line")
            sys.exit(EXIT_STOPPED)
        told = len(found)
        seeds = asked.plan.rounds[told]
        for i in found[-1].running if found else range(len(asked.contenders)):
            directory = races.enter(out, asked, i, seeds)
            if not directories.is_finished(directory):
                has = words.seeds(len(manifests.read(directory).seeds))
                print(f"race: {directory}, to {has}", flush=True)
                stopped = to_the_end(directory, launch, again="the same line")
                if stopped:
                    break
    report.show(asked, found, scores)
    print(f"numbers: {report.save(out, asked, found, scores)}")
    with attempt("the picture could not be drawn"):
        print(f"picture: {report.draw(out, asked, found)}")


def settle(options: Race) -> races.Race:
    """What the options settle.

    Raises:
      ConfigError: if they have no meaning.
    """
    shared = {name: getattr(options.shared, name) for name in options.given if name in FIELDS}
    return races.plan(
        options.contenders,
        shared,
        first_round=options.first_round,
        max_seeds=options.max_seeds,
        alpha=options.alpha,
        start=options.start_seed,
        lanes=options.lanes,
    )
