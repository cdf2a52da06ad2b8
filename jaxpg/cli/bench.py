"""jaxpg bench."""

import dataclasses
import math
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from jaxpg import files
from jaxpg.cli import machine
from jaxpg.cli.arguments import File, Preset
from jaxpg.cli.streams import say
from jaxpg.core.config import Config, ConfigError
from jaxpg.core.presets import PRESETS
from jaxpg.core.rules import validate


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure how fast a config trains here, with how many lanes, in how much memory."""

    preset: Preset = "vpg"
    """Where the options start from: vpg, ppo, reinforce, … (jaxpg presets)."""
    lanes: Annotated[tuple[int, ...], arg(help_behavior_hint="")] = ()
    """Numbers of lanes to try, >= 2 each; a few that fit the device if not given."""
    rounds: int = 3
    """Measurements of each number of lanes, in alternation; >= 1."""
    seconds: float = 2.0
    """Length of a measurement, roughly."""
    json: File = None
    """For all that was measured."""
    config: OmitArgPrefixes[Config] = PRESETS["vpg"]


def bench(options: Bench) -> None:
    """jaxpg bench."""
    config = validate(options.config)
    if options.rounds < 1 or not 0 < options.seconds < math.inf:
        raise ConfigError(
            "--rounds must be at least 1, and --seconds finite and greater than 0; got "
            f"{options.rounds} and {options.seconds:g}"
        )
    files.check(options.json, "--json")
    machine.prepare(config)
    from jaxpg.population import bench

    measured = bench.measure(config, options.lanes, options.rounds, options.seconds, say)
    if options.json is not None:
        files.save(options.json, files.as_json(measured))
    print(bench.table(measured))
